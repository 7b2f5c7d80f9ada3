"""Real numbers as integers modulo 2^64, so that sums of them are exact and can be masked."""

import numpy as np

from reticent.errors import FederationError

_BLOCK = 2**14  # values converted at once: what they need stays in the cache
_MOST = 2.0**62


def encode(values: np.ndarray, grid: float, out: np.ndarray | None = None) -> np.ndarray:
    """(n,) float32 as (n,) uint64: the nearest multiple of ``grid``, negative ones in two's complement.

    ``out``: where they go, instead of a new array.

    Rounding is to the nearest, never random: it moves a coordinate by half a step at most, whatever the value, so it
    moves the norm by at most grid sqrt(n) / 2. Random rounding would keep the mean, which noise of many steps hides
    anyway, and lose that bound (Kairouz, Liu and Steinke 2021, section 4).

    Raises:
        FederationError: a value is not finite, or not below 2^62 steps.
    """
    assert values.ndim == 1 and values.dtype == np.float32, (values.shape, values.dtype)
    encoded = np.empty(len(values), dtype=np.int64) if out is None else out.view(np.int64)
    steps = np.empty(_BLOCK)
    for start in range(0, len(values), _BLOCK):
        found = steps[: len(values) - start]
        found[:] = values[start : start + _BLOCK]
        found /= grid
        if not (found.min() > -_MOST and found.max() < _MOST):
            raise FederationError(
                f"a value to encode must be finite and below {_MOST * grid:.3g}, got one that is not. Clip the update "
                "first, or use a coarser grid."
            )
        np.rint(found, out=found)
        encoded[start : start + _BLOCK] = found
    return encoded.view(np.uint64)


def decode(total: np.ndarray, grid: float) -> np.ndarray:
    """(n,) uint64, a sum of encoded values modulo 2^64, as (n,) float32."""
    assert total.ndim == 1 and total.dtype == np.uint64, (total.shape, total.dtype)
    decoded = np.empty(len(total), dtype=np.float32)
    for start in range(0, len(total), _BLOCK):
        part = total[start : start + _BLOCK].view(np.int64)
        np.multiply(part, grid, out=decoded[start : start + _BLOCK], dtype=np.float64, casting="same_kind")
    return decoded


def check_headroom(*, sites: int, largest: float, grid: float) -> None:
    """That a sum over ``sites`` of values of at most ``largest`` cannot wrap around.

    Raises:
        FederationError: it could.
    """
    steps = sites * (largest / grid + 0.5)
    if not steps < 2.0**63:
        raise FederationError(
            f"a sum over {sites} sites of values up to {largest:.3g} in steps of {grid:.3g} needs {steps:.3g} steps, "
            f"more than 2^63 = {2.0**63:.3g}. Use a coarser grid."
        )
