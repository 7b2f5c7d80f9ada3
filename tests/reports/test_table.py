"""The words of page 1: verdicts and the promise."""

from math import exp, log
from typing import Any

import pytest

from reticent.measurement import Measurement
from reticent.reports import table
from reticent.reports.report import Report


def _auc(model: str, value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return _measure("membership_auc", model, value, (low, high), floor=0.5, ceiling=1.0, **more)


def _bound(model: str, value: float, ceiling: float = 3.5) -> dict[str, Any]:
    return _measure("epsilon_lower_bound", model, value, None, floor=0.0, ceiling=ceiling)


def _measure(name: str, model: str, value: float, interval: tuple[float, float] | None, **more: Any) -> dict[str, Any]:
    known = {"unit": "share", "counted": "records", "n": 500}
    return Measurement(name=name, model=model, value=value, interval=interval, **{**known, **more}).to_dict()


def _report(*measurements: dict[str, Any], epsilon: float | None = 2.0) -> Report:
    return {
        "title": "A title",
        "created": "today",
        "guarantee": {"epsilon": epsilon, "delta": 1e-5, "unit": "owner"},
        "measurements": list(measurements),
    }


def _verdict(*measurements: dict[str, Any], epsilon: float | None = 2.0) -> str:
    (row,) = table.verdicts(_report(*measurements, epsilon=epsilon))
    assert row.verdict is not None
    return row.verdict.text


_TWIN = _auc("twin", 0.95, 0.93, 0.97)


def test_an_interval_above_chance_is_a_leak() -> None:
    assert _verdict(_auc("private", 0.56, 0.51, 0.61), _TWIN) == "leak demonstrated"


def test_silence_counts_only_where_the_positive_control_speaks() -> None:
    quiet = _auc("private", 0.51, 0.46, 0.56)
    # 0.5 + 1.654 * 0.05 = 0.58
    assert _verdict(quiet, _TWIN) == "no leak found by a test able to find leaks of size 0.58"
    assert _verdict(quiet, _auc("twin", 0.52, 0.47, 0.57)) == "test inconclusive (positive control failed)"
    assert _verdict(quiet) == "test inconclusive (no positive control)"
    assert _verdict({**quiet, "interval": None}, _TWIN) == "test inconclusive (no interval)"


def test_what_the_base_model_shows_too_is_no_leak() -> None:
    ours = _auc("private", 0.60, 0.55, 0.65)
    assert _verdict(ours, _TWIN, _auc("base", 0.60, 0.55, 0.65)).startswith("no leak found")


def test_the_held_out_control_is_part_of_chance() -> None:
    bits = {"unit": "bits", "floor": 1.44, "ceiling": 16.6}
    ours = _measure("exposure_bits", "private", 2.0, (1.5, 2.5), control=1.7, **bits)
    twin = _measure("exposure_bits", "twin", 9.0, (8.0, 10.0), control=1.4, **bits)
    assert _verdict(ours, twin) == "no leak found by a test able to find leaks of size 2.5 bits"
    assert _verdict({**ours, "control": 1.4}, twin) == "leak demonstrated"
    assert _verdict({**ours, "control": 1.4, "p_value": 0.2}, twin).startswith("no leak found")


def test_an_epsilon_bound_is_judged_against_zero_and_the_promise() -> None:
    assert _verdict(_bound("private", 0.0), _bound("twin", 3.1)).endswith("leaks of size ε = 3.10")
    assert _verdict(_bound("private", 0.0), _bound("twin", 0.0)) == "test inconclusive (positive control failed)"
    for value, promised, note in [
        (2.4, 2.0, "This contradicts the promise of ε = 2."),
        (0.3, 2.0, "The promise of ε = 2 is not contradicted."),
        (0.3, 8.0, "It could prove at most ε = 3.50, so it cannot test the promise of ε = 8."),
    ]:
        (row,) = table.verdicts(_report(_bound("private", value), epsilon=promised))
        assert row.verdict == ("leak", "leak demonstrated")
        assert row.note == note


def test_no_verdict_says_safe() -> None:
    for value in (0.3, 0.5, 0.9):
        for twin in ([], [_TWIN]):
            assert "safe" not in _verdict(_auc("private", value, value - 0.05, value + 0.05), *twin).lower()


def test_usefulness_has_a_cost_and_no_verdict() -> None:
    ours = _measure("accuracy", "private", 0.55, (0.52, 0.58))
    (row,) = table.verdicts(_report(ours, _measure("accuracy", "twin", 0.58, (0.55, 0.61))))
    assert row.verdict is None
    assert row.note == "3.0 points below the non-private twin"
    assert row.worst == "52.0\u202f%"


def test_without_a_private_model_the_twin_is_judged() -> None:
    report = _report(_TWIN, _auc("base", 0.5, 0.45, 0.55), epsilon=None)
    (row,) = table.verdicts(report)
    assert (row.measured, row.base, row.twin) == ("0.95", "0.50", "")
    assert row.verdict == ("leak", "leak demonstrated")


def test_page_one_takes_one_false_positive_rate_and_the_first_attack() -> None:
    names = ["membership_tpr_at_10pct", "membership_tpr_at_1pct", "membership_tpr_at_1pct"]
    rows = [_measure(name, "private", value, (0.0, 0.9)) for name, value in zip(names, (0.3, 0.2, 0.1), strict=True)]
    (row,) = table.verdicts(_report(*rows))
    assert "1\u202f% false alarms" in row.question
    assert row.measured == "20.0\u202f%"


def test_unanswered_questions_are_listed() -> None:
    questions = table.unanswered(_report(_TWIN, _auc("private", 0.5, 0.4, 0.6)))
    assert len(questions) == 6
    assert not any("told from other data" in question for question in questions)


def test_the_promise_in_plain_words() -> None:
    # At epsilon = ln 3 an attacker is right in at most 3/4 of cases, and flags 3 of 100 at 1 false alarm in 100.
    words = " ".join(table.promise({"epsilon": log(3), "delta": 0.0, "unit": "record"}).meaning)
    assert "at most 3 times more or less likely" in words
    assert "at most 75.0\u202f% of cases" in words
    assert "flag at most 3.0\u202f%" in words
    assert "covered for each alone" in words


def test_a_wide_promise_is_called_wide() -> None:
    assert "wide" in table.promise({"epsilon": 8.0, "delta": 1e-5, "unit": "owner"}).meaning[-1]
    assert "wide" not in table.promise({"epsilon": 1.0, "delta": 1e-5, "unit": "owner"}).meaning[-1]


def test_a_huge_epsilon_does_not_overflow() -> None:
    promise = table.promise({"epsilon": 1e6, "delta": 1e-5, "unit": "owner"})
    assert "at most 100.0\u202f% of cases" in promise.meaning[1]


def test_no_guarantee_says_so() -> None:
    promise = table.promise({"epsilon": None, "limits": ["a limit"]})
    assert promise.headline == "No guarantee"
    assert promise.limits == ["a limit"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0"), (1, "100.0"), (0.5, "50.0"), (1e-5, "under 0.01"), (0.99995, "over 99.99"), (0.0004, "0.04")],
)
def test_shares_do_not_round_to_certainty(value: float, text: str) -> None:
    assert table.share(value) == f"{text}\u202f%"


def test_numbers_are_short() -> None:
    assert [table.number(x) for x in (0, 8.0, 0.7412, 2980.9, 1e-5, exp(40))] == [
        "0", "8", "0.741", "2,981", "1e-05", "2.35e+17",
    ]  # fmt: skip
