"""Triton kernels of the losses that depend on the labels around each voxel: NACL, and the term that SVLS adds to CE.

The idea: the priors are never stored. A program reads the labels of a block of voxels and of their neighbours once. In
nearly all blocks each voxel's neighbours have its own label: then the prior is the one-hot label, and no neighbour is
read again. In a block at a border, the prior is computed for each class in turn. The gradient of the other losses,
computed from the same logits, comes in, and this loss's gradient is added in place.

Invariants: one thread owns each element, so that nothing is added atomically; the volume's border is replicated;
ignored voxels do not count as neighbours and get no gradient, and their logits are not read.

Oracle: `nacl_loss` and `svls_loss` by their formulas, in tests/losses/gpu.
"""

import triton
import triton.language as tl

from nnunet_calib.losses.gpu.voxel_kernels import label_at

# The summand over voxels and classes, where tau is the prior.
L1 = tl.constexpr(0)  # |z - tau|
L2 = tl.constexpr(1)  # (z - tau)^2
SMOOTHING = tl.constexpr(2)  # (y - tau) z

# The kind of prior.
WEIGHTED = tl.constexpr(0)
MAX = tl.constexpr(1)
MIN = tl.constexpr(2)
MEDIAN = tl.constexpr(3)
MODE = tl.constexpr(4)

_SIZES = ["C", "D", "H", "W", "ignore", "falloff", "centre"]  # one kernel for all; N makes two, by 16 or not


@triton.jit
def neighbour_of(x, y, z, j, W, H, D, KW: tl.constexpr, KH: tl.constexpr, KD: tl.constexpr):
    """Return the flat index of neighbour j of voxels, the last axis (W, x) fastest, the border replicated."""
    x += j % KW - KW // 2
    y += j // KW % KH - KH // 2
    z += j // (KW * KH) - KD // 2
    x = tl.minimum(tl.maximum(x, 0), W - 1)
    y = tl.minimum(tl.maximum(y, 0), H - 1)
    z = tl.minimum(tl.maximum(z, 0), D - 1)
    return (z * H + y) * W + x


@triton.jit
def weight_of(j, falloff, centre, KW: tl.constexpr, KH: tl.constexpr, KD: tl.constexpr):
    """Return the Gaussian weight of neighbour j, or `centre` for the voxel itself."""
    x = j % KW - KW // 2
    y = j // KW % KH - KH // 2
    z = j // (KW * KH) - KD // 2
    distance = (x * x + y * y + z * z).to(tl.float32)
    return tl.where(distance == 0, centre, tl.exp(-falloff * distance))


@triton.jit
def marked_label(y_ptr, at, inside, ignore, HAS_IGNORE: tl.constexpr):
    """Return labels, with -1, which is no class, for ignored voxels."""
    y = label_at(y_ptr, at, inside)
    if HAS_IGNORE:
        y = tl.where(y == ignore, -1, y)
    return y


@triton.jit
def value_of(z, tau, own, KIND: tl.constexpr):
    """Return the summand."""
    if KIND == L1:
        return tl.abs(z - tau)
    elif KIND == L2:
        return (z - tau) * (z - tau)
    else:
        return tl.where(own == tau, 0.0, (own - tau) * z)


@triton.jit
def slope_of(z, tau, own, KIND: tl.constexpr):
    """Return the summand's derivative by z."""
    if KIND == L1:
        return tl.where(z > tau, 1.0, tl.where(z < tau, -1.0, z - tau))
    elif KIND == L2:
        return 2.0 * (z - tau)
    else:
        return own - tau


@triton.jit(do_not_specialize=_SIZES)
def labels_kernel(
    z_ptr,
    y_ptr,
    slope_ptr,
    out_ptr,
    N,
    C,
    D,
    H,
    W,
    ignore,
    falloff,
    centre,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    KIND: tl.constexpr,
    PRIOR: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sum, the number of voxels that count and of those without a head, of each block of labels (B, N).

    out is (B, blocks, 3). With BACKWARD, add slope (1) times the gradient to out (B, C, N) instead.
    """
    K: tl.constexpr = KD * KH * KW
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    x = at % W
    y = at // W % H
    z = at // (W * H)
    y_at = y_ptr + b * N
    label = marked_label(y_at, at, inside, ignore, HAS_IGNORE)
    valid = inside
    if HAS_IGNORE:
        valid = valid & (label_at(y_at, at, inside) != ignore)
    mixed = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    largest = tl.full([BLOCK], -1, tl.int32)
    smallest = tl.full([BLOCK], 2147483647, tl.int32)
    for j in range(K):
        there = marked_label(y_at, neighbour_of(x, y, z, j, W, H, D, KW, KH, KD), inside, ignore, HAS_IGNORE)
        mixed |= (there != label).to(tl.int32)
        counts = there != -1 if HAS_IGNORE else inside
        mass += tl.where(counts, weight_of(j, falloff, centre, KW, KH, KD), 0.0)
        largest = tl.maximum(largest, there)
        smallest = tl.minimum(smallest, tl.where(counts, there, 2147483647))
    any_mixed = tl.max(tl.where(valid, mixed, 0), 0) > 0
    chosen = label
    if PRIOR == MAX:
        chosen = largest
    elif PRIOR == MIN:
        chosen = smallest
    elif PRIOR == MEDIAN or PRIOR == MODE:
        if any_mixed:
            chosen = tl.full([BLOCK], -1, tl.int32)
            most = tl.zeros([BLOCK], tl.float32)
            so_far = tl.zeros([BLOCK], tl.float32)
            for c in range(C):
                number = tl.zeros([BLOCK], tl.float32)
                for j in range(K):
                    there = neighbour_of(x, y, z, j, W, H, D, KW, KH, KD)
                    number += (marked_label(y_at, there, inside, ignore, HAS_IGNORE) == c).to(tl.float32)
                so_far += number
                if PRIOR == MEDIAN:
                    chosen = tl.where((chosen < 0) & (2 * so_far >= mass), c, chosen)
                else:
                    chosen = tl.where(number > most, c, chosen)
                    most = tl.maximum(most, number)
    total = tl.zeros([BLOCK], tl.float32)
    if any_mixed | (KIND != SMOOTHING):
        slope = tl.load(slope_ptr).to(tl.float32) if BACKWARD else 0.0
        z_at = z_ptr + b * C * N + at
        g_at = out_ptr + b * C * N + at
        for c in range(C):
            own = (label == c).to(tl.float32)
            tau = (chosen == c).to(tl.float32)
            if PRIOR == WEIGHTED:
                if any_mixed:
                    tau = tl.zeros([BLOCK], tl.float32)
                    for j in range(K):
                        there = neighbour_of(x, y, z, j, W, H, D, KW, KH, KD)
                        same = marked_label(y_at, there, inside, ignore, HAS_IGNORE) == c
                        tau += tl.where(same, weight_of(j, falloff, centre, KW, KH, KD), 0.0)
                    tau = tl.div_rn(tau, tl.maximum(mass, 1e-37))
            logits = tl.load(z_at, valid, other=0.0).to(tl.float32)
            if BACKWARD:
                g = tl.load(g_at, valid, other=0.0).to(tl.float32) + slope * slope_of(logits, tau, own, KIND)
                tl.store(g_at, g.to(out_ptr.dtype.element_ty), valid)
            else:
                total += tl.where(valid, value_of(logits, tau, own, KIND), 0.0)
            z_at += N
            g_at += N
    if not BACKWARD:
        out = out_ptr + (b * tl.num_programs(0) + tl.program_id(0)) * 3
        tl.store(out, tl.sum(total, 0))
        tl.store(out + 1, tl.sum(valid.to(tl.float32), 0))
        tl.store(out + 2, tl.sum((valid & ((label < 0) | (label >= C))).to(tl.float32), 0))


@triton.jit(do_not_specialize=_SIZES)
def regions_kernel(
    z_ptr,
    y_ptr,
    slope_ptr,
    out_ptr,
    N,
    C,
    D,
    H,
    W,
    falloff,
    centre,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    KIND: tl.constexpr,
    PRIOR: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sum, the number of voxels that count and 0, of each block of each of the maps (B, C [+ 1], N).

    out is (B, blocks, C, 3); with BACKWARD as in `labels_kernel`. A head's logit is held to 2 tau - 1; smoothing keeps
    tau.
    """
    K: tl.constexpr = KD * KH * KW
    c = tl.program_id(0) % C
    block = tl.program_id(0) // C
    b = tl.program_id(1).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    x = at % W
    y = at // W % H
    z = at // (W * H)
    y_at = y_ptr + (b * (C + HAS_IGNORE) + c) * N
    ignored_at = y_ptr + (b * (C + HAS_IGNORE) + C) * N
    own = (tl.load(y_at + at, inside, other=0) != 0).to(tl.float32)
    valid = inside
    if HAS_IGNORE:
        valid = valid & (tl.load(ignored_at + at, inside, other=1) == 0)
    mass = tl.zeros([BLOCK], tl.float32)
    tau = tl.zeros([BLOCK], tl.float32)
    for j in range(K):
        there = neighbour_of(x, y, z, j, W, H, D, KW, KH, KD)
        weight = weight_of(j, falloff, centre, KW, KH, KD)
        counts = inside
        if HAS_IGNORE:
            counts = counts & (tl.load(ignored_at + there, inside, other=1) == 0)
        mass += tl.where(counts, weight, 0.0)
        tau += tl.where(counts & (tl.load(y_at + there, inside, other=0) != 0), weight, 0.0)
    if PRIOR == WEIGHTED:
        tau = tl.div_rn(tau, tl.maximum(mass, 1e-37))
    elif PRIOR == MAX:
        tau = (tau > 0).to(tl.float32)
    elif PRIOR == MIN:
        tau = (tau == mass).to(tl.float32)
    else:  # the median of two labels is the more frequent one too, the lower one if they are equally frequent
        tau = (2 * tau > mass).to(tl.float32)
    if KIND != SMOOTHING:
        tau = 2.0 * tau - 1.0
    z_at = z_ptr + (b * C + c) * N + at
    logits = tl.load(z_at, valid, other=0.0).to(tl.float32)
    if BACKWARD:
        g_at = out_ptr + (b * C + c) * N + at
        g = tl.load(g_at, valid, other=0.0).to(tl.float32)
        g += tl.load(slope_ptr).to(tl.float32) * slope_of(logits, tau, own, KIND)
        tl.store(g_at, g.to(out_ptr.dtype.element_ty), valid)
    else:
        out = out_ptr + (b * tl.num_programs(0) + tl.program_id(0)) * 3
        tl.store(out, tl.sum(tl.where(valid, value_of(logits, tau, own, KIND), 0.0), 0))
        tl.store(out + 1, tl.sum(valid.to(tl.float32), 0))
        tl.store(out + 2, 0.0)
