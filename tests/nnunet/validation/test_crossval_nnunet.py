"""Folds that nnU-Net itself trained and validated, merged by the command."""

import json

import pytest
import torch

from nnunet_calib import cli
from tests.worlds.nnunet_world import PLANS

TRAINER = "nnUNetTrainerCalib_short"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_trained_folds(world, in_threads, capsys):
    """Each case is judged by the other fold, and the files of the folds stay as they are."""
    from nnunetv2.run.run_training import run_training

    for fold in (1, 3):
        run_training(world.dataset, "2d", fold, TRAINER, PLANS, device=torch.device("cpu"))
    model = world.fold(TRAINER, "2d").parent
    files = [path for fold in (1, 3) for path in (model / f"fold_{fold}").rglob("calibration/**/*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert len(before) == 2 * 3  # in each fold a case and two files of JSON
    capsys.readouterr()

    command = ["crossval", "-d", str(world.dataset_id), "-c", "2d", "-tr", TRAINER, "-f", "1", "3"]
    assert cli.main(command) == 0
    folder = model / "crossval_results_folds_1_3" / "calibration"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert {path: path.read_bytes() for path in before} == before
    summary = json.loads((folder / "summary.json").read_text())
    splits = json.loads((world.preprocessed / "splits_final.json").read_text())
    assert [row["case"] for row in summary["metric_per_case"]] == [*splits[1]["val"], *splits[3]["val"]]
    own = [json.loads((model / f"fold_{f}/validation/calibration/temperature.json").read_text()) for f in (1, 3)]
    assert [row["temperature"] for row in summary["metric_per_case"]] == pytest.approx(
        [own[1]["temperature"], own[0]["temperature"]]
    )
