"""Models of several runs side by side, as one self-contained HTML page."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from markupsafe import Markup
from typing_extensions import TypedDict

from reticent.reports import plots
from reticent.reports.annex import compatible
from reticent.reports.answers import label
from reticent.reports.federation import Table
from reticent.reports.render import Figure, environment
from reticent.reports.table import examination, number, probability, share
from reticent.reports.usefulness import BY_FIRST_SCORER, Conversation


class Column(TypedDict):
    """One model. ``model``: base, twin or private; ``what``: as "federated, 3 sites, private, epsilon 8".

    ``open``: what it writes may leave the run's data folder, because it was not trained on the data or keeps a promise.
    """

    run: str
    model: str
    what: str
    open: bool
    facts: dict[str, Any]


class Cell(TypedDict):
    """One number. ``other``: what it rests on that most cells of its row do not ("other records", ...); "": nothing."""

    value: float
    interval: list[float] | None
    n: int
    floor: float | None
    control: float | None
    p_value: float | None
    method: str
    other: str


class Row(TypedDict):
    """One measure, with a cell for each column; None where it was not taken."""

    measure: str
    unit: str
    counted: str
    cells: list[Cell | None]


class Asked(TypedDict):
    """A public question, with an answer for each column; None where it is withheld or was not asked."""

    question: str
    answers: list[str | None]


class Paired(TypedDict):
    """Two columns (``one`` and ``other``, by number) on the ``items`` of a benchmark that both answered.

    ``only_one`` and ``only_other``: items that only this one got right; ``p_value``: McNemar's, exact.
    """

    benchmark: str
    scorer: str
    one: int
    other: int
    items: int
    only_one: int
    only_other: int
    p_value: float


class Comparison(TypedDict):
    """Models side by side, as plain values."""

    columns: list[Column]
    rows: list[Row]
    answers: list[Asked]
    paired: list[Paired]


class _Value(NamedTuple):
    text: str
    interval: str = ""
    other: str = ""


class _Shown(NamedTuple):
    label: str
    basis: str
    cells: list[_Value]


_LABELS: Final = {
    "epsilon": "Promise: ε, lower is better",
    "bits_per_byte": "Prediction of new text: bits per byte, lower is better",
    "perplexity": "Prediction of new text: perplexity, lower is better",
    "accuracy": "Questions of the data answered correctly",
    "exposure_bits": "Preference for planted secrets: bits, lower is better",
    "membership_auc": "Planted records told apart (0.5 guessing, 1 always)",
    "epsilon_lower_bound": "Loss of privacy that the audit proves: ε, lower is better",
}
"""What the first table has, and accuracy in benchmarks; the rest stands behind it."""


def render(comparison: Comparison) -> str:
    """The page: a table with a column for each model, bars of accuracies, answers side by side. No request leaves it.

    Answers of models that promise nothing are left out, whatever is given, and so are scores of other studies, which
    mislead.

    Args:
        comparison: every text in it is escaped.

    Returns:
        HTML, to be written as UTF-8. The same comparison gives the same bytes.

    Raises:
        ValueError: a row or a question has not one entry for each column.
    """
    columns, asked = comparison["columns"], comparison["answers"]
    rows = [row for row in comparison["rows"] if not compatible(row["measure"])]
    for what, count in [(row["measure"], len(row["cells"])) for row in rows] + [
        (f"question {i}", len(one["answers"])) for i, one in enumerate(asked, start=1)
    ]:
        if count != len(columns):
            raise ValueError(f"{what} has {count} entries for {len(columns)} columns")
    first = [row for row in rows if row["measure"] in _LABELS or _benchmark(row["measure"])]
    return (
        environment()
        .get_template("comparison.html")
        .render(
            title=_joined(list(dict.fromkeys(column["run"] for column in columns))),
            heads=[(column["what"], column["run"]) for column in columns],
            rows=[_shown(row) for row in first],
            others=[_shown(row) for row in rows if row not in first],
            figure=_figure(columns, rows),
            paired=_paired(comparison["paired"], columns),
            conversations=[_conversation(one, columns) for one in asked],
            withheld=[_told(column, columns) for column in columns if not column["open"]],
            facts=_facts(columns),
        )
    )


def _benchmark(measure: str) -> str:
    """The name of the benchmark that this is the accuracy on."""
    match = re.fullmatch(BY_FIRST_SCORER, measure)
    return "" if match is None else examination(match[1])


def _told(column: Column, columns: Sequence[Column]) -> str:
    """What a model is called; with its run where others are called the same."""
    alone = sum(other["what"] == column["what"] for other in columns) == 1
    return column["what"] if alone else f"{column['what']} ({column['run']})"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _facts(columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """What is known of each model's training: (name, a text for each column)."""
    names = dict.fromkeys(name for column in columns for name in column["facts"])
    return [(name.replace("_", " "), [_plain(column["facts"].get(name)) for column in columns]) for name in names]


def _plain(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _shown(row: Row) -> _Shown:
    counts = {cell["n"] for cell in row["cells"] if cell is not None}
    basis = f"{counts.pop():,} {row['counted']}" if len(counts) == 1 and 0 not in counts else row["counted"]
    return _Shown(_label(row["measure"]), basis, [_value(cell, row["unit"]) for cell in row["cells"]])


def _label(measure: str) -> str:
    exam = _benchmark(measure)
    return f"{exam}, answered correctly" if exam else _LABELS.get(measure) or label(measure)


def _value(cell: Cell | None, unit: str) -> _Value:
    if cell is None:
        return _Value("")
    show = share if unit == "share" else number
    ends = cell["interval"]
    return _Value(show(cell["value"]), "" if ends is None else f"{show(ends[0])} to {show(ends[1])}", _mark(cell))


def _mark(cell: Cell) -> str:
    """Why a number is not to be compared; the method of a score says how many of its items were trained on."""
    trained = re.search(r"([\d,]+ of [\d,]+) items stand in the training data", cell["method"])
    return ", ".join(filter(None, [cell["other"], f"contaminated: {trained[1]} items" if trained else ""]))


def _paired(pairs: Sequence[Paired], columns: Sequence[Column]) -> Table | None:
    """McNemar's tests, a line for each two models."""
    if not pairs:
        return None
    rows = [
        [
            examination(pair["benchmark"]),
            _told(columns[pair["one"]], columns),
            _told(columns[pair["other"]], columns),
            f"{pair['items']:,}",
            f"{pair['only_one']:,}",
            f"{pair['only_other']:,}",
            probability(pair["p_value"]),
        ]
        for pair in sorted(pairs, key=lambda pair: pair["benchmark"])
    ]
    return Table(["Benchmark", "One", "Other", "Questions", "Only one right", "Only other right", "p"], rows)


def _figure(columns: Sequence[Column], rows: Sequence[Row]) -> Figure | None:
    panels = []
    guessing = []
    for row in rows:
        if row["measure"] == "accuracy" or _benchmark(row["measure"]):
            bars = list(_bars(columns, row))
            if bars:
                panels.append((_label(row["measure"]), bars))
                floors = [cell["floor"] for cell in row["cells"] if cell is not None]
                guessing.append(next((floor for floor in floors if floor is not None), None))
    if not panels:
        return None
    return Figure(
        Markup(plots.accuracies(panels, guessing=guessing)),
        "Accuracy",
        "The share of questions answered correctly, with 95\u202f% intervals. Hatched: trained without a promise. "
        "Where intervals overlap, the difference may be chance.",
    )


def _bars(columns: Sequence[Column], row: Row) -> Iterator[plots.Bar]:
    for column, cell in zip(columns, row["cells"], strict=True):
        if cell is not None:
            low, high = cell["interval"] or (None, None)
            private = None if column["model"] == "base" else column["open"]
            yield plots.Bar(_told(column, columns), private, cell["value"], low, high)


def _conversation(asked: Asked, columns: Sequence[Column]) -> Conversation:
    answers = [
        (_told(column, columns), text)
        for column, text in zip(columns, asked["answers"], strict=True)
        if text is not None and column["open"]
    ]
    return Conversation(asked["question"], answers)
