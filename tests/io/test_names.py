"""Names that a text, a figure or a path could not hold as they are."""

import pytest

from nnunet_calib.io.names import check_cases, in_figure, shown

ODD = ["a\nb", "half \ud800", "byte \udcff", "$x_{$", "back\\slash", "tab\there", "line\u2028end", "ünï 名前 \u200d"]


@pytest.mark.parametrize("name", ODD)
def test_shown(name):
    """On one line, in any encoding of Unicode, the same when it is shown again; what can be read stays."""
    text = shown(name)
    assert len(text.splitlines()) == 1
    assert text.encode("utf-8").decode("utf-8") == text
    assert shown(text) == text
    assert text == name or "\\" in text
    assert text.encode("ascii", "backslashreplace").decode("unicode_escape") == name or "back" in name


def test_shown_differ():
    """No two of them are shown alike."""
    assert len({*map(shown, ODD)}) == len(ODD)


@pytest.mark.parametrize("name", [*ODD[:-1], "ünï", "$a$", r"\$x", "$$", "a_$\\frac{$"])
def test_in_figure(name):
    """Matplotlib draws the name itself, signs and all."""
    from matplotlib.figure import Figure

    figure = Figure()
    text = figure.text(0, 0, in_figure(shown(name)))
    assert text._preprocess_math(text.get_text()) == (shown(name), False)
    figure.draw_without_rendering()


@pytest.mark.parametrize("name", ["a/b", "a\\b", "a\nb", "..", "", "\udcff", "x" * 256, "C:x"])
def test_cases(name):
    """Refused, in a sentence that any console can show."""
    with pytest.raises(ValueError, match=r"expected names of cases that are UTF-8 .* rename its files") as error:
        check_cases(["case", name])
    assert str(error.value).isascii()
    assert "\n" not in str(error.value)
    check_cases(["case", "ünï 名前 $x_{$ [1]*"])
