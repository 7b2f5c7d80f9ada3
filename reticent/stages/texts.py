"""A file of generated texts that grows text by text, is resumed, and comes out in order."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reticent.errors import RunError
from reticent.run import Run

Format = Literal["jsonl", "text"]
_OTHER = "take it away, or name another file"


class Place(NamedTuple):
    """The ``copy``-th text of the prompt with this ``number``, both from 0."""

    number: int
    copy: int


class Texts:
    """The texts of one file. Make it with `open`."""

    def __init__(self, handle: int, path: Path, lines: dict[Place, bytes]) -> None:
        self._handle, self._path, self._lines = handle, path, lines

    @classmethod
    @contextmanager
    def open(cls, run: Run, path: Path, asked: dict[str, Any], form: Format) -> Iterator["Texts"]:
        """The file at ``path``, new or with what was written before; when the block ends well, in order.

        Texts are appended as lines of JSON, each whole, or cut off the next time. Of "text" these lines are in
        ``PATH.jsonl``, and ``path`` is written when the block ends well. ``PATH.asked.json`` holds ``asked``, all that
        the texts follow from.

        Raises:
            RunError: There is a file that was not made like this, another process writes it, or it cannot be written.
        """
        work = path if form == "jsonl" else path.with_name(f"{path.name}.jsonl")
        beside = path.with_name(f"{path.name}.asked.json")
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _require_same(path, work, beside, asked)  # before anything is made
            handle = os.open(work, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            with _told(path):
                _lock(handle, path)
                _require_same(path, work, beside, asked)  # and once nobody else can change it
                run.write_text(beside, json.dumps(asked, indent=1) + "\n")
                texts = cls(handle, work, _read(handle, work))
            yield texts
            with _told(path):
                texts._finish(run, path)
        finally:
            os.close(handle)

    def __contains__(self, place: Place) -> bool:
        """Whether the text is there."""
        return place in self._lines

    def append(self, place: Place, values: dict[str, Any]) -> None:
        """One more text, with its ``id`` "...:NUMBER FROM 1" and ``copy``; it is in the file when this returns.

        Raises:
            RunError: The disk is full.
        """
        line = json.dumps(values, ensure_ascii=False).encode() + b"\n"
        left = memoryview(line)
        with _told(self._path):
            while left:
                left = left[os.write(self._handle, left) :]
        self._lines[place] = line

    def _finish(self, run: Run, path: Path) -> None:
        places = sorted(self._lines)
        if places != list(self._lines):
            run.write_text(self._path, b"".join(self._lines[place] for place in places).decode())
        if path != self._path:
            texts = (json.loads(self._lines[place])["text"] for place in places)
            run.write_text(path, "".join(f"Generated:\n{text}\n" for text in texts))


def _require_same(path: Path, work: Path, beside: Path, asked: dict[str, Any]) -> None:
    if path.is_dir():
        raise RunError(f"{path} is a folder; name a file")
    if not beside.exists():
        if any(one.exists() and one.stat().st_size for one in (path, work)):
            raise RunError(f"{path} is there already and was not begun by this command; {_OTHER}")
        return
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError
    except ValueError:
        raise RunError(f"{beside} is damaged, so nobody knows what {path} holds; {_OTHER}") from None
    changed = [key for key in asked | before if asked.get(key) != before.get(key)]
    if changed and any(one.exists() and one.stat().st_size for one in (path, work)):
        raise RunError(f"{path} was begun with {_differences(before, asked, changed)}; {_OTHER}")


def _differences(before: dict[str, Any], asked: dict[str, Any], keys: list[str]) -> str:
    named = {"prompts": "other prompts", "weights": "another training of the model"}
    told = [named.get(key) or f"{key} {before.get(key)!r}, not {asked.get(key)!r}" for key in keys[:3]]
    return " and ".join(told) + (f" and {len(keys) - 3} more differences" if len(keys) > 3 else "")


def _lock(handle: int, path: Path) -> None:
    """Keep other processes out until the handle is closed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"another process writes {path}; wait for it, or name another file") from None


def _read(handle: int, work: Path) -> dict[Place, bytes]:
    """The whole lines; a torn last one is cut off the file."""
    content = work.read_bytes()
    whole = content.rfind(b"\n") + 1
    os.ftruncate(handle, whole)
    lines: dict[Place, bytes] = {}
    for number, line in enumerate(content[:whole].splitlines(keepends=True), 1):
        try:
            values = json.loads(line)
            place = Place(int(values["id"].rpartition(":")[2]) - 1, int(values["copy"]))
            lines[place] = line
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(f"{work}:{number}: is no line of a text; {_OTHER}") from None
    return lines


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(f"cannot write {path}: {reason}; make room or name another file") from None
