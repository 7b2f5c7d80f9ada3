"""Mechanisms: how the clipped sum of a step gets its noise.

What is not covered: floating-point attacks on the noise's last bits (Mironov 2012).
"""

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from reticent.privacy.clipping import Clipping
from reticent.privacy.entropy import SystemWords, Words, add_normals, normals
from reticent.privacy.plan import BandedPlan, DPFedAvgPlan, DPSGDPlan, PrivatePlan
from reticent.privacy.toeplitz import optimised

Sums = dict[str, torch.Tensor]


class Mechanism(Protocol):
    """Makes the releases of a plan. A step calls `add_noise`, writes ``entry`` into the ledger, then calls `follow`.

    ``clip_norm``: of the step that comes.
    """

    clip_norm: float

    @property
    def clipping(self) -> Clipping:
        """What must bound the units of the step that comes."""
        ...

    @property
    def entry(self) -> dict[str, float]:
        """What the ledger says about the step's release."""
        ...

    def add_noise(self, sums: Mapping[str, torch.Tensor]) -> float:
        """Noise on float32 sums of units bounded by ``clipping``, in place; its standard deviation per coordinate."""
        ...

    def follow(self, *, below: float, drawn: float) -> None:
        """Releases how many of the ``drawn`` units had a norm of at most the clip norm, if the plan follows them."""
        ...


def mechanism_for(plan: PrivatePlan, clip_norm: float | None = None, source: Words | None = None) -> Mechanism:
    """The mechanism of ``plan``, with noise of the operating system; it goes on from ``clip_norm`` if one is given.

    ``source`` is for the self-check alone, which compares steps under the same noise and releases nothing.
    """
    words = SystemWords() if source is None else source
    if isinstance(plan, BandedPlan):
        return Banded(plan, words)
    if isinstance(plan, DPFedAvgPlan) and plan.noise == "distributed":
        return Distributed(plan, words, clip_norm)
    return Gaussian(plan, words, clip_norm)


def add_noise(sums: Mapping[str, torch.Tensor], std: float, source: Words) -> None:
    """Adds independent N(0, std^2) to every coordinate of every tensor, float32, in place.

    With unit gradients of norm at most C and std = z C this is the Gaussian mechanism of noise multiplier z (Dwork and
    Roth 2014, appendix A; Abadi et al. 2016, algorithm 1).
    """
    for name, value in sums.items():
        assert value.dtype == torch.float32, (name, value.dtype)
        if value.device.type == "cpu" and value.is_contiguous():
            add_normals(value.detach().view(-1).numpy(), std, source)
        else:
            noise = torch.from_numpy(normals(source, value.numel())).view(value.shape)
            value.add_(noise.to(value.device), alpha=std)


class Gaussian:
    """Independent noise at every step; the clip norm follows a quantile of the norms if the plan says so."""

    def __init__(self, plan: DPSGDPlan, source: Words, clip_norm: float | None = None) -> None:
        self._plan, self._source = plan, source
        self.clip_norm = plan.clip_norm if clip_norm is None else clip_norm

    @property
    def clipping(self) -> Clipping:
        """What must bound the units of the step that comes."""
        return Clipping(self.clip_norm, self._plan.clip_style)

    @property
    def entry(self) -> dict[str, float]:
        """What the ledger says about the step's release: of the sum and the count, if both are released."""
        entry = {**self._plan.release._asdict(), "clip_norm": self.clip_norm}
        if self._plan.quantile is None:
            return entry
        return {**entry, "sum_noise_multiplier": self._plan.sum_noise, "count_noise": self._plan.quantile.noise}

    def add_noise(self, sums: Mapping[str, torch.Tensor]) -> float:
        """Noise of ``plan.sum_noise`` times the clip norm, in place; its standard deviation."""
        std = self._plan.sum_noise * self.clip_norm
        add_noise(sums, std, self._source)
        return std

    def follow(self, *, below: float, drawn: float) -> None:
        """Moves the clip norm by a noisy count. A unit that is not finite is drawn and not below."""
        quantile = self._plan.quantile
        if quantile is None:
            return
        count = np.array([below - drawn / 2], dtype=np.float32)
        add_normals(count, quantile.noise, self._source)
        self.clip_norm = quantile.next_norm(self.clip_norm, float(count[0]), self._plan.batch_size)


class Distributed(Gaussian):
    """Noise that the sites have added already, in shares, before the server got the sum: none is added here.

    To its ``entry`` must be added how many sites answered.
    """

    def add_noise(self, sums: Mapping[str, torch.Tensor]) -> float:
        """Nothing is added; the standard deviation of what ``threshold`` shares, the fewest, have added."""
        return self._plan.sum_noise * self.clip_norm

    def follow(self, *, below: float, drawn: float) -> None:
        """Moves the clip norm by ``below - drawn / 2``, which has the sites' noise already."""
        if self._plan.quantile is not None:
            self.clip_norm = self._plan.quantile.next_norm(self.clip_norm, below - drawn / 2, self._plan.batch_size)


class Banded:
    """Noise C^-1 z: at step t, y_t = (z_t - sum of c_j y_(t-j) for 0 < j < bands) / c_0, with fresh z_t.

    The last ``bands - 1`` of y are kept in memory only: whoever has them can take noise out of past releases. So a
    resumed run begins the factorisation anew. C is then block-diagonal. Its columns are cut short at the end of a
    block, so their norm is still at most 1, they still have at most ``bands`` bands, and the order of the groups goes
    on by the number of the step: the promise is the same.
    """

    def __init__(self, plan: BandedPlan, source: Words) -> None:
        self._plan, self._source = plan, source
        self.clip_norm = plan.clip_norm
        self._coefficients = optimised(plan.bands, plan.steps)
        self._past: deque[Sums] = deque()  # newest first
        self._spread: list[float] = []  # first column of C^-1: y_t is the sum of spread[j] z_(t-j)

    @property
    def clipping(self) -> Clipping:
        """What must bound the units of the step that comes."""
        return self._plan.clipping

    @property
    def entry(self) -> dict[str, float]:
        """What the ledger says about the step's release."""
        return {**self._plan.release._asdict(), "clip_norm": self.clip_norm}

    def add_noise(self, sums: Mapping[str, torch.Tensor]) -> float:
        """Noise correlated with that of earlier steps, in place; its standard deviation."""
        scale = self._plan.noise_multiplier * self.clip_norm
        for name, noise in self._next({name: value.shape for name, value in sums.items()}, scale).items():
            sums[name].add_(noise.to(sums[name].device))
        return scale * float(np.linalg.norm(self._spread))

    def follow(self, *, below: float, drawn: float) -> None:
        """Nothing: the clip norm is fixed."""

    def _next(self, shapes: Mapping[str, torch.Size], scale: float) -> Sums:
        """y_t. The oldest y is overwritten by it, since no later one needs that."""
        c = self._coefficients
        full = 0 < len(c) - 1 == len(self._past)
        if full:
            noise = self._past.pop()
            for value in noise.values():
                value.mul_(-c[-1] / c[0])
        else:
            noise = {name: torch.zeros(shape) for name, shape in shapes.items()}
        for coefficient, past in zip(c[1:], self._past, strict=False):
            for name, value in noise.items():
                value.add_(past[name], alpha=-coefficient / c[0])
        add_noise(noise, scale / c[0], self._source)
        if len(c) > 1:
            self._past.appendleft(noise)
        known = sum(a * b for a, b in zip(c[1:], reversed(self._spread), strict=False))
        self._spread.append((1.0 - known if not self._spread else -known) / c[0])
        return noise
