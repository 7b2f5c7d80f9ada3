"""The loop: what reaches the weights, what the ledger says, and what a kill may cost."""

import copy
import json

import numpy as np
import pytest
import torch
from scipy import stats

from reticent.errors import PrivacyError
from reticent.gradients.engines import UnitSum, trained
from reticent.gradients.rows import Unit
from reticent.models.adapter import add_lora
from reticent.privacy import ledger as ledger_module
from reticent.privacy import noise
from reticent.privacy.accounting import Spent, spent
from reticent.privacy.clipping import Clipping, Quantile
from reticent.privacy.ledger import Ledger
from reticent.privacy.plan import banded_plan, dpsgd_plan, nonprivate_plan
from reticent.privacy.sampling import group_of
from reticent.progress import Progress
from reticent.tokens import Tokens
from reticent.training import checkpoint, loop
from reticent.training.loop import Files, rate, read_log, train

SURE = 1e-6
UNITS = 12
PLAIN = [Unit(str(i), (Tokens(np.array([2, 3]), np.array([False, True])),)) for i in range(UNITS)]


class KilledError(Exception):
    """The process ends here."""


@pytest.fixture(autouse=True)
def toy_accountant(monkeypatch):
    """Epsilon is the number of releases: the accountant has tests of its own and takes a second a step."""

    def count(releases, delta, **options):
        times = float(sum(times for _, times in releases))
        return Spent(times, times)

    monkeypatch.setattr(ledger_module, "spent", count)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "ledger.jsonl", tmp_path / "log.jsonl", tmp_path / "checkpoint")


def _private(**changes):
    values = {"unit": "owner", "units": UNITS, "batch_size": 4, "steps": 7, "delta": 1e-3, "clip_norm": 0.5}
    return dpsgd_plan(**{**values, "noise_multiplier": 1.0, **changes})


def _open(**changes):
    return nonprivate_plan(**{"unit": "owner", "units": UNITS, "batch_size": 4, "steps": 7, **changes})


@pytest.fixture
def model(tiny):
    return add_lora(tiny.model(), rank=4, alpha=8, dropout=0.0, targets="all-linear", seed=0)


def _weights(model):
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


def _clones(sums):
    """The loop uses up the sum it is given."""
    return {name: value.clone() for name, value in sums.items()}


class _Fixed:
    """An engine whose sum is the same for every draw."""

    def __init__(self, model, value=0.0):
        self._sum = {name: torch.full_like(p, value, dtype=torch.float32) for name, p in trained(model).items()}
        self.drawn = []

    def unit_sum(self, units):
        self.drawn.append(len(units))
        return UnitSum(_clones(self._sum), 0.0, len(units), 0)


def _use(monkeypatch, engine):
    monkeypatch.setattr(loop, "engine_for", lambda *args, **kwargs: engine)
    return engine


# What reaches the weights.


def test_a_private_run_moves_every_trained_tensor_and_no_other(tiny, model, settings, files):
    before = copy.deepcopy(model.state_dict())
    train(model, tiny.units(UNITS), _private(steps=1), settings(), files)
    names = trained(model).keys()
    assert all(torch.equal(value, before[name]) != (name in names) for name, value in model.state_dict().items())


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_the_divisor_is_the_expected_batch_size(model, settings, files, monkeypatch, value):
    """Every draw has the gradient 3 in all coordinates, however many units it has."""
    engine = _use(monkeypatch, _Fixed(model, value))
    before = _weights(model)
    train(model, PLAIN, _open(), settings(optimizer="sgd", learning_rate=0.1), files)
    assert len(set(engine.drawn)) > 1
    for name, after in _weights(model).items():
        torch.testing.assert_close(after, before[name] - 7 * 0.1 * value / 4)


def _silence(monkeypatch):
    """Private steps without noise."""
    monkeypatch.setattr(noise, "add_noise", lambda sums, std, source: None)
    monkeypatch.setattr(loop, "_check_moved", lambda *args: None)


def _update_error(tiny, model, settings, files, monkeypatch, spoil):
    """Distance of one SGD step from the definition: the oracle's sum of the drawn units / expected batch size."""
    seen = []
    real = loop.engine_for

    class Spy:
        def __init__(self, engine):
            self._engine = engine

        def unit_sum(self, units):
            seen.append(units)
            return spoil(self._engine.unit_sum(units), units)

    monkeypatch.setattr(loop, "engine_for", lambda *args, **kwargs: Spy(real(*args, **kwargs)))
    _silence(monkeypatch)
    monkeypatch.setattr(loop.PoissonSampler, "draw", lambda self, step: np.arange(9))
    start, before = copy.deepcopy(model), _weights(model)
    train(model, tiny.units(UNITS), _private(steps=1), settings(optimizer="sgd", learning_rate=1.0), files)
    expected = tiny.oracle(start, seen[0], clip=0.5, loss="mean")
    moved = {name: (before[name] - value) * 4 for name, value in _weights(model).items()}
    return tiny.distance(moved, expected) / tiny.norm(expected)


def test_without_noise_a_step_is_the_oracles_sum_over_the_expected_batch(tiny, model, settings, files, monkeypatch):
    assert _update_error(tiny, model, settings, files, monkeypatch, lambda found, units: found) < 1e-5


def test_the_oracle_catches_a_division_by_the_batch_that_was_drawn(tiny, model, settings, files, monkeypatch):
    def spoil(found, units):
        return found._replace(gradient={name: value * 4 / len(units) for name, value in found.gradient.items()})

    assert _update_error(tiny, model, settings, files, monkeypatch, spoil) > 0.5


def _noise_of_a_step(model, settings, files, monkeypatch):
    """What one private step adds to the weights where all gradients are zero, in units of its promised scale."""
    _use(monkeypatch, _Fixed(model))
    before = _weights(model)
    train(model, PLAIN, _private(steps=1), settings(optimizer="sgd", learning_rate=1.0), files)
    return {name: (value - before[name]).double() * 4 / 0.5 for name, value in _weights(model).items()}


def _lawful(noise):
    return all(SURE < stats.chi2(v.numel()).cdf(float(v.square().sum())) < 1 - SURE for v in noise.values())


def test_the_noise_of_a_step_has_the_promised_scale_in_every_tensor(model, settings, files, monkeypatch):
    assert _lawful(_noise_of_a_step(model, settings, files, monkeypatch))


@pytest.mark.parametrize("kept", ["", "lora_A"], ids=["missing", "lora-a-only"])
def test_noise_that_misses_a_tensor_stops_the_run(model, settings, files, monkeypatch, kept):
    def mutant(sums, std, source, real=noise.add_noise):
        real({name: value for name, value in sums.items() if kept and kept in name}, std, source)

    monkeypatch.setattr(noise, "add_noise", mutant)
    with pytest.raises(PrivacyError, match="did not change in the first private step"):
        _noise_of_a_step(model, settings, files, monkeypatch)


@pytest.mark.parametrize("factor", [0.5, 1 / 4])
def test_the_law_catches_noise_that_is_too_small(model, settings, files, monkeypatch, factor):
    def mutant(sums, std, source, real=noise.add_noise):
        real(sums, factor * std, source)

    monkeypatch.setattr(noise, "add_noise", mutant)
    assert not _lawful(_noise_of_a_step(model, settings, files, monkeypatch))


def test_two_private_runs_with_one_seed_differ_in_noise(tiny, model, settings, tmp_path, monkeypatch):
    results = []
    for name in "ab":
        files = Files(tmp_path / f"{name}.ledger", tmp_path / f"{name}.log", tmp_path / f"{name}.checkpoint")
        results.append(_noise_of_a_step(copy.deepcopy(model), settings, files, monkeypatch))
    parts = [torch.cat([value.flatten() for value in noise.values()]) for noise in results]
    assert abs(float(torch.corrcoef(torch.stack(parts))[0, 1])) < 0.1


def test_a_draw_without_units_is_noised_and_recorded(tiny, model, settings, files, monkeypatch):
    monkeypatch.setattr(loop.PoissonSampler, "draw", lambda self, step: np.arange(0))
    before = _weights(model)
    ledger = train(model, tiny.units(UNITS), _private(steps=1), settings(), files)
    assert len(ledger) == 1 and tiny.distance(before, _weights(model)) > 0
    assert read_log(files.log)[0].loss is None


def test_the_release_is_on_disk_before_the_weights_move(tiny, model, settings, files, monkeypatch):
    counts, real = [], loop._apply

    def apply(*args):
        counts.append(len(Ledger.open(files.ledger)))
        real(*args)

    monkeypatch.setattr(loop, "_apply", apply)
    train(model, tiny.units(UNITS), _private(steps=3), settings(), files)
    assert counts == [1, 2, 3]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "dp-adam"])
def test_micro_batches_change_neither_the_update_nor_epsilon(tiny, model, settings, tmp_path, monkeypatch, optimizer):
    _silence(monkeypatch)
    monkeypatch.setattr(loop.PoissonSampler, "draw", lambda self, step: np.arange(step, 12))
    results = []
    for tokens in (16, 64, 1000):
        files = Files(tmp_path / f"{tokens}", tmp_path / f"{tokens}.log", tmp_path / f"{tokens}.checkpoint")
        trained_model = copy.deepcopy(model)
        made = settings(optimizer=optimizer, micro_batch_tokens=tokens)
        ledger = train(trained_model, tiny.units(UNITS, records=3), _private(steps=3), made, files)
        results.append((_weights(trained_model), len(ledger), ledger.epsilon()))
    moved = tiny.distance(results[0][0], _weights(model))
    for weights, releases, epsilon in results[1:]:
        assert tiny.distance(results[0][0], weights) < 2e-3 * moved
        assert (releases, epsilon) == results[0][1:]


def test_the_engine_clips_in_the_style_and_at_the_norm_of_the_plan(tiny, model, settings, files, monkeypatch):
    asked, real = [], loop.engine_for
    monkeypatch.setattr(loop, "engine_for", lambda *args, **kw: asked.append(kw["clipping"]) or real(*args, **kw))
    train(model, tiny.units(UNITS), _private(steps=1, clip_style="per-layer"), settings(), files)
    assert asked == [Clipping(0.5, "per-layer")]


def test_the_log_says_how_many_units_were_dropped(tiny, model, settings, files, monkeypatch):
    class Lossy(_Fixed):
        def unit_sum(self, units):
            return super().unit_sum(units)._replace(dropped=3)

    _use(monkeypatch, Lossy(model))
    train(model, PLAIN, _private(steps=2), settings(), files)
    assert [line.dropped for line in read_log(files.log)] == [3, 3]


# Other mechanisms.


class _Counting(_Fixed):
    """Half of the drawn units are below any clip norm; remembers what it was told to clip at."""

    def __init__(self, model):
        super().__init__(model)
        self.clipping, self.norms = Clipping(0.5), []

    def unit_sum(self, units):
        self.norms.append(self.clipping.norm)
        return super().unit_sum(units)._replace(below=len(units) // 2)


def _tracked(**changes):
    return _private(quantile=Quantile(target=0.1, rate=0.5, noise=0.6), **changes)


def test_a_tracked_clip_norm_reaches_engine_log_and_ledger(model, settings, files, monkeypatch):
    engine = _use(monkeypatch, _Counting(model))
    train(model, PLAIN, _tracked(), settings(), files)
    assert engine.norms[0] == 0.5 and len(set(engine.norms)) == 7
    assert [line.clip_norm for line in read_log(files.log)] == engine.norms
    recorded = [json.loads(line)["clip_norm"] for line in files.ledger.read_text().splitlines()[1:]]
    assert recorded == engine.norms


def test_a_tracked_clip_norm_survives_a_resume(model, settings, files, monkeypatch):
    asked, engine = [], _Counting(model)
    monkeypatch.setattr(loop, "engine_for", lambda *args, clipping, **kwargs: asked.append(clipping) or engine)
    _run_killed(None, model, _tracked(), settings(), files, where="weights", at=4, units=PLAIN)
    kept = checkpoint.load(files.checkpoint).clip_norm
    assert kept == engine.norms[2]  # of the first step after the checkpoint
    train(model, PLAIN, _tracked(), settings(), files)
    assert [clipping.norm for clipping in asked] == [0.5, kept]


def _banded(**changes):
    values = {"unit": "owner", "units": UNITS, "batch_size": 3, "steps": 7, "delta": 1e-3, "clip_norm": 0.5}
    return banded_plan(**{**values, "bands": 4, "noise_multiplier": 1.0, **changes})


def test_a_banded_run_draws_from_one_group_in_turn_also_after_a_resume(tiny, model, settings, files, monkeypatch):
    drawn = []
    _on_each_sum(monkeypatch, lambda before: lambda units: drawn.append(units) or before(units))
    _run_killed(tiny, copy.deepcopy(model), _banded(), settings(), files, where="weights", at=4)
    ledger = train(model, tiny.units(UNITS), _banded(), settings(), files)
    assert len(ledger) == len(drawn) == 7 and ledger.plan == _banded()
    for first in range(4):
        ids = [{unit.id for unit in units} for units in drawn[first : first + 4]]
        assert sum(map(len, ids)) == len(set().union(*ids))
    assert {unit.id for unit in drawn[0]} == {unit.id for unit in drawn[4]}  # drawn with probability 1


def test_one_unit_more_moves_no_other_to_another_group(tiny):
    units = tiny.units(UNITS)
    groups = [[group_of(loop._content(unit), 4) for unit in some] for some in (units, units[1:])]
    assert groups[0][1:] == groups[1]


def test_units_of_other_records_have_another_content(tiny):
    first, second = tiny.record([2, 3, 4]), tiny.record([5, 6])
    both = [
        Unit("u", (first, second)),
        Unit("u", (second, first)),
        Unit("u", (first,)),
        Unit("v", (tiny.record([2, 3, 4, 5, 6]),)),
    ]
    assert len({loop._content(unit) for unit in both}) == 4
    assert loop._content(Unit("other", (first,))) == loop._content(both[2])


def test_past_noise_is_never_on_disk(tiny, model, settings, files):
    train(model, tiny.units(UNITS), _banded(), settings(optimizer="sgd"), files)
    state = checkpoint.load(files.checkpoint)
    assert state._fields == ("step", "weights", "optimizer", "seconds", "clip_norm")
    assert state.weights.keys() == trained(model).keys() and not state.optimizer["state"]
    assert {path.name for path in files.log.parent.rglob("*") if path.is_file()} == {
        "ledger.jsonl",
        "log.jsonl",
        "state.pt",
    }


def test_dp_adam_takes_off_the_variance_of_the_noise_in_the_update(tiny, model, settings, files, monkeypatch):
    seen, real = [], loop._prepare
    monkeypatch.setattr(loop, "_prepare", lambda *args: seen.append(args[2]) or real(*args))
    train(model, tiny.units(UNITS), _private(steps=2, noise_multiplier=3.0), settings(optimizer="dp-adam"), files)
    assert seen == pytest.approx([(3.0 * 0.5 / 4) ** 2] * 2)


def test_without_noise_dp_adam_is_adamw(tiny, model, settings, tmp_path):
    results = []
    for name in ("dp-adam", "adamw"):
        files = Files(tmp_path / f"{name}.ledger", tmp_path / f"{name}.log", tmp_path / f"{name}.checkpoint")
        moved = copy.deepcopy(model)
        train(moved, tiny.units(UNITS), _open(), settings(optimizer=name), files)
        results.append(_weights(moved))
    assert tiny.distance(*results) == 0


@pytest.mark.parametrize("optimizer", ["sgd", "dp-adam"])
def test_every_optimiser_resumes_exactly(tiny, model, settings, tmp_path, monkeypatch, optimizer):
    _silence(monkeypatch)
    monkeypatch.setattr(loop.PoissonSampler, "draw", lambda self, step: np.arange(step, 12))
    made = settings(optimizer=optimizer, momentum=0.5 if optimizer == "sgd" else 0.0, weight_decay=0.1)
    whole, resumed = copy.deepcopy(model), copy.deepcopy(model)
    first, second = (Files(tmp_path / n, tmp_path / f"{n}.log", tmp_path / f"{n}.checkpoint") for n in "ab")
    train(whole, tiny.units(UNITS), _private(), made, first)
    _run_killed(tiny, copy.deepcopy(model), _private(), made, second, where="engine", at=5)
    train(resumed, tiny.units(UNITS), _private(), made, second)
    assert tiny.distance(_weights(whole), _weights(resumed)) == 0


# KilledError and resumed.


PLACES = {"weights": (loop, "_apply"), "checkpoint": (checkpoint, "save")}


def _run_killed(tiny, model, plan, settings, files, *, where, at, units=None):
    """Trains until the call ``at`` of ``where``."""
    calls = 0

    def dying(before):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == at:
                raise KilledError
            return before(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        if where == "engine":
            _on_each_sum(patch, dying)
        else:
            owner, name = PLACES[where]
            patch.setattr(owner, name, dying(getattr(owner, name)))
        with pytest.raises(KilledError):
            train(model, units or tiny.units(UNITS), plan, settings, files)


def _on_each_sum(patch, wrap):
    """Wraps ``unit_sum`` of the engine of the next run; an engine may sum units of its own before that."""
    real = loop.engine_for

    def engine_for(*args, **kwargs):
        engine = real(*args, **kwargs)
        engine.unit_sum = wrap(engine.unit_sum)
        return engine

    patch.setattr(loop, "engine_for", engine_for)


@pytest.mark.parametrize(
    ("where", "at", "released", "kept"),
    [
        ("engine", 1, 0, 0),
        ("engine", 4, 3, 2),
        ("weights", 1, 1, 0),
        ("weights", 4, 4, 2),
        ("weights", 7, 7, 6),
        ("checkpoint", 1, 2, 0),
        ("checkpoint", 2, 4, 2),
        ("checkpoint", 4, 7, 6),
    ],
)
def test_a_killed_private_run_never_releases_more_than_planned(tiny, model, settings, files, where, at, released, kept):
    start = copy.deepcopy(model)
    _run_killed(tiny, model, _private(), settings(), files, where=where, at=at)
    state = checkpoint.load(files.checkpoint)
    assert len(Ledger.open(files.ledger)) == released and (0 if state is None else state.step) == kept
    ledger = train(start, tiny.units(UNITS), _private(), settings(), files)
    assert len(ledger) == len(Ledger.open(files.ledger)) == 7


def test_a_run_killed_again_and_again_ends_with_the_planned_releases(tiny, model, settings, files):
    for _ in range(3):
        _run_killed(tiny, copy.deepcopy(model), _private(), settings(), files, where="weights", at=2)
    assert len(train(copy.deepcopy(model), tiny.units(UNITS), _private(), settings(), files)) == 7
    again = train(model, tiny.units(UNITS), _private(), settings(), files)
    assert len(again) == len(Ledger.open(files.ledger)) == 7


def test_lost_steps_are_said_and_not_repeated(tiny, model, settings, files, monkeypatch):
    _run_killed(tiny, copy.deepcopy(model), _private(), settings(), files, where="weights", at=4)
    said, steps, real = [], [], loop.PoissonSampler.draw
    progress = Progress()
    progress.say = said.append
    monkeypatch.setattr(loop.PoissonSampler, "draw", lambda self, step: steps.append(step) or real(self, step))
    train(model, tiny.units(UNITS), _private(), settings(), files, progress)
    assert steps == [5, 6, 7] and said == ["2 steps after the last checkpoint are lost; their releases stay counted"]


@pytest.mark.parametrize(("where", "at"), [("engine", 4), ("weights", 1), ("weights", 7), ("checkpoint", 2)])
def test_a_resumed_open_run_equals_an_uninterrupted_one(tiny, model, settings, tmp_path, where, at):
    first, second = (Files(tmp_path / n, tmp_path / f"{n}.log", tmp_path / f"{n}.checkpoint") for n in "ab")
    whole, cut, resumed = (copy.deepcopy(model) for _ in range(3))
    train(whole, tiny.units(UNITS), _open(), settings(), first)
    _run_killed(tiny, cut, _open(), settings(), second, where=where, at=at)
    train(resumed, tiny.units(UNITS), _open(), settings(), second)
    assert tiny.distance(_weights(whole), _weights(resumed)) == 0
    logs = [[line._replace(seconds=0) for line in read_log(files.log)] for files in (first, second)]
    assert logs[0] == logs[1]


def test_a_finished_run_is_loaded_and_not_repeated(tiny, model, settings, files):
    start = copy.deepcopy(model)
    train(model, tiny.units(UNITS), _private(), settings(), files)
    ledger = train(start, tiny.units(UNITS), _private(), settings(), files)
    assert len(ledger) == 7 and tiny.distance(_weights(model), _weights(start)) == 0


def test_the_log_has_one_line_a_step(tiny, model, settings, files):
    train(model, tiny.units(UNITS), _private(), settings(), files)
    lines = read_log(files.log)
    assert [line.step for line in lines] == list(range(1, 8)) and lines[-1].epsilon == 7
    seconds = [line.seconds for line in lines]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("where", ["weights", "checkpoint"])
def test_the_log_has_no_step_twice_after_a_resume(tiny, model, settings, files, where):
    _run_killed(tiny, copy.deepcopy(model), _private(), settings(), files, where=where, at=2)
    with files.log.open("a") as log:
        log.write('{"step": 3, "lo')  # torn by the kill
    train(model, tiny.units(UNITS), _private(), settings(), files)
    steps = [line.step for line in read_log(files.log)]
    assert steps == sorted(set(steps)) and set(steps) >= {1, 5, 6, 7}


# Refusals.


def test_a_ledger_of_another_plan_is_refused(tiny, model, settings, files):
    train(model, tiny.units(UNITS), _private(steps=1), settings(), files)
    with pytest.raises(PrivacyError, match=r"ledger.jsonl was begun with another plan"):
        train(model, tiny.units(UNITS), _private(steps=2), settings(), files)


def test_a_plan_for_other_data_is_refused(tiny, model, settings, files):
    with pytest.raises(PrivacyError, match="the plan is for 12 units, got 11"):
        train(model, tiny.units(11), _private(), settings(), files)


def test_a_checkpoint_of_other_weights_is_refused(tiny, model, settings, files):
    train(model, tiny.units(UNITS), _private(), settings(), files)
    other = add_lora(tiny.model(), rank=4, alpha=8, dropout=0.0, targets=["q_proj"], seed=0)
    with pytest.raises(PrivacyError, match="the checkpoint holds other weights"):
        train(other, tiny.units(UNITS), _private(), settings(), files)


def test_an_update_too_small_to_move_the_weights_is_refused(tiny, model, settings, files):
    with pytest.raises(PrivacyError, match=r"did not change in the first private step, .*learning_rate"):
        train(model, tiny.units(UNITS), _private(), settings(learning_rate=1e-30), files)


# The learning rate.


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, 0.8535533905932737, 0.5, 0.1464466094067262]),
        ("constant", 2, [0.5, 1, 1, 1]),
        ("linear", 2, [0.5, 1, 1, 0.5]),
        ("cosine", 4, [0.25, 0.5, 0.75, 1]),
        ("linear", 8, [0.125, 0.25, 0.375, 0.5]),
    ],
)
def test_the_learning_rate_has_known_values(settings, schedule, warmup, expected):
    made = settings(learning_rate=2.0, schedule=schedule, warmup=warmup)
    assert [rate(made, step, 4) for step in range(1, 5)] == pytest.approx([2 * value for value in expected])


def test_the_optimiser_uses_that_rate(model, settings, files, monkeypatch):
    _use(monkeypatch, _Fixed(model, 4.0))
    before = _weights(model)
    train(model, PLAIN, _open(steps=4), settings(optimizer="sgd", learning_rate=0.1, schedule="linear"), files)
    for name, after in _weights(model).items():
        torch.testing.assert_close(after, before[name] - 0.1 * 2.5)


# The whole path, attacked.


def _lower_bound(inside, outside):
    """Epsilon that an attacker has shown with 99 % confidence, by the better side of the midpoint (Clopper-Pearson)."""
    threshold = (np.mean(inside) + np.mean(outside)) / 2
    hits, misses, n = int(np.sum(inside > threshold)), int(np.sum(outside > threshold)), len(inside)
    power = stats.beta.ppf(0.005, hits, n - hits + 1) if hits else 0.0
    size = stats.beta.ppf(0.995, misses + 1, n - misses)
    return float(np.log(max(power, 1e-9) / size))


@pytest.mark.parametrize("noisy", [True, False])
def test_a_planted_unit_shows_only_when_the_noise_is_taken_out(tiny, settings, tmp_path, monkeypatch, noisy):
    model = tiny.lora(tiny.model(), target_modules=["q_proj"])
    units, runs = tiny.units(UNITS), 150
    plan = _private(batch_size=UNITS, steps=1, noise_multiplier=2.0)
    claim = spent([(plan.release, 1)], plan.delta).epsilon
    engine = loop.engine_for(model, clipping=Clipping(0.5), loss="mean", micro_batch_tokens=1000)
    sums = {inside: engine.unit_sum(units if inside else units[1:]) for inside in (True, False)}
    canary = {name: sums[True].gradient[name] - sums[False].gradient[name] for name in sums[True].gradient}
    if not noisy:
        _silence(monkeypatch)
    start, scores = _weights(model), {True: [], False: []}
    for number in range(2 * runs):
        inside = number % 2 == 0
        found = sums[inside]._replace(gradient=_clones(sums[inside].gradient))
        _use(monkeypatch, type("Cached", (), {"unit_sum": lambda self, drawn, found=found: found})())
        files = Files(tmp_path / f"{number}", tmp_path / f"{number}.log", tmp_path / f"{number}.checkpoint")
        with torch.no_grad():
            for name, parameter in trained(model).items():
                parameter.copy_(start[name])
        train(model, units, plan, settings(optimizer="sgd", learning_rate=1.0), files)
        moved = {name: start[name] - value for name, value in _weights(model).items()}
        scores[inside].append(sum(float((moved[name] * canary[name]).sum()) for name in canary))
    shown = _lower_bound(np.array(scores[True]), np.array(scores[False]))
    assert shown < claim if noisy else shown > claim
