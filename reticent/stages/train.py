"""Train the model, and its twin without privacy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reticent.asked import (
    base_model,
    federated,
    micro_batch_tokens,
    plan_for,
    prepared,
    public_name,
    settings,
    trained_models,
    units_of,
)
from reticent.errors import RunError
from reticent.privacy.plan import Plan
from reticent.progress import SILENT, Progress
from reticent.recipe import Private, Recipe
from reticent.run import ModelName, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reticent.gradients.rows import Unit
    from reticent.models.load import Loaded
    from reticent.training.distributed import Team
    from reticent.training.loop import Files


class Job(NamedTuple):
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
            fit(job, _base(job.recipe, team).model, None, SILENT, team)


def dismiss() -> None:
    """Tells the other processes that there is nothing to train."""
    from reticent.training.distributed import joined

    with joined() as team:
        team.tell(lambda: None)


def _told(team: "Team") -> Job | None:
    return team.tell(lambda: None)


def _train_one(run: Run, name: ModelName, progress: Progress, team: "Team") -> dict[str, Any]:
    from reticent.models import adapter
    from reticent.privacy.ledger import Ledger
    from reticent.training import loop

    recipe = run.recipe
    if federated(recipe) is not None:
        return _train_over_sites(run, name, progress, team)
    done = run.model_folder(name).exists()
    if not done:
        loaded = _base(recipe, team)
        units = units_of(run)
        job = Job(recipe, units, plan_for(recipe, name, len(units)))
        team.tell(lambda: job)
        files = loop.Files(run.ledger_path(name), run.log_path(name), run.checkpoint_folder(name))
        model = fit(job, loaded.model, files, progress, team)
        with run.replacing(run.model_folder(name)) as folder:
            adapter.save(model, Path(folder), base=public_name(recipe.model.base))
            loaded.tokenizer.save_pretrained(folder)
    log = loop.read_log(run.log_path(name))
    facts: dict[str, Any] = {"steps": len(log), "seconds": log[-1].seconds if log else 0.0}
    if name == "private":
        facts["guarantee"] = Ledger.open(run.ledger_path(name)).guarantee().to_dict()
    return facts


def fit(job: Job, base: "PreTrainedModel", files: "Files | None", progress: Progress, team: "Team") -> Any:
    """The trained model; in the first process whole, also if it was trained in parts."""
    from reticent.gradients.exact import refuse_inexact
    from reticent.training import loop

    recipe = job.recipe
    model = prepared(recipe, base)
    if isinstance(recipe.privacy, Private):
        refuse_inexact(model)  # Also the twin: before hours of training that lead nowhere.
    tokens = team.tell(lambda: micro_batch_tokens(recipe, job.plan, job.units, model, progress, team.size))
    loop.train(model, job.units, job.plan, settings(recipe, tokens), files, progress, team)
    if not recipe.train.shard or team.size == 1:
        return model
    weights = team.whole(loop.weights(model))
    if team.first:
        model = prepared(recipe, _base(recipe, team).model)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, unknown
    return model


def _train_over_sites(run: Run, name: ModelName, progress: Progress, team: "Team") -> dict[str, Any]:
    """Trains one model over the silos of the run, in this process."""
    from reticent.federation import local
    from reticent.models import adapter
    from reticent.models.load import load_tokenizer
    from reticent.training import loop

    if team.size > 1:
        raise RunError("federation trains its sites one after another in one process; run it without torchrun")
    recipe = run.recipe
    if not run.model_folder(name).exists():
        trained = local.train(run, name, progress)
        run.write_federation(name, trained.facts)
        with run.replacing(run.model_folder(name)) as folder:
            adapter.save(trained.model, Path(folder), base=public_name(recipe.model.base))
            load_tokenizer(recipe.model.base).save_pretrained(folder)
    log = loop.read_log(run.log_path(name))
    facts = {"steps": len(log), "seconds": log[-1].seconds if log else 0.0}
    guarantee = run.read_federation(name)["guarantee"]
    return facts if guarantee is None else {**facts, "guarantee": guarantee}


def _base(recipe: Recipe, team: "Team") -> "Loaded":
    """The model to train; on the CPU if it is to be sharded, which moves each part to its accelerator."""
    import torch

    return base_model(recipe, torch.device("cpu") if recipe.train.shard and team.size > 1 else None)
