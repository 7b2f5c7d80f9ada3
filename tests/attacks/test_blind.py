"""The gate without a model: closed where texts alone tell members from others, open where they do not."""

import numpy as np
import pytest

from reticent.attacks import blind
from reticent.attacks.blind import gate

WORDS = np.array([f"w{i}" for i in range(300)])
SHARES = 1 / np.arange(1, 301) / (1 / np.arange(1, 301)).sum()


def _text(rng: np.random.Generator, low: int = 10, high: int = 50) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(low, high), p=SHARES))


def _texts(rng: np.random.Generator, count: int, *lengths: int) -> list[str]:
    return [_text(rng, *lengths) for _ in range(count)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind, "_TREES", 20)


def test_exchangeable_members_pass_as_often_as_the_interval_says() -> None:
    """At a nominal 97.5 %: of 40 gates, more than 5 fail with probability 0.05 %."""
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    passed = [gate(_texts(rng, 60), _texts(rng, 60), seed=0).passed for rng in rngs]
    assert sum(passed) >= 35


def test_other_dates_fail() -> None:
    rng = np.random.default_rng(0)
    members, others = ([f"{text} {year}" for text in _texts(rng, 60)] for year in (2019, 2024))
    found = gate(members, others, seed=0)
    assert not found.passed and found.auc.value > 0.9


def test_other_topics_fail() -> None:
    rng = np.random.default_rng(0)
    others = [" ".join(rng.choice(WORDS[::-1], 30, p=SHARES)) for _ in range(60)]
    assert not gate(_texts(rng, 60), others, seed=0).passed


def test_other_lengths_fail() -> None:
    rng = np.random.default_rng(0)
    assert not gate(_texts(rng, 60), _texts(rng, 60, 80, 120), seed=0).passed


def test_texts_without_words_are_told_by_their_lengths() -> None:
    assert not gate(["." * (10 + i % 5) for i in range(40)], ["." * (20 + i % 5) for i in range(40)], seed=0).passed


def test_what_tells_subjects_apart_does_not_tell_members() -> None:
    """Each subject has a word of its own in all its texts; halves by record would learn whose side it is on."""
    rng = np.random.default_rng(0)
    sides = []
    for side in "ab":
        subjects = [f"{side}{i}" for i in range(40)]
        sides.append(
            (
                [f"{_text(rng)} name{s} name{s}" for s in subjects for _ in range(4)],
                [s for s in subjects for _ in range(4)],
            )
        )
    (members, ours), (others, theirs) = sides
    assert gate(members, others, ours, theirs, seed=0).passed


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    members, others = _texts(rng, 40), _texts(rng, 40)
    assert gate(members, others, seed=1) == gate(members, others, seed=1) != gate(members, others, seed=2)


def test_few_subjects_are_refused_with_the_number_needed() -> None:
    with pytest.raises(ValueError, match="40 members and 29 others .* 30 subjects a side"):
        gate(["a"] * 40, ["b"] * 29, seed=0)
    with pytest.raises(ValueError, match="40 members and 2 others"):
        gate(["a"] * 40, ["b"] * 40, None, ["p", "q"] * 20, seed=0)


def test_a_subject_on_both_sides_is_refused() -> None:
    subjects = [f"s{i}" for i in range(40)]
    with pytest.raises(ValueError, match="1 subjects are on both sides"):
        gate(["a"] * 40, ["b"] * 40, subjects, [f"t{i}" for i in range(39)] + ["s0"], seed=0)


def test_subjects_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="40 member texts but 1 subjects"):
        gate(["a"] * 40, ["b"] * 40, ["p"], seed=0)
