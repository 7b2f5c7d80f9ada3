"""What the model is good for: benchmarks, who loses most, and answers to public questions."""

import re
from collections.abc import Iterator, Sequence
from math import inf
from typing import Final, NamedTuple

from reticent.measurement import Measurement
from reticent.reports.federation import Table
from reticent.reports.report import Answered, Examination, Paired, Report
from reticent.reports.table import MODELS, examination, model_names, number, probability, share

_SCORERS: Final = {
    "options": "the likeliest option",
    "options-per-token": "the likeliest option, per token",
    "options-per-byte": "the likeliest option, per byte",
    "letter": "the likeliest letter",
    "generate": "what the model writes",
}
CLEAN: Final = "without contaminated"
"""In ``accuracy[NAME, without contaminated]``: on the questions that were not trained on."""

BY_FIRST_SCORER: Final = rf"accuracy\[((?!.*, (?:{'|'.join((*_SCORERS, CLEAN))})\]$).+)\]"
"""Names of measurements: the accuracy on one benchmark, by the scorer that counts."""

_BY_OTHER_SCORER: Final = re.compile(rf"accuracy\[(.+), ({'|'.join(_SCORERS)})\]")
_GROUP: Final = re.compile(r"perplexity\[(silo|origin) (.+)\]")
_COLUMNS: Final = (
    (f"accuracy[{{}}, {CLEAN}]", "Not trained on"),
    ("calibrated_accuracy[{}]", "Written, where readable"),
    ("macro_f1[{}]", "Macro F1"),
    ("unparsed[{}]", "Written, not readable"),
)


class Point(NamedTuple):
    """A share with the ends of its interval, to draw."""

    model: str
    value: float
    low: float
    high: float


class Scored(NamedTuple):
    """One line of the table of a benchmark; ``line``: what models are compared with."""

    who: str
    cells: list[str]
    line: bool = False


class Exam(NamedTuple):
    """One benchmark as it is shown. ``contaminated`` is a sentence, empty where no question was trained on."""

    title: str
    about: str
    contaminated: str
    rows: list[Scored]
    remarks: list[str]
    points: list[Point]
    chance: float | None
    majority: float | None


class Exams(NamedTuple):
    """All benchmarks under one head."""

    head: list[str]
    exams: list[Exam]


class Groups(NamedTuple):
    """Perplexity of each silo or origin, the one that loses most first."""

    title: str
    table: Table
    meaning: str


class Conversation(NamedTuple):
    """A question and what each model says, by label."""

    question: str
    answers: list[tuple[str, str]]


def contaminated(exam: Examination) -> str:
    """The mark of a benchmark whose questions were trained on; empty where none was."""
    found = exam.get("contaminated", 0)
    if not found:
        return ""
    stand = "stands" if found == 1 else "stand"
    return f"{found:,} of {exam['questions']:,} items {stand} in the training data; the score is not evidence."


def exams(report: Report) -> Exams:
    """A table for each benchmark, with what guessing and the most frequent answer reach."""
    found = _found(report)
    shown = report.get("plots", {}).get("benchmarks", [])
    there = {name for name, _ in found}
    columns = [(name, label) for name, label in _COLUMNS if any(name.format(one["name"]) in there for one in shown)]
    head = ["Model", "Accuracy", "95\u202f% interval", *(label for _, label in columns)]
    return Exams(head, [_exam(one, found, [name for name, _ in columns]) for one in shown])


def _exam(exam: Examination, found: dict[tuple[str, str], Measurement], columns: Sequence[str]) -> Exam:
    name = exam["name"]
    rows, points = [], []
    for model, label in _models(found, f"accuracy[{name}]"):
        ours = found[f"accuracy[{name}]", model]
        low, high = ours.interval or (ours.value, ours.value)
        points.append(Point(model, ours.value, low, high))
        others = [found.get((column.format(name), model)) for column in columns]
        rows.append(Scored(label, [share(ours.value), _interval(ours), *map(_value, others)]))
    lines = [("Most frequent answer", _majority(exam, found)), ("Guessing", exam.get("chance"))]
    rows += [
        Scored(label, [share(value), *[""] * (1 + len(columns))], line=True)
        for label, value in lines
        if value is not None
    ]
    return Exam(
        title=examination(name),
        about=_about(exam),
        contaminated=contaminated(exam),
        rows=rows,
        remarks=list(_remarks(exam)),
        points=points,
        chance=exam.get("chance"),
        majority=_majority(exam, found),
    )


def _majority(exam: Examination, found: dict[tuple[str, str], Measurement]) -> float | None:
    measured = found.get((f"majority[{exam['name']}]", "data"))
    return exam.get("majority") if measured is None else measured.value


def _about(exam: Examination) -> str:
    shots = exam["shots"]
    examples = "no solved examples" if not shots else f"{shots} solved example{'s' if shots > 1 else ''} before each"
    return f"{exam['questions']:,} questions, read by {_SCORERS.get(exam['scorer'], exam['scorer'])}, {examples}"


def _remarks(exam: Examination) -> Iterator[str]:
    if cut := exam.get("truncated", 0):
        yield (
            "1 question did not fit and lost its beginning."
            if cut == 1
            else f"{cut:,} questions did not fit and lost their beginning."
        )
    if twice := exam.get("duplicates", 0):
        yield f"{twice:,} duplicate{' was' if twice == 1 else 's were'} left out."
    for pair in exam.get("mcnemar", []):
        yield _compared(pair)


def _compared(pair: Paired) -> str:
    one, other = (MODELS.get(model, model).lower() for model in (pair["one"], pair["other"]))
    p = "" if pair["p_value"] is None else f", p {_p(pair['p_value'])} (McNemar)"
    return f"Only the {one} is right on {pair['only_one']:,}, only the {other} on {pair['only_other']:,}{p}."


def _p(value: float) -> str:
    told = probability(value)
    return told if told.startswith("<") else f"= {told}"


def other_scorers(report: Report) -> Table | None:
    """Accuracy read in other ways, beside the one that counts; None where there is no other."""
    found = _found(report)
    names = dict.fromkeys(name for name, _ in found if _BY_OTHER_SCORER.fullmatch(name))
    if not names:
        return None
    models = model_names(list(dict.fromkeys(model for name, model in found if name in names)))
    rows = []
    for name in names:
        match = _BY_OTHER_SCORER.fullmatch(name)
        assert match is not None
        cells = [found.get((name, model)) for model, _ in models]
        rows.append([examination(match[1]), _SCORERS[match[2]], *map(_with_interval, cells)])
    return Table(["Benchmark", "Read by", *(label for _, label in models)], rows)


def subjects(report: Report) -> Table | None:
    """Accuracy by subject of the questions; None where no benchmark has any."""
    own = [
        (exam["name"], subject, found)
        for exam in report.get("plots", {}).get("benchmarks", [])
        for subject, found in exam.get("subjects", {}).items()
    ]
    if not own:
        return None
    models = model_names(list(dict.fromkeys(model for *_, found in own for model in found["accuracy"])))
    rows = [
        [
            examination(name),
            subject.replace("_", " "),
            f"{found['questions']:,}",
            *(share(found["accuracy"][model]) if model in found["accuracy"] else "–" for model, _ in models),
        ]
        for name, subject, found in own
    ]
    return Table(["Benchmark", "Subject", "Questions", *(label for _, label in models)], rows)


def groups(report: Report) -> list[Groups]:
    """Perplexity by silo and by origin, with what protection takes from each."""
    found = _found(report)
    told = []
    for kind, title in (("silo", "Who loses most: silos"), ("origin", "Who loses most: origins of the records")):
        names = dict.fromkeys(
            match[2] for name, _ in found if (match := _GROUP.fullmatch(name)) is not None and match[1] == kind
        )
        if names:
            told.append(_grouped(kind, title, list(names), found))
    return told


def _grouped(kind: str, title: str, names: list[str], found: dict[tuple[str, str], Measurement]) -> Groups:
    models = model_names(
        list(dict.fromkeys(model for name, model in found if name in {f"perplexity[{kind} {one}]" for one in names}))
    )
    keys = [model for model, _ in models]
    about = keys[0]
    against = next((model for model in ("twin", "base") if model in keys and model != about), "")

    lost = {
        name: found[measure, about].value / found[measure, against].value - 1
        for name in names
        for measure in [f"perplexity[{kind} {name}]"]
        if {(measure, about), (measure, against)} <= found.keys()
    }
    order = sorted(names, key=lambda name: -lost.get(name, -inf))
    rows = [
        [
            name,
            *(_with_interval(found.get((f"perplexity[{kind} {name}]", model))) for model in keys),
            *([_change(lost.get(name))] if against else []),
            _value(found.get((f"bits_per_byte[{kind} {name}]", about))) or "–",
        ]
        for name in order
    ]
    head = [
        kind.capitalize(),
        *(f"{label}, perplexity" for _, label in models),
        *([f"Against the {MODELS[against].lower()}"] if against else []),
        f"{MODELS.get(about, about)}, bits per byte",
    ]
    worst = lost.get(order[0])
    meaning = "Perplexity on text that no model was trained on; lower is better."
    if worst is not None and against == "twin":
        meaning += (
            f" Protection costs {order[0]} most: {_change(worst)} against the non-private twin."
            if worst > 0
            else f" Protection costs none of them anything; the closest is {order[0]}: {_change(worst)}."
        )
    elif worst is not None:
        meaning += f" {order[0]} gains least from the training: {_change(worst)} against the base model."
    return Groups(title, Table(head, rows), meaning)


def _change(value: float | None) -> str:
    if value is None:
        return "–"
    sign = "+" if value > 0 else "\u2212" if value < 0 else ""
    return f"{sign}{abs(100 * value):.1f}\u202f%"


def conversations(answered: Answered | None) -> list[Conversation]:
    """Each question with its answers, in the order of the models."""
    if answered is None:
        return []
    models = model_names(list(answered["answers"]))[::-1]
    return [
        Conversation(question, [(label, answered["answers"][model][i]) for model, label in models])
        for i, question in enumerate(answered["questions"])
    ]


def withheld(answered: Answered | None) -> str:
    """Why answers of some models do not stand here, and where they are; empty where none is missing."""
    if answered is None or not answered["withheld"]:
        return ""
    names = " and ".join(f"the {MODELS.get(model, model).lower()}" for model in answered["withheld"])
    return (
        f"What {names} answered is withheld: nothing is promised for it, so that it may hold private text. It is in "
        "data/answers.json of the run; reticent show RUN shows it."
    )


def _found(report: Report) -> dict[tuple[str, str], Measurement]:
    """Measurements by name and model; of several, the first."""
    found: dict[tuple[str, str], Measurement] = {}
    for values in report["measurements"]:
        one = Measurement.from_dict(values)
        found.setdefault((one.name, one.model), one)
    return found


def _models(found: dict[tuple[str, str], Measurement], name: str) -> list[tuple[str, str]]:
    """Models that a measurement was taken on, the base model first."""
    return model_names([model for one, model in found if one == name])[::-1]


def _value(m: Measurement | None) -> str:
    if m is None:
        return ""
    return share(m.value) if m.unit == "share" else number(m.value)


def _interval(m: Measurement) -> str:
    show = share if m.unit == "share" else number
    return "" if m.interval is None else f"{show(m.interval[0])} to {show(m.interval[1])}"


def _with_interval(m: Measurement | None) -> str:
    if m is None:
        return "–"
    return _value(m) + (f" ({_interval(m)})" if m.interval else "")
