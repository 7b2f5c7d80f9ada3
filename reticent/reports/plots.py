"""Figures of the report as inline SVG: the same numbers always give the same bytes."""

import re
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from reticent.reports.report import Curve, Exposures, LossPoint
from reticent.reports.table import model_names, one_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"private": "#1d5b86", "twin": "#b5562b", "base": "#7d8590"}
_INK, _FAINT, _SHADE = "#3c4450", "#c9ced6", "#eef0f3"
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
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"reticent-{salt}"}):
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
