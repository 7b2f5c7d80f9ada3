"""Plans that cannot keep their promise are refused."""

import pytest

from reticent.errors import PrivacyError
from reticent.privacy.accounting import Release, spent
from reticent.privacy.clipping import Clipping, Quantile
from reticent.privacy.plan import banded_plan, dpsgd_plan, nonprivate_plan

GOOD = {"unit": "owner", "units": 100, "batch_size": 10, "steps": 20, "delta": 1e-3, "clip_norm": 1.0}


def test_a_plan_keeps_its_epsilon():
    plan = dpsgd_plan(**GOOD, epsilon=0.8)
    assert plan.release == Release(0.1, plan.noise_multiplier)
    assert 0.79 < spent([(plan.release, plan.steps)], plan.delta).epsilon <= 0.8


def test_a_plan_from_noise_promises_no_epsilon():
    plan = dpsgd_plan(**GOOD, noise_multiplier=1.5)
    assert (plan.noise_multiplier, plan.epsilon) == (1.5, None)


@pytest.mark.parametrize("both", [{}, {"epsilon": 1.0, "noise_multiplier": 1.0}])
def test_epsilon_and_noise_are_one_choice(both):
    with pytest.raises(PrivacyError, match="exactly one of epsilon and noise_multiplier"):
        dpsgd_plan(**GOOD, **both)


@pytest.mark.parametrize("delta", [0.01, 0.5])
def test_a_delta_of_one_over_n_is_refused(delta):
    with pytest.raises(PrivacyError, match=rf"below 1 / units = 0.01 \(100 owners to train on\), got {delta:g}"):
        dpsgd_plan(**{**GOOD, "delta": delta}, noise_multiplier=1.0)


def test_a_batch_beyond_the_units_is_refused():
    with pytest.raises(PrivacyError, match="at most the number of units, 100 .* got 101"):
        dpsgd_plan(**{**GOOD, "batch_size": 101}, noise_multiplier=1.0)
    with pytest.raises(PrivacyError, match="at most the number of units, 5 .* got 6"):
        nonprivate_plan(unit="record", units=5, batch_size=6, steps=1)


def test_a_plan_says_how_units_are_bounded():
    plan = dpsgd_plan(**GOOD, clip_style="per-layer", noise_multiplier=1.5)
    assert plan.clipping == Clipping(1.0, "per-layer") and "per-layer clipping" in plan.mechanism


def test_steps_cost_one_release_each_and_banded_steps_one_a_round():
    plain, banded = dpsgd_plan(**GOOD, noise_multiplier=1.5), banded_plan(**GOOD, bands=4, noise_multiplier=1.5)
    assert plain.spent_events(9) == [(Release(0.1, 1.5), 9)]
    assert [banded.spent_events(n) for n in (0, 1, 4, 5)] == [[(Release(0.4, 1.5), k)] for k in (0, 1, 1, 2)]


def test_one_band_is_plain_dp_sgd():
    plain, banded = dpsgd_plan(**GOOD, noise_multiplier=1.5), banded_plan(**GOOD, bands=1, noise_multiplier=1.5)
    assert banded.spent_events(20) == plain.spent_events(20)


def test_a_banded_plan_keeps_its_epsilon():
    plan = banded_plan(**GOOD, bands=4, epsilon=0.8)
    assert 0.79 < spent(plan.spent_events(plan.steps), plan.delta).epsilon <= 0.8


def test_groups_smaller_than_a_batch_are_refused():
    with pytest.raises(PrivacyError, match=r"units, 100 .* got 11 \* 10 = 110: .* Lower privacy.bands to 10 or less"):
        banded_plan(**GOOD, bands=11, noise_multiplier=1.0)


def test_a_tracked_clip_norm_needs_flat_clipping():
    quantile = Quantile(target=0.5, rate=0.2, noise=10.0)
    with pytest.raises(PrivacyError, match="clip_quantile needs clip_style: flat, got normalised"):
        dpsgd_plan(**GOOD, clip_style="normalised", quantile=quantile, noise_multiplier=1.0)


@pytest.mark.parametrize("noise", [0.3, 0.5])
def test_a_count_that_costs_more_than_the_step_is_refused(noise):
    with pytest.raises(PrivacyError, match=f"noise must be above half the noise multiplier, 0.5, got {noise}"):
        dpsgd_plan(**GOOD, quantile=Quantile(target=0.5, rate=0.2, noise=noise), noise_multiplier=1.0)
