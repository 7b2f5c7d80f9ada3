"""What a secure sum is made of: updates as whole numbers where the sites add no noise, and bytes as arrays.

A site's weight is its own number of units in steps of 2^-20: a weight that the coordinator chose could make one site's
update all that the sum shows.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from reticent.federation.fixed_point import check_headroom, decode, encode

GRID = 2.0**-40
_MOST_UNITS = 2**20

Shapes = Mapping[str, tuple[int, ...]]


class Values(NamedTuple):
    """Sums over sites: of update * weight, of weights, and of votes."""

    update: dict[str, torch.Tensor]
    weight: float
    votes: float


def values_of(update: Mapping[str, torch.Tensor], units: int | None, vote: bool) -> np.ndarray:
    """(values + 2,) uint64: the update times its weight, the weight, and whether the site was below the clip norm.

    ``units``: what the site counts by; None: all count alike.

    Raises:
        FederationError: a value is not finite.
    """
    weight = 1.0 if units is None else min(units, _MOST_UNITS) / _MOST_UNITS
    vector = np.empty(sum(value.numel() for value in update.values()) + 2, dtype=np.uint64)
    start = 0
    for name in sorted(update):  # one by one: new memory costs more than the numbers that go there
        part = update[name].reshape(-1).numpy() * np.float32(weight)
        encode(part, GRID, out=vector[start : start + len(part)])
        start += len(part)
    encode(np.array([weight, vote], dtype=np.float32), GRID, out=vector[start:])
    return vector


def read_values(total: np.ndarray, shapes: Shapes) -> Values:
    """The sums of `values_of` several sites."""
    flat, sums, start = torch.from_numpy(decode(total[:-2], GRID)), {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        sums[name] = flat[start : start + size].view(shapes[name])
        start += size
    weight, votes = (float(one) for one in total[-2:].view(np.int64) * GRID)
    return Values(sums, weight, votes)


def length(shapes: Shapes, *, noisy: bool) -> int:
    """Of a site's vector; ``noisy``: as `client_privacy.contribution` makes it."""
    return sum(math.prod(shape) for shape in shapes.values()) + (1 if noisy else 2)


def check_room(sites: int, largest: float) -> None:
    """That sums over ``sites`` of values up to ``largest`` cannot wrap around.

    Raises:
        FederationError: they could.
    """
    check_headroom(sites=sites, largest=largest, grid=GRID)


def context_of(fields: Mapping[str, Any]) -> bytes:
    """What a secure sum is bound to: run, model, round, attempt, and the weights that were sent."""
    return "\n".join(str(fields[key]) for key in ("run", "model", "round", "weights")).encode()


def as_bytes(value: torch.Tensor) -> bytes:
    """What `as_array` was given."""
    return value.numpy().tobytes()


def as_array(value: bytes) -> torch.Tensor:
    """Bytes as they travel."""
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)
