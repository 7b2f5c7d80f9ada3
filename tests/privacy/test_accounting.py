"""Epsilon against known answers, and calibration."""

import pytest

from reticent.errors import PrivacyError
from reticent.privacy import accounting
from reticent.privacy.accounting import Release, calibrate, spent


def test_the_known_answer_of_a_published_setting():
    """Row R9: q 0.02719, noise 1.2, 184 steps, delta 1e-7."""
    result = spent([(Release(0.02719, 1.2), 184)], 1e-7)
    assert (round(result.epsilon, 2), round(result.epsilon_rdp, 2)) == (2.26, 2.54)


def test_the_known_answer_without_sampling():
    assert spent([(Release(1.0, 1.2), 5)], 1e-7).epsilon == pytest.approx(10.95, abs=0.005)


def test_the_gaussian_mechanism_has_its_closed_form():
    """Balle and Wang 2018, theorem 8: delta(epsilon) of one release."""
    from scipy.stats import norm

    epsilon, noise = spent([(Release(1.0, 2.0), 1)], 1e-5).epsilon, 2.0
    a, b = 1 / (2 * noise), epsilon * noise
    assert norm.cdf(a - b) - pow(2.718281828459045, epsilon) * norm.cdf(-a - b) == pytest.approx(1e-5, rel=2e-3)


def test_no_release_spends_nothing():
    assert spent([], 1e-5).epsilon == 0


def test_releases_add_up_in_any_grouping():
    release = Release(0.1, 2.0)
    assert spent([(release, 10)], 1e-5).epsilon == pytest.approx(
        spent([(release, 4), (release, 6)], 1e-5).epsilon, rel=1e-3
    )


def test_more_releases_cost_more():
    costs = [spent([(Release(0.1, 1.0), n)], 1e-5).epsilon for n in (1, 2, 8)]
    assert costs == sorted(set(costs))


def test_two_accountants_that_disagree_give_no_figure(monkeypatch):
    monkeypatch.setattr(accounting.RdpAccountant, "get_epsilon", lambda self, delta: 0.1)
    with pytest.raises(PrivacyError, match="accountants disagree"):
        spent([(Release(0.1, 1.0), 10)], 1e-5)


def test_no_noise_gives_no_figure():
    with pytest.raises(PrivacyError, match="accountants disagree"):
        spent([(Release(0.1, 0.0), 1)], 1e-5)


@pytest.mark.parametrize(("epsilon", "prob", "steps"), [(0.5, 0.05, 20), (0.1, 1.0, 3), (5.0, 1.0, 1)])
def test_calibration_is_tight_and_never_above_the_target(epsilon, prob, steps):
    noise = calibrate(epsilon=epsilon, delta=1e-5, sampling_prob=prob, steps=steps)
    assert spent([(Release(prob, noise), steps)], 1e-5).epsilon <= epsilon
    assert spent([(Release(prob, noise * 0.997), steps)], 1e-5).epsilon > epsilon


class _Toy:
    """An accountant by which n releases cost n / noise."""

    def __init__(self, neighbours, **options):
        self._cost = 0.0

    def compose(self, event, times):
        self._cost += times / event.event.noise_multiplier

    def get_epsilon(self, delta):
        return self._cost


def test_a_target_out_of_reach_is_refused(monkeypatch):
    monkeypatch.setattr(accounting, "PLDAccountant", _Toy)
    with pytest.raises(PrivacyError, match="epsilon 0.5 at delta 1e-05 cannot be reached in 1000 steps"):
        calibrate(epsilon=0.5, delta=1e-5, sampling_prob=0.1, steps=1000)


def test_a_target_that_promises_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(accounting, "PLDAccountant", _Toy)
    with pytest.raises(PrivacyError, match="epsilon 500 needs .* below 0.1, which protects nobody"):
        calibrate(epsilon=500, delta=1e-5, sampling_prob=0.1, steps=1)


@pytest.mark.parametrize("epsilon", [0.02, 1.0, 3.0, 9.9])
def test_calibration_finds_the_noise_of_a_toy(monkeypatch, epsilon):
    monkeypatch.setattr(accounting, "PLDAccountant", _Toy)
    noise = calibrate(epsilon=epsilon, delta=1e-5, sampling_prob=0.1, steps=1)
    assert 1 / epsilon <= noise <= 1.001 / epsilon
