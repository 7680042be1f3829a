"""`evaluate` on what nnU-Net itself writes: a fold's validation, a prediction and an ensemble."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch

from nnunet_calib import CaseStatistics, cli
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.measuring.scopes import SCOPES
from tests.worlds.nnunet_world import LABEL_MODES
from tests.worlds.predicted_folder import assert_same

pytestmark = [
    pytest.mark.slow,
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def evaluate(predictions, labels, output, *more):
    """The summary and the case files of a run that must succeed."""
    command = ["evaluate", "-i", str(predictions), "-gt", str(labels), "-o", str(output), "-np", "1", "--no-figures"]
    assert cli.main([*command, *more]) == 0
    cases = {path.stem: CaseStatistics.load(path) for path in (output / "cases").iterdir()}
    return json.loads((output / "summary.json").read_text()), cases


@pytest.mark.parametrize("mode", LABEL_MODES)
def test_same_as_the_hook(make_trained, mode, tmp_path):
    """From the .npz of a fold come the counts and the sample of the hook, and its sums to 1e-6."""
    trained = make_trained(mode)
    labels = trained.preprocessed / "gt_segmentations"
    shutil.copy(labels / "case.4.nii.gz", labels / "case.5.nii.gz")
    summary, cases = evaluate(trained.fold / "validation", labels, tmp_path / "out", "--chill")
    hook = json.loads((trained.calibration / "summary.json").read_text())
    assert sorted(cases) == [row["case"] for row in summary["metric_per_case"]] == trained.cases
    assert summary["missing_cases"] == ["case.5"]
    for name, measured in cases.items():
        of_hook = CaseStatistics.load(trained.calibration / "cases" / f"{name}.npz")
        assert {getattr(of_hook.histograms, f.name).dtype.kind for f in fields(Histograms)} == {"i", "f"}
        assert_same(measured, of_hook, rtol=1e-6)
    assert summary["heads"] == hook["heads"]
    for name in ("uncalibrated", "calibrated"):
        for scope in SCOPES:
            ours, theirs = (s["metrics"][name][scope]["foreground_mean"] for s in (summary, hook))
            assert ours == {k: v if v is None else pytest.approx(v, rel=1e-6) for k, v in theirs.items()}


@pytest.mark.usefixtures("in_threads")
def test_prediction_and_ensemble(world, tmp_path):
    """Both tell where their dataset.json is; two equal members make an ensemble with the errors of one."""
    from nnunetv2.ensembling.ensemble import ensemble_folders
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    fold = world.train("nnUNetTrainerCalib_short", "3d_fullres")
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), (0,))
    raw = world.folder / "raw" / world.dataset
    predicted, ensemble = tmp_path / "predicted", tmp_path / "ensemble"
    predictor.predict_from_files(
        str(raw / "imagesTr"),
        str(predicted),
        save_probabilities=True,
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )
    shutil.copytree(predicted, tmp_path / "again")
    ensemble_folders([str(predicted), str(tmp_path / "again")], str(ensemble), True, 1)
    assert not (ensemble / "plans.json").exists()
    summary, cases = evaluate(predicted, raw / "labelsTr", tmp_path / "a")
    of_ensemble, averaged = evaluate(ensemble, raw / "labelsTr", tmp_path / "b")
    assert sorted(cases) == sorted(averaged) == [f"case.{i}" for i in range(5)]
    for name, measured in cases.items():
        assert_same(averaged[name], measured)
    assert of_ensemble["metrics"] == summary["metrics"]
    # the validation predicted these cases from preprocessed files, the rest from images
    for path in (fold / "validation" / "calibration" / "cases").iterdir():
        of_hook = CaseStatistics.load(path).histograms
        np.testing.assert_array_equal(cases[path.stem].histograms.voxels, of_hook.voxels)
        np.testing.assert_allclose(cases[path.stem].histograms.nll.sum(), of_hook.nll.sum(), rtol=1e-2)
