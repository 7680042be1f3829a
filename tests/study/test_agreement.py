"""The agreement of the studies' orders of methods, and that the page has today's."""

import json

from benchmarks.study import agreement
from benchmarks.study.report import DOCUMENTS

NAMES = ("Calib", "NACL")


def comparison(means, reversed_nll=False):
    """A comparison whose measures all have the same means, but for the NLL."""

    def group(metric, of, stage):
        sign = -1 if reversed_nll and metric == "nll" else 1
        models = [{"model": name, "mean": sign * mean} for name, mean in means.items()]
        return {"metric": metric, "of": of, "scope": "image", "stage": stage, "models": models}

    results = [group(*measure[1:]) for measure in agreement.MEASURES]
    return {"models": [{"name": name} for name in means], "results": results}


def test_table():
    """Tau by hand over the methods that both have: one of three pairs is exchanged; swept values do not count."""
    one = comparison({"Calib": 1.0, "NACL": 2.0, "SVLS": 3.0, "NACL_w01": 0.0, "Dice": 9.0})
    other = comparison({"SVLS": 2.0, "Calib": 1.0, "NACL": 3.0, "NACL_w01": 7.0}, reversed_nll=True)
    few = comparison({"Calib": 1.0, "NACL": 2.0})
    lines = agreement.orders_table({"a": one, "b": other, "c": few}).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells == ["a, b", "3", *["0.33"] * 3, *["-0.33"] * 2]


def test_comparison_of_most_methods(tmp_path, monkeypatch):
    """That over folds, unless the one fold has more methods; swept values are none."""
    monkeypatch.setattr(agreement, "RESULTS", tmp_path)
    monkeypatch.setattr(agreement, "STUDIES", ("lidc",))
    over_folds, one_fold = ({"models": [{"name": n} for n in names]} for names in (NAMES, [*NAMES, "NACL_w01"]))
    (tmp_path / "lidc").mkdir()
    for name, content in (("methods", over_folds), ("sweep", one_fold)):
        (tmp_path / "lidc" / f"{name}.json").write_text(json.dumps(content))
    assert agreement.comparisons() == {"lidc": over_folds}
    one_fold["models"].append({"name": "SVLS"})
    (tmp_path / "lidc" / "sweep.json").write_text(json.dumps(one_fold))
    assert agreement.comparisons() == {"lidc": one_fold}


def test_documented():
    """The page shows the table of the committed results."""
    found = agreement.comparisons()
    assert None not in found.values()
    assert agreement.orders_table(found) in (DOCUMENTS / "results.md").read_text(encoding="utf-8")
