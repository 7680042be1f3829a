"""From a study folder with two methods to tables and figures."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.study import collect as module
from benchmarks.study import report, settings
from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.metrics.errors import reliability_curve
from tests.worlds.compared_folds import DICE, DICE_OTHER, write_dice
from tests.worlds.measured_folds import Model, made

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net, of paths that are not set


@pytest.fixture
def results(collected, tmp_path, monkeypatch):
    """What is collected, in a copy beside that of the study."""
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")  # the study sets them; they are restored
    shutil.copytree(collected, tmp_path, dirs_exist_ok=True)
    return tmp_path / "collected"


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A study of two methods with two folds of four cases, and a swept value on fold 0, and what is collected of it."""
    with pytest.MonkeyPatch.context() as patch:
        return collect_study(tmp_path_factory.mktemp("collected"), patch)


def collect_study(base, patch):
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        patch.setenv(name, "")
    root, folder = base / "study", base / "collected"
    methods = (("Calib", 2.0, DICE, 2), ("ML1ACE", 1.2, DICE_OTHER, 2), ("ML1ACE_w03", 1.5, DICE_OTHER, 1))
    (root / "runs").mkdir(parents=True)
    for method, sure, dice, folds in methods:
        trainer = settings.PREFIX + method
        model = Model(root, trainer=trainer, plans=settings.SMALL_PLANS, weights=method)
        for fold in range(2):  # the splits are those of both
            model.write(fold, {f"case.{i}": made(i, sure) for i in range(4 * fold, 4 * fold + 4)})
            write_dice(model, fold, dice)
            summary = json.loads((model.calibration(fold) / "summary.json").read_text())
            facts = {
                "run": {"method": method, "fold": fold},
                "calibration": summary["metrics"],
                "dice": {"foreground_mean": 0.5},
            }
            if fold < folds:
                (root / "runs" / f"{method}_fold{fold}.json").write_text(json.dumps(facts))
            else:
                shutil.rmtree(model.folder / f"fold_{fold}")

    def draw_fold(folder, image_of):
        for name in ("dataset_reliability_histogram", "worst_cases", "nll"):
            (folder / f"{name}.png").write_text(f"{name} of {folder.parents[1].name}")

    patch.setattr(module, "draw_fold", draw_fold)  # tests/report draw them
    (base / "pictures").mkdir()
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "renamed_fold0.json").write_text("{}")
    module.collect(root, folder, base / "pictures")
    return base


def test_collected(results):
    """Both comparisons under the study's names, rows of the cases whose means they are, and curves of all voxels."""
    methods, sweep = (json.loads((results / f"{name}.json").read_text()) for name in ("methods", "sweep"))
    assert [m["name"] for m in methods["models"]] == ["Calib", "ML1ACE"]
    assert methods["folds"] == [0, 1]
    assert [m["name"] for m in sweep["models"]] == ["Calib", "ML1ACE", "ML1ACE_w03"]
    assert sweep["folds"] == [0]
    with (results / "cases.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "ML1ACE"]
    assert len(rows) == 8
    for group in methods["results"]:
        stage = "" if group["metric"] == "dice" else f"_{group['stage']}"
        if group["scope"] == "image" and group["of"] != "top_label":
            mean = np.mean([float(row[f"{group['metric']}{stage}"]) for row in rows])
            assert group["models"][1]["mean"] == pytest.approx(mean, abs=2e-6)
    curves = json.loads((results / "reliability.json").read_text())
    voxels = 9 * 9 * 6
    for stage in ("uncalibrated", "calibrated"):
        assert sum(curves["Calib"][stage]["counts"]) == 2 * 8 * voxels
    before, after = (curves["Calib"][stage] for stage in ("uncalibrated", "calibrated"))
    assert sum(before["positives"]) == sum(after["positives"])
    assert before["counts"][-1] > after["counts"][-1]  # the temperature makes it less sure
    (pooled,) = (
        group
        for group in methods["results"]
        if (group["metric"], group["scope"], group["stage"]) == ("nll", "image", "uncalibrated")
    )  # the mean over cases, which all have as many voxels
    assert sum(before["nll"]) / sum(before["voxels"]) == pytest.approx(pooled["models"][0]["mean"], rel=2e-6)
    assert sum(after["voxels"]) == pytest.approx(sum(before["voxels"]))
    assert sum(before["voxels"]) == 8 * voxels
    assert min(*before["nll"], *before["voxels"], *after["nll"]) > 0
    files = (results.parent / "study").rglob("*StudyCalib__*/**/calibration/cases/*.npz")
    cases = [CaseStatistics.load(path) for path in files]
    voxels_of_bins = np.concatenate([reliability_curve(case).counts[1:3, 1:19].ravel() for case in cases])
    voxels_of_bins = voxels_of_bins[voxels_of_bins > 0]
    assert before["of_bins"] == pytest.approx([np.median(voxels_of_bins), np.mean(voxels_of_bins <= 3)], rel=1e-5)
    assert 0 < before["of_bins"][1] < 1
    merged = CaseStatistics.merge(cases)
    near = calibration_errors(merged, scope="boundary")["nll"]
    assert before["nll"][0] / before["voxels"][0] == pytest.approx(float(near), rel=1e-5)
    assert len(list((results / "runs").iterdir())) == 5
    pictures = {path.name: path.read_text() for path in (results.parent / "pictures").iterdir()}
    assert len(pictures) == 4
    for method in ("Calib", "ML1ACE"):
        for name in ("dataset_reliability_histogram", "worst_cases"):
            text = pictures[f"study_hippocampus_{method}_{name}.png"]
            assert text.startswith(f"{name} of nnUNetTrainerStudy{method}__")


@pytest.mark.parametrize(("mode", "foreground"), [("labels", slice(1, 3)), ("regions", slice(0, 3))])
def test_foreground_bins(mode, foreground):
    """All regions, and all classes but the background; no top label."""
    case = made(0, mode=mode)
    counts, probability, frequency = module.foreground_bins(case.measure())
    volume = case.labels.size
    assert counts.sum(1).tolist() == [volume] * (foreground.stop - foreground.start)
    positives = np.nansum(counts * frequency, 1)
    assert positives == pytest.approx(case.targets()[foreground].reshape(len(counts), -1).sum(1))
    expected = case.probabilities[foreground].reshape(len(counts), -1).sum(1)
    assert np.nansum(counts * probability, 1) == pytest.approx(expected, rel=1e-5)


def test_a_folder_of_fewer_runs(results):
    """It takes nothing away: what it holds less of is kept, and what it has more of replaces it."""
    study = results.parent / "study"
    names = ("methods.json", "sweep.json", "reliability.json", "cases.csv", "calibrators.csv")
    before = {name: (results / name).read_bytes() for name in names if (results / name).is_file()}
    (study / "runs" / "ML1ACE_w03_fold0.json").unlink()
    (study / "runs" / "ML1ACE_fold1.json").unlink()
    module.collect(study, results, results.parent / "pictures")
    assert {name: (results / name).read_bytes() for name in before} == before
    assert len(list((results / "runs").iterdir())) == 5
    sweep = json.loads((results / "sweep.json").read_text())
    sweep["models"] = sweep["models"][:2]
    (results / "sweep.json").write_text(json.dumps(sweep | {"results": []}))
    module.collect(study, results, results.parent / "pictures")
    assert json.loads((results / "sweep.json").read_text())["results"]


def test_calibrators(results):
    """A row for each method and case before and after each kind, and the means of a comparison in the table."""
    models = module.Study(results.parent / "study")
    compared = {kind: module.compare(models, ["Calib", "ML1ACE"], [0], kind) for kind in ("temperature", "vector")}
    compared["classwise"] = compared["temperature"]
    rows = module.calibrator_rows(compared)
    assert [row["model"] for row in rows] == ["Calib", "ML1ACE"] * 4
    module.write_rows(rows, results / "calibrators.csv")
    table = [line.split("|")[1:-1] for line in report.tables(results)["calibrators"].splitlines()]
    assert [line[0].strip() for line in table[2:]] == ["Calib", "", "", "", "ML1ACE", "", "", ""]
    assert [line[1].strip() for line in table[2:6]] == ["-", "T", "T by class", "w z + b"]
    for number, (kind, stage) in enumerate((("vector", "uncalibrated"), ("temperature", "calibrated"))):
        for metric, column, digits in (("ece", 3, 4), ("nll", 6, 4)):
            means = [
                model["mean"]
                for group in compared[kind]["results"]
                if (group["metric"], group["scope"], group["stage"]) == (metric, "image", stage)
                and group["of"] in ("foreground_mean", None)
                for model in group["models"]
            ]
            assert float(table[6 + number][column]) == pytest.approx(means[1], abs=0.6 * 10**-digits)
    after = [row["estimated_dice"]["after"] for row in compared["vector"]["metric_per_case"] if row["model"] == "Calib"]
    assert float(table[5][2]) == pytest.approx(np.mean(after), abs=6e-4)
    assert float(table[4][2]) == float(table[2][2])


def test_a_network_without_foreground(results):
    """Its fold is no part of a comparison, and it is named."""
    path = results / "runs" / "ML1ACE_fold1.json"
    facts = json.loads(path.read_text())
    done = {"Calib": {0, 1}, "ML1ACE": {0, 1}}
    assert module.learned(path.parent, done) == done
    path.write_text(json.dumps(facts | {"dice": {"foreground_mean": 0.02}}))
    assert module.learned(path.parent, done) == {"Calib": {0, 1}, "ML1ACE": {0}}
    assert report.tables(results)["not learned"].endswith("methods: ML1ACE in fold 1 (Dice 0.020).")


def test_figure_without_lost_models(results):
    """A model of no Dice would squeeze all others together."""
    sweep = json.loads((results / "sweep.json").read_text())
    assert report.with_foreground(sweep) == sweep
    (dice,) = (group for group in sweep["results"] if group["metric"] == "dice")
    dice["models"][1]["mean"] = 0.0
    kept = report.with_foreground(sweep)
    assert [model["name"] for model in kept["models"]] == ["Calib", "ML1ACE_w03"]
    assert all([row["model"] for row in group["models"]] == ["Calib", "ML1ACE_w03"] for group in kept["results"])


def test_report(results, tmp_path):
    """Tables of everything, and the three figures."""
    found = report.tables(results)
    assert found["cases"] == "8 cases, folds 0, 1."
    assert found["sweep cases"] == "4 cases of fold 0."
    assert found["means calibrated"].splitlines()[3].startswith("| ML1ACE | ")
    assert found["not learned"].endswith("none.")
    assert "| ML1ACE | Dice |" in found["folds"]
    assert "w03" not in found["folds"]
    (tmp_path / "images").mkdir()
    report.draw(results, tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "study_hippocampus_methods.png",
        "study_hippocampus_reliability.png",
        "study_hippocampus_sweep.png",
    ]


def test_report_of_methods_alone(results, tmp_path):
    """One fold without a swept value has the figure of its methods."""
    for name in ("methods.json", "reliability.json"):
        (results / name).unlink()
    sweep = json.loads((results / "sweep.json").read_text())
    sweep["models"] = [model for model in sweep["models"] if model["name"] in settings.METHODS]
    for group in sweep["results"]:
        group["models"] = [row for row in group["models"] if row["model"] in settings.METHODS]
    (results / "sweep.json").write_text(json.dumps(sweep))
    (tmp_path / "images").mkdir()
    report.draw(results, tmp_path / "images")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["study_hippocampus_sweep.png"]


def test_images_that_may_not_be_shown(results, tmp_path, monkeypatch):
    """Where a licence forbids it, no image of a case is copied into the documents."""
    study = settings.chosen()
    monkeypatch.setitem(settings.STUDIES, study.name, replace(study, images_shown=False))
    (tmp_path / "images").mkdir()
    module.collect(results.parent / "study", results, tmp_path / "images")
    assert not [*(tmp_path / "images").iterdir()]
