"""How thresholds keep their promises within one fold: `python -m benchmarks.promises`."""

import sys

import pytest

from benchmarks import promises
from tests.worlds.measured_folds import TRAINER, Model, made


def test_table(tmp_path, capsys, monkeypatch):
    """A row for each structure and promise; of five cases each is a group, whose mean is what was found."""
    model = Model(tmp_path)
    model.write(0, {f"case_{seed}": made(seed) for seed in range(5)})
    levels = ["--recall", "0.5", "0.7", "--precision", "0.4"]
    monkeypatch.setattr(sys, "argv", ["promises", str(model.calibration(0)), *levels])
    promises.main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert {len(row) for row in rows} == {9}
    promised = ["recall 0.5", "recall 0.7", "precision 0.4"]
    assert [row[:3] for row in rows[2:]] == [[TRAINER, key, one] for one in promised for key in ("1", "2")]
    for row in rows[2:]:
        groups = [float(group) for group in row[8].split()]
        assert len(groups) == 5
        assert float(row[5]) == pytest.approx(sum(groups) / 5, abs=2e-3)
