"""Losses that are sums of what each voxel has by itself: comparators of the calibration losses.

Each module holds a formula: terms of a voxel's logits and label, and their derivative. `sums` computes them with any
formula, at once or a part of the voxels at a time, which costs one more read of the logits and no maps.
"""
