"""Plans that cannot keep their promise are refused."""

import pytest

from reticent.errors import PrivacyError
from reticent.privacy.accounting import Release, spent
from reticent.privacy.clipping import Clipping, Quantile
from reticent.privacy.plan import banded_plan, dpfedavg_plan, dpsgd_plan, nonprivate_plan

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


# Sites as units.

SITES = {"sites": 20, "per_round": 5, "rounds": 30, "delta": 1e-3, "clip_norm": 0.5}


def test_noise_at_the_server_is_amplified_by_the_draw_and_shared_noise_is_not():
    server = dpfedavg_plan(**SITES, noise_multiplier=2.0)
    shared = dpfedavg_plan(**SITES, noise_multiplier=2.0, noise="distributed", threshold=4)
    assert server.spent_events(9) == [(Release(0.25, 2.0), 9)] and shared.spent_events(9) == [(Release(1.0, 2.0), 9)]
    assert server.sampling_prob == shared.sampling_prob == 0.25


@pytest.mark.parametrize("shared", [{}, {"noise": "distributed", "threshold": 4}])
def test_a_plan_for_sites_keeps_its_epsilon(shared):
    plan = dpfedavg_plan(**SITES, epsilon=4.0, **shared)
    total = spent(plan.spent_events(plan.steps), plan.delta).epsilon
    assert 3.9 < total <= 4.0 and (plan.unit, plan.epsilon) == ("client", 4.0)


def test_a_plan_for_few_sites_is_refused_unless_forced_by_name():
    few = {**SITES, "sites": 3, "per_round": 2}
    with pytest.raises(PrivacyError, match="DP-FedAvg over 3 sites is meaningless, it needs 10 or more"):
        dpfedavg_plan(**few, noise_multiplier=1.0)
    assert dpfedavg_plan(**few, noise_multiplier=1.0, few_clients=True).few
    assert not dpfedavg_plan(**{**SITES, "sites": 10}, noise_multiplier=1.0).few


def test_a_delta_of_one_over_the_sites_is_refused():
    with pytest.raises(PrivacyError, match="below 1 / units = 0.05 .* giving away one whole site"):
        dpfedavg_plan(**{**SITES, "delta": 0.05}, noise_multiplier=1.0)


def test_more_sites_in_a_round_than_there_are_is_refused():
    with pytest.raises(PrivacyError, match="at most the number of sites, 20, got 21"):
        dpfedavg_plan(**{**SITES, "per_round": 21}, noise_multiplier=1.0)


@pytest.mark.parametrize("shared", [{"noise": "distributed"}, {"threshold": 3}])
def test_a_threshold_belongs_to_distributed_noise(shared):
    with pytest.raises(PrivacyError, match="a threshold with distributed noise, and only with it"):
        dpfedavg_plan(**SITES, noise_multiplier=1.0, **shared)


@pytest.mark.parametrize("threshold", [0, 1, 6])
def test_a_threshold_that_a_round_does_not_reach_or_that_is_no_sum_is_refused(threshold):
    with pytest.raises(PrivacyError, match=f"from 2 to the expected number of sites in a round, 5, got {threshold}"):
        dpfedavg_plan(**SITES, noise_multiplier=1.0, noise="distributed", threshold=threshold)


def test_a_count_of_sites_that_costs_more_than_the_round_is_refused():
    with pytest.raises(PrivacyError, match="noise must be above half the noise multiplier"):
        dpfedavg_plan(**SITES, quantile=Quantile(target=0.5, rate=0.2, noise=0.5), noise_multiplier=1.0)
