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


def test_nothing_seen_still_allows_something() -> None:
    # audit.md 2.3: one-sided 95 % bounds at 0 of n.
    bounds = [statistics.share_upper(0, n) for n in (30, 100, 300, 1000)]
    assert bounds == pytest.approx([0.095, 0.0295, 0.01, 0.003], rel=0.01)
    assert bounds == pytest.approx([1 - 0.05 ** (1 / n) for n in (30, 100, 300, 1000)], abs=1e-12)
    assert statistics.share_upper(1, 1000) == pytest.approx(0.0047, abs=5e-5)
    assert statistics.share_upper(4, 4) == 1
    assert statistics.share_upper(3, 40) == stats.binomtest(3, 40, alternative="less").proportion_ci().high


def test_newcombe_known_answer() -> None:
    # Newcombe 1998, table II, case (a): 56/70 - 48/80 by method 10.
    value, interval = statistics.newcombe_difference(56, 70, 48, 80)
    assert value == pytest.approx(0.2)
    assert interval == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_mcnemar_equals_the_binomial_test() -> None:
    assert statistics.mcnemar(3, 11) == pytest.approx(stats.binomtest(3, 14).pvalue)
    assert statistics.mcnemar(0, 0) == statistics.mcnemar(4, 4) == 1


def test_answers_to_the_same_items_are_compared_where_they_differ() -> None:
    first, second = [True] * 10 + [False] * 30, [True] * 4 + [False] * 36
    assert statistics.paired(first, second) == pytest.approx(2 / 2**6)
    assert statistics.paired(first, first) == 1
    with pytest.raises(ValueError, match="same items"):
        statistics.paired([True], [True, False])


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


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.5]).tolist() == [1, 1]
    p_values = np.random.default_rng(6).random(50) ** 2
    assert statistics.benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values))


def test_holm_keeps_the_family_wise_rate() -> None:
    p_values = np.random.default_rng(7).random((2000, 8))
    assert np.mean([statistics.holm(row).min() <= 0.05 for row in p_values]) == pytest.approx(0.05, abs=0.015)


def test_a_permutation_p_value_is_never_zero() -> None:
    assert statistics.permutation_p(9.0, np.arange(9.0)) == 0.1
    assert statistics.permutation_p(4.0, [4.0, 5.0, 3.0]) == 0.75


def test_jonckheere_equals_the_tied_kendall_test() -> None:
    rng = np.random.default_rng(8)
    doses = np.repeat([0, 1, 10, 100], [9, 12, 7, 10])
    for slope in (0.0, 0.5):
        values = np.round(rng.normal(size=len(doses)) + slope * np.log1p(doses), 1)
        oracle = stats.kendalltau(doses, values, alternative="greater", method="asymptotic")
        assert statistics.jonckheere(doses, values) == pytest.approx(oracle.pvalue, rel=1e-9)


def test_jonckheere_without_order_is_silent() -> None:
    assert statistics.jonckheere([1, 1, 2, 2], [3, 3, 3, 3]) == 1
    assert statistics.jonckheere([1, 1, 1], [1, 2, 3]) == 1
    rng, doses = np.random.default_rng(9), np.repeat([1, 10, 100], 8)
    p_values = [statistics.jonckheere(doses, rng.normal(size=24)) for _ in range(1000)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.022)


def test_cochran_armitage_agrees_with_its_normal_law() -> None:
    hits, counts, doses = np.array([30, 38, 42]), np.array([100, 110, 105]), np.array([0.0, 1.0, 2.0])
    share, total = hits.sum() / counts.sum(), counts.sum()
    spread = share * (1 - share) * ((counts * doses**2).sum() - (counts * doses).sum() ** 2 / total)
    z = ((hits - counts * share) * doses).sum() / np.sqrt(spread * total / (total - 1))
    found = statistics.cochran_armitage(hits, counts, doses, rng=np.random.default_rng(10), draws=200_000)
    assert found == pytest.approx(stats.norm.sf(z), abs=0.015)  # which lacks a correction for continuity


def test_cochran_armitage_is_exact_for_few_hits() -> None:
    # One hit of 20 + 20, in the higher group: one in two by chance.
    rng = np.random.default_rng(11)
    assert statistics.cochran_armitage([0, 1], [20, 20], [1, 100], rng=rng) == pytest.approx(0.5, abs=0.02)
    assert statistics.cochran_armitage([0, 0], [20, 20], [1, 100], rng=rng) == 1
    fisher = stats.fisher_exact([[6, 14], [1, 19]], alternative="greater").pvalue
    assert statistics.cochran_armitage([1, 6], [20, 20], [1, 100], rng=rng) == pytest.approx(fisher, abs=0.006)


def test_good_turing_estimates_what_is_still_unseen() -> None:
    assert statistics.good_turing([1, 1, 3, 5]) == 0.2
    rng, chances = np.random.default_rng(12), np.full(1000, 1e-3)
    errors = []
    for _ in range(200):
        counts = rng.multinomial(500, chances)
        errors.append(statistics.good_turing(counts[counts > 0]) - (counts == 0).mean())
    assert np.mean(errors) == pytest.approx(0, abs=0.01)


def test_records_become_one_value_a_subject() -> None:
    names, values = statistics.by_subject([1.0, 2.0, 5.0, 3.0], ["b", "a", "b", "a"])
    assert names == ["b", "a"] and values.tolist() == [3, 2.5]


def test_bad_families_and_trends_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="p-values must be from 0 to 1"):
        statistics.holm([0.5, 1.5])
    with pytest.raises(ValueError, match="p-values must be from 0 to 1"):
        statistics.benjamini_hochberg([float("nan")])
    with pytest.raises(ValueError, match="one or more draws"):
        statistics.permutation_p(1.0, [])
    with pytest.raises(ValueError, match="3 or more finite values"):
        statistics.jonckheere([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="hits must be from 0"):
        statistics.cochran_armitage([3], [2], [1], rng=rng)
    with pytest.raises(ValueError, match="hits, counts and finite doses"):
        statistics.cochran_armitage([3, 1], [4], [1], rng=rng)
    with pytest.raises(ValueError, match="one or more positive"):
        statistics.good_turing([])
    with pytest.raises(ValueError, match="3 numbers, one for each record"):
        statistics.by_subject([1.0, 2.0], ["a", "b", "c"])


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
