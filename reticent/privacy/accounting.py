"""Epsilon of a composition of Poisson-subsampled Gaussian releases, by dp-accounting.

The privacy loss distribution (PLD) gives the figure, pessimistically discretised; Rényi DP is an independent upper
bound. PLD above RDP means that one of the two is wrong, and no figure is given.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

from reticent.errors import PrivacyError

RELATION = "add-or-remove-one"
FINE, COARSE = 1e-4, 1e-3  # width of the PLD's grid, in epsilon
_NEIGHBOURS = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


class Release(NamedTuple):
    """One noisy sum: units drawn with ``sampling_prob``, noise of ``noise_multiplier`` times the clip norm."""

    sampling_prob: float
    noise_multiplier: float


class Spent(NamedTuple):
    """Upper bounds on epsilon by two accountants; ``epsilon`` (PLD) is the figure."""

    epsilon: float
    epsilon_rdp: float


def _event(release: Release) -> dp_accounting.DpEvent:
    gaussian = dp_accounting.GaussianDpEvent(release.noise_multiplier)
    return dp_accounting.PoissonSampledDpEvent(release.sampling_prob, gaussian)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of RDP orders that do not converge; dp-accounting leaves those orders out of the minimum."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def spent(releases: Iterable[tuple[Release, int]], delta: float, *, grid: float = FINE) -> Spent:
    """Epsilon of all ``(release, times)`` together, at ``delta``; a coarser PLD ``grid`` is faster and never lower.

    Raises:
        PrivacyError: the two accountants contradict each other, or a bound is not finite.
    """
    pld, rdp = (
        PLDAccountant(_NEIGHBOURS, value_discretization_interval=grid),
        RdpAccountant(neighboring_relation=_NEIGHBOURS),
    )
    with _quiet():
        for release, times in releases:
            for accountant in (pld, rdp) if times else ():
                accountant.compose(_event(release), times)
    result = Spent(float(pld.get_epsilon(delta)), float(rdp.get_epsilon(delta)))
    if not 0 <= result.epsilon <= 1.01 * result.epsilon_rdp + 0.01 < float("inf"):
        raise PrivacyError(
            f"accountants disagree: epsilon is {result.epsilon:.4g} by PLD but at most {result.epsilon_rdp:.4g} by RDP "
            f"(delta {delta:g}). No figure can be trusted; use a larger noise_multiplier or delta."
        )
    return result


def calibrate(*, epsilon: float, delta: float, sampling_prob: float, steps: int) -> float:
    """The smallest noise multiplier, to 0.1 %, whose ``steps`` releases stay within ``epsilon`` at ``delta``.

    Raises:
        PrivacyError: no noise multiplier from 0.1 to 1,000 fits.
    """

    def excess(log_noise: float, grid: float = COARSE) -> float:
        """log(spent / epsilon): falls with the noise, above 0 where too much is spent."""
        accountant = PLDAccountant(_NEIGHBOURS, value_discretization_interval=grid)
        accountant.compose(_event(Release(sampling_prob, math.exp(log_noise))), steps)
        return math.log(max(float(accountant.get_epsilon(delta)), 1e-12) / epsilon)

    lowest, highest = math.log(0.1), math.log(1000)
    low = high = 0.0
    if excess(0.0) > 0:
        while excess(high) > 0:
            if high == highest:
                raise PrivacyError(
                    f"epsilon {epsilon:g} at delta {delta:g} cannot be reached in {steps} steps with sampling "
                    f"probability {sampling_prob:.3g}. Raise epsilon, or lower train.steps or train.batch_size."
                )
            low, high = high, min(high + math.log(2), highest)
    else:
        while excess(low) <= 0:
            if low == lowest:  # below, the accountant's grid explodes and the promise means nothing
                raise PrivacyError(
                    f"epsilon {epsilon:g} needs a noise_multiplier below 0.1, which protects nobody. Lower epsilon, or "
                    "say privacy: {kind: none}."
                )
            low, high = max(low - math.log(1.5), lowest), low
    log_noise = float(brentq(excess, low, high, xtol=5e-4))
    while excess(log_noise, FINE) > 0:
        log_noise += 5e-4
    return math.exp(log_noise)
