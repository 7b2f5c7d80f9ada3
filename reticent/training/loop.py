"""The loop: draw units, sum their clipped gradients, add noise, write the ledger, move the weights.

The order matters. The release is in the ledger, on disk, before the noisy sum is used for anything, so a killed run
never owes a release. A resumed run takes its weights from the last checkpoint; releases made after it stay counted and
their steps are not repeated, so the promise still holds.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, assert_never

import torch
from transformers import PreTrainedModel

from reticent.errors import PrivacyError
from reticent.gradients.engines import OneByOne, Sums, engine_for, trained, why_not_packed
from reticent.gradients.rows import Loss, Unit
from reticent.privacy.ledger import Ledger
from reticent.privacy.noise import mechanism_for
from reticent.privacy.plan import BandedPlan, DPSGDPlan, NonPrivatePlan, Plan
from reticent.privacy.sampling import CyclicPoissonSampler, PoissonSampler, Sampler, SeededPoissonSampler
from reticent.progress import SILENT, Progress
from reticent.training import checkpoint, optimizers
from reticent.training.distributed import ALONE, Team


class Settings(NamedTuple):
    """How the weights move; the recipe's ``train`` section as plain values."""

    learning_rate: float
    min_learning_rate: float
    optimizer: optimizers.Name
    momentum: float
    beta1: float
    beta2: float
    weight_decay: float
    schedule: Literal["constant", "linear", "cosine"]
    warmup: int
    loss: Loss
    micro_batch_tokens: int
    checkpoint_every: int
    shard: bool
    seed: int


class Files(NamedTuple):
    """Where a training run keeps its state."""

    ledger: Path
    log: Path
    checkpoint: Path


class Step(NamedTuple):
    """One line of the log, measured without noise, so keep it inside.

    ``loss``: nats per token of the drawn records. ``dropped``: units whose gradient was not finite; they contributed
    zero. ``clip_norm``: in force at this step, None without clipping.
    """

    step: int
    loss: float | None
    records: int
    dropped: int
    clip_norm: float | None
    epsilon: float | None
    seconds: float


def train(
    model: PreTrainedModel,
    units: Sequence[Unit],
    plan: Plan,
    settings: Settings,
    files: Files | None,
    progress: Progress = SILENT,
    team: Team = ALONE,
) -> Ledger | None:
    """Trains ``model`` in place over ``plan.steps`` steps; returns the ledger of a private run.

    Resumes from ``files`` if they hold a checkpoint. Under a plan without noise dp-adam is adamw: there is no noise to
    take off. Every process of ``team`` calls this alike, but only the first has ``files``, and so the ledger.

    Raises:
        PrivacyError: the plan does not fit the data, the ledger or the model.
        ModelError: no engine can clip this model exactly.
    """
    if team.first != (files is not None):
        raise PrivacyError("the first process, and no other, needs files: without them there is no ledger")
    state = team.tell(lambda: checkpoint.load(files.checkpoint) if files is not None else None)
    ledger = None if files is None else open_ledger(files.ledger, plan)
    clip_norm = None if state is None else state.clip_norm
    trainer = Trainer(model, units, plan, settings, ledger, clip_norm=clip_norm, progress=progress, team=team)
    if state is not None:
        _restore(model, trainer.optimizer, state, team)
    # Steps already released but lost with their weights count as done: the budget is not there twice.
    reached = 0 if state is None else state.step
    done = team.tell(lambda: max(reached, 0 if ledger is None else len(ledger)))
    if done > reached:
        progress.say(f"{done - reached} steps after the last checkpoint are lost; their releases stay counted")
    before = 0.0 if state is None else state.seconds
    records = 0
    with (
        log_to(None if files is None else files.log, keep=done) as log,
        progress.task(f"training ({_kind(plan)})", total=plan.steps) as task,
    ):
        task.advance(done)
        for line in trainer.steps(done, plan.steps, lambda step: rate(settings, step, plan.steps)):
            records += line.records
            task.advance(1, note=_note(line, records / line.seconds))
            line = line._replace(seconds=before + line.seconds)
            log(line)
            if line.step % settings.checkpoint_every == 0 or line.step == plan.steps:
                state = checkpoint.State(
                    step=line.step,
                    weights=team.whole(weights(model)),
                    optimizer=team.whole(trainer.optimizer.state_dict()),
                    seconds=line.seconds,
                    clip_norm=trainer.clip_norm,
                )
                if files is not None:
                    checkpoint.save(files.checkpoint, state)
    return ledger


Correct = Callable[[Sums, Sums], None]
"""Changes the mean gradient of a step in place, after noise; it is given the gradient and the weights, by name."""


class Trainer:
    """The steps of one training of ``model``, in place: `train` makes all of them, a federation some at a time.

    Without a ``ledger`` only a plan without noise is trained, and followers of a team.

    Raises:
        PrivacyError: the plan does not fit the units or the model.
        ModelError: no engine can clip this model exactly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        units: Sequence[Unit],
        plan: Plan,
        settings: Settings,
        ledger: Ledger | None,
        *,
        clip_norm: float | None = None,
        progress: Progress = SILENT,
        team: Team = ALONE,
    ) -> None:
        if len(units) != plan.units:
            raise PrivacyError(f"the plan is for {plan.units} units, got {len(units)}")
        self._model, self._units, self._plan, self._settings = model, units, plan, settings
        self._ledger, self._team = ledger, team
        self._mechanism = None if isinstance(plan, NonPrivatePlan) else mechanism_for(plan, clip_norm)
        if self._mechanism is not None and ledger is None and team.first:
            raise PrivacyError("a private plan needs a ledger; without one nothing would be accounted for")
        self._engine = engine_for(
            model,
            clipping=None if self._mechanism is None else self._mechanism.clipping,
            loss=settings.loss,
            micro_batch_tokens=settings.micro_batch_tokens,
        )
        if isinstance(self._engine, OneByOne):
            progress.say(f"one unit at a time: {why_not_packed(model) or 'packed rows are not exact for this model'}")
        self._sampler = _sampler(plan, units, settings.seed)
        self._epsilon: float | None = None  # worked out now and then: it takes a second
        team.spread(model, shard=settings.shard)
        self.optimizer = self._fresh()

    @property
    def clip_norm(self) -> float | None:
        """Of the step that comes; None without clipping."""
        return None if self._mechanism is None else self._mechanism.clip_norm

    def restart(self) -> None:
        """Begins with a new optimiser, as each round of a federation does."""
        self.optimizer = self._fresh()

    def _fresh(self) -> torch.optim.Optimizer:
        return _optimizer(self._model, self._settings, private=self._mechanism is not None)

    def steps(
        self, start: int, stop: int, rate: Callable[[int], float], correct: Correct | None = None
    ) -> Iterator[Step]:
        """Makes the steps after ``start`` up to ``stop``, 1-based; ``seconds`` count from here.

        ``rate``: the learning rate of a step.
        """
        model, plan, started = self._model, self._plan, time.monotonic()
        model.train()
        try:
            for step, update in self._updates(start, stop):
                _prepare(self.optimizer, rate(step), (update.noise_std / plan.batch_size) ** 2)
                private = self._mechanism is not None
                before_first = _copy(model) if step == start + 1 and private else None
                _apply(model, self.optimizer, update.gradient, plan.batch_size, correct)
                if before_first is not None:
                    _check_moved(model, before_first)
                seconds = time.monotonic() - started
                yield Step(step, update.loss, update.records, update.dropped, update.clip_norm, update.epsilon, seconds)
        finally:
            model.eval()

    def _updates(self, start: int, stop: int) -> Iterator[tuple[int, "_Update"]]:
        """The sum of gradients of each step, noised and in the ledger if the plan is private.

        Noise is there before the processes' sums are added up, which waits for the first one, and it for the ledger.
        """
        engine, plan, team, mechanism, ledger = self._engine, self._plan, self._team, self._mechanism, self._ledger
        for step in range(start + 1, stop + 1):
            drawn = [self._units[i] for i in team.tell(lambda step=step: self._sampler.draw(step))]  # type: ignore[misc]  # mypy infers no lambda with a default
            found = team.unit_sum(engine, team.share(drawn))
            per = found.records if self._settings.loss == "mean" else _predicted(drawn)
            loss = found.loss / per if per else None
            if mechanism is None:
                yield step, _Update(team.sum(found.gradient), 0.0, loss, found.records, 0, None, None)
                continue
            clip_norm = mechanism.clip_norm
            std = mechanism.add_noise(team.own(found.gradient))
            if ledger is not None:
                ledger.record(mechanism.entry)
            gradient = team.sum(found.gradient)
            mechanism.follow(below=found.below, drawn=len(drawn))
            mechanism.clip_norm = team.tell(lambda: mechanism.clip_norm)
            if mechanism.clip_norm != clip_norm:
                engine.clipping = mechanism.clipping  # type: ignore[attr-defined]  # engines that clip have it
            known = self._epsilon is not None and step != plan.steps
            if ledger is not None and not (known and step % max(1, plan.steps // 20)):
                self._epsilon = ledger.epsilon()
            yield step, _Update(gradient, std, loss, found.records, found.dropped, clip_norm, self._epsilon)


class _Update(NamedTuple):
    """The (noisy) sum of one step; ``noise_std`` is that of each of its coordinates."""

    gradient: Sums
    noise_std: float
    loss: float | None
    records: int
    dropped: int
    clip_norm: float | None
    epsilon: float | None


def _sampler(plan: Plan, units: Sequence[Unit], seed: int) -> Sampler:
    match plan:
        case NonPrivatePlan():
            return SeededPoissonSampler(plan.units, plan.sampling_prob, seed)
        case DPSGDPlan():
            return PoissonSampler(plan.units, plan.sampling_prob)
        case BandedPlan():
            return CyclicPoissonSampler([_content(unit) for unit in units], plan.bands, plan.sampling_prob)
    assert_never(plan)


def _content(unit: Unit) -> bytes:
    """A unit's own tokens, one record after another; the lengths keep them apart."""
    return b"".join(
        len(record).to_bytes(8) + record.ids.tobytes() + record.trained.tobytes() for record in unit.records
    )


def _predicted(units: Sequence[Unit]) -> int:
    """How many tokens are predicted."""
    return sum(int(record.trained.sum()) for unit in units for record in unit.records)


def _prepare(optimizer: torch.optim.Optimizer, learning_rate: float, noise_variance: float) -> None:
    """Sets what changes from step to step; only dp-adam reads the noise's variance."""
    for group in optimizer.param_groups:
        group["lr"], group["noise_variance"] = learning_rate, noise_variance


def _apply(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    gradient: Sums,
    divisor: int,
    correct: Correct | None = None,
) -> None:
    """One optimiser step on ``gradient / divisor``, which is used up; the divisor is public, never the batch's size."""
    for value in gradient.values():
        value.div_(divisor)
    if correct is not None:
        correct(gradient, weights(model))
    for name, parameter in trained(model).items():
        parameter.grad = gradient.pop(name).to(parameter.dtype)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def weights(model: PreTrainedModel) -> Sums:
    """The trained weights as they are, not copied."""
    return {name: parameter.detach() for name, parameter in trained(model).items()}


def _copy(model: PreTrainedModel) -> Sums:
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


def _check_moved(model: PreTrainedModel, before: Sums) -> None:
    """Noise moves every coordinate, so a tensor that stayed as it was did not get the noisy sum."""
    for name, parameter in trained(model).items():
        if torch.equal(parameter, before[name]):
            raise PrivacyError(
                f"{name} did not change in the first private step, so the update did not reach it and no promise can "
                "be made. Raise train.learning_rate, or train fewer layers."
            )


def open_ledger(path: Path, plan: Plan) -> Ledger | None:
    """The ledger at ``path``, begun if there is none; None for a plan without a promise.

    Raises:
        PrivacyError: it was begun with another plan.
    """
    if isinstance(plan, NonPrivatePlan):
        return None
    if not path.exists():
        return Ledger.create(path, plan)
    ledger = Ledger.open(path)
    if ledger.plan != plan:
        raise PrivacyError(
            f"{path.name} was begun with another plan (units, batch, steps, noise or delta differ). Train in another "
            "run folder, or redo this one with --again."
        )
    return ledger


def _optimizer(model: PreTrainedModel, settings: Settings, *, private: bool) -> torch.optim.Optimizer:
    name = settings.optimizer
    return optimizers.optimizer_for(
        trained(model).values(),
        "adamw" if name == "dp-adam" and not private else name,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        beta1=settings.beta1,
        beta2=settings.beta2,
    )


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of ``step`` (1-based): linear warm-up, then the schedule, which ends after the last step."""
    if step <= settings.warmup:
        return settings.learning_rate * step / settings.warmup
    left = 1 - (step - 1 - settings.warmup) / (steps - settings.warmup)
    factor = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[settings.schedule]
    return settings.min_learning_rate + (settings.learning_rate - settings.min_learning_rate) * factor


def _restore(model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: checkpoint.State, team: Team) -> None:
    parameters = trained(model)
    if parameters.keys() != state.weights.keys():
        raise PrivacyError("the checkpoint holds other weights than this recipe trains. Redo this stage with --again.")
    with torch.no_grad():
        for name, value in state.weights.items():
            parameters[name].copy_(team.held(parameters[name], value))
    kept = {
        index: {
            key: team.held(parameter, value) if isinstance(value, torch.Tensor) else value
            for key, value in state.optimizer["state"].get(index, {}).items()
        }
        for index, parameter in enumerate(parameters.values())
    }
    optimizer.load_state_dict({**state.optimizer, "state": {index: own for index, own in kept.items() if own}})


@contextmanager
def log_to(path: Path | None, *, keep: int, by: str = "step") -> Iterator[Callable[[NamedTuple], None]]:
    """Appends steps (or what ``by`` counts) to the log, after dropping those that are about to be made again.

    Without a path it does nothing.
    """
    if path is None:
        yield lambda step: None
        return
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)[by] <= keep]
    new = path.with_name(path.name + ".new")
    new.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    new.replace(path)
    with open(path, "a", encoding="utf-8") as file:

        def log(step: NamedTuple) -> None:
            file.write(json.dumps(step._asdict()) + "\n")
            file.flush()

        yield log


def read_log(path: Path) -> list[Step]:
    """The log of a training run."""
    return [Step(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _kind(plan: Plan) -> str:
    return "no privacy" if isinstance(plan, NonPrivatePlan) else "private"


def _note(line: Step, speed: float) -> str:
    loss = "loss -" if line.loss is None else f"loss {line.loss:.3f}"
    epsilon = "" if line.epsilon is None else f"  epsilon {line.epsilon:.2f}"
    return f"{loss}{epsilon}  {speed:.1f} records/s"
