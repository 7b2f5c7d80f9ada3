"""One site hidden with all its data: bounds, noise, divisor and ledger agree, also where sites drop out."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from reticent.errors import FederationError, PrivacyError
from reticent.federation import client_privacy
from reticent.federation.client_privacy import (
    BoundedSum,
    check_update,
    clip_update,
    contribution,
    encoding_for,
    read_sum,
    release_shared,
)
from reticent.privacy.clipping import Quantile
from reticent.privacy.ledger import Ledger
from reticent.privacy.noise import mechanism_for
from reticent.privacy.plan import dpfedavg_plan
from reticent.privacy.sampling import PoissonSampler

SURE = 1e-6
SHAPES = {"b.A": (4, 30), "a.B": (50,)}
WIDE = {"w": (20_000,)}
FOLLOW = Quantile(target=0.5, rate=0.2, noise=2.0)


def _update(seed, scale=1.0, shapes=SHAPES):
    draw = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def _plan(**changes):
    values = {"sites": 20, "per_round": 5, "rounds": 3, "delta": 1e-3, "clip_norm": 0.5, "noise_multiplier": 1.0}
    return dpfedavg_plan(**{**values, **changes})


def _shared(**changes):
    return _plan(**{"noise": "distributed", "threshold": 4, **changes})


def _norm(update):
    """Slow and obvious."""
    return math.sqrt(math.fsum(float(x) ** 2 for value in update.values() for x in value.flatten()))


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr("reticent.privacy.noise.add_normals", lambda *args: None)
    monkeypatch.setattr(client_privacy, "add_discrete_gaussians", lambda *args: None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def _round(path, plan, updates, asked=5, shapes=SHAPES, clip_norm=None):
    ledger = Ledger.open(path) if path.exists() else Ledger.create(path, plan)
    mechanism = mechanism_for(plan, clip_norm)
    total = BoundedSum(shapes, plan, mechanism)
    for update in updates:
        total.add(update)
    return total.release(ledger, asked), mechanism


# Bounds.


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 0.05, 1.0, 1e6, 1e25])
@pytest.mark.parametrize("seed", range(3))
def test_a_clipped_update_is_within_the_clip_norm_in_float64(scale, seed):
    clipped, before = clip_update(_update(seed, scale), 0.5), _norm(_update(seed, scale))
    assert _norm(clipped.update) <= 0.5 and clipped.norm == pytest.approx(before)
    assert clipped.below == (before <= 0.5)


def test_clipping_keeps_the_direction_and_almost_all_of_the_norm():
    update, clipped = _update(0), clip_update(_update(0), 0.5)
    assert _norm(clipped.update) > 0.4999
    for name, value in update.items():
        assert torch.allclose(clipped.update[name], value * 0.5 / _norm(update), rtol=1e-5)


def test_a_small_update_is_left_as_it_is():
    update = _update(0, 0.01)
    assert all(torch.equal(value, update[name]) for name, value in clip_update(update, 0.5).update.items())


def test_clipping_twice_is_clipping_once():
    once = clip_update(_update(0), 0.5)
    twice = clip_update(once.update, 0.5)
    assert twice.below and all(torch.equal(twice.update[name], once.update[name]) for name in SHAPES)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_an_update_that_is_not_finite_or_absurd_counts_as_zeros(bad):
    update = _update(0)
    update["a.B"][7] = bad
    clipped = clip_update(update, 1e-8)
    assert _norm(clipped.update) == 0 and clipped.norm == math.inf and not clipped.below


def test_an_update_of_zeros_is_clipped_to_zeros():
    assert _norm(clip_update(_update(0, 0.0), 0.5).update) == 0


@pytest.mark.parametrize("change", ["missing", "more", "shape", "dtype"])
def test_what_is_not_an_update_of_the_model_is_refused(change):
    update = _update(0)
    if change == "missing":
        del update["a.B"]
    elif change == "more":
        update["c"] = torch.zeros(1)
    else:
        update["a.B"] = torch.zeros(51) if change == "shape" else torch.zeros(50, dtype=torch.float64)
    with pytest.raises(FederationError, match={"more": "c wrongly", "missing": "a.B wrongly"}.get(change, "a.B of an")):
        check_update(update, SHAPES, 0.5)


# Noise at the server.


def test_a_round_is_the_slow_oracle(path, no_noise):
    updates = [_update(seed, 0.05) for seed in range(4)]
    released, _ = _round(path, _plan(), updates)
    for name in SHAPES:
        expected = sum(update[name].double() * min(1.0, 0.5 / _norm(update)) for update in updates) / 5
        assert torch.allclose(released.mean[name].double(), expected, atol=1e-6)


def _moved(folder, scale):
    """By how much one site more moves the noiseless mean."""
    others = [_update(seed) for seed in range(3)]
    without, _ = _round(folder / "without", _plan(), others)
    joined, _ = _round(folder / "with", _plan(), [*others, _update(9, scale)])
    return _norm({name: joined.mean[name].double() - without.mean[name].double() for name in SHAPES})


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e20])
def test_one_site_more_moves_the_noiseless_mean_by_at_most_the_clip_norm_over_the_divisor(tmp_path, no_noise, scale):
    assert _moved(tmp_path, scale) <= 0.5 / 5 * (1 + 1e-6)


@pytest.mark.parametrize("mutant", ["unclipped", "half-clipped", "divided-by-answers"])
def test_a_sum_that_is_not_bounded_or_divided_so_moves_further(tmp_path, no_noise, monkeypatch, mutant):
    if mutant == "divided-by-answers":
        monkeypatch.setattr(client_privacy, "_divided", lambda sums, plan: {n: v / 2 for n, v in sums.items()})
    else:
        free, clip = SHAPES if mutant == "unclipped" else ["a.B"], client_privacy.clip_update

        def clip_some(update, norm):
            return client_privacy.Clipped({**clip(update, norm).update, **{n: update[n] for n in free}}, 0.0, True)

        monkeypatch.setattr(client_privacy, "clip_update", clip_some)
    assert _moved(tmp_path, 1.0) > 0.5 / 5 * 1.1


def test_every_site_weighs_the_same_however_long_it_trained(path, no_noise):
    """Two updates of very different size, both beyond the clip norm: each moves the mean by C / 5."""
    first, second = {"w": torch.tensor([9.0, 0.0])}, {"w": torch.tensor([0.0, 900.0])}
    released, _ = _round(path, _plan(), [first, second], shapes={"w": (2,)})
    assert torch.allclose(released.mean["w"], torch.tensor([0.1, 0.1]))


@pytest.mark.parametrize("answered", [0, 2, 5])
def test_drop_outs_change_neither_noise_nor_divisor(path, answered):
    zeros = [_update(0, 0.0, WIDE)] * answered
    released, _ = _round(path, _plan(), zeros, shapes=WIDE)
    assert released.std == pytest.approx(1.0 * 0.5 / 5)
    squares = float((released.mean["w"].double() / released.std).square().sum())
    assert SURE < stats.chi2(20_000).cdf(squares) < 1 - SURE


def test_an_empty_round_is_spent(path):
    _round(path, _plan(), [], asked=0)
    line = json.loads(path.read_text().splitlines()[1])
    assert (line["asked"], line["answered"]) == (0, 0) and Ledger.open(path).guarantee().epsilon > 0


def test_nothing_is_released_that_is_not_in_the_ledger(path, monkeypatch):
    plan = _plan()
    ledger, mechanism = Ledger.create(path, plan), mechanism_for(plan)
    total = BoundedSum(WIDE, plan, mechanism)

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        total.release(ledger, 3)
    assert mechanism.clip_norm == 0.5


def test_a_wrong_update_leaves_the_sum_as_it_was(path, no_noise):
    plan = _plan()
    total = BoundedSum(SHAPES, plan, mechanism_for(plan))
    with pytest.raises(FederationError):
        total.add({**_update(0), "a.B": torch.zeros(3)})
    released = total.release(Ledger.create(path, plan), 1)
    assert total.answered == 0 and _norm(released.mean) == 0


def test_poisson_rounds_spend_one_sampled_gaussian_each(path):
    plan = _plan(rounds=8)
    sampler = PoissonSampler(plan.units, plan.sampling_prob)
    for step in range(8):
        drawn = sampler.draw(step)
        _round(path, plan, [_update(int(i)) for i in drawn[1:]], asked=len(drawn))
    guarantee = Ledger.open(path).guarantee()
    assert (guarantee.steps, guarantee.sampling_prob) == (8, 0.25)


def test_the_clip_norm_follows_the_votes_of_those_that_answered(path, no_noise):
    updates = [_update(0, 1e-3), _update(1, 1e-3), _update(2, 10.0)]
    _, mechanism = _round(path, _plan(quantile=FOLLOW), updates, clip_norm=0.7)
    assert mechanism.clip_norm == pytest.approx(0.7 * math.exp(-0.2 * (0.5 / 5 + 0.5 - 0.5)))


@pytest.mark.parametrize("said", [True, False])
def test_a_site_that_has_clipped_says_itself_whether_it_was_below(path, no_noise, said):
    plan = _plan(quantile=FOLLOW)
    mechanism = mechanism_for(plan, 0.7)
    total = BoundedSum(SHAPES, plan, mechanism)
    total.add(clip_update(_update(0), 0.7).update, below=said)
    total.release(Ledger.create(path, plan), 1)
    assert mechanism.clip_norm == pytest.approx(0.7 * math.exp(-0.2 * (0.1 if said else -0.1)))


# Distributed noise.


def _ints(update, encoding):
    return contribution(update, encoding).view(np.int64)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e20])
@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 30.0])
def test_the_integers_of_a_site_are_within_the_radius(no_noise, scale, noise_multiplier):
    plan = _shared(noise_multiplier=noise_multiplier)
    encoding = encoding_for(plan, 0.5, SHAPES)
    found = _ints(_update(3, scale), encoding)
    assert sum(int(x) ** 2 for x in found[:-1]) <= encoding.radius**2  # Python's integers
    assert encoding.radius * plan.noise_multiplier <= math.sqrt(4 * 4.0**24 - 4)


def test_rounding_upwards_everywhere_stays_within_the_radius(no_noise):
    """The worst case: 10^6 equal values of 1118.6 steps and norm 1,118,600 become 1119 steps and norm 1,119,000."""
    encoding = client_privacy.Encoding(0.5, 0.5 / 1_118_700, 1_118_700, 0, 0.0)
    values = np.full(10**6, 1118.6 * encoding.grid, dtype=np.float32)
    plain = client_privacy.encode(values, encoding.grid).view(np.int64)
    assert np.linalg.norm(values.astype(np.float64)) < 0.5 and np.linalg.norm(plain) > encoding.radius
    assert np.linalg.norm(_ints({"w": torch.from_numpy(values)}, encoding)) <= encoding.radius


def test_a_site_whose_integers_are_beyond_the_radius_refuses(no_noise, monkeypatch):
    monkeypatch.setattr(client_privacy, "_rounding", lambda values: -50.0)
    encoding = encoding_for(_shared(), 0.5, SHAPES)
    with pytest.raises(PrivacyError, match="above the bound of .* steps"):
        contribution(_update(0), encoding)


def test_update_and_vote_together_cost_the_accounted_noise():
    plan = _shared(quantile=FOLLOW)
    encoding, std = encoding_for(plan, 0.5, SHAPES), math.sqrt(4 * 4.0**24 - 4)
    joint = math.hypot(encoding.radius / std, encoding.vote / std)
    assert joint <= 1 / plan.noise_multiplier and joint == pytest.approx(1 / plan.noise_multiplier, rel=1e-6)


@pytest.mark.parametrize("quantile", [None, FOLLOW])
def test_the_sum_of_contributions_is_the_sum_of_the_clipped_updates(no_noise, quantile):
    plan, updates = _shared(quantile=quantile), [_update(seed, 0.02 * (seed + 1)) for seed in range(6)]
    encoding = encoding_for(plan, 0.5, SHAPES)
    found = read_sum(np.sum([contribution(u, encoding) for u in updates], axis=0, dtype=np.uint64), encoding, SHAPES)
    clipped = [clip_update(update, 0.5) for update in updates]
    for name, shape in SHAPES.items():
        expected = sum(c.update[name] for c in clipped)
        assert found.sums[name].shape == shape and torch.allclose(found.sums[name], expected, atol=1e-6)
    votes = sum(c.below for c in clipped) - 3
    assert found.votes == pytest.approx(0.0 if quantile is None else votes, abs=1e-6)


def test_a_site_that_is_not_finite_gives_noise_alone():
    update = _update(0, 1.0, WIDE)
    update["w"][3] = math.nan
    found = _ints(update, encoding_for(_shared(), 0.5, WIDE))[:-1] / 2.0**24
    assert SURE < stats.chi2(20_000).cdf((found**2).sum()) < 1 - SURE


@pytest.mark.parametrize("answered", [4, 9])
def test_the_noise_of_the_sum_is_the_stated_one_however_many_answer(answered):
    plan = _shared(noise_multiplier=1.5)
    encoding, zeros = encoding_for(plan, 0.5, WIDE), _update(0, 0.0, WIDE)
    total = np.zeros(20_001, dtype=np.uint64)
    for _ in range(answered):
        total += contribution(zeros, encoding)
    released = release_shared(read_sum(total, encoding, WIDE), plan, mechanism_for(plan), answered)
    assert released.std == pytest.approx(1.5 * 0.5 * math.sqrt(answered / 4) / 5)
    squares = float((released.mean["w"].double() / released.std).square().sum())
    assert SURE < stats.chi2(20_000).cdf(squares) < 1 - SURE


def test_the_noise_of_the_votes_is_the_stated_one():
    plan, zeros = _shared(quantile=FOLLOW), {"w": torch.zeros(1)}
    encoding, votes = encoding_for(plan, 0.5, {"w": (1,)}), []
    for _ in range(1000):
        total = np.sum([contribution(zeros, encoding) for _ in range(4)], axis=0, dtype=np.uint64)
        votes.append(read_sum(total, encoding, {"w": (1,)}).votes)
    assert stats.kstest((np.array(votes) - 2) / 2.0, "norm").pvalue > SURE


def test_the_clip_norm_follows_noisy_votes_without_more_noise():
    plan = _shared(quantile=FOLLOW)
    mechanism = mechanism_for(plan, 0.7)
    found = client_privacy.NoisySum({"w": torch.zeros(2)}, 1.5)
    release_shared(found, plan, mechanism, 4)
    assert mechanism.clip_norm == pytest.approx(0.7 * math.exp(-0.2 * 1.5 / 5))


def test_the_server_adds_no_noise_to_noisy_sums():
    found = client_privacy.NoisySum({"w": torch.ones(10)}, 0.0)
    plan = _shared()
    assert (release_shared(found, plan, mechanism_for(plan), 4).mean["w"] == 0.2).all()


@pytest.mark.parametrize("answered", [0, 3, None])
def test_a_sum_of_fewer_shares_than_the_threshold_is_refused(path, answered):
    plan = _shared()
    ledger = Ledger.create(path, plan)
    entry = {**mechanism_for(plan).entry, "asked": 5}
    with pytest.raises(PrivacyError, match="takes 4 to make the noise whole"):
        ledger.record(entry if answered is None else {**entry, "answered": answered})
    ledger.record({**entry, "answered": 4})
    assert len(Ledger.open(path)) == 1


def test_a_grid_that_is_too_coarse_for_the_update_is_refused():
    with pytest.raises(PrivacyError, match="leaves .* steps of the grid for an update of 40000001 values"):
        encoding_for(_shared(noise_multiplier=2000.0), 0.5, {"w": (40_000_000,)})


def test_noise_that_is_not_close_to_what_is_accounted_is_refused(monkeypatch):
    monkeypatch.setattr(client_privacy, "_BITS", 0)
    monkeypatch.setattr(client_privacy, "SMOOTHING", 0.5)
    with pytest.raises(PrivacyError, match="differs from Gaussian noise by .*, above the 1e-12"):
        encoding_for(_shared(), 0.5, SHAPES)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_norm_that_is_no_bound_is_refused(clip_norm):
    with pytest.raises(PrivacyError, match="clip norm of a round must be positive and finite"):
        encoding_for(_shared(), clip_norm, SHAPES)


def test_a_sum_of_another_length_is_refused():
    encoding = encoding_for(_shared(), 0.5, SHAPES)
    with pytest.raises(FederationError, match="must have 171 values, got 170"):
        read_sum(np.zeros(170, dtype=np.uint64), encoding, SHAPES)
