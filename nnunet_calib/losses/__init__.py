"""Calibration losses for segmentation. They need PyTorch only and know nothing of nnU-Net."""

from nnunet_calib.losses.backends import use
from nnunet_calib.losses.mdca import MDCALoss, mdca_loss
from nnunet_calib.losses.ml1_ace import ML1ACELoss, ml1_ace_loss
from nnunet_calib.losses.nacl import NACLLoss, nacl_loss
from nnunet_calib.losses.pointwise.dice_plus_plus import DicePlusPlusLoss, dice_plus_plus_loss
from nnunet_calib.losses.pointwise.entropy import EntropyPenalty, entropy_penalty
from nnunet_calib.losses.pointwise.focal import FocalLoss, focal_loss
from nnunet_calib.losses.pointwise.label_smoothing import LabelSmoothingLoss, label_smoothing_loss
from nnunet_calib.losses.pointwise.margin import MarginLabelSmoothingLoss, margin_label_smoothing_loss
from nnunet_calib.losses.svls import SVLSLoss, svls_loss

__all__ = [
    "DicePlusPlusLoss",
    "EntropyPenalty",
    "FocalLoss",
    "LabelSmoothingLoss",
    "MDCALoss",
    "ML1ACELoss",
    "MarginLabelSmoothingLoss",
    "NACLLoss",
    "SVLSLoss",
    "dice_plus_plus_loss",
    "entropy_penalty",
    "focal_loss",
    "label_smoothing_loss",
    "margin_label_smoothing_loss",
    "mdca_loss",
    "ml1_ace_loss",
    "nacl_loss",
    "svls_loss",
    "use",
]
