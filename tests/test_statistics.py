"""General intervals against scipy, slow oracles, published values and simulation."""

import numpy as np
import pytest
from scipy import stats

from reticent import statistics


@pytest.mark.parametrize(("k", "n"), [(0, 30), (1, 7), (50, 100), (300, 300)])
def test_share_intervals_equal_scipy(k: int, n: int) -> None:
    test = stats.binomtest(k, n)
    assert statistics.clopper_pearson(k, n) == pytest.approx(tuple(test.proportion_ci(method="exact")), abs=1e-12)
    assert statistics.wilson(k, n) == pytest.approx(tuple(test.proportion_ci(method="wilson")), abs=1e-12)


def test_rule_of_three() -> None:
    # One-sided 95 % with no hit in 1,000: 0.3 %.
    assert statistics.clopper_pearson(0, 1000, level=0.9)[1] == pytest.approx(0.003, rel=0.01)


def test_newcombe_known_answer() -> None:
    # Newcombe 1998, table II, case (a): 56/70 - 48/80 by method 10.
    value, interval = statistics.newcombe_difference(56, 70, 48, 80)
    assert value == pytest.approx(0.2)
    assert interval == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_mcnemar_equals_the_binomial_test() -> None:
    assert statistics.mcnemar(3, 11) == pytest.approx(stats.binomtest(3, 14).pvalue)
    assert statistics.mcnemar(0, 0) == statistics.mcnemar(4, 4) == 1


def test_auc_counts_pairs_and_ties_half() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 80) + 1.0, rng.integers(0, 6, 50) + 0.0
    value, _ = statistics.auc(members, others)
    assert value == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in members for b in others]))


def test_delong_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(1, 1, 150), rng.normal(0, 1, 200)
    _, interval = statistics.auc(members, others)
    drawn = [statistics.auc(rng.choice(members, 150), rng.choice(others, 200)).value for _ in range(1000)]
    assert interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.012)


def test_auc_interval_covers() -> None:
    rng, truth = np.random.default_rng(2), stats.norm.cdf(1 / np.sqrt(2))
    ends = [statistics.auc(rng.normal(1, 1, 40), rng.normal(0, 1, 60)).interval or (0, 0) for _ in range(500)]
    covered = np.mean([low <= truth <= high for low, high in ends])
    assert 0.92 < covered < 0.98


def test_perfect_separation_keeps_a_wide_interval() -> None:
    value, interval = statistics.auc(np.arange(10.0) + 100, np.arange(20.0))
    assert value == 1 and interval == statistics.clopper_pearson(10, 10)
    assert statistics.auc(np.zeros(10), np.zeros(20)) == (0.5, statistics.clopper_pearson(5, 10))


def test_bootstrap_equals_scipy_bca() -> None:
    rng = np.random.default_rng(3)
    values = rng.exponential(size=60)
    oracle = stats.bootstrap((values,), np.mean, n_resamples=5000, method="BCa", random_state=rng).confidence_interval
    value, interval = statistics.bootstrap_mean(values, rng=rng, draws=5000)
    assert value == pytest.approx(values.mean())
    assert interval == pytest.approx(tuple(oracle), abs=0.03)


def test_clusters_of_copies_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(4).normal(size=40)
    owners = [i for i in range(40) for _ in range(25)]
    alone = statistics.bootstrap_mean(values, rng=np.random.default_rng(5))
    copied = statistics.bootstrap_mean(np.repeat(values, 25), clusters=owners, rng=np.random.default_rng(5))
    assert copied.interval == pytest.approx(alone.interval)


def test_weights_make_a_weighted_mean() -> None:
    value, _ = statistics.bootstrap_mean([1.0, 4.0], weights=[3, 1], rng=np.random.default_rng(0))
    assert value == pytest.approx(1.75)


def test_few_or_equal_values() -> None:
    rng = np.random.default_rng(0)
    assert statistics.bootstrap_mean([2.0, 4.0], clusters=["a", "a"], rng=rng) == (3.0, None)
    assert statistics.bootstrap_mean([2.0, 2.0, 2.0], rng=rng) == (2.0, (2.0, 2.0))


def test_bad_values_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="k = 5, n = 4"):
        statistics.wilson(5, 4)
    with pytest.raises(ValueError, match="level must be"):
        statistics.clopper_pearson(1, 4, level=95)
    with pytest.raises(ValueError, match="members must hold"):
        statistics.auc(np.array([np.nan, 1]), np.zeros(2))
    with pytest.raises(ValueError, match="finite"):
        statistics.bootstrap_mean([np.inf], rng=rng)
    with pytest.raises(ValueError, match="owner of each"):
        statistics.bootstrap_mean([1.0, 2.0], clusters=["a"], rng=rng)
    with pytest.raises(ValueError, match="2 positive numbers"):
        statistics.bootstrap_mean([1.0, 2.0], weights=[1, 0], rng=rng)
