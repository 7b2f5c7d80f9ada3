"""Units of privacy, and the split into training, held-out and calibration records.

Two copies of one text in two units would break the promise made to each of them, and a copy on the held-out side
would make a leak look like skill. So equal and nearly equal texts are joined into one unit, and the split moves whole
groups: everything of one owner and of one unit. What is not covered: texts that say the same in other words, and texts
of less than five words that differ at all.
"""

from typing import Final, Literal, NamedTuple

import numpy as np

from reticent.data.corpus import Corpus, uniform
from reticent.errors import DataError

PARTS: Final = ("train", "held_out", "calibration")


class Units(NamedTuple):
    """``first``: of each record the first record of its unit of privacy, which is named after that record's owner (or,
    for unit "record", its id).

    ``exact_duplicates`` counts the records whose text an earlier record has, up to case and spaces;
    ``near_duplicates`` the other texts that hang together with an earlier one by being similar.
    """

    first: np.ndarray
    exact_duplicates: int
    near_duplicates: int


class Split(NamedTuple):
    """Of each record its place in `PARTS`, and the first record of the group that moved with it."""

    part: np.ndarray
    group: np.ndarray


def assign_units(corpus: Corpus, *, unit: Literal["record", "owner"]) -> Units:
    """The unit of privacy of each record: itself or its owner, joined over equal and nearly equal texts.

    A text is the prompt and the completion, before scrubbing: what differs in a name alone is not the same.
    """
    equal = [corpus.text, corpus.owner] if unit == "owner" else [corpus.text]
    groups = _Groups(joined(*equal))
    texts = _Groups(joined(corpus.text))
    near = 0

    def join(one: int, other: int) -> None:
        nonlocal near
        groups.join(one, other)
        near += texts.join(one, other)

    if corpus.sketches is not None:
        corpus.sketches.join(join, texts.find)
    everyone = np.arange(len(corpus))
    return Units(groups.find(everyone), len(corpus) - len(np.unique(corpus.text)), near)


def split(corpus: Corpus, units: np.ndarray, *, held_out: float, calibration: float = 0.0, seed: int) -> Split:
    """Gives away shares ``held_out`` and ``calibration`` of the groups: everything of one owner and one unit.

    Each group's side follows from ``seed`` and its own texts alone, so one group more or less leaves the others where
    they are: with a drawn share, one person would move many records in or out of the training set, and no promise on
    that set would hold for the data. ``units`` is `Units.first`. Calibration takes from what would be trained on, so
    that asking for it leaves the held-out records as they are.

    Raises:
        DataError: All records hang together in one group, or one side would be empty.
    """
    group = joined(corpus.owner, units)
    roots, place = np.unique(group, return_inverse=True)
    if len(roots) < 2:
        raise DataError(
            f"cannot hold out owners: the {len(corpus)} records form {len(roots)} group (one owner, or owners that "
            f"share texts), and at least 2 are needed; check data.source.owner and data.near_duplicates"
        )
    names = np.full(len(roots), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(names, place, corpus.text)
    drawn = np.array([uniform(f"{seed}:{name}") for name in names.tolist()])
    side = np.zeros(len(roots), dtype=np.int8)
    side[drawn < held_out + calibration] = PARTS.index("calibration")
    side[drawn < held_out] = PARTS.index("held_out")
    for name, share in (("held_out", held_out), ("calibration", calibration)):
        count = int((side == PARTS.index(name)).sum())
        if share and not 0 < count < len(roots):
            raise DataError(
                f"data.{name} = {share:g} takes {'everybody' if count else 'nobody'} of {len(roots)} owners (or groups "
                f"of them); change data.{name}, or data.seed"
            )
    if not (side == 0).any():
        raise DataError(
            f"data.held_out = {held_out:g} and data.calibration = {calibration:g} leave none of {len(roots)} owners "
            "(or groups of them) to train on; lower them, or change data.seed"
        )
    return Split(side[place], group)


def joined(*labels: np.ndarray) -> np.ndarray:
    """Items that have any label in common, directly or through others, are one group: of each the first item."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = len(labels[0])
    everyone = np.arange(size)
    firsts = []
    for label in labels:
        _, first, place = np.unique(label, return_index=True, return_inverse=True)
        firsts.append(first[place])
    if len(firsts) == 1:
        return np.asarray(firsts[0])
    ends = np.concatenate(firsts)
    starts = np.tile(everyone, len(firsts))
    graph = coo_matrix((np.ones(len(ends), dtype=np.int8), (starts, ends)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    first = np.empty(size, dtype=np.int64)
    first[component[::-1]] = everyone[::-1]
    return np.asarray(first[component])


class _Groups:
    """A partition of 0..n-1 that only grows coarser (union-find); the root of a group is its smallest member."""

    def __init__(self, first: np.ndarray) -> None:
        self._parent = first.copy()

    def root(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    def join(self, one: int, other: int) -> bool:
        """Whether they were apart before."""
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low
        return low != high

    def find(self, items: np.ndarray) -> np.ndarray:
        """The roots of many."""
        roots = self._parent[items]
        while not np.array_equal(further := self._parent[roots], roots):
            roots = further
        return np.asarray(roots)
