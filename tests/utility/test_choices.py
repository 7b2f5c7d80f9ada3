"""Multiple choice: who wins, ties, length normalisation."""

import numpy as np
import pytest

from reticent.statistics import wilson
from reticent.utility.choices import accuracy


def _options(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.float32) for row in rows]


def test_the_likeliest_option_is_chosen() -> None:
    result = accuracy([_options([-1], [-2]), _options([-1], [-2], [-3], [-4])], [0, 2], normalise="sum")
    assert result.correct.tolist() == [True, False]
    assert (result.accuracy, result.interval, result.n, result.chance) == (0.5, wilson(1, 2), 2, 0.375)


def test_long_options_win_only_per_token() -> None:
    question = [_options([-1, -1, -1], [-2])]
    assert accuracy(question, [0], normalise="tokens").accuracy == 1
    assert accuracy(question, [0], normalise="sum").accuracy == 0


def test_a_tie_is_wrong() -> None:
    assert accuracy([_options([-1], [-1])], [0], normalise="sum").accuracy == 0


def test_bad_questions_are_named() -> None:
    with pytest.raises(ValueError, match="question 0 needs two or more"):
        accuracy([_options([-1])], [0], normalise="sum")
    with pytest.raises(ValueError, match="question 0 has an option"):
        accuracy([_options([-1], [])], [0], normalise="sum")
    with pytest.raises(ValueError, match="as many answers"):
        accuracy([], [], normalise="sum")
