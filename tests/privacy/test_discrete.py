"""The law of the discrete Gaussian, and that a sum of it is as private as a Gaussian."""

import numpy as np
import pytest
from scipy import stats

from reticent.privacy import discrete
from reticent.privacy.discrete import add_discrete_gaussians, closeness
from reticent.privacy.entropy import SystemWords

SURE = 1e-6


def _draw(count, bits):
    values = np.zeros(count, dtype=np.int64)
    add_discrete_gaussians(values, bits, SystemWords())
    return values


def _pmf(std, reach):
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * std**2))
    return weights / weights.sum()


def _fits(values, pmf):
    """Chi-square of ``values`` against ``pmf`` on -reach .. reach, cells of little mass joined."""
    reach = len(pmf) // 2
    expected = pmf * len(values)
    seen = np.bincount(np.clip(values, -reach, reach) + reach, minlength=len(pmf))
    large = expected >= 10
    observed = np.append(seen[large], seen[~large].sum())
    wanted = np.append(expected[large], max(expected[~large].sum(), 1e-9))
    return stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > SURE


@pytest.mark.parametrize("bits", [0, 1, 3, 5])
def test_the_law_is_the_discrete_gaussian(bits):
    assert _fits(_draw(200_000, bits), _pmf(2.0**bits, 8 * 2**bits))


@pytest.mark.parametrize("mutant", ["wider", "zero-twice", "continuous-tail"])
def test_another_law_fails_the_same_check(mutant):
    values = _draw(200_000, 0)
    if mutant == "wider":
        values = np.rint(np.random.default_rng(0).normal(0, 1, 200_000)).astype(np.int64)  # variance 1 + 1/12
    elif mutant == "zero-twice":
        values[:5_000] = 0
    else:
        values[np.abs(values) > 2] = 2
    assert not _fits(values, _pmf(1.0, 8))


@pytest.mark.parametrize("bits", [10, 20, 24])
def test_large_noise_has_the_moments_and_the_shape_of_a_gaussian(bits):
    values = _draw(100_000, bits) / 2.0**bits
    assert SURE < stats.chi2(len(values)).cdf((values**2).sum()) < 1 - SURE
    assert abs(values.mean()) * np.sqrt(len(values)) < stats.norm.isf(SURE / 2)
    assert stats.kstest(values, "norm").pvalue > SURE


def test_every_last_bit_of_large_noise_is_fair():
    values = _draw(50_000, 24)
    for bit in range(8):
        assert stats.binomtest(int(((values >> bit) & 1).sum()), len(values)).pvalue > SURE


def test_noise_is_added_and_never_repeated():
    values = np.full(5_000, 10**12, dtype=np.int64)
    add_discrete_gaussians(values, 20, SystemWords())
    assert np.abs(values - 10**12).max() < 10 * 2**20 and len(np.unique(values)) > 4_900


@pytest.mark.parametrize("count", [0, 1, 2, 2**15 + 1])
def test_every_element_gets_noise(count):
    assert (_draw(count, 24) != 0).all()


class Script:
    """Words that are told, then those of the system."""

    def __init__(self, *told):
        self._told, self._then = list(told), SystemWords()

    def words(self, count):
        head, self._told = self._told[:count], self._told[count:]
        return np.append(np.array(head, dtype=np.uint64), self._then.words(count - len(head)))


def test_a_level_that_64_bits_leave_open_is_decided_by_more():
    edge = np.array([discrete._FIRST[0]], dtype=np.uint64)
    rest = discrete._LEVELS[0] & (2**192 - 1)
    parts = [rest >> 128, rest >> 64 & (2**64 - 1), rest & (2**64 - 1)]
    assert discrete._level(edge, Script(*parts)) == 1  # equal to the level's end: the next level begins
    assert discrete._level(edge, Script(parts[0], parts[1], parts[2] - 1)) == 0


def test_the_tail_goes_on_beyond_the_table():
    last = np.array([2**64 - 1], dtype=np.uint64)
    assert discrete._level(last, Script(2**64 - 1, 2**64 - 1, 2**64 - 1)) > 15
    assert discrete._level(last, Script(0, 0, 0)) == 9


def test_an_open_acceptance_is_decided_by_the_exact_exponential():
    from fractions import Fraction
    from math import factorial

    gamma = Fraction(5 * (2 * 1 * 8 + 5), 2 * 64)  # j = 5, k = 1, s = 8
    exact = sum((-gamma) ** i / factorial(i) for i in range(120))
    bound = int(exact * 2**252)  # 60 bits of the word that are left, and 192 more
    low = [bound >> 128 & (2**64 - 1), bound >> 64 & (2**64 - 1), bound & (2**64 - 1)]
    assert not discrete._kept(bound >> 192, 1, 5, 3, Script(*low))
    assert discrete._kept(bound >> 192, 1, 5, 3, Script(low[0], low[1], low[2] - 1))


def test_the_slow_decisions_give_the_same_law(monkeypatch):
    monkeypatch.setattr(discrete, "_SPLIT", 0.02)
    assert _fits(_draw(60_000, 2), _pmf(4.0, 32))


# What a sum of it promises.


def _sum_pmf(shares, std, reach):
    total = pmf = _pmf(std, reach)
    for _ in range(shares - 1):
        total = np.convolve(total, pmf)
    return total


@pytest.mark.parametrize("shares", [1, 2, 4])
def test_a_sum_is_as_close_to_a_rounded_gaussian_as_stated(shares):
    """Both laws by brute force, where the distance is large enough to be seen."""
    std, smoothing, reach = 1.0, 0.7, 16
    total, n = _sum_pmf(shares, std, reach), np.arange(-reach * shares, reach * shares + 1)
    y = np.arange(-20, 20, 0.005)
    kernel = np.exp(-((n[:, None] - y) ** 2) / (2 * smoothing**2))
    kernel /= kernel.sum(0)
    rounded = (kernel * stats.norm(0, np.sqrt(shares * std**2 - smoothing**2)).pdf(y)).sum(1) * 0.005
    near = np.abs(n) <= 5
    apart = np.abs(np.log(total[near] / rounded[near])).max()
    assert 1e-9 < apart <= closeness(shares, std, smoothing)


@pytest.mark.parametrize("shift", [1, 5, 12])
def test_a_sum_on_the_grid_leaks_no_more_than_the_gaussian_that_is_accounted(shift):
    """Hockey-stick divergence of four shares of N_Z(0, 16) under a shift, against N(0, 64 - SMOOTHING^2)."""
    total, std = _sum_pmf(4, 4.0, 60), np.sqrt(64 - discrete.SMOOTHING**2)
    p, q = np.append(total, np.zeros(shift)), np.append(np.zeros(shift), total)
    for epsilon in np.linspace(0, 4, 41):
        a, b = shift / (2 * std) - epsilon * std / shift, -shift / (2 * std) - epsilon * std / shift
        gaussian = stats.norm.cdf(a) - np.exp(epsilon) * stats.norm.cdf(b)
        assert np.maximum(p - np.exp(epsilon) * q, 0).sum() <= gaussian + 1e-13


def test_the_factor_is_negligible_at_the_noise_that_is_used():
    assert closeness(100_000, 2.0**24) * 4e7 < 1e-18
