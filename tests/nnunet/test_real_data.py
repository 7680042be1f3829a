"""A fold of real images. The data are no part of the project: NNUNET_CALIB_TEST_DATA names the nnUNet_raw folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.figures import fold_figures
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.posthoc.temperature import TEMPERATURE_BOUNDS
from tests.worlds.nnunet_world import SHORT_TRAINERS, World, plan_and_preprocess
from tests.worlds.trained_fold import use_threads

VARIABLE = "NNUNET_CALIB_TEST_DATA"
DATASET, NUMBER, CASES = "Dataset004_Hippocampus", 4, 6
TRAINER = "nnUNetTrainerML1ACE_drawn"

pytestmark = [
    pytest.mark.slow,
    # nnU-Net's own, on few data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(
        not (Path(os.environ.get(VARIABLE, os.devnull)) / DATASET).is_dir(),
        reason=f"{VARIABLE} names no folder with {DATASET}",
    ),
]


def link_cases(source: Path, raw: Path) -> None:
    """The first cases of a dataset, as a dataset of their own."""
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
        for path in sorted((source / name).glob("*.nii.gz"))[:CASES]:
            (raw / name / path.name).symlink_to(path.resolve())
    content = json.loads((source / "dataset.json").read_text()) | {"numTraining": CASES}
    (raw / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def fold(tmp_path) -> Path:
    """The validation folder of a short training."""
    world = World(tmp_path, NUMBER, DATASET)
    link_cases(Path(os.environ[VARIABLE]) / DATASET, world.folder / "raw" / DATASET)
    for name in ("trainers", "results"):
        (world.folder / name).mkdir()
    (world.folder / "trainers" / "short_trainers.py").write_text(SHORT_TRAINERS)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in world.environment().items():
            patch.setenv(name, value)
        use_threads(patch)
        drawn = [figure for figure in fold_figures.FIGURES if figure.name == "reliability"]
        patch.setattr(fold_figures, "FIGURES", drawn)
        plan_and_preprocess(world, ("3d_fullres",))
        return world.train(TRAINER, "3d_fullres") / "validation"


def test_fold(fold):
    """What the measuring and the fit of a fold must find on any data."""
    check_cases(fold)
    check_temperature(fold)


def check_cases(fold):
    """Every voxel of the label map is counted, each for its class; errors are in their ranges."""
    raw = Path(os.environ[VARIABLE]) / DATASET / "labelsTr"
    summary = json.loads((fold / "calibration" / "summary.json").read_text())
    assert summary["missing_cases"] == []
    assert len(summary["metric_per_case"]) == 2
    for row in summary["metric_per_case"]:
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / f"{row['case']}.nii.gz")))
        volumes = np.bincount(labels.ravel(), minlength=3)
        assert volumes.all()
        statistics = CaseStatistics.load(fold / "calibration" / "cases" / f"{row['case']}.npz")
        assert row["voxels"] == statistics.histograms.voxels.sum() == labels.size
        assert statistics.histograms.scope("foreground").voxels == volumes[1:].sum()
        np.testing.assert_array_equal(statistics.histograms.positives[:, :3].sum((0, 2)), volumes)
        np.testing.assert_array_equal(statistics.histograms.counts.sum((0, 2)), labels.size)
        # the probabilities of a voxel sum to 1
        np.testing.assert_allclose(statistics.histograms.probability[:, :3].sum(), labels.size, rtol=1e-5)
        for scope in SCOPES:
            errors = calibration_errors(statistics, scope=scope)
            assert (errors["ece"] > 0).all()
            assert (errors["ece"] <= errors["mce"]).all()
            assert (errors["ace"] <= errors["mce"]).all()
            assert (errors["mce"] <= 1).all()


def check_temperature(fold):
    """One temperature within its bounds, which lowers the NLL; nnU-Net's own results and the pictures are there."""
    temperature = json.loads((fold / "calibration" / "temperature.json").read_text())
    low, high = TEMPERATURE_BOUNDS
    assert low <= temperature["temperature"] <= high
    assert temperature["nll_after"] <= temperature["nll_before"]
    assert temperature["standard_error"] > 0
    assert temperature["in_sample"] is False
    own = json.loads((fold / "summary.json").read_text())
    written = json.loads((fold / "calibration" / "summary.json").read_text())["metrics"]["calibrated"]["image"]
    assert [*own["mean"]] == [key for key in written["per_class"] if key != "0"]
    assert (fold / "calibration" / "reliability.png").stat().st_size > 10_000
