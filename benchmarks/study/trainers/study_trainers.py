"""What nnU-Net's trainer look-up imports. Only imports belong here."""

from benchmarks.study.methods import *  # noqa: F403
