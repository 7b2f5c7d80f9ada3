"""Thresholds, advantage, many attacks, and what an audit can find: known answers and slow oracles."""

from itertools import combinations
from math import e, inf, log

import numpy as np
import pytest
from scipy import integrate, stats

from reticent.attacks import statistics as audit
from reticent.statistics import Estimate, auc, clopper_pearson, share_upper

DELTA = 1e-5


def test_a_threshold_lets_the_asked_share_of_calibration_pass() -> None:
    # A new score has 399 + 1 places, 4 of them above the 396th.
    assert audit.threshold_for(np.arange(1.0, 400.0), 0.01) == 396


def test_rates_at_a_fixed_threshold() -> None:
    members, others = np.array([3.0, 2.0, 1.0, 5.0]), np.concatenate([np.zeros(296), np.full(4, 9.0)])
    found = audit.tpr_at_threshold(members, others, 2.0, 0.01)
    assert found == (0.01, 0.5, clopper_pearson(2, 4), 4 / 300, share_upper(4, 300))
    assert found.fpr > found.target  # said, not hidden
    assert audit.flagged_per_1000(found) == Estimate(500, (1000 * found.interval[0], 1000 * found.interval[1]))


@pytest.mark.parametrize("others", [100, 299])
def test_too_few_others_are_refused_with_the_number_needed(others: int) -> None:
    with pytest.raises(ValueError, match=rf"0\.01 needs 300 others or more, got {others}"):
        audit.threshold_for(np.zeros(others), 0.01)
    with pytest.raises(ValueError, match=rf"0\.01 needs 300 others or more, got {others}"):
        audit.tpr_at_threshold(np.zeros(5), np.zeros(others), 0.0, 0.01)


def test_advantage_is_the_largest_gap_of_the_roc() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 7, 60) + 1.0, rng.integers(0, 7, 50) + 0.0
    fpr, tpr = audit.roc(members, others)
    found = audit.advantage(members, others, rng=rng)
    assert found.value == pytest.approx((tpr - fpr).max(), abs=1e-12)
    assert found.interval[0] < found.value < found.interval[1]


def test_advantage_of_worse_than_chance_and_of_perfect() -> None:
    rng = np.random.default_rng(0)
    assert audit.advantage(np.zeros(30), np.ones(30), rng=rng)[:1] == (0,)
    perfect = audit.advantage(np.ones(200), np.zeros(200), rng=rng)
    assert perfect.value == 1 and perfect.p_value == pytest.approx(1 / 1001)
    tied = audit.advantage(np.zeros(30), np.zeros(30), rng=rng)
    assert (tied.value, tied.p_value, tied.floor) == (0, 1, 0)


def test_infinite_scores_are_ranked_like_others() -> None:
    members, others = np.array([np.inf, np.inf, 1.0]), np.array([-np.inf, 0.0, np.inf])
    finite = np.array([9.0, 9.0, 1.0]), np.array([-9.0, 0.0, 9.0])
    same = [audit.advantage(*groups, rng=np.random.default_rng(0)) for groups in ((members, others), finite)]
    assert same[0] == same[1]


def test_advantage_p_value_equals_a_slow_oracle() -> None:
    members, others = np.array([3.0, 4.0, 4.0]), np.array([1.0, 2.0, 4.0])
    pooled, gaps = np.concatenate([members, others]), []
    for chosen in combinations(range(6), 3):
        mask = np.isin(np.arange(6), chosen)
        fpr, tpr = audit.roc(pooled[mask], pooled[~mask])
        gaps.append((tpr - fpr).max())
    exact = np.mean(np.array(gaps) >= gaps[0] - 1e-12)
    found = audit.advantage(members, others, rng=np.random.default_rng(1), draws=20_000)
    assert found.p_value == pytest.approx(exact, abs=0.012) and found.floor == pytest.approx(np.mean(gaps), abs=0.01)


def test_the_best_of_30_attacks_by_chance() -> None:
    # audit.md 2.5: 200 + 200 null records, mean of the best AUC 0.552 for correlated attacks, 95th percentile 0.581.
    rng = np.random.default_rng(2)
    members = np.arange(400) < 200
    found = audit.max_statistic(rng.standard_normal((30, 400)), members, rng=rng)
    assert 0.57 < found.null_best < 0.595


def test_family_auc_and_p_value_of_a_real_leak() -> None:
    rng = np.random.default_rng(3)
    members = rng.random(300) < 0.5
    scores = np.stack([rng.standard_normal(300), rng.standard_normal(300) + members, np.zeros(300)])
    found = audit.max_statistic(scores, members, rng=rng)
    assert found.auc == pytest.approx([auc(row[members], row[~members]).value for row in scores], abs=1e-12)
    assert found.p_value[1] == pytest.approx(1 / 1001) and found.p_value[0] > 0.05 and found.p_value[2] > 0.5


def test_permuting_the_labels_silences_every_attack() -> None:
    rng = np.random.default_rng(4)
    members = np.arange(400) < 200
    scores = np.stack([members + rng.normal(0, 0.3, 400) for _ in range(5)])
    assert audit.max_statistic(scores, members, rng=rng).p_value.max() < 0.01
    assert audit.max_statistic(scores, rng.permutation(members), rng=rng).p_value.min() > 0.02


@pytest.mark.parametrize(("n", "known"), [(100, 3.28), (250, 4.21), (500, 4.91), (1000, 5.60)])
def test_clopper_pearson_ceilings(n: int, known: float) -> None:
    # audit.md 2.2; in closed form the rates are 0.025^(1/n) and 1 less that.
    ceiling = audit.clopper_pearson_epsilon(n, n, 0, n, 0.0)
    share = 0.025 ** (1 / n)
    assert ceiling == pytest.approx(log(share / (1 - share)), abs=1e-9) and ceiling == pytest.approx(known, abs=0.006)


def test_perfect_separation_reaches_the_split_ceiling() -> None:
    planted = np.arange(400) < 200
    found = audit.split_epsilon(planted * 1.0, planted, DELTA, seed=0)
    assert found.epsilon == found.ceiling == audit.clopper_pearson_epsilon(100, 100, 0, 100, DELTA)
    assert (found.tpr, found.fpr) == (1, 0)


def test_both_directions_are_tried() -> None:
    # Few members are missed but many others accused: only ln(TNR / FNR) shows it.
    assert audit.clopper_pearson_epsilon(1000, 1000, 500, 1000, 0.0) == pytest.approx(
        log((1 - clopper_pearson(500, 1000)[1]) / (1 - clopper_pearson(1000, 1000)[0]))
    )
    assert audit.clopper_pearson_epsilon(10, 100, 50, 100, 0.0) == 0  # never negative


def test_multi_run_takes_one_trial_a_training() -> None:
    planted = np.random.default_rng(5).random((16, 20)) < 0.5
    found = audit.multi_run_epsilon(planted * 1.0, planted, 0.0, seed=1)
    assert found.members + found.others == 16 and (found.found, found.accused) == (found.members, 0)
    assert found.epsilon == found.ceiling < 0.8  # perfect, and still little can be shown
    assert audit.clopper_pearson_epsilon(8, 8, 0, 8, 0.0) == pytest.approx(0.535, abs=1e-3)
    assert audit.clopper_pearson_epsilon(50, 50, 0, 50, 0.0) == pytest.approx(2.57, abs=1e-2)


def test_detectable_epsilon_is_found_with_that_power() -> None:
    rng, m, k = np.random.default_rng(6), 400, 40
    for claim in (0.0, 1.0):
        epsilon = audit.detectable_epsilon(m, k, DELTA, claim=claim)
        assert epsilon is not None
        mu, found = audit.gaussian_mu(epsilon, DELTA), 0
        for _ in range(500):
            planted = rng.random(m) < 0.5
            guesses = audit.fixed_guesses(mu * planted + rng.standard_normal(m), planted, k)
            found += audit.one_run_p_value(*guesses, m, claim, DELTA) <= 0.05
        assert found / 500 == pytest.approx(0.9, abs=0.05)


def test_power_against_a_claim_agrees_with_the_table() -> None:
    # audit.md below table 2.2.b, m = 1000, k = 10 %: true 8 contradicts 3 in 39 % of audits, 4 contradicts 1 in 99 %.
    at_39 = audit.detectable_epsilon(1000, 100, DELTA, claim=3.0, power=0.39)
    at_99 = audit.detectable_epsilon(1000, 100, DELTA, claim=1.0, power=0.99)
    assert at_39 == pytest.approx(8, abs=0.5) and at_99 == pytest.approx(4, abs=0.3)


def test_more_candidates_find_smaller_leaks_and_too_few_find_none() -> None:
    found = [audit.detectable_epsilon(m, audit.guesses_per_side(m), DELTA) or inf for m in (200, 1000, 4000)]
    assert found == sorted(found, reverse=True) and found[-1] < 0.6
    assert audit.detectable_epsilon(20, 2, DELTA) is None  # four right guesses prove nothing
    assert audit.detectable_epsilon(200, 20, DELTA, claim=audit.one_run_ceiling(40, 200, DELTA) + 0.1) is None


def test_fdp_recurrence_equals_a_slow_oracle() -> None:
    def rejects(m: int, made: int, correct: int, mu: float) -> bool:
        r, h = 0.05 * correct / m, 0.05 * (made - correct) / m
        for i in range(correct - 1, -1, -1):
            new = max(h, float(stats.norm.cdf(stats.norm.ppf(r) - mu)))
            r = min(1, r + i / (made - i) * (new - h))
            h = new
        return bool(r + h > made / m)

    for m, made, correct in [(500, 100, 70), (1000, 100, 95), (200, 40, 40)]:
        mu = audit.gaussian_mu(audit.fdp_epsilon(correct, made, m, DELTA).epsilon, DELTA)
        # Above the cap the claim is contradicted: more noise (a smaller mu) is, less is not.
        assert rejects(m, made, correct, mu * 1.001) != rejects(m, made, correct, mu * 0.999)


def test_fdp_finds_nothing_in_chance() -> None:
    assert audit.fdp_epsilon(50, 100, 500, DELTA).epsilon == 0


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 1.0), (1.0, 1.3), (-0.5, 0.7), (0.0, 1.5), (2.0, 1 + 1e-7)])
def test_pair_epsilon_equals_numerical_integration(mean: float, deviation: float) -> None:
    epsilon = audit.pair_epsilon(mean / 50, deviation / 50, 1 / 50, DELTA)

    def divergence(first: tuple[float, float], second: tuple[float, float]) -> float:
        x = np.linspace(-25, 25, 2_000_001)
        gap = stats.norm.pdf(x, *first) - np.exp(epsilon) * stats.norm.pdf(x, *second)
        return float(integrate.trapezoid(np.maximum(gap, 0), x))

    pair = (mean, deviation), (0.0, 1.0)
    assert max(divergence(*pair), divergence(*pair[::-1])) == pytest.approx(DELTA, rel=1e-3)


def test_pair_epsilon_of_equal_laws_is_zero_and_of_equal_spreads_that_of_the_gaussian_mechanism() -> None:
    assert audit.pair_epsilon(0.0, 1.0, 1.0, DELTA) == 0
    assert audit.pair_epsilon(2.0, 2.0, 2.0, DELTA) == pytest.approx(audit.gaussian_epsilon(1.0, DELTA), abs=1e-9)
    assert audit.gaussian_epsilon(0.0, DELTA) == 0
    assert audit.gaussian_epsilon(audit.gaussian_mu(3.0, DELTA), DELTA) == pytest.approx(3.0, abs=1e-9)


def test_an_undisguised_client_has_a_finite_large_epsilon() -> None:
    cosines = np.concatenate([np.linspace(0.1, 0.11, 50), np.linspace(-0.001, 0.001, 50)])
    found = audit.client_epsilon(cosines, np.arange(100) < 50, 1_000_000, DELTA)
    assert 1000 < found.epsilon.epsilon < inf and found.one_run.epsilon == found.one_run.ceiling


def test_the_bound_of_randomised_response_in_closed_form() -> None:
    # e of 1 + e right: at delta 0 and many trials both bounds close on epsilon 1.
    n = 1_000_000
    right = int(n * e / (1 + e))
    assert audit.clopper_pearson_epsilon(right, n, n - right, n, 0.0) == pytest.approx(1, abs=0.01)
    assert audit.one_run_epsilon(right // 100, n // 100, n // 100, 0.0) == pytest.approx(1, abs=0.05)


def test_bad_values_are_refused() -> None:
    rng, two = np.random.default_rng(0), np.array([True, False])
    with pytest.raises(ValueError, match="fpr must be between 0 and 1, got 2"):
        audit.threshold_for(np.zeros(3), 2)
    with pytest.raises(ValueError, match="threshold is not a number"):
        audit.tpr_at_threshold(np.zeros(3), np.zeros(30), float("nan"), 0.1)
    with pytest.raises(ValueError, match="others must hold one or more scores"):
        audit.advantage(np.zeros(3), np.array([]), rng=rng)
    with pytest.raises(ValueError, match="of members and of others, got 2 and 0"):
        audit.max_statistic(np.zeros((1, 2)), np.array([True, True]), rng=rng)
    with pytest.raises(ValueError, match=r"\(attacks, records\)"):
        audit.max_statistic(np.zeros(2), two, rng=rng)
    with pytest.raises(ValueError, match="got 5 of 4, 0 of 4"):
        audit.clopper_pearson_epsilon(5, 4, 0, 4, 0.0)
    with pytest.raises(ValueError, match=r"delta must be from 0 to below 1, got 1\.5"):
        audit.clopper_pearson_epsilon(4, 4, 0, 4, 1.5)
    with pytest.raises(ValueError, match="got 1 and 1"):
        audit.split_epsilon(np.zeros(2), two, DELTA, seed=0)
    with pytest.raises(ValueError, match="3 or more candidates"):
        audit.multi_run_epsilon(np.zeros((4, 2)), np.zeros((4, 2), dtype=bool), DELTA, seed=0)
    with pytest.raises(ValueError, match="got 0 planted and 4 held out"):
        audit.multi_run_epsilon(np.zeros((4, 3)), np.zeros((4, 3), dtype=bool), DELTA, seed=0)
    with pytest.raises(ValueError, match="k must be from 1 to 5"):
        audit.detectable_epsilon(10, 6, DELTA)
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        audit.detectable_epsilon(10, 2, 0.0)
    with pytest.raises(ValueError, match="epsilon >= 0"):
        audit.detectable_epsilon(10, 2, DELTA, claim=-1)
    with pytest.raises(ValueError, match="got 7, 6, 10"):
        audit.fdp_epsilon(7, 6, 10, DELTA)
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        audit.fdp_epsilon(5, 6, 10, 0.0)
    with pytest.raises(ValueError, match="cosines from -1 to 1, got 1 in 100"):
        audit.client_epsilon(np.zeros(2), two, 100, DELTA)
    with pytest.raises(ValueError, match="positive deviations"):
        audit.pair_epsilon(0.0, 0.0, 1.0, DELTA)
    with pytest.raises(ValueError, match="needs mu >= 0"):
        audit.gaussian_epsilon(-1.0, DELTA)
