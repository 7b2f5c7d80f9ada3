"""report.json to one self-contained HTML page."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reticent.measurement import Measurement
from reticent.reports import annex, answers, federation, plots, synthetic, table, usefulness
from reticent.reports.report import Curve, Guarantee, Plots, Report, SyntheticText


class Figure(NamedTuple):
    """``svg`` is our own drawing of numbers and model names, escaped by the library that drew it.

    ``narrow``: two such figures stand side by side.
    """

    svg: Markup
    title: str
    caption: str
    narrow: bool = False


def render(report: Report) -> str:
    """The page: promise and verdicts first, then figures, then an annex with every number. No request leaves it.

    Args:
        report: the content of report.json. Every text in it is escaped.

    Returns:
        HTML, to be written as UTF-8. The same report gives the same bytes.
    """
    measurements = [Measurement.from_dict(values) for values in report["measurements"]]
    rounds = _rounds(report)
    examined = usefulness.exams(report)
    tested = answers.synthetic(report)
    return (
        environment()
        .get_template("report.html")
        .render(
            title=report["title"],
            created=report["created"],
            coordinated=bool(report.get("plots", {}).get("rounds")) and not report.get("data"),
            promised=report["guarantee"]["epsilon"] is not None,
            promise=table.promise(report["guarantee"]),
            subject="Private model" if table.subject(report) == "private" else "This model, not private",
            twin=table.subject(report) == "private" and any(line.twin for line in answers.verdicts(report)),
            answers=answers.answers(report) if measurements else [],
            summary=answers.summary(report) if measurements else [],
            explored=answers.explored(report),
            unanswered=answers.unanswered(report),
            redaction=table.redaction(report),
            figures=list(_figures(report)),
            exams=examined,
            exams_figure=_examined(examined),
            groups=usefulness.groups(report),
            subjects=usefulness.subjects(report),
            other_scorers=usefulness.other_scorers(report),
            conversations=usefulness.conversations(report.get("answers")),
            withheld=usefulness.withheld(report.get("answers")),
            synthetic=synthetic.page(report),
            synthetic_figures=list(_synthetic(report.get("plots", {}).get("synthetic", {}))),
            synthetic_lines=tested,
            synthetic_control=any(line.twin for line in tested),
            protected=federation.protected(report["guarantee"], shown=bool(rounds)),
            mechanisms=_mechanisms(report["guarantee"]),
            every_site=federation.every_site(report["guarantee"]),
            rounds=rounds,
            checks=annex.checks(report),
            threats=annex.threats(report),
            registered=annex.registered(report),
            not_run=annex.not_run(report),
            facts=annex.facts(report),
            mapping=annex.MAPPING,
            measurements=[m for m in measurements if not annex.compatible(m.name)],
            compatibility=[m for m in measurements if annex.compatible(m.name)],
            model_names=table.MODELS,
            number=table.number,
            probability=table.probability,
            data=list(_flat(report.get("data", {}))),
            recipe=report.get("recipe", ""),
            provenance=list(_flat(report.get("provenance", {}))),
        )
    )


def environment() -> Environment:
    """The templates of the pages; every text that is put into one is escaped."""
    return Environment(
        loader=PackageLoader("reticent.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _examined(found: usefulness.Exams) -> Figure | None:
    exams = [exam for exam in found.exams if exam.points]
    if not exams:
        return None
    return Figure(
        Markup(plots.benchmarks(exams)),
        "Benchmarks",
        "The share of questions that each model answers correctly, with 95\u202f% intervals. Whoever knows nothing "
        "reaches the dashed line by guessing and the dotted one by always giving the most frequent answer.",
    )


def _synthetic(given: SyntheticText) -> Iterator[Figure]:
    """How like real text synthetic text is."""
    if any(given.get("lengths", {}).values()):
        yield Figure(
            Markup(plots.lengths(given["lengths"])),
            "Lengths",
            "How long real and synthetic texts are.",
            narrow=True,
        )
    if given.get("frontier"):
        yield Figure(
            Markup(plots.frontier(given["frontier"])),
            "Divergence curve",
            "MAUVE is the area below. In the far corner nothing tells the two apart.",
            narrow=True,
        )


def _mechanisms(guarantee: Guarantee) -> list[tuple[str, list[tuple[str, str]]]]:
    """What each promise was made with, by heading."""
    sites, clients = guarantee.get("sites"), guarantee.get("clients")
    told = [("Mechanism and accounting" + (" at the site that promises least" if sites else ""), guarantee)]
    if clients is not None:
        told.append(("Mechanism and accounting of the promise to whole sites", clients))
    apart = ("limits", "sites", "clients")
    return [
        (heading, list(_flat({k: v for k, v in one.items() if k not in apart and v is not None})))
        for heading, one in told
        if one["epsilon"] is not None
    ]


def _rounds(report: Report) -> list[tuple[str, federation.Table]]:
    """A table of the rounds of each model, by heading."""
    rounds = {model: lines for model, lines in report.get("plots", {}).get("rounds", {}).items() if lines}
    return [
        (f"Rounds: {label.lower()}", federation.rounds(rounds[key])) for key, label in table.model_names(list(rounds))
    ]


def _figures(report: Report) -> Iterator[Figure]:
    given = report.get("plots", {})
    loss = {model: points for model, points in given.get("loss", {}).items() if points}
    silos = given.get("silos")
    rounds = {model: lines for model, lines in given.get("rounds", {}).items() if lines}
    if silos and silos["silos"]:
        yield Figure(
            Markup(plots.silos(silos["silos"])),
            silos["title"],
            "Who holds what: units of privacy in each silo, by the origin of their records; on the right, units "
            "and the size of their text."
            + (
                f" The {len(silos['silos'])} silos stand in order of size; some are named."
                if len(silos["silos"]) > plots.MOST_NAMED
                else ""
            ),
        )
    yield from _leaks(given)
    if rounds:
        about = table.subject(report) if table.subject(report) in rounds else next(iter(rounds))
        yield Figure(
            Markup(plots.travelled(federation.sent(rounds[about]))),
            "What travelled" + (f": {table.MODELS.get(about, about).lower()}" if len(rounds) > 1 else ""),
            "Bytes that all sites sent and were sent in each round, counted as they went, and how many of the "
            f"sites that were asked have answered. {federation.travelled(rounds[about], given.get('bytes_full'))}"
            + (" A stroke marks another attempt at a round." if federation.repeats(rounds[about]) else ""),
        )
    if loss:
        yield Figure(
            Markup(plots.loss(loss)),
            "Training",
            "Loss on the training data by step. Where training was private, the dotted line is the part of the "
            "promise, ε, that had been spent by then.",
        )


def _leaks(given: Plots) -> Iterator[Figure]:
    """What the attacks found."""
    extraction = {model: rates for model, rates in given.get("extraction", {}).items() if rates}
    exposure = {model: bits for model, bits in given.get("exposure", {}).items() if bits["planted"] or bits["held_out"]}
    scores = {model: found for model, found in given.get("scores", {}).items() if found["planted"] or found["held_out"]}
    if extraction:
        yield Figure(
            Markup(plots.extraction(extraction)),
            "Planted secrets that come out",
            "The share of planted secrets whose identifier the model says within 100 attempts, by how often each "
            "stood in the training data, with 95\u202f% intervals. Held-out ones show what is guessed.",
        )
    if exposure:
        yield Figure(
            Markup(plots.exposure(exposure)),
            "Preference for planted secrets",
            "Each dot is one invented secret: filled if it was planted in the training data, open if it was held "
            "out. Bars are means. A model that never saw a secret puts 95 of 100 of them inside the shaded band. "
            "Each bit above chance halves the guesses that an attacker needs.",
        )
    for name, title, whom in (
        ("record_roc", "Telling who was in the training data", "Real records."),
        ("roc", "Telling planted records from held-out ones", "Invented records, planted by the toss of a coin."),
    ):
        curves: dict[str, Curve] = given.get(name, {})  # type: ignore[assignment]  # a key that is no literal
        if curves:
            yield Figure(
                Markup(plots.roc(curves, salt=name)),
                title,
                f"{whom} The attacker flags the highest scores. On the dashed line this is no better than "
                "guessing, and the band around it has 95 of 100 guessers; the further above it, the worse for "
                "privacy. The shaded parts at the edges hold less than one record to count.",
                narrow=True,
            )
    if scores:
        yield Figure(
            Markup(plots.histograms(scores)),
            "Scores of planted and held-out records",
            "How strongly each model seems to know each invented record. Where the two lie on top of each other, "
            "nobody can tell from this score which were trained on.",
        )
    ladder = given.get("epsilon", {})
    if any(value is not None for value in ladder.values()):
        yield Figure(
            Markup(plots.ladder(ladder)),
            "What is promised, and what a test can show",
            "A test proves that ε is at least so much, never that it is at most so much. What lies above the "
            "most that it can prove, no result could have shown; even an ideal attacker stays below the claim.",
        )
    if given.get("server"):
        yield Figure(
            Markup(plots.server(given["server"])),
            "What the coordinating server reads",
            "The share of the different tokens in one site's update that the server can name, by the number of "
            "tokens that went into it and by how it is sent. Passing this probe promises nothing.",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (name, text) lines."""
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} · ")
        elif isinstance(value, list):
            yield name, ", ".join(str(item) for item in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, table.number(value) if isinstance(value, float) else f"{value:,}"
        else:
            yield name, "–" if value is None else str(value)
