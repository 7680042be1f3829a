"""The queue and the plans of the study."""

import pytest

from benchmarks.study import settings
from benchmarks.study.plan import small_plans


@pytest.mark.parametrize("name", settings.STUDIES)
def test_the_queue(name):
    """Every method in every fold, the sweep on its fold only and after the folds that come first, each once."""
    study = settings.STUDIES[name]
    queue = study.queue()
    everything = {(method, fold) for method in study.methods for fold in study.folds}
    everything |= {(method, study.sweep_fold) for method in study.sweep}
    assert sorted(queue) == sorted(everything)
    assert queue[0] == ("Calib", study.folds[0])
    before = study.sweep_after * len(study.methods)
    assert {method for method, _ in queue[before : before + len(study.sweep)]} == {*study.sweep}
    assert {*study.methods} <= settings.METHODS.keys()
    assert {*study.sweep} <= settings.SWEEP.keys()


def test_chosen(monkeypatch):
    """The environment names the study; without it the first one counts."""
    monkeypatch.delenv(settings.CHOSEN, raising=False)
    assert settings.chosen().name == "hippocampus"
    monkeypatch.setenv(settings.CHOSEN, "acdc")
    assert settings.chosen() is settings.STUDIES["acdc"]


def test_the_sweep_varies():
    """A swept run differs from its method's default."""
    import nnunet_calib.trainers
    from benchmarks.study import methods

    assert settings.METHODS.keys().isdisjoint(settings.SWEEP)
    for run, method in settings.SWEEP.items():
        (base,) = method.bases
        assert getattr(methods, settings.PREFIX + run).first_seed == method.seed
        assert bool(method.attributes) != (method.seed != settings.SEED)
        for name, value in method.attributes.items():
            assert getattr(getattr(nnunet_calib.trainers, base), name) != value


def test_small_plans():
    """The network of the settings; nnU-Net's plans and its preprocessed data stay as they are."""
    study = settings.chosen()
    architecture = {"features_per_stage": [32, 64, 128, 256], "n_conv_per_stage_decoder": [2, 2, 2], "n_stages": 4}
    full = {"batch_size": 7, "data_identifier": "here", "architecture": {"arch_kwargs": architecture}}
    plans = {"plans_name": settings.PLANS, "configurations": {study.configuration: full, "2d": {}}}
    small = small_plans(plans)
    found = small["configurations"][study.configuration]
    assert found["batch_size"] == 2
    assert found["data_identifier"] == "here"
    assert found["architecture"]["arch_kwargs"] == architecture | study.architecture_changes
    assert small["plans_name"] == settings.SMALL_PLANS
    assert plans["plans_name"] == settings.PLANS
    assert full["batch_size"] == 7
    assert architecture["features_per_stage"] == [32, 64, 128, 256]
