"""A small language model that learns a corpus from nothing: what a text is worth to somebody who has only that.

As Yu et al. 2023 judge private synthetic text: the share of next tokens of real text that it guesses right, beside that
of the same model trained on real text.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from reticent.gradients.attention import use_segments
from reticent.models.language_model import CausalModel
from reticent.progress import SILENT, Progress
from reticent.statistics import Estimate, bootstrap_mean, clopper_pearson
from reticent.tokens import Tokens

WIDTH, LAYERS, HEADS, INNER = 128, 4, 4, 352
MOST_TOKENS = 8192
"""Different tokens that it knows."""
UNKNOWN = 0


class Vocabulary:
    """The tokens that a student knows, by its own ids: the most frequent ones; 0 stands for all others."""

    def __init__(self, corpora: Sequence[Sequence[Tokens]]) -> None:
        counts = Counter[int]()
        for corpus in corpora:
            for one in corpus:
                counts.update(one.ids.tolist())
        # By number among equals: two orders of the same texts give one vocabulary.
        common = sorted(counts, key=lambda token: (-counts[token], token))[: MOST_TOKENS - 1]
        self._ids = {token: place + 1 for place, token in enumerate(common)}

    def __len__(self) -> int:
        return len(self._ids) + 1

    def __call__(self, records: Sequence[Tokens]) -> list[Tokens]:
        """The same records in the student's ids."""
        return [
            Tokens(np.array([self._ids.get(token, UNKNOWN) for token in one.ids.tolist()], np.int64), one.trained)
            for one in records
        ]


class Hits(NamedTuple):
    """Of each record, (records,): next tokens guessed right, and asked for."""

    right: np.ndarray
    asked: np.ndarray


def student(vocabulary: int, longest: int, *, seed: int) -> PreTrainedModel:
    """A Llama of 1 to 2 million random weights, all to be trained, that reads texts of up to ``longest`` tokens."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=max(2, longest),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    use_segments(model)
    return model


def same_size(ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> tuple[list[Tokens], list[Tokens]]:
    """The first records of both, as many of each as are needed for the tokens of the smaller collection."""
    most = min(sum(map(len, side)) for side in (ours, theirs))

    def first(side: Sequence[Tokens]) -> list[Tokens]:
        ends = np.cumsum([len(one) for one in side])
        return list(side[: 1 + int(np.searchsorted(ends, most))])

    return first(ours), first(theirs)


def steps_for(tokens: int, *, passes: int, tokens_a_step: int, least: int, most: int) -> int:
    """Optimiser steps for ``passes`` over so many tokens, between bounds."""
    return min(most, max(least, ceil(passes * tokens / tokens_a_step)))


def next_tokens(model: CausalModel, records: Sequence[Tokens], progress: Progress = SILENT) -> Hits:
    """How many of the trained tokens of records, in the student's ids, it guesses; one it does not know is missed."""
    scores = model.log_probs(records, progress)
    right = [
        int((score.hit & (one.ids[one.trained] != UNKNOWN)).sum()) for score, one in zip(scores, records, strict=True)
    ]
    return Hits(np.array(right), np.array([int(one.trained.sum()) for one in records]))


def accuracy(hits: Hits, owners: Sequence[Hashable], *, rng: np.random.Generator) -> Estimate:
    """Share of next tokens guessed right, bootstrap interval over owners (BCa); of none or all, each owner is a trial.

    Raises:
        ValueError: there is no record, one asks for nothing, or ``owners`` has another length.
    """
    found = bootstrap_mean(hits.right / np.maximum(hits.asked, 1), clusters=owners, weights=hits.asked, rng=rng)
    if found.value not in (0.0, 1.0):
        return found
    count = len(set(owners))
    return Estimate(found.value, clopper_pearson(found.value * count, count))


def reached(ours: Hits, theirs: Hits, owners: Sequence[Hashable], *, rng: np.random.Generator) -> Estimate | None:
    """The accuracy of one student as a share of another's on the same records, interval over owners; None of nothing.

    Raises:
        ValueError: as `accuracy`.
    """
    index: dict[Hashable, int] = {}
    owner = np.array([index.setdefault(one, len(index)) for one in owners])
    mine, others = np.bincount(owner, ours.right), np.bincount(owner, theirs.right)
    if not others.any():
        return None
    # A ratio of sums is a mean weighted by what is below the line; owners with nothing there join one with something.
    somebody = int(np.argmax(others > 0))
    mine[somebody] += mine[others == 0].sum()
    kept = others > 0
    return bootstrap_mean(mine[kept] / others[kept], weights=others[kept], rng=rng)


def commonest(learned: Sequence[Tokens], records: Sequence[Tokens]) -> float:
    """Share of the trained tokens of ``records`` that are the commonest known one of ``learned``: hardly a student."""
    counts = Counter[int]()
    for one in learned:
        counts.update(one.ids[one.trained & (one.ids != UNKNOWN)].tolist())
    best = counts.most_common(1)[0][0]
    found = np.concatenate([one.ids[one.trained] for one in records])
    return float((found == best).mean())
