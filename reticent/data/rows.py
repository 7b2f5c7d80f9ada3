"""Rows from files, compressed files, archives and folders, as streams of constant memory.

A row is where it stands ("notes.jsonl:17") and its fields. Whatever is malformed ends the reading: a private data set
with silent gaps cannot be accounted for. Messages name the file, the line and the field, never what stands there.
"""

import codecs
import csv
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from reticent.errors import DataError

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
KEY = "@key"  # the field that holds the name of a row of an object of objects

CHUNK = 1 << 18
FAIR = 16 << 20  # unpacked bytes before the ratio counts: a small file of spaces is no attack
PARQUET_BATCH = 256  # rows

# What a data set's folder or archive holds beside its rows.
ASIDE = re.compile(r"(?i)(\..*|__macosx|readme.*|licen[cs]e.*|.*\.md|\.gitattributes|dataset_infos?\.json|checksums.*)")
MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class Row(NamedTuple):
    """The fields of one row, its ``file`` and its ``number`` there: the line, or the row where there are no lines."""

    file: str
    number: int
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        """What a message calls it."""
        return f"{self.file}:{self.number}"


class Bounds(NamedTuple):
    """The most bytes that are read before a file is refused.

    ``line``: a line, a row of a csv or an object of a json file. ``whole``: what must be held at once, an object of
    lists or a parquet file in an archive. ``unpacked``: a compressed file or an archive, unpacked; at most
    ``ratio`` times its size on the disk besides.
    """

    line: int = 64 << 20
    whole: int = 1 << 30
    unpacked: int = 64 << 30
    ratio: int = 200


class Reading(NamedTuple):
    """How files are read: ``columns`` names those of a csv without a header; ``documents``: a .txt file is one row."""

    bounds: Bounds = Bounds()
    columns: Sequence[str] | None = None
    documents: bool = False


def rows(path: Path, reading: Reading = Reading(), *, split: str | None = None) -> Iterator[Row]:  # noqa: B008  # never changed
    """The rows of a file, of an archive (in its order) or of a folder (in the order of the names), in a stream.

    Files: .jsonl, .json (a list of objects, an object of lists, or an object of objects, whose names become the field
    ``@key``), .csv, .parquet and .txt (a line a row, in the field ``text``; blank ones skipped), also with .gz behind;
    .zip, .tar, .tar.gz and .tgz of them, neither encrypted nor nested; a folder of any of these, or one that `datasets`
    saved. ``split`` keeps the files of a folder that are called after it, or that split of a saved data set.

    Raises:
        DataError: At once: there is no such file or no way to read it. In the stream: a line is malformed, not UTF-8
            or beyond ``reading.bounds``; an archive is damaged, or has members that it should not have.
    """
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved_rows(path, split)
        return _folder_rows(path, reading, split)
    _require_readable(path.name, str(path))
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path (it is relative to the recipe)")
    return _path_rows(path, path.name, reading)


def _require_readable(name: str, shown: str) -> None:
    lower = name.lower()
    if lower.endswith(ARCHIVES) or lower.removesuffix(".gz").endswith(ENDINGS):
        return
    raise DataError(
        f"{shown}: cannot read a file that ends in {PurePosixPath(name).suffix!r}; convert it to one of "
        f"{', '.join(ENDINGS)} (or an archive of them: {', '.join(ARCHIVES)})"
    )


def _path_rows(path: Path, name: str, reading: Reading) -> Iterator[Row]:
    lower = path.name.lower()
    # What the libraries raise may quote the file, so nothing is chained.
    try:
        if lower.endswith(".zip"):
            yield from _zip_rows(path, name, reading)
        elif lower.endswith(ARCHIVES):
            yield from _tar_rows(path, name, reading)
        elif lower.endswith(".parquet"):
            yield from _parquet_rows(path, name)
        else:
            with path.open("rb") as file:
                if lower.endswith(".gz"):
                    yield from _stream_rows(_unpacked(file, path, name, reading.bounds), lower, name, reading)
                else:
                    yield from _stream_rows(file, lower, name, reading)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError):
        raise DataError(f"{name}: a damaged or cut-off archive; fetch or make it again") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({type(error).__name__}); check the file") from None


def _stream_rows(stream: IO[bytes], lower: str, name: str, reading: Reading) -> Iterator[Row]:
    lower = lower.removesuffix(".gz")
    if lower.endswith(".jsonl"):
        return _jsonl_rows(stream, name, reading.bounds)
    if lower.endswith(".json"):
        return _json_rows(stream, name, reading.bounds)
    if lower.endswith(".csv"):
        return _csv_rows(stream, name, reading)
    if lower.endswith(".parquet"):
        return _parquet_rows(io.BytesIO(_whole(stream, name, reading.bounds.whole)), name)
    return (
        _document_row(stream, name, reading.bounds) if reading.documents else _text_rows(stream, name, reading.bounds)
    )


# Folders and archives.


def _folder_rows(folder: Path, reading: Reading, split: str | None) -> Iterator[Row]:
    found = False
    for parent, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not ASIDE.fullmatch(name))
        for file in sorted(files):
            path = Path(parent, file)
            inside = path.relative_to(folder).as_posix()
            if ASIDE.fullmatch(file) or not _of_split(inside, split):
                continue
            found = True
            _require_readable(file, str(path))
            yield from _path_rows(path, f"{folder.name}/{inside}", reading)
    if not found:
        which = "" if split is None else f" of the split {split!r} (train.jsonl, train-00000.parquet, train/...)"
        raise DataError(f"{folder}: there is no file{which} in this folder; check the path")


def has_split(folder: Path, split: str) -> bool:
    """Whether a folder has files of a split, or was saved with it."""
    if (folder / "dataset_dict.json").is_file():
        return (folder / split).is_dir()
    files = (
        Path(parent, file).relative_to(folder).as_posix() for parent, _, names in os.walk(folder) for file in names
    )
    return any(_of_split(file, split) for file in files)


def _of_split(inside: str, split: str | None) -> bool:
    return split is None or any(re.fullmatch(rf"{re.escape(split)}([-_.].*)?", part) for part in inside.split("/"))


def _saved_rows(folder: Path, split: str | None) -> Iterator[Row]:
    """Of a folder that `datasets` saved: mapped, not loaded."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception:  # a damaged folder fails in many ways, and may be quoted
        raise DataError(f"{folder}: cannot be read as a data set that `datasets` saved; save it again") from None
    parts = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"": saved}
    if split is not None and "" not in parts:
        if split not in parts:
            raise DataError(f"{folder}: there is no split {split!r}; it has {', '.join(map(repr, parts))}")
        parts = {split: parts[split]}
    for name, part in parts.items():
        file = f"{folder.name}/{name}" if name else folder.name
        for number, values in enumerate(part, start=1):
            yield Row(file, number, values)


def _zip_rows(path: Path, name: str, reading: Reading) -> Iterator[Row]:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        _require_unpackable(sum(info.file_size for info in members), path.stat().st_size, name, reading.bounds)
        for info in members:
            inside = _safe(info.filename, name)
            if info.flag_bits & 0x1:
                raise DataError(f"{name}: its file {inside!r} is encrypted; unpack it, and give the folder")
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise DataError(f"{name}: its file {inside!r} is a link, which is not followed; pack the file itself")
            if _is_data(inside, name):
                # A member never gives more bytes than its header says, and those were counted.
                with archive.open(info) as stream:
                    yield from _stream_rows(stream, inside.lower(), f"{name}/{inside}", reading)


def _tar_rows(path: Path, name: str, reading: Reading) -> Iterator[Row]:
    with path.open("rb") as file:
        packed = not path.name.lower().endswith(".tar")
        stream = _unpacked(file, path, name, reading.bounds) if packed else file
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                inside = _safe(member.name, name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(
                        f"{name}: its member {inside!r} is a link, a device or sparse; pack plain files only"
                    )
                if _is_data(inside, name):
                    content = archive.extractfile(member)
                    assert content is not None
                    with content:
                        yield from _stream_rows(content, inside.lower(), f"{name}/{inside}", reading)


def _safe(member: str, archive: str) -> str:
    """The member's name, if it stays inside. Nothing is written, but such an archive was made to attack."""
    if member.startswith(("/", "\\")) or "\\" in member or ":" in member or ".." in member.split("/"):
        raise DataError(
            f"{archive}: a member's name leads out of the archive (.., / or \\ in it); make the archive again"
        )
    return member.removeprefix("./")


def _is_data(inside: str, archive: str) -> bool:
    if any(ASIDE.fullmatch(part) for part in inside.split("/")):
        return False
    if inside.lower().endswith((*ARCHIVES, ".gz")):
        raise DataError(f"{archive}: its file {inside!r} is an archive itself; unpack it, and give the folder")
    _require_readable(inside, f"{archive}/{inside}")
    return True


def _require_unpackable(unpacked: int, packed: int, name: str, bounds: Bounds) -> None:
    if unpacked > bounds.unpacked:
        raise DataError(
            f"{name}: unpacks to more than {_size(bounds.unpacked)}, the most that is read from an archive; "
            "unpack it, and give the folder"
        )
    if unpacked > FAIR and unpacked > bounds.ratio * packed:
        raise DataError(
            f"{name}: unpacks to more than {bounds.ratio} times its size, as an archive made to fill a disk does; "
            "if you trust it, unpack it, and give the folder"
        )


class _Unpacked(io.RawIOBase):
    """A decompressed stream that ends in an error once it has grown beyond its bounds."""

    def __init__(self, source: gzip.GzipFile, check: Callable[[int], None]) -> None:
        self._source, self._check, self._count = source, check, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._source.read(len(buffer))
        self._count += len(piece)
        self._check(self._count)
        buffer[: len(piece)] = piece
        return len(piece)


def _unpacked(file: IO[bytes], path: Path, name: str, bounds: Bounds) -> IO[bytes]:
    packed = path.stat().st_size
    guarded = _Unpacked(gzip.GzipFile(fileobj=file), lambda n: _require_unpackable(n, packed, name, bounds))
    return io.BufferedReader(guarded, CHUNK)


def _whole(stream: IO[bytes], name: str, most: int) -> bytes:
    content = stream.read(most + 1)
    if len(content) > most:
        raise DataError(
            f"{name}: larger than {_size(most)}, the most that is read at once; unpack it, or make it .jsonl"
        )
    return content


def _size(count: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{count / (1 << power):g} {unit}"
    return f"{count} bytes"


# Lines.


def _lines(stream: IO[bytes], name: str, bounds: Bounds) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text with their ends, without a byte order mark, numbered from 1."""
    number = 0
    while raw := stream.readline(bounds.line + 1):
        number += 1
        if len(raw) > bounds.line:
            raise DataError(f"{name}:{number}: a line longer than {_size(bounds.line)}; is it one record a line?")
        if number == 1:
            raw = _unmarked(raw, name)
        if b"\0" in raw:
            raise DataError(f"{name}:{number}: NUL bytes, so it is UTF-16 or not text; save the file as UTF-8")
        try:
            # Not split at anything but \n: U+2028 and its like are text here.
            yield number, raw.decode()
        except UnicodeDecodeError:
            raise DataError(f"{name}:{number}: not UTF-8; save the file as UTF-8") from None


def _unmarked(start: bytes, name: str) -> bytes:
    if encoding := MARKS.get(start[:2]):
        raise DataError(f"{name}: {encoding} text; save the file as UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)


def _text_rows(stream: IO[bytes], name: str, bounds: Bounds) -> Iterator[Row]:
    for number, line in _lines(stream, name, bounds):
        if line.strip():
            yield Row(name, number, {"text": line.removesuffix("\n").removesuffix("\r")})


def _document_row(stream: IO[bytes], name: str, bounds: Bounds) -> Iterator[Row]:
    content = _unmarked(_whole(stream, name, bounds.line), name)
    lines = _lines(io.BytesIO(content), name, bounds)
    yield Row(name, 1, {"text": "".join(line for _, line in lines).replace("\r\n", "\n")})


def _jsonl_rows(stream: IO[bytes], name: str, bounds: Bounds) -> Iterator[Row]:
    for number, line in _lines(stream, name, bounds):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:  # not chained: the exception carries the line
            raise DataError(f"{name}:{number}: malformed line: not JSON; mend or remove it") from None
        except RecursionError:
            raise DataError(f"{name}:{number}: malformed line: nested too deeply; mend or remove it") from None
        if not isinstance(values, dict):
            raise DataError(f"{name}:{number}: malformed line: not a JSON object {{...}}; mend or remove it")
        yield Row(name, number, values)


class _CsvLines:
    """Lines for the csv reader, bounded by row: an open quote would swallow the rest of the file."""

    def __init__(self, stream: IO[bytes], name: str, bounds: Bounds) -> None:
        self._lines, self._name, self._most = _lines(stream, name, bounds), name, bounds.line
        self.held = 0

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.held += len(line)
        if self.held > self._most:
            raise DataError(f"{self._name}:{number}: a row longer than {_size(self._most)}; is a quote left open?")
        return line


def _csv_rows(stream: IO[bytes], name: str, reading: Reading) -> Iterator[Row]:
    # The module's own bound on a cell is 128 KiB, less than a long note; ours stands in _CsvLines.
    csv.field_size_limit(max(csv.field_size_limit(), reading.bounds.line))
    lines = _CsvLines(stream, name, reading.bounds)
    reader = csv.reader(lines, strict=True)
    header = list(reading.columns) if reading.columns else None
    try:
        for cells in reader:
            number = reader.line_num  # the last line of a row that spans several
            lines.held = 0
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):  # unnamed: in a csv without a header it would be somebody's text
                    raise DataError(f"{name}:{number}: the header names a field twice; rename one")
                continue
            if len(cells) != len(header):
                raise DataError(f"{name}:{number}: malformed line: not as many cells as the header; mend or remove it")
            yield Row(name, number, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{name}:{reader.line_num}: malformed line: {error}") from None


def _parquet_rows(source: Path | io.BytesIO, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(name, number, values)
    except (pyarrow.ArrowException, OSError, ValueError):  # ValueError: text that is not UTF-8
        raise DataError(f"{name}: not a parquet file, or a damaged one") from None


# JSON, one object at a time.


class _Json:
    """Reads one value after another from a stream, holding no more than the value at hand."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._value = json.JSONDecoder().raw_decode
        self._text, self._at, self._line = "", 0, 1
        self._fresh, self._ended = True, False

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self, expected: str) -> str:
        """Takes the next character, one of ``expected``."""
        found = self.peek()
        if not found or found not in expected:
            raise self._malformed("it ends too early" if not found else f"expected one of {expected}", self._at)
        self._at += 1
        return found

    def value(self, most: int) -> Any:
        """The next value, of at most ``most`` characters."""
        self.peek()
        while True:
            try:
                value, end = self._value(self._text, self._at)
                if end < len(self._text) or self._ended or self._text[self._at] in '{["':
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                # What is cut off by the end of the buffer may go on in the next chunk.
                cut = error.pos > len(self._text) - 12 or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    raise self._malformed(error.msg, error.pos) from None
            except ValueError:
                raise self._malformed("a number out of bounds", self._at) from None
            except RecursionError:
                raise self._malformed("nested too deeply", self._at) from None
            if len(self._text) - self._at > most:
                raise self._malformed(f"one object is longer than {_size(most)}", self._at)
            self._more()

    def end(self) -> None:
        """Nothing may follow."""
        if self.peek():
            raise self._malformed("more than one value", self._at)

    def _more(self) -> None:
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :]
        self._at = 0
        # As much again as is held: a long value is then scanned a few times only.
        raw = self._stream.read(max(CHUNK, len(self._text)))
        self._ended = not raw
        if self._fresh:
            raw, self._fresh = _unmarked(raw, self._name), False
        if b"\0" in raw:
            raise DataError(f"{self._name}: NUL bytes, so it is UTF-16 or not text; save the file as UTF-8")
        try:
            self._text += self._decode(raw, self._ended)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n") + raw[: max(error.start, 0)].count(b"\n")
            raise DataError(f"{self._name}:{line}: not UTF-8; save the file as UTF-8") from None

    def _malformed(self, what: str, at: int) -> DataError:
        return DataError(f"{self._name}:{self._line + self._text.count(chr(10), 0, at)}: not JSON: {what}")


def _json_rows(stream: IO[bytes], name: str, bounds: Bounds) -> Iterator[Row]:
    reader = _Json(stream, name)
    opening = reader.peek()
    if not opening:
        return
    if opening not in "[{":
        raise _not_rows(name)
    reader.take(opening)
    if opening == "[":
        yield from _listed(reader, name, bounds)
    else:
        yield from _named(reader, name, bounds)
    reader.end()


def _not_rows(name: str) -> DataError:
    return DataError(f"{name}: must hold a list of objects, or one object of lists (or of objects)")


def _listed(reader: _Json, name: str, bounds: Bounds) -> Iterator[Row]:
    number, sign = 0, ","
    if reader.peek() == "]":
        sign = reader.take("]")
    while sign == ",":
        number += 1
        values = reader.value(bounds.line)
        if not isinstance(values, dict):
            raise DataError(f"{name}: row {number} is not an object {{...}}; mend or remove it")
        sign = reader.take(",]")
        yield Row(name, number, values)


def _named(reader: _Json, name: str, bounds: Bounds) -> Iterator[Row]:
    """Of an object of objects, in a stream; or of an object of lists, which has to be read whole."""
    columns: dict[str, list[Any]] = {}
    number, sign = 0, ","
    if reader.peek() == "}":
        sign = reader.take("}")
    while sign == ",":
        number += 1
        if reader.peek() != '"':
            reader.take('"')
        key = reader.value(bounds.line)
        reader.take(":")
        kind = reader.peek()
        if not kind or kind not in "[{" or (number > 1 and (kind == "[") != bool(columns)):
            raise _not_rows(name)
        value = reader.value(bounds.whole if kind == "[" else bounds.line)
        sign = reader.take(",}")
        if kind == "[":
            columns[key] = value
        else:
            yield Row(name, number, {KEY: key, **value})
    if columns:
        yield from _columns(columns, name)


def _columns(columns: Mapping[str, list[Any]], name: str) -> Iterator[Row]:
    lengths = {field: len(column) for field, column in columns.items()}
    shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    if lengths[shortest] < lengths[longest]:
        raise DataError(
            f"{name}: an object of lists needs lists of one length, but field {shortest!r} has "
            f"{lengths[shortest]} and field {longest!r} has {lengths[longest]}"
        )
    for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
        yield Row(name, number, dict(zip(columns, cells, strict=True)))
