"""The Triton kernels of the steps and the random start, on pointers without torch.

`_triton.py` launches them. Importing this imports Triton, which fixes at that moment
whether kernels are compiled or interpreted (TRITON_INTERPRET=1), so it happens at the
first call.

Memory is walked in physical order. An image tensor is [rows, plane]: one row per
(sample, channel) for NCHW, where a program has one channel, and one row per sample for
channels_last, where the channel is the offset modulo C. Row bases are 64-bit, offsets
in a row 32-bit. Sums are float64, tile by tile and then over tiles, in a fixed order.

A launch may cover some samples of the batch only: `begin` is the number its first
program has when the whole batch is launched at once.
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
QUARTER_TURN = tl.constexpr(1.5707963267948966)


@triton.jit
def _program(begin, BACKWARD: tl.constexpr):
    """Return the number of this program in the whole batch.

    Backward, a pass begins where the pass before it ended: what that one read last is
    in the cache still, while a forward pass over a batch larger than the cache would
    find each tile just evicted.
    """
    n = tl.program_id(0)
    return begin + (tl.num_programs(0) - 1 - n if BACKWARD else n)


@triton.jit
def _locate(
    program, plane, tiles, C: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr
):
    """Return sample, row, first element of the row and first offset of a program."""
    row = program // tiles
    sample = row if LAST else row // C
    return sample, row, row.to(tl.int64) * plane, (program % tiles) * WIDTH


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
    """Return the entry of a table, or one over it, for the channel of each element."""
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
    """Return images in [0, 1]; u / 255 is correctly rounded, so eps=0 gives x0 exactly.

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
def _load_images(x, x0, grad, at, mask):
    """Load the state; return it, its perturbation, the clean image and the gradient."""
    state = tl.load(x + at, mask, other=0.0)
    clean = _pixels(tl.load(x0 + at, mask, other=0))
    raw = tl.load(grad + at, mask, other=0.0)
    if state.dtype == tl.float16:
        return state, state.to(tl.float32), clean, raw
    else:
        return state, state - clean, clean, raw


@triton.jit
def _ascent(grad, inv):
    """Return the gradient in pixel units without non-finite elements, and where they are."""
    gx = grad.to(tl.float32) * inv
    finite = tl.abs(gx) <= LARGEST
    return tl.where(finite, gx, 0.0), tl.where(finite, 0, 1)


@triton.jit
def _count(counter, bad):
    """Add the number of non-finite elements to the caller's counter, if there is one."""
    if counter is not None:
        number = tl.sum(bad)
        tl.atomic_add(counter, number.to(tl.int64), mask=number > 0)


@triton.jit
def _momentum(d, ahead, since, clean, share):
    """Return where momentum leads: to `ahead`, clipped to [0, 1], and on along `since`.

    `d` and `ahead` are perturbations, `since` is the last move, and `share` the weight
    of the new direction.
    """
    ahead = _clip(clean + ahead, 0.0, 1.0) - clean
    return d + share * (ahead - d) + (1.0 - share) * since


@triton.jit
def _toward_zero(d):
    """Return the nearest float16 number that is nowhere larger in magnitude than `d`.

    It is rounded to nearest and stepped back where that was outward: one less in the bits
    is one unit less in magnitude, whatever the sign.
    """
    half = d.to(tl.float16)
    outward = tl.abs(half.to(tl.float32)) > tl.abs(d)
    bits = half.to(tl.int16, bitcast=True) - outward.to(tl.int16)
    return bits.to(tl.float16, bitcast=True)


@triton.jit
def _store_state(x, at, d, clean, mask):
    """Write `d` in the format of state `x`; return the image of what was written."""
    if x.dtype.element_ty == tl.float16:
        kept = _toward_zero(_clip(d, -clean, 1.0 - clean))
        tl.store(x + at, kept, mask)
        return _clip(clean + kept.to(tl.float32), 0.0, 1.0)
    else:
        image = _clip(clean + d, 0.0, 1.0)
        tl.store(x + at, image, mask)
        return image


@triton.jit
def _store_z(z, at, image, mean, inv, mask):
    """Write the normalised image, if there is a place for it."""
    if z is not None:
        scaled = (image - mean) * inv
        tl.store(z + at, scaled.to(z.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["begin"])
def step_linf(
    x, x_prev, x0, grad, z, step, eps, mean, std, counter, share, plane, tiles, begin,
    C: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take one linf step in place, with momentum if there is an `x_prev`, in one pass."""
    program = _program(begin, False)
    sample, row, base, first = _locate(program, plane, tiles, C, LAST, BLOCK)
    offsets = first + tl.arange(0, BLOCK)
    mask = offsets < plane
    at = base + offsets
    old, d, clean, raw = _load_images(x, x0, grad, at, mask)
    a = tl.load(step + sample).to(tl.float32)
    e = tl.load(eps + sample).to(tl.float32)
    channel = _channel(row, offsets, C, LAST)
    inv = _per_channel(std, channel, C, LAST, True)
    gx, bad = _ascent(raw, inv)
    move = tl.where(gx > 0, a, tl.where(gx < 0, -a, 0.0))
    moved = _clip(d + move, -e, e)
    if x_prev is not None:
        since = old - tl.load(x_prev + at, mask, other=0.0)
        tl.store(x_prev + at, old, mask)
        moved = _clip(_momentum(d, moved, since, clean, share), -e, e)
    image = _store_state(x, at, moved, clean, mask)
    means = _per_channel(mean, channel, C, LAST, False)
    _store_z(z, at, image, means, inv, mask)
    _count(counter, bad)


@triton.jit(do_not_specialize=["begin"])
def sums_l2(
    x, x0, grad, std, counter, parts, plane, tiles, total, begin,
    C: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write |gx|^2, <d, gx> and |d|^2 of each tile to parts[:3, total]: first pass of L2."""
    program = _program(begin, False)
    _sample, row, base, first = _locate(program, plane, tiles, C, LAST, WIDTH)
    gg = tl.zeros((BLOCK,), tl.float64)
    dg = tl.zeros((BLOCK,), tl.float64)
    dd = tl.zeros((BLOCK,), tl.float64)
    bad = tl.zeros((BLOCK,), tl.int32)
    # Unrolled, a thread has the loads of four tiles in flight: 112 bytes at half
    # precision instead of 28, for 80 registers, so three programs an SM and not four.
    for tile in tl.range(0, WIDTH, BLOCK, loop_unroll_factor=4):
        offsets = first + tile + tl.arange(0, BLOCK)
        mask = offsets < plane
        _old, delta, _clean, raw = _load_images(x, x0, grad, base + offsets, mask)
        inv = _per_channel(std, _channel(row, offsets, C, LAST), C, LAST, True)
        gx, more = _ascent(raw, inv)
        g, d = gx.to(tl.float64), delta.to(tl.float64)
        gg, dg, dd, bad = gg + g * g, dg + d * g, dd + d * d, bad + more
    part = parts + program
    tl.store(part, tl.sum(gg))
    tl.store(part + total, tl.sum(dg))
    tl.store(part + 2 * total, tl.sum(dd))
    _count(counter, bad)


@triton.jit
def _sample_sum(parts, sample, count, PARTS: tl.constexpr):
    k = tl.arange(0, PARTS)
    return tl.sum(tl.load(parts + sample * count + k, k < count, other=0.0))


@triton.jit
def _shrink(length, e):
    return tl.where(length > e, e / length, 1.0).to(tl.float32)


@triton.jit
def _scales(parts, total, sample, count, step, e, PARTS: tl.constexpr):
    """Return what the gradient, and then the perturbation, is multiplied by in L2."""
    a = tl.load(step + sample).to(tl.float64)
    gg = _sample_sum(parts, sample, count, PARTS)
    dg = _sample_sum(parts + total, sample, count, PARTS)
    dd = _sample_sum(parts + 2 * total, sample, count, PARTS)
    scale = a / (tl.sqrt(gg) + TINY)
    length = tl.sqrt(tl.maximum(dd + 2 * scale * dg + scale * scale * gg, 0.0))
    return scale.to(tl.float32), _shrink(length, e)


@triton.jit(do_not_specialize=["begin"])
def lengths_l2(
    x, x_prev, x0, grad, step, eps, std, share, parts, count, plane, tiles, total,
    begin,
    C: tl.constexpr, LAST: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write |d|^2 of each tile before its projection to parts[3]: second pass of APGD.

    No sum of the first pass gives it, because the new direction was clipped.
    """
    program = _program(begin, True)
    sample, row, base, first = _locate(program, plane, tiles, C, LAST, WIDTH)
    e = tl.load(eps + sample).to(tl.float64)
    scale, shrink = _scales(parts, total, sample, count, step, e, PARTS)
    squares = tl.zeros((BLOCK,), tl.float64)
    for tile in tl.range(0, WIDTH, BLOCK, loop_unroll_factor=4):
        offsets = first + tile + tl.arange(0, BLOCK)
        mask = offsets < plane
        at = base + offsets
        old, d, clean, raw = _load_images(x, x0, grad, at, mask)
        since = old - tl.load(x_prev + at, mask, other=0.0)
        inv = _per_channel(std, _channel(row, offsets, C, LAST), C, LAST, True)
        gx, _ = _ascent(raw, inv)
        moved = _momentum(d, (d + scale * gx) * shrink, since, clean, share)
        wide = moved.to(tl.float64)
        squares += wide * wide
    tl.store(parts + 3 * total + program, tl.sum(squares))


@triton.jit(do_not_specialize=["begin"])
def move_l2(
    x, x_prev, x0, grad, z, step, eps, mean, std, share, parts, count, plane, tiles,
    total, begin,
    C: tl.constexpr, LAST: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the `count` parts of a sample and move: last pass of L2."""
    program = _program(begin, x_prev is None)
    sample, row, base, first = _locate(program, plane, tiles, C, LAST, BLOCK)
    offsets = first + tl.arange(0, BLOCK)
    mask = offsets < plane
    at = base + offsets
    # The image loads come first: the sums below hide behind them.
    old, d, clean, raw = _load_images(x, x0, grad, at, mask)
    e = tl.load(eps + sample).to(tl.float64)
    scale, shrink = _scales(parts, total, sample, count, step, e, PARTS)
    channel = _channel(row, offsets, C, LAST)
    inv = _per_channel(std, channel, C, LAST, True)
    gx, _ = _ascent(raw, inv)
    moved = (d + scale * gx) * shrink
    if x_prev is not None:
        since = old - tl.load(x_prev + at, mask, other=0.0)
        tl.store(x_prev + at, old, mask)
        squared = _sample_sum(parts + 3 * total, sample, count, PARTS)
        moved = _momentum(d, moved, since, clean, share)
        moved *= _shrink(tl.sqrt(squared), e)
    image = _store_state(x, at, moved, clean, mask)
    means = _per_channel(mean, channel, C, LAST, False)
    _store_z(z, at, image, means, inv, mask)


@triton.jit
def normalize(
    x, z, mean, std, plane, tiles,
    C: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write `(x - mean) / std` to `z`."""
    program = tl.program_id(0)
    _, row, base, first = _locate(program, plane, tiles, C, LAST, BLOCK)
    offsets = first + tl.arange(0, BLOCK)
    mask = offsets < plane
    values = _pixels(tl.load(x + base + offsets, mask, other=0))
    channel = _channel(row, offsets, C, LAST)
    inv = _per_channel(std, channel, C, LAST, True)
    means = _per_channel(mean, channel, C, LAST, False)
    _store_z(z, base + offsets, values, means, inv, mask)


@triton.jit
def _uniform(word):
    return (word >> 8).to(tl.float32) * UNIT


@triton.jit
def _sin_cos(turns):
    """Return sine and cosine of an angle in [0, 1) turns, each to 1e-7.

    The angle is reduced to an eighth of a turn exactly; then come the polynomials of
    Cephes' sinf and cosf (Moshier). libdevice's functions reduce any angle, with an array
    on the stack that some versions of ptxas keep there.
    """
    quarter = tl.floor(4.0 * turns + 0.5)
    y = (4.0 * turns - quarter) * QUARTER_TURN
    yy = y * y
    s = ((-1.9515295891e-4 * yy + 8.3321608736e-3) * yy - 1.6666654611e-1) * yy * y + y
    c = (2.443315711809948e-5 * yy - 1.388731625493765e-3) * yy + 4.166664568298827e-2
    c = c * yy * yy - 0.5 * yy + 1.0
    q = quarter.to(tl.int32)
    swap = (q & 1) == 1
    sine, cosine = tl.where(swap, c, s), tl.where(swap, s, c)
    return (
        tl.where((q & 2) == 2, -sine, sine),
        tl.where(((q + 1) & 2) == 2, -cosine, cosine),
    )


@triton.jit
def _pair(w0, w1, L2: tl.constexpr):
    """Make two numbers of two words: uniform in [-1, 1), or normal (Box-Muller)."""
    if L2:
        radius = tl.sqrt_rn(-2.0 * tl.log(_uniform(w0) + UNIT))
        sine, cosine = _sin_cos(_uniform(w1))
        return radius * cosine, radius * sine
    else:
        return 2.0 * _uniform(w0) - 1.0, 2.0 * _uniform(w1) - 1.0


@triton.jit
def _offset(pixel, pixels, CHANNEL: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr):
    return pixel * C + CHANNEL if LAST else CHANNEL * pixels + pixel


@triton.jit
def _place(out, x0, at, value, radius, inside, L2: tl.constexpr):
    """Write one channel: the linf start, or the normal number, which is scaled later.

    Return the squares of the numbers.
    """
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
    """Draw by one Philox call per pixel and four channels; philox.py has the counters.

    It writes the linf start, or for L2 normal numbers and each program's sum of squares.
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
        values = (v0, v1, v2, v3)
        for lane in tl.static_range(4):
            inside = (pixel < pixels) & (group * 4 + lane < C)
            at = base + _offset(pixel, pixels, group * 4 + lane, C, LAST)
            squares += _place(out, x0, at, values[lane], radius, inside, L2)
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
    word, _, _, _ = tl.philox(seed, zero + 0xFFFFFFFF, zero, low, high)
    # u^(1/d): float32 is enough, the exponent divides its error by d.
    share = tl.exp(tl.div_rn(tl.log(_uniform(word) + UNIT), row * 1.0))
    radius = tl.load(eps + sample).to(tl.float64) * share.to(tl.float64)
    scale = (radius / tl.maximum(tl.sqrt(squared), TINY)).to(tl.float32)
    tl.store(out + at, _clip(clean + scale * normal, 0.0, 1.0), mask)
