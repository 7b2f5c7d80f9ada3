"""Which model it is: digests of the files that a base model is loaded from."""

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from reticent.errors import ModelError
from reticent.models import bundled

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")


class Digests(NamedTuple):
    """SHA-256 in hexadecimal of all weights and of the tokenizer."""

    weights: str
    tokenizer: str


@cache  # reading the weights takes as long as loading them
def digests(base: str) -> Digests:
    """Of the bundled model, a local folder, or a hub id that has been loaded before.

    Raises:
        ModelError: no weights of it lie on this machine.
    """
    folder = _folder(base)
    weights = sorted(next(filter(None, (list(folder.glob(pattern)) for pattern in _WEIGHTS)), []))
    if not weights:
        raise ModelError(
            f"{base} has no weights in {folder} (*.safetensors or *.bin). Set model.base to a whole model."
        )
    return Digests(_of(weights), _of([folder / name for name in _TOKENIZER if (folder / name).is_file()]))


def _folder(base: str) -> Path:
    if base == bundled.NAME:
        return bundled.smollm2()
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, local_files_only=True))
    except Exception as error:  # of many types for one fact
        raise ModelError(
            f"model {base} is not on this machine ({type(error).__name__}). Load it once while the hub can be reached."
        ) from None


def _of(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
