"""What all sites of a federation must agree on before any of them trains."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reticent.recipe import Recipe

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "transformers", "peft")
_OWN = {
    "data": ("source", "patients", "questions", "held_out", "calibration", "benchmarks", "canaries", "silos", "seed"),
    "train": ("micro_batch_tokens", "checkpoint_every", "gradient_checkpointing"),
}
"""Settings that each site has for itself."""

_MOST = 10  # terms that are told

Terms = dict[str, str]


def shared(recipe: Recipe) -> dict[str, Any]:
    """The settings that sites share, as plain values: all but where the text is and how it is measured."""
    values = recipe.model_dump(mode="json", exclude={"audit", "evaluate"})
    for section, keys in _OWN.items():
        for key in keys:
            values[section].pop(key)
    if values["data"]["scrub"] is not None:
        for key in ("map_key", "processes", "plants"):
            values["data"]["scrub"].pop(key)
    values["model"]["base"] = None  # a folder has another name elsewhere; its digest counts
    return values


def terms(recipe: Recipe, initial: "Mapping[str, torch.Tensor]") -> Terms:
    """Digests and versions by what they are of. ``initial``: the weights that training begins with.

    Raises:
        ModelError: the base model is not on this machine.
    """
    from reticent.models.digest import digests

    base = digests(recipe.model.base)
    canonical = json.dumps(shared(recipe), sort_keys=True, separators=(",", ":"))
    found = {
        "recipe": hashlib.sha256(canonical.encode()).hexdigest(),
        "base model": base.weights,
        "tokenizer": base.tokenizer,
        "initial weights": digest(initial),
        "reticent": importlib.metadata.version("reticent"),
    }
    # A third number is a repair; the first two change what is computed.
    return found | {name: ".".join(importlib.metadata.version(name).split(".")[:2]) for name in _PACKAGES}


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """In which terms two parties differ, told with the values of versions and the beginnings of digests.

    What the other party sent is cut short, and without what a terminal would obey.
    """
    keys = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    told = [
        f"{_short(key, 40)} ({_short(theirs.get(key))} there, {_short(ours.get(key))} here)" for key in keys[:_MOST]
    ]
    return told + [f"{len(keys) - _MOST} more"] * (len(keys) > _MOST)


def digest(arrays: "Mapping[str, torch.Tensor]") -> str:
    """SHA-256 in hexadecimal of named arrays, whatever their order."""
    import torch

    whole = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name].detach().cpu().contiguous()
        whole.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
        whole.update(value.view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _short(value: Any, most: int = 12) -> str:
    return "".join(letter for letter in str(value)[:most] if letter.isprintable())
