"""How well a model predicts held-out text: perplexity, and bits per byte, which no tokenizer moves."""

from collections.abc import Sequence
from math import exp, log
from typing import NamedTuple

import numpy as np

from reticent.statistics import bootstrap_mean


class Perplexity(NamedTuple):
    """``value`` and 95 % ``interval`` (None for one owner), over ``tokens`` predicted tokens of ``owners`` owners."""

    value: float
    interval: tuple[float, float] | None
    tokens: int
    owners: int


class BitsPerByte(NamedTuple):
    """``value`` and 95 % ``interval`` (None for one owner), over ``size`` bytes of ``owners`` owners."""

    value: float
    interval: tuple[float, float] | None
    size: int
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
    return _perplexity(logp, owners, [len(tokens) for tokens in logp], rng)


def perplexity_by_text(logp: Sequence[np.ndarray], owners: Sequence[str], *, rng: np.random.Generator) -> Perplexity:
    """Perplexity in which every text weighs the same: exp of the mean over texts of the loss per token of each.

    Arguments and errors are those of `perplexity`, with one array for each whole text.
    """
    return _perplexity(logp, owners, [1] * len(logp), rng)


def bits_per_byte(
    logp: Sequence[np.ndarray], sizes: Sequence[int], owners: Sequence[str], *, rng: np.random.Generator
) -> BitsPerByte:
    """Negative log2-likelihood of all texts over their bytes; bootstrap interval over owners (BCa).

    Owners whose texts have no byte at all are left out.

    Args:
        logp: one (tokens,) array of natural-log probabilities per text.
        sizes: bytes of each text.
        owners: the owner of each text.
        rng: for the bootstrap.

    Raises:
        ValueError: if a text is empty or not finite, lengths differ, or there is no byte.
    """
    _check(logp)
    if not len(logp) == len(sizes) == len(owners):
        raise ValueError(f"{len(logp)} texts need as many sizes and owners, got {len(sizes)} and {len(owners)}")
    if min(sizes, default=0) < 0 or not sum(sizes):
        raise ValueError(f"sizes must be >= 0 and some above 0, got {sum(sizes)} bytes in all")
    names = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    own = [names[owner] for owner in owners]
    held = np.bincount(own, sizes)
    bits = np.bincount(own, [-float(tokens.sum(dtype=np.float64)) / log(2) for tokens in logp])
    kept = held > 0
    value, interval = bootstrap_mean(bits[kept] / held[kept], weights=held[kept], rng=rng)
    return BitsPerByte(value, interval, int(held.sum()), int(kept.sum()))


def _perplexity(
    logp: Sequence[np.ndarray], owners: Sequence[str], weights: Sequence[int], rng: np.random.Generator
) -> Perplexity:
    _check(logp)
    losses = [-float(tokens.mean(dtype=np.float64)) for tokens in logp]
    mean, ends = bootstrap_mean(losses, clusters=owners, weights=weights, rng=rng)
    interval = None if ends is None else (exp(ends[0]), exp(ends[1]))
    return Perplexity(exp(mean), interval, sum(map(len, logp)), len(set(owners)))


def _check(logp: Sequence[np.ndarray]) -> None:
    for i, tokens in enumerate(logp):
        if len(tokens) == 0 or not np.isfinite(tokens).all():
            raise ValueError(f"record {i} needs one or more finite token log-probabilities")
