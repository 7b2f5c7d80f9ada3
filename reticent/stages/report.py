"""One page that says what was promised, what was measured and what was lost."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from reticent import recipe as recipes
from reticent.asked import federated, public_name, trained_models
from reticent.progress import Progress
from reticent.recipe import Recipe, Source
from reticent.run import Run

if TYPE_CHECKING:
    from reticent.reports.report import Report


def report(run: Run, progress: Progress) -> None:
    """Writes report.html and report.json, from the ledger's guarantee and the measurements alone."""
    from reticent.reports.render import render

    with progress.task("reporting", total=1) as task:
        values = contents(run)
        run.write_report(render(cast("Report", values)), values)
        task.advance()
    run.finish("report", {})


def contents(run: Run) -> dict[str, Any]:
    """All that the report shows, as plain values."""
    from reticent.training.loop import read_log

    shown = _without_paths(run.recipe)
    drawn = run.read_plots("audit")
    loss = {
        name: [
            {"step": line.step, "loss": line.loss, "epsilon": line.epsilon}
            for line in read_log(run.log_path(name))
            if line.loss is not None  # an empty draw has none
        ]
        for name in trained_models(run.recipe)
    }
    return {
        "title": f"{shown.model.base}, fine-tuned on {_source(shown)}",
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "guarantee": _guarantee(run),
        "measurements": [measurement.to_dict() for measurement in run.read_measurements()],
        "plots": {**run.read_plots("prepare"), **drawn, "loss": loss, **_rounds(run)},
        "data": run.read_manifest(),
        "recipe": recipes.dump(shown),
        "provenance": run.read_provenance(),
    }


def coordinated(run: Run) -> dict[str, Any]:
    """What the coordinator of a real federation can tell: it has no text."""
    shown = _without_paths(run.recipe)
    return {
        "title": f"{shown.model.base}, fine-tuned across sites",
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "guarantee": _guarantee(run),
        "measurements": [],
        "plots": _rounds(run),
        "data": {},
        "recipe": recipes.dump(shown),
        "provenance": run.read_provenance(),
    }


def _guarantee(run: Run) -> dict[str, Any]:
    nothing = {"epsilon": None, "delta": None, "unit": run.recipe.privacy.unit}
    guarantee: dict[str, Any] = run.facts("train").get("guarantee", nothing)
    return guarantee


def _rounds(run: Run) -> dict[str, Any]:
    """What travelled in a federation."""
    if federated(run.recipe) is None:
        return {}
    facts = {name: run.read_federation(name) for name in trained_models(run.recipe)}
    rounds = {name: one["rounds"] for name, one in facts.items() if one["rounds"]}  # a site knows of none
    return {"rounds": rounds, "bytes_full": next(iter(facts.values()))["bytes_full"]} if rounds else {}


def _source(recipe: Recipe) -> str:
    source = recipe.data.source
    if isinstance(source, str):
        return source
    return " and ".join(one.told() for one in ([source] if isinstance(source, Source) else source))


def _without_paths(recipe: Recipe) -> Recipe:
    """The recipe with file names instead of this machine's paths."""
    values = recipe.model_dump(mode="json")
    for section, key in recipes.paths(values["data"]):
        section[key] = Path(section[key]).name
    values["model"]["base"] = public_name(recipe.model.base)
    return recipes.from_dict(values)
