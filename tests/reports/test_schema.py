"""The form of report.json, and what is said where a report has another."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from reticent.errors import ReticentError
from reticent.reports.report import Report
from reticent.reports.schema import schema, validate

_PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"


def test_a_full_report_is_valid(full: Report) -> None:
    validate(full)  # type: ignore[arg-type]


def test_a_bare_report_is_valid() -> None:
    validate({"title": "T", "created": "C", "guarantee": {"epsilon": None}, "measurements": []})


def test_a_report_that_was_written_and_read_is_valid(full: Report) -> None:
    validate(json.loads(json.dumps(full)))


def _wrong(values: Any, *path: Any, to: Any = None, gone: bool = False) -> Any:
    values = json.loads(json.dumps(values))
    place = values
    for part in path[:-1]:
        place = place[part]
    if gone:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return values


@pytest.mark.parametrize(
    ("path", "change", "place"),
    [
        (("guarantee", "epsilon"), {"gone": True}, "guarantee.epsilon: "),
        (("guarantee", "epsilon"), {"to": "low"}, "guarantee.epsilon: "),
        (("measurements", 3, "n"), {"to": "many"}, "measurements[3].n: "),
        (("measurements", 0, "value"), {"gone": True}, "measurements[0].value: "),
        (("measurements", 0, "text"), {"to": "secret words"}, "measurements[0].text: "),
        (("plots", "roc", "private", "fpr", 2), {"to": "a"}, "plots.roc.private.fpr[2]: "),
        (("tomorrow",), {"to": {}}, "tomorrow: "),
        (("audit", "not_run", 0, "why"), {"gone": True}, "audit.not_run[0].why: "),
        (("unanswered",), {"to": [{"question": "q"}]}, "unanswered[0].why: "),
    ],
)
def test_a_mistake_is_named_by_its_place(full: Report, path: Any, change: Any, place: str) -> None:
    with pytest.raises(ReticentError, match=re.escape(place)):
        validate(_wrong(full, *path, **change))


def test_a_message_never_has_what_stands_there(full: Report) -> None:
    with pytest.raises(ReticentError) as error:
        validate(_wrong(full, "measurements", 0, "value", to="secret words"))
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


def test_many_mistakes_are_counted() -> None:
    with pytest.raises(ReticentError, match="and 1 more"):
        validate({})


def test_points_that_the_page_does_not_draw_are_allowed(full: Report) -> None:
    validate(_wrong(full, "plots", "tomorrow", to={"private": [1, 2]}))


def test_numbers_that_json_has_not_are_refused(full: Report) -> None:
    full["measurements"][0]["value"] = float("nan")
    with pytest.raises(ReticentError, match="not finite"):
        validate(full)  # type: ignore[arg-type]


def test_the_published_schema_is_this_one() -> None:
    assert json.loads(_PUBLISHED.read_text()) == schema(), "write it again: python scripts/make_schema.py"


def test_the_schema_is_one_of_draft_2020_12() -> None:
    told = schema()
    assert told["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(told["required"]) == {"title", "created", "guarantee", "measurements"}
    references = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(told)))
    assert references <= set(told["$defs"])
