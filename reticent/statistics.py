"""Intervals and tests that hold for any measurement: shares, means, AUC, paired answers, trends, many questions.

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
    return low, _upper(k, n, tail)


def share_upper(k: float, n: float, *, level: float = 0.95) -> float:
    """Exact one-sided upper bound of a share: the most that ``k`` hits in ``n`` independent trials still allow.

    With k = 0 it is ``1 - (1 - level)^(1/n)``, about 3 / n at 95 %: the rule of three.

    Raises:
        ValueError: as `clopper_pearson`.
    """
    _check_share(k, n, level)
    return _upper(k, n, 1 - level)


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


def paired(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> float:
    """`mcnemar` of two (items,) rows of yes/no answers to the same items, none skipped.

    Raises:
        ValueError: if there is no item, or lengths differ.
    """
    ours, theirs = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if ours.ndim != 1 or ours.shape != theirs.shape or len(ours) == 0:
        raise ValueError(f"answers are compared on the same items, got {ours.shape} and {theirs.shape}")
    return mcnemar(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()))


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
    ranks = mid_ranks(np.concatenate([members, others]))
    beaten_by_member = (ranks[:n] - mid_ranks(members)) / m
    beaten_by_other = (ranks[n:] - mid_ranks(others)) / n
    value = float(beaten_by_member.mean())
    variance = float(beaten_by_member.var(ddof=1) / n + beaten_by_other.var(ddof=1) / m)
    if variance < 1e-18 or value in (0.0, 1.0):
        pairs = min(n, m)
        return Estimate(value, clopper_pearson(value * pairs, pairs, level=level))
    centre = log(value / (1 - value))
    half = _normal_quantile(level) * sqrt(variance) / (value * (1 - value))
    return Estimate(value, (float(special.expit(centre - half)), float(special.expit(centre + half))))


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """(n,) ranks from 1, the lowest; tied values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


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


def permutation_p(observed: float, permuted: np.ndarray | Sequence[float]) -> float:
    """Exact one-sided p-value: (1 + draws that reach ``observed``) / (1 + draws) (Phipson and Smyth 2010); never 0.

    Args:
        observed: the statistic, higher = further from the null.
        permuted: (draws,) the same statistic under random relabelling.

    Raises:
        ValueError: if there is no draw, or a value is NaN.
    """
    draws = np.asarray(permuted, dtype=np.float64)
    if draws.ndim != 1 or len(draws) == 0 or np.isnan(draws).any() or np.isnan(observed):
        raise ValueError(f"a permutation p-value needs one or more draws without NaN, got shape {draws.shape}")
    return float((1 + (draws >= observed).sum()) / (1 + len(draws)))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n,) p-values corrected for asking n questions, in the order given (Holm 1979). Holds for any dependence.

    Raises:
        ValueError: if a p-value is not from 0 to 1.
    """
    p = _p_values(p_values)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return corrected


def benjamini_hochberg(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n,) p-values corrected so that those under x hold at most a share x of false finds, on average.

    Benjamini and Hochberg 1995: for independent or positively dependent questions. In the order given.

    Raises:
        ValueError: if a p-value is not from 0 to 1.
    """
    p = _p_values(p_values)
    order = np.argsort(p)[::-1]
    corrected = np.empty_like(p)
    corrected[order] = np.minimum.accumulate(np.minimum(1.0, len(p) / np.arange(len(p), 0, -1) * p[order]))
    return corrected


def jonckheere(doses: np.ndarray | Sequence[float], values: np.ndarray | Sequence[float]) -> float:
    """One-sided p-value that ``values`` rise with ``doses`` (Jonckheere 1954, Terpstra 1952), by the normal law.

    The statistic is Kendall's S of the two; its variance corrects ties on both sides (Kendall 1970, chapter 4).

    Args:
        doses: (n,) group of each value, in order of its number.
        values: (n,) numbers.

    Raises:
        ValueError: if lengths differ, there are fewer than 3 values, or a number is not finite.
    """
    x, y = np.asarray(doses, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3 or not np.isfinite(np.concatenate([x, y])).all():
        raise ValueError(f"a trend needs 3 or more finite values and as many doses, got {x.shape} and {y.shape}")
    n = len(x)
    groups = [np.sort(y[x == dose]) for dose in np.unique(x)]
    concordant = 0
    for i, lower in enumerate(groups):
        for higher in groups[i + 1 :]:
            below, above = np.searchsorted(lower, higher, "left"), np.searchsorted(lower, higher, "right")
            concordant += int(below.sum()) - int((len(lower) - above).sum())
    t, u = (np.unique(values, return_counts=True)[1].astype(float) for values in (x, y))
    variance = (n * (n - 1) * (2 * n + 5) - sum(float((c * (c - 1) * (2 * c + 5)).sum()) for c in (t, u))) / 18
    variance += float((t * (t - 1)).sum() * (u * (u - 1)).sum()) / (2 * n * (n - 1))
    variance += float((t * (t - 1) * (t - 2)).sum() * (u * (u - 1) * (u - 2)).sum()) / (9 * n * (n - 1) * (n - 2))
    return 1.0 if variance <= 0 else float(special.ndtr(-concordant / sqrt(variance)))


def cochran_armitage(
    hits: Sequence[int], counts: Sequence[int], doses: Sequence[float], *, rng: np.random.Generator, draws: int = 10_000
) -> float:
    """One-sided p-value that the share of hits rises with the dose (Cochran 1954, Armitage 1955).

    By permutation: given the total of hits, each group's are hypergeometric, so it holds for few hits too.

    Args:
        hits: (groups,) of each group.
        counts: (groups,) trials of each group.
        doses: (groups,) numbers, such as copies or their logarithm.
        rng: draws the permutations.
        draws: permutations.

    Raises:
        ValueError: if lengths differ, a dose is not finite, or hits are not from 0 to the count.
    """
    k, n, dose = np.asarray(hits), np.asarray(counts), np.asarray(doses, dtype=np.float64)
    if not (k.shape == n.shape == dose.shape and k.ndim == 1 and len(k)) or not np.isfinite(dose).all():
        raise ValueError(f"a trend needs hits, counts and finite doses, got {k.shape}, {n.shape} and {dose.shape}")
    if not ((k >= 0) & (k <= n)).all():
        raise ValueError("hits must be from 0 to the count of their group")
    permuted = rng.multivariate_hypergeometric(n, int(k.sum()), size=draws) @ dose
    # The same sums in another order differ by rounding, and a tie must count.
    return permutation_p(float(k @ dose) - 1e-9 * float(np.abs(dose).max()), permuted)


def good_turing(counts: Sequence[int] | np.ndarray) -> float:
    """Share of all draws that will show something not seen yet: the share of things seen once (Good 1953).

    Args:
        counts: (kinds,) how often each kind was seen.

    Raises:
        ValueError: if nothing was seen or a count is not positive.
    """
    seen = np.asarray(counts)
    if seen.ndim != 1 or len(seen) == 0 or (seen < 1).any():
        raise ValueError(f"counts must be one or more positive numbers in a row, got shape {seen.shape}")
    return float((seen == 1).sum() / seen.sum())


def by_subject(values: np.ndarray | Sequence[float], subjects: Sequence[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    """Mean of each subject's values: (subjects,) names in order of appearance, and as many means.

    Raises:
        ValueError: if lengths differ, there is no value, or a value is NaN.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (len(subjects),) or len(subjects) == 0 or np.isnan(numbers).any():
        raise ValueError(f"values must be {len(subjects)} numbers, one for each record, got shape {numbers.shape}")
    index: dict[Hashable, int] = {}
    owner = np.array([index.setdefault(subject, len(index)) for subject in subjects])
    return list(index), np.bincount(owner, numbers) / np.bincount(owner)


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


def _upper(k: float, n: float, tail: float) -> float:
    return 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1 - tail))


def _p_values(values: Sequence[float] | np.ndarray) -> np.ndarray:
    p = np.asarray(values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be from 0 to 1 in a row, got shape {p.shape}")
    return p


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
