"""Measuring a study's networks against several radiologists, with pictures and probabilities made up here."""

import numpy as np
import pytest
from skimage.io import imsave

from benchmarks.study import raters
from benchmarks.study.raters import AGAINST, DRAWN, MAJORITY, RATERS
from nnunet_calib import CaseStatistics, calibration_errors, fit_temperature
from nnunet_calib.measuring.voxel_sample import VoxelSample

FOLDS, CASES, SIZE = 3, 4, 24


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Cases of three folds: the pictures of four radiologists, and probabilities that are too sure."""
    dataset = tmp_path_factory.mktemp("raters") / "dataset"
    for name in ("raters", "labelsTr", "labelsTr_majority"):
        (dataset / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for fold in range(FOLDS):
        validation = dataset.parent / f"fold_{fold}"
        validation.mkdir()
        for number in range(CASES):
            case = f"c{fold}{number}"
            z = 3 * rng.standard_normal((SIZE, SIZE))
            drawn = rng.random((4, SIZE, SIZE)) < 1 / (1 + np.exp(-z / 2))
            bits = sum(mask.astype(np.uint8) << rater for rater, mask in enumerate(drawn))
            for name, labels in (("raters", bits), ("labelsTr", drawn[1]), ("labelsTr_majority", drawn.sum(0) >= 2)):
                imsave(dataset / name / f"{case}.png", labels.astype(np.uint8), check_contrast=False)
            p = 1 / (1 + np.exp(-z))
            np.savez(validation / f"{case}.npz", probabilities=np.stack([1 - p, p])[:, None].astype(np.float32))
    return dataset


@pytest.fixture(scope="module")
def cases(world):
    """All cases, measured."""
    return [case for fold in range(FOLDS) for case in raters.measure(world.parent / f"fold_{fold}", world, fold)]


def test_labels(world):
    """Frequencies among the four, and the two label maps."""
    found = raters.labels_of(world, "c00")
    assert {*found} == {*AGAINST}
    np.testing.assert_allclose(found[RATERS].sum(0), 1)
    assert {*np.unique(found[RATERS])} == {0, 0.25, 0.5, 0.75, 1}
    np.testing.assert_array_equal(found[RATERS][1] >= 0.5, found[MAJORITY] == 1)
    agree = (found[RATERS][1] == 0) | (found[RATERS][1] == 1)
    np.testing.assert_array_equal(found[DRAWN][agree], found[MAJORITY][agree])


def test_dice():
    """From its definition; nothing where neither has a nodule."""
    labels = np.array([[1, 1, 0, 0]])
    assert raters.dice(np.array([[True, False, True, False]]), labels) == pytest.approx(0.5)
    assert np.isnan(raters.dice(np.zeros((1, 4), bool), np.zeros((1, 4), int)))


def test_rows(world, cases):
    """Errors of a case, with a temperature of the other folds: of its own kind of label, or of the drawn one."""
    rows, pooled = raters.method_results("Calib", cases)
    assert len(rows) == FOLDS * CASES * len(AGAINST)
    (row,) = (row for row in rows if (row["case"], row["against"]) == ("c10", RATERS))
    probabilities = np.load(world.parent / "fold_1" / "c10.npz")["probabilities"][:, 0]
    bits = raters.labels_of(world, "c10")[RATERS][1]
    n, gaps = np.minimum((probabilities[1] * 20).astype(int), 19), []
    for m in np.unique(n):
        gaps.append(abs(probabilities[1][n == m].mean(dtype=float) - bits[n == m].mean()))
    assert row["ace_before"] == pytest.approx(np.mean(gaps), abs=1e-4)
    others = {kind: [case.statistics[kind].sample for case in cases if case.fold != 1] for kind in AGAINST}
    fitted = {}
    for kind, samples in others.items():
        voxels = VoxelSample.merge(samples)
        fitted[kind] = fit_temperature(voxels.logits, voxels.labels, weights=voxels.weights).temperature
    assert row["temperature"] == pytest.approx(fitted[RATERS], abs=1e-6)
    assert 1.7 < fitted[RATERS] < 2.3  # the truth is 2
    own: CaseStatistics = next(case for case in cases if case.case == "c10").statistics[RATERS]
    for stage, kind in (("after", RATERS), ("drawn", DRAWN)):
        errors = calibration_errors(own.with_temperature(fitted[kind]))
        assert row[f"ace_{stage}"] == pytest.approx(errors["ace"][1], abs=1e-6)
        assert row[f"nll_{stage}"] == pytest.approx(errors["nll"], abs=1e-6)
    merged = CaseStatistics.merge(case.statistics[MAJORITY] for case in cases)
    assert pooled[MAJORITY]["before"].value == pytest.approx(calibration_errors(merged)["ace"][1])
    assert {*pooled[RATERS]} == {"before", "after", "drawn"}


def test_tables(cases):
    """A row for each method and kind of label; differences from the first over cases and trainings."""
    rows, pools = [], {}
    for method in ("Calib", "Other"):
        of_method, pools[method] = raters.method_results(method, cases)
        rows += of_method
    for row in rows:
        if row["model"] == "Other":
            row["nll_before"] -= 0.01 * (1 + row["fold"])
    texts = [{name: str(value) for name, value in row.items()} for row in rows]
    pooled = raters.compared_pools(pools, "Calib")
    lines = [line.split(" | ") for line in raters.raters_table(texts, pooled).splitlines()[2:]]
    assert [line[1] for line in lines] == [*AGAINST, *AGAINST]
    assert lines[0][3] == "-"
    assert float(lines[0][4]) == pytest.approx(
        np.mean([row["ace_before"] for row in rows if row["model"] == "Calib" and row["against"] == RATERS]), abs=6e-4
    )
    head, _, over_cases, over_trainings = raters.raters_differences_table(texts, pooled, 0.25).splitlines()
    column = head.split(" | ").index("NLL")
    assert over_cases.split(" | ")[column].startswith("-0.0200 (")
    mean, limits = over_trainings.split(" | ")[column].rstrip(")").split(" (")
    low, high = map(float, limits.split(" to "))
    assert float(mean) == pytest.approx(-0.02)
    # t with 2 degrees of freedom times the deviation .01, corrected for folds that share training cases
    assert (high - low) / 2 == pytest.approx(4.3027 * 0.01 * np.sqrt(1 / 3 + 0.25), rel=0.01)
    assert "+0.000 (+0.000 to +0.000)" in over_cases
    (line,) = raters.raters_temperature_table(texts[: len(texts) // 2]).splitlines()[2:]
    assert line.startswith("| Calib | ")
    assert line.count(" to ") == 2
