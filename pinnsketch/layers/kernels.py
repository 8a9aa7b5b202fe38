"""What sketched layers and packed activations do on a GPU, each in one kernel of Triton, which comes with torch there.

Random numbers are those of `steele2014_split_mix`, bit for bit; what is rounded by them may differ by one level where two
machines' floating-point numbers do. `pinnsketch.layers.fused` says where these take the place of the plain code.
"""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from pinnsketch.layers import steele2014_split_mix as mix

GOLDEN, FIRST, SECOND, STEP = (tl.constexpr(number) for number in (mix.GOLDEN, mix.FIRST, mix.SECOND, mix.STEP))
WIDEST = 4096
"""Rows in a group, at most."""
RUN = 256
"""Numbers that share a step, as in `chen2021_quantised`."""
WORDS = 512
"""Hashes, of four numbers each, that one program takes."""
BYTES = 256
"""Bytes of a mask that one program takes."""


@triton.jit
def _hash(seed, i):
    x = i * GOLDEN + seed
    x = (x ^ (x >> 30)) * FIRST
    x = (x ^ (x >> 27)) * SECOND
    return (x ^ (x >> 31)) * GOLDEN


@triton.jit
def _double(bits, WIDE: tl.constexpr):
    """A number that came as `_bits`."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(WIDE)


@triton.jit
def _round(level, seed, word, most):
    """Numbers `(words, 4)` to a whole number beside each, as int32."""
    lane = tl.arange(0, 4).to(tl.int64)[None, :]
    quarter = (_hash(seed, word)[:, None] >> (lane * 16)).to(tl.int16)
    level = level + quarter.to(level.dtype) * 0.0000152587890625  # 2^-16
    level = level + 0.50000762939453125  # 1/2 + 2^-17
    return tl.minimum(tl.maximum(level, 0.0), most + 0.5).to(tl.int32)


@triton.jit
def _store_packed(packed, level, first, count, BITS: tl.constexpr, WORDS: tl.constexpr):
    """Levels `(words, 4)` into the bytes from `first` on, of which there are `count` in all."""
    PER: tl.constexpr = 8 // BITS
    if PER == 1:
        at = first + (tl.arange(0, WORDS)[:, None] * 4 + tl.arange(0, 4)[None, :])
        tl.store(packed + at, level.to(tl.uint8), mask=at < count)
    else:
        rows = tl.reshape(level, (WORDS * 4 // PER, PER))
        whole = tl.sum(rows << (tl.arange(0, PER)[None, :] * BITS), axis=1)
        at = first + tl.arange(0, WORDS * 4 // PER)
        tl.store(packed + at, whole.to(tl.uint8), mask=at < count)


@triton.jit
def _level(packed, at, inside, BITS: tl.constexpr):
    """The levels of the numbers `at`."""
    PER: tl.constexpr = 8 // BITS
    byte = tl.load(packed + at // PER, mask=inside, other=0).to(tl.int32)
    return (byte >> ((at % PER) * BITS).to(tl.int32)) & ((1 << BITS) - 1)


@triton.jit
def _next_seed(counter, seed, key, by):
    count = tl.load(counter) + by
    tl.store(counter, count)
    tl.store(seed, count * STEP + key)


@triton.jit
def _signs(
    seed, offset, out, random, kept, size, entry, mean, CENTRED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row of S: of `kept` rows in a group the first `random` are +-entry, less their mean if there are others."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < size
    place = row % kept
    number = (row // kept * random + place) * size + k
    bit = (_hash(tl.load(seed) + offset, number // 64) >> (number % 64 // 32 * 32 + 31 - number % 32)) & 1
    sign = (1 - 2 * bit).to(WIDE)
    e = _double(entry, WIDE)
    value = sign * e
    if CENTRED:
        value = value - tl.sum(tl.where(inside, sign, tl.zeros_like(sign)), axis=0) * e / size
        flat = tl.zeros_like(sign) + _double(mean, WIDE)
        value = tl.where(place < random, value, flat)
    tl.store(out + row * size + k, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _relu(x, y, packed, count, BYTES: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    place = tl.arange(0, 8)[None, :]
    at = byte[:, None] * 8 + place
    inside = at < count
    value = tl.load(x + at, mask=inside, other=1.0)
    off = value <= 0
    tl.store(y + at, tl.where(off, tl.zeros_like(value), value), mask=inside)
    whole = tl.sum(off.to(tl.int32) << place, axis=1)
    tl.store(packed + byte, whole.to(tl.uint8), mask=byte * 8 < count)


@triton.jit
def _relu_slope(delta, packed, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(delta + at, mask=inside, other=0.0)
    tl.store(out + at, tl.where(_level(packed, at, inside, 1) != 0, tl.zeros_like(value), value), mask=inside)


@triton.jit
def _slope(
    x, y, seed, packed, count, size, factor, low,
    NAME: tl.constexpr, WIDE: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    at = word[:, None] * 4 + tl.arange(0, 4)[None, :]
    inside = at < count
    if NAME == "tanh":
        v = tl.load(y + at, mask=inside, other=0.0).to(WIDE)
        slope = 1 - v * v
    elif NAME == "sigmoid":
        v = tl.load(y + at, mask=inside, other=0.0).to(WIDE)
        slope = v * (1 - v)
    elif NAME == "sin":
        slope = tl.cos(tl.load(x + at, mask=inside, other=0.0).to(WIDE))
    elif NAME == "silu":
        u = tl.load(x + at, mask=inside, other=0.0).to(WIDE)
        v = tl.load(y + at, mask=inside, other=0.0).to(WIDE)
        s = 1 / (1 + tl.exp(-u))
        slope = s + v * (1 - s)
    else:
        u = tl.load(x + at, mask=inside, other=0.0).to(WIDE)
        slope = 0.5 + 0.5 * tl.erf(u * 0.7071067811865476) + u * tl.exp(-0.5 * u * u) * 0.3989422804014327
    level = slope * _double(factor, WIDE) - _double(low, WIDE)
    level = _round(level, tl.load(seed), word, (1 << BITS) - 1)
    level = tl.where(inside, level, tl.zeros_like(level))
    first = tl.program_id(0).to(tl.int64) * (WORDS * BITS // 2)
    _store_packed(packed, level, first, size, BITS, WORDS)


@triton.jit
def _times_slope(delta, packed, out, count, step, low, WIDE: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(delta + at, mask=inside, other=0.0).to(WIDE)
    s, bottom = _double(step, WIDE), _double(low, WIDE)
    value = value * s * _level(packed, at, inside, BITS).to(WIDE) + value * bottom
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _round_run(x, seed, packed, scales, count, size, tiny, WIDE: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr):
    run = tl.program_id(0).to(tl.int64)
    word = run * WORDS + tl.arange(0, WORDS)
    at = tl.minimum(word[:, None] * 4 + tl.arange(0, 4)[None, :], count - 1)
    value = tl.load(x + at).to(WIDE)
    low = tl.min(tl.min(value, axis=1), axis=0)
    step = (tl.max(tl.max(value, axis=1), axis=0) - low) / ((1 << BITS) - 1)
    level = (value - low) / tl.maximum(step, _double(tiny, WIDE))
    level = _round(level, tl.load(seed), word, (1 << BITS) - 1)
    _store_packed(packed, level, run * (WORDS * BITS // 2), size, BITS, WORDS)
    tl.store(scales + run * 2, low)
    tl.store(scales + run * 2 + 1, step)


@triton.jit
def _restore_run(packed, scales, out, count, BITS: tl.constexpr, RUN: tl.constexpr):
    run = tl.program_id(0).to(tl.int64)
    at = run * RUN + tl.arange(0, RUN)
    inside = at < count
    low, step = tl.load(scales + run * 2), tl.load(scales + run * 2 + 1)
    tl.store(out + at, _level(packed, at, inside, BITS).to(step.dtype) * step + low, mask=inside)


def next_seed(counter: Tensor, key: int, by: int) -> Tensor:
    """Add to a counter, and make the seed of it, as `seed_of` does."""
    seed = torch.empty_like(counter)
    with _on(counter):
        _next_seed[(1,)](counter, seed, key, by)
    return seed


def signs(seed: Tensor, offset: int, count: int, random: int, kept: int, size: int, dtype: torch.dtype) -> Tensor:
    """S `(count, kept, size)`: the first `random` of the rows of each group +-1/sqrt(random), the same numbers as
    `steele2014_split_mix.signs` with the seed `seed + offset`; less their means, with the mean row below, if `kept` is more.
    """
    out = torch.empty(count, kept, size, dtype=dtype, device=seed.device)
    numbers = random, kept, size, _bits(random**-0.5), _bits(size**-0.5)
    block = triton.next_power_of_2(size)
    with _on(seed):
        _signs[(count * kept,)](seed, offset, out, *numbers, CENTRED=random < kept, WIDE=_wide(dtype), BLOCK=block)
    return out


def relu(x: Tensor, y: Tensor) -> Tensor:
    """Write max(x, 0) to y, which may be x; returns the packed mask of x <= 0. Both are contiguous."""
    packed = torch.empty(-(-x.numel() // 8), dtype=torch.uint8, device=x.device)
    with _on(x):
        _relu[(triton.cdiv(len(packed), BYTES),)](x, y, packed, x.numel(), BYTES=BYTES)
    return packed


def relu_slope(delta: Tensor, packed: Tensor) -> Tensor:
    """Zero where the mask is set, else delta."""
    delta = delta.contiguous()
    out = torch.empty_like(delta)
    with _on(delta):
        _relu_slope[(triton.cdiv(delta.numel(), 2048),)](delta, packed, out, delta.numel(), BLOCK=2048)
    return out


def slope(x: Tensor, y: Tensor, seed: Tensor, name: str, low: float, step: float, bits: int) -> Tensor:
    """The derivative of an activation of that name at x, where it is y, rounded at random and packed. Both are contiguous."""
    packed = torch.empty(-(-x.numel() * bits // 8), dtype=torch.uint8, device=x.device)
    grid, numbers = (triton.cdiv(x.numel(), 4 * WORDS),), (x.numel(), len(packed), _bits(1 / step), _bits(low / step))
    with _on(x):
        _slope[grid](x, y, seed, packed, *numbers, NAME=name, WIDE=_wide(x.dtype), BITS=bits, WORDS=WORDS)
    return packed


def times_slope(delta: Tensor, packed: Tensor, low: float, step: float, bits: int) -> Tensor:
    """Delta times the derivative that was packed."""
    delta = delta.contiguous()
    out = torch.empty_like(delta)
    grid, numbers = (triton.cdiv(delta.numel(), 2048),), (delta.numel(), _bits(step), _bits(low))
    with _on(delta):
        _times_slope[grid](delta, packed, out, *numbers, WIDE=_wide(delta.dtype), BITS=bits, BLOCK=2048)
    return out


def rounded(x: Tensor, seed: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As `chen2021_quantised.rounded`; x is contiguous."""
    wide = torch.promote_types(x.dtype, torch.float32)
    runs = triton.cdiv(x.numel(), RUN)
    packed = torch.empty(runs * RUN * bits // 8, dtype=torch.uint8, device=x.device)
    scales = torch.empty(runs, 2, dtype=wide, device=x.device)
    numbers = x.numel(), len(packed), _bits(torch.finfo(wide).tiny)
    with _on(x):
        _round_run[(runs,)](x, seed, packed, scales, *numbers, WIDE=_wide(wide), BITS=bits, WORDS=RUN // 4, num_warps=2)
    return packed, scales


def restored(packed: Tensor, scales: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """As `chen2021_quantised.restored`."""
    out = torch.empty(shape, dtype=scales.dtype, device=packed.device)
    with _on(packed):
        _restore_run[(len(scales),)](packed, scales, out, out.numel(), BITS=bits, RUN=RUN, num_warps=2)
    return out


def _bits(number: float) -> int:
    """A double as an int64: Triton takes floating-point arguments in single precision."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _wide(dtype: torch.dtype) -> tl.dtype:
    """What is computed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def _on(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
