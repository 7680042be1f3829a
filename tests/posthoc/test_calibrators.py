# ruff: noqa: D102 (the methods of a calibrator, as its protocol describes them)
"""The seam of calibrators: another kind is measured, read and described as a temperature is."""

import json
import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.posthoc import IDENTITY, KINDS, Kind, calibrator_of, fit, from_json
from nnunet_calib.posthoc.logits import calibrated, log_probabilities
from nnunet_calib.posthoc.many_fits import fit_jointly
from nnunet_calib.posthoc.temperature import TEMPERATURE_BOUNDS, Temperature, fit_temperature
from nnunet_calib.results.deployed_temperature import Deployed, given_temperature


@dataclass(frozen=True)
class Factors:
    """A factor for each class."""

    values: tuple[float, ...]

    kind: ClassVar[str] = "factors"
    noun: ClassVar[str] = "factors"
    indefinite: ClassVar[str] = "factors"
    effect: ClassVar[str] = "Factors move them."
    keeps_segmentation: ClassVar[bool] = False
    short: ClassVar[str] = "factors"
    form: ClassVar[dict] = {"factors": [float]}
    at_bound: ClassVar[bool] = False

    def logits(self, z, *, regions):
        return z * torch.tensor(self.values, dtype=z.dtype).view(-1, *[1] * (z.ndim - 1))

    def to_json(self):
        return {"kind": self.kind, "factors": [*self.values]}

    @classmethod
    def from_json(cls, content):
        return cls(tuple(content["factors"]))

    def words(self, digits=".4f"):
        return "factors " + ", ".join(f"{value:{digits}}" for value in self.values)

    def meaning(self):
        return "they fit"


@pytest.fixture
def factors(monkeypatch) -> Factors:
    """A calibrator of a kind that is registered for one test."""
    monkeypatch.setitem(KINDS, "factors", Kind(Factors, lambda cases, sets, _: fit_jointly(cases, sets)))
    return Factors((0.5, 2.0, 1.0))


def test_measured(factors):
    """A case after calibration has the statistics of the calibrated probabilities."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), (6, 7, 8)).transpose(3, 0, 1, 2)
    labels = rng.integers(0, 3, (6, 7, 8))
    after = CaseStatistics.from_probabilities(p, labels).with_temperature(factors)
    expected = CaseStatistics.from_probabilities(calibrated(log_probabilities(p), factors), labels)
    np.testing.assert_allclose(after.histograms.nll, expected.histograms.nll, rtol=1e-3)
    assert not np.allclose(after.histograms.nll, CaseStatistics.from_probabilities(p, labels).histograms.nll, rtol=1e-2)


def test_read(factors, tmp_path):
    """A temperature.json of another kind is read by its own form, described in its own words, and handed to workers."""
    file = tmp_path / "temperature.json"
    file.write_text(json.dumps(factors.to_json()))
    deployed = Deployed(given_temperature(str(file)), "temperature.json")
    assert deployed.calibrator == factors == pickle.loads(pickle.dumps(factors))
    assert deployed.describe() == "factors 0.5000, 2.0000, 1.0000: temperature.json"
    file.write_text(json.dumps(factors.to_json() | {"factors": "none"}))
    with pytest.raises(ValueError, match="expected factors to be a list"):
        given_temperature(str(file))
    file.write_text(json.dumps({"kind": "unheard of"}))
    with pytest.raises(ValueError, match=r"expected a calibrator of kind .* or factors, found 'unheard of'"):
        given_temperature(str(file))


def test_temperature():
    """A temperature is written as ever, without its kind, and compared by its value."""
    t = Temperature(1.38)
    assert t.to_json() == {"temperature": 1.38}
    assert from_json({"temperature": 1.38, "standard_error": 0.1}) == t == calibrator_of(1.38) == calibrator_of(t)
    assert t.words() == "T = 1.3800"
    assert Temperature(1) == IDENTITY
    assert [Temperature(value).at_bound for value in (*TEMPERATURE_BOUNDS, 1.0)] == [True, True, False]


def test_fit():
    """The registry fits what `fit_temperature` finds."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), (6, 7, 8)).transpose(3, 0, 1, 2)
    sample = CaseStatistics.from_probabilities(p, rng.integers(0, 3, (6, 7, 8))).sample
    found = fit("temperature", lambda: [sample], {"all": {0}})["all"]
    alone = fit_temperature(sample.logits, sample.labels.astype(int), weights=sample.weights)
    assert found.to_json()["temperature"] == pytest.approx(alone.temperature, rel=1e-6)
    assert found.calibrator == Temperature(found.to_json()["temperature"])
