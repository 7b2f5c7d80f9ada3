"""Sketches against their law, and what the search must not need."""

from itertools import combinations

import numpy as np
import pytest
from rensa import RMinHash

from reticent.data.corpus import Corpus
from reticent.data.near import HASHES, windows, within, word_hash
from reticent.data.record import Record
from reticent.data.split import assign_units


def _corpus(texts: list[str], threshold: float = 0.8) -> Corpus:
    corpus = Corpus(near_duplicates=threshold)
    corpus.add([Record(id=f"r{i}", owner=f"o{i}", prompt="", completion=t, origin="t") for i, t in enumerate(texts)])
    return corpus


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8, 0.95])
def test_sketches_agree_as_often_as_sets_do(similarity: float) -> None:
    rng, size, pairs = np.random.default_rng(0), 200, 300
    common = round(2 * size * similarity / (1 + similarity))
    sets = []
    for _ in range(pairs):
        drawn = rng.integers(2**63, size=2 * size - common, dtype=np.uint64)
        sets += [drawn[:size], np.concatenate([drawn[:common], drawn[size:]])]
    ends = np.arange(0, 2 * pairs * size + 1, size, dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), ends, HASHES, 1)
    rows = np.array(matrix.to_rows(), dtype=np.uint32)
    truth = common / (2 * size - common)
    agree = (rows[::2] == rows[1::2]).mean(axis=1)
    assert abs(agree.mean() - truth) < 4 * (truth * (1 - truth) / HASHES / pairs) ** 0.5 + 1e-3
    assert agree.std() < 1.3 * (truth * (1 - truth) / HASHES) ** 0.5  # what `SPREAD` counts on


def test_runs_are_those_of_each_text_alone() -> None:
    texts = [["a", "b", "c"], [], ["d"], ["a", "b", "c", "d", "e"], ["x"] * 4]
    hashes = np.array([word_hash(word) for words in texts for word in words], dtype=np.uint64)
    inside, counts = within(np.array([len(words) for words in texts]), 3)
    assert counts.tolist() == [1, 0, 0, 3, 2]
    found = np.split(windows(hashes, 3)[inside], np.cumsum(counts)[:-1])
    for words, runs in zip(texts, found, strict=True):
        alone = windows(np.array([word_hash(word) for word in words], dtype=np.uint64), 3)
        assert runs.tolist() == alone.tolist()
    assert found[0][0] == found[3][0]
    assert len({int(run) for runs in found for run in runs}) == 4  # abc, bcd, cde, xxx


def test_the_order_of_words_counts() -> None:
    one, other = (windows(np.array([word_hash(w) for w in words], np.uint64), 3) for words in ("abc", "acb"))
    assert one != other


def test_a_crowd_of_equal_beginnings_is_found_whole_and_joined_to_nobody_else() -> None:
    rng = np.random.default_rng(3)
    head = " ".join(map(str, rng.integers(10**6, size=60)))
    crowd = [f"{head} {i}" for i in range(400)]
    half = [f"{head} " + " ".join(map(str, rng.integers(10**6, size=60))) for _ in range(200)]  # similarity 0.3
    units = assign_units(_corpus(crowd + half), unit="record")
    assert set(units.first[:400]) == {0}
    assert units.first[400:].tolist() == list(range(400, 600))
    assert units.near_duplicates == 399


def test_no_pair_is_joined_that_is_less_similar_than_asked() -> None:
    rng = np.random.default_rng(4)
    texts = [" ".join(map(str, rng.integers(30, size=12))) for _ in range(300)]
    first = assign_units(_corpus(texts, 0.3), unit="record").first
    apart = 0
    for i, j in combinations(range(300), 2):
        mine, theirs = shingles(texts[i].split()), shingles(texts[j].split())
        if len(mine & theirs) < 0.3 * len(mine | theirs):
            apart += first[i] != first[j]
    joined = sum(first[i] == first[j] for i, j in combinations(range(300), 2))
    alike = sum(
        len(shingles(texts[i].split()) & shingles(texts[j].split()))
        >= 0.3 * len(shingles(texts[i].split()) | shingles(texts[j].split()))
        for i, j in combinations(range(300), 2)
    )
    assert joined == alike and apart == 300 * 299 / 2 - alike
