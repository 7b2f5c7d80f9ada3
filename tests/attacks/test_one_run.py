"""The one-run audit and ROC against known answers, a slow oracle and mechanisms whose epsilon is known."""

from math import log

import numpy as np
import pytest
from scipy import stats

from reticent.attacks import statistics as audit

DELTA = 1e-5


def _gaussian(rng: np.random.Generator, mu: float, m: int) -> tuple[np.ndarray, np.ndarray]:
    planted = rng.random(m) < 0.5
    return mu * planted + rng.standard_normal(m), planted


def _bound(scores: np.ndarray, planted: np.ndarray, k: int, delta: float = DELTA) -> float:
    correct, made = audit.fixed_guesses(scores, planted, k)
    return audit.one_run_epsilon(correct, made, len(scores), delta)


@pytest.mark.parametrize(
    ("r", "v", "significance", "known"),
    [(100, 100, 0.05, 3.4791953), (100, 100, 0.01, 3.0231975), (35, 23, 0.05, 0.0145487), (100, 60, 0.05, 0.0507356)],
)
def test_known_answers(r: int, v: int, significance: float, known: float) -> None:
    # G1: published by a third party, m = 500.
    assert audit.one_run_epsilon(v, r, 500, DELTA, significance=significance) == pytest.approx(known, abs=1e-7)


def test_p_value_equals_a_slow_oracle() -> None:
    for r, v, m, epsilon, delta in [(35, 23, 500, 0.5, 1e-3), (20, 20, 40, 2.0, 1e-2), (10, 1, 10, 0.0, 0.1)]:
        law = stats.binom(r, 1 / (1 + np.exp(-epsilon)))
        alpha = max(sum(law.pmf(j) for j in range(v - i, v)) / i for i in range(1, v + 1))
        oracle = min(1, sum(law.pmf(j) for j in range(v, r + 1)) + 2 * m * delta * alpha)
        assert audit.one_run_p_value(v, r, m, epsilon, delta) == pytest.approx(oracle, rel=1e-9)


@pytest.mark.parametrize(("r", "known"), [(50, 2.79), (100, 3.49), (500, 5.11), (2000, 6.50)])
def test_perfect_separation_gives_the_ceiling(r: int, known: float) -> None:
    planted = np.arange(r) < r // 2
    assert _bound(planted * 1.0, planted, r // 2, delta=0) == audit.one_run_ceiling(r, r, 0)
    assert audit.one_run_ceiling(r, r, 0) == pytest.approx(-log(0.05 ** (-1 / r) - 1), abs=1e-8)
    assert audit.one_run_ceiling(r, r, 0) == pytest.approx(known, abs=0.006)


def test_no_leak_gives_no_claim() -> None:
    # G4, at the nominal 5 %: 1,000 audits, 3 standard errors of slack.
    rng = np.random.default_rng(0)
    for m in (100, 500):
        claims = [_bound(*_gaussian(rng, 0, m), audit.guesses_per_side(m)) > 0 for _ in range(1000)]
        assert np.mean(claims) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0])
def test_randomised_response(epsilon: float) -> None:
    # G2: pure DP, so the bound may exceed epsilon in 5 % of audits, and k = 50 % gets close to it.
    rng, m, bounds = np.random.default_rng(1), 2000, []
    for _ in range(300):
        planted = rng.random(m) < 0.5
        truthful = rng.random(m) < 1 / (1 + np.exp(-epsilon))
        bounds.append(_bound(np.where(truthful, planted, ~planted) * 1.0, planted, m // 2))
    assert np.mean(np.array(bounds) > epsilon) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.median(bounds) >= 0.75 * epsilon


def test_gaussian_mechanism_is_not_overstated() -> None:
    # G3: mu = 1 is exactly (4.377, 1e-5)-DP.
    rng = np.random.default_rng(2)
    bounds = [_bound(*_gaussian(rng, 1, 1000), 50) for _ in range(200)]
    assert max(bounds) < 4.377 and np.median(bounds) > 1


@pytest.mark.parametrize(("mu", "epsilon"), [(0.5, 1.993), (1, 4.377), (2, 9.997)])
def test_gaussian_mu_known_answers(mu: float, epsilon: float) -> None:
    assert audit.gaussian_mu(epsilon, DELTA) == pytest.approx(mu, abs=2e-4)


@pytest.mark.parametrize(
    ("epsilon", "m", "known", "slack"), [(4, 200, 0.93, 0.3), (4, 1000, 1.46, 0.2), (8, 1000, 2.71, 0.3)]
)
def test_ideal_attacker_agrees_with_the_table(epsilon: float, m: int, known: float, slack: float) -> None:
    # audit.md table 2.2.b, 40 audits a cell, k = 5 % per side.
    found = audit.ideal_epsilon(epsilon, DELTA, m, m // 20, rng=np.random.default_rng(3))
    assert found == pytest.approx(known, abs=slack)


def test_guesses_take_both_ends() -> None:
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    planted = np.array([True, False, True, True, False, True])
    assert audit.fixed_guesses(scores, planted, 2) == (2, 4)


def test_tied_scores_never_help_the_attacker() -> None:
    # Members listed first would win by position under a stable sort.
    assert audit.fixed_guesses(np.zeros(8), np.arange(8) < 4, 2) == (0, 4)


def test_guesses_per_side_is_fixed_by_the_count() -> None:
    assert [audit.guesses_per_side(m) for m in (5, 400, 999, 1000, 4000)] == [1, 40, 99, 50, 200]


def test_roc_known_answer() -> None:
    fpr, tpr = audit.roc(np.array([3.0, 2.0]), np.array([2.0, 1.0]))
    assert fpr.tolist() == [0, 0, 0.5, 1] and tpr.tolist() == [0, 0.5, 1, 1]


def test_tpr_never_exceeds_the_false_positive_rate_asked_for() -> None:
    rng = np.random.default_rng(4)
    members, others = rng.integers(0, 30, 200) + 3.0, rng.integers(0, 30, 400) + 0.0
    for target in (0.01, 0.05, 0.2):
        fpr, tpr = audit.roc(members, others)
        found = audit.tpr_at_fpr(members, others, target)
        assert found.tpr == tpr[fpr <= target].max() and found.fpr == fpr[fpr <= target].max() <= found.fpr_upper


def test_a_low_rate_needs_enough_others() -> None:
    with pytest.raises(ValueError, match=r"0\.001 needs 3000 others or more, got 2999"):
        audit.tpr_at_fpr(np.zeros(5), np.zeros(2999), 0.001)


def test_membership_of_an_overfit_model() -> None:
    rng = np.random.default_rng(5)
    planted = rng.random(1000) < 0.5
    result = audit.membership(planted + rng.normal(0, 0.05, 1000), planted, delta=DELTA, claim=2)
    assert result.auc.value == 1 and [found.target for found in result.at_fpr] == [0.1, 0.01]
    assert result.one_run.epsilon == result.one_run.ceiling > 2
    assert result.one_run.p_value is not None and result.one_run.p_value < 2e-3


def test_membership_under_permuted_labels_is_silent() -> None:
    rng = np.random.default_rng(6)
    result = audit.membership(rng.normal(size=400), rng.random(400) < 0.5, delta=DELTA)
    low, high = result.auc.interval or (1, 0)
    assert low < 0.5 < high and result.one_run.p_value is None and result.one_run.epsilon < 0.2


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="k must be from 1 to 2"):
        audit.fixed_guesses(np.zeros(4), np.zeros(4, dtype=bool), 3)
    with pytest.raises(ValueError, match="as many booleans"):
        audit.fixed_guesses(np.zeros(4), np.zeros(4), 1)
    with pytest.raises(ValueError, match="got 7, 6, 10"):
        audit.one_run_p_value(7, 6, 10, 1.0, 0.0)
    with pytest.raises(ValueError, match="epsilon >= 0"):
        audit.one_run_p_value(5, 6, 10, -1.0, 0.0)
    with pytest.raises(ValueError, match=r"delta < 1, got 1\.0 and 0"):
        audit.gaussian_mu(1.0, 0)
