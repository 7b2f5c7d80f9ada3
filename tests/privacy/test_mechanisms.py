"""What the mechanisms release: correlated noise, and a clip norm that follows a quantile."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import toeplitz

from reticent.privacy.clipping import Clipping, Quantile
from reticent.privacy.noise import mechanism_for
from reticent.privacy.plan import banded_plan, dpsgd_plan
from reticent.privacy.toeplitz import optimised

SURE = 1e-6
GOOD = {"unit": "owner", "units": 4000, "batch_size": 200, "steps": 12, "delta": 1e-5, "clip_norm": 0.5}


def _series(plan, steps, width=4000):
    """(steps, width): what the mechanism of ``plan`` adds to zeros, in units of noise_multiplier * clip_norm."""
    mechanism, rows = mechanism_for(plan), []
    for _ in range(steps):
        sums = {"a": torch.zeros(width // 2), "b": torch.zeros(2, width // 4)}
        std = mechanism.add_noise(sums)
        rows.append(torch.cat([sums["a"], sums["b"].flatten()]).numpy() / (plan.noise_multiplier * plan.clip_norm))
        assert rows[-1].std() * plan.noise_multiplier * plan.clip_norm == pytest.approx(std, rel=0.1)
    return np.array(rows)


# Correlated noise.


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_correlated_noise_has_the_covariance_of_the_strategys_inverse(bands):
    """C y must be standard normal in all steps: white, which is the covariance C^-1 C^-T."""
    plan = banded_plan(**GOOD, bands=bands, noise_multiplier=1.3)
    column = np.zeros(12)
    column[:bands] = optimised(bands, 12)
    white = toeplitz(column, np.zeros(12)) @ _series(plan, 12)
    assert SURE < stats.chi2(white.size).cdf((white**2).sum()) < 1 - SURE
    pairs = np.corrcoef(white)[np.triu_indices(12, 1)] * np.sqrt(white.shape[1])
    assert np.abs(pairs).max() < stats.norm.isf(SURE / len(pairs))


def test_the_noise_of_one_step_undoes_part_of_the_last():
    noise = _series(banded_plan(**GOOD, bands=4, noise_multiplier=1.3), 12)
    assert all(np.corrcoef(noise[t], noise[t + 1])[0, 1] < -0.2 for t in range(11))
    assert (noise.sum(0) ** 2).mean() < 0.5 * 12


def test_one_band_is_independent_noise():
    noise = _series(banded_plan(**GOOD, bands=1, noise_multiplier=1.3), 12)
    assert SURE < stats.chi2(noise.size).cdf((noise**2).sum()) < 1 - SURE


def test_a_new_mechanism_knows_nothing_of_old_noise():
    plan = banded_plan(**GOOD, bands=4, noise_multiplier=1.3)
    before, after = _series(plan, 3), _series(plan, 3)
    assert abs(np.corrcoef(before[2], after[0])[0, 1]) < 0.1
    assert after[0].std() == pytest.approx(1 / optimised(4, 12)[0], rel=0.08)


# A clip norm that follows a quantile.


def _plan(noise_multiplier=1.0, **quantile):
    values = {"target": 0.5, "rate": 0.2, "noise": 10.0, **quantile}
    return dpsgd_plan(**GOOD, quantile=Quantile(**values), noise_multiplier=noise_multiplier)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 30.0])
def test_the_clip_norm_converges_to_the_quantile_of_the_norms(target, start):
    rng, law = np.random.default_rng(1), stats.lognorm(0.7, scale=2.0)
    mechanism, tracked = mechanism_for(_plan(target=target), start), []
    for _ in range(600):
        norms = law.rvs(rng.binomial(4000, 0.05), random_state=rng)
        mechanism.follow(below=int((norms <= mechanism.clip_norm).sum()), drawn=len(norms))
        tracked.append(mechanism.clip_norm)
    assert np.exp(np.mean(np.log(tracked[200:]))) == pytest.approx(law.ppf(target), rel=0.05)


def test_what_is_clipped_next_is_what_was_followed():
    mechanism = mechanism_for(_plan())
    mechanism.follow(below=200, drawn=200)
    assert mechanism.clipping == Clipping(mechanism.clip_norm, "flat") and mechanism.clip_norm != 0.5


@pytest.mark.parametrize("sigma", [0.6, 1.0, 10.0])
def test_sum_and_count_together_cost_the_accounted_noise(sigma):
    """One unit moves the sum by C and the count by 1/2, each over its noise: the joint sensitivity is 1/z."""
    plan = _plan(noise=sigma)
    joint = np.hypot(plan.clip_norm / (plan.sum_noise * plan.clip_norm), 0.5 / sigma)
    assert joint == pytest.approx(1 / plan.noise_multiplier) and plan.sum_noise > plan.noise_multiplier


@pytest.mark.parametrize("below", [True, False])
def test_one_unit_more_moves_the_count_by_a_half(below, monkeypatch):
    seen = []
    monkeypatch.setattr(Quantile, "next_norm", lambda self, norm, count, batch: seen.append(count) or norm)
    monkeypatch.setattr("reticent.privacy.noise.add_normals", lambda *args: None)
    for drawn in (9, 10):
        mechanism_for(_plan()).follow(below=4 + (below and drawn == 10), drawn=drawn)
    assert abs(seen[1] - seen[0]) == 0.5


def test_the_noise_of_the_count_is_the_stated_one(monkeypatch):
    counts = []
    monkeypatch.setattr(Quantile, "next_norm", lambda self, norm, count, batch: counts.append(count) or norm)
    mechanism = mechanism_for(_plan(noise=3.0))
    for _ in range(4000):
        mechanism.follow(below=7, drawn=20)
    assert stats.kstest((np.array(counts) + 3) / 3.0, "norm").pvalue > SURE


def test_the_noise_of_the_sum_follows_the_clip_norm_and_makes_room_for_the_count():
    plan = _plan(noise=0.8)
    for norm in (0.5, 3.0):
        sums = {"a": torch.zeros(20_000)}
        std = mechanism_for(plan, norm).add_noise(sums)
        assert std == pytest.approx(norm / np.sqrt(1 - 1 / 1.6**2))
        assert SURE < stats.chi2(20_000).cdf(float((sums["a"].double() / std).square().sum())) < 1 - SURE


def test_a_fixed_clip_norm_stays():
    for plan in (dpsgd_plan(**GOOD, noise_multiplier=1.0), banded_plan(**GOOD, bands=3, noise_multiplier=1.0)):
        mechanism = mechanism_for(plan)
        mechanism.follow(below=3, drawn=200)
        assert mechanism.clipping == plan.clipping
