"""The promise in plain words, and how numbers are written."""

from math import exp, log

import pytest

from reticent.reports import table


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
