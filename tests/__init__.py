"""Tests of nnunet_calib."""
