"""Plans that cannot keep their promise are refused."""

import pytest

from reticent.errors import PrivacyError
from reticent.privacy.accounting import Release, spent
from reticent.privacy.plan import dpsgd_plan, nonprivate_plan

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
