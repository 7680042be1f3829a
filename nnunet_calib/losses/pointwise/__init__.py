"""Losses whose terms depend on one voxel each: most comparators of the calibration losses.

Each module has a formula: the terms as a function of a voxel's logits and label, and their derivative. `sums` adds up
the terms of any formula, at once or a part of the voxels at a time, which costs one more read of the logits.
"""
