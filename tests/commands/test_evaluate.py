"""`evaluate` and `fit`: every label mode and file format, and what is written."""

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from nnunet_calib import CaseStatistics, cli
from nnunet_calib.io import npz_arrays as archives
from nnunet_calib.nnunet.prediction_folder import find_predictions
from tests.worlds.command_line import content
from tests.worlds.nnunet_world import LABEL_MODES
from tests.worlds.pictures import PICTURES
from tests.worlds.predicted_folder import TEMPERATURE, arguments, assert_same, run, write_labels, write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
@pytest.mark.parametrize("mode", LABEL_MODES)
def test_every_label_mode(tmp_path, mode, ending):
    """The files of a fold, and in them what the arrays themselves say."""
    cases = write_world(tmp_path, mode, ending)
    assert cli.main(arguments(tmp_path)) == 0
    calibration = tmp_path / "pred" / "calibration"
    assert sorted(p.name for p in calibration.iterdir()) == sorted(
        ["cases", *PICTURES, "summary.json", "temperature.json"]
    )
    for name, case in cases.items():
        measured = CaseStatistics.load(calibration / "cases" / f"{name}.npz")
        assert_same(measured, case.measure())
        assert measured.cases == (name,)
        assert measured.histograms.voxels.sum() == (case.labels != case.ignore_label).sum()
    summary = json.loads((calibration / "summary.json").read_text())
    temperature = json.loads((calibration / "temperature.json").read_text())
    assert [row["case"] for row in summary["metric_per_case"]] == temperature["cases"] == [*cases]
    assert summary["heads"]["keys"] == (["(1, 2)", "2"] if mode.startswith("regions") else ["0", "1", "2"])
    assert (
        summary["model"]
        == temperature["model"]
        == {
            "dataset": "Dataset900_made",
            "plans": "nnUNetPlans",
            "fold": None,
            "weights_sha256": None,
            "predictions": str(tmp_path / "pred"),
        }
    )
    assert temperature["in_sample"] is temperature["folds"] is None
    assert summary["missing_cases"] == []


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".tif"])
@pytest.mark.parametrize("plans", [True, False])
def test_file_endings(tmp_path, ending, plans, capfd):
    """Label maps are read by the reader of the plans, or by the one that dataset.json's ending means."""
    (case,) = write_world(tmp_path, "labels", ending, [0]).values()
    if not plans:
        (tmp_path / "pred" / "plans.json").unlink()
    summary = run(tmp_path)
    assert_same(CaseStatistics.load(tmp_path / "pred" / "calibration" / "cases" / "case.0.npz"), case.measure())
    assert summary["model"]["dataset"] == ("Dataset900_made" if plans else "made here")
    assert "Traceback" not in capfd.readouterr().err


def test_spacing_of_the_image(tmp_path):
    """As in the hook, that of the image, which nnU-Net keeps beside the .npz: some label formats have none."""
    (case,) = write_world(tmp_path, "labels", ".tif", [0]).values()
    for folder in ("pred", "labels"):
        (tmp_path / folder / "case.0.json").unlink()
    (tmp_path / "pred" / "case.0.pkl").write_bytes(pickle.dumps({"spacing": [5.0, 0.5, 0.5]}))
    run(tmp_path)
    measured = CaseStatistics.load(tmp_path / "pred" / "calibration" / "cases" / "case.0.npz")
    assert_same(measured, replace(case, spacing=(5.0, 0.5, 0.5)).measure())
    with pytest.raises(AssertionError):
        assert_same(measured, replace(case, spacing=(1.0, 1.0, 1.0)).measure())


def test_float16(tmp_path):
    """Half precision is measured as it is."""
    (case,) = write_world(tmp_path, seeds=[0]).values()
    case = replace(case, probabilities=case.probabilities.astype(np.float16))
    np.savez(tmp_path / "pred" / "case.0.npz", probabilities=case.probabilities)
    run(tmp_path)
    assert_same(CaseStatistics.load(tmp_path / "pred" / "calibration" / "cases" / "case.0.npz"), case.measure())


@pytest.mark.parametrize("mode", ["labels", "regions_ignore"])
def test_known_temperature(tmp_path, mode, capsys):
    """`fit` finds the temperature by which the probabilities were made too sure, and writes nothing else."""
    write_world(tmp_path, mode, seeds=range(10), size=34)
    fitted = run(tmp_path, "fit")
    assert fitted["temperature"] == pytest.approx(TEMPERATURE, rel=0.05)
    assert fitted["standard_error"] < 0.05
    assert [p.name for p in (tmp_path / "pred" / "calibration").iterdir()] == ["temperature.json"]
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith(f"T = {fitted['temperature']:.4f}, standard error 0.0")
    assert "from 10 cases; NLL " in output[0]
    assert output[1:] == [str(tmp_path / "pred" / "calibration" / "temperature.json")]
    assert run(tmp_path)["temperature"]["temperature"] == fitted["temperature"]


def test_given_temperature(tmp_path, capsys):
    """Each case is judged by it, as a number and as a file; nothing is fitted here."""
    write_world(tmp_path / "tune", seeds=range(3, 5))
    write_world(tmp_path / "test")
    fitted = run(tmp_path / "tune", "fit")
    capsys.readouterr()
    file = str(tmp_path / "tune" / "pred" / "calibration" / "temperature.json")
    of_file = run(tmp_path / "test", "evaluate", "--temperature", file)
    assert f"T = {fitted['temperature']:.4f} as given\n" in capsys.readouterr().out
    of_number = run(tmp_path / "test", "evaluate", "--temperature", str(fitted["temperature"]))
    assert of_file["metrics"] == of_number["metrics"]
    assert of_file["temperature"] == {
        k: v for k, v in fitted.items() if k not in ("model", "cases", "format_version")
    } | {"cross_fitted": False}
    assert of_number["temperature"]["standard_error"] is None
    assert [row["temperature"] for row in of_file["metric_per_case"]] == [fitted["temperature"]] * 3
    assert "given" in of_file["definitions"]["calibrated"]
    calibration = tmp_path / "test" / "pred" / "calibration"
    assert sorted(p.name for p in calibration.iterdir()) == ["cases", "summary.json"]
    for row in of_file["metric_per_case"]:
        case = CaseStatistics.load(calibration / "cases" / f"{row['case']}.npz")
        expected = case.with_temperature(fitted["temperature"]).histograms.nll.sum() / row["voxels"]
        assert row["calibrated"]["image"]["nll"] == pytest.approx(expected)
        assert row["calibrated"]["image"]["nll"] < row["uncalibrated"]["image"]["nll"]


def test_temperature_of_the_same_cases(tmp_path, capsys):
    """Said, since the errors after it are too small."""
    write_world(tmp_path)
    run(tmp_path, "fit")
    summary = run(tmp_path, "evaluate", "--temperature", str(tmp_path / "pred" / "calibration" / "temperature.json"))
    assert summary["temperature"]["in_sample"] is True
    assert "as given, which was fitted on cases that it is judged by: expect larger" in capsys.readouterr().out


def test_output(tmp_path, capfd):
    """On stdout a table and the file, and nothing of nnU-Net's; progress is on stderr."""
    write_world(tmp_path)
    summary = run(tmp_path)
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert " ".join(lines[0].split()) == "class cases ECE T=1 ECE T ACE T=1 ACE T MCE T=1 MCE T"
    trees = [summary["metrics"][name]["image"]["per_class"]["1"] for name in ("uncalibrated", "calibrated")]
    assert lines[2].split() == ["1", "bright", "3", *(f"{t[m]:.4f}" for m in ("ece", "ace", "mce") for t in trees)]
    assert lines[-2].endswith("for all cases; each case is judged by one that was fitted without it")
    assert lines[-1] == str(tmp_path / "pred" / "calibration" / "summary.json")
    assert "measuring: 100%" in err


def test_one_case(tmp_path, capsys):
    """There is no other to fit on, and the table says so."""
    write_world(tmp_path, seeds=[0])
    assert run(tmp_path)["metric_per_case"][0]["temperature"] is None
    assert "for all cases, which was fitted on cases that it is judged by" in capsys.readouterr().out


def test_processes(tmp_path):
    """The same bytes from several processes, and from nnU-Net's default number of them."""
    write_world(tmp_path)
    run(tmp_path)
    expected = content(tmp_path / "pred" / "calibration")
    assert cli.main([*arguments(tmp_path), "-np", "2", "--no-figures"]) == 0
    assert content(tmp_path / "pred" / "calibration") == expected


class Dying:
    """A reader whose process is killed."""

    def read_seg(self, path):
        """Ends the process."""
        os._exit(9)


def test_lost_process(tmp_path, monkeypatch):
    """What a system that runs out of memory does to a process, and what NumPy does, is told in one sentence."""
    write_world(tmp_path)
    predictions = find_predictions(tmp_path / "pred", tmp_path / "labels")
    with pytest.raises(OSError, match="expected memory for the probabilities of 2 cases at once, ran out of it"):
        replace(predictions, reader=Dying()).save_all(tmp_path, 2)

    def out_of_memory(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(archives.Arrays, "read", out_of_memory)
    with pytest.raises(OSError, match="use fewer processes with -np"):
        predictions.save_all(tmp_path, 1)


def test_validation_folder(tmp_path):
    """A fold's validation has its dataset.json two folders above; the files of a training are never replaced."""
    write_world(tmp_path)
    model = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    validation = model / "fold_0" / "validation"
    validation.parent.mkdir(parents=True)
    (tmp_path / "pred").rename(validation)
    for name in ("dataset.json", "plans.json"):
        (validation / name).rename(model / name)
    command = ["evaluate", "-i", str(validation), "-gt", str(tmp_path / "labels"), "-np", "1", "--no-figures"]
    assert cli.main(command) == 0
    file = validation / "calibration" / "summary.json"
    summary = json.loads(file.read_text())
    summary["model"]["weights_sha256"] = "of the hook"
    file.write_text(json.dumps(summary))
    before = content(tmp_path)
    assert cli.main(command) == 2
    assert content(tmp_path) == before
    assert cli.main([*command, "-o", str(tmp_path / "new" / "folder")]) == 0
    assert (tmp_path / "new" / "folder" / "cases" / "case.2.npz").is_file()


def test_named_files(tmp_path):
    """-djfile and -pfile, as nnUNetv2_evaluate_folder takes them."""
    write_world(tmp_path)
    options = []
    for flag, name in (("-djfile", "dataset.json"), ("-pfile", "plans.json")):
        (tmp_path / "pred" / name).rename(tmp_path / f"my {name}")
        options += [flag, str(tmp_path / f"my {name}")]
    assert run(tmp_path, "evaluate", *options)["model"]["plans"] == "nnUNetPlans"
    assert cli.main(arguments(tmp_path)) == 2


def test_chill(tmp_path, capsys):
    """What is missing is left out, named on stderr and in the summary."""
    write_world(tmp_path, seeds=range(5))
    for name in ("pred/case.0.npz", "labels/case.1.nii.gz", "pred/case.4.npz", "pred/case.4.nii.gz"):
        (tmp_path / name).unlink()
    (tmp_path / "pred" / "._case.2.npz").write_text("of macOS")
    summary = run(tmp_path, "evaluate", "--chill")
    assert summary["missing_cases"] == ["case.0", "case.1", "case.4"]
    assert [row["case"] for row in summary["metric_per_case"]] == ["case.2", "case.3"]
    assert "skipped (no label map or no .npz): case.0, case.1, case.4\n" in capsys.readouterr().err


def test_width_of_the_boundary_scope(tmp_path, capsys):
    """As asked for, in the definitions and in a note where it holds the image; else by the plans' voxel size."""
    write_world(tmp_path, "labels", ".nii.gz", [0, 1])
    file = tmp_path / "pred" / "calibration" / "summary.json"
    assert cli.main([*arguments(tmp_path), "--no-figures", "--boundary-mm", "500"]) == 0
    summary = json.loads(file.read_text())
    (note,) = summary["notes"]
    assert note.startswith("The boundary scope of 500 mm holds 100.0% of the voxels")
    assert note in capsys.readouterr().out
    assert summary["voxels"]["boundary"] == summary["voxels"]["image"] > summary["voxels"]["foreground"] > 0
    for stage in summary["metrics"].values():
        assert stage["boundary"]["definition"]["boundary_mm"] == 500
        assert stage["boundary"]["top_label"] == stage["image"]["top_label"]
    assert "within 500.0 mm" in summary["definitions"]["scopes"]["boundary"]

    plans = tmp_path / "pred" / "plans.json"
    plans.write_text(
        json.dumps(json.loads(plans.read_text()) | {"original_median_spacing_after_transp": [0.05, 0.01, 0.01]})
    )
    assert cli.main([*arguments(tmp_path), "--no-figures"]) == 0
    summary = json.loads(file.read_text())
    assert summary["notes"] == []
    assert summary["metrics"]["uncalibrated"]["boundary"]["definition"]["boundary_mm"] == 0.03
    with pytest.raises(SystemExit):
        cli.main([*arguments(tmp_path), "--boundary-mm", "-1"])


@pytest.mark.parametrize("kept", [".pkl", "label map"])
def test_width_without_plans(tmp_path, kept):
    """By the first case's voxels: of the image, else of the label map."""
    write_world(tmp_path, "labels", ".tif", [0, 1])
    (tmp_path / "pred" / "plans.json").unlink()
    fine = {"spacing": [5.0, 0.02, 0.02]}
    if kept == ".pkl":
        (tmp_path / "pred" / "case.0.pkl").write_bytes(pickle.dumps(fine))
    else:
        (tmp_path / "labels" / "case.0.json").write_text(json.dumps(fine))
    found = find_predictions(tmp_path / "pred", tmp_path / "labels")
    assert found.boundary_mm == 0.06


def test_several_raters(tmp_path, capsys):
    """A folder for each: one case file with the voxels of all raters, a note, and a temperature fitted to them all."""
    cases = write_world(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for name, case in cases.items():
        write_labels(other / f"{name}.nii.gz", replace(case, labels=np.roll(case.labels, 1, 0)))
    folders = ["-gt", str(tmp_path / "labels"), str(other)]
    assert cli.main(["evaluate", "-i", str(tmp_path / "pred"), *folders]) == 0
    note = "Measured against 2 raters: each voxel counts once for each of them."
    assert note in capsys.readouterr().out
    calibration = tmp_path / "pred" / "calibration"
    summary = json.loads((calibration / "summary.json").read_text())
    assert (summary["notes"], summary["model"]["raters"]) == ([note], 2)
    for name, case in cases.items():
        single = [replace(case, labels=labels).measure() for labels in (case.labels, np.roll(case.labels, 1, 0))]
        assert_same(CaseStatistics.load(calibration / "cases" / f"{name}.npz"), CaseStatistics.of_raters(single))
    fitted = json.loads((calibration / "temperature.json").read_text())["temperature"]
    assert cli.main(["fit", "-i", str(tmp_path / "pred"), *folders, "-o", str(tmp_path / "fit")]) == 0
    assert json.loads((tmp_path / "fit" / "temperature.json").read_text())["temperature"] == fitted

    (other / "case.1.nii.gz").unlink()
    capsys.readouterr()
    assert cli.main(["fit", "-i", str(tmp_path / "pred"), *folders, "-o", str(tmp_path / "fit")]) == 2
    assert "no label for case.1" in capsys.readouterr().err
    twice = ["-gt", str(other), str(other)]
    assert cli.main(["fit", "-i", str(tmp_path / "pred"), *twice, "-o", str(tmp_path / "fit")]) == 2
    assert "expected a folder for each rater, got one twice" in capsys.readouterr().err
