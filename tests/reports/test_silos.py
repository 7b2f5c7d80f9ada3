"""Who holds what: every silo and origin is drawn to scale, and no name breaks the page."""

import re
from typing import Any

import pytest

from reticent.reports.plots import MOST_NAMED, silos
from reticent.reports.render import render
from reticent.reports.report import Report, Silo


def _silo(**origins: int) -> Silo:
    units = sum(origins.values())
    return {"units": units, "records": 3 * units, "bytes": 1_234_567, "origins": origins}


def _many(count: int) -> dict[str, Silo]:
    return {f"clinic-{i}": _silo(notes=i + 1, exams=2 * i) for i in range(count)}


def _page(held: dict[str, Silo], title: str = "IID partitioning into 2 partitions") -> str:
    report: Report = {
        "title": "T",
        "created": "C",
        "guarantee": {"epsilon": None},
        "measurements": [],
        "plots": {"silos": {"title": title, "silos": held}},
    }
    return render(report)


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def _widths(svg: str, colour: str) -> list[float]:
    """Of the rectangles in ``colour``, the legend's among them."""
    paths = re.findall(rf'<path d="M ([\d.]+) [\d.]+ *\n?L ([\d.]+) [^"]*"[^>]*style="fill: {colour}', svg)
    return [float(right) - float(left) for left, right in paths]


def test_each_silo_is_named_with_its_units_and_bytes() -> None:
    texts = _texts(silos({"north": _silo(notes=1000, exams=234), "south": _silo(notes=7)}))
    assert {"north", "south", "notes", "exams", "1,234 · 1.23\u202fMB", "7 · 1.23\u202fMB"} <= set(texts)


def test_bars_are_as_long_as_the_counts() -> None:
    svg = silos({"a": _silo(notes=100), "b": _silo(notes=50), "c": _silo(notes=25)})
    longest, half, quarter, _ = sorted(_widths(svg, "#1d5b86"), reverse=True)
    assert (half / longest, quarter / longest) == (pytest.approx(0.5, abs=0.01), pytest.approx(0.25, abs=0.01))


def test_silos_stay_in_their_order() -> None:
    texts = _texts(silos({"z": _silo(notes=1), "a": _silo(notes=9)}))
    assert texts.index("z") < texts.index("a")


def test_small_origins_are_put_together() -> None:
    texts = _texts(silos({"a": _silo(**{f"origin{i}": i + 1 for i in range(12)})}))
    assert "5 other origins" in texts
    assert sum(text.startswith("origin") for text in texts) == 7


def test_many_silos_stand_in_order_of_size_and_some_are_named() -> None:
    texts = [text for text in _texts(silos(_many(100))) if text.startswith("clinic")]
    assert texts[0] == "clinic-99"
    assert 20 < len(texts) <= MOST_NAMED


def test_many_silos_are_no_heavier_than_their_outlines() -> None:
    assert len(silos(_many(1000))) < 300_000


@pytest.mark.parametrize("count", [1, 3, MOST_NAMED, MOST_NAMED + 1])
def test_the_same_silos_give_the_same_bytes(count: int) -> None:
    assert silos(_many(count)) == silos(_many(count))


def test_long_names_lose_their_middle() -> None:
    texts = _texts(silos({f"the-university-hospital-of-somewhere-{i}": _silo(notes=1) for i in range(2)}))
    assert {"the-universit…f-somewhere-0", "the-universit…f-somewhere-1"} <= set(texts)


@pytest.mark.parametrize("name", ["$x_1", "<b>", "病院", "a&b", "_hidden"])
def test_any_name_can_be_drawn(name: str) -> None:
    page = _page({name: _silo(**{name: 3})})
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert page.count(f">{escaped}</text>") == 2
    assert "<b></text>" not in page


def test_the_figure_has_the_title_of_the_partition() -> None:
    page = _page({"a": _silo(notes=1), "b": _silo(notes=1)})
    assert "<h3>IID partitioning into 2 partitions</h3>" in page
    assert page.count("<svg") == 1


def test_only_many_silos_are_said_to_be_in_order_of_size() -> None:
    assert "order of size" in _page(_many(MOST_NAMED + 1))
    assert "order of size" not in _page(_many(MOST_NAMED))


@pytest.mark.parametrize("plots", [{}, {"silos": {"title": "T", "silos": {}}}])
def test_no_silos_draw_nothing(plots: Any) -> None:
    page = render({"title": "T", "created": "C", "guarantee": {"epsilon": None}, "measurements": [], "plots": plots})
    assert "<svg" not in page
