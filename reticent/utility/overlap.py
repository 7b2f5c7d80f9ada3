"""What two collections of text share word for word: the longest common runs of tokens."""

from collections.abc import Sequence

import numpy as np

from reticent.data.near import windows, within


def longest_runs(texts: Sequence[np.ndarray], corpus: Sequence[np.ndarray]) -> np.ndarray:
    """(texts,) the length in tokens of the longest run of each text that also stands in one text of ``corpus``.

    By 64-bit hashes of runs: two different runs are taken for one with a chance of about pairs / 2^64.

    Raises:
        ValueError: there is no text.
    """
    if len(texts) == 0:
        raise ValueError("one or more texts are needed to look for, got 0")
    vocabulary = 1 + max((int(text.max()) for text in [*texts, *corpus] if len(text)), default=0)
    # Random numbers for tokens: small ids that differ in few bits would collide more often.
    values = np.random.default_rng(0).integers(2**64, size=vocabulary, dtype=np.uint64)
    lengths = np.array([len(text) for text in corpus], dtype=np.int64)
    hay = values[np.concatenate([np.empty(0, np.int64), *corpus])]
    longest = np.zeros(len(texts), dtype=np.int64)
    alive = np.arange(len(texts))
    size = 1
    while len(alive):  # a text without a common run of so many tokens has none of more
        known = np.unique(windows(hay, size)[within(lengths, size)[0]])
        own = [values[texts[i]] for i in alive.tolist()]
        inside, counts = within(np.array([len(one) for one in own], dtype=np.int64), size)
        runs = windows(np.concatenate(own), size)[inside]
        total = np.concatenate([[0], np.cumsum(np.isin(runs, known, assume_unique=False))])
        ends = np.cumsum(counts)
        alive = alive[total[ends] > total[ends - counts]]
        longest[alive] = size
        size += 1
    return longest
