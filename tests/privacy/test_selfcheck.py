"""The self-check: the real trainer passes, and every broken one is caught by the check that is meant to."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from reticent.gradients.rows import Unit
from reticent.models.adapter import add_lora, train_everything
from reticent.privacy import ledger as ledger_module
from reticent.privacy import noise
from reticent.privacy import selfcheck as selfcheck_module
from reticent.privacy.accounting import Release, spent
from reticent.privacy.clipping import Quantile
from reticent.privacy.ledger import Ledger
from reticent.privacy.plan import DPSGDPlan, banded_plan, dpsgd_plan
from reticent.privacy.sampling import PoissonSampler, SeededPoissonSampler
from reticent.privacy.selfcheck import RecordedWords, bounds, selfcheck
from reticent.stages.doctor import RealTrainee, handful
from reticent.training import distributed, loop

UNITS = 40
PLAN = {"unit": "owner", "units": UNITS, "batch_size": 8, "steps": 20, "delta": 1e-3, "clip_norm": 0.5}
_BOUNDS = functools.cache(bounds)


@functools.cache
def _spent(releases, delta, grid):
    return spent(releases, delta, grid=grid)


@pytest.fixture(autouse=True)
def one_accountant(monkeypatch):
    """The same epsilon is computed once: it takes a second."""
    monkeypatch.setattr(selfcheck_module, "bounds", _BOUNDS)
    monkeypatch.setattr(ledger_module, "spent", lambda releases, delta, grid: _spent(tuple(releases), delta, grid))


def _plan(**changes):
    return dpsgd_plan(**{**PLAN, "noise_multiplier": 2.0, **changes})


def _banded():
    return banded_plan(**PLAN, noise_multiplier=2.0, bands=3)


def _adapted(tiny, **options):
    return add_lora(tiny.model(**options), rank=4, alpha=8, dropout=0.1, targets="all-linear", seed=0)


@pytest.fixture
def trainee(tiny, settings, tmp_path):
    def make(plan=None, model=None, **changes):
        model = model or _adapted(tiny)
        units = handful(model, [], end_of_text=1, longest=64)
        return RealTrainee(model, plan or _plan(), settings(**changes), units, tmp_path)

    return make


def _failed(trainee):
    return {check.name for check in selfcheck(trainee) if not check.passed}


# The real trainer.


@pytest.mark.parametrize(
    "plan",
    [
        _plan(),
        _plan(clip_style="per-layer"),
        _plan(clip_style="automatic"),
        _plan(quantile=Quantile(target=0.5, rate=0.2, noise=4.0)),
        _banded(),
    ],
    ids=["flat", "per-layer", "automatic", "quantile", "dp-mf"],
)
def test_the_real_trainer_passes(trainee, plan):
    assert _failed(trainee(plan)) == set()


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_the_real_trainer_of_every_weight_passes(trainee, tiny, family):
    assert _failed(trainee(model=train_everything(tiny.model(family)))) == set()


@pytest.mark.parametrize("changes", [{"optimizer": "dp-adam"}, {"optimizer": "sgd"}, {"loss": "sum"}])
def test_other_settings_pass(trainee, changes):
    assert _failed(trainee(**changes)) == set()


# Broken trainers: each is caught, by name.


def _silence(monkeypatch):
    """The trainer's own check of its first step is off: the self-check must find the fault alone."""
    monkeypatch.setattr(loop, "_check_moved", lambda *args: None)


def _noise_mutant(monkeypatch, mutant):
    """``mutant(sums, std, source, real)`` in place of the function that adds noise."""
    _silence(monkeypatch)
    real = noise.add_noise
    monkeypatch.setattr(noise, "add_noise", lambda sums, std, source: mutant(sums, std, source, real))


def _engine_mutant(monkeypatch, mutant):
    """``mutant(engine)`` in place of the engine of the trainer."""
    real = loop.engine_for
    monkeypatch.setattr(loop, "engine_for", lambda *args, **options: mutant(real(*args, **options)))


def test_noise_off(trainee, monkeypatch):
    _noise_mutant(monkeypatch, lambda sums, std, source, real: None)
    assert {"noise: every trained tensor", "noise: scale", "control flow: random draws"} <= _failed(trainee())


def test_half_the_noise(trainee, monkeypatch):
    _noise_mutant(monkeypatch, lambda sums, std, source, real: real(sums, std / 2, source))
    assert _failed(trainee()) == {"noise: scale", "noise: scale of each tensor"}


def test_noise_on_a_of_the_adapters_alone(trainee, monkeypatch):
    _noise_mutant(
        monkeypatch,
        lambda sums, std, source, real: real({n: v for n, v in sums.items() if "lora_A" in n}, std, source),
    )
    assert {"noise: every trained tensor", "noise: scale of each tensor"} <= _failed(trainee())


def test_noise_before_clipping(trainee, monkeypatch):
    """Noise goes to each unit's gradient, which is clipped then; the sum gets none."""
    _noise_mutant(monkeypatch, lambda sums, std, source, real: None)

    class Noisy(_Wrapped):
        def unit_sum(self, units):
            found = [self.engine.unit_sum([unit]) for unit in units]
            for one in found:
                for value in one.gradient.values():
                    value.add_(torch.randn_like(value))
                _bound(one.gradient, self.clipping.norm)
            return _summed(found, self.engine.unit_sum([]))

    _engine_mutant(monkeypatch, Noisy)
    assert {"noise: every trained tensor", "noise: scale"} <= _failed(trainee())


class _Wrapped:
    """An engine around another one."""

    def __init__(self, engine):
        self.engine = engine

    @property
    def clipping(self):
        return self.engine.clipping

    @clipping.setter
    def clipping(self, value):
        self.engine.clipping = value


def _bound(gradient, norm):
    size = math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))
    for value in gradient.values():
        value.mul_(min(1.0, norm / max(size, 1e-12)))


def _summed(found, zero):
    for one in found:
        for name, value in one.gradient.items():
            zero.gradient[name].add_(value)
    return zero._replace(records=sum(one.records for one in found))


class _Unclipped(_Wrapped):
    """Raw sums of units, before anything is bounded."""

    def raw(self, units):
        kept, self.engine.clipping = self.engine.clipping, type(self.clipping)(1e12)
        try:
            return self.engine.unit_sum(units)
        finally:
            self.engine.clipping = kept


def test_the_batch_is_clipped_and_not_the_unit(trainee, monkeypatch):
    class Mean(_Unclipped):
        def unit_sum(self, units):
            found = self.raw(units)
            for value in found.gradient.values():
                value.div_(max(1, len(units)))
            _bound(found.gradient, self.clipping.norm)
            for value in found.gradient.values():
                value.mul_(len(units))
            return found

    _engine_mutant(monkeypatch, Mean)
    assert "sensitivity: a large gradient" in _failed(trainee())


def test_records_are_clipped_and_not_their_owner(trainee, monkeypatch):
    class Records(_Wrapped):
        def unit_sum(self, units):
            return self.engine.unit_sum([Unit("", (record,)) for unit in units for record in unit.records[:100]])

    _engine_mutant(monkeypatch, Records)
    assert {"sensitivity: one owner of many records", "sensitivity: a large gradient"} <= _failed(trainee())


def test_a_unit_that_counts_twice(trainee, monkeypatch):
    class Twice(_Wrapped):
        def unit_sum(self, units):
            return self.engine.unit_sum([unit for unit in units for _ in range(2)])

    _engine_mutant(monkeypatch, Twice)
    failed = _failed(trainee())
    assert {"sensitivity: one token", "sensitivity: a copy of a member"} <= failed
    assert all(name.startswith("sensitivity") for name in failed)


def test_a_gradient_that_is_not_finite_becomes_a_huge_one(trainee, monkeypatch):
    class Huge(_Wrapped):
        def unit_sum(self, units):
            found = self.engine.unit_sum(units)
            for value in found.gradient.values():
                value.add_(1e6 * found.dropped)
            return found

    _engine_mutant(monkeypatch, Huge)
    assert "sensitivity: a gradient that is not finite" in _failed(trainee())


def test_the_divisor_is_the_batch_that_was_drawn(trainee, monkeypatch):
    drawn, real_sum, real_apply = [0], distributed.Team.unit_sum, loop._apply

    def unit_sum(self, engine, units):
        drawn[0] = len(units)
        return real_sum(self, engine, units)

    def apply(model, optimizer, gradient, divisor, correct=None):
        real_apply(model, optimizer, gradient, max(1, drawn[0]), correct)

    monkeypatch.setattr(distributed.Team, "unit_sum", unit_sum)
    monkeypatch.setattr(loop, "_apply", apply)
    assert "control flow: divisor" in _failed(trainee())


def test_the_same_noise_at_every_step(trainee, monkeypatch):
    key = {}

    def mutant(sums, std, source, real):
        real(sums, std, RecordedWords(key.setdefault(id(source), len(key))))

    _noise_mutant(monkeypatch, mutant)
    assert "noise: new at every step" in _failed(trainee())


@pytest.mark.parametrize("of", ["torch", "numpy"])
def test_noise_of_a_seeded_generator(trainee, monkeypatch, of):
    def mutant(sums, std, source, real):
        for value in sums.values():
            shape = tuple(value.shape)
            drawn = torch.randn(shape) if of == "torch" else torch.from_numpy(np.random.normal(size=shape)).float()
            value.add_(drawn, alpha=std)

    _noise_mutant(monkeypatch, mutant)
    assert {"noise: new in every run", "control flow: random draws"} <= _failed(trainee())


def test_one_generator_that_begins_anew_for_each_tensor(trainee, monkeypatch):
    def mutant(sums, std, source, real):
        seed = int(source.words(1)[0] >> np.uint64(1))
        for name, value in sums.items():
            real({name: value}, std, RecordedWords(seed))

    _noise_mutant(monkeypatch, mutant)
    assert "noise: new in every tensor" in _failed(trainee())


def test_the_adapter_is_merged_before_trainable_weights_get_noise(trainee, tiny, monkeypatch):
    """Merging unloads the adapter and what is left is frozen: the loop over trainable weights is empty."""
    model = _adapted(tiny)

    def mutant(sums, std, source, real):
        merged = copy.deepcopy(model).merge_and_unload()
        for name, parameter in merged.named_parameters():
            if parameter.requires_grad:
                real({name: parameter.data}, std, source)

    _noise_mutant(monkeypatch, mutant)
    assert {"noise: every trained tensor", "noise: scale"} <= _failed(trainee(model=model))


def test_the_trainer_itself_stops_without_noise(trainee, monkeypatch):
    """Its own check of the first step makes the part of the self-check fail instead of running on."""
    monkeypatch.setattr(noise, "add_noise", lambda sums, std, source: None)
    assert "noise: every trained tensor" in _failed(trainee()) or "noise: runs" in _failed(trainee())


def test_batches_of_a_fixed_size(trainee, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(PoissonSampler, "draw", lambda self, step: rng.permutation(self._units)[:8])
    assert _failed(trainee()) == {"sampling: sizes vary"}


def test_batches_that_cut_a_shuffled_epoch(trainee, monkeypatch):
    rng, order = np.random.default_rng(0), []

    def draw(self, step):
        if not order:
            order.extend(rng.permutation(self._units).reshape(-1, 8))
        return order.pop()

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    assert {"sampling: sizes vary", "sampling: units alike"} <= _failed(trainee())


def test_batches_of_a_seed(trainee, monkeypatch):
    monkeypatch.setattr(loop, "PoissonSampler", lambda units, prob: SeededPoissonSampler(units, prob, 0))
    assert _failed(trainee()) == {"sampling: new in every run"}


def test_a_lower_rate_for_the_accountant(trainee, monkeypatch):
    monkeypatch.setattr(DPSGDPlan, "release", property(lambda plan: Release(plan.sampling_prob / 2, 2.0)))
    assert "sampling: rate" in _failed(trainee())


def test_an_accountant_of_half_the_steps(trainee, monkeypatch):
    monkeypatch.setattr(DPSGDPlan, "spent_events", lambda plan, steps: [(plan.release, steps // 2)])
    assert _failed(trainee()) == {"accounting: epsilon not too low"}


def test_a_ledger_that_misses_a_step(trainee, monkeypatch):
    real = Ledger.record

    def record(self, entry):
        if len(self) == 2 and not hasattr(self, "missed"):
            self.missed = True
            return
        real(self, entry)

    monkeypatch.setattr(Ledger, "record", record)
    assert _failed(trainee()) == {"accounting: ledger before weights"}


def test_a_ledger_written_after_the_weights_moved(trainee, monkeypatch):
    waiting, record, apply = [], Ledger.record, loop._apply
    monkeypatch.setattr(Ledger, "record", lambda self, entry: waiting.append((self, dict(entry))))

    def late(*args):
        apply(*args)
        while waiting:
            record(*waiting.pop())

    monkeypatch.setattr(loop, "_apply", late)
    assert "accounting: ledger before weights" in _failed(trainee())


def test_another_noise_in_the_ledger_than_was_added(trainee, monkeypatch):
    monkeypatch.setattr(DPSGDPlan, "sum_noise", property(lambda plan: plan.noise_multiplier / 1.1))
    assert {"noise: scale"} <= _failed(trainee())


def test_the_count_gets_too_little_noise(trainee, monkeypatch):
    real = noise.add_normals
    monkeypatch.setattr(noise, "add_normals", lambda v, std, source: real(v, std / 2 if len(v) == 1 else std, source))
    plan = _plan(quantile=Quantile(target=0.5, rate=0.2, noise=4.0))
    assert _failed(trainee(plan)) == {"noise: scale of the count"}


def test_correlated_noise_whose_past_is_not_taken_off(trainee, monkeypatch):
    monkeypatch.setattr(noise.Banded, "_next", lambda self, shapes, scale: _fresh(shapes, scale, self._source))
    assert {"noise: scale", "noise: new at every step"} <= _failed(trainee(_banded()))


def _fresh(shapes, scale, source):
    made = {name: torch.zeros(shape) for name, shape in shapes.items()}
    noise.add_noise(made, scale, source)
    return made


def test_a_weight_moves_that_nobody_trains(trainee, monkeypatch):
    real = loop._apply

    def apply(model, *args):
        real(model, *args)
        next(p for p in model.parameters() if not p.requires_grad).data.add_(1e-3)

    monkeypatch.setattr(loop, "_apply", apply)
    assert _failed(trainee()) >= {"noise: no other tensor moves"}


# The statistics.


def test_recorded_words_are_the_same_again_after_a_rewind():
    words = RecordedWords(3)
    first = words.words(5)
    words.rewind()
    assert np.array_equal(words.words(5), first) and words.counts == [5]


@pytest.mark.parametrize(("trials", "count", "prob"), [(40, 400, 0.2), (400, 40, 0.2), (10_000, 400, 0.0008)])
def test_the_spread_of_fair_counts_has_uniform_p(trials, count, prob):
    rng = np.random.default_rng(0)
    found = [selfcheck_module._spread_p(rng.binomial(trials, prob, count), trials, prob) for _ in range(1000)]
    assert stats.binomtest(sum(p < 0.05 for p in found), 1000, 0.05).pvalue > 1e-3


@pytest.mark.parametrize(("prob", "z", "times"), [(0.1, 1.0, 50), (1.0, 5.0, 20)])
def test_the_bounds_enclose_the_accountants_figure(prob, z, times):
    least, most = bounds(Release(prob, z), times, 1e-5)
    found = spent([(Release(prob, z), times)], 1e-5).epsilon
    assert 0.99 * found <= least <= found <= most


@pytest.mark.slow
def test_a_sound_trainer_raises_no_false_alarm(trainee):
    made = trainee()
    assert [_failed(made) for _ in range(30)] == [set()] * 30
