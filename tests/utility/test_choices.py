"""Multiple choice: who wins, ties, length normalisation; F1 against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from reticent.statistics import wilson
from reticent.utility.choices import accuracy, likeliest, macro_f1, majority, weighted


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


def test_the_likeliest_per_length_is_chosen_and_a_tie_is_none() -> None:
    options = _options([-2, -2], [-3], [-4.5])
    assert likeliest(options) == 1
    assert likeliest(options, [8, 3, 9]) is None  # -0.5, -1, -0.5
    assert likeliest(options, [9, 3, 9]) == 0


def _answers(seed: int, classes: str = "ABCD") -> tuple[list[str], list[str | None]]:
    rng = np.random.default_rng(seed)
    right = rng.choice(list(classes), 60).tolist()
    return right, [one if rng.random() < 0.5 else rng.choice([*classes, None]) for one in right]


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns(seed: int) -> None:
    right, chosen = _answers(seed)
    classes = sorted({*right, *(one for one in chosen if one)})
    said = [one or "?" for one in chosen]
    expected = f1_score(right, said, labels=classes, average="macro", zero_division=0)
    found = macro_f1(right, chosen, rng=np.random.default_rng(0))
    assert found.value == pytest.approx(expected)
    assert found.interval is not None and found.interval[0] < found.value < found.interval[1]


@pytest.mark.parametrize("seed", range(5))
def test_weighted_scores_are_scikit_learns(seed: int) -> None:
    right, chosen = _answers(seed)
    expected = precision_recall_fscore_support(
        right, [one or "?" for one in chosen], average="weighted", zero_division=0
    )
    assert weighted(right, chosen) == pytest.approx(expected[:3])


def test_the_interval_of_macro_f1_covers_the_true_one_as_often_as_it_says() -> None:
    right, chosen = _answers(9, "AB")
    truth = macro_f1(right * 200, chosen * 200, rng=np.random.default_rng(0)).value
    rng, hits = np.random.default_rng(1), 0
    for _ in range(100):
        drawn = rng.integers(60, size=150)
        ends = macro_f1([right[i] for i in drawn], [chosen[i] for i in drawn], rng=rng).interval
        assert ends is not None
        hits += ends[0] <= truth <= ends[1]
    assert 87 <= hits <= 100  # 95 expected, give or take 2.2


def test_the_majority_is_the_most_frequent_right_answer() -> None:
    assert majority(["A", "B", "B", "C"]) == 2


def test_answers_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        macro_f1(["A", "B"], ["A"], rng=np.random.default_rng(0))
