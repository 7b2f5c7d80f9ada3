"""Weights, optimiser and position together, written whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reticent.errors import RunError


class State(NamedTuple):
    """What a resumed run needs. The ledger is not in here: it is on disk already, and may be ahead.

    ``clip_norm``: of the next step, None without clipping. Past noise is never stored.
    """

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    seconds: float
    clip_norm: float | None


def save(folder: Path, state: State) -> None:
    """Replaces the checkpoint in ``folder``.

    Raises:
        RunError: it cannot be written; the previous one is still there.
    """
    write(folder, state._asdict())


def load(folder: Path) -> State | None:
    """The checkpoint in ``folder``, or None."""
    values = read(folder)
    return None if values is None else State(**values)


def write(folder: Path, values: dict[str, Any]) -> None:
    """Replaces what is in ``folder`` by ``values``: tensors, numbers, text, and lists and dicts of them.

    Raises:
        RunError: it cannot be written; what was there before still is.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        with open(new / "state.pt", "wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a crash after the last rename
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        reason = getattr(error, "strerror", None) or "the file could not be written (is the disk full?)"
        raise RunError(
            f"cannot write the checkpoint {folder}: {reason}. Free some space; the same command resumes."
        ) from None


def read(folder: Path) -> dict[str, Any] | None:
    """What `write` put into ``folder``, or None. A crash between two renames leaves the previous one beside it."""
    old = folder.with_name(folder.name + ".old")
    for place in (folder, old):
        if (place / "state.pt").is_file():
            values: dict[str, Any] = torch.load(place / "state.pt", map_location="cpu", weights_only=True)
            return values
    return None
