"""The words of page 1: what is promised, what was measured, and the verdict on each question.

A verdict is one of: "leak demonstrated"; "no leak found by a test able to find leaks of size X"; "test inconclusive"
with the reason. None says "safe": a test shows what it can find, not what there is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal, NamedTuple

from reticent.measurement import Measurement
from reticent.reports.report import Guarantee, Report

# The share of a 95 % interval's half width at which a leak is found in 90 of 100 repeats: (1.960 + 1.282) / 1.960.
_POWER_90 = 1.654

SCRUBBER = "scrubber"  # the ``model`` of measurements of what scrubbing finds
MODELS = {"private": "Private model", "twin": "Non-private twin", "base": "Base model"}


class Promise(NamedTuple):
    """The guarantee in plain words. ``facts`` are (name, value) for a short list; empty where nothing is promised."""

    headline: str
    facts: list[tuple[str, str]]
    meaning: list[str]
    limits: list[str]


class _Scope(NamedTuple):
    """Whom a promise is about, in parts of sentences."""

    whom: str
    meaning: str
    changed: str
    attackers: str


class Verdict(NamedTuple):
    """``kind`` chooses the colour, ``text`` says it."""

    kind: Literal["leak", "none", "inconclusive"]
    text: str


class Row(NamedTuple):
    """One line of page 1. ``verdict`` is None on usefulness, where ``note`` compares with the twin."""

    question: str
    measured: str
    basis: str
    worst: str
    base: str
    twin: str
    verdict: Verdict | None
    note: str


class Masked(NamedTuple):
    """How many of ``planted`` invented identifiers of a kind were masked; ``worst``: the low end of the interval."""

    kind: str
    share: str
    worst: str
    planted: int


class Redaction(NamedTuple):
    """What scrubbing did, in sentences, and what it finds."""

    facts: list[str]
    rows: list[Masked]


@dataclass(frozen=True)
class _Question:
    """``name`` is a pattern for `Measurement.name`; its group, if any, fills ``{}`` in ``text``.

    Where several names match, page 1 has ``prefer``, or else the first.
    """

    name: str
    text: str
    show: Callable[[float], str]
    better: Literal["low", "high"] = "low"
    leak: bool = True
    prefer: str = ""


def share(value: float) -> str:
    """A share in percent; close to 0 or 1 it keeps the digits that matter and never rounds to either."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return "under 0.01\u202f%"
    if 99.99 < percent < 100:
        return "over 99.99\u202f%"
    digits = 2 if 99.9 < percent < 100 or 0 < percent < 0.1 else 1
    return f"{percent:.{digits}f}\u202f%"


def number(value: float) -> str:
    """Three significant digits at least, no exponent for everyday sizes."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def one_in(probability: float) -> str:
    """0.00001 as "1 in 100,000"."""
    return f"1 in {1 / probability:,.0f}"


def small(probability: float) -> str:
    """0.00001 as "1e-5"."""
    return f"{probability:.3g}".replace("e-0", "e-")


def size(count: float) -> str:
    """Bytes with three digits and a decimal unit."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    return f"{count:.3g}\u202f{unit}"


def noun(unit: str) -> str:
    """A unit of privacy as a reader calls it."""
    return "site" if unit == "client" else unit


def _bits(value: float) -> str:
    return f"{value:.1f} bits"


def _area(value: float) -> str:
    return f"{value:.2f}"


def _epsilon(value: float) -> str:
    return f"ε ≥ {value:.2f}" if value > 0 else "none"


_QUESTIONS = (
    _Question("secrets_ranked_first", "Can a planted secret be filled in at the first guess?", share),
    _Question("exposure_bits", "Does the model prefer the secrets it was trained on to others just like them?", _bits),
    _Question(
        r"membership_tpr_at_(.+)pct",
        "Allowed {}\u202f% false alarms, how many of those in the training data can someone point out?",
        share,
        prefer="membership_tpr_at_1pct",
    ),
    _Question("membership_auc", "How well can training data be told from other data? (0.5 guessing, 1 always)", _area),
    _Question("epsilon_lower_bound", "How much loss of privacy does the audit prove? (ε; it may be more)", _epsilon),
    _Question("accuracy", "How many questions does the model answer correctly?", share, better="high", leak=False),
    _Question("perplexity", "How well does it predict new text? (perplexity, lower is better)", number, leak=False),
)


def promise(guarantee: Guarantee) -> Promise:
    """Say what (epsilon, delta) means to a person in the data.

    The attacker's limits follow from the definition of differential privacy: with even odds beforehand no test is right
    more often than (e^eps + delta) / (1 + e^eps) (Kairouz, Oh and Viswanath, arXiv:1311.0776), and at a false-positive
    rate a the true-positive rate is at most min(e^eps a + delta, 1 - e^-eps (1 - delta - a)).
    """
    limits = list(guarantee.get("limits", []))
    epsilon, delta, unit = guarantee["epsilon"], guarantee.get("delta") or 0.0, noun(guarantee.get("unit", "unit"))
    if epsilon is None:
        meaning = [
            "This model was trained without differential privacy. Nothing limits what it may reveal about a person in "
            "its training data. The measurements below show what some attacks found; another may find more."
        ]
        return Promise("No guarantee", [], meaning, limits)
    factor = exp(min(epsilon, 700.0))  # near the largest float; the sentences are the same beyond
    sure = (factor + delta) / (1 + factor)
    flagged = min(factor * 0.01 + delta, 1 - (1 - delta - 0.01) / factor)
    slip = f", except for a slip of probability {one_in(delta)}" if delta else ""
    scope = _scope(guarantee, unit)
    meaning = [
        f"{scope.meaning} Had any one {unit} been {scope.changed}, every possible outcome of the training would have "
        f"been at most {number(factor)} times more or less likely{slip}. {scope.attackers}",
        f"An attacker who starts at even odds on whether one {unit} took part ends up right in at most {share(sure)} "
        f"of cases. Allowed 1 false alarm in 100, they flag at most {share(flagged)} of those who did.",
    ]
    if flagged >= 0.5:
        meaning.append("These limits are wide: the promise alone rules out little. Read it with the measurements.")
    facts = [
        ("ε (epsilon)", number(epsilon)),
        ("δ (delta)", small(delta)),
        ("protects", f"each {scope.whom}"),
    ]
    relation = guarantee.get("relation", "")
    if relation:
        facts.append(("neighbours", relation.replace("-", " ")))
    return Promise(f"ε = {number(epsilon)} per {scope.whom}", facts, meaning, limits)


def _scope(guarantee: Guarantee, unit: str) -> _Scope:
    if guarantee.get("unit") == "client":
        return _Scope(
            "whole site",
            "One site is one institution with all of its data.",
            "added or removed",
            f"This holds against {guarantee.get('against') or 'the other sites and whoever has the model'}.",
        )
    one = {
        "owner": "One owner is one person (a patient, an author) with all of their records{}.",
        "record": "One record is one text. A person with several is covered for each alone, not for all together.",
    }.get(unit, f"The unit is one {unit}.")
    if not guarantee.get("sites"):
        return _Scope(unit, one.format(""), "added or removed", "This holds for every attacker.")
    return _Scope(
        f"{unit} at any one site",
        one.format(" at one site"),
        "added to one site or removed from it",
        "This holds for every attacker outside that site, the coordinator and the other sites included.",
    )


def subject(report: Report) -> str:
    """The model the report is about: "private" where it was measured, else "twin"."""
    return "private" if any(m["model"] == "private" for m in report["measurements"]) else "twin"


def verdicts(report: Report) -> list[Row]:
    """One row per question that the measurements answer, leaks first."""
    measurements = [Measurement.from_dict(values) for values in report["measurements"]]
    about = subject(report)
    rows = []
    for question in _QUESTIONS:
        names = [m.name for m in measurements if m.model == about and re.fullmatch(question.name, m.name)]
        if not names:
            continue
        name = question.prefer if question.prefer in names else names[0]
        first: dict[str, Measurement] = {}
        for m in measurements:
            if m.name == name:
                first.setdefault(m.model, m)
        twin = first.get("twin") if about != "twin" else None
        rows.append(_row(question, first[about], first.get("base"), twin, report["guarantee"]))
    return rows


def redaction(report: Report) -> Redaction | None:
    """What was replaced before training, and how much of it is found; None where nothing was."""
    done = report.get("data", {}).get("scrub")
    if done is None:
        return None
    names = ", ".join(done["recognisers"])
    dropped = sum(done["dropped"].values())
    masks = ", ".join(f"{count:,} {kind}" for kind, count in done["masks"].items())
    facts = [
        f"{done['records']:,} records were read by {names}; {share(done['masked_share_of_words'])} of their words were "
        "replaced" + (f": {masks}." if masks else "."),
        f"{dropped:,} records could not be scrubbed and were dropped." if dropped else "No record had to be dropped.",
    ]
    rows = [
        Masked(_planted(m.name), share(m.value), share(m.interval[0]) if m.interval else "", m.n)
        for m in map(Measurement.from_dict, report["measurements"])
        if m.model == SCRUBBER
    ]
    return Redaction(facts, rows)


def _planted(name: str) -> str:
    kind = name.removeprefix("planted_recall").strip("_").replace("_", " ")
    return kind or "all kinds"


def unanswered(report: Report) -> list[str]:
    """Questions of page 1 that no measurement answers."""
    names = [m["name"] for m in report["measurements"] if m["model"] == subject(report)]
    return [
        question.text.replace("{}", "1")
        for question in _QUESTIONS
        if not any(re.fullmatch(question.name, name) for name in names)
    ]


def _row(
    question: _Question, ours: Measurement, base: Measurement | None, twin: Measurement | None, guarantee: Guarantee
) -> Row:
    match = re.fullmatch(question.name, ours.name)
    assert match is not None
    note = ""
    verdict = None
    if ours.name == "epsilon_lower_bound":
        verdict, worst = _bound_verdict(ours, twin), _promised(guarantee)
        note = _bound_note(ours, guarantee)
    elif question.leak:
        verdict, worst = _leak_verdict(question, ours, base, twin), _end(question, ours)
    else:
        worst = _end(question, ours)
        if twin is not None:
            note = _cost(question, ours.value - twin.value)
    return Row(
        question=question.text.replace("{}", match.group(1) if match.groups() else ""),
        measured=question.show(ours.value),
        basis=f"{ours.n:,} {ours.counted}",
        worst=worst,
        base="" if base is None else question.show(base.value),
        twin="" if twin is None else question.show(twin.value),
        verdict=verdict,
        note=note,
    )


def _end(question: _Question, ours: Measurement) -> str:
    """The bad end of the interval."""
    if ours.interval is None:
        return ""
    return question.show(ours.interval[1 if question.better == "low" else 0])


def _reference(m: Measurement, base: Measurement | None) -> float:
    """What a model that never saw the data shows: chance, records never trained on, the base model; the highest."""
    known = [m.floor, m.control, None if base is None else base.value]
    return max((value for value in known if value is not None), default=0.0)


def _found(m: Measurement, base: Measurement | None) -> bool:
    significant = m.p_value is None or m.p_value <= 1 - m.level
    return m.interval is not None and m.interval[0] > _reference(m, base) and significant


def _leak_verdict(
    question: _Question, ours: Measurement, base: Measurement | None, twin: Measurement | None
) -> Verdict:
    if ours.interval is None:
        return _inconclusive("no interval")
    if _found(ours, base):
        return Verdict("leak", "leak demonstrated")
    if twin is None:
        return _inconclusive("no positive control")
    if not _found(twin, base):
        return _inconclusive("positive control failed")
    smallest = _reference(ours, base) + _POWER_90 * (ours.interval[1] - ours.interval[0]) / 2
    return _none(question.show(smallest if ours.ceiling is None else min(smallest, ours.ceiling)))


def _bound_verdict(ours: Measurement, twin: Measurement | None) -> Verdict:
    """A lower bound above 0 proves a leak. What the same test proved of the twin is a size it can find."""
    if ours.value > 0:
        return Verdict("leak", "leak demonstrated")
    if twin is None:
        return _inconclusive("no positive control")
    return _none(f"ε = {twin.value:.2f}") if twin.value > 0 else _inconclusive("positive control failed")


def _bound_note(ours: Measurement, guarantee: Guarantee) -> str:
    promised = guarantee["epsilon"]
    if promised is None:
        return ""
    if guarantee.get("unit") == "client":
        return "The promise is to whole sites. This test is not about them."
    if ours.value > promised:
        return f"This contradicts the promise of ε = {number(promised)}."
    if ours.ceiling is not None and ours.ceiling <= promised:
        return (
            f"It could prove at most ε = {ours.ceiling:.2f}, so it cannot test the promise of ε = {number(promised)}."
        )
    return f"The promise of ε = {number(promised)} is not contradicted."


def _promised(guarantee: Guarantee) -> str:
    epsilon = guarantee["epsilon"]
    if guarantee.get("unit") == "client":
        return "promised to whole sites only"
    return "no limit promised" if epsilon is None else f"ε = {number(epsilon)} (the promise)"


def _cost(question: _Question, difference: float) -> str:
    size = f"{100 * abs(difference):.1f} points" if question.show is share else number(abs(difference))
    if difference == 0:
        return "the same as the non-private twin"
    return f"{size} {'above' if difference > 0 else 'below'} the non-private twin"


def _none(size: str) -> Verdict:
    return Verdict("none", f"no leak found by a test able to find leaks of size {size}")


def _inconclusive(reason: str) -> Verdict:
    return Verdict("inconclusive", f"test inconclusive ({reason})")


def model_names(models: Sequence[str]) -> list[tuple[str, str]]:
    """(key, label) of the known models first, in their order, then any others."""
    known = [model for model in MODELS if model in models]
    others = [model for model in models if model not in MODELS]
    return [(model, MODELS.get(model, model)) for model in known + others]
