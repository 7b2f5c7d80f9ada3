"""The page on synthetic text: what was made, what is promised for it, and how good and how private it is."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from reticent.measurement import Measurement
from reticent.reports import table
from reticent.reports.federation import Table
from reticent.reports.report import Guarantee, Report
from reticent.reports.table import number, share

_KEPT, _SAMPLED = "kept", "sampled"
_REASONS: Final = {
    "unfinished": "did not end in time",
    "too short": "too short",
    "repetitive": "repeat themselves",
    "equal": "equal to another one",
    "near copies": "nearly equal to another one",
}
_USEFUL: Final = (
    ("next_token_accuracy", "A small model guesses the next word of held-out text"),
    ("task_accuracy", "A classifier answers or labels held-out records"),
)
_LIKE: Final = (
    ("mauve", "In meaning: MAUVE, 1 where nothing tells them apart", "higher"),
    ("ngram_distance", "In words: divergence of word pairs, bits", "lower"),
    ("length_distance", "In length: largest gap of the distributions", "lower"),
)


class Synthetic(NamedTuple):
    """The page. Tables are None where nothing of them was measured."""

    made: list[str]
    funnel: list[tuple[str, int]]
    labels: list[tuple[str, int]]
    promised: bool
    promise: list[str]
    useful: Table | None
    like: Table | None
    variety: str
    overlap: Table | None
    overlap_note: str
    samples: list[str]
    unanswered: list[str]


def page(report: Report) -> Synthetic | None:
    """None where no synthetic text was made."""
    drawn = report.get("plots", {}).get("synthetic")
    found = {(m["name"], m["model"]): Measurement.from_dict(m) for m in reversed(report["measurements"])}
    if drawn is None:
        return None
    funnel = drawn.get("funnel", {})
    promised = report["guarantee"]["epsilon"] is not None
    overlap = _overlap(found)
    return Synthetic(
        made=list(_made(funnel)),
        funnel=[(_REASONS.get(name, name), count) for name, count in funnel.items() if name not in (_SAMPLED, _KEPT)],
        labels=list(drawn.get("labels", {}).items()),
        promised=promised,
        promise=list(_promise(report["guarantee"])),
        useful=_useful(found),
        like=_like(found),
        variety=_variety(found),
        overlap=overlap,
        overlap_note=_OVERLAP if overlap else "",
        samples=drawn.get("samples", []) if promised else [],
        unanswered=[f"{one['question'].replace('_', ' ')}: {one['why']}" for one in drawn.get("unanswered", [])],
    )


def _made(funnel: Mapping[str, int]) -> Iterator[str]:
    if _SAMPLED in funnel and _KEPT in funnel:
        yield (
            f"The private model wrote {funnel[_SAMPLED]:,} texts; {funnel[_KEPT]:,} were kept. What was left out was "
            "chosen by looking at the written texts alone, never at the private ones."
        )


def _promise(guarantee: Guarantee) -> Iterator[str]:
    if guarantee["epsilon"] is None:
        yield "Nothing is promised for the model that wrote this text, so nothing is for the text. Do not give it away."
        return
    yield (
        f"The promise of the model, {table.promise(guarantee).headline}, is that of the text, all of it together and "
        "however much: it is computed from the private model and public prompts alone, and what is computed from a "
        "private model is as private (post-processing)."
    )
    yield (
        "What the promise does not cover for the model, it does not cover here either. The measurements on this page "
        "looked at private text: they are for the holder of the data, and are not part of what is given away."
    )


def _useful(found: Mapping[tuple[str, str], Measurement]) -> Table | None:
    rows = []
    for name, label in _USEFUL:
        ours, real = (found.get((name, model)) for model in ("synthetic", "real"))
        if ours is not None:
            floor = "–" if ours.floor is None else share(ours.floor)
            reached = found.get((f"{name}_reached", "synthetic"))
            rows.append(
                [label, _told(ours), _told(real), floor, _reached(ours, real) if reached is None else _told(reached)]
            )
    head = ["Right, after learning from", "Synthetic text", "As much real text", "Always the commonest", "Reached"]
    return Table(head, rows) if rows else None


def _reached(ours: Measurement, real: Measurement | None) -> str:
    return "–" if real is None or real.value <= 0 else share(ours.value / real.value)


def _like(found: Mapping[tuple[str, str], Measurement]) -> Table | None:
    rows = []
    for name, label, better in _LIKE:
        ours = found.get((name, "synthetic"))
        if ours is not None:
            ends = "" if ours.interval is None else f" ({ours.interval[0]:.2f} to {ours.interval[1]:.2f})"
            control = "–" if ours.control is None else f"{ours.control:.2f}"
            rows.append([label, f"{ours.value:.2f}{ends}", control, better])
    return Table(["Against held-out text", "Synthetic text", "Training text", "Better"], rows) if rows else None


def _variety(found: Mapping[tuple[str, str], Measurement]) -> str:
    ours = found.get(("distinct_share", "synthetic"))
    return "" if ours is None else f"{share(ours.value)} of its word pairs stand there for the first time."


_OVERLAP: Final = (
    "Held-out text was never trained on: what it shares with the training text is common phrases and templates. "
    "Verbatim overlap finds copies; its absence promises nothing."
)


def _overlap(found: Mapping[tuple[str, str], Measurement]) -> Table | None:
    rows = []
    for name, label in (
        ("overlap_verbatim", "Texts with 13 words in a row that stand in the training text"),
        ("longest_overlap", "Longest run of tokens that stands in the training text"),
    ):
        ours = found.get((name, "synthetic"))
        if ours is not None:
            rows.append([label, _told(ours), "–" if ours.control is None else _show(ours, ours.control)])
    return Table(["Overlap", "Synthetic", "Held-out text"], rows) if rows else None


def _told(m: Measurement | None) -> str:
    if m is None:
        return "–"
    if m.interval is None:
        return _show(m, m.value)
    return f"{_show(m, m.value)} ({_show(m, m.interval[0])} to {_show(m, m.interval[1])})"


def _show(m: Measurement, value: float) -> str:
    return share(value) if m.unit == "share" else number(value)
