"""One page that says what was promised, what was measured and what was lost."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from reticent import recipe as recipes
from reticent.asked import federated, public_name, trained_models
from reticent.progress import Progress
from reticent.recipe import Attack, Private, Recipe, Source
from reticent.run import Run

if TYPE_CHECKING:
    from reticent.reports.answers import Line
    from reticent.reports.report import AuditFacts, Guarantee, Plots, Report


def report(run: Run, progress: Progress) -> None:
    """Writes report.html and report.json, from the ledger's guarantee and the measurements alone."""
    from reticent.reports.render import render
    from reticent.reports.schema import validate

    with progress.task("reporting", total=1) as task:
        values = contents(run)
        validate(values)
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
    unanswered = drawn.pop("unanswered", [])
    guarantee = _guarantee(run)
    promised = guarantee["epsilon"] is not None
    answered = _answered(run, promised)
    return {
        "title": f"{shown.model.base}, fine-tuned on {_source(shown)}",
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "guarantee": guarantee,
        "measurements": [measurement.to_dict() for measurement in run.read_measurements()],
        "plots": {
            **run.read_plots("prepare"),
            **drawn,
            "loss": loss,
            **_rounds(run),
            **_examined(run),
            **_synthesized(run, promised),
        },
        "data": run.read_manifest(),
        "recipe": recipes.dump(shown),
        "provenance": run.read_provenance(),
        "audit": _audit(run),
        "unanswered": unanswered,
        **({"answers": answered} if answered else {}),
    }


def _answered(run: Run, promised: bool) -> dict[str, Any]:
    """Answers to public questions by models that may speak in public: the base model, and one that keeps a promise."""
    told = run.read_answers()
    if not told:
        return {}
    open_ = ("base", "private") if promised else ("base",)
    return {
        "questions": told["questions"],
        "answers": {model: told["answers"][model] for model in open_ if model in told["answers"]},
        "withheld": [model for model in told["answers"] if model not in open_],
    }


def _examined(run: Run) -> dict[str, Any]:
    """What was asked in benchmarks; their scores are measurements."""
    from reticent.reports.report import Examination

    exams = run.read_plots("evaluate").get("benchmarks", [])
    return {"benchmarks": [_known(exam, Examination) for exam in exams]} if exams else {}


def _synthesized(run: Run, promised: bool) -> dict[str, Any]:
    """Numbers on synthetic text; samples of it only while the promise is kept."""
    from reticent.reports.report import SyntheticText

    if not run.finished("synthesize"):
        return {}
    shown = _known(run.read_plots("synthesize"), SyntheticText)
    if not promised:
        shown.pop("samples", None)
    return {"synthetic": shown}


def _known(values: dict[str, Any], form: type) -> dict[str, Any]:
    """What the report has a place for."""
    return {key: value for key, value in values.items() if key in form.__annotations__}


def findings(run: Run) -> "list[Line]":
    """The lines of page 1."""
    from reticent.reports.answers import verdicts

    return verdicts(_judged(run))


def failing(run: Run, level: Literal["leak", "inconclusive"]) -> list[str]:
    """What on page 1 is a demonstrated leak; at "inconclusive" also what could not be tested."""
    from reticent.reports.answers import gate

    return gate(_judged(run), level)


def _judged(run: Run) -> "Report":
    """What verdicts rest on: a report without its figures of training."""
    drawn = run.read_plots("audit")
    return {
        "title": "",
        "created": "",
        "guarantee": cast("Guarantee", _guarantee(run)),
        "measurements": [measurement.to_dict() for measurement in run.read_measurements()],
        "unanswered": drawn.pop("unanswered", []),
        "plots": cast("Plots", {**drawn, **_examined(run)}),
        "audit": cast("AuditFacts", {"sent": _sent(run.recipe)}),
    }


def _audit(run: Run) -> dict[str, Any]:
    """What was fixed before training, and what was not tried."""
    asked = run.recipe.audit
    now = recipes.flatten(asked.model_dump(mode="json"))
    before = recipes.flatten(run.facts("prepare").get("audit", {}))
    changed = [f"audit.{key}: {before.get(key)} -> {now.get(key)}" for key in now if now.get(key) != before.get(key)]
    measured = {one.name for one in run.read_measurements("audit")}
    on_records = any(name.startswith("record_membership") for name in measured)
    attacks = dict.fromkeys((asked.primary, *asked.attacks) if on_records else ())
    if "membership_auc" in measured:
        attacks[asked.primary] = None
    manifest = run.read_manifest()
    return {
        "pre_registered": not changed,
        "changed": changed,
        "recipe_digest": recipes.digest(run.recipe),
        "commitment": manifest["canaries"]["commitment"],
        "primary": asked.primary,
        "attacks": list(attacks),
        "not_run": [{"attack": attack, "why": why} for attack, why in _not_run(run.recipe, set(attacks))],
        "family": f"{len(attacks)} membership attacks on real records, by the maximum over permuted labels"
        if on_records
        else "",
        "sent": _sent(run.recipe),
        "units": manifest["units"],
        "seeds": {"data.seed": run.recipe.data.seed, "train.seed": run.recipe.train.seed},
        "digests": manifest["sha256"],
    }


def _sent(recipe: Recipe) -> list[str]:
    """What a coordinator receives, in the words of the report."""
    asked = federated(recipe)
    if asked is None:
        return []
    if asked.secure_sum:
        return ["sum"]
    return ["private" if isinstance(recipe.privacy, Private) else "plain"]


def _not_run(recipe: Recipe, run: set[Attack]) -> Iterator[tuple[str, str]]:
    asked = recipe.audit
    off = "switched off in the recipe"
    for attack in get_args(Attack):
        if not asked.membership:
            yield f"membership by {attack}", off
        elif attack not in run:
            asked_for = attack in (asked.primary, *asked.attacks)
            yield f"membership by {attack}", "question 2 says why" if asked_for else "not in audit.attacks"
    for name, here in (
        ("exposure of planted secrets", asked.exposure),
        ("recitation of records", asked.extraction),
        ("identifiers", asked.identifiers),
        ("what a coordinator reads from an update", asked.server_view),
        ("checks of the training itself", asked.selfcheck),
    ):
        if not here:
            yield name, off
    if asked.shadows is None:
        yield "LiRA, counterfactual memorisation", "needs more trainings: audit.shadows"
    yield "neighbours of a text (a masked language model rewrites it)", "another model is needed; a function in Python"
    yield "reconstruction of text from an update by optimisation", "stronger than the closed forms here; not offered"
    yield "a coordinator that sends crafted weights", "not offered"


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
    if failed := broken(run):
        return {**nothing, "broken": failed}
    guarantee: dict[str, Any] = run.facts("train").get("guarantee", nothing)
    return guarantee


def broken(run: Run) -> list[str]:
    """Checks of the training that failed in the audit: with one of them nothing is promised."""
    return [one["name"] for one in run.read_plots("audit").get("checks", []) if not one["passed"]]


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
    for section, key in recipes.paths(values):
        section[key] = Path(section[key]).name
    values["model"]["base"] = public_name(recipe.model.base)
    return recipes.from_dict(values)
