"""The Triton kernels of the random start, which are like those of the steps."""
# Triton infers the types of kernels from their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: allow-untyped-decorators

import triton
import triton.language as tl

from fastadv.kernels._triton_kernels import TINY, _clip, _pixels, _sample_sum

UNIT = tl.constexpr(2.0**-24)
QUARTER_TURN = tl.constexpr(1.5707963267948966)


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
