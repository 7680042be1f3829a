"""Calibration losses for segmentation. They need PyTorch only and know nothing of nnU-Net."""

from nnunet_calib.losses.backends import use
from nnunet_calib.losses.ml1_ace import ML1ACELoss, ml1_ace_loss
from nnunet_calib.losses.nacl import NACLLoss, nacl_loss
from nnunet_calib.losses.svls import SVLSLoss, svls_loss

__all__ = ["ML1ACELoss", "NACLLoss", "SVLSLoss", "ml1_ace_loss", "nacl_loss", "svls_loss", "use"]
