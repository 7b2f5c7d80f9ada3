"""Multiple-choice questions: the model picks the option it finds most likely; and what its answers amount to."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from reticent.statistics import Estimate, wilson

_DRAWS = 2000  # bootstrap samples


class Choices(NamedTuple):
    """``correct``: (questions,) bool. ``chance`` is the accuracy of guessing; ``interval`` is Wilson's at 95 %."""

    accuracy: float
    interval: tuple[float, float]
    correct: np.ndarray
    n: int
    chance: float


class Weighted(NamedTuple):
    """Precision, recall and F1 of each class, averaged with its share of the right answers as weight."""

    precision: float
    recall: float
    f1: float


def accuracy(
    option_logp: Sequence[Sequence[np.ndarray]],
    answers: Sequence[int],
    *,
    normalise: Literal["sum", "tokens"],
) -> Choices:
    """Share of questions whose right option has the highest log-probability. A tie for the first place is wrong.

    Args:
        option_logp: per question, per option: (tokens,) natural-log probabilities of the option's tokens.
        answers: per question: the index of the right option.
        normalise: "sum" compares total log-probabilities, "tokens" the mean per token, for options of unequal length.

    Raises:
        ValueError: if there is no question, a question has fewer than two options, an option is empty or not finite, or
            an answer is not one of the options.
    """
    if len(option_logp) == 0 or len(option_logp) != len(answers):
        raise ValueError(f"as many answers as questions are needed, got {len(answers)} and {len(option_logp)}")
    correct = np.zeros(len(answers), dtype=bool)
    for i, (options, answer) in enumerate(zip(option_logp, answers, strict=True)):
        if len(options) < 2 or not 0 <= answer < len(options):
            raise ValueError(f"question {i} needs two or more options and one of them as answer, got {len(options)}")
        if any(len(tokens) == 0 or not np.isfinite(tokens).all() for tokens in options):
            raise ValueError(f"question {i} has an option without finite token log-probabilities")
        correct[i] = (
            likeliest(options, [len(tokens) for tokens in options] if normalise == "tokens" else None) == answer
        )
    hits, n = int(correct.sum()), len(correct)
    chance = float(np.mean([1 / len(options) for options in option_logp]))
    return Choices(hits / n, wilson(hits, n), correct, n, chance)


def likeliest(option_logp: Sequence[np.ndarray], lengths: Sequence[float] | None = None) -> int | None:
    """The option of the highest log-probability, or of the highest per unit of ``lengths``; None if two are first.

    Args:
        option_logp: per option: (tokens,) natural-log probabilities of its tokens.
        lengths: of each option, in tokens (or bytes, as lm-eval's ``acc_bytes``; its ``acc_norm`` counts characters).
    """
    totals = np.array([tokens.sum(dtype=np.float64) for tokens in option_logp])
    if lengths is not None:
        totals /= lengths
    first = int(np.argmax(totals))
    return None if (np.delete(totals, first) == totals[first]).any() else first


def macro_f1(right: Sequence[str], chosen: Sequence[str | None], *, rng: np.random.Generator) -> Estimate:
    """F1 of each class that is right or chosen somewhere, averaged alike; percentile bootstrap over the items.

    Args:
        right: (items,) the right class of each.
        chosen: (items,) the one that was chosen; None: none was.
        rng: draws the items.

    Raises:
        ValueError: if there is no item, or lengths differ.
    """
    classes, cells, counts = _cells(right, chosen)
    value = float(_f1(cells, counts[None], len(classes)).mean())
    drawn = _f1(cells, rng.multinomial(int(counts.sum()), counts / counts.sum(), size=_DRAWS), len(classes))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return Estimate(value, (float(min(low, value)), float(max(high, value))))


def weighted(right: Sequence[str], chosen: Sequence[str | None]) -> Weighted:
    """As the source system reports them. A class that is never chosen has precision 0.

    Raises:
        ValueError: if there is no item, or lengths differ.
    """
    classes, cells, counts = _cells(right, chosen)
    true, said, both = (part[0] for part in _totals(cells, counts[None], len(classes)))
    precision, recall = both / np.maximum(said, 1), both / np.maximum(true, 1)
    f1 = _f1(cells, counts[None], len(classes))[0]
    share = true / true.sum()
    return Weighted(float(share @ precision), float(share @ recall), float(share @ f1))


def majority(right: Sequence[str]) -> int:
    """Items of the most frequent right class: what is always the same answer gets right."""
    return max(Counter(right).values())


def _cells(right: Sequence[str], chosen: Sequence[str | None]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The classes, the distinct (right, chosen) pairs as their numbers (-1: none), and how often each is there."""
    if len(right) != len(chosen) or not right:
        raise ValueError(f"an F1 needs as many chosen as right answers, got {len(chosen)} and {len(right)}")
    classes = sorted({*right, *(one for one in chosen if one is not None)})
    number: dict[str | None, int] = {None: -1, **{name: i for i, name in enumerate(classes)}}
    pairs = Counter((number[one], number[other]) for one, other in zip(right, chosen, strict=True))
    return classes, np.array(list(pairs)), np.array(list(pairs.values()))


def _totals(cells: np.ndarray, counts: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class how often it is right, chosen, and both: (draws, classes) each; ``counts``: (draws, cells)."""
    is_right = cells[:, :1] == np.arange(classes)
    is_chosen = cells[:, 1:] == np.arange(classes)
    return counts @ is_right, counts @ is_chosen, counts @ (is_right & is_chosen)


def _f1(cells: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """(draws, classes); 0 for a class that is neither right nor chosen in a draw."""
    true, said, both = _totals(cells, counts, classes)
    return np.asarray(2 * both / np.maximum(true + said, 1))
