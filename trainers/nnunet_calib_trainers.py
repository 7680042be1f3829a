"""What nnU-Net's trainer look-up imports. Only imports belong here.

nnU-Net imports every module of this folder by its bare name and forgets it again after the look-up. A class defined
here could not be pickled, would not reach spawned workers and would be another class at the next look-up; the real
classes live in the installed package.
"""

from nnunet_calib.trainers import *  # noqa: F403
