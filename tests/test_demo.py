"""The demo end to end, shortened: its table, its reports, and that it stays in its folder and goes on in it."""

import contextlib
import io
import json
import math
import os
import random
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_calib import CaseStatistics, apply_temperature, calibration_errors, cli, demo
from nnunet_calib.demo_commands import run_commands
from nnunet_calib.demo_truth import findings, read_probabilities
from tests.worlds.warm_python import use_warm_python

SLOW = pytest.mark.slow
COLUMNS = ["trainer", "T", "Dice", "ECE", "ACE", "MCE", "NLL", "KL to truth", "distance to truth"]
SHORT = {"EPOCHS": 1, "ITERATIONS": 2, "CASES": 10, "SHAPE": (4, 32, 32)}


def shorten(patch):
    """Shorten the demo to a minute."""
    for name, value in SHORT.items():
        patch.setattr(demo, name, value)


def earlier_demo(folder):
    """Make what an earlier demo with other settings left, half of it."""
    demo._prepare_folder(folder, {"seed": 7})
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
                use_warm_python(patch)
                patch.chdir(place / "working")
                demo.run_demo(Path("..") / "demo")
            assert dict(os.environ) == environment
            record.write_text(printed.getvalue(), encoding="utf-8")
        return place / "demo", record.read_text(encoding="utf-8")


@SLOW
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


@SLOW
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


@SLOW
def test_reports(finished):
    """Those that are named exist: of each trainer, and of both together, with the cases of both folds."""
    folder, printed = finished
    paths = [Path(line.strip()) for line in printed.partition("browser:\n")[2].partition("\n\n")[0].splitlines()]
    assert len(paths) == len(set(paths)) == 3
    cases = {path.stem for path in folder.glob("nnUNet_results/*/*/fold_*/validation/demo_*.npz")}
    assert len(cases) == 4
    for path in paths:
        assert path.is_relative_to(folder)
        page = path.read_text(encoding="utf-8")
        assert all(f">{case}<" in page for case in cases)


@SLOW
def test_replaces_an_earlier_demo_and_stays_in_its_folder(finished):
    """Nothing of the earlier demo is left; nothing appears beside the folder or where the command was typed."""
    folder, _ = finished
    assert sorted(p.name for p in folder.parent.iterdir()) == ["demo", "working"]
    assert not [*(folder.parent / "working").iterdir()]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*demo._FOLDERS, demo._MARKER, demo.RESULTS])
    assert not [*folder.rglob("earlier*")]
    assert len([*(folder / "truth").iterdir()]) == SHORT["CASES"]
    assert len([*(folder / "logs").iterdir()]) == 2 + 4 * len(demo.TRAINERS)
    assert not [*(folder / "logs").glob("*unfinished*")]


@SLOW
def test_goes_on(finished, tmp_path, capsys):
    """What is done is not done again, and the table is the same; a finished demo begins anew."""
    folder = shutil.copytree(finished[0], tmp_path / "demo")
    results = (folder / demo.RESULTS).read_text(encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    (folder / demo.RESULTS).unlink()
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        demo.run_demo(folder)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")} == before
        assert (folder / demo.RESULTS).read_text(encoding="utf-8") == results
        table, _, _ = finished[1].partition("Reports")
        assert capsys.readouterr().out.startswith(table)
        demo._prepare_folder(folder, json.loads((folder / demo._MARKER).read_text())["settings"])
    assert not [*folder.rglob("*.nii.gz")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-tr", "nnUNetTrainerNACL"], "expected two or more different trainers .* got nnUNetTrainerNACL: choose"),
        (["-tr", "nnUNetTrainerNACL", "nnUNetTrainer"], "got nnUNetTrainerNACL nnUNetTrainer: choose from those"),
        (["-f", "3"], "expected two or more different folds, got 3: name them after -f"),
        (["--seed", "-1"], "expected a whole number from 0 to 1000000, got -1"),
        (["-f", "3", "3"], "expected two or more different folds, got 3 3: name them after -f"),
    ],
)
def test_refused_arguments(tmp_path, capsys, arguments, message):
    """Before anything is made."""
    try:
        status = cli.main(["demo", "-o", str(tmp_path / "demo"), *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "demo").exists()


@SLOW
def test_failing_command(tmp_path, monkeypatch):
    """nnU-Net's failure is one sentence that names the log, which holds nnU-Net's reason."""
    shorten(monkeypatch)
    monkeypatch.setattr(demo, "_write_dataset", lambda *arguments: None)
    folder = earlier_demo(tmp_path / "demo")
    log = folder / "logs" / "plan_and_preprocess.unfinished.txt"
    text = f"expected nnUNetv2_plan_and_preprocess to end well, it ended with status 1: see {log}"
    with pytest.raises(OSError, match=re.escape(text)):
        demo.run_demo(folder)
    assert "Could not find a dataset with the ID 999" in log.read_text(encoding="utf-8")
    assert not [*folder.rglob("earlier*")]


def test_interrupted(tmp_path, monkeypatch):
    """The folder is kept for the same arguments, and emptied for another seed; the next run begins after the data."""

    def interrupted(commands, logs, environment, look=None):
        for name in commands:
            (logs / f"{name}.txt").touch()
        if demo._PLANNING not in commands:
            raise KeyboardInterrupt
        plans = {"configurations": {"2d": {"architecture": {"arch_kwargs": {}}}}}
        (tmp_path / "nnUNet_preprocessed" / demo.DATASET).mkdir(parents=True)
        (tmp_path / "nnUNet_preprocessed" / demo.DATASET / "nnUNetPlans.json").write_text(json.dumps(plans))

    monkeypatch.setattr(demo, "run_commands", interrupted)
    shorten(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert len(made) == 2 * SHORT["CASES"]
    monkeypatch.setattr(demo, "run_commands", lambda *arguments: pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        demo.run_demo(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")} == made
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        demo.run_demo(tmp_path, seed=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}.keys() == made.keys()
    assert not {path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")} & {*made.values()}
    assert not [*(tmp_path / "logs").iterdir()]


def test_commands_run_once(tmp_path):
    """A command that has ended well is not run again; one that failed is, and ends the others."""
    add = "import sys; open(sys.argv[1], 'a').write('x'); print('said'); sys.exit(sys.argv[2:] == ['fails'])"
    wait = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'good.txt')!r}): time.sleep(0.01)\n"
    good = [sys.executable, "-c", add, str(tmp_path / "good")]
    bad = [sys.executable, "-c", wait + add, str(tmp_path / "bad")]
    asleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(OSError, match=r"ended with status 1: see .*bad\.unfinished\.txt"):
        run_commands({"good": good, "bad": [*bad, "fails"], "asleep": asleep}, tmp_path, os.environ)
    run_commands({"good": good}, tmp_path, os.environ)
    assert (tmp_path / "good").read_text() == "x"
    assert (tmp_path / "good.txt").read_text() == "said\n"
    run_commands({"good": good, "bad": bad}, tmp_path, os.environ)
    assert (tmp_path / "good").read_text() == "x"
    assert (tmp_path / "bad").read_text() == "xx"


def test_seed_of_trainings(monkeypatch):
    """Python's, NumPy's and PyTorch's generators start anew with each training: alike for trainers, not for folds."""
    package = ModuleType("nnunet_calib.trainers")
    for name in ("A", "B"):
        methods = {
            "__init__": lambda self, plans, configuration, fold, dataset_json, device: setattr(self, "fold", fold),
            "initialize": lambda self: seeds.append("initialized"),
        }
        setattr(package, name, type(name, (), methods))
    seeds, threads = [], []
    for generator, function in ((random, "seed"), (np.random, "seed"), (torch, "manual_seed")):
        monkeypatch.setattr(generator, function, seeds.append)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setitem(sys.modules, "nnunet_calib.trainers", package)
    monkeypatch.setattr("nnunet_calib.trainers", package, raising=False)
    used = {name: [] for name in "AB"}
    for seed in range(3):
        short = {}
        exec(demo._trainer_module(["A", "B"], seed), short)
        for fold in range(5):
            for name, own in used.items():
                trainer = short[name + demo.SHORT]({}, "2d", fold, {})
                trainer.initialize()
                assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (demo.EPOCHS, demo.ITERATIONS)
                *three, last = seeds
                assert len(three) == 3
                assert len({*three}) == 1
                assert last == "initialized"
                own.append(three[0])
                seeds.clear()
    assert used["A"] == used["B"]
    assert len({*used["A"]}) == 15
    assert {*threads} == {1}


def test_seed_of_cases(tmp_path, monkeypatch):
    """The same seed makes the same images and labels, another one others."""
    shorten(monkeypatch)
    made = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        demo._prepare_folder(tmp_path / name, {})
        demo._write_dataset(tmp_path / name, seed, training=1)
        files = sorted((tmp_path / name).rglob("demo_000*.nii.gz"))
        made.append([sitk.GetArrayFromImage(sitk.ReadImage(file)) for file in files])
    for a, b, c in zip(*made, strict=True):
        assert (a == b).all()
        assert (a != c).any()


def test_findings():
    """Sentences say what the numbers say, whichever way they point."""

    def model(temperature, trained, scaled):
        columns = ("ace", "nll", "kl_to_truth")
        stages = {"uncalibrated": trained, "calibrated": scaled}
        return {"temperature": temperature} | {k: dict(zip(columns, v, strict=True)) for k, v in stages.items()}

    first = model(1.5, (0.1, 0.3, 0.05), (0.05, 0.2, 0.06))
    assert findings({"A": first, "B": model(1.1, (0.2, 0.3, 0.04), (0.1, 0.1, 0.1))}) == [
        "A is too sure (T > 1): T = 1.50.",
        "Its temperature gives a lower NLL (0.3000 -> 0.2000), a higher KL to truth (0.0500 -> 0.0600).",
        "B as trained has a higher ACE (0.1000 -> 0.2000), the same NLL (0.3000 -> 0.3000), "
        "a lower KL to truth (0.0500 -> 0.0400).",
    ]
    assert findings({"A": first | {"temperature": 0.9}})[0] == "A is not too sure (T is not above 1): T = 0.90."
