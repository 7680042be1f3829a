"""The trainers that users name with -tr: an nnU-Net trainer, a loss, the measuring and its figures, put together.

The class name becomes the results folder and is stored in checkpoints: it is public. nnU-Net finds the classes through
the folder that `nnunet_calib trainers --path` prints.
"""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_calib.integration.trainer import CalibrationMixin, ML1ACEMixin, NACLMixin, SVLSMixin
from nnunet_calib.report.figures import draw_fold


class nnUNetTrainerCalib(CalibrationMixin, nnUNetTrainer):
    """nnU-Net's own loss, measured: the baseline of every comparison."""

    draw_figures = staticmethod(draw_fold)


class nnUNetTrainerNACL(NACLMixin, nnUNetTrainerCalib):
    """nnU-Net's loss + 0.1 neighbour-aware calibration (NACL)."""


class nnUNetTrainerSVLS(SVLSMixin, nnUNetTrainerCalib):
    """nnU-Net's loss with its cross-entropy replaced by spatially varying label smoothing (SVLS)."""


class nnUNetTrainerML1ACE(ML1ACEMixin, nnUNetTrainerCalib):
    """nnU-Net's loss + hard-binned marginal L1 average calibration error (mL1-ACE)."""


TRAINERS = (nnUNetTrainerCalib, nnUNetTrainerNACL, nnUNetTrainerSVLS, nnUNetTrainerML1ACE)
