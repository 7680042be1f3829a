"""The queue and the plans of the study."""

from benchmarks.study import settings
from benchmarks.study.plan import small_plans


def test_the_queue():
    """Every method in every fold, the sweep on its fold only and before the other folds, each once."""
    queue = settings.queue()
    assert len(queue) == len(set(queue))
    everything = {(name, fold) for name in settings.METHODS for fold in settings.FOLDS}
    everything |= {(name, settings.SWEEP_FOLD) for name in settings.SWEEP}
    assert set(queue) == everything
    assert queue[0] == ("Calib", settings.SWEEP_FOLD)
    swept = len(settings.METHODS) - 1 + len(settings.SWEEP)
    assert {fold for _, fold in queue[:swept]} == {settings.SWEEP_FOLD}


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
    architecture = {"features_per_stage": [32, 64, 128, 256], "n_conv_per_stage_decoder": [2, 2, 2], "n_stages": 4}
    full = {"batch_size": 7, "data_identifier": "here", "architecture": {"arch_kwargs": architecture}}
    plans = {"plans_name": settings.PLANS, "configurations": {settings.CONFIGURATION: full, "2d": {}}}
    small = small_plans(plans)
    found = small["configurations"][settings.CONFIGURATION]
    assert found["batch_size"] == 2
    assert found["data_identifier"] == "here"
    assert found["architecture"]["arch_kwargs"] == architecture | settings.ARCHITECTURE_CHANGES
    assert small["plans_name"] == settings.SMALL_PLANS
    assert plans["plans_name"] == settings.PLANS
    assert full["batch_size"] == 7
    assert architecture["features_per_stage"] == [32, 64, 128, 256]


