"""Exposure of planted secrets (Carlini et al., arXiv:1802.08232): how high a secret stands among all it could be.

What is covered: exact enumeration of the space of fills. What is not: sampled ranks and extrapolation beyond them.
"""

from collections.abc import Sequence
from math import log, log2
from typing import NamedTuple

import numpy as np
from scipy import special

from reticent.statistics import bootstrap_mean

NULL_MEAN = 1 / log(2)  # bits: the mean exposure in a model that never saw the secret, 1.44


class Exposure(NamedTuple):
    """``bits`` = log2(space) - log2(rank), from 0 to log2(space). ``rank`` counts from 1, the likeliest fill."""

    bits: float
    rank: int
    space: int


class MeanExposure(NamedTuple):
    """Mean over secrets, in bits.

    ``interval`` is None for a single secret. ``p_value`` is against a model that never saw the secrets; ``floor`` is
    the mean in such a model, ``ceiling`` the most that this space can show.
    """

    value: float
    interval: tuple[float, float] | None
    p_value: float
    floor: float
    ceiling: float
    n: int


def exposure(secret: float, alternatives: np.ndarray) -> Exposure:
    """Rank a secret's fill among every fill of its space. Ties count against the secret.

    Args:
        secret: total log-probability of the secret's fill tokens, given the template: one of ``alternatives``.
        alternatives: (space,) the same for every fill, the secret's own once among them.

    Raises:
        ValueError: if a value is not finite, or the secret is not among the alternatives.
    """
    scores = np.asarray(alternatives, dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(f"alternatives must be finite log-probabilities in a row, got shape {scores.shape}")
    if not (scores == secret).any():
        # The same fill scored in another batch may differ in the last bit, and so may its rank.
        raise ValueError("the secret's score must be one of the alternatives: take it from that array")
    rank = int((scores >= secret).sum())
    return Exposure(log2(len(scores)) - log2(rank), rank, len(scores))


def mean_exposure(bits: Sequence[float] | np.ndarray, space: int, *, rng: np.random.Generator) -> MeanExposure:
    """Mean exposure of independent secrets, bootstrap interval over secrets (BCa) and p-value against no leak.

    In a model that never saw a secret its rank is uniform, so P(bits >= x) <= 2^-x: no more than an exponential
    variable of mean 1/ln 2. The sum of n of these is Gamma(n, 1/ln 2), whose tail is the p-value. It is conservative:
    the space is finite, and ties count against the secret.

    Args:
        bits: (n,) one exposure per secret, all from spaces of the same size.
        space: number of fills.
        rng: for the bootstrap.

    Raises:
        ValueError: if there is no secret, or a value is outside 0..log2(space).
    """
    values = np.asarray(bits, dtype=np.float64)
    ceiling = log2(space)
    if len(values) == 0 or not ((values >= 0) & (values <= ceiling + 1e-9)).all():
        raise ValueError(f"exposures must be one or more numbers from 0 to log2({space}) = {ceiling:.2f}")
    value, interval = bootstrap_mean(values, rng=rng)
    p_value = float(special.gammaincc(len(values), values.sum() * log(2)))
    return MeanExposure(value, interval, p_value, NULL_MEAN, ceiling, len(values))
