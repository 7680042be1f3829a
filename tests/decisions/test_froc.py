"""FROC curves from lists of lesions, against counting by hand."""

import json

import numpy as np
import pytest

from nnunet_calib.decisions.froc import (
    CONFIDENCES,
    RATES,
    THRESHOLDS,
    froc,
    froc_of_cases,
    lesion_summary,
    lesion_table,
    lesions_of_case,
    read_lesions,
    write_lesions,
)
from nnunet_calib.decisions.lesions import Lesions, LesionSums
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.schemas import STAGES

HEADS = Heads(("0", "1", "2"), ("background", "organ", "tumour"), None, None)


def test_curve():
    """At each threshold, what counting gives; equal confidences count together."""
    rng = np.random.default_rng(0)
    found, false = (rng.integers(0, 6, n) / 5 for n in (12, 20))
    curve = froc([*found], 3, [*false], 4)
    assert (curve.thresholds[0], curve.sensitivity[0], curve.false_per_case[0]) == (np.inf, 0, 0)
    for threshold in (0, 0.1, 0.2, 0.5, 0.6, 1):
        assert curve.at(threshold) == pytest.approx(((found >= threshold).sum() / 15, (false >= threshold).sum() / 4))
    for rate in (0, 0.5, 1, 100):
        allowed = [t for t in [np.inf, *found, *false] if (false >= t).sum() / 4 <= rate]
        assert curve.sensitivity_at(rate) == max((found >= t).sum() / 15 for t in allowed)


def test_nothing():
    """Without true lesions there is no sensitivity, without false ones no more than the found ones are left out."""
    assert np.isnan(froc([], 0, [0.5], 1).sensitivity).all()
    curve = froc([0.5], 1, [], 2)
    assert (curve.sensitivity_at(0), curve.at(0.6)) == (0.5, (0, 0))


def rows_of(seeds) -> list[dict]:
    """Two predicted and true label maps of small lesions, with probabilities at both stages."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        predicted, true = (rng.choice(3, (1, 9, 9), p=(0.8, 0.1, 0.1)) for _ in range(2))
        lesions, sums = Lesions.of_labels(predicted, HEADS), {}
        for stage in STAGES:
            sums[stage] = LesionSums(lesions)
            sums[stage].add(slice(0, 1), rng.random((3, 1, 9, 9), np.float32))
        rows.append(
            {
                "case": f"case{seed}",
                "structures": lesions_of_case(lesions, sums, Lesions.of_labels(true, HEADS), HEADS.keys),
            }
        )
    return rows


def test_lesions_add():
    """Curves of more cases count the lesions of all of them; a written file gives the same."""
    rows = rows_of(range(4))
    halves = [lesion_summary(part, HEADS.foreground)["structures"]["1"] for part in (rows[:2], rows[2:])]
    whole = lesion_summary(rows, HEADS.foreground)
    of = whole["structures"]["1"]
    for name in ("true", "predicted"):
        assert of[name] == sum(half[name] for half in halves) > 0
    assert of["sensitivity"] * of["true"] == pytest.approx(sum(h["sensitivity"] * h["true"] for h in halves))
    assert of["false_per_case"] * 4 == pytest.approx(sum(h["false_per_case"] * 2 for h in halves))
    curve = of["calibrated"]["mean_p"]
    assert ([*curve["sensitivity_at"]], curve["thresholds"]) == ([f"{rate:g}" for rate in RATES], [*THRESHOLDS])
    assert (np.diff(curve["sensitivity"]) <= 0).all()
    assert "organ" in lesion_table(whole, dict(zip(HEADS.keys, HEADS.names, strict=True)))


def test_true_lesion_has_its_surest_finder(tmp_path):
    """Of two predicted lesions that meet a true one, the surer one finds it first."""
    predicted, true = np.zeros((2, 1, 1, 7), int)
    predicted[..., [0, 2, 6]], true[..., 0:3], true[..., 4] = 1, 1, 1
    p = np.zeros((3, 1, 1, 7), np.float32)
    p[1, 0, 0, [0, 2, 6]] = 0.3, 0.8, 0.6
    lesions = Lesions.of_labels(predicted, HEADS)
    sums = LesionSums(lesions)
    sums.add(slice(0, 1), p)
    found = lesions_of_case(lesions, dict.fromkeys(STAGES, sums), Lesions.of_labels(true, HEADS), HEADS.keys)
    assert [*found] == ["1"]
    write_lesions(tmp_path, {}, [{"case": "a", "structures": found}])
    rows = read_lesions(tmp_path)
    assert rows[0]["structures"]["1"]["predicted"]["meets"] == [1, 1, 0]
    assert rows[0]["structures"]["1"]["true"]["calibrated"]["max_p"] == [pytest.approx(0.8), None]
    for confidence in CONFIDENCES:
        curve = froc_of_cases(rows, "1", STAGES[1], confidence)
        assert [curve.at(t) for t in (0.9, 0.7, 0.5)] == [(0, 0), (0.5, 0), (0.5, 1)]


def test_damaged(tmp_path):
    """Lists of other lengths are refused, with the command that makes the file."""
    write_lesions(tmp_path, {}, rows_of([0]))
    content = json.loads((tmp_path / "lesions.json").read_text())
    content["metric_per_case"][0]["structures"]["1"]["predicted"]["meets"].pop()
    (tmp_path / "lesions.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"of each lesion of case0 in .*lesions\.json: make it again with nnunet_calib"
    ):
        read_lesions(tmp_path)
