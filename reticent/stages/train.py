"""Train the model, and its twin without privacy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reticent.errors import RunError
from reticent.privacy.plan import BandedPlan, NonPrivatePlan, Plan
from reticent.progress import SILENT, Progress
from reticent.recipe import Lora, Private, Recipe
from reticent.run import ModelName, Run
from reticent.stages.inputs import plan_for, public_name, trained_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reticent.gradients.rows import Unit
    from reticent.models.load import Loaded
    from reticent.training.distributed import Team
    from reticent.training.loop import Files


class _Job(NamedTuple):
    """What all processes of a training must know."""

    recipe: Recipe
    units: "list[Unit]"
    plan: Plan


def train(run: Run, progress: Progress) -> None:
    """Writes the trained models, their logs and the ledger of the private one.

    With torchrun or accelerate this is the first process; the others are in `follow`.
    """
    from reticent.training.distributed import joined

    facts: dict[str, Any] = {"models": {}}
    try:
        with joined() as team:
            for name in trained_models(run.recipe):
                facts["models"][name] = _train_one(run, name, progress, team)
            team.tell(lambda: None)
    except OSError as error:  # ledger and log are appended to as training goes
        raise RunError(
            f"cannot write to {run.folder}: {error.strerror}. Free some space or mend its permissions; the same "
            "command resumes."
        ) from None
    if "private" in facts["models"]:
        facts["guarantee"] = facts["models"]["private"]["guarantee"]
    run.finish("train", facts)


def follow() -> None:
    """Trains as the first process says, until it says that there is no more; writes nothing."""
    from reticent.training.distributed import joined

    with joined() as team:
        while (job := _told(team)) is not None:
            _fit(job, _base(job.recipe, team).model, None, SILENT, team)


def dismiss() -> None:
    """Tells the other processes that there is nothing to train."""
    from reticent.training.distributed import joined

    with joined() as team:
        team.tell(lambda: None)


def _told(team: "Team") -> _Job | None:
    return team.tell(lambda: None)


def _train_one(run: Run, name: ModelName, progress: Progress, team: "Team") -> dict[str, Any]:
    from reticent.models import adapter
    from reticent.privacy.ledger import Ledger
    from reticent.training import loop

    recipe = run.recipe
    done = run.model_folder(name).exists()
    if not done:
        loaded = _base(recipe, team)
        units = _units(run)
        job = _Job(recipe, units, plan_for(recipe, name, len(units)))
        team.tell(lambda: job)
        files = loop.Files(run.ledger_path(name), run.log_path(name), run.checkpoint_folder(name))
        model = _fit(job, loaded.model, files, progress, team)
        with run.replacing(run.model_folder(name)) as folder:
            adapter.save(model, Path(folder), base=public_name(recipe.model.base))
            loaded.tokenizer.save_pretrained(folder)
    log = loop.read_log(run.log_path(name))
    facts: dict[str, Any] = {"steps": len(log), "seconds": log[-1].seconds if log else 0.0}
    if name == "private":
        facts["guarantee"] = Ledger.open(run.ledger_path(name)).guarantee().to_dict()
    return facts


def _base(recipe: Recipe, team: "Team") -> "Loaded":
    """The model to train; on the CPU if it is to be sharded, which moves each part to its accelerator."""
    import torch

    from reticent.models.load import load

    asked = recipe.model
    device = torch.device("cpu") if recipe.train.shard and team.size > 1 else None
    return load(asked.base, dtype=asked.dtype, quantize=asked.quantize, device=device)


def _fit(job: _Job, base: "PreTrainedModel", files: "Files | None", progress: Progress, team: "Team") -> Any:
    """The trained model; in the first process whole, also if it was trained in parts."""
    from reticent.gradients.exact import refuse_inexact
    from reticent.training import loop

    recipe = job.recipe
    model = prepared(recipe, base)
    if isinstance(recipe.privacy, Private):
        refuse_inexact(model)  # Also the twin: before hours of training that lead nowhere.
    tokens = team.tell(lambda: _micro_batch_tokens(job, model, progress, team.size))
    loop.train(model, job.units, job.plan, settings(recipe, tokens), files, progress, team)
    if not recipe.train.shard or team.size == 1:
        return model
    weights = team.whole(loop.weights(model))
    if team.first:
        model = prepared(recipe, _base(recipe, team).model)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, unknown
    return model


def _micro_batch_tokens(job: _Job, model: Any, progress: Progress, processes: int) -> int:
    """The recipe's, or the most that fit on the first process's device; the others' is taken to be like it."""
    from reticent.training.fit import fitting

    asked, plan = job.recipe.train.micro_batch_tokens, job.plan
    if asked != "auto":
        return asked
    # Bytes a trained number: two moments of the optimiser, the noisy sum, the weights before the first step, the past
    # noise of dp-mf.
    kept = 16 + 4 * (plan.bands if isinstance(plan, BandedPlan) else 0)
    found = fitting(
        model,
        job.units,
        batch_size=plan.batch_size,
        clipping=None if isinstance(plan, NonPrivatePlan) else plan.clipping,
        loss=job.recipe.train.loss,
        kept=kept,
        processes=processes,
    )
    progress.say(f"micro-batches of {found} tokens, as many as fit (train.micro_batch_tokens: auto)")
    return found


def prepared(recipe: Recipe, model: "PreTrainedModel") -> Any:
    """``model`` with what the recipe trains."""
    from reticent.models import adapter

    if recipe.train.gradient_checkpointing:
        adapter.recompute_layers(model)
    asked = recipe.model.adapter
    if not isinstance(asked, Lora):
        return adapter.train_everything(model)
    return adapter.add_lora(
        model,
        rank=asked.rank,
        alpha=asked.alpha,
        dropout=asked.dropout,
        targets=asked.targets,
        seed=recipe.train.seed,
    )


def settings(recipe: Recipe, micro_batch_tokens: int) -> Any:
    """The recipe's train section as the loop takes it."""
    from reticent.training.loop import Settings

    values = {**recipe.train.model_dump(), "micro_batch_tokens": micro_batch_tokens}
    return Settings(**{field: values[field] for field in Settings._fields})


def _units(run: Run) -> "list[Unit]":
    """The training records by unit of privacy, as tokens."""
    from reticent.gradients.rows import Unit
    from reticent.tokens import Tokens

    members: dict[str, list[Tokens]] = {}
    for unit, tokens in run.read_tokens():
        members.setdefault(unit, []).append(tokens)
    return [Unit(unit, tuple(tokens)) for unit, tokens in members.items()]
