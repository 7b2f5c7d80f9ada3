"""Token scores of many records on disk: one pass through a model, then every attack that asks for no other model."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from reticent.errors import RunError
from reticent.models.language_model import LanguageModel, TokenScores
from reticent.progress import SILENT, Progress
from reticent.tokens import Tokens

_FORMAT = 1
_MANIFEST = "manifest.json"
_FIELDS = {"logp": np.dtype("<f4"), "hit": np.dtype("?"), "mean": np.dtype("<f4"), "deviation": np.dtype("<f4")}
_PLAIN = ("logp", "hit")  # without the vocabulary
_OFFSETS, _OFFSETS_TYPE = "offsets", np.dtype("<i8")


class Cache(Sequence[TokenScores]):
    """`TokenScores` of N records with T trained tokens together, in a folder of flat arrays.

    The files are the bytes of the arrays, little-endian: ``offsets`` (N + 1,) int64, where the tokens of each record
    begin, and (T,) each ``logp`` float32, ``hit`` bool and, with the vocabulary, ``mean`` and ``deviation`` float32.
    ``manifest.json`` says of each its type, count and SHA-256. Records are views of the mapped files.
    """

    def __init__(self, offsets: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        self._offsets, self._arrays = offsets, arrays

    @staticmethod
    def write(
        folder: Path,
        model: LanguageModel,
        records: Sequence[Tokens],
        progress: Progress = SILENT,
        vocabulary: bool = True,
    ) -> "Cache":
        """Scores ``records`` with ``model`` into ``folder``, whole or not at all; what stood there is replaced.

        Memory grows with the number of records by 8 bytes each.

        Raises:
            RunError: the folder cannot be written.
            ModelError: the model gives scores that are not finite.
        """
        fields = list(_FIELDS) if vocabulary else list(_PLAIN)
        counts = np.fromiter((int(records[i].trained.sum()) for i in range(len(records))), np.int64, len(records))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(_OFFSETS_TYPE)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                (beside / _OFFSETS).write_bytes(offsets.tobytes())
                _fill(beside, fields, offsets, model, records, progress, vocabulary)
                about = {
                    name: {"dtype": kind.str, "count": count, "sha256": _digest(beside / name)}
                    for name, kind, count in _layout(fields, len(records), int(offsets[-1]))
                }
                text = json.dumps({"format": _FORMAT, "records": len(records), "arrays": about}, indent=1)
                (beside / _MANIFEST).write_text(text, encoding="utf-8")
                _replace(folder, beside)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        except OSError as error:
            raise RunError(f"{folder}: scores cannot be kept ({error.strerror}); make room there") from None
        return Cache.open(folder)

    @staticmethod
    def open(folder: Path) -> "Cache":
        """What `write` left in ``folder``, checked byte by byte.

        Raises:
            RunError: there is none, or it is damaged.
        """
        try:
            found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if found["format"] != _FORMAT:
                raise ValueError(f"it has format {found['format']}, this version reads {_FORMAT}")
            if set(found["arrays"]) not in ({_OFFSETS, *_FIELDS}, {_OFFSETS, *_PLAIN}):
                raise ValueError("it lacks arrays")
            arrays = {name: _open(folder / name, about) for name, about in found["arrays"].items()}
            offsets = arrays.pop(_OFFSETS)
            if len(offsets) != found["records"] + 1 or any(len(one) != offsets[-1] for one in arrays.values()):
                raise ValueError("its arrays do not fit together")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise RunError(
                f"{folder}: its scores cannot be used ({why}). Delete it and score again, with: reticent audit RUN"
            ) from None
        return Cache(offsets, arrays)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> TokenScores: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenScores]: ...
    def __getitem__(self, index: int | slice) -> TokenScores | list[TokenScores]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        begin, end = self._offsets[number], self._offsets[number + 1]
        return TokenScores(**{name: values[begin:end] for name, values in self._arrays.items()})


def _fill(
    folder: Path,
    fields: Sequence[str],
    offsets: np.ndarray,
    model: LanguageModel,
    records: Sequence[Tokens],
    progress: Progress,
    vocabulary: bool,
) -> None:
    """Writes each record's scores where they belong, as they come."""
    files = {name: os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o600) for name in fields}
    try:
        for number, scores in model.scores(records, progress, vocabulary=vocabulary):
            for name, file in files.items():
                values = getattr(scores, name).astype(_FIELDS[name], copy=False)
                assert len(values) == offsets[number + 1] - offsets[number]
                _write_at(file, values.tobytes(), int(offsets[number]) * values.itemsize)
    finally:
        for file in files.values():
            os.close(file)


def _write_at(file: int, data: bytes, place: int) -> None:
    while data:
        done = os.pwrite(file, data, place)
        data, place = data[done:], place + done


def _layout(fields: Sequence[str], records: int, tokens: int) -> list[tuple[str, np.dtype, int]]:
    return [(_OFFSETS, _OFFSETS_TYPE, records + 1), *((name, _FIELDS[name], tokens) for name in fields)]


def _replace(folder: Path, new: Path) -> None:
    """``new`` becomes ``folder``; at no time is a part of either there."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        folder.rename(old / folder.name)
        new.rename(folder)
        shutil.rmtree(old)
    else:
        new.rename(folder)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path, about: dict[str, object]) -> np.ndarray:
    """A mapped array, read only."""
    kind, count = {_OFFSETS: _OFFSETS_TYPE, **_FIELDS}[path.name], about["count"]
    if about["dtype"] != kind.str or not isinstance(count, int):
        raise ValueError(f"{path.name} is not an array of {kind.str}")
    if path.stat().st_size != count * kind.itemsize:
        raise ValueError(f"{path.name} is not as long as it was")
    if _digest(path) != about["sha256"]:
        raise ValueError(f"{path.name} is not what was written")
    if count == 0:
        return np.empty(0, dtype=kind)
    # A plain array: slices of numpy's memmap class take ten times as long.
    return np.asarray(np.memmap(path, dtype=kind, mode="r"))
