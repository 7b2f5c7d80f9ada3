"""Words and numbers of the report: what is promised, what was redacted, and how a number is written."""

from collections.abc import Sequence
from math import exp
from typing import NamedTuple

from reticent.reports.report import Guarantee, Report

SCRUBBER = "scrubber"  # the ``model`` of measurements of what scrubbing finds
MODELS = {"private": "Private model", "twin": "Non-private twin", "base": "Base model"}

_EXAMINATIONS = {
    "mmlu-medical": "MMLU (medical subjects)",
    "pubmedqa": "PubMedQA",
    "medmcqa": "MedMCQA",
    "medqa": "MedQA (five options)",
    "medqa4": "MedQA (four options)",
}


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


def probability(p: float) -> str:
    """A p-value."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


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


def examination(name: str) -> str:
    """A benchmark as the field calls it."""
    return _EXAMINATIONS.get(name, name)


def noun(unit: str) -> str:
    """A unit of privacy as a reader calls it."""
    return "site" if unit == "client" else unit


def promise(guarantee: Guarantee) -> Promise:
    """Say what (epsilon, delta) means to a person in the data.

    The attacker's limits follow from the definition of differential privacy: with even odds beforehand no test is right
    more often than (e^eps + delta) / (1 + e^eps) (Kairouz, Oh and Viswanath, arXiv:1311.0776), and at a false-positive
    rate a the true-positive rate is at most min(e^eps a + delta, 1 - e^-eps (1 - delta - a)).
    """
    limits = list(guarantee.get("limits", []))
    epsilon, delta, unit = guarantee["epsilon"], guarantee.get("delta") or 0.0, noun(guarantee.get("unit", "unit"))
    if broken := guarantee.get("broken"):
        meaning = [
            "The training kept a ledger, but it does not do what the ledger counts on: check "
            f"{', '.join(broken)} failed. Nothing is promised, whatever the measurements below found."
        ]
        return Promise("No guarantee", [], meaning, limits)
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


def redaction(report: Report) -> list[str]:
    """What was replaced before training, in sentences; none where nothing was."""
    done = report.get("data", {}).get("scrub")
    if done is None:
        return []
    names = ", ".join(done["recognisers"])
    dropped = sum(done["dropped"].values())
    masks = ", ".join(f"{count:,} {kind}" for kind, count in done["masks"].items())
    return [
        f"{done['records']:,} records were read by {names}; {share(done['masked_share_of_words'])} of their words were "
        "replaced" + (f": {masks}." if masks else "."),
        f"{dropped:,} records could not be scrubbed and were dropped." if dropped else "No record had to be dropped.",
    ]


def model_names(models: Sequence[str]) -> list[tuple[str, str]]:
    """(key, label) of the known models first, in their order, then any others."""
    known = [model for model in MODELS if model in models]
    others = [model for model in models if model not in MODELS]
    return [(model, MODELS.get(model, model)) for model in known + others]
