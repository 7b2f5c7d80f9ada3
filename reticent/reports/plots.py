"""Figures of the report as inline SVG: the same numbers always give the same bytes."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from reticent.reports.report import Curve, Exposures, LossPoint, Silo
from reticent.reports.table import model_names, one_in

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLOURS = {"private": "#1d5b86", "twin": "#b5562b", "base": "#7d8590"}
# Told apart by the colour-blind, and neighbours also in grey: dark and light take turns.
_ORIGINS = ("#1d5b86", "#e69f00", "#3b1540", "#b5dcf5", "#2e8b63", "#f7ef9a", "#b5562b")
_OTHERS = "#c9ced6"
_INK, _FAINT, _SHADE = "#3c4450", "#c9ced6", "#eef0f3"
MOST_NAMED = 30  # silos; more are drawn without gaps, and about as many of them as fit are named
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
        chance = axes.secondary_yaxis("right")
        ticks = list(range(0, int(max(top, 6)) + 1, 2))
        chance.set_yticks(ticks, ["always" if bits == 0 else one_in(2.0**-bits) for bits in ticks])
        chance.set_ylabel("chance if never trained on")
        chance.spines["right"].set_visible(False)
        chance.tick_params(length=0)

    return _svg(draw, salt="exposure", height=2.8)


def roc(models: dict[str, Curve]) -> str:
    """Share of members found against share of others accused, both logarithmic; grey where the data cannot resolve."""
    others = max(curve["others"] for curve in models.values())
    members = max(curve["members"] for curve in models.values())
    left, bottom = 0.5 / others, 0.5 / members

    def draw(axes: "Axes") -> None:
        axes.axvspan(left, 1 / others, color=_SHADE, linewidth=0)
        axes.axhspan(bottom, 1 / members, color=_SHADE, linewidth=0)
        axes.plot([left, 1], [left, 1], color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), label="guessing")
        for key, label in model_names(list(models)):
            fpr, tpr = np.maximum(models[key]["fpr"], left), np.maximum(models[key]["tpr"], bottom)
            axes.step(fpr, tpr, where="post", color=_COLOURS.get(key, _INK), linewidth=1.6, label=label)
        axes.set(xscale="log", yscale="log", xlim=(left, 1), ylim=(bottom, 1.08))
        axes.set(xlabel="others wrongly flagged (false alarms)", ylabel="members correctly flagged")
        _percent_ticks(axes)
        axes.legend(loc="lower right")

    return _svg(draw, salt="roc", height=3.3, width=4.8)


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
        right = axes.secondary_yaxis("right")
        right.set_yticks(named, [f"{held[names[i]]['units']:,} · {_bytes(held[names[i]]['bytes'])}" for i in named])
        right.tick_params(length=0)
        right.spines["right"].set_visible(False)
        labels = [label for label, _, _ in layers]
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=3, borderaxespad=0.2, handlelength=1.2)

    legend = 0.2 * -(-len(layers) // 3)
    return _svg(draw, salt="silos", height=0.7 + legend + 0.21 * min(len(names), MOST_NAMED))


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


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g}\u202f{unit}"


def _percent_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}\u202f%"))
        axis.set_minor_formatter(NullFormatter())


def _svg(draw: Callable[["Axes"], None], *, salt: str, height: float, width: float = 7.2) -> str:
    """What ``draw`` puts on the axes, as an <svg> element; sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    # A salt of its own keeps the ids of one figure apart from those of the next on the same page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"reticent-{salt}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in other scripts: the browser has the letters
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue())


def _inline(svg: str) -> str:
    """Leave the <svg> element only, without metadata and without the group names that repeat from figure to figure."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
