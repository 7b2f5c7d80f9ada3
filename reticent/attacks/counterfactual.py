"""Counterfactual memorisation: what training on a record changes, measured on K models trained with and without it.

What is covered: one record's effect with its interval and corrected p-value (Zhang et al., arXiv:2112.12938), and how
much any number moves from one training to the next. What is not: how the K models are trained.
"""

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from reticent.statistics import benjamini_hochberg


class Memorisation(NamedTuple):
    """(judged,) arrays, one entry for each record that some models were trained on and some were not.

    ``records`` are their places in the input; ``value`` is the mean with the record less the mean without it, ``low``
    and ``high`` its interval. ``p_value`` is one-sided, against no memorisation; ``corrected`` by Benjamini and
    Hochberg over the records.
    """

    records: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    corrected: np.ndarray


class Spread(NamedTuple):
    """How a number varies over ``n`` trainings: ``deviation`` of one training, ``interval`` of the ``mean``."""

    mean: float
    deviation: float
    interval: tuple[float, float]
    n: int


def memorisation(scores: np.ndarray, trained: np.ndarray, *, level: float = 0.95) -> Memorisation:
    """mem(x) = E[score of x | trained on x] - E[score of x | not], by Student's t with K - 2 degrees of freedom.

    A record that all models were trained on, or none, is left out. Where a record's scores do not vary within its
    groups t is without meaning: its p-value is that of permuting the trainings, 1 / C(K, K_in), or 1.

    Args:
        scores: (K, records) of the models trained on random halves, such as token accuracy or mean log-probability.
        trained: (K, records) bool, which model was trained on which record.
        level: of the intervals.

    Raises:
        ValueError: if there are fewer than 3 models, a score is not finite, shapes differ, or no record can be judged.
    """
    scores, trained = np.asarray(scores, dtype=np.float64), np.asarray(trained)
    if scores.ndim != 2 or trained.shape != scores.shape or trained.dtype != np.bool_ or len(scores) < 3:
        raise ValueError(f"scores must be (3 or more models, records) and trained as many booleans, got {scores.shape}")
    if not np.isfinite(scores).all() or not 0 < level < 1:
        raise ValueError(f"scores must be finite and level between 0 and 1, got level {level}")
    models = len(scores)
    n_in = trained.sum(axis=0)
    records = np.flatnonzero((n_in > 0) & (n_in < models))
    if len(records) == 0:
        raise ValueError("no record was in the training data of some models and not of others")
    scores, trained, n_in = scores[:, records], trained[:, records], n_in[records]
    n_out = models - n_in
    mean_in, mean_out = (scores * trained).sum(axis=0) / n_in, (scores * ~trained).sum(axis=0) / n_out
    value = mean_in - mean_out
    squares = ((scores - np.where(trained, mean_in, mean_out)) ** 2).sum(axis=0)
    error = np.sqrt(squares / (models - 2) * (1 / n_in + 1 / n_out))
    constant = error <= 1e-12 * np.abs(scores).max(axis=0)
    p_value = special.stdtr(models - 2, -value / np.where(constant, 1.0, error))
    arrangements = np.array([comb(models, int(n)) for n in n_in], dtype=np.float64)
    p_value = np.where(constant, np.where(value > error, 1 / arrangements, 1.0), p_value)
    half = float(special.stdtrit(models - 2, (1 + level) / 2)) * error
    return Memorisation(records, value, value - half, value + half, p_value, benjamini_hochberg(p_value))


def seed_spread(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> Spread:
    """How far a number moves from training to training, from its values on independent ones, with a t-interval.

    Raises:
        ValueError: if there are fewer than two values, or one is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 2 or not np.isfinite(numbers).all():
        raise ValueError(f"a spread needs two or more finite values, got shape {numbers.shape}")
    n = len(numbers)
    mean, deviation = float(numbers.mean()), float(numbers.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * deviation / sqrt(n)
    return Spread(mean, deviation, (mean - half, mean + half), n)
