"""Figures of the audit: what stands in them, and that any numbers can be drawn."""

import re

import pytest

from reticent.reports import plots
from reticent.reports.report import Curve, Rate, Seen


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def _rate(copies: int, share: float) -> Rate:
    return {"copies": copies, "share": share, "low": 0.0, "high": 1.0, "n": 10}


def _curve(members: int) -> Curve:
    return {"fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 0.6, 1.0], "members": members, "others": members}


def test_copies_are_in_order_and_none_is_held_out() -> None:
    texts = _texts(plots.extraction({"private": [_rate(100, 1.0), _rate(0, 0.0)], "base": [_rate(1, 0.5)]}))
    assert [text for text in texts if text in ("held out", "1", "100")] == ["held out", "1", "100"]
    assert {"Private model", "Base model"} <= set(texts)


def test_models_without_rates_are_left_out() -> None:
    assert "Base model" not in _texts(plots.extraction({"private": [_rate(1, 1.0)], "base": []}))


@pytest.mark.parametrize("members", [1, 2, 1000])
def test_a_curve_of_any_number_of_members_can_be_drawn(members: int) -> None:
    assert "95 of 100 guessers" in _texts(plots.roc({"private": _curve(members)}))


def test_two_curves_on_one_page_share_no_id() -> None:
    first, second = (set(re.findall(r' id="([^"]*)"', plots.roc({"twin": _curve(50)}, salt=s))) for s in ("a", "b"))
    assert first
    assert not first & second


def test_each_model_has_a_panel_of_scores() -> None:
    texts = _texts(plots.histograms({m: {"planted": [1.0, 2.0], "held_out": [0.0, 1.5]} for m in ("private", "twin")}))
    assert texts.count("planted") == texts.count("held out") == 2


def test_scores_that_are_not_finite_are_left_out() -> None:
    scores = {"private": {"planted": [1.0, float("-inf")], "held_out": [0.0, float("nan")]}}
    assert "planted" in _texts(plots.histograms(scores))  # type: ignore[arg-type]


def test_the_ladder_names_its_rungs_and_their_values() -> None:
    texts = _texts(plots.ladder({"claimed": 4.0, "ideal": 1.46, "measured": 0.7, "ceiling": None}))
    assert {"claimed, by the ledger", "what this audit proves", "4.00", "1.46", "0.70"} <= set(texts)
    assert "most that the test can prove" not in texts


def test_a_ladder_of_zeros_can_be_drawn() -> None:
    assert "0.00" in _texts(plots.ladder({"measured": 0.0}))


def test_each_setting_of_an_update_has_a_line() -> None:
    points: list[Seen] = [
        {"tokens": tokens, "setting": setting, "recall": 0.5, "precision": None}
        for setting in ("plain", "sum of 3")
        for tokens in (32, 512)
    ]
    texts = _texts(plots.server(points))
    assert {"plain", "sum of 3", "32", "512"} <= set(texts)


def test_one_update_can_be_drawn() -> None:
    assert "plain" in _texts(plots.server([{"tokens": 1, "setting": "plain", "recall": 1.0, "precision": 1.0}]))
