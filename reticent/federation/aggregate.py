"""The weighted mean of updates, one at a time, and what an update must be before it may count."""

import math
from collections.abc import Mapping, Sequence

import torch

from reticent.errors import FederationError

Update = dict[str, torch.Tensor]


def check(update: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuses an update that is not float32, of these names and shapes, and finite.

    Raises:
        FederationError: names the first tensor that is not as it must be.
    """
    if update.keys() != shapes.keys():
        odd = sorted(update.keys() ^ shapes.keys())[0]
        how = "is not one of those that are trained" if odd in update else "is missing"
        raise FederationError(f"tensor {odd} of the update {how}. Train every site with the same recipe.")
    for name, value in update.items():
        if value.dtype != torch.float32 or tuple(value.shape) != tuple(shapes[name]):
            raise FederationError(
                f"tensor {name} of the update must be float32 of shape {tuple(shapes[name])}, got {value.dtype} of "
                f"shape {tuple(value.shape)}. Train every site with the same recipe."
            )
        # The extremes are NaN if any value is, and one pass is all that they take.
        if value.numel() and not all(math.isfinite(float(extreme)) for extreme in torch.aminmax(value)):
            raise FederationError(f"tensor {name} of the update is not finite. Lower train.learning_rate at the site.")


class WeightedMean:
    """sum of w_k x_k / sum of w_k over updates that come one by one; memory of one update, whatever their number.

    The sum is float32, for speed: a coordinate's error is at most K 2^-24 mean|x_k| for K updates (Higham 2002, section
    4.2), and about sqrt(K) 2^-24 of it in practice. The updates, differences of float32 weights, carry 2^-24 |w|
    themselves. The last bit depends on the order of `add`: add in one order where bits are compared.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: Update = {}

    def add(self, update: Mapping[str, torch.Tensor], weight: float) -> None:
        """Counts one update, float32 on the CPU; it is not kept. A refused one leaves the mean as it was.

        Raises:
            FederationError: ``weight`` is not positive and finite, or names, shapes or dtype differ from the first.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise FederationError(f"an update's weight must be positive and finite, got {weight}. Leave the site out.")
        sums = self._sums or {name: torch.zeros(value.shape) for name, value in update.items()}
        _check_alike(update, sums)
        for name, value in update.items():
            sums[name].add_(value, alpha=weight)
        self._sums = sums
        self.weight += weight

    def result(self) -> Update:
        """The mean, float32.

        Raises:
            FederationError: nothing was added.
        """
        if not self.weight:
            raise FederationError("there is no update to average. Wait for more sites, or lower the quorum.")
        return {name: total / self.weight for name, total in self._sums.items()}


def _check_alike(update: Mapping[str, torch.Tensor], sums: Update) -> None:
    """Without a pass over the values, as `check` makes."""
    if update.keys() != sums.keys():
        raise FederationError(
            f"tensor {sorted(update.keys() ^ sums.keys())[0]} is not in every update. Train every site with the same "
            "recipe."
        )
    for name, value in update.items():
        if value.dtype != torch.float32 or value.shape != sums[name].shape:
            raise FederationError(
                f"tensor {name} must be float32 of shape {tuple(sums[name].shape)} in every update, got {value.dtype} "
                f"of shape {tuple(value.shape)}. Train every site with the same recipe."
            )
