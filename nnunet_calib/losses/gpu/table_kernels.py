"""Triton kernel of the calibration error of bins: one launch in place of some fifty.

The idea: the sums of a batch are a table of a few thousand numbers. PyTorch evaluates the formula of the error in some
thirty operators and its derivative in twenty more, for each output of a network, and on a GPU starting an operator
takes longer than running it. Here one program computes both. It holds the table of an image, classes by bins, in
registers, and goes through the images twice: the derivatives depend on the number of images with a class that counts.

Invariants: float64, as in the formula; a bin or class that does not count adds exactly zero; NaN counts.

Oracle: `error_of_sums`, differentiated by autograd, in tests/losses/gpu.
"""

import triton
import triton.language as tl

ACE = tl.constexpr(0)
ECE = tl.constexpr(1)
MCE = tl.constexpr(2)
SKIP = tl.constexpr(0)
ZERO = tl.constexpr(1)
KEEP = tl.constexpr(2)


@triton.jit
def table_of(pointer, b, by_image, by_class, c, m, inside):
    """Return one image's table (classes, bins), padded with zeros."""
    return tl.load(pointer + b * by_image + c * by_class + m, inside, other=0.0)


@triton.jit
def count_classes(w, y, inside, least, ABSENT: tl.constexpr):
    """Return masks (classes, 1), 0 or 1, of the classes that are present and of those that are counted."""
    present = tl.where(tl.sum(y, 1, keep_dims=True) <= 0, 0, 1)
    if ABSENT == SKIP:
        counted = present
    else:
        counted = tl.max((inside & ~(w < least)).to(tl.int32), 1, keep_dims=True)
    some = tl.max(inside.to(tl.int32), 1, keep_dims=True)
    return present * some, counted * some


@triton.jit(do_not_specialize=["B", "C", "by_image", "by_class"])
def error_kernel(
    w_ptr,
    p_ptr,
    y_ptr,
    value_ptr,
    slope_ptr,
    B,
    C,
    by_image,
    by_class,
    least,
    rounding,
    smallest,
    M: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    REDUCTION: tl.constexpr,
    ABSENT: tl.constexpr,
):
    """Write the error (1) of bins with weights, sums of p and positives (B, C, M), and its derivatives (3, B, C, M)."""
    c = tl.arange(0, ROWS)[:, None]
    m = tl.arange(0, COLUMNS)[None, :]
    inside = (c < C) & (m < M)
    images = 0
    for b in range(B):
        w = table_of(w_ptr, b, by_image, by_class, c, m, inside)
        y = table_of(y_ptr, b, by_image, by_class, c, m, inside)
        _, counted = count_classes(w, y, inside, least, ABSENT)
        images += tl.max(counted)
    error = tl.zeros([1, 1], tl.float64)
    for b in range(B):
        w = table_of(w_ptr, b, by_image, by_class, c, m, inside)
        p = table_of(p_ptr, b, by_image, by_class, c, m, inside)
        y = table_of(y_ptr, b, by_image, by_class, c, m, inside)
        present, counted = count_classes(w, y, inside, least, ABSENT)
        filled = inside & ~(w < least)
        difference = tl.where(tl.abs(y - p) <= rounding * w, 0.0, y - p)
        divisor = tl.where(w < smallest, smallest, w)
        gap = tl.where(filled, tl.abs(difference) / divisor, 0.0)
        sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference))
        # the derivatives of a gap by the sum of p, negative, and by the weight
        by_p = tl.where(filled, sign / divisor, 0.0)
        by_w = tl.where(filled & ~(w < smallest), -gap / divisor, 0.0)
        if REDUCTION == ACE:
            share = 1.0 / tl.maximum(tl.sum(filled.to(tl.int32), 1, keep_dims=True), 1).to(tl.float64)
            errors = tl.sum(gap, 1, keep_dims=True) * share
            by_p *= share
            by_w *= share
        elif REDUCTION == ECE:
            of_all = tl.sum(w, 1, keep_dims=True)
            share = 1.0 / tl.where(of_all < 1, 1.0, of_all)
            errors = tl.sum(gap * w, 1, keep_dims=True) * share
            by_p *= w * share
            by_w = (by_w * w + gap - tl.where(of_all < 1, 0.0, errors)) * share
        else:
            errors = tl.max(tl.where(gap == gap, gap, float("inf")), 1, keep_dims=True)
            worst = inside & (gap == errors)
            share = 1.0 / tl.maximum(tl.sum(worst.to(tl.int32), 1, keep_dims=True), 1).to(tl.float64)
            errors = tl.where(errors == float("inf"), float("nan"), errors)
            by_p = tl.where(worst, by_p * share, 0.0)
            by_w = tl.where(worst, by_w * share, 0.0)
        if ABSENT != KEEP:  # an absent region may still have a NaN
            taken = (present > 0) | (errors != errors)
            errors = tl.where(taken, errors, 0.0)
            by_p = tl.where(taken, by_p, 0.0)
            by_w = tl.where(taken, by_w, 0.0)
        share = 1.0 / (tl.maximum(tl.sum(counted), 1) * tl.maximum(images, 1)).to(tl.float64)
        error += tl.sum(tl.sum(errors, 1, keep_dims=True), 0, keep_dims=True) * share
        at = slope_ptr + (b * C + c) * M + m
        tl.store(at, by_w * share, inside)
        tl.store(at + B * C * M, -by_p * share, inside)
        tl.store(at + 2 * B * C * M, by_p * share, inside)
    tl.store(value_ptr + tl.zeros([1, 1], tl.int32), error)
