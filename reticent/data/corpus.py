"""All records of a run in an unnamed temporary file, beside the few numbers a record that grouping and splitting need.

The file has no name and goes with the process, so a run that dies leaves no private text behind. In memory are some
forty bytes a record.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reticent.data import store
from reticent.data.near import Sketches
from reticent.data.record import Record
from reticent.tokens import Tokens

if TYPE_CHECKING:
    import pyarrow as pa


def digest(text: str) -> int:
    """64 bits of a text. Two texts that share them are taken for one: in a million, once in forty million tries."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(text: str) -> float:
    """A number in [0, 1) that is fixed by a text: a draw that nothing else can move."""
    return digest(text) / 2.0**64


class Corpus:
    """Records in the order in which they were added. ``near_duplicates``: see `near.Sketches`; None: none
    are looked for."""

    def __init__(self, *, near_duplicates: float | None, folder: Path | None = None) -> None:
        self._records = _Spool(store.record_schema(), folder)
        self._tokens = _Spool(store.token_schema(), folder)
        self.sketches = None if near_duplicates is None else Sketches(near_duplicates, folder)
        self._owner, self._text = array("Q"), array("Q")
        self._size, self._origin, self._silo = array("q"), array("i"), array("i")
        self._pieces = array("i")  # token rows of each record
        self.origins: list[str] = []
        self.silos: list[str] = []

    def __len__(self) -> int:
        return len(self._owner)

    @property
    def owner(self) -> np.ndarray:
        """Of each record the digest of its owner, uint64."""
        return np.frombuffer(self._owner, dtype=np.uint64)

    @property
    def text(self) -> np.ndarray:
        """Of each record the digest of its text, up to case and spaces, uint64."""
        return np.frombuffer(self._text, dtype=np.uint64)

    @property
    def size(self) -> np.ndarray:
        """Of each record the bytes of its text."""
        return np.frombuffer(self._size, dtype=np.int64)

    @property
    def origin(self) -> np.ndarray:
        """Of each record the place of its origin in ``origins``."""
        return np.frombuffer(self._origin, dtype=np.int32)

    @property
    def silo(self) -> np.ndarray:
        """Of each record the place of its institution in ``silos``; -1: none is named."""
        return np.frombuffer(self._silo, dtype=np.int32)

    @property
    def pieces(self) -> np.ndarray:
        """Of each record the number of its rows of tokens, int32."""
        return np.frombuffer(self._pieces, dtype=np.int32)

    def add(self, records: Sequence[Record], originals: Sequence[Record] | None = None) -> None:
        """More records. They are compared by the texts of ``originals``, if given, which are not kept."""
        words = [f"{one.prompt}\n{one.completion}".casefold().split() for one in originals or records]
        self._owner.extend(digest(record.owner) for record in records)
        self._text.extend(digest(" ".join(one)) for one in words)
        self._size.extend(len(f"{record.prompt}{record.completion}".encode()) for record in records)
        self._origin.extend(_code(self.origins, record.origin) for record in records)
        self._silo.extend(-1 if record.silo is None else _code(self.silos, record.silo) for record in records)
        if self.sketches is not None:
            self.sketches.add(words)
        self._records.append(store.to_table(records))

    def add_tokens(self, tokens: Sequence[Tokens], pieces: Sequence[int]) -> None:
        """The tokens of the records that were added last but have none yet; ``pieces``: of each how many."""
        self._pieces.extend(pieces)
        self._tokens.append(store.tokens_to_table(tokens))

    def tables(self) -> Iterator[tuple[int, "pa.Table"]]:
        """Records a batch at a time, with the number of the first."""
        start = 0
        for table in self._records.tables():
            yield start, table
            start += table.num_rows

    def token_tables(self) -> Iterator[tuple[np.ndarray, "pa.Table"]]:
        """Tokens a batch at a time, with the number of each row's record."""
        record = np.repeat(np.arange(len(self._pieces)), self.pieces)
        start = 0
        for table in self._tokens.tables():
            yield record[start : start + table.num_rows], table
            start += table.num_rows

    def take(self, items: np.ndarray, column: str) -> list[str]:
        """One column of some records."""
        found = np.empty(len(items), dtype=object)
        for rows, batch, inside in self._records.at(items):
            found[rows] = batch[column].take(inside).to_pylist()
        return list(found)


class _Spool:
    """Arrow batches in a file without a name."""

    def __init__(self, schema: "pa.Schema", folder: Path | None) -> None:
        import pyarrow as pa

        self._file = store.unnamed_file(self, folder)
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), schema)
        self._mapped: tuple[store.Mapped, list[pa.RecordBatch], np.ndarray] | None = None

    def append(self, table: "pa.Table") -> None:
        self._mapped = None
        for batch in table.combine_chunks().to_batches():
            self._writer.write_batch(batch)

    def tables(self) -> Iterator["pa.Table"]:
        import pyarrow as pa

        self._file.seek(0)  # Read, not mapped: what was read does not stay in memory.
        for batch in pa.ipc.open_stream(pa.PythonFile(self._file, "r")):
            yield pa.Table.from_batches([batch])

    def at(self, items: np.ndarray) -> Iterator[tuple[np.ndarray, "pa.RecordBatch", np.ndarray]]:
        """Where some rows are: which of ``items`` are in a batch, the batch, and their places in it."""
        import pyarrow as pa

        if self._mapped is None:
            mapped = store.Mapped(self._file)
            batches = list(pa.ipc.open_stream(pa.py_buffer(mapped.view)))
            self._mapped = mapped, batches, np.cumsum([0, *(batch.num_rows for batch in batches)])
        mapped, batches, starts = self._mapped
        number = np.searchsorted(starts, items, side="right") - 1
        for one in np.unique(number):
            rows = np.flatnonzero(number == one)
            yield rows, batches[one], items[rows] - starts[one]
        mapped.forget()


def _code(names: list[str], name: str) -> int:
    """The place of a name in ``names``, at its end if it is new. There are few names."""
    try:
        return names.index(name)
    except ValueError:
        names.append(name)
        return len(names) - 1
