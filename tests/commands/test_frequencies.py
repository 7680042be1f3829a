"""`evaluate` and `fit` against the frequencies of labels among raters."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_calib import CaseStatistics, cli
from tests.worlds.command_line import sentence
from tests.worlds.measured_cases import assert_same_histograms
from tests.worlds.predicted_folder import write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports

STRUCTURES = ("bright", "dark")


def write_frequencies(folder: Path, name: str, frequencies: dict[str, np.ndarray]) -> None:
    """A file for each structure, in the structure's folder."""
    for structure, values in frequencies.items():
        (folder / structure).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.float32)), folder / structure / f"{name}.nii.gz")


def test_frequencies(tmp_path, capsys):
    """A folder of frequencies for each structure gives the errors and the temperature of the raters behind them."""
    cases = write_world(tmp_path)
    folder, predictions = tmp_path / "frequencies", ["-i", str(tmp_path / "pred")]
    agreed = min(cases)  # its frequencies alone do not tell that there are three raters
    for name, case in cases.items():
        raters = [case.labels, case.labels if name == agreed else np.roll(case.labels, 1, 0), case.labels]
        of = {structure: np.mean([one == c for one in raters], axis=0) for c, structure in enumerate(STRUCTURES, 1)}
        write_frequencies(folder, name, of)
    assert cli.main(["evaluate", *predictions, "-gt", str(folder), "--no-figures"]) == 0
    note = "multiples of 1/3 in every case: each voxel counts once for each of so many raters."
    assert note in capsys.readouterr().out
    summary = json.loads((tmp_path / "pred" / "calibration" / "summary.json").read_text())
    assert summary["model"]["raters"] == 3
    for name, case in cases.items():
        raters = [case.labels, case.labels, case.labels if name == agreed else np.roll(case.labels, 1, 0)]
        of_raters = CaseStatistics.of_raters(replace(case, labels=labels).measure() for labels in raters)
        measured = CaseStatistics.load(tmp_path / "pred" / "calibration" / "cases" / f"{name}.npz")
        assert_same_histograms(measured.histograms.scope("image"), of_raters.histograms.scope("image"))
    fitted = json.loads((tmp_path / "pred" / "calibration" / "temperature.json").read_text())["temperature"]
    for rater in range(3):
        for name, case in cases.items():
            (tmp_path / f"rater_{rater}").mkdir(exist_ok=True)
            labels = np.roll(case.labels, 1, 0) if rater == 1 and name != agreed else case.labels
            sitk.WriteImage(sitk.GetImageFromArray(labels), tmp_path / f"rater_{rater}" / f"{name}.nii.gz")
    folders = [str(tmp_path / f"rater_{rater}") for rater in range(3)]
    assert cli.main(["evaluate", *predictions, "-gt", *folders, "--no-figures", "-o", str(tmp_path / "of_raters")]) == 0
    of_raters = json.loads((tmp_path / "of_raters" / "summary.json").read_text())
    assert of_raters["temperature"]["temperature"] == pytest.approx(fitted)
    pooled = [of["metrics"]["uncalibrated"]["image"]["foreground_mean"] for of in (summary, of_raters)]
    for name in ("ace", "ace_by_chance", "ece"):
        assert pooled[0][name] == pytest.approx(pooled[1][name])
    fit = ["fit", *predictions, "-gt", str(folder), "-o", str(tmp_path / "fit")]
    assert cli.main(fit) == 0
    assert json.loads((tmp_path / "fit" / "temperature.json").read_text())["temperature"] == fitted
    capsys.readouterr()

    assert cli.main(["evaluate", *predictions, "-gt", str(folder), "--lesions"]) == 2
    assert "expected one folder of label maps with --lesions, got frequencies" in sentence(capsys.readouterr().err)
    shape = cases["case.0"].labels.shape
    for values, words in (
        (np.full(shape, 3.0), "from 0 to 1, found 3.0 to 3.0"),
        (np.full(shape, -0.5), "from 0 to 1, found -0.5 to -0.5"),
        (np.ones(shape), "that sum to 1 at most"),
        (np.ones((9,) * 3), "of one shape"),
        (np.where(cases["case.0"].labels == 2, 0.217, 0), "expected frequencies among up to 16 raters"),
    ):
        write_frequencies(folder, "case.0", {STRUCTURES[1]: values})
        assert cli.main([*fit, "-np", "1"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert words in error
        assert "case.0" in error
    shutil.rmtree(folder / STRUCTURES[1])
    assert cli.main(fit) == 2
    assert f"found none for {STRUCTURES[1]}" in sentence(capsys.readouterr().err)


def test_frequencies_of_regions(tmp_path, capsys):
    """Label maps are asked for: frequencies of regions that overlap are none of labels."""
    cases = write_world(tmp_path, "regions")
    for name, case in cases.items():
        write_frequencies(tmp_path / "frequencies", name, {"any": case.labels > 0, "dark": case.labels > 1})
    assert cli.main(["fit", "-i", str(tmp_path / "pred"), "-gt", str(tmp_path / "frequencies")]) == 2
    assert "expected label maps for a model of regions" in sentence(capsys.readouterr().err)
