"""The form of report.json, for programs that read it: a JSON schema (draft 2020-12), and the check against it."""

import json
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from reticent.errors import RunError
from reticent.reports.report import Report

_MOST_TOLD = 3  # mistakes in one message


def schema() -> dict[str, Any]:
    """The schema, as published in ``docs/report.schema.json``."""
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **_adapter().json_schema(),
        "title": "report.json of reticent",
    }


def validate(values: dict[str, Any]) -> None:
    """Check the content of report.json.

    Raises:
        RunError: it has not that form; the message names the places and never what stands there.
    """
    try:
        text = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        raise RunError("report.json holds what JSON cannot: a number that is not finite, or an object") from None
    try:
        _adapter().validate_json(text, strict=True)
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_url=False, include_context=False)
        told = "; ".join(f"{_place(one['loc'])}: {one['msg']}" for one in wrong[:_MOST_TOLD])
        more = f" and {len(wrong) - _MOST_TOLD} more" if len(wrong) > _MOST_TOLD else ""
        raise RunError(f"report.json is not as docs/report.schema.json says: {told}{more}") from None


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(Report)


def _place(parts: tuple[int | str, ...]) -> str:
    """``plots.roc.private.fpr[3]``"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or "the whole"
