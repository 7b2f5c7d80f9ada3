"""Units of privacy, and the split into training and held-out records.

Two copies of one text in two units would break the promise made to each of them, and a copy on the held-out side
would make a leak look like skill. So equal and nearly equal texts are joined into one unit, and the split moves whole
groups: everything of one owner and of one unit. What is not covered: texts that say the same in other words, and texts
of less than five words that differ at all.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from reticent.data.record import Record
from reticent.errors import DataError

SHINGLE = 5  # words
HASHES = 128  # of each MinHash
MISSED = 1e-3  # at most this chance to overlook a pair that lies exactly on the threshold


class Units(NamedTuple):
    """``unit``: the unit of privacy of each record, named after its first owner (or, for unit "record", record).

    ``exact_duplicates`` counts the records whose text an earlier record has, up to case and spaces;
    ``near_duplicates`` the other texts that are at least as similar as the threshold to an earlier one.
    """

    unit: list[str]
    exact_duplicates: int
    near_duplicates: int


class Split(NamedTuple):
    """Indices of records, ascending; together all of them."""

    train: list[int]
    held_out: list[int]


def assign_units(records: Sequence[Record], *, unit: Literal["record", "owner"], near_duplicates: float) -> Units:
    """The unit of privacy of each record: itself or its owner, joined over equal and nearly equal texts.

    A text is the prompt and the completion. Texts are nearly equal if the Jaccard similarity of their sets of 5-word
    shingles is at least ``near_duplicates``, in (0, 1]. Candidates come from MinHash with banding (Leskovec, Rajaraman
    and Ullman, Mining of Massive Datasets, section 3.4); each is then compared exactly, so none is joined wrongly and
    one on the threshold is missed with a chance of at most 0.1 %.
    """
    assert 0 < near_duplicates <= 1, near_duplicates
    groups = _Groups(len(records))
    if unit == "owner":
        groups.join_equal(record.owner for record in records)
    words = [f"{record.prompt}\n{record.completion}".casefold().split() for record in records]
    first = groups.join_equal(" ".join(text) for text in words)
    near = _join_near(groups, {i: words[i] for i in first}, near_duplicates)
    names = [record.owner if unit == "owner" else record.id for record in records]
    return Units([names[groups.root(i)] for i in range(len(records))], len(records) - len(first), near)


def split(records: Sequence[Record], units: Sequence[str], *, held_out: float, seed: int) -> Split:
    """Holds out about a share ``held_out``, in (0, 1), of the groups; a group is everything of one owner and one unit.

    Each group's side follows from ``seed`` and its own texts alone, so one group more or less leaves the others where
    they are: with a drawn share, one person would move many records in or out of the training set, and no promise on
    that set would hold for the data. ``units`` is `Units.unit`.

    Raises:
        DataError: All records hang together in one group, or one side would be empty.
    """
    groups = _Groups(len(records))
    groups.join_equal(record.owner for record in records)
    groups.join_equal(units)
    roots = [groups.root(i) for i in range(len(records))]
    names: dict[int, bytes] = {}
    for root, record in zip(roots, records, strict=True):
        text = hashlib.sha256(f"{record.prompt}\n{record.completion}".encode()).digest()
        names[root] = min(text, names.get(root, text))
    if len(names) < 2:
        raise DataError(
            f"cannot hold out owners: the {len(records)} records form {len(names)} group (one owner, or owners that "
            f"share texts), and at least 2 are needed; check data.source.owner and data.near_duplicates"
        )
    out = {root for root, name in names.items() if _uniform(seed, name) < held_out}
    if not 0 < len(out) < len(names):
        raise DataError(
            f"data.held_out = {held_out:g} holds out {'everybody' if out else 'nobody'} of {len(names)} owners (or "
            "groups of them); change data.held_out, or data.seed"
        )
    return Split(
        train=[i for i, root in enumerate(roots) if root not in out],
        held_out=[i for i, root in enumerate(roots) if root in out],
    )


def _uniform(seed: int, name: bytes) -> float:
    """A number in [0, 1) that is fixed by both."""
    return int.from_bytes(hashlib.sha256(b"%d:" % seed + name).digest()[:8], "big") / 2.0**64


class _Groups:
    """A partition of 0..n-1 that only grows coarser (union-find); the root of a group is its smallest member."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low

    def join_equal(self, keys: Iterable[str]) -> list[int]:
        """Joins items with equal keys; returns the first item of each key."""
        first: dict[str, int] = {}
        for item, key in enumerate(keys):
            self.join(item, first.setdefault(key, item))
        return list(first.values())


def _join_near(groups: _Groups, texts: dict[int, list[str]], threshold: float) -> int:
    """Joins each text (item -> words) with the earlier ones that are nearly equal; returns how many had one."""
    from datasketch import MinHash, MinHashLSH

    shingles = {
        item: {" ".join(words[i : i + SHINGLE]).encode() for i in range(len(words) - SHINGLE + 1)}
        for item, words in texts.items()
        if len(words) >= SHINGLE
    }
    index = MinHashLSH(num_perm=HASHES, params=_bands(threshold))
    near = 0
    for (item, mine), sketch in zip(
        shingles.items(), MinHash.generator(shingles.values(), num_perm=HASHES), strict=True
    ):
        found = False
        for other in index.query(sketch):
            if found and groups.root(other) == groups.root(item):
                continue  # nothing left to learn from it
            theirs = shingles[other]
            common = len(mine & theirs)
            if common >= threshold * (len(mine) + len(theirs) - common):
                groups.join(item, other)
                found = True
        near += found
        index.insert(item, sketch, check_duplication=False)
    return near


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and rows of the LSH: the most selective that overlook a pair on the threshold with chance <= MISSED.

    A pair of similarity s is a candidate with chance 1 - (1 - s^rows)^bands.
    """
    rows = max(r for r in range(1, HASHES + 1) if r == 1 or (1 - threshold**r) ** (HASHES // r) <= MISSED)
    return HASHES // rows, rows
