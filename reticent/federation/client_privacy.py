"""One site hidden with all its data: bounded updates, noise at the server or in shares of the sites.

With noise at the server a round is a `BoundedSum`. With distributed noise it is an `Encoding` that server and sites
work out alike from the plan, a `contribution` of every site, a secure sum of those, and `read_sum`.

Why that is private. A contribution is an integer vector in an ellipsoid that the plan's clip norm spans, plus
N_Z(0, s^2), s = 2^24, in every coordinate. The steps of the grid are chosen such that t shares, t the plan's threshold,
have the variance that the plan asks for, plus `SMOOTHING` squared:

    t s^2 = (z C / grid)^2 + SMOOTHING^2

- Sums of discrete Gaussians are not discrete Gaussians. The likelihood ratio of t of them to one N_Z(0, t s^2) is
  within exp(tau / 2) a coordinate, tau = 10 sum_{k<t} exp(-2 pi^2 s^2 k/(k+1)) being that of Kairouz, Liu and Steinke
  2021, theorem 1. Here tau is 0 in float64 already.
- One N_Z(0, t s^2) on integers is, up to a factor of exp(5 exp(-2 pi^2 SMOOTHING^2)) a coordinate, what one gets when
  a continuous Gaussian of variance (z C / grid)^2 is added and then rounded at random: post-processing of the Gaussian
  mechanism that the accountant knows (`reticent.privacy.discrete.closeness`). So its PLD holds, composed over rounds.
  Canonne, Kamath and Steinke 2020, theorem 4, is the same statement for concentrated privacy, which would cost more.
- Both factors together, over all coordinates and a million rounds, must be within `SLACK` = 1e-12 or the encoding is
  refused. The ledger adds them: epsilon + 2e-12 at delta exp(-1e-12).

Who must be honest: noise hides a site from those who do not know it. t of the sites that answer must keep their shares
to themselves. If more than t answer, or more are honest, the sum has more noise than is accounted, independent of the
rest: the promise only grows, the divisor stays, and the variance of the noise is answered / t times as large. Below t
answers the sum must not be opened: `Ledger.record` refuses it at the server, and since the server is whom the noise is
against, a site must contribute to no secure sum whose own threshold is below t, however few sites are invited to it.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from reticent.errors import FederationError, PrivacyError
from reticent.federation.fixed_point import check_headroom, decode, encode
from reticent.privacy.discrete import SMOOTHING, add_discrete_gaussians, closeness
from reticent.privacy.entropy import SystemWords, Words
from reticent.privacy.ledger import Ledger
from reticent.privacy.noise import Mechanism
from reticent.privacy.plan import SLACK, DPFedAvgPlan

Update = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]

_BITS = 24  # a share's noise has a standard deviation of 2^24 steps of the grid
_ROUNDS = 10**6
_BLOCK = 2**16
_FLOAT32 = 1 - 2.0**-22  # scaling in float32 rounds twice, by 2^-24 each


class Clipped(NamedTuple):
    """An update of norm at most the clip norm; ``norm``: before; ``below``: whether that was at most the clip norm."""

    update: Update
    norm: float
    below: bool


class Released(NamedTuple):
    """A noisy mean update; ``std``: of the noise in every coordinate of it."""

    mean: Update
    std: float


class Encoding(NamedTuple):
    """What all sites of a round must do alike.

    ``clip_norm``: C. ``radius``: the largest norm of an update in steps of ``grid``. ``vote``: of a site whose norm is
    at most C, in steps of ``vote_grid``; the others give its negative. It is 0 if the plan does not follow a quantile.
    """

    clip_norm: float
    grid: float
    radius: int
    vote: int
    vote_grid: float


class NoisySum(NamedTuple):
    """``votes``: how many sites were below the clip norm less half of those that answered; 0 if they do not vote."""

    sums: Update
    votes: float


def clip_update(update: Mapping[str, torch.Tensor], clip_norm: float) -> Clipped:
    """Scales float32 tensors so that their norm over all of them, in float64, is at most ``clip_norm``.

    An update that is not finite, or 2^100 times too large, becomes zeros and counts as one of infinite norm.
    """
    norm = math.sqrt(sum(float(torch.linalg.vector_norm(v, dtype=torch.float64)) ** 2 for v in update.values()))
    if not norm < clip_norm * 2.0**100:
        return Clipped({name: torch.zeros_like(value) for name, value in update.items()}, math.inf, False)
    if norm <= clip_norm:
        return Clipped(dict(update), norm, True)
    factor = clip_norm / norm * _FLOAT32
    return Clipped({name: value * factor for name, value in update.items()}, norm, False)


def check_update(update: Mapping[str, torch.Tensor], shapes: Shapes, clip_norm: float) -> Clipped:
    """What the server does again with what a site says is clipped.

    Raises:
        FederationError: it is not the update of this model.
    """
    for name in shapes.keys() | update.keys():
        found = update.get(name)
        if found is None or name not in shapes:
            raise FederationError(f"an update must have the tensors of the model, it has {name} wrongly or not at all")
        if tuple(found.shape) != tuple(shapes[name]) or found.dtype != torch.float32:
            raise FederationError(
                f"{name} of an update must be float32 of shape {tuple(shapes[name])}, got {found.dtype} of shape "
                f"{tuple(found.shape)}"
            )
    return clip_update(update, clip_norm)


class BoundedSum:
    """The updates of one round, with noise at the server.

    A site that does not answer adds nothing; it changes neither the noise nor the divisor. A round without any answer
    is released like every other.
    """

    def __init__(self, shapes: Shapes, plan: DPFedAvgPlan, mechanism: Mechanism) -> None:
        assert plan.noise == "server"
        self._shapes, self._plan, self._mechanism = shapes, plan, mechanism
        self._sums = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self.answered, self._below = 0, 0

    def add(self, update: Mapping[str, torch.Tensor], below: bool | None = None) -> Clipped:
        """Adds one site's update, clipped again.

        ``below``: what the site says of its norm before it clipped, for the clip norm to follow; None: it did not clip.

        Raises:
            FederationError: it is not the update of this model; nothing is added.
        """
        clipped = check_update(update, self._shapes, self._mechanism.clip_norm)
        for name, value in clipped.update.items():
            self._sums[name] += value
        self.answered += 1
        self._below += clipped.below if below is None else below
        return clipped

    def release(self, ledger: Ledger, asked: int) -> Released:
        """The mean update with noise, in the ledger before it is returned. Once only."""
        sums, self._sums = self._sums, {}
        std = self._mechanism.add_noise(sums)
        ledger.record({**self._mechanism.entry, "asked": asked, "answered": self.answered})
        self._mechanism.follow(below=self._below, drawn=self.answered)
        return Released(_divided(sums, self._plan), std / self._plan.batch_size)


def encoding_for(plan: DPFedAvgPlan, clip_norm: float, shapes: Shapes) -> Encoding:
    """The encoding of a round of ``plan``, at the clip norm of that round.

    Raises:
        PrivacyError: the noise on the grid is not close enough to what is accounted, the grid is too coarse, or the
            clip norm is no positive number.
        FederationError: a sum over all sites could wrap around.
    """
    assert plan.threshold is not None
    if not 0 < clip_norm < math.inf:
        raise PrivacyError(f"the clip norm of a round must be positive and finite, got {clip_norm:g}")
    noise = math.sqrt(plan.threshold * 4.0**_BITS - SMOOTHING**2)  # of t shares, in steps, as it is accounted
    values = _count(shapes) + 1
    apart = closeness(plan.threshold, 2.0**_BITS) * values * _ROUNDS
    if not apart <= SLACK:
        raise PrivacyError(
            f"the sum of {plan.threshold} noise shares over {values} values differs from Gaussian noise by "
            f"{apart:.3g}, above the {SLACK:g} that is accounted."
        )
    radius = math.floor(noise / plan.sum_noise)
    if not radius > 10 * _rounding(values):
        raise PrivacyError(
            f"a noise multiplier of {plan.sum_noise:.4g} leaves {radius} steps of the grid for an update of {values} "
            f"values, too few to round them. Lower the noise, or train fewer values."
        )
    check_headroom(sites=plan.units, largest=radius + 64 * 2.0**_BITS, grid=1.0)
    if plan.quantile is None:
        return Encoding(clip_norm, clip_norm / radius, radius, 0, 0.0)
    vote = math.floor(0.5 * noise / plan.quantile.noise)
    if vote < 1:
        raise PrivacyError(f"the noise of the count, {plan.quantile.noise:g}, leaves no step of the grid for a vote.")
    return Encoding(clip_norm, clip_norm / radius, radius, vote, 0.5 / vote)


def contribution(update: Mapping[str, torch.Tensor], encoding: Encoding, source: Words | None = None) -> np.ndarray:
    """(values + 1,) uint64: a site's update in steps of the grid, then its vote, with its share of the noise on all.

    The update is clipped a little below C, so that rounding cannot carry it beyond: sqrt(n)/2 steps, and one for float
    arithmetic. The norm of the integers themselves is then checked.

    Raises:
        PrivacyError: their norm is above the bound all the same.
    """
    below = clip_update(update, encoding.clip_norm).below
    room = encoding.radius - _rounding(sum(value.numel() for value in update.values()))
    flat = _flat(clip_update(update, room * encoding.grid).update)
    values = np.append(encode(flat, encoding.grid).view(np.int64), encoding.vote if below else -encoding.vote)
    norm = _norm(values[:-1])
    if not norm <= encoding.radius:
        raise PrivacyError(f"an encoded update has norm {norm:.17g}, above the bound of {encoding.radius} steps")
    add_discrete_gaussians(values, _BITS, source or SystemWords())
    return values.view(np.uint64)


def read_sum(total: np.ndarray, encoding: Encoding, shapes: Shapes) -> NoisySum:
    """The noisy sum of the updates and of the votes, from the secure sum of contributions, (values + 1,) uint64.

    Raises:
        FederationError: the sum has another length.
    """
    if len(total) != _count(shapes) + 1:
        raise FederationError(f"a sum must have {_count(shapes) + 1} values, got {len(total)}")
    flat, sums, start = torch.from_numpy(decode(total[:-1], encoding.grid)), {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        sums[name] = flat[start : start + size].view(shapes[name])
        start += size
    return NoisySum(sums, float(total[-1:].view(np.int64)[0]) * encoding.vote_grid)


def release_shared(found: NoisySum, plan: DPFedAvgPlan, mechanism: Mechanism, answered: int) -> Released:
    """The mean update from a sum with distributed noise; the mechanism follows the votes.

    The release must be in the ledger since before the sum was unmasked.
    """
    assert plan.threshold is not None and answered >= plan.threshold, (plan.threshold, answered)
    std = mechanism.add_noise(found.sums) * math.sqrt(answered / plan.threshold)
    mechanism.follow(below=found.votes, drawn=0)
    return Released(_divided(found.sums, plan), std / plan.batch_size)


def _divided(sums: Update, plan: DPFedAvgPlan) -> Update:
    return {name: value / plan.batch_size for name, value in sums.items()}


def _count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _rounding(values: int) -> float:
    """By how many steps the norm of ``values`` numbers can grow when they are rounded, and one."""
    return math.sqrt(values) / 2 + 1


def _flat(update: Update) -> np.ndarray:
    """All values in the order of the names, (n,) float32."""
    parts = [update[name].reshape(-1).numpy() for name in sorted(update)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def _norm(values: np.ndarray) -> float:
    """Of (n,) int64. The squares of a block are added in float64, whose error is far below the step of room."""
    squares = []
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK].astype(np.float64)
        squares.append(float(part @ part))
    return math.sqrt(math.fsum(squares))
