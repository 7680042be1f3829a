"""The module that nnU-Net's trainer look-up imports. It must hold nothing but imports.

nnU-Net imports every module of this folder by its bare name and drops it after the look-up. A class defined here could
not be pickled, would not reach spawned workers, and would be another class at the next look-up. The classes live in the
installed package.
"""

from nnunet_calib.trainers import *  # noqa: F403
