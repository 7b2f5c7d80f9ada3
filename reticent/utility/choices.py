"""Multiple-choice questions: the model picks the option it finds most likely."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from reticent.statistics import wilson


class Choices(NamedTuple):
    """``correct``: (questions,) bool. ``chance`` is the accuracy of guessing; ``interval`` is Wilson's at 95 %."""

    accuracy: float
    interval: tuple[float, float]
    correct: np.ndarray
    n: int
    chance: float


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
        totals = np.array([tokens.sum(dtype=np.float64) for tokens in options])
        if normalise == "tokens":
            totals /= [len(tokens) for tokens in options]
        correct[i] = totals[answer] > np.delete(totals, answer).max()
    hits, n = int(correct.sum()), len(correct)
    chance = float(np.mean([1 / len(options) for options in option_logp]))
    return Choices(hits / n, wilson(hits, n), correct, n, chance)
