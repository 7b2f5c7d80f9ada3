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
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        with open(new / "state.pt", "wb") as file:
            torch.save(state._asdict(), file)
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


def load(folder: Path) -> State | None:
    """The checkpoint in ``folder``, or None. A crash between two renames leaves the previous one beside it."""
    old = folder.with_name(folder.name + ".old")
    for place in (folder, old):
        if (place / "state.pt").is_file():
            return State(**torch.load(place / "state.pt", map_location="cpu", weights_only=True))
    return None
