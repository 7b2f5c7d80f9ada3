"""Records of several units, one after another in one row: no padding, no record sees another.

A row knows two kinds of boundaries. Attention segments are records; gradient segments are units, whose records stand
side by side. Equal records of one unit are computed once and weighted by their number: the gradient is the same.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Literal

import numpy as np
import torch

from reticent.tokens import Tokens

Loss = Literal["sum", "mean"]


@dataclass(frozen=True)
class Unit:
    """Everything of one privacy unit: the records whose summed gradient is clipped as a whole."""

    id: str
    records: tuple[Tokens, ...]


@dataclass(frozen=True)
class Row:
    """A packed row of T tokens of which K are predicted.

    ``ids``, ``positions``: (1, T). ``records``: where each record ends, ``units``: where each unit ends, both
    increasing and ending in T. ``predict``: (K,) positions whose next token is predicted, K < T; ``labels``,
    ``weights``: (K,) that token and its weight in the loss. ``predicted``: where each unit ends among these K.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    records: tuple[int, ...]
    units: tuple[int, ...]
    predict: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    predicted: tuple[int, ...]


@dataclass(frozen=True)
class _Piece:
    """A distinct record of a unit and the factor of its loss."""

    tokens: Tokens
    weight: float


def _pieces(unit: Unit, loss: Loss) -> list[_Piece]:
    """Distinct records; k equal ones have the gradient of one, k times."""
    keys = [(record.ids.tobytes(), record.trained.tobytes()) for record in unit.records]
    copies = Counter(keys)
    first = dict(zip(reversed(keys), reversed(unit.records), strict=True))
    return [
        _Piece(record, copies[key] / (int(record.trained.sum()) if loss == "mean" else 1))
        for key, record in first.items()
    ]


def _row(units: Sequence[Sequence[_Piece]]) -> Row:
    """One row of the given units."""
    records: list[int] = []
    ends: list[int] = []
    predicted: list[int] = []
    ids, positions, predict, labels, weights = [], [], [], [], []
    start = 0
    for pieces in units:
        for piece in pieces:
            trained = np.flatnonzero(piece.tokens.trained)
            ids.append(piece.tokens.ids)
            positions.append(np.arange(len(piece.tokens)))
            predict.append(start + trained - 1)
            labels.append(piece.tokens.ids[trained])
            weights.append(np.full(len(trained), piece.weight, dtype=np.float32))
            start += len(piece.tokens)
            records.append(start)
        ends.append(start)
        predicted.append(sum(map(len, predict)))
    return Row(
        ids=torch.from_numpy(np.concatenate(ids))[None],
        positions=torch.from_numpy(np.concatenate(positions))[None],
        records=tuple(records),
        units=tuple(ends),
        predict=torch.from_numpy(np.concatenate(predict)),
        labels=torch.from_numpy(np.concatenate(labels)),
        weights=torch.from_numpy(np.concatenate(weights)),
        predicted=tuple(predicted),
    )


def pack(units: Sequence[Unit], *, max_tokens: int, loss: Loss) -> Iterator[list[Row]]:
    """The rows of one draw, in groups: the units of a group are complete once its last row is computed.

    Units of at most ``max_tokens`` share rows, one row a group. A longer unit is a group of its own: several rows that
    each hold a part of its records, so that memory stays bounded.
    """
    fitting = []
    for pieces in sorted((_pieces(unit, loss) for unit in units), key=_length, reverse=True):
        if _length(pieces) > max_tokens:
            yield [_row([part]) for part in _parts(pieces, max_tokens)]
        else:
            fitting.append(pieces)
    for members in _dealt(fitting, max_tokens):
        yield [_row(members)]


def _dealt(units: Sequence[list[_Piece]], max_tokens: int) -> list[list[list[_Piece]]]:
    """Units, longest first, each to the row with the fewest tokens.

    So rows are alike, in tokens and in units, whose gradients take memory.
    """
    count = -(-sum(map(_length, units)) // max_tokens)
    while True:
        heap = [(0, row) for row in range(count)]
        rows: list[list[list[_Piece]]] = [[] for _ in range(count)]
        for pieces in units:
            filled, row = heap[0]
            if filled + _length(pieces) > max_tokens:
                break
            heapreplace(heap, (filled + _length(pieces), row))
            rows[row].append(pieces)
        else:
            return rows
        count += 1 + count // 20


def _length(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.tokens) for piece in pieces)


def _parts(pieces: Sequence[_Piece], max_tokens: int) -> Iterator[list[_Piece]]:
    """Consecutive records of at most ``max_tokens`` together; a longer record stands alone."""
    part: list[_Piece] = []
    for piece in pieces:
        if part and _length(part) + len(piece.tokens) > max_tokens:
            yield part
            part = []
        part.append(piece)
    yield part
