"""The longest run of tokens that a text shares with a corpus."""

from collections.abc import Sequence

import numpy as np
import pytest

from reticent.utility.overlap import longest_runs


def _oracle(text: Sequence[int], corpus: Sequence[Sequence[int]]) -> int:
    runs = {tuple(one[i:j]) for one in corpus for i in range(len(one)) for j in range(i + 1, len(one) + 1)}
    return max(
        (j - i for i in range(len(text)) for j in range(i + 1, len(text) + 1) if tuple(text[i:j]) in runs), default=0
    )


def test_it_is_what_comparing_every_run_finds() -> None:
    rng = np.random.default_rng(1)
    corpus = [rng.integers(0, 4, rng.integers(1, 15)) for _ in range(6)]
    texts = [rng.integers(0, 5, rng.integers(1, 12)) for _ in range(12)]
    assert longest_runs(texts, corpus).tolist() == [
        _oracle(text.tolist(), [c.tolist() for c in corpus]) for text in texts
    ]


def test_a_planted_passage_is_found_and_no_other() -> None:
    rng = np.random.default_rng(2)
    corpus = [rng.integers(0, 10**6, 50) for _ in range(20)]
    planted = np.concatenate([rng.integers(0, 10**6, 9), corpus[7][10:40], rng.integers(0, 10**6, 9)])
    assert longest_runs([planted, rng.integers(10**6, 2 * 10**6, 40)], corpus).tolist() == [30, 0]


def test_no_run_goes_over_the_border_of_two_texts() -> None:
    assert longest_runs([np.array([1, 2, 3, 4])], [np.array([1, 2]), np.array([3, 4])]).tolist() == [2]


def test_an_empty_corpus_shares_nothing() -> None:
    assert longest_runs([np.array([1, 2])], []).tolist() == [0]


def test_texts_are_needed() -> None:
    with pytest.raises(ValueError, match="got 0"):
        longest_runs([], [np.array([1])])
