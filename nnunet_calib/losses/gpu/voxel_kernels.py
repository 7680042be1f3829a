"""Triton kernels of the sums over voxels for Dice, cross-entropy and mL1-ACE, and of their gradient.

The idea: these losses depend on the probabilities only through a few sums for each image and class. `normaliser_kernel`
stores the normaliser of each voxel's softmax. `sums_kernel` computes each probability, adds it to the sums in registers
and writes the sums of each part of the volume. PyTorch adds the parts in float64 and evaluates the formulas.
`gradient_kernel` computes the probabilities again and looks up, by class and bin, the derivative by each sum.

Invariants: no atomic addition, so that results are the same from run to run; no tensor of the logits' size but the
gradient; float32 throughout, each lane adding at most MAX_STEPS values before float64 takes over; a NaN is put into the
first bin, so that no sum hides it; the logits of ignored voxels are not read.

Oracle: `ml1_ace_loss` by its formula and nnU-Net's own Dice and cross-entropy, in tests/losses/gpu.
"""

import triton
import triton.language as tl

# Columns of the first row of `sums_kernel`'s output.
NLL = tl.constexpr(0)
TOTAL = tl.constexpr(1)
OF_TRUE = tl.constexpr(2)
NUMBER = tl.constexpr(3)
VOXELS = tl.constexpr(4)
MAX_STEPS = 32

_SIZES = ["C", "chunks", "steps", "ignore"]  # one compiled kernel for all values; N makes two, divisible by 16 or not


@triton.jit
def label_at(y_ptr, offsets, mask):
    """Return labels as int32."""
    return tl.load(y_ptr + offsets, mask, other=0).to(tl.int32)


@triton.jit
def sigmoid(z):
    """Return 1 / (1 + exp(-z)) without overflow."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def bin_of(p, M: tl.constexpr):
    """Return the hard bin of p, as float32: floor of the exact p M, which rounding may lift to the next edge."""
    m = tl.floor(p * M)
    m = tl.where(tl.fma(p, M * 1.0, -m) < 0, m - 1, m)
    return tl.where(p == p, tl.minimum(tl.maximum(m, 0.0), M - 1.0), 0.0)


@triton.jit
def position_of(p, M: tl.constexpr):
    """Return where p lies between the centres of bins: m at centre m, 0 and M - 1 beyond the outer centres."""
    m = tl.fma(p, M * 1.0, -0.5)
    return tl.where(p == p, tl.minimum(tl.maximum(m, 0.0), M - 1.0), 0.0)


@triton.jit(do_not_specialize=_SIZES)
def normaliser_kernel(z_ptr, top_ptr, rest_ptr, N, C, BLOCK: tl.constexpr):
    """Write the largest logit, in the logits' type, and log sum exp of the logits minus it, in float32, both (B, N).

    Added up in one number they would lose 1e-7 |z| of each probability's exponent: at p = 1 - 1e-4, 1 % of 1 - p.
    """
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    top = tl.full([BLOCK], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    z_at = z_ptr + b * C * N + at
    for _ in range(C):
        z = tl.load(z_at, inside, other=0.0).to(tl.float32)
        larger = tl.maximum(top, z)
        total = total * tl.exp(top - larger) + tl.exp(z - larger)
        top = larger
        z_at += N
    tl.store(top_ptr + b * N + at, top.to(top_ptr.dtype.element_ty), inside)
    tl.store(rest_ptr + b * N + at, tl.log(total), inside)


@triton.jit(do_not_specialize=_SIZES)
def sums_kernel(
    z_ptr,
    y_ptr,
    top_ptr,
    rest_ptr,
    out_ptr,
    N,
    C,
    chunks,
    steps,
    ignore,
    M: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    REGIONS: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    SOFT: tl.constexpr,
):
    """Write the sums of each chunk of steps * BLOCK voxels, (B, chunks, C, 4 or for M = 0 1, COLUMNS).

    Rows: the sums named NLL, TOTAL, ...; then of each bin the weight, the sum of p, and the weight of voxels with
    y = c. The first and the last bin, which hold nearly all voxels of a trained network, are summed by lane; the bins
    in between only in blocks with a voxel there.
    """
    c = tl.program_id(0) % C  # the classes of a chunk run side by side: labels and softmax come from the cache
    chunk = tl.program_id(0) // C
    b = tl.program_id(1).to(tl.int64)
    CHANNELS = C + HAS_IGNORE if REGIONS else 1
    bins = tl.arange(0, COLUMNS)
    nll = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    of_true = tl.zeros([BLOCK], tl.float32)
    number = tl.zeros([BLOCK], tl.float32)
    voxels = tl.zeros([BLOCK], tl.float32)
    first_n = tl.zeros([BLOCK], tl.float32)
    first_p = tl.zeros([BLOCK], tl.float32)
    first_y = tl.zeros([BLOCK], tl.float32)
    last_n = tl.zeros([BLOCK], tl.float32)
    last_p = tl.zeros([BLOCK], tl.float32)
    last_y = tl.zeros([BLOCK], tl.float32)
    bin_n = tl.zeros([COLUMNS], tl.float32)
    bin_p = tl.zeros([COLUMNS], tl.float32)
    bin_y = tl.zeros([COLUMNS], tl.float32)
    for step in range(steps):
        at = (chunk * steps + step) * BLOCK + tl.arange(0, BLOCK)
        valid = at < N
        if REGIONS:
            own = tl.load(y_ptr + (b * CHANNELS + c) * N + at, valid, other=0) != 0
            if HAS_IGNORE:
                valid = valid & (tl.load(y_ptr + (b * CHANNELS + C) * N + at, valid, other=1) == 0)
        else:
            y = label_at(y_ptr, b * N + at, valid)
            own = y == c
            if HAS_IGNORE:
                valid = valid & (y != ignore)
        own = own & valid
        z = tl.load(z_ptr + (b * C + c) * N + at, valid, other=0.0).to(tl.float32)
        if REGIONS:
            p = sigmoid(z)
            loss = tl.maximum(z, 0.0) - tl.where(own, z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))
            nll += tl.where(valid, tl.where(z == z, loss, z), 0.0)
        else:
            rest = tl.load(rest_ptr + b * N + at, valid, other=0.0)
            z -= tl.load(top_ptr + b * N + at, valid, other=0.0).to(tl.float32)
            p = tl.exp(z - rest)
            nll += tl.where(own, rest - z, 0.0)
        total += tl.where(valid, p, 0.0)
        of_true += tl.where(own, p, 0.0)
        number += own.to(tl.float32)
        voxels += valid.to(tl.float32)
        if M > 0:
            m = position_of(p, M) if SOFT else bin_of(p, M)
            first = valid & (m <= 0)
            last = valid & (m >= M - 1) & (M > 1)
            first_n += first.to(tl.float32)
            first_p += tl.where(first, p, 0.0)
            first_y += (first & own).to(tl.float32)
            last_n += last.to(tl.float32)
            last_p += tl.where(last, p, 0.0)
            last_y += (last & own).to(tl.float32)
            between = valid & (m > 0) & (m < M - 1)
            if tl.max(between.to(tl.int32), 0) > 0:
                for i in range(0 if SOFT else 1, M if SOFT else M - 1):
                    if SOFT:  # a tent of height 1 at centre i, 0 at its neighbours
                        share = tl.maximum(1.0 - tl.abs(tl.fma(p, M * 1.0, -(i + 0.5))), 0.0)
                    else:
                        share = (m == i).to(tl.float32)
                    share = tl.where(between, share, 0.0)
                    bin_n += tl.where(bins == i, tl.sum(share, 0), 0.0)
                    bin_p += tl.where(bins == i, tl.sum(tl.where(between, share * p, 0.0), 0), 0.0)
                    bin_y += tl.where(bins == i, tl.sum(tl.where(own, share, 0.0), 0), 0.0)
    ROWS: tl.constexpr = 4 if M > 0 else 1
    out = out_ptr + ((b * chunks + chunk) * C + c) * (ROWS * COLUMNS) + bins
    row = tl.where(bins == NLL, tl.sum(nll, 0), 0.0)
    row += tl.where(bins == TOTAL, tl.sum(total, 0), 0.0)
    row += tl.where(bins == OF_TRUE, tl.sum(of_true, 0), 0.0)
    row += tl.where(bins == NUMBER, tl.sum(number, 0), 0.0)
    row += tl.where(bins == VOXELS, tl.sum(voxels, 0), 0.0)
    tl.store(out, row)
    if M > 0:
        bin_n += tl.where(bins == 0, tl.sum(first_n, 0), 0.0) + tl.where(bins == M - 1, tl.sum(last_n, 0), 0.0)
        bin_p += tl.where(bins == 0, tl.sum(first_p, 0), 0.0) + tl.where(bins == M - 1, tl.sum(last_p, 0), 0.0)
        bin_y += tl.where(bins == 0, tl.sum(first_y, 0), 0.0) + tl.where(bins == M - 1, tl.sum(last_y, 0), 0.0)
        tl.store(out + COLUMNS, bin_n)
        tl.store(out + 2 * COLUMNS, bin_p)
        tl.store(out + 3 * COLUMNS, bin_y)


@triton.jit
def slope(p, own, n_ptr, p_ptr, y_ptr, row, M: tl.constexpr, SOFT: tl.constexpr):
    """Return the derivative by p through its bins, given the derivatives by the bins' sums, each (B C, M)."""
    if SOFT:
        x = tl.fma(p, M * 1.0, -0.5)
        low = tl.minimum(position_of(p, M).to(tl.int32), max(M - 2, 0))
        share = tl.minimum(tl.maximum(tl.fma(p, M * 1.0, -(low.to(tl.float32) + 0.5)), 0.0), 1.0)
        low += row * M
        high = low + min(M - 1, 1)
        low_p = tl.load(p_ptr + low).to(tl.float32)
        high_p = tl.load(p_ptr + high).to(tl.float32)
        tilt = (tl.load(n_ptr + high) - tl.load(n_ptr + low)).to(tl.float32) + p * (high_p - low_p)
        tilt += tl.where(own, (tl.load(y_ptr + high) - tl.load(y_ptr + low)).to(tl.float32), 0.0)
        return tl.where((x >= 0) & (x <= M - 1), tilt * M, 0.0) + (1.0 - share) * low_p + share * high_p
    else:
        return tl.load(p_ptr + row * M + bin_of(p, M).to(tl.int32)).to(tl.float32)


@triton.jit
def slope_of_sums(p, own, total_ptr, true_ptr, n_ptr, p_ptr, y_ptr, row, M: tl.constexpr, SOFT: tl.constexpr):
    """Return the derivative by p through all sums but the cross-entropy's."""
    d = tl.load(total_ptr + row).to(tl.float32) + tl.where(own, tl.load(true_ptr + row).to(tl.float32), 0.0)
    if M > 0:
        d += slope(p, own, n_ptr, p_ptr, y_ptr, row, M, SOFT)
    return d


@triton.jit(do_not_specialize=_SIZES)
def gradient_kernel(
    z_ptr,
    y_ptr,
    top_ptr,
    rest_ptr,
    nll_ptr,
    total_ptr,
    true_ptr,
    n_ptr,
    p_ptr,
    s_ptr,
    g_ptr,
    N,
    C,
    ignore,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    REGIONS: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    SOFT: tl.constexpr,
):
    """Write the gradient (B, C, N) from the derivatives by the sums, in float64.

    They are by nll (), by the totals and the sums of true classes (B, C), and by the bins' weights, sums of p and
    positives (B, C, M); hard bins need only the second of the last three.
    """
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    valid = inside
    d_nll = tl.load(nll_ptr).to(tl.float32)
    z_at = z_ptr + b * C * N + at
    g_at = g_ptr + b * C * N + at
    if REGIONS:
        y_at = y_ptr + b * (C + HAS_IGNORE) * N + at
        if HAS_IGNORE:
            valid = valid & (tl.load(y_at + C.to(tl.int64) * N, valid, other=1) == 0)
        for c in range(C):
            own = tl.load(y_at, valid, other=0) != 0
            p = sigmoid(tl.load(z_at, valid, other=0.0).to(tl.float32))
            d = slope_of_sums(p, own, total_ptr, true_ptr, n_ptr, p_ptr, s_ptr, b * C + c, M, SOFT)
            g = d * p * (1.0 - p) + d_nll * (p - own.to(tl.float32))
            tl.store(g_at, tl.where(valid, g, 0.0).to(g_ptr.dtype.element_ty), inside)
            y_at += N
            z_at += N
            g_at += N
    else:
        y = label_at(y_ptr, b * N + at, valid)
        if HAS_IGNORE:
            valid = valid & (y != ignore)
        rest = tl.load(rest_ptr + b * N + at, valid, other=0.0)
        top = tl.load(top_ptr + b * N + at, valid, other=0.0).to(tl.float32)
        mean = tl.zeros([BLOCK], tl.float32)
        for c in range(C):
            p = tl.exp(tl.load(z_at, valid, other=0.0).to(tl.float32) - top - rest)
            mean += p * slope_of_sums(p, y == c, total_ptr, true_ptr, n_ptr, p_ptr, s_ptr, b * C + c, M, SOFT)
            z_at += N
        z_at = z_ptr + b * C * N + at
        for c in range(C):  # the second reading comes from the cache for the most part
            p = tl.exp(tl.load(z_at, valid, other=0.0).to(tl.float32) - top - rest)
            d = slope_of_sums(p, y == c, total_ptr, true_ptr, n_ptr, p_ptr, s_ptr, b * C + c, M, SOFT)
            g = p * (d - mean) + d_nll * (p - (y == c).to(tl.float32))
            tl.store(g_at, tl.where(valid, g, 0.0).to(g_ptr.dtype.element_ty), inside)
            z_at += N
            g_at += N
