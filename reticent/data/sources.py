"""Records from a file or from the Hugging Face hub, through a map of field names.

The first bad line ends the reading: a private data set with silent gaps cannot be accounted for. Messages name the
file, the line (or row) and the field, never what stands in it.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from reticent.data.record import Record
from reticent.errors import DataError

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")

Row = tuple[int, Mapping[str, Any]]  # its line in the file, or its row, from 1


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which field of the source is what: ``text`` alone, or ``completion`` with or without ``prompt``."""

    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    owner: str | None = None
    id: str | None = None


def read_file(path: Path, fields: Fields, *, limit: int | None = None) -> list[Record]:
    """Reads the first ``limit`` records of a .jsonl, .json, .csv, .parquet or .txt file, as its ending says.

    A .txt file has one record a line and needs no fields. Blank lines are skipped. Without an ``id`` field a record is
    named "<file>:<line>" (.jsonl, .csv, .txt) or "<file>:<row>"; without an ``owner`` field it is its own owner.

    Raises:
        DataError: The file cannot be read, a line is malformed, or a record lacks what ``fields`` asks for.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(
            f"{path}: cannot read a file that ends in {ending!r}; convert it to one of {', '.join(ENDINGS)}"
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path (it is relative to the recipe)")
    if ending == ".txt":
        rows = _text_rows(path)
        fields = Fields(text="text")
    elif ending == ".jsonl":
        rows = _jsonl_rows(path)
    elif ending == ".json":
        rows = _json_rows(path)
    elif ending == ".csv":
        rows = _csv_rows(path)
    else:
        rows = _parquet_rows(path)
    return _records(rows, fields, origin=path.name, limit=limit)


def read_hub(name: str, fields: Fields, *, split: str = "train", limit: int | None = None) -> list[Record]:
    """Reads the first ``limit`` records of a split of the data set ``name`` on the Hugging Face hub.

    Raises:
        DataError: The hub or the split cannot be reached, or a record lacks what ``fields`` asks for.
    """
    import datasets

    try:
        data = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub, the network and each data set's own reader have their own exceptions
        # Not chained: a reader's message may quote the row that it fell over.
        raise DataError(
            f"cannot load split {split!r} of {name!r} from the Hugging Face hub ({type(error).__name__}). Check the "
            f"id, the split and the network, or download the data set and give its file as path ({', '.join(ENDINGS)})"
        ) from None
    return _records(enumerate(data, start=1), fields, origin=name, limit=limit)


def _decoded(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name}:{line}: not UTF-8; save the file as UTF-8") from None


def _text_rows(path: Path) -> Iterator[Row]:
    # Not splitlines: it also breaks at U+2028 and its like, which are text here.
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if line.strip():
            yield number, {"text": line.removesuffix("\r")}


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:  # not chained: the exception carries the line
            raise DataError(f"{path.name}:{number}: malformed line: not JSON; mend or remove it") from None
        if not isinstance(row, dict):
            raise DataError(f"{path.name}:{number}: malformed line: not a JSON object {{...}}; mend or remove it")
        yield number, row


def _json_rows(path: Path) -> Iterator[Row]:
    text = _decoded(path)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name}:{error.lineno}: not JSON: {error.msg}") from None
    except ValueError:
        raise DataError(f"{path.name}: not JSON") from None
    if isinstance(data, dict) and data and all(isinstance(column, list) for column in data.values()):
        lengths = {name: len(column) for name, column in data.items()}
        if len(set(lengths.values())) > 1:
            shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
            raise DataError(
                f"{path.name}: an object of lists needs lists of one length, but field {shortest!r} has "
                f"{lengths[shortest]} and field {longest!r} has {lengths[longest]}"
            )
        data = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    if not isinstance(data, list):
        raise DataError(f"{path.name}: must hold a list of objects, or one object of lists")
    for number, row in enumerate(data, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path.name}: row {number} is not an object {{...}}; mend or remove it")
        yield number, row


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_decoded(path), newline=""), strict=True)
    try:
        for row in reader:
            line = reader.reader.line_num  # the last line of a row that spans several
            if None in row or None in row.values():  # so DictReader marks cells too many and cells too few
                raise DataError(
                    f"{path.name}:{line}: malformed line: not as many cells as the header; mend or remove it"
                )
            yield line, row
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.reader.line_num}: malformed line: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError):
        raise DataError(f"{path.name}: not a parquet file, or a damaged one") from None
    yield from enumerate((row for batch in table.to_batches() for row in batch.to_pylist()), start=1)


def _records(rows: Iterable[Row], fields: Fields, *, origin: str, limit: int | None) -> list[Record]:
    if (fields.text is None) == (fields.completion is None):
        raise DataError(f"{origin}: name the field that holds the text: either completion (prompt optional) or text")
    if fields.text is not None and fields.prompt is not None:
        raise DataError(f"{origin}: prompt goes with completion, not with text; rename text to completion")
    records: list[Record] = []
    seen: dict[str, str] = {}  # id -> where
    for number, row in islice(rows, limit):
        where = f"{origin}:{number}"
        completion = _text(row, fields.text or fields.completion or "", where)
        if not completion.strip():
            raise DataError(f"{where}: a record with no text in field {fields.text or fields.completion!r}; remove it")
        name = where if fields.id is None else _name(row, fields.id, where)
        if name in seen:
            raise DataError(f"{where}: field {fields.id!r} repeats the id of {seen[name]}; ids must differ")
        seen[name] = where
        records.append(
            Record(
                id=name,
                owner=name if fields.owner is None else _name(row, fields.owner, where),
                prompt="" if fields.prompt is None else _text(row, fields.prompt, where),
                completion=completion,
                origin=origin,
            )
        )
    if not records:
        raise DataError(f"{origin}: an empty data set: there is no record in it")
    return records


def _value(row: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in row:
        # The fields that there are stay unnamed: in a csv without a header they would be somebody's text.
        raise DataError(f"{where}: there is no field {field!r}; check the field names under data.source")
    return row[field]


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = _value(row, field, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair; no tokenizer takes it
        raise DataError(f"{where}: field {field!r} is not valid Unicode text") from None
    return value


def _name(row: Mapping[str, Any], field: str, where: str) -> str:
    """An owner or an id: text without its outer spaces, or a whole number; so " 7", 7 and 7.0 are one."""
    value = _value(row, field, where)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} must be text or a whole number, got {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{where}: field {field!r} is empty; every record needs one")
    return value.strip()
