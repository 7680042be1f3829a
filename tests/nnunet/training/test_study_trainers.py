"""The trainers of the study, in nnU-Net: found, picklable, and the same twice."""

import hashlib
import pickle

import pytest
import torch

from benchmarks.study import settings
from benchmarks.study.facts import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def study_world(world, monkeypatch):
    """The tiny data set, with the study's trainers."""
    monkeypatch.setenv("nnUNet_extTrainer", str(REPOSITORY / "benchmarks" / "study" / "trainers"))
    monkeypatch.setenv("nnUNet_compile", "f")
    threads = torch.get_num_threads()
    yield world
    torch.set_num_threads(threads)


def steps(world, method: str, number: int) -> tuple[list[str], str]:
    """Hashes of the first training batches and a validation batch, and of the weights after training on them."""
    trainer = world.trainer(settings.PREFIX + method, "3d_fullres")
    trainer.on_train_start()
    batches = []
    for _ in range(number):
        batch = next(trainer.dataloader_train)
        batches.append(hashlib.sha256(batch["data"].numpy().tobytes()).hexdigest())
        trainer.train_step(batch)
    batches.append(hashlib.sha256(next(trainer.dataloader_val)["data"].numpy().tobytes()).hexdigest())
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        loader._finish()
    weights = b"".join(p.detach().numpy().tobytes() for p in trainer.network.parameters())
    return batches, hashlib.sha256(weights).hexdigest()


def test_reproducible(study_world):
    """Twice the same patches and weights; another method sees the same patches and gets other weights."""
    batches, weights = steps(study_world, "Calib", 3)
    assert len(set(batches)) == 4
    assert steps(study_world, "Calib", 3) == (batches, weights)
    others, other_weights = steps(study_world, "ML1ACE", 3)
    assert others == batches
    assert other_weights != weights
    assert steps(study_world, "ML1ACE", 0)[1] == steps(study_world, "Calib", 0)[1]


@pytest.mark.parametrize("name", settings.ALL)
def test_found(study_world, name):
    """nnU-Net finds the class, with the settings' length and hyperparameters; a pickle brings the same one."""
    trainer = study_world.trainer(settings.PREFIX + name, "3d_fullres")
    method = settings.ALL[name]
    study = settings.chosen()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (study.epochs, study.iterations)
    assert method.attributes.items() <= trainer.calibration_hyperparameters().items()
    assert {*method.bases} <= {cls.__name__ for cls in type(trainer).__mro__}
    assert pickle.loads(pickle.dumps(type(trainer))) is type(trainer)
