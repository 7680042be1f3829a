"""Several processes at one fold, or at the folds of one model: each result is complete at any time, and right."""

import json
import os

import pytest

from nnunet_calib import cli
from tests.nnunet.faults.processes import ended, forked, half_written, needs_fork, one_figure, visible
from tests.worlds.measured_folds import CROSSVAL

pytestmark = [
    needs_fork,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
]


def test_crossval(model, monkeypatch):
    """The jobs of three folds end at once, and each merges: whoever reads meanwhile reads a whole file."""
    command = [*CROSSVAL, "-f", "0", "1", "2"]
    folder = model.folder / "crossval_results_folds_0_1_2" / "calibration"
    with one_figure(monkeypatch):
        assert cli.main(command) == 0
        expected = visible(folder)
        running = [forked(lambda: cli.main(command)) for _ in range(3)]
        read = 0
        while any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in running):
            assert json.loads((folder / "summary.json").read_text()) == json.loads(expected["summary.json"])
            read += 1
    assert read > 0
    assert [ended(pid) for pid in running] == [0, 0, 0]
    assert visible(folder) == expected
    assert half_written(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [((), ()), (("-num_parts", "2"), ("-num_parts", "2", "-part_id", "1"))])
def test_validate(trained, options):
    """The same command typed twice, or the last two parts: the files of the hook."""
    hook = trained.results()
    trained.without_results(npz=True)
    running = [forked(lambda more=more: trained.validate("-np", "1", *more)) for more in options]
    assert [ended(pid) for pid in running] == [0, 0]
    ours = trained.results()
    assert ours.keys() == hook.keys()
    # nnU-Net's .npz are rounded once more than the logits that the hook sees
    for name in ("summary.json", "temperature.json"):
        assert json.loads(ours[name])["model"] == json.loads(hook[name])["model"]
    assert len(json.loads(ours["summary.json"])["metric_per_case"]) == len(trained.cases)
    assert trained.without_results(npz=True).validate("-np", "1") == 0
    assert trained.results() == ours
