"""The choice of a backend of the losses in a training: refused before the first epoch where it cannot be."""

from __future__ import annotations

import pytest

from nnunet_calib.losses.backends import VARIABLE
from nnunet_calib.trainers import nnUNetTrainerSVLS


def test_refused_before_the_first_epoch(monkeypatch):
    """A choice that there is not, in one sentence, before nnU-Net has done anything."""
    monkeypatch.setenv(VARIABLE, "fast")
    trainer = object.__new__(nnUNetTrainerSVLS)  # that has nothing yet that nnU-Net would look at
    text = f"^expected the environment variable {VARIABLE} to be one of auto, .* got 'fast'$"
    with pytest.raises(ValueError, match=text):
        trainer.on_train_start()
