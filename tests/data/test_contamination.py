"""13 words of a benchmark are found wherever they stand, and nothing else is."""

import numpy as np
import pytest

from reticent.data.contamination import Benchmark

WORDS = [f"w{i}" for i in range(40)]


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        (" ".join(WORDS[5:18]), True),
        (" ".join(WORDS[5:17]), False),
        ("before " + ", ".join(WORDS[20:33]).upper() + "! after", True),
        (" ".join([*WORDS[:12], "other", *WORDS[12:24]]), False),
        ("", False),
    ],
)
def test_thirteen_words_in_a_row_are_found_whatever_their_case_and_signs(text: str, hit: bool) -> None:
    assert Benchmark([" ".join(WORDS), "short"]).hits([text, "else", " ".join(WORDS)]).tolist() == [hit, False, True]


def test_no_run_reaches_from_one_text_into_the_next() -> None:
    benchmark = Benchmark([" ".join(WORDS)])
    assert not benchmark.hits([" ".join(WORDS[:12]), " ".join(WORDS[12:24])]).any()
    assert len(Benchmark([" ".join(WORDS[:12]), " ".join(WORDS[12:24])])) == 0


def test_hits_are_those_of_a_slow_search() -> None:
    rng = np.random.default_rng(0)
    gold = [" ".join(map(str, rng.integers(3, size=30))) for _ in range(20)]
    texts = [" ".join(map(str, rng.integers(3, size=40))) for _ in range(300)]
    runs = {tuple(g.split()[i : i + 13]) for g in gold for i in range(18)}
    slow = [any(tuple(t.split()[i : i + 13]) in runs for i in range(28)) for t in texts]
    texts[0], slow[0] = gold[3], True
    assert Benchmark(gold).hits(texts).tolist() == slow


def test_an_empty_benchmark_hits_nothing() -> None:
    assert not Benchmark([]).hits([" ".join(WORDS)]).any()
