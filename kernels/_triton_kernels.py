"""The Triton kernels. Pointers and sizes only: no torch, no policy (see `_triton.py`).

Importing this imports Triton, which fixes at that moment whether kernels are compiled
or interpreted (TRITON_INTERPRET=1), so it happens at the first call.

Memory is walked in physical order. An image tensor is [rows, plane]: one row per
(sample, channel) for NCHW, where a program has one channel, and one row per sample for
channels_last, where the channel is the offset modulo C. Row bases are 64-bit, offsets
in a row 32-bit. Sums are float64, tile by tile and then over tiles, in a fixed order.
"""
# Triton infers the types of kernels from their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: allow-untyped-decorators

import triton
import triton.language as tl

TINY = tl.constexpr(1e-30)  # as in reference.py
LARGEST = tl.constexpr(3.4028234663852886e38)
HIGH_255TH = tl.constexpr(2.0**-8 + 2.0**-16)
LOW_255TH = tl.constexpr(1 / 255 - (2.0**-8 + 2.0**-16))
UNIT = tl.constexpr(2.0**-24)
TURN = tl.constexpr(6.283185307179586)


@triton.jit
def _locate(plane, tiles, C: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr):
    """This program's (sample, row, row base, first offset in the row)."""
    tile = tl.program_id(0)
    row = tile // tiles
    sample = row if LAST else row // C
    return sample, row, row.to(tl.int64) * plane, (tile % tiles) * WIDTH


@triton.jit
def _channel(row, offsets, C: tl.constexpr, LAST: tl.constexpr):
    return offsets % C if LAST else row % C


@triton.jit
def _constant(table, c, INVERT: tl.constexpr):
    value = tl.load(table + c).to(tl.float32)
    return 1.0 / value if INVERT else value


@triton.jit
def _per_channel(
    table, channel, C: tl.constexpr, LAST: tl.constexpr, INVERT: tl.constexpr
):
    """The table's entry (or one over it) for each element's channel."""
    if LAST and C <= 4:
        # Selecting among scalars: a gather would issue a load per element.
        value = tl.where(channel == 0, _constant(table, 0, INVERT), 0.0)
        for c in tl.static_range(1, C):
            value = tl.where(channel == c, _constant(table, c, INVERT), value)
        return value
    else:
        return _constant(table, channel, INVERT)


@triton.jit
def _pixels(values):
    """Images in [0, 1]; u / 255 correctly rounded, so that eps=0 gives x0 exactly.

    Triton's `/` is approximate and `div_rn` calls a subroutine that spilled. The first
    product below is exact (8 + 9 bits), so the sum rounds once, fused or not.
    """
    if values.dtype == tl.uint8:
        u = values.to(tl.float32)
        return u * HIGH_255TH + u * LOW_255TH
    else:
        return values


@triton.jit
def _clip(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def _ascent(grad, inv):
    """The gradient in pixel units, non-finite elements zeroed, and their number."""
    gx = grad.to(tl.float32) * inv
    finite = tl.abs(gx) <= LARGEST
    return tl.where(finite, gx, 0.0), tl.sum(tl.where(finite, 0, 1))


@triton.jit
def _count(counter, bad):
    if counter is not None:
        tl.atomic_add(counter, bad.to(tl.int64), mask=bad > 0)


@triton.jit
def _store_z(
    z, at, x, mask, mean, inv, channel, C: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    if z is not None:
        scaled = (x - _per_channel(mean, channel, C, LAST, False)) * inv
        tl.store(z + at, scaled.to(z.dtype.element_ty), mask)


@triton.jit
def step_linf(
    x, x0, grad, z, step, eps, mean, std, counter, plane, tiles,
    C: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One linf step in place: one pass."""
    sample, row, base, first = _locate(plane, tiles, C, LAST, BLOCK)
    offsets = first + tl.arange(0, BLOCK)
    mask = offsets < plane
    at = base + offsets
    old = tl.load(x + at, mask, other=0.0)
    clean = _pixels(tl.load(x0 + at, mask, other=0))
    raw = tl.load(grad + at, mask, other=0.0)
    a = tl.load(step + sample).to(tl.float32)
    e = tl.load(eps + sample).to(tl.float32)
    channel = _channel(row, offsets, C, LAST)
    inv = _per_channel(std, channel, C, LAST, True)
    gx, bad = _ascent(raw, inv)
    move = tl.where(gx > 0, a, tl.where(gx < 0, -a, 0.0))
    new = _clip(clean + _clip(old + move - clean, -e, e), 0.0, 1.0)
    tl.store(x + at, new, mask)
    _store_z(z, at, new, mask, mean, inv, channel, C, LAST)
    _count(counter, bad)


@triton.jit
def sums_l2(
    x, x0, grad, std, counter, parts, plane, tiles, total,
    C: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First pass of L2: parts[3, total] gets |gx|^2, <d, gx>, |d|^2 of each tile."""
    _, row, base, first = _locate(plane, tiles, C, LAST, WIDTH)
    gg = tl.zeros((BLOCK,), tl.float64)
    dg = tl.zeros((BLOCK,), tl.float64)
    dd = tl.zeros((BLOCK,), tl.float64)
    bad = tl.program_id(0) * 0
    for begin in range(0, WIDTH, BLOCK):
        offsets = first + begin + tl.arange(0, BLOCK)
        mask = offsets < plane
        at = base + offsets
        old = tl.load(x + at, mask, other=0.0)
        clean = _pixels(tl.load(x0 + at, mask, other=0))
        raw = tl.load(grad + at, mask, other=0.0)
        inv = _per_channel(std, _channel(row, offsets, C, LAST), C, LAST, True)
        gx, more = _ascent(raw, inv)
        g, d = gx.to(tl.float64), (old - clean).to(tl.float64)
        gg, dg, dd, bad = gg + g * g, dg + d * g, dd + d * d, bad + more
    part = parts + tl.program_id(0)
    tl.store(part, tl.sum(gg))
    tl.store(part + total, tl.sum(dg))
    tl.store(part + 2 * total, tl.sum(dd))
    _count(counter, bad)


@triton.jit
def _sample_sum(parts, sample, count, PARTS: tl.constexpr):
    k = tl.arange(0, PARTS)
    return tl.sum(tl.load(parts + sample * count + k, k < count, other=0.0))


@triton.jit
def move_l2(
    x, x0, grad, z, step, eps, mean, std, parts, count, plane, tiles, total,
    C: tl.constexpr, LAST: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Second pass of L2: add up the sample's `count` parts, then move."""
    sample, row, base, first = _locate(plane, tiles, C, LAST, BLOCK)
    offsets = first + tl.arange(0, BLOCK)
    mask = offsets < plane
    at = base + offsets
    # The image loads come first: the sums below hide behind them.
    old = tl.load(x + at, mask, other=0.0)
    clean = _pixels(tl.load(x0 + at, mask, other=0))
    raw = tl.load(grad + at, mask, other=0.0)
    a = tl.load(step + sample).to(tl.float64)
    e = tl.load(eps + sample).to(tl.float64)
    gg = _sample_sum(parts, sample, count, PARTS)
    dg = _sample_sum(parts + total, sample, count, PARTS)
    dd = _sample_sum(parts + 2 * total, sample, count, PARTS)
    scale = a / (tl.sqrt(gg) + TINY)
    length = tl.sqrt(tl.maximum(dd + 2 * scale * dg + scale * scale * gg, 0.0))
    shrink = tl.where(length > e, e / length, 1.0).to(tl.float32)
    channel = _channel(row, offsets, C, LAST)
    inv = _per_channel(std, channel, C, LAST, True)
    gx, _ = _ascent(raw, inv)
    moved = ((old - clean) + scale.to(tl.float32) * gx) * shrink
    new = _clip(clean + moved, 0.0, 1.0)
    tl.store(x + at, new, mask)
    _store_z(z, at, new, mask, mean, inv, channel, C, LAST)


@triton.jit
def normalize(
    x, z, mean, std, plane, tiles,
    C: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`(x - mean) / std`."""
    _, row, base, first = _locate(plane, tiles, C, LAST, BLOCK)
    offsets = first + tl.arange(0, BLOCK)
    mask = offsets < plane
    values = _pixels(tl.load(x + base + offsets, mask, other=0))
    channel = _channel(row, offsets, C, LAST)
    inv = _per_channel(std, channel, C, LAST, True)
    _store_z(z, base + offsets, values, mask, mean, inv, channel, C, LAST)


@triton.jit
def _uniform(word):
    return (word >> 8).to(tl.float32) * UNIT


@triton.jit
def _pair(w0, w1, L2: tl.constexpr):
    """Two numbers from two words: uniform in [-1, 1), or normal (Box-Muller)."""
    if L2:
        radius = tl.sqrt_rn(-2.0 * tl.log(_uniform(w0) + UNIT))
        angle = TURN * _uniform(w1)
        return radius * tl.cos(angle), radius * tl.sin(angle)
    else:
        return 2.0 * _uniform(w0) - 1.0, 2.0 * _uniform(w1) - 1.0


@triton.jit
def _place(
    out, x0, base, pixel, pixels, value, radius,
    CHANNEL: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, L2: tl.constexpr,
):  # fmt: skip
    """Write one channel: the linf start, or the normal number, to be scaled later.

    Returns its squares.
    """
    inside = (pixel < pixels) & (CHANNEL < C)
    at = base + (pixel * C + CHANNEL if LAST else CHANNEL * pixels + pixel)
    if L2:
        tl.store(out + at, value, inside)
    else:
        clean = _pixels(tl.load(x0 + at, inside, other=0))
        tl.store(out + at, _clip(clean + radius * value, 0.0, 1.0), inside)
    kept = tl.where(inside, value, 0.0).to(tl.float64)
    return kept * kept


@triton.jit(do_not_specialize=["seed", "first_sample"])
def random_start(
    out, x0, eps, parts, seed, first_sample, pixels, tiles,
    C: tl.constexpr, LAST: tl.constexpr, L2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One Philox call per (pixel, four channels); counters as in philox.py.

    Writes the linf start, or for L2 normal numbers and each program's sum of squares.
    """
    sample = tl.program_id(0) // tiles
    pixel = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    number = first_sample.to(tl.uint64) + sample.to(tl.uint64)
    zero = pixel * 0
    low = (zero + (number & 0xFFFFFFFF).to(tl.uint32)).to(tl.uint32)
    high = (zero + (number >> 32).to(tl.uint32)).to(tl.uint32)
    radius = tl.load(eps + sample).to(tl.float32)
    base = sample.to(tl.int64) * pixels * C
    squares = tl.zeros((BLOCK,), tl.float64)
    for group in tl.static_range((C + 3) // 4):
        quad = (zero + group).to(tl.uint32)
        w0, w1, w2, w3 = tl.philox(seed, pixel.to(tl.uint32), quad, low, high)
        v0, v1 = _pair(w0, w1, L2)
        v2, v3 = _pair(w2, w3, L2)
        squares += _place(
            out, x0, base, pixel, pixels, v0, radius, group * 4 + 0, C, LAST, L2
        )
        squares += _place(
            out, x0, base, pixel, pixels, v1, radius, group * 4 + 1, C, LAST, L2
        )
        squares += _place(
            out, x0, base, pixel, pixels, v2, radius, group * 4 + 2, C, LAST, L2
        )
        squares += _place(
            out, x0, base, pixel, pixels, v3, radius, group * 4 + 3, C, LAST, L2
        )
    if L2:
        tl.store(parts + tl.program_id(0), tl.sum(squares))


@triton.jit(do_not_specialize=["seed", "first_sample"])
def scale_start(
    out, x0, eps, parts, count, seed, first_sample, row, tiles,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turn a sample of normal numbers into a uniform point of its L2 ball."""
    sample = tl.program_id(0) // tiles
    offsets = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < row
    at = sample.to(tl.int64) * row + offsets
    normal = tl.load(out + at, mask, other=0.0)
    clean = _pixels(tl.load(x0 + at, mask, other=0))
    squared = _sample_sum(parts, sample, count, PARTS)
    number = first_sample.to(tl.uint64) + sample.to(tl.uint64)
    low, high = (number & 0xFFFFFFFF).to(tl.uint32), (number >> 32).to(tl.uint32)
    zero = low & 0
    word, _, _, _ = tl.philox(seed, ~zero, zero, low, high)
    # u^(1/d): float32 is enough, the exponent divides its error by d.
    share = tl.exp(tl.div_rn(tl.log(_uniform(word) + UNIT), row * 1.0))
    radius = tl.load(eps + sample).to(tl.float64) * share.to(tl.float64)
    scale = (radius / tl.maximum(tl.sqrt(squared), TINY)).to(tl.float32)
    tl.store(out + at, _clip(clean + scale * normal, 0.0, 1.0), mask)
