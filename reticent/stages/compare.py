"""Models of finished runs side by side: base, centralised (part, whole), federated, private."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from reticent.asked import federated, public_name, trained_models
from reticent.errors import RunError
from reticent.measurement import Measurement
from reticent.recipe import Recipe, Source
from reticent.run import Run
from reticent.stages.inputs import AnyModel
from reticent.stages.report import broken
from reticent.statistics import mcnemar

if TYPE_CHECKING:
    from reticent.reports.comparison import Asked, Cell, Column, Comparison, Paired, Row

_FIRST = (
    "epsilon",
    "bits_per_byte",
    "perplexity",
    "accuracy",
    "exposure_bits",
    "membership_auc",
    "epsilon_lower_bound",
)
_COMPARED_STAGES = ("audit", "evaluate")
_NOT_SHOWN = ("compat_", "seed_")  # numbers that mislead; each run's own report says how


class _Run(NamedTuple):
    """A run, the name of its folder, and the items of its benchmarks, by the benchmark's name."""

    run: Run
    name: str
    exams: dict[str, list[dict[str, Any]]]


class _Column(NamedTuple):
    """A column and the runs that its numbers come from: the base model's may come from several."""

    shown: "Column"
    model: AnyModel
    runs: list[_Run]


class _Found(NamedTuple):
    """A measurement and what it rests on: pairs of what to call another, and a value that tells whether it is."""

    measured: Measurement
    rests: tuple[tuple[str, Any], ...]


def compare(runs: Sequence[Run], *, withheld: bool = True) -> "Comparison":
    """The models of ``runs``, each base model once, with the measures that the runs have in common.

    Args:
        runs: finished ones, in the order of the columns.
        withheld: leave out what models without a promise answered: it may hold private text, and may be shown to
            whoever may read the data, but not written outside of the run's data folder.

    Raises:
        RunError: a run is there twice, has no trained model, or nothing was measured on it.
    """
    _check(runs)
    columns = _columns([_Run(run, name, _exams(run)) for run, name in zip(runs, _names(runs), strict=True)])
    rows = [*_promised(columns), *_rows(columns, len(runs))]
    rows.sort(key=lambda row: _place(row["measure"]))
    return {
        "columns": [column.shown for column in columns],
        "rows": rows,
        "answers": _answers(columns, withheld=withheld),
        "paired": list(_pairs(columns)),
    }


def _check(runs: Sequence[Run]) -> None:
    folders = [run.folder.resolve() for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise RunError(f"{run.folder} is named twice; name each run once")
        if not run.finished("train") or not run.read_measurements():
            raise RunError(f"{run.folder} has nothing to compare yet; finish it with: reticent run {run.folder}")


# -------------------------------------------------------------------------------------------------------- the columns


def _columns(runs: Sequence[_Run]) -> list[_Column]:
    bases: dict[str, list[_Run]] = {}
    for one in runs:
        bases.setdefault(one.run.recipe.model.base, []).append(one)
    found = []
    for base, of in bases.items():
        name = public_name(base)
        shown: Column = {
            "run": of[0].name,
            "model": "base",
            "what": "base" if len(bases) == 1 else f"base, {name}",
            "open": True,
            "facts": {"base_model": name},
        }
        found.append(_Column(shown, "base", of))
    for one in runs:
        found += [_Column(_trained(one.run, one.name, model), model, [one]) for model in trained_models(one.run.recipe)]
    return found


def _names(runs: Sequence[Run]) -> list[str]:
    """Names of the folders; those that occur twice with a number."""
    names = [run.folder.resolve().name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: at + 1].count(name)})" for at, name in enumerate(names)
    ]


def _trained(run: Run, name: str, model: AnyModel) -> "Column":
    recipe, failed = run.recipe, broken(run)
    guarantee = _guarantee(run, model)
    epsilon = None if guarantee is None else guarantee["epsilon"]
    kept = epsilon is not None and not failed
    what = [_place_of(run), *_part(recipe)]
    facts: dict[str, Any] = {
        "base_model": public_name(recipe.model.base),
        "data": " and ".join(dict.fromkeys(_called(one) for one in _sources(recipe))) or recipe.data.source,
        "sites": len(run.silos()) or None if federated(recipe) is not None else None,
        "trained": recipe.model.adapter.kind,
        "steps": recipe.train.steps,
        "batch_size": recipe.train.batch_size,
    }
    if model == "private":
        whom = " to each site" if guarantee is not None and guarantee.get("unit") == "client" else ""
        what += ["private", f"epsilon {epsilon:.3g}{whom}" if kept else "promise not kept" if failed else "no promise"]
        facts["promise"] = f"broken: check {', '.join(failed)} failed" if failed else _told(guarantee)
    facts = {key: value for key, value in facts.items() if value is not None}
    return {"run": name, "model": model, "what": ", ".join(what), "open": kept, "facts": facts}


def _guarantee(run: Run, model: AnyModel) -> dict[str, Any] | None:
    """What the ledger vouches for; None where nothing is promised."""
    found: dict[str, Any] | None = run.facts("train").get("guarantee") if model == "private" else None
    return None if found is None or found["epsilon"] is None else found


def _told(guarantee: dict[str, Any] | None) -> str | None:
    if guarantee is None:
        return None
    unit = "site" if guarantee.get("unit") == "client" else guarantee.get("unit")
    return f"epsilon {guarantee['epsilon']:.3g}, delta {guarantee.get('delta') or 0:.3g} per {unit}"


def _place_of(run: Run) -> str:
    """Where the records were when it was trained on them."""
    asked = run.recipe.federation
    if asked is None:
        return "centralised"
    if asked.only is not None:
        return f"{asked.only} alone"
    sites = len(run.silos())
    return f"federated, {sites} sites" if sites else "federated"


def _part(recipe: Recipe) -> Iterator[str]:
    """How much of the data, where it is not all of them."""
    sources = _sources(recipe)
    shares = {one.share for one in sources} or {1.0}
    limits = {one.limit for one in sources} or {None}
    if shares != {1.0}:
        yield f"{100 * shares.pop():g} % of the data" if len(shares) == 1 else "parts of the data"
    if limits != {None}:
        each = " of each source" if len(sources) > 1 else ""
        yield f"at most {limits.pop():,} records{each}" if len(limits) == 1 else "parts of the data"


def _sources(recipe: Recipe) -> tuple[Source, ...]:
    """None for a bundled generator."""
    source = recipe.data.source
    return () if isinstance(source, str) else (source,) if isinstance(source, Source) else source


def _called(source: Source) -> str:
    """What it is called, without a path of this machine."""
    return source.name or source.hub or Path(str(source.path)).name


# ----------------------------------------------------------------------------------------------------------- the rows


def _promised(columns: Sequence[_Column]) -> "Iterator[Row]":
    """What the ledgers vouch for, as a row."""
    told = [_guarantee(column.runs[0].run, column.model) if column.shown["open"] else None for column in columns]
    units = {one.get("unit", "unit") for one in told if one is not None}
    if units:
        yield {
            "measure": "epsilon",
            "unit": "epsilon",
            "counted": " or ".join(sorted("sites" if unit == "client" else f"{unit}s" for unit in units)),
            "cells": [None if one is None else _epsilon(one) for one in told],
        }


def _epsilon(guarantee: dict[str, Any]) -> "Cell":
    return {
        "value": guarantee["epsilon"],
        "interval": None,
        "n": guarantee.get("units") or 0,
        "floor": None,
        "control": None,
        "p_value": None,
        "method": _told(guarantee) or "",
        "other": "",
    }


def _rows(columns: Sequence[_Column], runs: int) -> "Iterator[Row]":
    """The measures that two runs have, or the only run."""
    found = [[_measured(run, column.model) for run in column.runs] for column in columns]
    holders: dict[str, set[str]] = {}
    for column, of_runs in zip(columns, found, strict=True):
        for run, measured in zip(column.runs, of_runs, strict=True):
            for measure in measured:
                holders.setdefault(measure, set()).add(run.name)
    for measure, held in holders.items():
        if len(held) >= min(runs, 2) and not measure.startswith(_NOT_SHOWN):
            yield _row(measure, [[one[measure] for one in of_runs if measure in one] for of_runs in found])


def _row(measure: str, found: Sequence[Sequence[_Found]]) -> "Row":
    """``found``: for each column the numbers there are, of which it shows one that can be compared with the others."""
    usual = Counter(one.rests for options in found for one in options).most_common(1)[0][0]
    chosen = [_comparable(options, usual) for options in found]
    first = next(one for one in chosen if one is not None).measured
    return {
        "measure": measure,
        "unit": first.unit,
        "counted": first.counted,
        "cells": [None if one is None else _cell(one, usual) for one in chosen],
    }


def _comparable(options: Sequence[_Found], usual: tuple[tuple[str, Any], ...]) -> _Found | None:
    """The first that rests on the usual, or else the first."""
    return next((one for one in options if one.rests == usual), options[0] if options else None)


def _cell(found: _Found, usual: tuple[tuple[str, Any], ...]) -> "Cell":
    one = found.measured
    return {
        "value": one.value,
        "interval": None if one.interval is None else list(one.interval),
        "n": one.n,
        "floor": one.floor,
        "control": one.control,
        "p_value": one.p_value,
        "method": one.method,
        "other": next((pair[0] for pair in found.rests if pair not in usual), ""),
    }


def _measured(about: _Run, model: AnyModel) -> dict[str, _Found]:
    """What was measured on one model of a run, by name."""
    return {
        one.name: _Found(one, _rests(about, stage, one))
        for stage in _COMPARED_STAGES
        for one in about.run.read_measurements(stage)
        if one.model == model
    }


def _rests(about: _Run, stage: str, one: Measurement) -> tuple[tuple[str, Any], ...]:
    """What must be the same in another run for two numbers to be comparable."""
    run = about.run
    recipe, manifest = run.recipe, run.read_manifest()
    held_out = run.facts("evaluate").get("sha256") if run.finished("evaluate") else None
    if stage == "audit":
        only = None if recipe.federation is None else recipe.federation.only
        if one.counted in ("secrets", "candidates"):
            return (("other secrets", (manifest.get("canaries", {}).get("commitment"), only, one.n)),)
        return (("other records", (held_out, *manifest["records"].values(), only, one.n)),)
    for exam in recipe.evaluate.benchmarks:
        if re.fullmatch(rf"\w+\[{re.escape(exam.name)}(, .+)?\]", one.name):
            ids = tuple(item["id"] for item in about.exams.get(exam.name, []))
            told = exam.model_dump(exclude={"name", "path", "limit", "scorers", "split"})
            scorer = exam.scorers[0] if "," not in one.name else ""  # else it is named
            return ("other questions", (ids, one.n)), ("asked otherwise", (scorer, *told.values()))
    data = recipe.data
    text = (recipe.model.base, data.template, data.train_on_prompt, data.max_tokens, data.long_records)
    if one.name == "question_perplexity":
        asked = tuple(run.read_answers().get("questions", []))
        return ("other questions", asked), ("other tokens", text)
    if one.name.startswith(("perplexity", "bits_per_byte")):
        return ("other records", (held_out, one.n)), ("other tokens", text)
    return (("other records", (held_out, one.n)),)


def _place(measure: str) -> tuple[int, str]:
    """Where a row stands: usefulness and leaks that runs are compared by come first, the others stay as they are."""
    name = measure.partition("[")[0]
    return (_FIRST.index(name), measure.removesuffix("]")) if name in _FIRST else (len(_FIRST), "")


# ------------------------------------------------------------------------------------------------ the same questions


def _exams(run: Run) -> dict[str, list[dict[str, Any]]]:
    """What the models of a run answered to each item, by benchmark."""
    try:
        return {
            unquote(path.stem): [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            for path in sorted(run.benchmarks_folder.glob("*.jsonl"))
        }
    except (OSError, ValueError):
        raise RunError(
            f"{run.benchmarks_folder} is damaged; redo it with: reticent evaluate {run.folder} --again"
        ) from None


def _pairs(columns: Sequence[_Column]) -> "Iterator[Paired]":
    """Each two columns, on each benchmark that both took by the same scorer."""
    right = [_right(column) for column in columns]
    for (one, ours), (other, theirs) in combinations(enumerate(right), 2):
        for exam in ours:
            items = sorted(ours[exam].keys() & theirs.get(exam, {}).keys())
            if items:
                only_one = sum(ours[exam][item] and not theirs[exam][item] for item in items)
                only_other = sum(theirs[exam][item] and not ours[exam][item] for item in items)
                yield {
                    "benchmark": exam[0],
                    "scorer": exam[1],
                    "one": one,
                    "other": other,
                    "items": len(items),
                    "only_one": only_one,
                    "only_other": only_other,
                    "p_value": mcnemar(only_one, only_other),
                }


def _right(column: _Column) -> dict[tuple[str, str], dict[tuple[str, str], bool]]:
    """Which items a model got right, by benchmark and its first scorer; an item is its id and its right answer."""
    found: dict[tuple[str, str], dict[tuple[str, str], bool]] = {}
    for about in column.runs:
        for exam in about.run.recipe.evaluate.benchmarks:
            own = {
                (item["id"], item["answer"]): item["choices"][column.model][exam.scorers[0]] == item["answer"]
                for item in about.exams.get(exam.name, [])
            }
            found.setdefault((exam.name, exam.scorers[0]), own)
    return found


def _answers(columns: Sequence[_Column], *, withheld: bool) -> "list[Asked]":
    """Every question that a run asked, with what each model said to it."""
    said = [_said(column) if column.shown["open"] or not withheld else {} for column in columns]
    asked = dict.fromkeys(
        question
        for column in columns
        for about in column.runs
        for question in about.run.read_answers().get("questions", [])
    )
    return [{"question": question, "answers": [one.get(question) for one in said]} for question in asked]


def _said(column: _Column) -> dict[str, str]:
    found: dict[str, str] = {}
    for about in column.runs:
        stored = about.run.read_answers()
        answers = stored.get("answers", {}).get(column.model, [])
        for question, answer in zip(stored.get("questions", []), answers, strict=False):
            found.setdefault(question, answer)
    return found
