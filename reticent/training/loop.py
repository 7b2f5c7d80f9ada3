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
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from reticent.errors import PrivacyError
from reticent.gradients.engines import Engine, Sums, engine_for, trained
from reticent.gradients.rows import Loss, Unit
from reticent.privacy.clipping import Clipping
from reticent.privacy.entropy import SystemWords
from reticent.privacy.ledger import Ledger
from reticent.privacy.noise import add_noise
from reticent.privacy.plan import DPSGDPlan, NonPrivatePlan, Plan
from reticent.privacy.sampling import PoissonSampler, Sampler, SeededPoissonSampler
from reticent.progress import SILENT, Progress
from reticent.training import checkpoint


class Settings(NamedTuple):
    """How the weights move; the recipe's ``train`` section as plain values."""

    learning_rate: float
    optimizer: Literal["adamw", "sgd"]
    weight_decay: float
    schedule: Literal["constant", "linear", "cosine"]
    warmup: int
    loss: Loss
    micro_batch_tokens: int
    checkpoint_every: int
    seed: int


class Files(NamedTuple):
    """Where a training run keeps its state."""

    ledger: Path
    log: Path
    checkpoint: Path


class Step(NamedTuple):
    """One line of the log. ``loss``: nats per token of the drawn records, measured without noise, so keep it inside."""

    step: int
    loss: float | None
    records: int
    epsilon: float | None
    seconds: float


def train(
    model: PreTrainedModel,
    units: Sequence[Unit],
    plan: Plan,
    settings: Settings,
    files: Files,
    progress: Progress = SILENT,
) -> Ledger | None:
    """Trains ``model`` in place over ``plan.steps`` steps; returns the ledger of a private run.

    Resumes from ``files`` if they hold a checkpoint.

    Raises:
        PrivacyError: the plan does not fit the data, the ledger or the model.
        ModelError: no engine can clip this model exactly.
    """
    if len(units) != plan.units:
        raise PrivacyError(f"the plan is for {plan.units} units, got {len(units)}")
    engine = engine_for(
        model,
        clipping=Clipping(plan.clip_norm) if isinstance(plan, DPSGDPlan) else None,
        loss=settings.loss,
        micro_batch_tokens=settings.micro_batch_tokens,
    )
    ledger = _ledger(files.ledger, plan)
    optimizer = _optimizer(trained(model).values(), settings)
    state = checkpoint.load(files.checkpoint)
    if state is not None:
        _restore(model, optimizer, state)
    # Steps already released but lost with their weights count as done: the budget is not there twice.
    reached = 0 if state is None else state.step
    done = max(reached, 0 if ledger is None else len(ledger))
    if done > reached:
        progress.say(f"{done - reached} steps after the last checkpoint are lost; their releases stay counted")
    before = 0.0 if state is None else state.seconds
    records = 0
    started = time.monotonic()
    model.train()
    with _log(files.log, keep=done) as log, progress.task(f"training ({_kind(plan)})", total=plan.steps) as task:
        task.advance(done)
        for step, update in _updates(engine, units, plan, settings, ledger, start=done):
            _set_rate(optimizer, settings, step, plan.steps)
            before_first = _copy(model) if step == done + 1 and ledger is not None else None
            _apply(model, optimizer, update.gradient, plan.batch_size)
            if before_first is not None:
                _check_moved(model, before_first)
            seconds = time.monotonic() - started
            line = Step(step, update.loss, update.records, update.epsilon, before + seconds)
            log(line)
            records += update.records
            task.advance(1, note=_note(line, records / seconds))
            if step % settings.checkpoint_every == 0 or step == plan.steps:
                checkpoint.save(
                    files.checkpoint,
                    checkpoint.State(
                        step, {n: p.detach() for n, p in trained(model).items()}, optimizer.state_dict(), line.seconds
                    ),
                )
    model.eval()
    return ledger


class _Update(NamedTuple):
    gradient: Sums
    loss: float | None
    records: int
    epsilon: float | None


def _updates(
    engine: Engine,
    units: Sequence[Unit],
    plan: Plan,
    settings: Settings,
    ledger: Ledger | None,
    *,
    start: int,
) -> Iterator[tuple[int, _Update]]:
    """The sum of gradients of each step, noised and in the ledger if the plan is private."""
    sampler: Sampler
    if isinstance(plan, DPSGDPlan):
        sampler, source = PoissonSampler(plan.units, plan.sampling_prob), SystemWords()
    else:
        sampler = SeededPoissonSampler(plan.units, plan.sampling_prob, settings.seed)
    epsilon = None
    for step in range(start + 1, plan.steps + 1):
        drawn = [units[i] for i in sampler.draw(step)]
        found = engine.unit_sum(drawn)
        gradient = found.gradient
        if isinstance(plan, DPSGDPlan):
            assert ledger is not None
            gradient = add_noise(
                gradient, noise_multiplier=plan.noise_multiplier, clip_norm=plan.clip_norm, source=source
            )
            ledger.record()
            if step % max(1, plan.steps // 20) == 0 or step == plan.steps or epsilon is None:
                epsilon = ledger.epsilon()
        per = found.records if settings.loss == "mean" else _predicted(drawn)
        loss = found.loss / per if per else None
        yield step, _Update(gradient, loss, found.records, epsilon)


def _predicted(units: Sequence[Unit]) -> int:
    """How many tokens are predicted."""
    return sum(int(record.trained.sum()) for unit in units for record in unit.records)


def _apply(model: PreTrainedModel, optimizer: torch.optim.Optimizer, gradient: Sums, divisor: int) -> None:
    """One optimiser step on ``gradient / divisor``; the divisor is public, never the size of the batch."""
    for name, parameter in trained(model).items():
        parameter.grad = (gradient[name] / divisor).to(parameter.dtype)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


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


def _ledger(path: Path, plan: Plan) -> Ledger | None:
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


def _optimizer(parameters: object, settings: Settings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, weight_decay=settings.weight_decay)  # type: ignore[arg-type]
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=settings.weight_decay)  # type: ignore[arg-type]


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of ``step`` (1-based): linear warm-up, then the schedule down to 0 after the last step."""
    if step <= settings.warmup:
        return settings.learning_rate * step / settings.warmup
    left = 1 - (step - 1 - settings.warmup) / (steps - settings.warmup)
    factor = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[settings.schedule]
    return settings.learning_rate * factor


def _set_rate(optimizer: torch.optim.Optimizer, settings: Settings, step: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate(settings, step, steps)


def _restore(model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: checkpoint.State) -> None:
    parameters = trained(model)
    if parameters.keys() != state.weights.keys():
        raise PrivacyError("the checkpoint holds other weights than this recipe trains. Redo this stage with --again.")
    with torch.no_grad():
        for name, value in state.weights.items():
            parameters[name].copy_(value)
    optimizer.load_state_dict(state.optimizer)


@contextmanager
def _log(path: Path, *, keep: int) -> Iterator[Callable[[Step], None]]:
    """Appends steps to the log, after dropping lines of steps that are about to be made again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= keep]
    new = path.with_name(path.name + ".new")
    new.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    new.replace(path)
    with open(path, "a", encoding="utf-8") as file:

        def log(step: Step) -> None:
            file.write(json.dumps(step._asdict()) + "\n")
            file.flush()

        yield log


def read_log(path: Path) -> list[Step]:
    """The log of a training run."""
    return [Step(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _kind(plan: Plan) -> str:
    return "private" if isinstance(plan, DPSGDPlan) else "no privacy"


def _note(line: Step, speed: float) -> str:
    loss = "loss -" if line.loss is None else f"loss {line.loss:.3f}"
    epsilon = "" if line.epsilon is None else f"  epsilon {line.epsilon:.2f}"
    return f"{loss}{epsilon}  {speed:.1f} records/s"
