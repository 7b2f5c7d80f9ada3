"""Membership scores, one per record. A higher score always means "more likely a member"."""

from collections.abc import Sequence

import numpy as np


def loss(logp: Sequence[np.ndarray]) -> np.ndarray:
    """Mean token log-probability: the negative loss.

    Args:
        logp: one (tokens,) array of natural-log probabilities per record.

    Returns:
        (records,) float64, nats per token.

    Raises:
        ValueError: if a record has no token or a value that is not finite; the message names its index.
    """
    scores = np.empty(len(logp))
    for i, tokens in enumerate(logp):
        if tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError(f"record {i} has no token log-probabilities (shape {tokens.shape}): leave it out")
        if not np.isfinite(tokens).all():
            raise ValueError(f"record {i} has a token log-probability that is not finite: the model is broken")
        scores[i] = tokens.mean(dtype=np.float64)
    return scores


def loss_difference(target: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> np.ndarray:
    """How much training helped each record: base loss minus target loss (audit.md 2.5, "Ref-diff").

    The base model, before training, knows which texts are easy; the difference keeps what was learned.

    Args:
        target: one (tokens,) array per record, from the trained model.
        base: the same records and tokens, from the model before training.

    Returns:
        (records,) float64, nats per token.

    Raises:
        ValueError: as `loss`, or if the two do not hold the same records and tokens.
    """
    if len(target) != len(base):
        raise ValueError(f"target holds {len(target)} records, base {len(base)}: score the same records with both")
    for i, (ours, theirs) in enumerate(zip(target, base, strict=True)):
        if ours.shape != theirs.shape:
            raise ValueError(f"record {i} has shape {ours.shape} in target and {theirs.shape} in base")
    difference: np.ndarray = loss(target) - loss(base)
    return difference
