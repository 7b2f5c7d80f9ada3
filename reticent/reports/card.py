"""The card that goes with an exported model: README.md in the form that the Hugging Face hub reads.

It is the first thing that a stranger sees of the model, so it begins with what went wrong. It holds counts, settings
and measurements, never text, names of owners or places on a machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from reticent.measurement import Measurement
from reticent.reports import table
from reticent.reports.report import Guarantee

_LIMIT = (
    "The promise covers the weights and all that is computed from them alone. It does not cover the numbers of this "
    "card: counts, evaluation and audit were measured on private records. They are totals and averages without text; "
    "take out what is too much before the card is published."
)
_METRICS: Final = {"macro_f1": "f1", "calibrated_accuracy": "accuracy"}
"""The hub's name of a metric, where it is not ours."""


class Finding(NamedTuple):
    """A row of the audit: what was tried, what came out, and what follows."""

    text: str
    measured: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says.

    ``model``: "private", or "twin" where nothing is promised; ``control``: it was trained as the positive control of an
    audit. ``title`` and ``name`` are those of the card and of the model in the hub's index. ``base_id``, ``license``
    and ``datasets`` are left out where they are not public knowledge. ``leaks``: sentences on demonstrated leaks.
    ``findings``: None where there was no audit. ``measurements``: of the evaluation, any models; None where there was
    none. ``data``, ``training``, ``artefact``, ``provenance``: (label, value) rows. ``load``: Python that loads it,
    ``gguf``: the command that converts it, None for an adapter.
    """

    title: str
    name: str
    model: Literal["private", "twin"]
    control: bool
    kind: Literal["adapter", "merged"]
    tags: Sequence[str]
    base: str
    base_id: str | None
    license: str | None
    datasets: Sequence[str]
    guarantee: Guarantee
    leaks: Sequence[str]
    findings: Sequence[Finding] | None
    measurements: Sequence[Measurement] | None
    data: Sequence[tuple[str, str]]
    training: Sequence[tuple[str, str]]
    artefact: Sequence[tuple[str, str]]
    provenance: Sequence[tuple[str, str]]
    load: str
    gguf: str | None


class _Row(NamedTuple):
    """A line of the evaluation."""

    measure: str
    base: str
    own: str
    n: str


def card(facts: Facts) -> str:
    """Markdown with YAML front matter. The same facts give the same text."""
    environment = Environment(
        loader=PackageLoader("reticent.reports"),
        autoescape=False,  # Markdown; every cell of a table goes through `cell`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    promised = facts.guarantee["epsilon"] is not None
    return environment.get_template("card.md").render(
        front=yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=1000).strip(),
        facts=facts,
        promised=promised,
        promises=list(_promises(facts.guarantee)),
        evaluation=_evaluation(facts),
    )


def front_matter(facts: Facts) -> dict[str, Any]:
    """What the hub's index reads."""
    values: dict[str, Any] = {
        "base_model": facts.base_id,
        "base_model_relation": "adapter" if facts.kind == "adapter" else "finetune",
        "library_name": "peft" if facts.kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "license": facts.license,
        "datasets": list(facts.datasets),
        "tags": list(facts.tags),
        "model-index": [{"name": facts.name, "results": list(_results(facts))}],
    }
    if facts.base_id is None:
        del values["base_model_relation"]
    if not values["model-index"][0]["results"]:
        del values["model-index"]
    return {key: value for key, value in values.items() if value not in (None, [])}


def _results(facts: Facts) -> Iterator[dict[str, Any]]:
    """The evaluation as the hub's model index has it: a result for each set of records."""
    by_set: dict[str, list[dict[str, Any]]] = {}
    for one in _own(facts):
        measure, _, scope = one.name.rstrip("]").partition("[")
        told = "" if one.interval is None else f" ({one.level:.0%} interval {_ends(one)})"
        metric = {"type": _METRICS.get(measure, measure), "name": measure.replace("_", " ") + told, "value": one.value}
        by_set.setdefault(scope.partition(",")[0], []).append(metric)
    for scope, metrics in by_set.items():
        named = {"name": scope, "type": scope} if scope else {"name": "held-out records, private", "type": "private"}
        yield {"task": {"type": "text-generation"}, "dataset": named, "metrics": metrics}


def _own(facts: Facts) -> list[Measurement]:
    """Measurements of the model itself. Those of a silo or an origin bear its name, which stays inside."""
    return [
        one
        for one in facts.measurements or ()
        if one.model == facts.model and "[silo " not in one.name and "[origin " not in one.name
    ]


def _evaluation(facts: Facts) -> list[_Row]:
    base = {one.name: one for one in facts.measurements or () if one.model == "base"}
    return [
        _Row(_measure(one), _shown(base[one.name]) if one.name in base else "", _shown(one), f"{one.n:,} {one.counted}")
        for one in _own(facts)
    ]


def _measure(one: Measurement) -> str:
    measure, _, scope = one.name.rstrip("]").partition("[")
    chance = "" if one.floor is None else f"; chance {_number(one, one.floor)}"
    return measure.replace("_", " ") + (f", {scope}" if scope else "") + chance


def _shown(one: Measurement) -> str:
    return _number(one, one.value) + ("" if one.interval is None else f" [{_ends(one)}]")


def _ends(one: Measurement) -> str:
    assert one.interval is not None
    return " to ".join(_number(one, end) for end in one.interval)


def _number(one: Measurement, value: float) -> str:
    return table.share(value) if one.unit == "share" else table.number(value)


def _promises(guarantee: Guarantee) -> Iterator[table.Promise]:
    """That to units, and that to whole sites if there is one as well."""
    for one in (guarantee, guarantee.get("clients")):
        if one is not None and one["epsilon"] is not None:
            told = table.promise(one)
            limits = [_LIMIT, *(limit for limit in told.limits if "this report" not in limit)]
            facts = [(label, one[key]) for label, key in _MECHANISM if one.get(key) is not None]  # type: ignore[literal-required]  # keys of the table below
            yield told._replace(facts=[*told.facts, *((label, _plain(value)) for label, value in facts)], limits=limits)


_MECHANISM: Final = (
    ("mechanism", "mechanism"),
    ("accountant", "accountant"),
    ("ε by the cross-check", "epsilon_rdp"),
    ("noise multiplier", "noise_multiplier"),
    ("sampling probability", "sampling_prob"),
    ("clip norm", "clip_norm"),
    ("steps", "steps"),
    ("units trained on", "units"),
    ("holds against", "against"),
)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return table.number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
