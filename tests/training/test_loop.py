"""The loop: what reaches the weights, what the ledger says, and what a kill may cost."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from reticent.errors import PrivacyError
from reticent.gradients.engines import Batch, Packed, UnitSum, trained
from reticent.models.adapter import add_lora
from reticent.privacy import ledger as ledger_module
from reticent.privacy.accounting import Spent, spent
from reticent.privacy.clipping import Clipping
from reticent.privacy.ledger import Ledger
from reticent.privacy.plan import dpsgd_plan, nonprivate_plan
from reticent.progress import Progress
from reticent.training import checkpoint, loop
from reticent.training.loop import Files, rate, read_log, train

SURE = 1e-6
UNITS = 12


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


class _Fixed:
    """An engine whose sum is the same for every draw."""

    def __init__(self, model, value=0.0):
        self._sum = {name: torch.full_like(p, value, dtype=torch.float32) for name, p in trained(model).items()}
        self.drawn = []

    def unit_sum(self, units):
        self.drawn.append(len(units))
        return UnitSum(dict(self._sum), 0.0, len(units), 0)


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
    train(model, range(UNITS), _open(), settings(optimizer="sgd", learning_rate=0.1), files)
    assert len(set(engine.drawn)) > 1
    for name, after in _weights(model).items():
        torch.testing.assert_close(after, before[name] - 7 * 0.1 * value / 4)


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
    monkeypatch.setattr(loop, "add_noise", lambda sums, **kwargs: sums)
    monkeypatch.setattr(loop, "_check_moved", lambda *args: None)
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
    train(model, range(UNITS), _private(steps=1), settings(optimizer="sgd", learning_rate=1.0), files)
    return {name: (value - before[name]).double() * 4 / 0.5 for name, value in _weights(model).items()}


def _lawful(noise):
    return all(SURE < stats.chi2(v.numel()).cdf(float(v.square().sum())) < 1 - SURE for v in noise.values())


def test_the_noise_of_a_step_has_the_promised_scale_in_every_tensor(model, settings, files, monkeypatch):
    assert _lawful(_noise_of_a_step(model, settings, files, monkeypatch))


@pytest.mark.parametrize("kept", ["", "lora_A"], ids=["missing", "lora-a-only"])
def test_noise_that_misses_a_tensor_stops_the_run(model, settings, files, monkeypatch, kept):
    def mutant(sums, real=loop.add_noise, **settings):
        noised = real(sums, **settings)
        return {name: noised[name] if kept and kept in name else value for name, value in sums.items()}

    monkeypatch.setattr(loop, "add_noise", mutant)
    with pytest.raises(PrivacyError, match="did not change in the first private step"):
        _noise_of_a_step(model, settings, files, monkeypatch)


@pytest.mark.parametrize("factor", [0.5, 1 / 4])
def test_the_law_catches_noise_that_is_too_small(model, settings, files, monkeypatch, factor):
    def mutant(sums, *, noise_multiplier, real=loop.add_noise, **settings):
        return real(sums, noise_multiplier=factor * noise_multiplier, **settings)

    monkeypatch.setattr(loop, "add_noise", mutant)
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


# KilledError and resumed.


PLACES = {
    "engine": (Packed, "unit_sum"),
    "plain-engine": (Batch, "unit_sum"),
    "weights": (loop, "_apply"),
    "checkpoint": (checkpoint, "save"),
}


def _run_killed(tiny, model, plan, settings, files, *, where, at):
    """Trains until the call ``at`` of ``where``."""
    calls = 0
    owner, name = PLACES[where]
    before = getattr(owner, name)

    def killed(*args):
        nonlocal calls
        calls += 1
        if calls == at:
            raise KilledError
        return before(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KilledError):
            train(model, tiny.units(UNITS), plan, settings, files)


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


@pytest.mark.parametrize(("where", "at"), [("plain-engine", 4), ("weights", 1), ("weights", 7), ("checkpoint", 2)])
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
    train(model, range(UNITS), _open(steps=4), settings(optimizer="sgd", learning_rate=0.1, schedule="linear"), files)
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
        monkeypatch.setattr(loop, "add_noise", lambda sums, **kwargs: sums)
    start, scores = _weights(model), {True: [], False: []}
    for number in range(2 * runs):
        inside = number % 2 == 0
        _use(monkeypatch, type("Cached", (), {"unit_sum": lambda self, drawn, found=sums[inside]: found})())
        files = Files(tmp_path / f"{number}", tmp_path / f"{number}.log", tmp_path / f"{number}.checkpoint")
        with torch.no_grad():
            for name, parameter in trained(model).items():
                parameter.copy_(start[name])
        train(model, units, plan, settings(optimizer="sgd", learning_rate=1.0), files)
        moved = {name: start[name] - value for name, value in _weights(model).items()}
        scores[inside].append(sum(float((moved[name] * canary[name]).sum()) for name in canary))
    shown = _lower_bound(np.array(scores[True]), np.array(scores[False]))
    assert shown < claim if noisy else shown > claim
