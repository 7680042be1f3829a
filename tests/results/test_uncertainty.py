"""Errors of the voxels of all cases together: those of merged statistics, with intervals over cases."""

import json

import numpy as np
import pytest

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.significance import pooled_interval, resampling_counts
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import case_file
from tests.worlds.measured_cases import Case, make_case

MODEL = {"weights_sha256": "ours", "fold": 0}
LABELS = Heads(("0", "1", "2"), ("background", "bright", "dark"), None, None)
REGIONS = Heads(("(1, 2, 3)", "(2, 3)", "3"), ("any", "inner", "core"), ((1, 2, 3), (2, 3), (3,)), None)
# Variances within fine bins are those of each case, or of all of them.
PER_HEAD = {"ece": 1e-12, "ace": 1e-12, "mce": 1e-12, "ece_by_chance": 1e-3, "ace_by_chance": 1e-3}


def summary_of(folder, cases, heads=LABELS):
    """The summary of a fold, and the statistics of its cases at both stages."""
    for name, case in cases.items():
        path = case_file(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        case.measure(case=name, model=MODEL).save(path)
    write_fold(folder, [*cases], heads, MODEL)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    statistics = [CaseStatistics.load(case_file(folder, row["case"])) for row in summary["metric_per_case"]]
    after = [s.with_temperature(r["temperature"]) for s, r in zip(statistics, summary["metric_per_case"], strict=True)]
    return summary, {"uncalibrated": statistics, "calibrated": after}


@pytest.mark.parametrize("heads", [LABELS, REGIONS], ids=["labels", "regions"])
def test_merged_statistics(tmp_path, heads):
    """Every pooled value is that of the merged cases; that of no class is one of the means."""
    mode = "labels" if heads is LABELS else "regions"
    cases = {f"case{i}": make_case(mode, (9, 9, 4 + 3 * i), seed=i) for i in range(4)}
    summary, stages = summary_of(tmp_path, cases, heads)
    for stage, statistics in stages.items():
        merged = CaseStatistics.merge(statistics)
        for scope in SCOPES:
            found, limits = (summary[kind][stage][scope] for kind in ("pooled", "pooled_intervals"))
            assert found["definition"]["pooled_over"] == "cases"
            errors = calibration_errors(merged, 20, scope)
            for row, key in enumerate(heads.keys):
                for name, exact in PER_HEAD.items():
                    assert found["per_class"][key][name] == pytest.approx(errors[name][row], rel=exact)
            for name, exact in PER_HEAD.items():
                assert found["top_label"][name] == pytest.approx(errors[f"top_label_{name}"], rel=exact)
            for name in ("nll", "brier"):
                assert found[name] == pytest.approx(errors[name], rel=1e-12)
                low, high = limits[name]
                assert low < found[name] < high
            keys = heads.keys[1:] if heads is LABELS else heads.keys
            mean = np.mean([found["per_class"][key]["ace"] for key in keys])
            assert found["foreground_mean"]["ace"] == pytest.approx(mean)
            low, high = limits["foreground_mean"]["ace"]
            assert 0 <= low < mean < high
    image = summary["pooled_intervals"]["change"]["image"]
    change = [summary["pooled"][stage]["image"]["nll"] for stage in stages]
    assert image["nll"][0] < change[1] - change[0] < image["nll"][1]


def test_absent_class(tmp_path):
    """A class that no case has is null; one that a single case has counts the voxels of all."""
    cases = {f"case{i}": make_case(seed=i, shape=(9, 9, 6)) for i in range(3)}
    for name, case in cases.items():
        case.labels[case.labels == 2] = 0
        if name != "case1":
            case.labels[case.labels == 1] = 0
    summary, stages = summary_of(tmp_path, cases)
    classes = summary["pooled"]["uncalibrated"]["image"]["per_class"]
    assert set(classes["2"].values()) == {None}
    merged = calibration_errors(CaseStatistics.merge(stages["uncalibrated"]))
    assert classes["1"]["ece"] == pytest.approx(merged["ece"][1], rel=1e-12)
    assert summary["pooled"]["uncalibrated"]["image"]["foreground_mean"]["ece"] == classes["1"]["ece"]


def test_small_cases_of_a_calibrated_model(tmp_path):
    """Their mean ACE is what chance leaves of it, and not there when their voxels are pooled."""
    rng = np.random.default_rng(0)
    cases = {}
    for number in range(40):
        p = rng.beta(1, 1, (6, 6))
        cases[f"case{number:02}"] = Case(np.stack([1 - p, p]), (rng.random(p.shape) < p).astype(np.uint8))
    summary, _ = summary_of(tmp_path, cases, Heads(("0", "1"), ("background", "lesion"), None, None))
    mean = summary["metrics"]["uncalibrated"]["image"]["per_class"]["1"]
    pooled = summary["pooled"]["uncalibrated"]["image"]["per_class"]["1"]
    assert mean["ace"] == pytest.approx(mean["ace_by_chance"], rel=0.05)
    assert pooled["ace"] < mean["ace"] / 4
    assert pooled["ace"] < 2 * pooled["ace_by_chance"]
    for row in summary["metric_per_case"]:
        assert 0 < row["uncalibrated"]["image"]["per_class"]["1"]["ace_by_chance"] < 0.5


def test_interval():
    """Shifted so that its middle is at the value, never below zero, and NaN for a single case."""
    rng = np.random.default_rng(2)
    resampled = 0.3 + 0.01 * rng.standard_normal(4000)
    low, high = pooled_interval(resampled, 0.2, 50)
    assert (low + high) / 2 == pytest.approx(0.2, abs=0.002)
    assert pooled_interval(resampled, 0.005, 50)[0] == 0
    assert pooled_interval(resampled - 0.3, -0.005, 50, lowest=-np.inf)[0] < -0.02
    assert np.isnan(pooled_interval(resampled, 0.2, 1)).all()
    assert np.isnan(pooled_interval(np.full(4000, np.nan), np.nan, 50)).all()


def test_coverage():
    """Of cases that are each off by their own amount, 12 at a time: intervals hold the error of very many."""
    rng = np.random.default_rng(4)
    counts = resampling_counts(12, 500)

    def residuals(cases):
        """Per case and bin, the class's voxels less the probabilities; 100 voxels in each of 20 bins."""
        p = (np.arange(20) + 0.5) / 20
        q = np.clip(p + rng.normal(0.02, 0.1, (cases, 1)) * 4 * p * (1 - p), 0, 1)
        return rng.binomial(100, q) - 100 * p

    def error(sums, cases):
        return np.abs(sums).mean(-1) / (100 * cases)

    truth = error(residuals(200_000).sum(0), 200_000)
    hits = 0
    for _ in range(200):
        found = residuals(12)
        low, high = pooled_interval(error(counts @ found, 12), error(found.sum(0), 12), 12)
        hits += low <= truth <= high
    assert hits >= 0.85 * 200
