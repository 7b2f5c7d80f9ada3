"""A language model as attacks and utility see it: token log-probabilities, and nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from reticent.errors import ModelError
from reticent.gradients.attention import Segment, segments
from reticent.gradients.rules import output_head
from reticent.progress import SILENT, Progress
from reticent.tokens import Tokens

_BLOCK = 2**16  # tokens whose scores are computed before any is handed out
_CHUNK, _CHUNK_CPU = 2**25, 2**22  # numbers over the vocabulary that stand in memory at once
_NEVER = -200.0  # exp of it is 0 in float32


class Sampling(NamedTuple):
    """How a deployed model draws a token: temperature, then the ``top_k`` likeliest tokens, then the smallest set of
    them that holds ``top_p`` of their probability; None is no truncation."""

    temperature: float = 1.0
    top_k: int | None = 40
    top_p: float | None = None


class TokenScores(NamedTuple):
    """Of the trained tokens of one record, given all tokens before.

    ``logp``: (n,) float32 nats. ``hit``: (n,) whether the token is the most likely one (greedy decoding would say it).
    With ``vocabulary``, over all tokens v that could stand there: ``mean``, sum_v p(v) log p(v), and ``deviation``,
    sqrt(sum_v p(v) (log p(v) - mean)^2), (n,) float32 nats. With ``sampling``: ``sampled``, (n,) float32, the
    log-probability that it draws the token; -inf where it never does.
    """

    logp: np.ndarray
    hit: np.ndarray
    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None
    sampled: np.ndarray | None = None


class LanguageModel(Protocol):
    """All that attacks and utility need."""

    def log_probs(
        self,
        records: Sequence[Tokens],
        progress: Progress = SILENT,
        *,
        vocabulary: bool = False,
        sampling: Sampling | None = None,
    ) -> list[TokenScores]:
        """Scores of each record, in order."""
        ...

    def scores(
        self,
        records: Sequence[Tokens],
        progress: Progress = SILENT,
        *,
        vocabulary: bool = False,
        sampling: Sampling | None = None,
    ) -> Iterator[tuple[int, TokenScores]]:
        """Each record's index and scores, in any order; those of all records never stand in memory at once."""
        ...


class _Tree(NamedTuple):
    """Records that share a prompt, as a tree of tokens: each distinct beginning is computed once.

    ``ids``, ``parents``, ``depths``: (nodes,), parents first (the root's parent is -1). ``paths``: for each record its
    number and the nodes of its tokens; the last token predicts nothing and has no node.
    """

    ids: np.ndarray
    parents: np.ndarray
    depths: np.ndarray
    paths: list[tuple[int, np.ndarray]]


class CausalModel:
    """A transformers model, with or without an adapter."""

    def __init__(self, model: PreTrainedModel, *, max_tokens: int = 2048) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._head = output_head(model)  # until the model turns out to do more with its scores

    @property
    def model(self) -> PreTrainedModel:
        """What is asked; prepared by `reticent.gradients.attention.use_segments`."""
        return self._model

    def log_probs(
        self,
        records: Sequence[Tokens],
        progress: Progress = SILENT,
        *,
        vocabulary: bool = False,
        sampling: Sampling | None = None,
    ) -> list[TokenScores]:
        """Scores of each record, in order. Prompts that records share are computed once.

        Raises:
            ModelError: as `scores`.
        """
        found = dict(self.scores(records, progress, vocabulary=vocabulary, sampling=sampling))
        return [found[i] for i in range(len(records))]

    def scores(
        self,
        records: Sequence[Tokens],
        progress: Progress = SILENT,
        *,
        vocabulary: bool = False,
        sampling: Sampling | None = None,
    ) -> Iterator[tuple[int, TokenScores]]:
        """Each record's index and scores, in any order, in memory that does not grow with the number of records.

        Prompts shared by records that stand near each other are computed once. ``records`` may be made when asked for.

        Raises:
            ModelError: the model gives scores that are not finite.
            ValueError: ``sampling`` is out of its bounds.
        """
        if sampling is not None:
            _check(sampling)
        with progress.task("scoring", total=len(records)) as task:
            for block in _blocks(records):
                trees = sorted(_trees(block, self._max_tokens), key=lambda tree: len(tree.ids), reverse=True)
                for row in _rows(trees, self._max_tokens):
                    found = self._score(row, block, vocabulary, sampling)
                    task.advance(len(found))
                    yield from found.items()

    @torch.no_grad()
    def _score(
        self, trees: Sequence[_Tree], records: dict[int, Tokens], vocabulary: bool, sampling: Sampling | None
    ) -> dict[int, TokenScores]:
        """Scores of the records of trees that stand in one row."""
        starts = np.cumsum([0, *(len(tree.ids) for tree in trees)])
        paths = [(number, at + path) for at, tree in zip(starts, trees, strict=False) for number, path in tree.paths]
        places = [np.flatnonzero(records[number].trained) for number, _ in paths]
        ends = np.cumsum([len(place) for place in places])
        if ends[-1] == 0:
            return {number: _none(vocabulary, sampling) for number, _ in paths}
        # Every predicted token: the node that predicts it, and the token.
        nodes = np.concatenate([path[place - 1] for (_, path), place in zip(paths, places, strict=True)])
        tokens = np.concatenate([records[n].ids[place] for (n, _), place in zip(paths, places, strict=True)])
        nodes, where = np.unique(nodes, return_inverse=True)
        states, head = self._read(trees, starts, nodes)
        parts = _over_vocabulary(states, head, where, tokens, vocabulary, sampling)
        if not np.isfinite(parts.logp).all():
            raise ModelError(
                "the model gives scores that are not finite, so it is broken: its training diverged or its weights are "
                "damaged. Train it again (a lower learning rate, or model.dtype: float32), or load other weights."
            )
        return {
            number: TokenScores(*(None if one is None else one[begin:end] for one in parts))  # type: ignore[arg-type]  # no None in front
            for (number, _), begin, end in zip(paths, [0, *ends[:-1]], ends, strict=True)
        }

    def _read(
        self, trees: Sequence[_Tree], starts: np.ndarray, nodes: np.ndarray
    ) -> tuple[torch.Tensor, nn.Linear | None]:
        """What the model's head gets at ``nodes``, (nodes, width), and the head; (nodes, vocabulary) scores and None
        where the model does not end in a plain head."""
        device = self._model.device
        at = torch.from_numpy(nodes).to(device)
        inputs = {
            "input_ids": torch.from_numpy(np.concatenate([tree.ids for tree in trees]))[None].to(device),
            "position_ids": torch.from_numpy(np.concatenate([tree.depths for tree in trees]))[None].to(device),
            "logits_to_keep": at,
            "use_cache": False,
        }
        parts = [
            Segment(int(start), int(start) + len(tree.ids), _mask(tree, device))
            for start, tree in zip(starts, trees, strict=False)
        ]
        with segments(parts):
            if self._head is not None:
                with _passing_on(self._head) as seen:
                    out = self._model(**inputs).logits
                # The head's own answer, untouched: nothing caps or scales it.
                if len(seen) == 1 and out is seen[0][0] and out._version == seen[0][1]:
                    return _at(out, at), self._head
                self._head = None
            return _at(self._model(**inputs).logits, at), None


# ------------------------------------------------------------------------------------------------ over the vocabulary


@contextmanager
def _passing_on(head: nn.Linear) -> Iterator[list[tuple[torch.Tensor, int]]]:
    """Within the block, ``head`` returns what it is given; each tensor is kept with its count of changes in place."""
    seen: list[tuple[torch.Tensor, int]] = []
    before = vars(head).get("forward")
    head.forward = partial(_pass_on, seen)  # type: ignore[method-assign]  # the instance's own, until the block ends
    try:
        yield seen
    finally:
        del head.forward
        if before is not None:
            head.forward = before  # type: ignore[method-assign]  # as it was


def _pass_on(seen: list[tuple[torch.Tensor, int]], x: torch.Tensor) -> torch.Tensor:
    seen.append((x, x._version))
    return x


def _at(out: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """(nodes, width) of (1, nodes or all tokens, width): not every model knows logits_to_keep."""
    return out[0] if out.shape[1] == len(nodes) else out[0, nodes]


def _over_vocabulary(
    states: torch.Tensor,
    head: nn.Linear | None,
    where: np.ndarray,
    tokens: np.ndarray,
    vocabulary: bool,
    sampling: Sampling | None,
) -> TokenScores:
    """Scores of ``tokens`` (n,) at the rows ``where`` (n,) of ``states``, chunk by chunk."""
    device = states.device
    width = states.shape[1] if head is None else head.out_features
    step = max(1, (_CHUNK_CPU if device.type == "cpu" else _CHUNK) // width)
    order = np.argsort(where, kind="stable")
    rows, asked = torch.from_numpy(where[order]).to(device), torch.from_numpy(tokens[order]).to(device)
    begins = np.arange(0, len(states), step)
    cuts = np.searchsorted(where[order], [*begins, len(states)])
    found = []
    for begin, first, last in zip(begins, cuts[:-1], cuts[1:], strict=True):
        part = states[begin : begin + step]
        logits = (part if head is None else linear(part, head.weight, head.bias)).float()
        if head is None and logits is part:
            logits = logits.clone()  # worked on in place
        found.append(_chunk(logits, rows[first:last] - int(begin), asked[first:last], vocabulary, sampling))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    whole = [None if one[0] is None else torch.cat(one).cpu().numpy()[back] for one in zip(*found, strict=True)]
    return TokenScores(*whole)  # type: ignore[arg-type]  # the first two are always there


def _chunk(
    logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, vocabulary: bool, sampling: Sampling | None
) -> tuple[torch.Tensor | None, ...]:
    """The fields of `TokenScores` for ``tokens`` at ``rows`` of ``logits`` (rows, vocabulary) float32, then lost."""
    best = logits.argmax(1)
    top = logits.gather(1, best[:, None])
    sampled = None if sampling is None else _sampled(logits, sampling)[rows, tokens]
    own = logits[rows, tokens]
    # Off the maximum first, or digits are lost; far below it, where p is 0, p log p is 0 too.
    shifted = logits.sub_(top).clamp_(min=_NEVER)
    mean = deviation = None
    if vocabulary:
        weight = shifted.exp()
        size = weight.sum(1)
        centre = torch.linalg.vecdot(weight, shifted) / size
        squares = shifted.sub_(centre[:, None]).square_()
        deviation = (torch.linalg.vecdot(weight, squares) / size).sqrt_()[rows]
        mean = (centre - size.log())[rows]
    else:
        size = shifted.exp_().sum(1)
    return own - (top[:, 0] + size.log())[rows], best[rows] == tokens, mean, deviation, sampled


def _sampled(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities (rows, vocabulary) that ``sampling`` draws from.

    As transformers' warpers: with top_k, all that tie with the k-th stay; at the edge of top_p, as many of those that
    tie as are needed (here the lower numbers go first; there it is not said which).
    """
    scaled = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled.shape[1]:
        least = scaled.topk(sampling.top_k).values[:, -1:]
        scaled = scaled.masked_fill_(scaled < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        count = int(torch.isfinite(scaled).sum(1).max())
        kept = scaled.topk(count).indices.sort().values  # the others have no probability: no need to sort them
        values, order = scaled.gather(1, kept).sort(stable=True)
        out = values.softmax(1).cumsum(1) <= 1 - sampling.top_p
        out[:, -1] = False
        scaled.scatter_(1, kept.gather(1, order), values.masked_fill(out, -torch.inf))
    return scaled.log_softmax(1)


def _check(sampling: Sampling) -> None:
    temperature, top_k, top_p = sampling
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: greedy decoding is `hit`")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, or None, got {top_p}")


def _none(vocabulary: bool, sampling: Sampling | None) -> TokenScores:
    """Of a record none of whose tokens are trained on."""
    empty = np.empty(0, dtype=np.float32)
    over = empty if vocabulary else None
    return TokenScores(empty, np.empty(0, dtype=bool), over, over, None if sampling is None else empty)


# --------------------------------------------------------------------------------------------------- records in rows


def _blocks(records: Sequence[Tokens]) -> Iterator[dict[int, Tokens]]:
    """Consecutive records of `_BLOCK` tokens together, by number."""
    block: dict[int, Tokens] = {}
    size = 0
    for number in range(len(records)):
        record = records[number]
        if block and size + len(record) > _BLOCK:
            yield block
            block, size = {}, 0
        block[number] = record
        size += len(record)
    if block:
        yield block


def _trees(records: dict[int, Tokens], max_tokens: int) -> list[_Tree]:
    """Records grouped by their untrained beginning; those that train on all their tokens stand alone.

    A group of more than ``max_tokens`` beyond its beginning is several trees: what a tree's nodes see of each other is
    a square matrix.
    """
    groups: dict[bytes, list[int]] = {}
    for number, record in records.items():
        first = int(np.argmax(record.trained))
        key = record.ids[:first].tobytes() if first > 1 else number.to_bytes(8, "big") + b"\0"
        groups.setdefault(key, []).append(number)
    trees = []
    for key, members in groups.items():
        if len(members) == 1:
            trees.append(_chain(records, members[0]))
        else:
            trees += _grown(records, members, max_tokens + len(key) // 8)
    return trees


def _chain(records: dict[int, Tokens], number: int) -> _Tree:
    ids = records[number].ids[:-1]
    nodes = np.arange(len(ids))
    return _Tree(ids, nodes - 1, nodes, [(number, nodes)])


def _grown(records: dict[int, Tokens], members: Sequence[int], limit: int) -> Iterator[_Tree]:
    """Trees of at most ``limit`` nodes each; one record may be longer."""
    nodes: list[tuple[int, int, int]] = []  # token, parent, depth
    paths: list[tuple[int, np.ndarray]] = []
    children: dict[tuple[int, int], int] = {}
    for number in members:
        ids = records[number].ids[:-1].tolist()
        path, parent = [], -1
        for token in ids:
            if (parent, token) not in children:
                break
            parent = children[parent, token]
            path.append(parent)
        if nodes and len(nodes) + len(ids) - len(path) > limit:
            yield _tree(nodes, paths)
            nodes, paths, children, path, parent = [], [], {}, [], -1
        for depth in range(len(path), len(ids)):
            children[parent, ids[depth]] = len(nodes)
            nodes.append((ids[depth], parent, depth))
            parent = len(nodes) - 1
            path.append(parent)
        paths.append((number, np.array(path, dtype=np.int64)))
    yield _tree(nodes, paths)


def _tree(nodes: list[tuple[int, int, int]], paths: list[tuple[int, np.ndarray]]) -> _Tree:
    ids, parents, depths = np.array(nodes, dtype=np.int64).reshape(-1, 3).T.copy()
    return _Tree(ids, parents, depths, paths)


def _mask(tree: _Tree, device: torch.device) -> torch.Tensor | None:
    """(nodes, nodes): each node sees itself and its ancestors; None for a plain chain."""
    if (np.diff(tree.parents, prepend=-2) == 1).all():
        return None
    mask = np.eye(len(tree.ids), dtype=bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return torch.from_numpy(mask).to(device)


def _rows(trees: Sequence[_Tree], max_tokens: int) -> list[list[_Tree]]:
    """Trees, longest first, in rows of at most ``max_tokens``; a larger tree has a row of its own."""
    rows: list[tuple[int, list[_Tree]]] = []
    for tree in trees:
        for at, (filled, members) in enumerate(rows):
            if filled + len(tree.ids) <= max_tokens:
                rows[at] = (filled + len(tree.ids), [*members, tree])
                break
        else:
            rows.append((len(tree.ids), [tree]))
    return [members for _, members in rows]
