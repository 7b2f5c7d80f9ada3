"""Several runs side by side: one column for each model, and no word of one that promises nothing."""

import re
from typing import Any

import pytest

from reticent.reports.comparison import Cell, Comparison, render
from reticent.reports.render import render as render_report

_REST: Any = {"control": None, "p_value": None, "method": "", "other": ""}


def _cell(value: float, floor: float | None = None) -> Cell:
    return {"value": value, "interval": [value - 0.05, value + 0.05], "n": 500, "floor": floor, **_REST}


@pytest.fixture
def compared() -> Comparison:
    models = (
        ("ward", "base", "base"),
        ("ward", "twin", "centralised"),
        ("part", "twin", "centralised, 10 % of the data"),
        ("fed", "private", "federated, 3 sites, private, ε = 8"),
    )
    return {
        "columns": [
            {
                "run": run,
                "model": model,
                "what": what,
                "open": model != "twin",
                "facts": {"steps": 1200} if model != "base" else {},
            }
            for run, model, what in models
        ],
        "rows": [
            {
                "measure": "accuracy[pubmedqa]",
                "unit": "share",
                "counted": "questions",
                "cells": [_cell(0.3, 0.25), _cell(0.6), None, _cell(0.5)],
            },
            {
                "measure": "perplexity",
                "unit": "perplexity",
                "counted": "owners",
                "cells": [_cell(31.0), _cell(12.0), _cell(13.0), _cell(14.0)],
            },
        ],
        "answers": [
            {
                "question": "What is <b>rest</b>?",
                "answers": ["said by base", "said by twin", None, "said <i>privately</i>"],
            }
        ],
        "paired": [
            {
                "benchmark": "pubmedqa",
                "scorer": "letter",
                "one": 1,
                "other": 3,
                "items": 480,
                "only_one": 61,
                "only_other": 35,
                "p_value": 0.0104,
            }
        ],
    }


@pytest.fixture
def page(compared: Comparison) -> str:
    return render(compared)


def test_each_model_is_a_column_of_the_table(page: str) -> None:
    heads = re.findall(r'<th scope="col">([^<]*)', page)
    assert heads[1:5] == ["base", "centralised", "centralised, 10 % of the data", "federated, 3 sites, private, ε = 8"]


def test_numbers_stand_with_their_intervals(page: str) -> None:
    assert "PubMedQA, answered correctly" in page
    assert '<span class="main">50.0\u202f%</span><small>45.0\u202f% to 55.0\u202f%</small>' in page
    assert '<span class="main">12</span>' in page
    assert "500 questions" in page


def test_a_number_on_other_records_says_so(compared: Comparison) -> None:
    cell = compared["rows"][1]["cells"][2]
    assert cell is not None
    cell["other"] = "other records"
    assert "<span>other records</span>" in render(compared)


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        ("records_recited", "Real training records continued word for word"),
        ("epsilon", "Promise: ε"),
        ("a_test_from_tomorrow", "a test from tomorrow"),
    ],
)
def test_rows_are_named_in_words(compared: Comparison, measure: str, told: str) -> None:
    compared["rows"][1]["measure"] = measure
    assert f'<th scope="row">{told}' in render(compared)


def test_scores_that_mislead_are_left_out(compared: Comparison) -> None:
    compared["rows"][1]["measure"] = "compat_accuracy[pubmedqa]"
    assert "compat" not in render(compared)


def test_a_contaminated_score_is_marked(compared: Comparison) -> None:
    cell = compared["rows"][0]["cells"][1]
    assert cell is not None
    cell["method"] = "letter, zero-shot; 12 of 500 items stand in the training data; Wilson"
    assert "<span>contaminated: 12 of 500 items</span>" in render(compared)


def test_pairs_are_tested_on_the_same_questions(page: str) -> None:
    row = "".join(f"<td>{text}</td>" for text in ("480", "61", "35", "0.01"))
    assert row in page


def test_columns_of_one_name_are_told_apart_by_their_runs(compared: Comparison) -> None:
    compared["columns"][2]["what"] = "centralised"
    assert "Withheld, because nothing is promised and the answers may hold private text: centralised (ward)" in render(
        compared
    )


def test_what_was_not_measured_is_a_dash(page: str) -> None:
    assert '<td><span class="dash">–</span></td>' in page


def test_accuracies_are_bars_and_nothing_else_is(page: str) -> None:
    assert page.count("<svg") == 1
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert {"PubMedQA, answered correctly", "30.0\u202f%", "60.0\u202f%", "50.0\u202f%"} <= set(drawn)
    assert not any("perplexity" in text for text in drawn)


def test_without_accuracies_there_is_no_figure(compared: Comparison) -> None:
    compared["rows"] = compared["rows"][1:]
    assert "<svg" not in render(compared)


def test_models_without_a_promise_are_not_quoted(page: str) -> None:
    assert "said by base" in page
    assert "said by twin" not in page
    assert "Withheld" in page


def test_everything_is_escaped(compared: Comparison) -> None:
    compared["columns"][0].update(what="<script>x", run="<u>")
    page = render(compared)
    assert not re.search(r"<script|<u>|<i>|<b>rest", page)
    assert "said &lt;i&gt;privately" in page


def test_no_request_leaves_the_page(page: str) -> None:
    assert not re.search(r"https?://|<script|<link|@import|src=|url\((?!#)", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))


def test_the_same_comparison_gives_the_same_bytes(compared: Comparison, page: str) -> None:
    assert render(compared) == page


def test_the_look_is_that_of_the_report(page: str) -> None:
    def style(text: str) -> str:
        return text[text.index("<style>") : text.index("</style>")]

    report = render_report({"title": "T", "created": "C", "guarantee": {"epsilon": None}, "measurements": []})
    assert style(page) == style(report)


def test_a_comparison_without_questions_has_no_such_part(compared: Comparison) -> None:
    compared["answers"] = []
    assert "The same questions" not in render(compared)


@pytest.mark.parametrize("part", ["rows", "answers"])
def test_an_entry_for_each_column_is_needed(compared: Comparison, part: str) -> None:
    rows: Any = compared[part]  # type: ignore[literal-required]  # one of two
    rows[0]["cells" if part == "rows" else "answers"].pop()
    with pytest.raises(ValueError, match="has 3 entries for 4 columns"):
        render(compared)
