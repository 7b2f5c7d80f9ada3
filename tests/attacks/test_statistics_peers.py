"""Equality with other auditors on the same arrays where they are valid, and the difference where they are not (G6)."""

import sys
from importlib import metadata, util
from types import ModuleType

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from reticent.attacks import statistics as audit
from reticent.statistics import auc

DELTA = 1e-5


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """jax_privacy's auditing.py, loaded alone: the package itself would need jax."""
    try:
        path = metadata.distribution("jax-privacy").locate_file("jax_privacy/auditing.py")
    except metadata.PackageNotFoundError:
        pytest.fail("these tests compare with jax-privacy: pip install --no-deps jax-privacy==2.0.0", pytrace=False)
    spec = util.spec_from_file_location("jax_privacy_auditing", str(path))
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def _groups(seed: int, mu: float = 1.0, n: int = 300, m: int = 280) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1, n), rng.normal(0, 1, m)


def test_auc_and_roc_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 200) + 1.0, rng.integers(0, 9, 150) + 0.0
    labels, scores = np.repeat([1, 0], [200, 150]), np.concatenate([members, others])
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    found = audit.roc(members, others)
    assert auc(members, others).value == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert found.fpr == pytest.approx(fpr, abs=1e-12) and found.tpr == pytest.approx(tpr, abs=1e-12)


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 1.5, 9.0])
@pytest.mark.parametrize("delta", [0.0, DELTA])
def test_clopper_pearson_equals_jax_privacy_at_a_fixed_threshold(
    peer: ModuleType, threshold: float, delta: float
) -> None:
    members, others = _groups(1)
    theirs = peer.CanaryScoreAuditor(members, others).epsilon_clopper_pearson(
        0.05, delta, one_sided=False, threshold_strategy=peer.Explicit(threshold)
    )
    found, accused = int((members >= threshold).sum()), int((others >= threshold).sum())
    ours = audit.clopper_pearson_epsilon(found, len(members), accused, len(others), delta)
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_the_split_bound_equals_jax_privacy_on_the_half_that_is_judged(peer: ModuleType) -> None:
    members, others = _groups(2, mu=2.0)
    scores, planted = np.concatenate([members, others]), np.repeat([True, False], [300, 280])
    found = audit.split_epsilon(scores, planted, DELTA, seed=7)
    rng = np.random.default_rng(7)
    judged = [np.array_split(rng.permutation(group), 2)[1] for group in (members, others)]
    theirs = peer.CanaryScoreAuditor(*judged).epsilon_clopper_pearson(
        0.05, DELTA, one_sided=False, threshold_strategy=peer.Explicit(found.threshold)
    )
    assert found.epsilon == pytest.approx(theirs, abs=1e-9)
    assert 0 < found.epsilon < found.ceiling and found.tpr > found.fpr


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0, 2.5])
def test_one_run_equals_jax_privacy_at_a_fixed_threshold(peer: ModuleType, threshold: float) -> None:
    members, others = _groups(3, mu=1.5)
    theirs = peer.CanaryScoreAuditor(members, others).epsilon_one_run(
        0.05, DELTA, threshold_strategy=peer.Explicit(threshold)
    )
    correct = int((members >= threshold).sum())
    made = correct + int((others >= threshold).sum())
    assert audit.one_run_epsilon(correct, made, 580, DELTA) == pytest.approx(theirs, abs=2e-6)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0, 2.5])
def test_fdp_equals_jax_privacy_at_a_fixed_threshold(peer: ModuleType, threshold: float) -> None:
    members, others = _groups(4, mu=1.5)
    theirs = peer.CanaryScoreAuditor(members, others).epsilon_one_run_fdp(
        0.05, DELTA, threshold_strategy=peer.Explicit(threshold)
    )
    correct = int((members >= threshold).sum())
    made = correct + int((others >= threshold).sum())
    ours = audit.fdp_epsilon(correct, made, 580, DELTA)
    assert ours.epsilon == pytest.approx(theirs, abs=5e-6) and ours.epsilon > 0
    assert ours.assumption == "assumes a Gaussian trade-off curve"


def test_one_run_p_value_equals_jax_privacy_and_privacy_meters_sum(peer: ModuleType) -> None:
    def direct_sum(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
        # The published pseudocode (arXiv:2305.08846, appendix D), term by term, as privacy-meter computes it.
        q = 1 / (1 + np.exp(-epsilon))
        beta = stats.binom.sf(v - 1, r, q)
        alpha, total = 0.0, 0.0
        for i in range(1, v + 1):
            total += stats.binom.pmf(v - i, r, q)
            alpha = max(alpha, total / i)
        return min(beta + alpha * delta * 2 * m, 1)

    for m, r, v, epsilon, delta in [(500, 100, 60, 0.2, 1e-5), (1000, 100, 90, 1.5, 1e-4), (40, 40, 40, 2.0, 1e-2)]:
        ours = audit.one_run_p_value(v, r, m, epsilon, delta)
        assert ours == pytest.approx(direct_sum(m, r, v, epsilon, delta), rel=1e-8)
        assert ours == pytest.approx(peer._one_run_p_value(m, r, v, epsilon, delta), rel=1e-8)


def test_gaussian_epsilon_equals_dp_accounting() -> None:
    import dp_accounting

    for mu in (0.3, 1.0, 5.0):
        theirs = dp_accounting.get_epsilon_gaussian(1 / mu, DELTA)
        assert audit.gaussian_epsilon(mu, DELTA) == pytest.approx(theirs, abs=1e-6)


def test_rates_equal_jax_privacy_where_the_roc_is_concave(peer: ModuleType) -> None:
    # One step: the hull of the curve is the curve.
    members, others = np.repeat([1.0, 0.0], [240, 60]), np.repeat([1.0, 0.0], [80, 320])
    theirs = peer.CanaryScoreAuditor(members, others)
    assert auc(members, others).value == pytest.approx(theirs.attack_auroc(), abs=1e-12)
    assert audit.tpr_at_fpr(members, others, 0.2).tpr == pytest.approx(theirs.tpr_at_given_fpr(0.2), abs=1e-12)


def test_jax_privacy_rates_are_of_the_hull_and_never_below_ours(peer: ModuleType) -> None:
    # Documented difference: it lets the attacker mix thresholds chosen on these very scores.
    members, others = _groups(5, mu=0.5)
    theirs = peer.CanaryScoreAuditor(members, others)
    assert theirs.attack_auroc() > auc(members, others).value
    assert theirs.tpr_at_given_fpr(0.05) >= audit.tpr_at_fpr(members, others, 0.05).tpr


def test_jax_privacy_one_run_is_corrected_for_fewer_thresholds_than_it_searched(peer: ModuleType) -> None:
    # Documented difference: its Bonferroni divides by the corners of the hull, which the data chose. We search none.
    members, others = _groups(6, mu=0.0, n=1000, m=1000)
    auditor = peer.CanaryScoreAuditor(members, others)
    corners = len(auditor._fn_counts)
    assert corners < 40 < len(np.unique(np.concatenate([members, others])))
    at_corners = [
        auditor.epsilon_one_run(0.05 / corners, DELTA, threshold_strategy=peer.Explicit(at))
        for at in auditor._thresholds[:-1]
    ]
    assert auditor.epsilon_one_run(0.05, DELTA) == pytest.approx(max(at_corners), abs=1e-5)
