"""Exposure of planted secrets (Carlini et al., arXiv:1802.08232): how high a secret stands among all it could be.

What is covered: exact enumeration of the space of fills; ranks among a sample of fills that were never trained on, with
exact p-values; extrapolation beyond the sample, where a fitted law is not rejected.
"""

from collections.abc import Mapping, Sequence
from math import log, log2, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from reticent.statistics import bootstrap_mean, holm, permutation_p

_CELLS = 2_000_000  # numbers held while permuting: 16 MB of float64
_KS_CRITICAL = 0.895  # Stephens 1974, at 5 %
NULL_MEAN = 1 / log(2)  # bits: the mean exposure in a model that never saw the secret, 1.44


class Exposure(NamedTuple):
    """``bits`` = log2(space) - log2(rank), from 0 to log2(space). ``rank`` counts from 1, the likeliest fill."""

    bits: float
    rank: int
    space: int


class SampledExposure(NamedTuple):
    """``bits`` = log2(references + 1) - log2(rank), at most log2(references + 1). ``p_value`` is exact: 2^-bits."""

    bits: float
    rank: int
    references: int
    p_value: float


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


def sampled_exposure(secret: float, references: np.ndarray) -> SampledExposure:
    """Rank a secret's fill among fills that were drawn like it and never trained on. Ties count against the secret.

    Without a leak the secret and its references are exchangeable, so its rank is uniform: P(bits >= x) <= 2^-x, mean
    `NULL_MEAN`. Secrets that share their references have dependent p-values: `joint_exposure`.

    Args:
        secret: total log-probability of the secret's fill tokens, given the template.
        references: (references,) the same for each reference fill.

    Raises:
        ValueError: if there is no reference, or a value is not finite.
    """
    scores = _finite("references", references)
    rank = 1 + int((scores >= _finite("secrets", [secret])).sum())
    total = len(scores) + 1
    return SampledExposure(log2(total) - log2(rank), rank, len(scores), rank / total)


def joint_exposure(
    secrets: np.ndarray | Sequence[float],
    references: np.ndarray,
    *,
    rng: np.random.Generator,
    draws: int = 10_000,
) -> MeanExposure:
    """Mean exposure of secrets that share their references, with one permutation test for all of them.

    The p-value relabels which of all fills were planted, which keeps the dependence through shared references. It is
    exact without ties, and conservative with them. The interval is over secrets (BCa).

    Args:
        secrets: (n,) total log-probabilities of the planted fills.
        references: (references,) the same for fills that were never trained on.
        rng: for the permutations and the bootstrap.
        draws: permutations.

    Raises:
        ValueError: if there is no secret or no reference, or a value is not finite.
    """
    planted, scores = _finite("secrets", secrets), np.sort(_finite("references", references))
    total = len(scores) + 1
    bits = log2(total) - np.log2(total - np.searchsorted(scores, planted, side="left"))
    null = _mean_bits_without_leak(len(planted), len(scores), draws, rng)
    value, interval = bootstrap_mean(bits, rng=rng)
    # Sums in another order differ by rounding, and a tie must count.
    return MeanExposure(
        value, interval, permutation_p(value - 1e-9, null), float(null.mean()), log2(total), len(planted)
    )


def exposure_by_copies(
    secrets: Mapping[int, np.ndarray], references: np.ndarray, *, rng: np.random.Generator, draws: int = 10_000
) -> dict[int, MeanExposure]:
    """`joint_exposure` of each group of secrets by copies, p-values corrected for the number of groups (Holm 1979).

    Args:
        secrets: by number of copies, (n,) total log-probabilities.
        references: (references,) of fills that were never trained on, shared by all groups.
        rng: for the permutations and the bootstrap.
        draws: permutations.

    Raises:
        ValueError: as `joint_exposure`.
    """
    found = {copies: joint_exposure(group, references, rng=rng, draws=draws) for copies, group in secrets.items()}
    corrected = holm([group.p_value for group in found.values()])
    return {
        copies: group._replace(p_value=float(p)) for (copies, group), p in zip(found.items(), corrected, strict=True)
    }


def extrapolated_exposure(secrets: np.ndarray | Sequence[float], references: np.ndarray) -> np.ndarray | None:
    """(n,) exposures in bits beyond what the sample of references can show, or None where no law fits them.

    A skew-normal is fitted to the references, and the tail above each secret is its chance (Carlini et al., section
    4.3). Label it as extrapolated: it assumes that law far outside the data. It is given only if a Kolmogorov-Smirnov
    test at 5 % does not reject the fit, by the critical value for a normal law with fitted parameters (Stephens 1974):
    the plain test would accept too much on the data that were fitted. At most 1,022 bits, the end of float64.

    Args:
        secrets: (n,) total log-probabilities.
        references: (references,) of fills that were never trained on, 50 or more.

    Raises:
        ValueError: if there are fewer than 50 references, they are all equal, or a value is not finite.
    """
    from scipy import stats  # slow to import

    planted, scores = _finite("secrets", secrets), _finite("references", references)
    if len(scores) < 50 or np.ptp(scores) == 0:
        raise ValueError(f"a law is fitted to 50 or more references that differ, got {len(scores)}")
    centre, spread = scores.mean(), scores.std()
    scores, planted = (scores - centre) / spread, (planted - centre) / spread
    law = stats.skewnorm(*stats.skewnorm.fit(scores))
    root = sqrt(len(scores))
    if stats.kstest(scores, law.cdf).statistic * (root - 0.01 + 0.85 / root) > _KS_CRITICAL:
        return None
    return np.asarray(-np.log2(np.maximum(law.sf(planted), np.finfo(np.float64).tiny)), dtype=np.float64)


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


def _mean_bits_without_leak(secrets: int, references: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws,) mean exposures of ``secrets`` random ones of all fills, ranked among the rest."""
    total = secrets + references
    block = max(1, _CELLS // total)
    means = []
    for start in range(0, draws, block):
        places = rng.random((min(block, draws - start), total)).argpartition(secrets - 1, axis=1)[:, :secrets]
        # Above the i-th highest of the chosen stand its place less i of the rest.
        ranks = 1 + np.sort(places, axis=1) - np.arange(secrets)
        means.append((log2(references + 1) - np.log2(ranks)).mean(axis=1))
    return np.concatenate(means)


def _finite(name: str, values: np.ndarray | Sequence[float]) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError(f"{name} must be one or more finite log-probabilities in a row, got shape {scores.shape}")
    return scores
