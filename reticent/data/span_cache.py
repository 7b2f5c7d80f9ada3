"""What a recogniser found, by the content it looked at, so that a second run need not look again.

Kept are positions, entities and scores under a keyed hash of the text, and no text. Short texts can still be guessed
from their hash, and positions tell where names stand, so the file is as private as the data; it stays in the run's
folder.
"""

import hashlib
import hmac
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from reticent.data.spans import Span
from reticent.errors import DataError

FILE = "spans.sqlite"
PATIENCE = 60  # seconds to wait for another run that writes


class SpanCache:
    """Spans by text, in a file of ``folder``, as one ``scheme`` finds them (recognisers, their versions, entities).

    Every write is a transaction, so a run that is killed leaves what it had written. Close it after use.
    """

    def __init__(self, folder: Path, scheme: Sequence[str]) -> None:
        self._path = folder / FILE
        self._key = hashlib.sha256(json.dumps(["spans 1", *scheme]).encode()).digest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            self._file = sqlite3.connect(self._path, timeout=PATIENCE)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{self._path}: cannot be opened ({error}); name a folder that can be written to") from None
        try:
            self._file.execute("CREATE TABLE IF NOT EXISTS spans (text BLOB PRIMARY KEY, spans TEXT, digest BLOB)")
        except sqlite3.Error as error:
            self._file.close()
            raise self._damaged(error) from None

    def __enter__(self) -> "SpanCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, texts: Sequence[str]) -> dict[str, list[Span]]:
        """What is known, by text.

        Raises:
            DataError: The file is damaged.
        """
        found = {}
        for text in texts:
            key = self._hash(text)
            try:
                row = self._file.execute("SELECT spans, digest FROM spans WHERE text = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                raise self._damaged(error) from None
            if row is None:
                continue
            if not isinstance(row[0], str) or row[1] != self._digest(key, row[0]):
                raise self._damaged("a row was changed")
            found[text] = [Span(*values) for values in json.loads(row[0])]
        return found

    def put(self, found: Mapping[str, Sequence[Span]]) -> None:
        """Remembers spans, all or none.

        Raises:
            DataError: The file is damaged or cannot be written.
        """
        rows = []
        for text, spans in found.items():
            key, written = self._hash(text), json.dumps(spans)
            rows.append((key, written, self._digest(key, written)))
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO spans VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise self._damaged(error) from None

    def _hash(self, text: str) -> bytes:
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")

    def _digest(self, key: bytes, written: str) -> bytes:
        """Against damage that leaves the file readable: a shifted span would let a name through."""
        return hmac.digest(key, self._key + written.encode(), "sha256")

    def _damaged(self, why: object) -> DataError:
        return DataError(
            f"{self._path}: cannot be used ({why}). If it is damaged delete it; the texts are then looked at again"
        )
