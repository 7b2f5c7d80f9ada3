"""Discrete Gaussian noise on integers, sampled exactly, and what a sum of it promises.

N_Z(0, s^2) gives the integer n a probability proportional to exp(-n^2 / 2s^2) (Canonne, Kamath and Steinke 2020).
"""

import math
from decimal import Decimal, localcontext

import numpy as np

from reticent.privacy.entropy import Words

SMOOTHING = 2.0  # standard deviation, in steps of the grid, that is added beyond what the accountant is told

_BLOCK = 2**15  # candidates made at once: what they need stays in the cache
_MOST_BITS = 24  # so that every exponent is exact in float64
_WORD = 64
_EXTRA = 3  # words that decide a comparison which the first one leaves open
_SPLIT = 2.0**-36  # above the error of every float64 number in the fast comparison


def _levels() -> list[int]:
    """Chance of a level of at most k, for k = 0, 1, ..., where k's weight is exp(-k^2 / 2), in units of 2^-256."""
    with localcontext() as context:
        context.prec = 120
        weights = [(-Decimal(k * k) / 2).exp() for k in range(30)]  # what is left out is below 1e-190
        total, below, levels = sum(weights), Decimal(0), []
        for weight in weights:
            below += weight
            levels.append(int(below / total * 2 ** (_WORD * (1 + _EXTRA))))
    return levels


_LEVELS = _levels()
_FIRST = [level >> (_WORD * _EXTRA) for level in _LEVELS[:10]]  # the tenth is 2^64 - 1: no word is beyond it
_FIRST_WORDS = np.array(_FIRST, dtype=np.uint64)


def add_discrete_gaussians(values: np.ndarray, bits: int, source: Words) -> None:
    """Adds independent N_Z(0, 4^bits) to every element of ``values``, (count,) int64, in place.

    The rejection sampler of Karney 2016 (algorithm D) for a standard deviation of s = 2^bits: n = k s + j with k of
    weight exp(-k^2 / 2) and j uniform below s is kept with probability exp(-j (2 k s + j) / 2s^2), gets a fair sign,
    and -0 is dropped. Both choices compare a uniform number with a real one. Float64 decides where its error cannot
    matter; elsewhere (once in 10^10 candidates) 192 more random bits and decimals of 100 digits do. So each choice has
    its true probability to 2^-230, and no noise is ever rounded. ``bits`` is at most 24.
    """
    assert values.ndim == 1 and values.dtype == np.int64 and 0 <= bits <= _MOST_BITS, (values.dtype, bits)
    done = 0
    while done < len(values):
        want = len(values) - done
        found = _candidates(min(_BLOCK, want + want // 2 + 16), bits, source)[:want]
        values[done : done + len(found)] += found
        done += len(found)


def closeness(shares: int, std: float, smoothing: float = SMOOTHING) -> float:
    """How far ``shares`` summed N_Z(0, std^2) are from a post-processed Gaussian, per coordinate.

    The bound is on |log p(n)/p'(n)| at every integer n, where p' is what this gives: add N(0, shares std^2 -
    smoothing^2) to an integer, then round y to the integer n with probability proportional to
    exp(-(n - y)^2 / 2 smoothing^2). Two steps add up:

    - The sum is within tau/2 of N_Z(0, shares std^2), with the tau of Kairouz, Liu and Steinke 2021, theorem 1,
      tau = 10 sum_{k<shares} exp(-2 pi^2 std^2 k/(k+1)): one more share on top of k moves the law by a quotient of sums
      over all integers, which is 1 up to 5 exp(-2 pi^2 std^2 k/(k+1)) by Poisson summation.
    - N_Z(0, v) is within 5 exp(-2 pi^2 smoothing^2) of p': the integral over y is a Gaussian density at n, and the sums
      over all integers that normalise it are 1 up to 2 exp(-2 pi^2 smoothing^2) + ..., by the same.

    So a release on the grid is as private as the *continuous* Gaussian of that variance, under sampling and
    composition too, up to this factor; Canonne et al. 2020, theorem 4, says the same of Renyi divergences alone.
    """
    tau = 10 * sum(math.exp(-2 * (math.pi * std) ** 2 * k / (k + 1)) for k in range(1, shares))
    return tau / 2 + 5 * math.exp(-2 * (math.pi * smoothing) ** 2)


def _candidates(count: int, bits: int, source: Words) -> np.ndarray:
    """The kept ones of ``count`` candidates, int64."""
    first, second = source.words(count), source.words(count)
    level = _level(first, source)
    part = (second & np.uint64(2**bits - 1)).astype(np.int64)
    positive = (second >> np.uint64(bits)) & np.uint64(1) == 1
    rest = second >> np.uint64(bits + 1)
    exponent = (part * (2 * level * 2**bits + part)).astype(np.float64) * 2.0 ** -(2 * bits + 1)
    excess = rest.astype(np.float64) * 2.0 ** -(_WORD - 1 - bits) - np.exp(-exponent)
    kept = excess < 0
    for i in np.flatnonzero(np.abs(excess) < _SPLIT):
        kept[i] = _kept(int(rest[i]), int(level[i]), int(part[i]), bits, source)
    value = level * 2**bits + part
    kept &= positive | (value != 0)
    return np.asarray(np.where(positive, value, -value)[kept])


def _level(words: np.ndarray, source: Words) -> np.ndarray:
    """k with weight exp(-k^2 / 2), int64, from the first 64 bits of a uniform number each."""
    level = np.zeros(len(words), dtype=np.uint8)
    for bound in _FIRST_WORDS[:-1]:
        level += words > bound
    result = level.astype(np.int64)
    for i in np.flatnonzero(words == _FIRST_WORDS[level]):
        uniform = _longer(int(words[i]), source)
        result[i] = sum(uniform >= bound for bound in _LEVELS)
    return result


def _kept(rest: int, level: int, part: int, bits: int, source: Words) -> bool:
    """Whether the uniform number that begins with ``rest`` is below exp(-part (2 level s + part) / 2s^2)."""
    with localcontext() as context:
        context.prec = 100
        exponent = Decimal(part * (2 * level * 2**bits + part)) / 2 ** (2 * bits + 1)
        bound = int((-exponent).exp() * 2 ** (_WORD * (1 + _EXTRA) - 1 - bits))
    return _longer(rest, source) < bound


def _longer(prefix: int, source: Words) -> int:
    """The same uniform number with 192 more bits."""
    for word in source.words(_EXTRA):
        prefix = prefix << _WORD | int(word)
    return prefix
