"""How far two collections of texts are apart: in meaning (MAUVE), in words, in length, in variety.

Intervals are those of a grouped jackknife: texts are dealt to groups by owner, each group is left out once, and the
spread of the ten values is the variance (Shao and Wu 1989). What is not in it is the chance of the quantisation.
"""

from collections.abc import Callable, Hashable, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

from reticent.statistics import Estimate
from reticent.utility.synthetic import words

GROUPS = 10
SCALE = 5.0
"""Pillutla et al. 2021: the scaling constant c."""
_POINTS = 100  # mixtures on the divergence curve
_KEPT = 0.9  # share of the variance that the principal components keep
_STARTS = 5  # of k-means

Statistic = Callable[[np.ndarray, np.ndarray], float]


class Texts(NamedTuple):
    """Texts as words, and whose each is (None: its own): both (texts,)."""

    words: list[list[str]]
    owners: Sequence[Hashable] | None = None

    @staticmethod
    def of(texts: Sequence[str], owners: Sequence[Hashable] | None = None) -> "Texts":
        """Plain texts."""
        return Texts([words(text) for text in texts], owners)

    def first(self, count: int) -> "Texts":
        """As many of the first texts as hold at most ``count`` words, at least one."""
        ends = np.cumsum([len(text) for text in self.words])
        kept = max(1, int(np.searchsorted(ends, count, side="right")))
        return Texts(self.words[:kept], None if self.owners is None else self.owners[:kept])

    def __repr__(self) -> str:  # never the text of records
        return f"{len(self.words)} texts"


class Mauve(NamedTuple):
    """``value`` from near 0 (nothing in common) to 1; ``curve``: (points, 2), from (0, 1) to (1, 0)."""

    value: float
    interval: tuple[float, float] | None
    curve: np.ndarray
    clusters: int


# ------------------------------------------------------------------------------------------------------------- MAUVE


def mauve(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    seed: int,
    owners: tuple[Sequence[Hashable] | None, Sequence[Hashable] | None] = (None, None),
    clusters: int | None = None,
) -> Mauve:
    """Area under the divergence curve of two sets of embeddings (Pillutla et al. 2021, MAUVE).

    Rows are scaled to length 1, projected to the principal components that hold 90 % of the variance, and quantised by
    k-means over both sets. It depends on the number of texts and of clusters: compare values of equal numbers only.

    Args:
        ours: (n, width) one row a text.
        theirs: (m, width).
        seed: of k-means, and of the groups that are left out for the interval.
        owners: of the rows of both.
        clusters: at most as many as there are different rows; None: a tenth of the smaller set, two or more.

    Raises:
        ValueError: a set has fewer than two rows, widths differ, or a number is not finite.
    """
    from sklearn.cluster import KMeans

    _check_rows(ours, theirs)
    rows = np.concatenate([ours, theirs]).astype(np.float64)
    asked = max(2, min(len(ours), len(theirs)) // 10) if clusters is None else clusters
    count = min(asked, len(np.unique(rows, axis=0)))
    cells = KMeans(count, n_init=_STARTS, random_state=seed).fit(_components(rows)).labels_
    rng = np.random.default_rng(seed)
    first = _histograms(cells[: len(ours), None], count, _groups(len(ours), owners[0], rng))
    second = _histograms(cells[len(ours) :, None], count, _groups(len(theirs), owners[1], rng))
    value, interval = _left_out(first, second, lambda p, q: area(curve(p, q)))
    return Mauve(value, interval, curve(first.sum(axis=0), second.sum(axis=0)), count)


def curve(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The divergence curve of two histograms, (points, 2), from (0, 1) to (1, 0).

    Its points are ``(exp(-c KL(Q, R)), exp(-c KL(P, R)))`` for mixtures R = a P + (1 - a) Q (Pillutla et al., eq. 1).

    Raises:
        ValueError: a histogram is empty, or holds a negative number.
    """
    if p.shape != q.shape or min(p.sum(), q.sum()) <= 0 or (p < 0).any() or (q < 0).any():
        raise ValueError(f"two histograms over the same cells are needed, got shapes {p.shape} and {q.shape}")
    p, q = p / p.sum(), q / q.sum()
    shares = np.linspace(1, 0, _POINTS + 2)[1:-1]
    found = [
        (np.exp(-SCALE * _divergence(q, a * p + (1 - a) * q)), np.exp(-SCALE * _divergence(p, a * p + (1 - a) * q)))
        for a in shares
    ]
    return np.array([(0.0, 1.0), *found, (1.0, 0.0)])


def area(points: np.ndarray) -> float:
    """Area under a curve of (points, 2), first coordinates rising."""
    return float(np.clip(np.trapezoid(points[:, 1], points[:, 0]), 0.0, 1.0))


def _divergence(p: np.ndarray, r: np.ndarray) -> float:
    """Kullback-Leibler divergence in nats; ``r`` is positive where ``p`` is."""
    there = p > 0
    return float((p[there] * np.log(p[there] / r[there])).sum())


def _components(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled = rows / np.where(lengths > 0, lengths, 1.0)
    left, spread, _ = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)
    shares = np.cumsum(spread**2) / max(float((spread**2).sum()), np.finfo(float).tiny)
    kept = 1 + int(np.searchsorted(shares, _KEPT))
    components: np.ndarray = left[:, :kept] * spread[:kept]
    return components


def _check_rows(ours: np.ndarray, theirs: np.ndarray) -> None:
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1] or min(len(ours), len(theirs)) < 2:
        raise ValueError(f"two or more embeddings a side of one width are needed, got {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("embeddings must be finite")


# ------------------------------------------------------------------------------------------------- words and lengths


def ngram_distance(ours: Texts, theirs: Texts, *, size: int, seed: int) -> Estimate:
    """Jensen-Shannon divergence in bits (0: the same, 1: nothing in common) of runs of ``size`` words.

    Small samples differ by chance alone: compare it with that of two samples of one source, of as many words.

    Raises:
        ValueError: a side has no such run.
    """
    first, second = ([_grams(text, size) for text in side.words] for side in (ours, theirs))
    if not any(first) or not any(second):
        raise ValueError(f"both sides need runs of {size} words")
    return _compared(ours, theirs, first, second, _jensen_shannon, seed)


def length_distance(ours: Texts, theirs: Texts, *, seed: int) -> Estimate:
    """Largest difference between the shares of texts of up to so many words (Kolmogorov and Smirnov), from 0 to 1.

    Raises:
        ValueError: a side has no text.
    """
    first, second = ([[len(text)] for text in side.words] for side in (ours, theirs))
    if not first or not second:
        raise ValueError("both sides need texts")
    return _compared(ours, theirs, first, second, _largest_gap, seed)


def distinct_share(texts: Texts, *, size: int, seed: int) -> Estimate:
    """Share of the runs of ``size`` words that are different ones (distinct-n, Li et al. 2016).

    It falls with the number of words: compare it at equal numbers.

    Raises:
        ValueError: there is no such run.
    """
    grams = [_grams(text, size) for text in texts.words]
    if not any(grams):
        raise ValueError(f"runs of {size} words are needed, and there is none")
    return _compared(texts, texts, grams, grams, lambda p, _: float((p > 0).sum() / p.sum()), seed)


def _grams(text: Sequence[str], size: int) -> list[Hashable]:
    return list(zip(*(text[start:] for start in range(size)), strict=False))


def _jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return (_divergence(p, middle) + _divergence(q, middle)) / (2 * float(np.log(2)))


def _largest_gap(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(np.cumsum(p / p.sum()) - np.cumsum(q / q.sum())).max())


def _compared(
    ours: Texts,
    theirs: Texts,
    first: Sequence[Sequence[Hashable]],
    second: Sequence[Sequence[Hashable]],
    statistic: Statistic,
    seed: int,
) -> Estimate:
    """``statistic`` of the two histograms of things; cells are in the order of the things where they have one."""
    kinds = {thing for side in (first, second) for things in side for thing in things}
    cells = {thing: cell for cell, thing in enumerate(sorted(kinds, key=_order))}
    rng = np.random.default_rng(seed)
    sides = [
        _histograms([[cells[thing] for thing in things] for things in side], len(cells), _groups(len(side), who, rng))
        for side, who in ((first, ours.owners), (second, theirs.owners))
    ]
    return _left_out(sides[0], sides[1], statistic)


def _order(thing: Hashable) -> tuple[int, str]:
    return (thing, "") if isinstance(thing, int) else (0, repr(thing))


# --------------------------------------------------------------------------------------------------------- jackknife


def _groups(count: int, owners: Sequence[Hashable] | None, rng: np.random.Generator) -> np.ndarray:
    """(count,) the group of each text; those of one owner stay together."""
    index: dict[Hashable, int] = {}
    owner = [index.setdefault(one, len(index)) for one in (range(count) if owners is None else owners)]
    if len(owner) != count:
        raise ValueError(f"owners must name whose each of {count} texts is, got {len(owner)}")
    order: np.ndarray = rng.permutation(len(index)) % GROUPS
    return order[owner]


def _histograms(things: Sequence[Sequence[int]] | np.ndarray, cells: int, groups: np.ndarray) -> np.ndarray:
    """(GROUPS, cells) how often each thing stands in the texts of each group."""
    found = np.zeros((GROUPS, cells))
    for group, own in zip(groups, things, strict=True):
        np.add.at(found[group], np.asarray(own, dtype=np.int64), 1)
    return found


def _left_out(first: np.ndarray, second: np.ndarray, statistic: Statistic) -> Estimate:
    """``statistic`` of two histograms by group, all groups together; no interval where a group makes up one side."""
    ours, theirs = first.sum(axis=0), second.sum(axis=0)
    value = statistic(ours, theirs)
    rests = [(ours - one, theirs - other) for one, other in zip(first, second, strict=True)]
    if any(min(one.sum(), other.sum()) <= 0 for one, other in rests):
        return Estimate(value, None)
    left = np.array([statistic(one, other) for one, other in rests])
    spread = sqrt((GROUPS - 1) / GROUPS * float(((left - left.mean()) ** 2).sum()))
    return Estimate(value, (max(0.0, value - 1.96 * spread), min(1.0, value + 1.96 * spread)))
