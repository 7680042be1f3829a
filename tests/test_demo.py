"""The demo end to end, shortened: its table, its reports, and that it stays in its folder."""

import contextlib
import io
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_calib import CaseStatistics, apply_temperature, calibration_errors, cli, demo
from nnunet_calib.demo_truth import read_probabilities

pytestmark = pytest.mark.slow

COLUMNS = ["trainer", "T", "Dice", "ECE", "ACE", "MCE", "NLL", "KL to truth", "distance to truth"]
SHORT = {"EPOCHS": 1, "CASES": 10}
ITERATIONS = 2


def shorten(patch):
    """The demo in a minute."""
    text = demo._TRAINER_MODULE
    for name, value in (("epochs", SHORT["EPOCHS"]), ("iterations_per_epoch", ITERATIONS)):
        text, replaced = re.subn(rf"self\.num_{name} = \d+", f"self.num_{name} = {value}", text)
        assert replaced == 1
    patch.setattr(demo, "_TRAINER_MODULE", text)
    for name, value in SHORT.items():
        patch.setattr(demo, name, value)


def earlier_demo(folder):
    """What an earlier demo left, half of it."""
    demo._prepare_folder(folder)
    (folder / "nnUNet_results" / "earlier").mkdir()
    (folder / "truth" / "earlier.npz").touch()
    (folder / demo.RESULTS).write_text("earlier")
    return folder


@pytest.fixture(scope="module")
def finished(shared_folder):
    """The folder of a demo that replaced an earlier one, and what was printed. It ran beside an empty folder."""
    with shared_folder("demo_of_all") as (base, first):
        place, record = base / "place", base / "printed.txt"
        if first:
            (place / "working").mkdir(parents=True)
            earlier_demo(place / "demo")
            environment, printed = dict(os.environ), io.StringIO()
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
                shorten(patch)
                patch.chdir(place / "working")
                demo.run_demo(Path("..") / "demo")
            assert dict(os.environ) == environment
            record.write_text(printed.getvalue(), encoding="utf-8")
        return place / "demo", record.read_text(encoding="utf-8")


def test_table(finished):
    """A line for each trainer before and after temperature, then the truth; every number finite and in its range."""
    _, printed = finished
    lines = [re.split(r"\s{2,}", line) for line in printed.splitlines()]
    start = lines.index(COLUMNS)
    *rows, truth = lines[start + 1 : lines.index([""], start)]
    assert truth[:3] == ["true probabilities", "-", "-"]
    assert all(0 < float(v) < 1 for v in truth[3:7])  # chance leaves something even of the truth
    assert [float(v) for v in truth[7:]] == [0, 0]
    names = demo.TRAINERS
    assert [row[0] for row in rows] == [names[0]] * 2 + [names[1]] * 2
    for row in rows:
        values = dict(zip(COLUMNS[1:], map(float, row[1:]), strict=True))
        assert all(math.isfinite(v) and v >= 0 for v in values.values())
        assert all(values[name] <= 1 for name in ("Dice", "ECE", "ACE", "MCE", "distance to truth"))
        assert values["ECE"] <= values["MCE"]
        assert values["KL to truth"] < values["NLL"]  # the rest is chance
    assert [row[1] for row in rows[::2]] == ["1.00", "1.00"]
    # scaling keeps the segmentation
    assert rows[0][2] == rows[1][2]
    assert rows[2][2] == rows[3][2]


def test_table_is_that_of_the_files(finished):
    """The printed errors are those of the summaries."""
    folder, printed = finished
    told = json.loads((folder / demo.RESULTS).read_text())["models"]
    assert tuple(told) == demo.TRAINERS
    for trainer, model in told.items():
        (path,) = folder.glob(f"nnUNet_results/*/{trainer}_demo__*/crossval_results_folds_0_1/calibration/summary.json")
        for metrics in json.loads(path.read_text())["metrics"].values():
            image = metrics["image"]
            values = *(image["foreground_mean"][m] for m in ("ece", "ace", "mce")), image["nll"]
            assert "  ".join(f"{v:.4f}" for v in values) in printed
        for case in model["cases"]:
            truth = read_probabilities(folder / "truth" / f"{case['case']}.npz")
            (path,) = folder.glob(f"nnUNet_results/*/{trainer}_demo__*/fold_*/validation/{case['case']}.npz")
            p = read_probabilities(path)
            raw = next(folder.glob(f"nnUNet_raw/*/labelsTr/{case['case']}.nii.gz"))
            drawn = sitk.GetArrayFromImage(sitk.ReadImage(raw))
            measured = CaseStatistics.from_probabilities(p, drawn)
            for when, t in (("uncalibrated", 1), ("calibrated", case["temperature"])):
                scaled = apply_temperature(p, t)
                errors = calibration_errors(CaseStatistics.from_probabilities(scaled, drawn))
                expected = {"ece": np.nanmean(errors["ece"][1:]), "nll": float(errors["nll"])}
                expected["distance_to_truth"] = np.abs(scaled - truth).sum(0).mean() / 2
                # a few voxels of the sample, which is in half precision, change bins
                off = 1e-4 if when == "uncalibrated" else 0.02
                assert {m: case[when][m] for m in expected} == pytest.approx(expected, rel=off)
                # and fill empty ones, which count as much as full ones in these
                errors = calibration_errors(measured if when == "uncalibrated" else measured.with_temperature(t))
                for m in ("ace", "mce"):
                    assert case[when][m] == pytest.approx(np.nanmean(errors[m][1:]), rel=min(off, 1e-3))
        distances = [case["calibrated"]["distance_to_truth"] for case in model["cases"]]
        assert model["calibrated"]["distance_to_truth"] == pytest.approx(np.mean(distances))


def test_reports(finished):
    """Those that are named exist: of each trainer, and of both together, with the cases of both folds."""
    folder, printed = finished
    paths = [Path(line.strip()) for line in printed.partition("browser:")[2].splitlines() if line.strip()]
    assert len(paths) == len(set(paths)) == 3
    cases = {path.stem for path in folder.glob("nnUNet_results/*/*/fold_*/validation/demo_*.npz")}
    assert len(cases) == 4
    for path in paths:
        assert path.is_relative_to(folder)
        page = path.read_text(encoding="utf-8")
        assert all(f">{case}<" in page for case in cases)


def test_replaces_an_earlier_demo_and_stays_in_its_folder(finished):
    """Nothing of the earlier demo is left; nothing appears beside the folder or where the command was typed."""
    folder, _ = finished
    assert sorted(p.name for p in folder.parent.iterdir()) == ["demo", "working"]
    assert not [*(folder.parent / "working").iterdir()]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*demo._FOLDERS, demo._MARKER, demo.RESULTS])
    assert not [*folder.rglob("earlier*")]
    assert len([*(folder / "truth").iterdir()]) == SHORT["CASES"]
    assert len([*(folder / "logs").iterdir()]) == 2 + 4 * len(demo.TRAINERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-tr", "nnUNetTrainerNACL"], "expected two or more different trainers .* got nnUNetTrainerNACL: choose"),
        (["-tr", "nnUNetTrainerNACL", "nnUNetTrainer"], "got nnUNetTrainerNACL nnUNetTrainer: choose from those"),
        (["-f", "3"], "expected two or more different folds, got 3: name them after -f"),
        (["-f", "3", "3"], "expected two or more different folds, got 3 3: name them after -f"),
    ],
)
def test_refused_arguments(tmp_path, capsys, arguments, message):
    """Before anything is made."""
    assert cli.main(["demo", "-o", str(tmp_path / "demo"), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "demo").exists()


def test_failing_command(tmp_path, monkeypatch):
    """nnU-Net's failure is one sentence that names the log, which holds nnU-Net's reason."""
    shorten(monkeypatch)
    monkeypatch.setattr(demo, "_write_dataset", lambda folder: None)
    folder = earlier_demo(tmp_path / "demo")
    log = folder / "logs" / "plan_and_preprocess.txt"
    text = f"expected nnUNetv2_plan_and_preprocess to end well, it ended with status 1: see {log}"
    with pytest.raises(OSError, match=re.escape(text)):
        demo.run_demo(folder)
    assert "Could not find a dataset with the ID 999" in log.read_text(encoding="utf-8")
    assert not [*folder.rglob("earlier*")]
