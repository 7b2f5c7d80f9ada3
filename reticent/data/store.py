"""Records and tokens on disk, as plain `datasets` folders that are written and read a batch at a time."""

import hashlib
import json
import mmap
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from reticent.data.record import Record
from reticent.tokens import Tokens

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1000
CHARACTERS = 2**22

T = TypeVar("T")


def record_schema() -> "pa.Schema":
    """A record's fields, one column each."""
    import pyarrow as pa

    text = pa.string()
    names = ("id", "owner", "prompt", "completion", "origin")
    return pa.schema(
        [(name, text) for name in names] + [("options", pa.list_(text)), ("answer", pa.int32()), ("silo", text)]
    )


def token_schema() -> "pa.Schema":
    """``ids`` of one record or piece, of which the first ``untrained`` are not learned."""
    import pyarrow as pa

    return pa.schema([("ids", pa.list_(pa.int32())), ("untrained", pa.int32())])


def kept(part: str) -> "pa.Schema":
    """What a run keeps of records, or of tokens."""
    import pyarrow as pa

    schema = token_schema() if part == "tokens" else record_schema()
    return schema.append(pa.field("unit", pa.string())).append(pa.field("client", pa.int32()))


def to_table(records: Sequence[Record]) -> "pa.Table":
    """The inverse of `to_records`."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        name: [getattr(record, name) for record in records] for name in record_schema().names
    }
    return pa.table(columns, schema=record_schema())


def to_records(table: "pa.Table") -> list[Record]:
    """The inverse of `to_table`; other columns are left out."""
    rows = table.select(record_schema().names).to_pylist()
    return [Record(**{**row, "options": tuple(row["options"])}) for row in rows]


def tokens_to_table(tokens: Sequence[Tokens]) -> "pa.Table":
    """The inverse of `to_tokens`. What is learned is the end of every record."""
    import pyarrow as pa

    untrained = [int(one.trained.argmax()) for one in tokens]
    assert all(one.trained[first:].all() for one, first in zip(tokens, untrained, strict=True))
    ends = np.cumsum([0, *map(len, tokens)])
    flat = np.concatenate([np.empty(0, np.int32), *(one.ids for one in tokens)]).astype(np.int32)
    ids = pa.ListArray.from_arrays(ends.astype(np.int32), flat)
    return pa.table({"ids": ids, "untrained": untrained}, schema=token_schema())


def to_tokens(table: "pa.Table") -> list[Tokens]:
    """The inverse of `tokens_to_table`; other columns are left out."""
    found = []
    for batch in table.select(["ids", "untrained"]).to_batches():
        flat = batch["ids"].flatten().to_numpy().astype(np.int64)
        ends = np.cumsum(batch["ids"].value_lengths().to_numpy())
        for ids, untrained in zip(np.split(flat, ends[:-1]), batch["untrained"].to_pylist(), strict=True):
            found.append(Tokens(ids, np.arange(len(ids)) >= untrained))
    return found


def batches(items: Iterable[T], size: Any = lambda item: 0) -> Iterator[list[T]]:
    """Lists of at most `ROWS` items, and of little more than `CHARACTERS` by ``size``."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if len(batch) == ROWS or total >= CHARACTERS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def characters(record: Record) -> int:
    """What a record takes, for `batches`."""
    return len(record.prompt) + len(record.completion)


def unnamed_file(user: object, folder: Path | None) -> IO[bytes]:
    """A file that nobody else can open and that goes with ``user``, or with the process."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # Closed with its user.
    weakref.finalize(user, file.close)
    return file


class Mapped:
    """A file read in places: only what is looked at comes into memory, until `forget`."""

    def __init__(self, file: IO[bytes]) -> None:
        file.flush()
        self.view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def forget(self) -> None:
        """Gives back the memory; the file stays."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.view.madvise(mmap.MADV_DONTNEED)


class Folder:
    """Writes a folder that `datasets.load_from_disk` reads.

    ``rows`` of them were written, with ``size`` tokens; ``sha256`` is that of all rows, once it is closed.
    """

    def __init__(self, folder: Path, schema: "pa.Schema") -> None:
        import datasets
        import pyarrow as pa

        features = datasets.Features.from_arrow_schema(schema)
        self._schema = features.arrow_schema
        self._folder = folder
        self._info = datasets.DatasetInfo(features=features)
        self._sink = pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self._schema)
        self._hash = hashlib.sha256()
        self.rows = 0
        self.size = 0
        self.sha256 = ""

    def append(self, table: "pa.Table") -> None:
        """Write the columns of the schema, which ``table`` has among others."""
        whole = table.select(self._schema.names).cast(self._schema)
        for batch in whole.combine_chunks().to_batches():
            self._writer.write_batch(batch)
            self._hash.update(f"{batch.num_rows}".encode())
            for column in batch.columns:
                self._hash.update(_content(column))
            if "ids" in whole.column_names:
                self.size += len(batch["ids"].flatten())
        self.rows += table.num_rows

    def close(self) -> None:
        """Write what else belongs to a data set, and the digest of all rows."""
        self.sha256 = self._hash.hexdigest()
        self._writer.close()
        self._sink.close()
        self._info.write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
            "_fingerprint": self.sha256[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
            "rows": self.rows,
        }
        (self._folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _content(column: "pa.Array") -> bytes:
    """Values and lengths, whatever buffers hold them."""
    import pyarrow as pa

    if pa.types.is_list(column.type):
        return bytes(column.value_lengths().to_numpy(zero_copy_only=False)) + _content(column.flatten())
    if pa.types.is_string(column.type):
        lengths = pa.compute.binary_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
        return bytes(lengths) + "".join(column.drop_null().to_pylist()).encode()
    return bytes(column.fill_null(-1).to_numpy(zero_copy_only=False))


def read_tables(folder: Path) -> Iterator["pa.Table"]:
    """The rows of a `Folder`, a batch at a time.

    Raises:
        ValueError: Rows are missing at the end, which Arrow itself does not notice.
    """
    import pyarrow as pa

    left = json.loads((folder / "state.json").read_text(encoding="utf-8"))["rows"]
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "rb") as source:
        for batch in pa.ipc.open_stream(source):
            left -= batch.num_rows
            yield pa.Table.from_batches([batch])
    if left:
        raise ValueError(f"{left} rows are missing")
