"""The trainers that users name with -tr: an nnU-Net trainer with a loss, measuring and figures.

The class names are public: they become the results folder and are stored in checkpoints. nnU-Net finds the classes
through the folder that `nnunet_calib trainers --path` prints.
"""

from __future__ import annotations

from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import (
    nnUNetTrainer_5epochs,
    nnUNetTrainer_100epochs,
    nnUNetTrainer_250epochs,
)

from nnunet_calib.figures.fold_figures import draw_fold
from nnunet_calib.figures.progress import draw_logits, draw_progress
from nnunet_calib.losses import (
    DicePlusPlusLoss,
    EntropyPenalty,
    FocalLoss,
    LabelSmoothingLoss,
    MarginLabelSmoothingLoss,
    MDCALoss,
    ML1ACELoss,
    NACLLoss,
    SVLSLoss,
)
from nnunet_calib.nnunet.raw_images import raw_images
from nnunet_calib.nnunet.training.loss_terms import NoTerm
from nnunet_calib.nnunet.training.mixins import AddedTerm, CalibrationMixin, ReplacedCrossEntropy, ReplacedDice


def _draw_figures(calibration_folder: Path) -> None:
    """Draw all figures of a fold in fold_X/validation/calibration, with the images of nnUNet_raw if it exists."""
    draw_fold(calibration_folder, raw_images(calibration_folder.parents[2]))


class NACLMixin(AddedTerm, loss=NACLLoss, prefix="nacl"):
    """Adds neighbour-aware calibration (`nnunet_calib.losses.nacl_loss`) to a trainer's loss."""

    nacl_weight = 0.01
    nacl_kernel_size = 3
    nacl_prior = "mean"
    nacl_penalty = "l1"
    nacl_on = "logits"
    nacl_sigma = 1.0
    nacl_every_resolution = True
    nacl_schedule = "constant"
    nacl_schedule_rate = 1.0
    nacl_schedule_every = 100
    nacl_max_weight = 100.0
    nacl_warmup_epochs = 10


class SVLSMixin(ReplacedCrossEntropy, loss=SVLSLoss, prefix="svls"):
    """Replaces the cross-entropy of a trainer's loss by spatially varying label smoothing (`svls_loss`)."""

    svls_kernel_size = 3
    svls_sigma = 1.0


class ML1ACEMixin(AddedTerm, loss=ML1ACELoss, prefix="ml1_ace"):
    """Adds the marginal L1 average calibration error (`nnunet_calib.losses.ml1_ace_loss`) to a trainer's loss."""

    ml1_ace_weight = 1.0
    ml1_ace_warmup_epochs = 10
    ml1_ace_num_bins = 20
    ml1_ace_reduction = "ace"
    ml1_ace_binning = "hard"
    ml1_ace_absent_classes = "skip"
    ml1_ace_every_resolution = True
    ml1_ace_pool_with_batch_dice = False


class LSMixin(ReplacedCrossEntropy, loss=LabelSmoothingLoss, prefix="ls"):
    """Replaces the cross-entropy of a trainer's loss by label smoothing (`label_smoothing_loss`)."""

    ls_alpha = 0.1


class MbLSMixin(AddedTerm, loss=MarginLabelSmoothingLoss, prefix="mbls"):
    """Adds margin-based label smoothing (`margin_label_smoothing_loss`) to a trainer's loss."""

    mbls_weight = 0.1
    mbls_margin = 10.0
    mbls_every_resolution = True
    mbls_warmup_epochs = 0


class FocalMixin(ReplacedCrossEntropy, loss=FocalLoss, prefix="focal"):
    """Replaces the cross-entropy of a trainer's loss by the focal loss (`focal_loss`)."""

    focal_gamma = 3.0


class ECPMixin(AddedTerm, loss=EntropyPenalty, prefix="ecp"):
    """Adds the entropy penalty (`entropy_penalty`) to a trainer's loss."""

    ecp_weight = 0.1
    ecp_every_resolution = True
    ecp_warmup_epochs = 0


class DSCPlusPlusMixin(ReplacedDice, loss=DicePlusPlusLoss, prefix="dsc_plus_plus"):
    """Replaces the Dice of a trainer's loss by DSC++ (`dice_plus_plus_loss`), with the settings of that Dice."""

    dsc_plus_plus_gamma = 2.0


class MDCAMixin(AddedTerm, loss=MDCALoss, prefix="mdca"):
    """Adds the difference of mean confidence and frequency (`mdca_loss`) to a trainer's loss."""

    mdca_weight = 1.0
    mdca_every_resolution = True
    mdca_warmup_epochs = 0
    mdca_pool_with_batch_dice = False


class DiceOnlyMixin(ReplacedCrossEntropy, loss=NoTerm):
    """Removes the cross-entropy from a trainer's loss; the Dice still respects an ignore label."""


class nnUNetTrainerCalib(CalibrationMixin, nnUNetTrainer):
    """nnU-Net's own loss, measured: the baseline of every comparison."""

    draw_figures = staticmethod(_draw_figures)
    draw_pseudo_ace = staticmethod(draw_progress)
    draw_logits = staticmethod(draw_logits)


class nnUNetTrainerNACL(NACLMixin, nnUNetTrainerCalib):
    """nnU-Net's loss + 0.01 neighbour-aware calibration (NACL), after a warm-up."""


class nnUNetTrainerSVLS(SVLSMixin, nnUNetTrainerCalib):
    """nnU-Net's loss with its cross-entropy replaced by spatially varying label smoothing (SVLS)."""


class nnUNetTrainerML1ACE(ML1ACEMixin, nnUNetTrainerCalib):
    """nnU-Net's loss + hard-binned marginal L1 average calibration error (mL1-ACE), after a warm-up."""


class nnUNetTrainerSoftML1ACE(nnUNetTrainerML1ACE):
    """nnU-Net's loss + 0.3 mL1-ACE with soft bins."""

    ml1_ace_binning = "soft"
    ml1_ace_weight = 0.3


class nnUNetTrainerML1ECE(nnUNetTrainerML1ACE):
    """nnU-Net's loss + the expected calibration error: bins weigh by their voxels."""

    ml1_ace_reduction = "ece"


class nnUNetTrainerML1MCE(nnUNetTrainerML1ACE):
    """nnU-Net's loss + the maximum calibration error: the worst bin alone."""

    ml1_ace_reduction = "mce"


class nnUNetTrainerDiceML1ACE(ML1ACEMixin, DiceOnlyMixin, nnUNetTrainerCalib):
    """Dice without cross-entropy + 0.5 mL1-ACE, after a warm-up."""

    ml1_ace_weight = 0.5


class nnUNetTrainerNACLML1ACE(nnUNetTrainerNACL, nnUNetTrainerML1ACE):
    """nnU-Net's loss + 0.01 NACL + mL1-ACE."""


class nnUNetTrainerLS(LSMixin, nnUNetTrainerCalib):
    """nnU-Net's loss with its cross-entropy replaced by label smoothing: a tenth of each label for all classes."""


class nnUNetTrainerMbLS(MbLSMixin, nnUNetTrainerCalib):
    """nnU-Net's loss + 0.1 margin-based label smoothing (MbLS) with a margin of 10."""


class nnUNetTrainerFocal(FocalMixin, nnUNetTrainerCalib):
    """nnU-Net's loss with its cross-entropy replaced by the focal loss with gamma 3."""


class nnUNetTrainerECP(ECPMixin, nnUNetTrainerCalib):
    """nnU-Net's loss + 0.1 entropy penalty (explicit confidence penalty, ECP)."""


class nnUNetTrainerDSCPlusPlus(DSCPlusPlusMixin, nnUNetTrainerCalib):
    """nnU-Net's loss with its Dice replaced by DSC++ with gamma 2."""


class nnUNetTrainerMDCA(MDCAMixin, nnUNetTrainerCalib):
    """nnU-Net's loss + the difference of mean confidence and frequency of each class (MDCA)."""


class nnUNetTrainerNACL_published(nnUNetTrainerNACL):
    """NACL as published in 2023: weight 0.1, whole from the start."""

    nacl_weight = 0.1
    nacl_warmup_epochs = 0


class nnUNetTrainerML1ACE_published(nnUNetTrainerML1ACE):
    """mL1-ACE as published in 2024: whole from the start, and classes that an image lacks count."""

    ml1_ace_warmup_epochs = 0
    ml1_ace_absent_classes = "keep"


class nnUNetTrainerSoftML1ACE_published(nnUNetTrainerSoftML1ACE):
    """mL1-ACE with soft bins as published in 2025: weight 1, whole from the start; absent classes count as 0."""

    ml1_ace_weight = 1.0
    ml1_ace_warmup_epochs = 0
    ml1_ace_absent_classes = "zero"


class nnUNetTrainerCalib_5epochs(nnUNetTrainerCalib, nnUNetTrainer_5epochs):
    """`nnUNetTrainerCalib` for 5 epochs."""


class nnUNetTrainerCalib_100epochs(nnUNetTrainerCalib, nnUNetTrainer_100epochs):
    """`nnUNetTrainerCalib` for 100 epochs."""


class nnUNetTrainerCalib_250epochs(nnUNetTrainerCalib, nnUNetTrainer_250epochs):
    """`nnUNetTrainerCalib` for 250 epochs."""


class nnUNetTrainerNACL_5epochs(nnUNetTrainerNACL, nnUNetTrainer_5epochs):
    """`nnUNetTrainerNACL` for 5 epochs."""


class nnUNetTrainerNACL_100epochs(nnUNetTrainerNACL, nnUNetTrainer_100epochs):
    """`nnUNetTrainerNACL` for 100 epochs."""


class nnUNetTrainerNACL_250epochs(nnUNetTrainerNACL, nnUNetTrainer_250epochs):
    """`nnUNetTrainerNACL` for 250 epochs."""


class nnUNetTrainerSVLS_5epochs(nnUNetTrainerSVLS, nnUNetTrainer_5epochs):
    """`nnUNetTrainerSVLS` for 5 epochs."""


class nnUNetTrainerSVLS_100epochs(nnUNetTrainerSVLS, nnUNetTrainer_100epochs):
    """`nnUNetTrainerSVLS` for 100 epochs."""


class nnUNetTrainerSVLS_250epochs(nnUNetTrainerSVLS, nnUNetTrainer_250epochs):
    """`nnUNetTrainerSVLS` for 250 epochs."""


class nnUNetTrainerML1ACE_5epochs(nnUNetTrainerML1ACE, nnUNetTrainer_5epochs):
    """`nnUNetTrainerML1ACE` for 5 epochs."""


class nnUNetTrainerML1ACE_100epochs(nnUNetTrainerML1ACE, nnUNetTrainer_100epochs):
    """`nnUNetTrainerML1ACE` for 100 epochs."""


class nnUNetTrainerML1ACE_250epochs(nnUNetTrainerML1ACE, nnUNetTrainer_250epochs):
    """`nnUNetTrainerML1ACE` for 250 epochs."""


# All classes that this module defines under a trainer's name.
TRAINERS = tuple(
    value
    for name, value in list(globals().items())
    if name.startswith("nnUNetTrainer") and value.__module__ == __name__
)
__all__ = [trainer.__name__ for trainer in TRAINERS]
