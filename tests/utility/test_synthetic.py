"""What is kept of sampled texts, and what filtering reads."""

import inspect

import numpy as np
import pytest

from reticent.utility.synthetic import Sample, choose, repeated

LONG = "ann came with a cough and left with a mild fever after two days"


def _said(text: str, prompt: str = "", *, finished: bool = True) -> Sample:
    return Sample(prompt, text, finished)


def _funnel(*samples: Sample, most: int = 10, near: float | None = 0.8) -> dict[str, int]:
    return choose(samples, most=most, min_words=3, near_duplicates=near).funnel


def test_a_text_that_did_not_end_is_left_out() -> None:
    assert _funnel(_said("one two three", finished=False), _said("four five six"))["unfinished"] == 1


def test_a_text_of_too_few_words_is_left_out() -> None:
    assert _funnel(_said("one two."), _said("four five six"))["too short"] == 1


def test_a_text_that_goes_round_in_circles_is_left_out() -> None:
    assert _funnel(_said("one two three one two three one two three"), _said("four five six"))["repetitive"] == 1


def test_repetition_is_the_share_of_word_triples_seen_before() -> None:
    assert repeated("a b c a b c") == pytest.approx(1 / 4)
    assert repeated("a b") == 0


def test_an_equal_text_is_left_out_whatever_its_case_and_spaces() -> None:
    assert _funnel(_said("one two three"), _said("One  two three"))["equal"] == 1


def test_the_same_answer_to_another_prompt_is_no_copy() -> None:
    assert _funnel(_said("one two three", "a"), _said("one two three", "b"))["kept"] == 2


def test_a_near_copy_is_left_out() -> None:
    funnel = _funnel(_said(LONG), _said(LONG + " indeed"))
    assert (funnel["near copies"], funnel["kept"]) == (1, 1)


def test_near_copies_stay_where_nobody_asks_for_them() -> None:
    assert _funnel(_said(LONG), _said(LONG + " indeed"), near=None)["kept"] == 2


def test_a_chain_of_near_copies_does_not_pull_its_ends_together() -> None:
    words = [f"w{i}" for i in range(40)]
    one, middle, other = (" ".join(words[start : start + 30]) for start in (0, 4, 8))
    kept = choose([_said(one), _said(middle), _said(other)], most=3, min_words=1, near_duplicates=0.7).numbers
    assert kept == [0, 2]


def test_every_sample_looked_at_is_counted_once() -> None:
    funnel = _funnel(_said("a"), _said(LONG), _said(LONG), _said(LONG + " x"), _said("q", finished=False))
    assert sum(count for name, count in funnel.items() if name != "sampled") == funnel["sampled"] == 5


def test_no_more_are_kept_than_asked_for_and_the_rest_is_not_counted() -> None:
    found = choose([_said(f"text number {word}") for word in "abcd"], most=2, min_words=1, near_duplicates=None)
    assert (found.numbers, found.funnel["sampled"]) == ([0, 1], 2)


def test_more_samples_change_no_earlier_decision() -> None:
    rng = np.random.default_rng(1)
    samples = [_said(" ".join(rng.choice(list("abcdefgh"), 8))) for _ in range(60)]
    whole = choose(samples, most=60, min_words=1, near_duplicates=0.3).numbers
    for count in (10, 30, 50):
        part = choose(samples[:count], most=60, min_words=1, near_duplicates=0.3).numbers
        assert part == [number for number in whole if number < count]


def test_filtering_is_given_samples_and_settings_and_nothing_else() -> None:
    asked = inspect.signature(choose).parameters
    assert list(asked) == ["samples", "most", "min_words", "near_duplicates"]
    assert set(Sample._fields) == {"prompt", "text", "finished"}


def test_bounds_are_told() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        choose([], most=0, min_words=1, near_duplicates=None)
