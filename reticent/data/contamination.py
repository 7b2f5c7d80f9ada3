"""Training records that hold a passage of an evaluation benchmark: a run of 13 words of it (Brown et al. 2020, app. C).

What was trained on cannot measure usefulness. Words are runs of letters and digits, whatever their case.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from reticent.data.near import windows, within, word_hash

NGRAM = 13
_WORD = re.compile(r"\w+")


class Benchmark:
    """All runs of 13 words of ``texts``, as 64-bit hashes. A text with fewer words has none."""

    def __init__(self, texts: Iterable[str]) -> None:
        found = [_runs([text])[0] for text in texts]
        self._runs = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))

    def __len__(self) -> int:
        return len(self._runs)

    def hits(self, texts: Sequence[str]) -> np.ndarray:
        """Which texts hold a run of the benchmark, (texts,) bool."""
        runs, counts = _runs(texts)
        place = np.minimum(np.searchsorted(self._runs, runs), max(len(self._runs) - 1, 0))
        same = self._runs[place] == runs if len(self._runs) else np.zeros(len(runs), bool)
        total = np.concatenate([[0], np.cumsum(same)])
        ends = np.cumsum(counts)
        return np.asarray(total[ends] > total[ends - counts])


def _runs(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    words = [_WORD.findall(text.casefold()) for text in texts]
    lengths = np.array([len(one) for one in words], dtype=np.int64)
    hashes = np.fromiter((word_hash(word) for one in words for word in one), np.uint64, int(lengths.sum()))
    inside, counts = within(lengths, NGRAM)
    return windows(hashes, NGRAM)[inside], counts
