"""Texts that are nearly equal: Jaccard similarity of their sets of 5-word shingles.

Candidates come from MinHash with banding (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4);
those whose sketches agree too little to be similar are passed over, and all others are compared shingle by shingle
(as 64-bit hashes). So none is
joined wrongly, and a pair on the threshold is overlooked with a chance of little more than 0.1 %.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from reticent.data.store import Mapped, unnamed_file

SHINGLE = 5  # words
HASHES = 128  # of each sketch
MISSED = 1e-3  # at most this chance that a pair exactly on the threshold is no candidate
SPREAD = 4.0  # standard deviations below the threshold at which a sketch rules a pair out
_SEED = 1
_VOCABULARY = 200_000  # words whose hashes are kept
_BLOCK = 2**16  # texts
_PAIRS = 2**9  # that are looked at together: each brings up to 64 KiB of two files into memory

Find = Callable[[np.ndarray], np.ndarray]


def bands(threshold: float) -> tuple[int, int]:
    """Bands and rows of the LSH: the most selective that overlook a pair on the threshold with chance <= MISSED.

    A pair of similarity s is a candidate with chance 1 - (1 - s^rows)^bands.
    """
    rows = max(r for r in range(1, HASHES + 1) if r == 1 or (1 - threshold**r) ** (HASHES // r) <= MISSED)
    return HASHES // rows, rows


class Sketches:
    """The shingles of each text and their MinHash, as hashes, on disk; no text is kept.

    ``threshold`` in (0, 1]: texts at least this similar are nearly equal.
    """

    def __init__(self, threshold: float, folder: Path | None = None) -> None:
        assert 0 < threshold <= 1, threshold
        self.threshold = threshold
        self._bands, self._rows = bands(threshold)
        self._sketches, self._keys, self._shingles = (unnamed_file(self, folder) for _ in range(3))
        self._hashes = _Words()
        self._count = 0
        self._ends = array("q", [0])  # of each text's shingles

    def add(self, texts: Sequence[Sequence[str]]) -> None:
        """More texts, as words. One with fewer than five is like no other."""
        from rensa import RMinHash  # type: ignore[import-untyped]  # it has none

        lengths = np.array([len(words) for words in texts])
        hashes = np.fromiter((self._hashes[word] for words in texts for word in words), np.uint64, int(lengths.sum()))
        runs = windows(hashes, SHINGLE)
        inside, counts = within(lengths, SHINGLE)
        shingles = runs[inside]
        ends = np.concatenate([[0], np.cumsum(counts)])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, ends.astype(np.uint64), HASHES, _SEED)
        sketches = np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), HASHES)
        self._sketches.write(sketches.tobytes())
        keys = _mixed(sketches[:, : self._bands * self._rows].reshape(len(texts), self._bands, self._rows))
        keys[counts == 0] = 0
        self._keys.write(keys.tobytes())
        self._shingles.write(shingles.tobytes())
        self._ends.extend((ends[1:] + self._ends[-1]).tolist())
        self._count += len(texts)

    def join(self, join: Callable[[int, int], None], find: Find) -> None:
        """Calls ``join`` on pairs until all nearly equal texts hang together. ``find``: the group of each text."""
        if not self._ends[-1]:
            return
        self._keys.flush()
        sketches, shingles = Mapped(self._sketches), Mapped(self._shingles)
        matrix = np.frombuffer(sketches.view, dtype=np.uint32).reshape(-1, HASHES)
        sets = _Sets(np.frombuffer(shingles.view, dtype=np.uint64), self._ends)
        least = self.threshold - SPREAD * (self.threshold * (1 - self.threshold) / HASHES) ** 0.5
        for band in range(self._bands):
            for one, other in self._candidates(band, find):
                for start in range(0, len(one), _PAIRS):
                    first, second = one[start : start + _PAIRS], other[start : start + _PAIRS]
                    likely = (matrix[first] == matrix[second]).mean(axis=1) >= least
                    sketches.forget()
                    for pair in zip(first[likely].tolist(), second[likely].tolist(), strict=True):
                        mine, theirs = sets[pair[0]], sets[pair[1]]
                        common = len(np.intersect1d(mine, theirs, assume_unique=True))
                        if common >= self.threshold * (len(mine) + len(theirs) - common):
                            join(*pair)
                    shingles.forget()

    def _candidates(self, band: int, find: Find) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of different groups that agree in one band; ``find`` is asked again for each lot of pairs."""
        keys = self._column(band)
        order = np.argsort(keys, kind="stable")
        order = order[keys[order] != 0]
        order = order[_runs(keys[order])]
        for distance in range(1, len(order)):
            groups, starts = find(order), _starts(keys[order])
            if not len(starts):
                return
            # What hangs together already has nothing more to find, and a run shorter than the distance has no pair.
            lengths = np.diff(np.append(starts, len(order)))
            alike = np.minimum.reduceat(groups, starts) == np.maximum.reduceat(groups, starts)
            order = order[np.repeat(~alike & (lengths > distance), lengths)]
            if len(order) <= distance:
                return
            groups, column = find(order), keys[order]
            pairs = (column[:-distance] == column[distance:]) & (groups[:-distance] != groups[distance:])
            if pairs.any():
                yield order[:-distance][pairs], order[distance:][pairs]

    def _column(self, band: int) -> np.ndarray:
        """The keys of all texts in one band."""
        self._keys.seek(0)
        blocks = []
        while block := self._keys.read(_BLOCK * self._bands * 4):
            blocks.append(np.frombuffer(block, dtype=np.uint32).reshape(-1, self._bands)[:, band].copy())
        return np.concatenate(blocks)


def windows(hashes: np.ndarray, size: int) -> np.ndarray:
    """A hash of each run of ``size`` hashes, (n - size + 1,) uint64."""
    count = max(len(hashes) - size + 1, 0)
    runs = np.zeros(count, dtype=np.uint64)
    for place in range(size):  # A multiplier of SplitMix64, and a shift so that order counts.
        runs = (runs ^ (runs >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + count]
    return runs


def within(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which runs over the joined texts lie inside one text, and how many each text has."""
    counts = np.maximum(lengths - size + 1, 0)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if len(lengths) else np.empty(0, np.int64)
    before = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return np.arange(int(counts.sum())) + before, counts


class _Words(dict[str, int]):
    """The hash of each word; bounded."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _VOCABULARY:
            self.clear()
        value = self[word] = word_hash(word)
        return value


def word_hash(word: str) -> int:
    """64 bits of a word."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


class _Sets(dict[int, np.ndarray]):
    """The shingles of texts compared lately, each once."""

    def __init__(self, shingles: np.ndarray, ends: Sequence[int]) -> None:
        self._shingles, self._ends = shingles, ends

    def __missing__(self, item: int) -> np.ndarray:
        if len(self) >= 2000:
            self.clear()
        value = self[item] = np.unique(self._shingles[self._ends[item] : self._ends[item + 1]])
        return value


def _mixed(rows: np.ndarray) -> np.ndarray:
    """One key, never 0, of each band's rows: (texts, bands, rows) -> (texts, bands) uint32."""
    keys = np.zeros(rows.shape[:2], dtype=np.uint64)
    for place in range(rows.shape[2]):
        keys = (keys ^ (keys >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) + rows[:, :, place]
    keys ^= keys >> np.uint64(32)
    short: np.ndarray = (keys * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)).astype(np.uint32)
    return np.asarray(np.maximum(short, 1))


def _starts(keys: np.ndarray) -> np.ndarray:
    """Where each run of equal keys begins."""
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)


def _runs(keys: np.ndarray) -> np.ndarray:
    """Which of sorted keys have an equal neighbour."""
    same = keys[1:] == keys[:-1]
    if not len(keys):
        return np.empty(0, bool)
    return np.asarray(np.append(same, False) | np.append(False, same))
