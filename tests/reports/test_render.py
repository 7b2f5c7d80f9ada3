"""The page as a whole: self-contained, escaped, deterministic, whole when parts are missing."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from reticent.measurement import Measurement
from reticent.reports.render import render
from reticent.reports.report import Report


def _measurement(name: str, model: str, value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return Measurement(
        name=name, model=model, value=value, interval=(low, high), n=50, unit="share", counted="secrets", **more
    ).to_dict()


@pytest.fixture
def report() -> Report:
    rng = np.random.default_rng(0)
    bits = rng.exponential(1.44, size=(3, 2, 20)).tolist()
    models = ("private", "twin", "base")
    return {
        "title": "Notes",
        "created": "2026-01-02",
        "guarantee": {
            "epsilon": 3.0,
            "delta": 1e-5,
            "unit": "owner",
            "relation": "add-or-remove-one",
            "mechanism": "Gaussian",
            "accountant": "PLD",
            "noise_multiplier": 0.9,
            "limits": ["what many people share"],
        },
        "measurements": [
            _measurement("membership_auc", "private", 0.5, 0.45, 0.55, floor=0.5),
            _measurement("membership_auc", "twin", 0.9, 0.85, 0.95, floor=0.5),
            _measurement("an_attack_from_tomorrow", "private", 0.25, 0.2, 0.3),
        ],
        "plots": {
            "exposure": {m: {"planted": b[0], "held_out": b[1]} for m, b in zip(models, bits, strict=True)},
            "roc": {"private": {"fpr": [0, 0.5, 1], "tpr": [0, 0.6, 1], "members": 40, "others": 50}},
            "loss": {
                "private": [{"step": 1, "loss": 3.0, "epsilon": 0.5}, {"step": 2, "loss": 2.5, "epsilon": 0.8}],
                "twin": [{"step": 1, "loss": 3.0, "epsilon": None}, {"step": 2, "loss": 2.0, "epsilon": None}],
            },
        },
        "data": {"records": 1234, "canaries": {"planted": 20}},
        "recipe": "train: {steps: 2}",
        "provenance": {"python": "3.11"},
    }


class _Balanced(HTMLParser):
    """Every element that must be closed is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed(report: Report) -> None:
    parser = _Balanced()
    parser.feed(render(report))
    assert parser.open == []


def test_no_request_leaves_the_page(report: Report) -> None:
    page = re.sub(r'xmlns(:\w+)?="[^"]*"', "", render(report))
    assert not re.search(r"https?://|<script|<link|@import|src=|url\((?!#)", page)


def test_the_same_report_gives_the_same_bytes(report: Report) -> None:
    assert render(report) == render(report)


def test_every_number_and_the_recipe_are_there(report: Report) -> None:
    page = render(report)
    for text in ("an attack from tomorrow", "0.25 share", "1,234", "canaries · planted", "train: {steps: 2}", "PLD"):
        assert text in page
    assert page.count("<svg") == 3


def test_text_is_escaped(report: Report) -> None:
    report["title"] = report["recipe"] = "<script>alert(1)</script>"
    report["plots"]["roc"] = {"<b>$x": report["plots"]["roc"]["private"]}
    page = render(report)
    assert "<script>" not in page
    assert "<b>$x" not in page
    assert "&lt;b&gt;$x" in page


def test_the_guarantee_comes_before_the_verdicts(report: Report) -> None:
    page = render(report)
    assert (
        page.index("The guarantee: ε = 3 per owner")
        < page.index("what many people share")
        < page.index("no leak found")
    )


def test_no_guarantee_is_prominent(report: Report) -> None:
    report["guarantee"] = {"epsilon": None}
    page = render(report)
    assert "<h2>No guarantee</h2>" in page
    assert "The guarantee" not in page
    assert "Mechanism and accounting" not in page


def test_a_bare_report_renders() -> None:
    page = render({"title": "T", "created": "C", "guarantee": {"epsilon": None}, "measurements": []})
    assert "Nothing was measured" in page
    assert "<svg" not in page


def test_empty_plots_are_left_out(report: Report) -> None:
    report["plots"] = {"exposure": {"private": {"planted": [], "held_out": []}}, "roc": {}, "loss": {"private": []}}
    assert "<svg" not in render(report)


def test_the_full_page_is_well_formed_and_says_nothing_is_safe(full_page: str) -> None:
    page = full_page
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "safe" not in page.lower()
    assert not re.search(r"https?://|<script|<link|@import|src=|url\((?!#)", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))


def test_the_full_page_has_every_figure_once(full_page: str) -> None:
    assert full_page.count("<svg") == 8
    ids = re.findall(r' id="([^"]*)"', full_page)
    assert len(ids) == len(set(ids))


def test_the_full_page_has_the_same_bytes_twice(full: Report, full_page: str) -> None:
    assert render(full) == full_page


def test_the_seven_questions_are_in_their_order(undrawn: Report) -> None:
    assert re.findall(r'scope="rowgroup">(\d)\. ', render(undrawn)) == list("1234567")


def test_a_question_without_a_line_is_not_answered(report: Report) -> None:
    report["unanswered"] = [{"question": "recite", "why": "no secret was planted <here>"}]
    page = render(report)
    assert "not answered: no secret was planted &lt;here&gt;" in page
    assert "not answered: the model was not trained across sites" in page


def test_a_failed_check_stands_on_page_one_and_in_the_annex(undrawn: Report) -> None:
    undrawn["plots"]["checks"][5]["passed"] = False
    page = render(undrawn)
    assert "promise not kept: check noise scale failed" in page
    assert page.count("FAILED") == 1


def test_scores_of_other_studies_stand_apart_with_a_warning(undrawn: Report) -> None:
    page = render(undrawn)
    others = page.index("Scores of other studies")
    assert page.index("They mislead.") > others
    assert page.index("seed bleu memorised") > others


def test_exploratory_attacks_stand_apart(undrawn: Report) -> None:
    page = render(undrawn)
    assert page.index("Other attacks on the same questions") < page.index('scope="row">wbc')
    assert "record membership auc[wbc]" in page  # in the annex


def test_what_was_fixed_before_training_is_told(undrawn: Report) -> None:
    assert "fixed before training and not changed since" in render(undrawn)
    undrawn["audit"].update(pre_registered=False, changed=["audit.primary: loss -> wbc"])
    page = render(undrawn)
    assert "changed after training" in page
    assert "audit.primary: loss -&gt; wbc" in page
    assert "a1" * 32 in page


def test_attacks_that_were_not_run_are_named_with_the_reason(undrawn: Report) -> None:
    assert "audit.shadows is null: it needs more trainings" in render(undrawn)


def test_each_figure_may_be_empty_or_missing(undrawn: Report) -> None:
    undrawn["plots"].update(extraction={}, record_roc={}, scores={}, epsilon={}, server=[])
    assert "<svg" not in render(undrawn)
    undrawn["plots"] = {}
    assert "<svg" not in render(undrawn)


def test_a_ladder_with_unknown_rungs_is_drawn(undrawn: Report) -> None:
    undrawn["plots"]["epsilon"] = {"claimed": None, "measured": 0.0}
    page = render(undrawn)
    assert "what this audit proves" in page
    assert "claimed, by the ledger" not in page


def test_scores_that_are_all_the_same_are_drawn(undrawn: Report) -> None:
    undrawn["plots"]["scores"] = {"private": {"planted": [1.0, 1.0], "held_out": []}}
    assert "Scores of planted and held-out records" in render(undrawn)
