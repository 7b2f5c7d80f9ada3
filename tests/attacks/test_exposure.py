"""Exposure: known ranks, and its law in a model that never saw the secret (G7)."""

from math import log2

import numpy as np
import pytest

from reticent.attacks.exposure import NULL_MEAN, exposure, mean_exposure


def test_ranks() -> None:
    space = np.array([-9.0, -1.0, -5.0, -7.0])
    assert exposure(-1.0, space) == (2.0, 1, 4)
    assert exposure(-9.0, space) == (0.0, 4, 4)
    assert exposure(-1.0, np.random.default_rng(0).permutation(space)) == (2.0, 1, 4)


def test_ties_count_against_the_secret() -> None:
    assert exposure(-3.0, np.full(1000, -3.0)) == (0.0, 1000, 1000)


def test_the_law_without_a_leak() -> None:
    rng = np.random.default_rng(0)
    spaces = rng.normal(size=(4000, 1000))
    bits = np.array([exposure(space[0], space).bits for space in spaces])
    assert bits.mean() == pytest.approx(NULL_MEAN, abs=0.07)  # 3 standard errors
    for x in (1, 2, 4):
        assert (bits >= x).mean() == pytest.approx(2.0**-x, abs=0.025)


def test_false_alarms_are_at_most_nominal() -> None:
    rng = np.random.default_rng(1)
    bits = log2(1000) - np.log2(rng.integers(1, 1001, size=(1000, 20)))
    p_values = np.array([mean_exposure(row, 1000, rng=rng).p_value for row in bits[:300]])
    assert (p_values <= 0.05).mean() < 0.09
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.1)


def test_a_leak_is_seen() -> None:
    result = mean_exposure([10.0, 3.0, 16.6, 12.0], 100_000, rng=np.random.default_rng(0))
    assert result.value == pytest.approx(10.4)
    assert result.p_value < 1e-5 and result.interval is not None and result.interval[0] > result.floor
    assert result.ceiling == pytest.approx(16.61, abs=0.01)


def test_bad_values_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one of the alternatives"):
        exposure(-1.0, np.array([-2.0]))
    with pytest.raises(ValueError, match="finite"):
        exposure(float("nan"), np.array([float("nan")]))
    with pytest.raises(ValueError, match=r"log2\(8\) = 3.00"):
        mean_exposure([3.5], 8, rng=rng)
