"""What stands behind page 1: who attacks with what, what was fixed before training, and which duties it serves."""

from typing import Final, NamedTuple

from reticent.reports.federation import Table
from reticent.reports.report import Report
from reticent.reports.table import number

_THREATS: Final = (
    ("synthetic", "Has the synthetic text, and not the model", ("synthetic_",), "its page"),
    (
        "text",
        "Sees answers only, as through a chat or an interface",
        ("identifiers_recited", "records_recited", "pii_extraction"),
        "1, 3",
    ),
    (
        "probabilities",
        "Also sees how likely each word is to the model",
        ("exposure_bits", "membership_", "record_membership_", "identifier_filled_in", "epsilon_lower_bound"),
        "1, 2, 3, 4",
    ),
    ("weights", "Has the model itself", ("new-token", "gradient"), "1, 2, 3, 4"),
    ("server", "Coordinates the training, follows the rules and looks at what arrives", ("tokens_seen",), "6"),
)

MAPPING: Final = Table(
    ["What is asked", "Where it stands here"],
    [
        [
            "EDPB Opinion 28/2024: is it unlikely enough that personal data are extracted from the model directly, by "
            "chance included?",
            "Questions 1 and 3",
        ],
        ["EDPB Opinion 28/2024: and that they are obtained by asking the model?", "Questions 1, 2 and 3"],
        [
            "EDPB Opinion 28/2024: by all means that anybody is reasonably likely to use?",
            "Who attacks with what, and the attacks that were not run",
        ],
        [
            "GDPR Art. 35(7)(a) and (b): what is processed, what for, and is it necessary and in proportion?",
            "Data and recipe in this annex; question 7 for what protection costs. The purpose is yours to state.",
        ],
        ["GDPR Art. 35(7)(c): the risks to the people concerned", "Questions 1, 2, 3 and 6, with their worst cases"],
        [
            "GDPR Art. 35(7)(d): the measures against them, and the proof that they work",
            "What page 1 promises, and questions 4 and 5",
        ],
    ],
)
"""Duties of a controller; in our own words, and no legal advice."""


def compatible(name: str) -> bool:
    """Whether a measurement repeats the score of another study, only to compare with that study."""
    return name.startswith(("seed_", "compat_"))


def threats(report: Report) -> Table:
    """Kinds of attackers, and whether anything was measured for each."""
    names = [m["name"] + " " + m.get("method", "") for m in report["measurements"]]
    made = "synthetic" in report.get("plots", {})
    told = report.get("audit", {}).get("threats", {})
    rows = []
    for key, who, marks, questions in _THREATS:
        if key == "synthetic" and not made:
            continue
        measured = any(mark in name for name in names for mark in marks if _of(name, key))
        rows.append([who, questions, told.get(key, "yes" if measured else "no")])
    return Table(["Attacker", "Questions", "Measured here"], rows)


def _of(name: str, attacker: str) -> bool:
    """What is measured on the synthetic text says nothing on the model itself."""
    return name.startswith("synthetic_") == (attacker == "synthetic")


class Registered(NamedTuple):
    """What was fixed before training, in sentences; ``changed``: settings that were not."""

    sentences: list[str]
    changed: list[str]


def registered(report: Report) -> Registered | None:
    """None where nothing is known of it."""
    audit = report.get("audit", {})
    if "pre_registered" not in audit:
        return None
    sentences = [
        "The settings of the audit were fixed before training and not changed since."
        if audit["pre_registered"]
        else "Settings of the audit were changed after training. What was chosen after a look at results proves less."
    ]
    if audit.get("primary"):
        sentences.append(f"The verdict on membership rests on one attack, chosen before: {audit['primary']}.")
    if audit.get("family"):
        sentences.append(f"Tests that are corrected for their number: {audit['family'].rstrip('.')}.")
    return Registered(sentences, list(audit.get("changed", [])))


def not_run(report: Report) -> list[tuple[str, str]]:
    """Attacks that were left out, each with the reason."""
    return [(one["attack"], one["why"]) for one in report.get("audit", {}).get("not_run", [])]


def facts(report: Report) -> list[tuple[str, str]]:
    """Attacks, numbers of units, seeds and digests."""
    audit = report.get("audit", {})
    lines = [("attacks that were run", ", ".join(audit["attacks"]))] if audit.get("attacks") else []
    lines += [(f"units: {name.replace('_', ' ')}", f"{count:,}") for name, count in audit.get("units", {}).items()]
    if audit.get("seeds"):
        lines.append(("seeds", ", ".join(f"{name}: {seed}" for name, seed in audit["seeds"].items())))
    if "recipe_digest" in audit:
        lines.append(("digest of the recipe", audit["recipe_digest"]))
    if "commitment" in audit:
        lines.append(("commitment to the canaries, made before training", audit["commitment"]))
    lines += [(f"digest of {name.replace('_', ' ')}", digest) for name, digest in audit.get("digests", {}).items()]
    return lines


def checks(report: Report) -> Table | None:
    """Every check of the training code; None where none was made."""
    made = report.get("plots", {}).get("checks", [])
    if not made:
        return None
    return Table(
        ["Check", "Result", "Measured", "Bound", "Detail"],
        [
            [
                one["name"],
                "passed" if one["passed"] else "FAILED",
                _told(one["measured"]),
                _told(one["bound"]),
                one.get("detail", "") or "–",
            ]
            for one in made
        ],
    )


def _told(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else number(value)
