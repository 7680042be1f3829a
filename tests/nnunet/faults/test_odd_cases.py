"""Cases and folders that are odd: the right numbers, or one sentence that names the case."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_calib import CaseStatistics, calibration_errors, cli
from tests.nnunet.faults.processes import one_figure, one_format
from tests.worlds.measured_folds import CROSSVAL
from tests.worlds.odd_cases import refusal, write_case
from tests.worlds.predicted_folder import arguments, run, write_labels, write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports


def probabilities(shape: tuple[int, ...], heads: int = 3) -> np.ndarray:
    p = np.random.default_rng(0).dirichlet(np.full(heads, 0.5), shape)
    return np.moveaxis(p, -1, 0).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 14, 15), (12, 1, 15), (12, 14, 1)])
def test_thin(tmp_path, shape):
    """A voxel or a slice alone, beside an ordinary case."""
    write_world(tmp_path, seeds=range(2))
    p = probabilities(shape)
    labels = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
    write_case(tmp_path, "case.1", p, labels)
    row = run(tmp_path)["metric_per_case"][1]
    ours = calibration_errors(CaseStatistics.from_probabilities(p, labels))
    assert row["voxels"] == row["kept_voxels"] == labels.size
    assert row["uncalibrated"]["image"]["nll"] == pytest.approx(float(ours["nll"]), rel=1e-6)
    assert cli.main(["export", "-i", str(tmp_path / "pred"), "-np", "1", "--dtype", "uint8"]) == 0
    mapped = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "pred/maps/probabilities/dark/case.1.nii.gz"))
    np.testing.assert_array_equal(mapped, np.rint(p[2] * 255))


@pytest.mark.slow
def test_figures_of_a_voxel(tmp_path, monkeypatch):
    """All pictures of two cases of one voxel each."""
    one_format(monkeypatch, "png")
    write_world(tmp_path, seeds=range(2))
    for name in ("case.0", "case.1"):
        write_case(tmp_path, name, probabilities((1, 1, 1)), np.ones((1, 1, 1), np.uint8))
    assert cli.main(arguments(tmp_path)) == 0
    assert len([*(tmp_path / "pred" / "calibration").glob("*.png")]) >= 5


def test_empty(tmp_path, capsys):
    """No voxel at all, on the label map's grid or not."""
    write_world(tmp_path, seeds=range(2))
    np.savez(tmp_path / "pred" / "case.1.npz", probabilities=np.zeros((3, 0, 14, 15), np.float32))
    assert "case case.1 (" in (text := refusal(tmp_path, capsys))
    assert "expected probabilities (C, *spatial) on the grid of the labels, (12, 14, 15), got (3, 0, 14, 15)" in text


def test_class_in_no_case(tmp_path):
    """It has no error, and is in no mean."""
    for case, made in write_world(tmp_path).items():
        labels = np.where(made.labels == 2, 0, made.labels).astype(np.uint8)
        write_labels(tmp_path / "labels" / f"{case}.nii.gz", replace(made, labels=labels))
    summary = run(tmp_path)
    means = summary["metrics"]["uncalibrated"]["image"]
    assert means["per_class"]["2"]["ace"] is None
    assert means["per_class"]["2"]["cases"] == 0
    assert means["foreground_mean"]["ace"] == means["per_class"]["1"]["ace"]
    assert summary["temperature"]["temperature"] > 0


def test_case_that_is_ignored(tmp_path):
    """Every voxel of one case: it is named, has no error, and changes nothing for the others."""
    cases = write_world(tmp_path / "a", "ignore")
    write_world(tmp_path / "b", "ignore", seeds=(0, 2))
    made = replace(cases["case.1"], labels=np.full_like(cases["case.1"].labels, 3))
    write_labels(tmp_path / "a" / "labels" / "case.1.nii.gz", made)
    with_it, without = run(tmp_path / "a"), run(tmp_path / "b")
    assert with_it["metric_per_case"][1]["voxels"] == 0
    assert with_it["metric_per_case"][1]["uncalibrated"]["image"]["nll"] is None
    assert with_it["temperature"]["temperature"] == without["temperature"]["temperature"]
    for scope in ("image", "foreground", "boundary"):
        a, b = (s["metrics"]["uncalibrated"][scope]["foreground_mean"] for s in (with_it, without))
        assert a == b


def test_sixty_classes(tmp_path):
    """Of which no case has all."""
    write_world(tmp_path, seeds=range(2))
    labels = {"background": 0} | {f"organ {i}": i for i in range(1, 60)}
    file = tmp_path / "pred" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": labels}))
    rng = np.random.default_rng(0)
    truth = [rng.integers(0, 60, (3, 4, 5)).astype(np.uint8) for _ in range(2)]
    for i, y in enumerate(truth):
        write_case(tmp_path, f"case.{i}", probabilities(y.shape, 60), y)
    summary = run(tmp_path)
    counts = {key: of["cases"] for key, of in summary["metrics"]["uncalibrated"]["image"]["per_class"].items()}
    assert counts == {str(c): sum(c in y for y in truth) for c in range(60)}
    assert 0 in counts.values()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -0.25])
def test_no_probabilities(tmp_path, capsys, value):
    """NaN and infinities, as infinite logits give, are neither measured nor written as maps, at any temperature."""
    made = write_world(tmp_path, seeds=range(2))["case.1"]
    p = made.probabilities.copy()
    p[1, 3, 3, 3] = value
    np.savez_compressed(tmp_path / "pred" / "case.1.npz", probabilities=p)
    text = refusal(tmp_path, capsys)
    assert "case case.1 (" in text
    assert "expected probabilities in [0, 1], got values from" in text
    for more in ((), ("--temperature", "2"), ("--dtype", "uint8")):
        command = ["export", "-i", str(tmp_path / "pred"), "-np", "1", "-o", str(tmp_path / f"maps{len(more)}"), *more]
        shutil.rmtree(tmp_path / "maps2", ignore_errors=True)
        text = refusal(tmp_path, capsys, command)
        assert "case case.1: expected probabilities in [0, 1], got values from" in text
        assert text.endswith("; look at its image, or leave the case out")
        assert not [*tmp_path.glob("maps*/*/*/case.1.nii.gz")]


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (7, np.uint8, "expected labels from 0 to 2, got values from 0 to 7: check the labels in dataset.json"),
        (-1, np.int16, "expected labels from 0 to 2, got values from -1 to 2"),
        (65536, np.int32, "expected whole numbers up to 32767 as labels, found 65536.0 in {f}/labels/case.1.nii.gz"),
        (65537, np.uint32, "expected whole numbers up to 32767 as labels, found 65537.0 in"),
        (0.5, np.float32, "expected whole numbers up to 32767 as labels, found 0.5 in"),
        (1e10, np.float64, "expected whole numbers up to 32767 as labels, found 10000000000.0 in"),
    ],
)
def test_labels(tmp_path, capsys, value, kind, said):
    """Outside dataset.json, or such as would become another label in two bytes."""
    made = write_world(tmp_path, seeds=range(2))["case.1"]
    labels = made.labels.astype(kind)
    labels[3, 3, 3] = value
    write_labels(tmp_path / "labels" / "case.1.nii.gz", replace(made, labels=labels))
    text = refusal(tmp_path, capsys)
    assert "case case.1 (" in text
    assert said.format(f=tmp_path) in text


def test_labels_of_no_region(tmp_path, capsys):
    """No background either, unless it is the ignore label."""
    for mode in ("regions", "regions_ignore"):
        made = write_world(tmp_path / mode, mode, seeds=range(2))["case.1"]
        labels = made.labels.copy()
        labels[5, 3, 3] = 3 if mode == "regions" else 4
        write_labels(tmp_path / mode / "labels" / "case.1.nii.gz", replace(made, labels=labels))
        text = refusal(tmp_path / mode, capsys)
        assert f"expected labels of the regions, or 0, got {labels[5, 3, 3]}: check the labels in dataset.json" in text


def test_labels_as_fractions(tmp_path):
    """Whole numbers in a file of floats are labels."""
    cases = write_world(tmp_path / "a")
    write_world(tmp_path / "b")
    for case, made in cases.items():
        labels = replace(made, labels=made.labels.astype(np.float64))
        write_labels(tmp_path / "a" / "labels" / f"{case}.nii.gz", labels)
    a, b = (run(tmp_path / name) for name in "ab")
    assert a["metrics"] == b["metrics"]


def test_names(tmp_path):
    """Spaces and letters of any script in folders and cases, dots and glob's signs in cases: the same numbers."""
    write_world(tmp_path / "plain", seeds=range(2))
    odd = tmp_path / "Größe 名前 ü"
    write_world(odd, seeds=range(2))
    names = ["case.0", "a.b..nii [x] ß 例*.1"] if os.name != "nt" else ["case.0", "a.b..nii [x] ß 例.1"]
    for where in ("pred", "labels"):
        for path in [*(odd / where).glob("case.1.*")]:
            path.rename(path.with_name(path.name.replace("case.1", names[1])))
    ours, plain = run(odd), run(tmp_path / "plain")
    assert [row["case"] for row in ours["metric_per_case"]] == sorted(names)
    assert ours["metrics"]["uncalibrated"]["image"]["nll"] == plain["metrics"]["uncalibrated"]["image"]["nll"]
    assert cli.main(["export", "-i", str(odd / "pred"), "-np", "1"]) == 0
    assert len([*(odd / "pred" / "maps").rglob("*.nii.gz")]) == 6


def test_console_without_letters(tmp_path):
    """Results are told, in signs that the console has."""
    odd = tmp_path / "名前"
    write_world(odd, seeds=range(2))
    command = [sys.executable, "-W", "ignore", "-m", "nnunet_calib.cli", *arguments(odd, "fit")]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\u540d\u524d" in done.stdout
    assert (odd / "pred" / "calibration" / "temperature.json").is_file()


@pytest.mark.parametrize("what", ["results", "model", "fold_0", "validation", "calibration", "cases", "summary.json"])
def test_links_to_results(model, tmp_path, monkeypatch, what):
    """A folder or a file that lies elsewhere, and is linked to: the same numbers."""
    target = {
        "results": model.results,
        "model": model.folder,
        "fold_0": model.folder / "fold_0",
        "validation": model.calibration(0).parent,
        "calibration": model.calibration(0),
    }.get(what, model.calibration(0) / what)
    shutil.move(target, tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    with one_figure(monkeypatch):
        assert cli.main([*CROSSVAL, "-f", "0", "1", "2"]) == 0
    summary = json.loads((model.folder / "crossval_results_folds_0_1_2/calibration/summary.json").read_text())
    assert len(summary["metric_per_case"]) == 6
    assert target.is_symlink()


def test_links_to_predictions(tmp_path):
    """A fold's validation that lies elsewhere: the dataset.json above the link counts."""
    write_world(tmp_path, seeds=range(2))
    validation = tmp_path / "model" / "fold_0" / "validation"
    validation.parent.mkdir(parents=True)
    validation.symlink_to(tmp_path / "pred")
    for name in ("dataset.json", "plans.json"):
        (tmp_path / "pred" / name).rename(tmp_path / "model" / name)
    command = ["fit", "-i", str(validation), "-gt", str(tmp_path / "labels"), "-np", "1"]
    assert cli.main(command) == 0
    assert (tmp_path / "pred" / "calibration" / "temperature.json").is_file()
