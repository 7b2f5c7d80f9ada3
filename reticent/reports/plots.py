"""Figures of the report as inline SVG: the same numbers always give the same bytes."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from io import StringIO
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from reticent.reports.federation import Sent
from reticent.reports.report import Curve, Exposures, Ladder, LossPoint, Rate, Scores, Seen, Silo
from reticent.reports.table import MODELS, model_names, number, one_in, share, size
from reticent.reports.usefulness import Exam

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLOURS = {"private": "#1d5b86", "twin": "#b5562b", "base": "#7d8590"}
# Told apart by the colour-blind, and neighbours also in grey: dark and light take turns.
_ORIGINS = ("#1d5b86", "#e69f00", "#3b1540", "#b5dcf5", "#2e8b63", "#f7ef9a", "#b5562b")
_OTHERS = "#c9ced6"
_DASHES = {"twin": (0, (5, 1.5)), "base": (0, (1, 1))}
_LINES = ("#b5562b", "#e69f00", "#1d5b86", "#3b1540", "#2e8b63", "#7d8590")  # settings of an update
_UP, _DOWN, _LOST = "#1d5b86", "#e69f00", "#e8a09a"
_INK, _FAINT, _SHADE = "#3c4450", "#c9ced6", "#eef0f3"
MOST_NAMED = 30  # silos; more are drawn without gaps, and about as many of them as fit are named
_BAND = "#e6e9ee"
_POINT: dict[bool | None, dict[str, Any]] = {  # by whether the model is private
    True: {"color": _COLOURS["private"], "marker": "o", "markersize": 6.5},
    False: {"color": _COLOURS["twin"], "marker": "D", "markersize": 5.5, "markerfacecolor": "white"},
    None: {"color": _COLOURS["base"], "marker": "s", "markersize": 5.5},
}
_MARKERS = {"private": "o", "twin": "D", "base": "s"}
_RUNGS = (  # of the ladder of epsilon, from the top
    ("claimed", "claimed, by the ledger"),
    ("detectable", "smallest that the test would notice"),
    ("ceiling", "most that the test can prove"),
    ("ideal", "what an ideal attacker would prove"),
    ("measured", "what this audit proves"),
)
_MOST_ROUNDS = 24  # drawn as bars and all numbered
_LONGEST_NAME = 28  # characters
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a model may be called anything
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def exposure(models: dict[str, Exposures]) -> str:
    """One dot per secret; the shaded band holds 95 of 100 secrets in a model that never saw them."""
    groups = [
        (key, f"{label}\n{kind}", values)
        for key, label in model_names(list(models))
        for kind, values in (("planted", models[key]["planted"]), ("held out", models[key]["held_out"]))
        if values
    ]
    top = max(max(values) for _, _, values in groups)

    def draw(axes: "Axes") -> None:
        axes.axhspan(0, np.log2(20), color=_SHADE, linewidth=0, zorder=0)
        for at, (key, label, values) in enumerate(groups):
            planted = label.endswith("planted")
            colour = _COLOURS.get(key, _INK)
            # Spread by rank within a cell of the golden ratio: even, and the same on every run.
            spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.5
            axes.scatter(
                at + spread,
                values,
                s=13,
                facecolors=colour if planted else "none",
                edgecolors=colour,
                linewidths=0.7,
                alpha=0.75,
            )
            axes.hlines(float(np.mean(values)), at - 0.34, at + 0.34, color=_INK, linewidth=1.4)
        axes.set(xlim=(-0.6, len(groups) - 0.4), ylim=(-0.2, max(top, 6) * 1.06), ylabel="exposure, bits")
        axes.set_xticks(range(len(groups)), [label for _, label, _ in groups])
        axes.tick_params(axis="x", length=0)
        ticks = range(0, int(max(top, 6)) + 1, 2)
        labels = ["always" if bits == 0 else one_in(2.0**-bits) for bits in ticks]
        _on_the_right(axes, ticks, labels).set_ylabel("chance if never trained on")

    return _svg(draw, salt="exposure", height=2.8)


def roc(models: dict[str, Curve], *, salt: str = "roc") -> str:
    """Share of members found against share of others accused, both logarithmic; grey where the data cannot resolve.

    The band holds 95 of 100 guessers at each share of others: a binomial number of the members. ``salt`` tells two such
    figures on one page apart.
    """
    from matplotlib.ticker import NullFormatter
    from scipy.stats import binom

    others = max(curve["others"] for curve in models.values())
    members = max(curve["members"] for curve in models.values())
    left, bottom = 0.5 / others, 0.5 / members
    guessed = np.geomspace(left, 1, 200)
    low, high = (np.maximum(binom.ppf(tail, members, guessed) / members, bottom) for tail in (0.025, 0.975))

    def draw(axes: "Axes") -> None:
        axes.axvspan(left, 1 / others, color=_SHADE, linewidth=0)
        axes.axhspan(bottom, 1 / members, color=_SHADE, linewidth=0)
        axes.fill_between(guessed, low, high, color=_FAINT, alpha=0.6, linewidth=0, label="95 of 100 guessers")
        axes.plot([left, 1], [left, 1], color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), label="guessing")
        for key, label in model_names(list(models)):
            fpr, tpr = np.maximum(models[key]["fpr"], left), np.maximum(models[key]["tpr"], bottom)
            (line,) = axes.step(fpr, tpr, where="post", color=_COLOURS.get(key, _INK), linewidth=1.6, label=label)
            line.set_linestyle(_DASHES.get(key, "-"))
        axes.set(xscale="log", yscale="log", xlim=(left, 1), ylim=(bottom, 1.08))
        axes.set(xlabel="others wrongly flagged (false alarms)", ylabel="members correctly flagged")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent)
            axis.set_minor_formatter(NullFormatter())
        axes.legend(loc="lower right")

    return _svg(draw, salt=salt, height=3.3, width=4.8)


def extraction(models: dict[str, list[Rate]]) -> str:
    """Share of secrets that come out by how often they were planted, with intervals; 0 copies: never trained on."""
    copies = sorted({rate["copies"] for rates in models.values() for rate in rates})
    drawn = model_names([model for model, rates in models.items() if rates])

    def draw(axes: "Axes") -> None:
        for place, (key, label) in enumerate(drawn):
            shift = 0.16 * (place - (len(drawn) - 1) / 2)
            rates = sorted(models[key], key=lambda rate: rate["copies"])
            at = [copies.index(rate["copies"]) + shift for rate in rates]
            colour = _COLOURS.get(key, _INK)
            axes.vlines(at, [r["low"] for r in rates], [r["high"] for r in rates], color=colour, linewidth=1.6)
            axes.plot(
                at,
                [rate["share"] for rate in rates],
                color=colour,
                marker=_MARKERS.get(key, "^"),
                markerfacecolor=colour if key == "private" else "white",
                markersize=5.5,
                linewidth=0.9,
                linestyle=(0, (1, 1.6)),
                label=label,
            )
        axes.set_xticks(range(len(copies)), ["held out" if one == 0 else f"{one:,}" for one in copies])
        axes.set(xlabel="copies in the training data", ylabel="secrets that come out", ylim=(-0.03, 1.03))
        axes.set_xlim(-0.5, len(copies) - 0.5)
        axes.yaxis.set_major_formatter(_percent)
        axes.legend(loc="upper left")

    return _svg(draw, salt="extraction", height=2.8, width=5.6)


def histograms(models: dict[str, Scores]) -> str:
    """How canaries score, planted ones filled and held-out ones outlined; a panel for each model."""
    drawn = [(key, label) for key, label in model_names(list(models)) if any(models[key].values())]

    def draw(panels: Any) -> None:
        for axes, (key, label) in zip(np.atleast_1d(panels), drawn, strict=True):
            planted, held_out = (np.asarray(models[key][kind], dtype=float) for kind in ("planted", "held_out"))
            planted, held_out = planted[np.isfinite(planted)], held_out[np.isfinite(held_out)]
            edges = np.histogram_bin_edges(np.concatenate([planted, held_out]), bins=24)
            colour = _COLOURS.get(key, _INK)
            axes.stairs(np.histogram(planted, edges)[0], edges, fill=True, color=colour, alpha=0.55, label="planted")
            axes.stairs(np.histogram(held_out, edges)[0], edges, color=_INK, linewidth=1.3, label="held out")
            axes.set_title(label, fontsize=9, color=_INK)
            axes.set_xlabel("score")
            axes.locator_params(axis="x", nbins=4)
            axes.locator_params(axis="y", nbins=5, integer=True)
            # Above the highest bar, so that it covers none.
            axes.set_ylim(0, 1.45 * max(axes.get_ylim()[1], 1))
            axes.legend(loc="upper right", handlelength=1.2)
        np.atleast_1d(panels)[0].set_ylabel("canaries")

    return _svg(draw, salt="histograms", height=2.3, ncols=len(drawn))


def ladder(values: Ladder) -> str:
    """Claimed, measured and what can be measured at all, on one scale of epsilon."""
    given = {key: value for key, value in values.items() if isinstance(value, int | float)}
    rungs = [(key, label, given[key]) for key, label in _RUNGS if key in given]

    def draw(axes: "Axes") -> None:
        for y, (key, _, value) in enumerate(rungs):
            own = key in ("claimed", "measured")
            colour = _COLOURS["private"] if own else _COLOURS["base"]
            axes.hlines(y, 0, value, color=colour, linewidth=2.2 if own else 1.2)
            axes.plot(value, y, color=colour, marker="o" if own else "|", markersize=6.5 if own else 9, clip_on=False)
        axes.set_yticks(range(len(rungs)), [label for _, label, _ in rungs])
        axes.set(ylim=(len(rungs) - 0.5, -0.6), xlim=(0, 1.05 * max([value for _, _, value in rungs] + [0.1])))
        axes.set_xlabel("ε")
        axes.tick_params(axis="y", length=0)
        _on_the_right(axes, range(len(rungs)), [f"{value:.2f}" for _, _, value in rungs])

    return _svg(draw, salt="ladder", height=0.75 + 0.27 * len(rungs), width=6.4)


def server(points: Sequence[Seen]) -> str:
    """Share of the tokens of one update that the server reads from it, by their number; a line for each setting."""
    from matplotlib.ticker import NullLocator

    settings = list(dict.fromkeys(point["setting"] for point in points))
    shapes = "oDs^vP"

    def draw(axes: "Axes") -> None:
        for place, setting in enumerate(settings):
            own = sorted((p["tokens"], p["recall"]) for p in points if p["setting"] == setting)
            axes.plot(
                [tokens for tokens, _ in own],
                [recall for _, recall in own],
                color=_LINES[place % len(_LINES)],
                marker=shapes[place % len(shapes)],
                markersize=5,
                linewidth=1.4,
                label=_short(setting),
                clip_on=False,
            )
        counts = sorted({point["tokens"] for point in points})
        axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel="tokens in the update", ylabel="tokens that the server reads")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(_percent)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="update sent", alignment="left")

    return _svg(draw, salt="server", height=2.5, width=6.4)


def loss(models: dict[str, list[LossPoint]]) -> str:
    """Training loss by step, and the epsilon spent by then on the right."""

    def draw(axes: "Axes") -> None:
        for key, label in model_names(list(models)):
            points = models[key]
            colour = _COLOURS.get(key, _INK)
            axes.plot(
                [p["step"] for p in points], [p["loss"] for p in points], color=colour, linewidth=1.5, label=label
            )
        axes.set(xlabel="step", ylabel="training loss, nats per token")
        spent = [(p["step"], p["epsilon"]) for p in models.get("private", []) if p["epsilon"] is not None]
        if spent:
            right = axes.twinx()
            right.plot(*zip(*spent, strict=True), color=_COLOURS["private"], linewidth=1.1, linestyle=(0, (1, 1.6)))
            right.set(ylabel="ε spent (dotted)", ylim=(0, 1.08 * max(epsilon for _, epsilon in spent)))
            right.spines["right"].set_visible(True)
        axes.legend(loc="upper right" if not spent else "center right")

    return _svg(draw, salt="loss", height=2.1)


def silos(held: dict[str, Silo]) -> str:
    """A bar per silo, stacked by origin: units, and in words also bytes. Many silos stand in order of size."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    many = len(held) > MOST_NAMED
    names = sorted(held, key=lambda name: -held[name]["units"]) if many else list(held)
    layers = _by_origin([held[name]["origins"] for name in names])
    rows = np.arange(len(names))
    named = rows[:: -(-len(names) // MOST_NAMED)]

    def draw(axes: "Axes") -> None:
        left = np.zeros(len(names))
        handles: list[Artist] = []
        for _, colour, units in layers:
            if many:  # one outline an origin: thousands of bars would make a heavy page
                edges = np.arange(len(names) + 1) - 0.5
                handles.append(
                    axes.stairs(left + units, edges, baseline=left, orientation="horizontal", fill=True, color=colour)
                )
            else:
                handles.append(axes.barh(rows, units, left=left, height=0.72, color=colour)[0])
            left += units
        axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, max(left.max(), 1) * 1.02), xlabel="units of privacy")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_yticks(named, [_short(names[i]) for i in named])
        axes.tick_params(axis="y", length=0)
        _on_the_right(axes, named, [f"{held[names[i]]['units']:,} · {size(held[names[i]]['bytes'])}" for i in named])
        labels = [label for label, _, _ in layers]
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=3, borderaxespad=0.2, handlelength=1.2)

    legend = 0.2 * -(-len(layers) // 3)
    return _svg(draw, salt="silos", height=0.7 + legend + 0.21 * min(len(names), MOST_NAMED))


def travelled(lines: Sequence[Sent]) -> str:
    """Bytes up and down in each round, and below how many of the sites asked have answered."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    at, edges = np.arange(len(lines)), np.arange(len(lines) + 1) - 0.5
    many = len(lines) > _MOST_ROUNDS
    up, down, asked, answered = np.array(
        [(line.up, line.down, line.asked, line.answered) for line in lines], dtype=float
    ).T
    left_out = asked - answered

    def draw(panels: Any) -> None:
        above, below = panels
        for shift, sent, colour, way in ((-0.19, down, _DOWN, "from"), (0.19, up, _UP, "to")):
            label = f"{way} the coordinator, {size(sent.sum())} in all"
            if many:
                above.stairs(sent, edges, baseline=None, color=colour, linewidth=1.3, label=label)
            else:
                above.bar(at + shift, sent, 0.36, color=colour, label=label)
        for bottom, sites, colour, label in (
            (0 * asked, answered, _UP, "answered"),
            (answered, left_out, _LOST, "left out"),
        ):
            if label == "answered" or sites.any():
                if many:
                    below.stairs(bottom + sites, edges, baseline=bottom, fill=True, color=colour, label=label)
                else:
                    below.bar(at, sites, 0.6, bottom=bottom, color=colour, label=label)
        for i in [] if many else np.flatnonzero(left_out):
            below.text(i, asked[i], f"−{left_out[i]:,.0f}", color=_INK, fontsize=8, ha="center", va="bottom")
        above.set(ylabel="bytes, all sites", ylim=(0, max(up.max(), down.max(), 1) * 1.08))
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        above.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
        above.tick_params(axis="x", length=0)
        below.set(ylabel="sites asked", ylim=(0, max(asked.max(), 1) * 1.22), xlim=(-0.7, len(lines) - 0.3))
        below.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, steps=[1, 2, 5, 10]))
        below.set_xlabel("round")
        _round_ticks(below, lines)
        for axes in panels:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, borderaxespad=0, handlelength=1.2)

    return _svg(draw, salt="travelled", height=3.2, nrows=2, sharex=True, height_ratios=(3, 2))


def _round_ticks(axes: "Axes", lines: Sequence[Sent]) -> None:
    """Rounds by number, of many the round ones; another attempt at a round says so."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if len(lines) <= _MOST_ROUNDS * step)
    shown = [i for i, line in enumerate(lines) if step == 1 or (line.round % step == 0 and line.attempt == 1)]
    axes.set_xticks(shown, [f"{lines[i].round}" + "′" * (lines[i].attempt - 1) for i in shown])


def benchmarks(exams: Sequence[Exam]) -> str:
    """Accuracy of each model with its interval, for each benchmark, beside guessing and the most frequent answer."""
    from matplotlib.lines import Line2D

    rows = [(exam, point) for exam in exams for point in exam.points]
    keys = dict.fromkeys(point.model for _, point in rows)

    def draw(axes: "Axes") -> None:
        top = 0
        centres = []
        for exam in exams:
            below = top + len(exam.points)
            centres.append(top + (len(exam.points) - 1) / 2)
            for y, point in enumerate(exam.points, start=top):
                colour = _COLOURS.get(point.model, _INK)
                axes.hlines(y, point.low, point.high, color=colour, linewidth=1.6, zorder=2)
                axes.plot(
                    point.value,
                    y,
                    color=colour,
                    marker=_MARKERS.get(point.model, "^"),
                    markerfacecolor="white" if point.model == "twin" else colour,
                    markersize=5.5,
                    zorder=3,
                )
            for value, dashes in ((exam.chance, (0, (4, 3))), (exam.majority, (0, (1, 1.2)))):
                if value is not None:
                    axes.vlines(value, top - 0.5, below - 0.5, color=_INK, linewidth=1.0, linestyle=dashes, zorder=1)
            if top:
                axes.axhline(top - 0.5, color=_BAND, linewidth=0.8)
            top = below
        names = [_short(exam.title) + ("\ncontaminated" if exam.contaminated else "") for exam in exams]
        axes.set_yticks(centres, names, multialignment="right")
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.02), xlabel="questions answered correctly")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(_percent)
        _on_the_right(axes, range(len(rows)), [share(point.value) for _, point in rows])
        handles: list[Artist] = [
            Line2D(
                [],
                [],
                color=_COLOURS.get(key, _INK),
                marker=_MARKERS.get(key, "^"),
                markerfacecolor="white" if key == "twin" else _COLOURS.get(key, _INK),
                markersize=5.5,
                linewidth=1.6,
                label=MODELS.get(key, key),
            )
            for key in keys
        ]
        for label, dashes, known in (
            ("guessing", (0, (4, 3)), any(exam.chance is not None for exam in exams)),
            ("most frequent answer", (0, (1, 1.2)), any(exam.majority is not None for exam in exams)),
        ):
            if known:
                handles.append(Line2D([], [], color=_INK, linewidth=1.0, linestyle=dashes, label=label))
        axes.figure.legend(handles=handles, loc="outside upper left", ncols=3, borderaxespad=0.2)

    return _svg(draw, salt="benchmarks", height=1.15 + 0.24 * len(rows))


class Bar(NamedTuple):
    """One model of `accuracies`; ``private`` is None for one that was not trained."""

    name: str
    private: bool | None
    value: float
    low: float | None
    high: float | None


def accuracies(panels: Sequence[tuple[str, Sequence[Bar]]], *, guessing: Sequence[float | None]) -> str:
    """Bars with intervals, a panel for each measure, one under the other.

    Args:
        panels: (name of the measure, its bars from the top down).
        guessing: What a model that knows nothing reaches, for each panel.
    """

    def draw(drawn: Any) -> None:
        for axes, (title, bars), known in zip(np.atleast_1d(drawn), panels, guessing, strict=True):
            rows = range(len(bars))
            for y, bar in zip(rows, bars, strict=True):
                colour = _POINT[bar.private]["color"]
                axes.barh(
                    y,
                    bar.value,
                    height=0.62,
                    color="white" if bar.private is False else colour,
                    edgecolor=colour,
                    hatch="////" if bar.private is False else None,
                    linewidth=1.0,
                )
                if bar.low is not None and bar.high is not None:
                    for colour, more in (("white", 2.0), (_INK, 0.0)):  # on a dark bar as well
                        axes.hlines(y, bar.low, bar.high, color=colour, linewidth=1.5 + more, zorder=3)
                        axes.vlines(
                            [bar.low, bar.high], y - 0.14, y + 0.14, color=colour, linewidth=1.2 + more, zorder=3
                        )
            if known is not None:
                axes.axvline(known, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_title(title, fontsize=9, color=_INK, loc="left")
            axes.set_yticks(rows, [fill(bar.name, _LONGEST_NAME) for bar in bars], multialignment="right")
            axes.set(xlim=(0, 1), ylim=(len(bars) - 0.4, -0.6))
            axes.xaxis.set_major_formatter(_percent)
            axes.tick_params(axis="y", length=0)
            _on_the_right(axes, rows, [share(bar.value) for bar in bars])
        np.atleast_1d(drawn)[-1].set_xlabel(
            "questions answered correctly" + ("; dashed: guessing" if any(one is not None for one in guessing) else "")
        )

    sizes = [len(bars) + 1.2 for _, bars in panels]
    height = 0.5 + 0.27 * sum(sizes)
    return _svg(draw, salt="accuracies", height=height, nrows=len(panels), sharex=True, height_ratios=sizes)


def lengths(bins: dict[str, list[list[float]]]) -> str:
    """Share of texts by length: real ones filled, synthetic ones outlined."""

    def draw(axes: "Axes") -> None:
        for key, label in (("real", "real"), ("synthetic", "synthetic")):
            if not bins.get(key):
                continue
            edges, shares = (np.array(values, dtype=float) for values in zip(*bins[key], strict=True))
            last = edges[-1] + (edges[-1] - edges[-2] if len(edges) > 1 else 1.0)
            filled = key == "real"
            axes.stairs(
                shares,
                np.append(edges, last),
                fill=filled,
                color=_FAINT if filled else _COLOURS["private"],
                linewidth=1.6,
                label=label,
            )
        axes.set(xlabel="length, tokens", ylabel="texts", ylim=(0, None))
        axes.yaxis.set_major_formatter(_percent)
        axes.legend(loc="upper right", handlelength=1.4)

    return _svg(draw, salt="lengths", height=2.7, width=4.6)


def frontier(points: Sequence[Sequence[float]]) -> str:
    """The divergence curve of real and synthetic text; the further out, the more alike."""

    def draw(axes: "Axes") -> None:
        curve = np.array(points, dtype=float)
        axes.fill_between(curve[:, 0], curve[:, 1], color=_SHADE, linewidth=0)
        axes.plot(curve[:, 0], curve[:, 1], color=_COLOURS["private"], linewidth=1.6)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="real text is covered", ylabel="synthetic text looks real")

    return _svg(draw, salt="frontier", height=2.7, width=4.6)


class Compared(NamedTuple):
    """One model of `comparison`; ``private`` is None for one that was not trained.

    Each measure is a value with the ends of its interval; None where it was not taken.
    """

    name: str
    private: bool | None
    useful: tuple[float, float, float] | None
    exposed: tuple[float, float, float] | None


def comparison(
    rows: Sequence[Compared],
    *,
    chance: tuple[float, float],
    usefulness: Literal["accuracy", "perplexity"] = "accuracy",
    guessing: float | None = None,
) -> str:
    """Several models side by side: what each is good for, and how well it remembers secrets of its training data.

    Args:
        rows: From the top down.
        chance: The exposure in bits, from low to high, of a model that never saw the secrets.
        usefulness: What ``useful`` measures: a share, or a perplexity.
        guessing: What a model that knows nothing reaches there.

    Returns:
        An <svg> element.
    """
    accuracy = usefulness == "accuracy"

    def draw(panels: Any) -> None:
        from matplotlib.lines import Line2D

        useful, exposed = panels
        _points(useful, rows, [row.useful for row in rows], share if accuracy else number)
        _points(exposed, rows, [row.exposed for row in rows], lambda bits: f"{bits:.1f}")
        useful.set_xlabel("accuracy, higher is better" if accuracy else "perplexity, lower is better")
        if accuracy:
            useful.xaxis.set_major_formatter(_percent)
        exposed.set(
            xlabel="exposure of secrets in bits, lower is better", xlim=(0, max(exposed.get_xlim()[1], chance[1] * 1.1))
        )
        handles: list[Artist] = [
            Line2D([], [], label=told, linewidth=1.6, **_POINT[private])
            for private, told in ((None, "not trained"), (False, "not private"), (True, "private"))
            if any(row.private is private for row in rows)
        ]
        if guessing is not None:
            handles.append(useful.axvline(guessing, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), label="guessing"))
        handles.append(exposed.axvspan(*chance, color=_BAND, linewidth=0, zorder=0, label="chance"))
        useful.figure.legend(handles=handles, loc="outside upper left", ncols=5, borderaxespad=0.2)

    return _svg(draw, salt="comparison", height=0.95 + 0.3 * len(rows), ncols=2, sharey=True)


def _points(
    axes: "Axes",
    rows: Sequence[Compared],
    values: Sequence[tuple[float, float, float] | None],
    show: Callable[[float], str],
) -> None:
    """A point with its interval for each row, and on the right what it is."""
    from matplotlib.ticker import MaxNLocator

    for y, (row, measured) in enumerate(zip(rows, values, strict=True)):
        if measured is not None:
            value, low, high = measured
            axes.hlines(y, low, high, color=_POINT[row.private]["color"], linewidth=1.6, zorder=2)
            axes.plot(value, y, zorder=3, **_POINT[row.private])
    axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", color=_BAND, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(axis="y", length=0)
    _on_the_right(axes, range(len(rows)), ["–" if one is None else show(one[0]) for one in values])


def _by_origin(held: Sequence[dict[str, int]]) -> list[tuple[str, str, np.ndarray]]:
    """Label, colour and units per silo of each origin, the largest first; small ones are put together."""
    totals = sum(map(Counter, held), Counter[str]())
    order = sorted(totals, key=lambda origin: (-totals[origin], origin))
    shown = len(_ORIGINS) if len(order) > len(_ORIGINS) else len(order)
    layers = [
        (_short(origin), colour, np.array([silo.get(origin, 0) for silo in held]))
        for origin, colour in zip(order[:shown], _ORIGINS, strict=False)
    ]
    others = order[shown:]
    if others:
        units = np.array([sum(silo.get(origin, 0) for origin in others) for silo in held])
        layers.append((f"{len(others)} other origins", _OTHERS, units))
    return layers


def _short(name: str) -> str:
    """A long name without its middle: ends tell paths and numbered names apart."""
    half = (_LONGEST_NAME - 1) // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _on_the_right(axes: "Axes", at: Sequence[int] | np.ndarray, labels: Sequence[str]) -> Any:
    """Labels on the right side, without ticks or a line."""
    right = axes.secondary_yaxis("right")
    right.set_yticks(at, labels)
    right.spines["right"].set_visible(False)
    right.tick_params(length=0)
    return right


def _percent(value: float, _: float) -> str:
    return f"{100 * value:g}\u202f%"


def _svg(draw: Callable[[Any], None], *, salt: str, height: float, width: float = 7.2, **panels: Any) -> str:
    """What ``draw`` puts on the axes, several with ``panels``, as an <svg> element; sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    # A salt of its own keeps the ids of one figure apart from those of the next on the same page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"reticent-{salt}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in other scripts: the browser has the letters
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots(**panels))
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue())


def _inline(svg: str) -> str:
    """Leave the <svg> element only, without metadata and without the group names that repeat from figure to figure."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
