"""A slice of the fuzz run, see `tests.fuzz`; and that it would notice a reader that lets errors through."""

import json
from dataclasses import replace

import pytest

from nnunet_calib import CaseStatistics
from nnunet_calib.io.json_forms import problems
from tests import fuzz
from tests.fuzzing.readers import Reader


@pytest.mark.filterwarnings("ignore")
def test_changed_files(tmp_path):
    """Each is read, or refused in a sentence; both happen to every reader."""
    counts = fuzz.fuzz(3000, seed=20240306, keep=tmp_path)
    assert [path.read_text() for path in tmp_path.glob("*.txt")] == []
    assert counts.keys() == fuzz.SHARES.keys()
    for name, found in counts.items():
        assert {*found} == {"read", "refused"}, name


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("model"), "crash"),
        (ValueError("cannot reshape array"), "no sentence"),
        (ValueError("expected two\nlines"), "no sentence"),
        (MemoryError(), "crash"),
        (ValueError("expected a file, found none: write one"), "refused"),
        (None, "read"),
    ],
)
def test_outcomes(tmp_path, error, kind):
    """What counts as refused is one sentence of ours, and nothing else."""

    def read():
        if error is not None:
            raise error

    assert fuzz.outcome(Reader(tmp_path / "x", b"", read)).partition(":")[0] == kind


def test_same_seed_same_inputs(tmp_path):
    """A failure can be repeated from its seed."""
    from random import Random

    content = json.dumps({"a": [1, {"b": None}], "c": "d"}).encode()
    reader = replace(Reader(tmp_path, content, lambda: None), is_json=True)
    first, again, other = (
        [fuzz.changed(Random(f"{seed} {i}"), reader, [b"xyz"]) for i in range(50)] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len({*first}) > 30


def test_a_reader_without_checks_is_noticed(tmp_path, monkeypatch):
    """Statistics that are believed without a check lead to nonsense, which the run reports and keeps."""
    monkeypatch.setattr("nnunet_calib.measuring.case_file.check", lambda content: None)
    counts = fuzz.fuzz(400, seed=1, keep=tmp_path, only="statistics")
    assert {*counts["statistics"]} > {"read", "refused"}
    kept = [path for path in tmp_path.iterdir() if path.suffix != ".txt"]
    assert kept
    monkeypatch.undo()
    for path in kept:
        with pytest.raises(ValueError, match="expected calibration statistics"):
            CaseStatistics.load(path)


def test_lists_of_a_length():
    """What a run of a million inputs found: an interval without limits."""
    assert [*problems([0.1, None], [(float, None), (float, None)])] == []
    assert [*problems([], [float, float], "the interval")] == ["expected the interval to be a list of 2, found []"]
    assert [*problems(["a", 1], [float, float], "x")] == ["expected x[0] to be a number, found 'a'"]
    assert [*problems([1, 2, 3], [float])] == []
