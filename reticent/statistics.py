"""Intervals and tests that hold for any measurement: shares, means over clusters, AUC, paired answers.

Intervals are two-sided at ``level``. Audits of differential privacy are in `reticent.attacks.statistics`.
"""

from collections.abc import Hashable, Sequence
from math import isfinite, log, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

_DRAWS_AT_ONCE = 4_000_000  # numbers held while resampling: 32 MB of float64


class Estimate(NamedTuple):
    """A number and its two-sided interval; ``interval`` is None where the data cannot give one."""

    value: float
    interval: tuple[float, float] | None


def clopper_pearson(k: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share, ``k`` hits in ``n`` independent trials (Clopper and Pearson 1934).

    With k = 0 the upper end is ``1 - (alpha/2)^(1/n)``. ``k`` may be half a hit, for ties.

    Raises:
        ValueError: unless 0 <= k <= n, n > 0 and 0 < level < 1.
    """
    _check_share(k, n, level)
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def wilson(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927): shorter than the exact one, right on average instead of always.

    Raises:
        ValueError: unless 0 <= k <= n, n > 0 and 0 < level < 1.
    """
    _check_share(k, n, level)
    z = _normal_quantile(level)
    share = k / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At k = 0 and k = n the formula ends exactly at 0 and 1, up to rounding.
    return (0.0 if k == 0 else middle - half), (1.0 if k == n else middle + half)


def newcombe_difference(k1: int, n1: int, k2: int, n2: int, *, level: float = 0.95) -> Estimate:
    """Difference of two independent shares, k1/n1 - k2/n2 (Newcombe 1998, method 10).

    Raises:
        ValueError: as `wilson`.
    """
    low1, high1 = wilson(k1, n1, level=level)
    low2, high2 = wilson(k2, n2, level=level)
    share1, share2 = k1 / n1, k2 / n2
    value = share1 - share2
    down = sqrt((share1 - low1) ** 2 + (high2 - share2) ** 2)
    up = sqrt((high1 - share1) ** 2 + (share2 - low2) ** 2)
    return Estimate(value, (value - down, value + up))


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value for paired yes/no answers of two models.

    ``b`` counts the items that only the first got right, ``c`` those that only the second did. Under the null each is
    a fair coin flip; items on which the models agree say nothing.

    Raises:
        ValueError: if a count is negative.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts must be >= 0, got {b} and {c}")
    if b == c:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(b, c), b + c, 0.5)))


def auc(members: np.ndarray, others: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Probability that a member scores above an other one, ties half, with DeLong's interval on the logit scale.

    Where DeLong's variance is zero (perfect separation, all tied) the interval is the exact one of ``min(n, m)``
    disjoint pairs, which are independent trials with this very probability: it never has zero width.

    Args:
        members: (n,) scores, higher = more likely a member.
        others: (m,) scores.
        level: of the interval.

    Raises:
        ValueError: if a group has fewer than two scores or holds NaN.
    """
    members, others = _scores("members", members), _scores("others", others)
    n, m = len(members), len(others)
    # How often each score beats the other group: DeLong et al. 1988 by ranks (Sun and Xu 2014).
    ranks = _mid_ranks(np.concatenate([members, others]))
    beaten_by_member = (ranks[:n] - _mid_ranks(members)) / m
    beaten_by_other = (ranks[n:] - _mid_ranks(others)) / n
    value = float(beaten_by_member.mean())
    variance = float(beaten_by_member.var(ddof=1) / n + beaten_by_other.var(ddof=1) / m)
    if variance < 1e-18 or value in (0.0, 1.0):
        pairs = min(n, m)
        return Estimate(value, clopper_pearson(value * pairs, pairs, level=level))
    centre = log(value / (1 - value))
    half = _normal_quantile(level) * sqrt(variance) / (value * (1 - value))
    return Estimate(value, (float(special.expit(centre - half)), float(special.expit(centre + half))))


def bootstrap_mean(
    values: np.ndarray | Sequence[float],
    *,
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None = None,
    weights: np.ndarray | Sequence[float] | None = None,
    draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Weighted mean, with the BCa bootstrap interval (Efron 1987) over clusters.

    Whole clusters are drawn with replacement, because values of one owner are not independent. Values that are all
    the same give an interval of no width: take `clopper_pearson` for shares. Under two clusters there is no interval.

    Args:
        values: (n,) numbers.
        rng: draws the clusters.
        clusters: (n,) the owner of each value; None: each value is its own cluster.
        weights: (n,) positive; None: all one.
        draws: bootstrap samples.
        level: of the interval.

    Raises:
        ValueError: if there is no value, a value is not finite, a weight is not positive, or lengths differ.
    """
    numbers = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(numbers) if weights is None else np.asarray(weights, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"values must be one or more finite numbers in a row, got shape {numbers.shape}")
    if shares.shape != numbers.shape or not (np.isfinite(shares) & (shares > 0)).all():
        raise ValueError(f"weights must be {len(numbers)} positive numbers, got shape {shares.shape}")
    if clusters is not None and len(clusters) != len(numbers):
        raise ValueError(f"clusters must name the owner of each of {len(numbers)} values, got {len(clusters)}")
    index: dict[Hashable, int] = {}
    owner = np.array([index.setdefault(c, len(index)) for c in (range(len(numbers)) if clusters is None else clusters)])

    # (clusters, 2): weighted sum and weight of each cluster. Any mean is a ratio of their totals.
    sums = np.stack([np.bincount(owner, numbers * shares), np.bincount(owner, shares)], axis=1)
    total = sums.sum(axis=0)
    value = float(total[0] / total[1])
    count = len(sums)
    if count < 2:
        return Estimate(value, None)
    chance = np.full(count, 1 / count)
    block = max(1, _DRAWS_AT_ONCE // count)
    resampled = [rng.multinomial(count, chance, size=min(block, draws - i)) @ sums for i in range(0, draws, block)]
    drawn = np.concatenate(resampled)
    left_out = total - sums
    return Estimate(value, _bca(value, drawn[:, 0] / drawn[:, 1], left_out[:, 0] / left_out[:, 1], level))


def _bca(value: float, drawn: np.ndarray, left_out: np.ndarray, level: float) -> tuple[float, float]:
    """Bias-corrected, accelerated ends. ``drawn``: (draws,) bootstrap; ``left_out``: (clusters,) jackknife values."""
    below = float(np.mean(drawn < value) + np.mean(drawn == value) / 2)
    # Never infinite: as if half a draw fell on the empty side.
    bias = float(special.ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn))))
    spread = left_out.mean() - left_out
    squares = float((spread**2).sum())
    acceleration = 0.0 if squares == 0 else float((spread**3).sum()) / (6 * squares**1.5)
    z = _normal_quantile(level)
    # (2,) the two quantiles of the draws that stand for the ends.
    shifted = bias + np.array([-z, z])
    low, high = np.quantile(drawn, special.ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


def _normal_quantile(level: float) -> float:
    """The z with ``level`` of a standard normal between -z and z."""
    return float(special.ndtri((1 + level) / 2))


def _mid_ranks(values: np.ndarray) -> np.ndarray:
    """(n,) ranks from 1; tied values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _scores(name: str, values: np.ndarray) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) < 2 or np.isnan(scores).any():
        raise ValueError(f"{name} must hold two or more scores without NaN, got shape {scores.shape}")
    return scores


def _check_share(k: float, n: float, level: float) -> None:
    if not (isfinite(n) and n > 0 and 0 <= k <= n):
        raise ValueError(f"a share needs 0 <= k <= n and n > 0, got k = {k}, n = {n}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
