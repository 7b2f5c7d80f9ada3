"""Records from files, folders, archives or the Hugging Face hub, as a stream.

A map of field names, or the name of a usual format, says what of a row is the prompt and what the completion. The
first bad row ends the reading. Messages name the file, the line (or row) and the field, never what stands in it.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from reticent.data.record import Record
from reticent.data.rows import ENDINGS, Bounds, Reading, Row, rows
from reticent.errors import DataError

Format = Literal["fields", "chat", "alpaca", "documents"]

ROLES = {
    "system": "System",
    "user": "User",
    "human": "User",
    "tool": "Tool",
    "function": "Tool",
    "assistant": "Assistant",
    "gpt": "Assistant",
    "model": "Assistant",
    "chatbot": "Assistant",
    "bot": "Assistant",
}


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which field of the source is what: ``text`` alone, or ``completion`` with or without ``prompt``.

    ``owner`` names whose record it is, ``id`` the record, ``silo`` the institution that holds it.
    """

    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    owner: str | None = None
    id: str | None = None
    silo: str | None = None


class _Pair(NamedTuple):
    prompt: str
    completion: str


def read_file(
    path: Path,
    fields: Fields,
    *,
    format: Format = "fields",
    split: str | None = None,
    limit: int | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008  # never changed
) -> Iterator[Record]:
    """The first ``limit`` records of .jsonl, .json, .csv, .parquet or .txt: a file, archive or folder, in a stream.

    `rows.rows` says what can be read. The formats:

    - ``fields``: as ``fields`` says. A .txt file needs none: one record a line.
    - ``chat``: ``messages`` of ``role`` and ``content``, or ``conversations`` of ``from`` and ``value``. The completion
      is the last turn of the assistant, and what follows it is left out. The prompt is what comes before: one turn of a
      user stands as it is, several get their roles in front.
    - ``alpaca``: ``instruction``, ``input`` (may be empty or missing) and ``output``.
    - ``documents``: each .txt file is one record.

    Without an ``id`` field a record is named "<file>:<line>" (.jsonl, .csv, .txt) or "<file>:<row>"; without an
    ``owner`` field it is its own owner. Two records of one id are refused when the stream ends.

    Raises:
        DataError: At once: there is no such file, or ``fields`` name no text. In the stream: a line is malformed, or a
            record lacks what ``fields`` asks for.
    """
    pair = _pair_of(fields, format, path)
    reading = Reading(bounds=bounds, documents=format == "documents")
    return records(rows(path, reading, split=split), pair, fields, origin=path.name, limit=limit)


def read_hub(
    name: str,
    fields: Fields,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    format: Format = "fields",
    limit: int | None = None,
) -> Iterator[Record]:
    """The first ``limit`` records of a split of the data set ``name`` on the Hugging Face hub, in a stream.

    Raises:
        DataError: The hub or the split cannot be reached, or a record lacks what ``fields`` asks for.
    """
    if format == "documents":
        raise DataError(f"{name}: documents are .txt files; a data set of the hub needs fields, chat or alpaca")
    pair = _pair_of(fields, format, None)
    return records(
        hub_rows(name, config=config, split=split, revision=revision), pair, fields, origin=name, limit=limit
    )


def hub_rows(
    name: str, *, config: str | None, split: str, revision: str | None = None, folder: str | None = None
) -> Iterator[Row]:
    """The rows of a split on the hub, or in a ``folder`` of it; only what is at hand is held, and nothing on the disk.

    Raises:
        DataError: In the stream: the hub or the split cannot be reached.
    """
    import datasets

    try:
        data = datasets.load_dataset(name, config, split=split, revision=revision, data_dir=folder, streaming=True)
        for number, values in enumerate(data, start=1):
            yield Row(name, number, values)
    except Exception as error:  # the hub, the network and each data set's own reader have their own exceptions
        # Not chained: a reader's message may quote the row that it fell over.
        raise DataError(
            f"cannot load split {split!r} of {name!r} from the Hugging Face hub ({type(error).__name__}). Check the "
            f"id, the split and the network, or download the data set and give its file as path ({', '.join(ENDINGS)})"
        ) from None


def records(
    source: Iterable[Row],
    pair: Callable[[Row], tuple[str, str]],
    fields: Fields,
    *,
    origin: str,
    limit: int | None = None,
) -> Iterator[Record]:
    """Each row as a record, with its owner, id and silo as ``fields`` says and its texts as ``pair`` says."""
    ids = None if fields.id is None else DistinctIds(fields.id)
    empty = True
    for row in islice(source, limit):
        empty = False
        prompt, completion = pair(row)
        name = row.where if fields.id is None else name_of(row, fields.id)
        if ids is not None:
            ids.add(name, row)
        yield Record(
            id=name,
            owner=name if fields.owner is None else name_of(row, fields.owner),
            prompt=prompt,
            completion=completion,
            origin=origin,
            silo=None if fields.silo is None else name_of(row, fields.silo),
        )
    if empty and limit != 0:
        raise DataError(f"{origin}: an empty data set: there is no record in it")
    if ids is not None:
        ids.require_distinct()


class DistinctIds:
    """Finds an id that comes twice, in 20 bytes a record: a digest and a place, compared when all have come."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._digests, self._numbers, self._files = array("Q"), array("Q"), array("L")
        self._names: dict[str, int] = {}

    def add(self, name: str, row: Row) -> None:
        """Notes the id of a row."""
        self._digests.append(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))
        self._numbers.append(row.number)
        self._files.append(self._names.setdefault(row.file, len(self._names)))

    def require_distinct(self) -> None:
        """Refuses two rows of one id.

        Raises:
            DataError: There are two.
        """
        digests = np.frombuffer(self._digests, np.uint64)
        order = np.argsort(digests, kind="stable")
        twice = np.flatnonzero(digests[order][1:] == digests[order][:-1])
        if len(twice):
            first, second = min((int(order[i + 1]), int(order[i])) for i in twice)[::-1]
            raise DataError(
                f"{self._where(second)}: field {self._field!r} repeats the id of {self._where(first)}; ids must differ"
            )

    def _where(self, index: int) -> str:
        return f"{list(self._names)[self._files[index]]}:{self._numbers[index]}"


# What of a row is learned.


def _pair_of(fields: Fields, format: Format, path: Path | None) -> Callable[[Row], _Pair]:
    origin = "data.source" if path is None else path.name
    if format not in get_args(Format):
        raise DataError(f"{origin}: unknown format {format!r}; it is one of {', '.join(get_args(Format))}")
    if format == "documents" or (path is not None and path.name.lower().removesuffix(".gz").endswith(".txt")):
        if format in ("chat", "alpaca"):
            raise DataError(f"{origin}: a .txt file has no fields to read as {format}; leave the format out")
        return lambda row: _Pair("", _filled(row, "text"))
    if format != "fields":
        if fields.text or fields.prompt or fields.completion:
            raise DataError(
                f"{origin}: the format {format} knows its own fields; leave out prompt, completion and text"
            )
        return _chat if format == "chat" else _alpaca
    if (fields.text is None) == (fields.completion is None):
        raise DataError(f"{origin}: name the field that holds the text: either completion (prompt optional) or text")
    if fields.text is not None and fields.prompt is not None:
        raise DataError(f"{origin}: prompt goes with completion, not with text; rename text to completion")
    prompt, completion = fields.prompt, fields.text or fields.completion or ""
    return lambda row: _Pair("" if prompt is None else text_of(row, prompt), _filled(row, completion))


def _alpaca(row: Row) -> _Pair:
    context = row.values.get("input") or ""
    instruction = text_of(row, "instruction")
    if context:
        instruction += "\n" + text_of(row, "input")
    return _Pair(instruction, _filled(row, "output"))


def _chat(row: Row) -> _Pair:
    field = next((name for name in ("messages", "conversations") if name in row.values), "messages")
    turns = value_of(row, field)
    if not isinstance(turns, list):
        raise DataError(f"{row.where}: field {field!r} must be a list of turns, got {type(turns).__name__}")
    said = [_turn(row, turn, f"{field}[{index}]") for index, turn in enumerate(turns)]
    last = max((index for index, (role, _) in enumerate(said) if role == "Assistant"), default=None)
    if last is None:
        raise DataError(f"{row.where}: field {field!r} has no turn of the assistant to learn; remove the row")
    if not said[last][1].strip():
        raise DataError(f"{row.where}: a record with no text in field '{field}[{last}]'; remove it")
    before = said[:last]
    if len(before) == 1 and before[0][0] == "User":
        return _Pair(before[0][1], said[last][1])
    return _Pair("\n\n".join(f"{role}: {text}" for role, text in before), said[last][1])


def _turn(row: Row, turn: object, field: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{row.where}: field {field!r} must be an object, got {type(turn).__name__}")
    for who, what in (("role", "content"), ("from", "value")):
        if who in turn and what in turn:
            role = turn[who]
            if not isinstance(role, str) or role.lower() not in ROLES:
                raise DataError(f"{row.where}: the role of {field!r} is none of {', '.join(ROLES)}; rename it")
            return ROLES[role.lower()], _as_text(turn[what], f"{field}.{what}", row.where)
    raise DataError(f"{row.where}: field {field!r} needs role and content, or from and value")


# Fields of a row.


def value_of(row: Row, field: str) -> Any:
    """What stands in ``field``."""
    if field not in row.values:
        # The fields that there are stay unnamed: in a csv without a header they would be somebody's text.
        raise DataError(f"{row.where}: there is no field {field!r}; check the field names under data.source")
    return row.values[field]


def text_of(row: Row, field: str) -> str:
    """The text in ``field``, as it is."""
    return _as_text(value_of(row, field), field, row.where)


def name_of(row: Row, field: str) -> str:
    """An owner or an id: text without its outer spaces, or a whole number; so " 7", 7 and 7.0 are one."""
    value = value_of(row, field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise DataError(f"{row.where}: field {field!r} must be text or a whole number, got {kind}")
    value = _as_text(value, field, row.where).strip()
    if not value:
        raise DataError(f"{row.where}: field {field!r} is empty; every record needs one")
    return value


def _filled(row: Row, field: str) -> str:
    text = text_of(row, field)
    if not text.strip():
        raise DataError(f"{row.where}: a record with no text in field {field!r}; remove it")
    return text


def _as_text(value: object, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair; no tokenizer takes it
        raise DataError(f"{where}: field {field!r} is not valid Unicode text") from None
    return value
