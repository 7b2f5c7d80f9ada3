"""Prompts from a file: what a model is to go on from, and how often."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reticent.data.rows import Row, rows
from reticent.errors import DataError

ENDINGS = (".jsonl", ".txt")
BETWEEN = "####"  # an instruction and its repetitions, in the source system's files

_KEYS = ("prompt", "count", "label")
_NUMBER = re.compile(r"[-+0-9.,eE]{1,20}")  # of such letters only: may stand in a message


@dataclass(frozen=True)
class Prompt:
    """``text`` to go on from (empty: the model begins by itself), how many texts, and what they are called."""

    text: str
    count: int = 1
    label: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in order; also with .gz behind its name.

    A .jsonl file has lines ``{prompt, count, label}``, the last two may be left out. A .txt file has one prompt a line,
    or in each line ``instruction #### repetitions``; blanks around both are cut, blank lines skipped.

    Raises:
        DataError: The file cannot be read or is empty, a line is malformed, or a count is no whole number from 1 on.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of prompts; check the path")
    if not path.name.lower().removesuffix(".gz").endswith(ENDINGS):
        raise DataError(
            f"{path}: prompts are read from .jsonl (lines with prompt, count and label) and from .txt (one a line); "
            "rename or convert it"
        )
    found = list(rows(path))
    if not found:
        raise DataError(f"{path}: holds no prompt; write one a line")
    if path.name.lower().removesuffix(".gz").endswith(".jsonl"):
        return [_from_fields(row.values, row.where) for row in found]
    counted = any(BETWEEN in row.values["text"] for row in found)
    return [_from_line(row, counted=counted) for row in found]


def _from_fields(values: Mapping[str, Any], where: str) -> Prompt:
    if unknown := len(set(values) - set(_KEYS)):
        raise DataError(f"{where}: {unknown} fields beside {', '.join(_KEYS)}; take them out")
    prompt, count, label = values.get("prompt"), values.get("count", 1), values.get("label")
    if not isinstance(prompt, str):
        raise DataError(f"{where}: the field prompt must be text (empty: the model begins by itself)")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise DataError(f"{where}: the prompt holds half of a letter (\\ud800 to \\udfff); mend the file")
    if not isinstance(label, str | None):
        raise DataError(f"{where}: the field label must be text")
    if type(count) is not int:
        shown = f", got {count}" if isinstance(count, bool | float) else ""
        raise DataError(f"{where}: count must be a whole number{shown}; write how many texts of this prompt you want")
    return Prompt(prompt, _positive(count, where), label)


def _from_line(row: Row, *, counted: bool) -> Prompt:
    text, where = row.values["text"], row.where
    if text.lstrip().startswith("{"):
        raise DataError(f"{where}: looks like JSON; give the file a name that ends in .jsonl")
    if not counted:
        return Prompt(text.strip())
    instruction, between, told = (part.strip() for part in text.rpartition(BETWEEN))
    if not between:
        raise DataError(
            f"{where}: no {BETWEEN} with a count, as other lines have; write instruction {BETWEEN} repetitions in "
            "every line (or a .jsonl file, where a prompt may hold it)"
        )
    if not instruction:
        raise DataError(f"{where}: no instruction before {BETWEEN}; an empty prompt needs a .jsonl file")
    if not re.fullmatch(r"[-+]?[0-9]{1,18}", told, re.ASCII):
        shown = f", got {told}" if _NUMBER.fullmatch(told) else ""
        raise DataError(f"{where}: what stands behind {BETWEEN} must be a whole number{shown}; mend the count")
    return Prompt(instruction, _positive(int(told), where))


def _positive(count: int, where: str) -> int:
    if count < 1:
        raise DataError(f"{where}: count must be at least 1, got {count}; mend it, or take the line out")
    return count
