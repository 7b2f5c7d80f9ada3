"""Perplexity of held-out text."""

from collections.abc import Sequence
from math import exp
from typing import NamedTuple

import numpy as np

from reticent.statistics import bootstrap_mean


class Perplexity(NamedTuple):
    """``value`` and 95 % ``interval`` (None for one owner), over ``tokens`` predicted tokens of ``owners`` owners."""

    value: float
    interval: tuple[float, float] | None
    tokens: int
    owners: int


def perplexity(logp: Sequence[np.ndarray], owners: Sequence[str], *, rng: np.random.Generator) -> Perplexity:
    """Perplexity, exp of the mean negative log-probability per token; bootstrap interval over owners (BCa).

    Args:
        logp: one (tokens,) array of natural-log probabilities per record.
        owners: the owner of each record.
        rng: for the bootstrap.

    Raises:
        ValueError: if there is no record, a record is empty or not finite, or ``owners`` has another length.
    """
    for i, tokens in enumerate(logp):
        if len(tokens) == 0 or not np.isfinite(tokens).all():
            raise ValueError(f"record {i} needs one or more finite token log-probabilities")
    counts = [len(tokens) for tokens in logp]
    losses = [-float(tokens.mean(dtype=np.float64)) for tokens in logp]
    mean, ends = bootstrap_mean(losses, clusters=owners, weights=counts, rng=rng)
    interval = None if ends is None else (exp(ends[0]), exp(ends[1]))
    return Perplexity(exp(mean), interval, sum(counts), len(set(owners)))
