"""A language model as attacks and utility see it: token log-probabilities, and nothing else."""

import itertools
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
from reticent.gradients.attention import Beginning, Segment, segments
from reticent.gradients.rules import output_head
from reticent.progress import SILENT, Progress
from reticent.tokens import Tokens

_BLOCK = 2**16  # tokens whose scores are computed before any is handed out
_CHUNK, _CHUNK_CPU = 2**25, 2**22  # numbers over the vocabulary that stand in memory at once
_SHORTEST = 32  # tokens that prompts must begin with alike to be worth a pass of their own
_SAVED = 256  # tokens that are then not read again, and at least an eighth of all
_SIDE = 256  # nodes of small trees that are read as one
_KEPT = 2**30  # bytes of keys and values of a beginning that stay in memory
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
    number and the nodes of its tokens; the last token predicts nothing and has no node. The first ``silent`` nodes are
    a chain that all records begin with and at which no score is asked.
    """

    ids: np.ndarray
    parents: np.ndarray
    depths: np.ndarray
    paths: list[tuple[int, np.ndarray]]
    silent: int = 0

    def cut(self, tokens: int) -> "_Tree":
        """Without its first ``tokens`` nodes, at most the silent ones: they are read elsewhere."""
        return _Tree(
            self.ids[tokens:],
            self.parents[tokens:] - tokens,
            self.depths[tokens:],
            [(number, path[tokens:] - tokens) for number, path in self.paths],
            self.silent - tokens,
        )


class _Known(NamedTuple):
    """A beginning that was read: its ``ids`` and what the attention layers made of them."""

    ids: np.ndarray
    read: Beginning


class CausalModel:
    """A transformers model, with or without an adapter."""

    def __init__(self, model: PreTrainedModel, *, max_tokens: int = 2048) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._head = output_head(model)  # until the model turns out to do more with its scores
        self._longest, self._span = _kept_tokens(model), _window(model)

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
        """Scores of each record, in order. Beginnings of prompts that records share are computed once.

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

        Prompts shared by records that stand near each other are computed once, and so is a long beginning that many
        prompts share. ``records`` may be made when asked for.

        Raises:
            ModelError: the model gives scores that are not finite.
            ValueError: ``sampling`` is out of its bounds.
        """
        if sampling is not None:
            check_sampling(sampling)
        with progress.task("scoring", total=len(records)) as task:
            known: _Known | None = None
            for block in _blocks(records):
                for beginning, trees in _alike(_trees(block, self._max_tokens), self._longest, self._span):
                    if len(beginning):
                        known = self._known(beginning, known)
                        trees = _together([tree.cut(len(known.ids)) for tree in trees], len(known.ids))
                    trees.sort(key=lambda tree: len(tree.ids), reverse=True)
                    for row in _rows(trees, self._max_tokens):
                        found = self._score(row, known if len(beginning) else None, block, vocabulary, sampling)
                        task.advance(len(found))
                        yield from found.items()

    def _known(self, ids: np.ndarray, before: _Known | None) -> _Known:
        """``ids`` read, or nearly all of them if that was done ``before``."""
        if before is not None:
            same = _in_common(ids, before.ids)
            if same >= 0.9 * len(ids):
                return _Known(ids[:same], before.read.first(same))
        read = Beginning()
        with torch.no_grad(), segments([Segment(0, len(ids))], into=read):
            self._model(
                input_ids=torch.from_numpy(ids)[None].to(self._model.device),
                position_ids=torch.arange(len(ids), device=self._model.device)[None],
                logits_to_keep=1,
                use_cache=False,
            )
        return _Known(ids, read)

    @torch.no_grad()
    def _score(
        self,
        trees: Sequence[_Tree],
        after: _Known | None,
        records: dict[int, Tokens],
        vocabulary: bool,
        sampling: Sampling | None,
    ) -> dict[int, TokenScores]:
        """Scores of the records of trees that stand in one row, each ``after`` what is known."""
        starts = np.cumsum([0, *(len(tree.ids) for tree in trees)])
        paths = [(number, at + path) for at, tree in zip(starts, trees, strict=False) for number, path in tree.paths]
        start = 0 if after is None else len(after.ids)
        places = [np.flatnonzero(records[number].trained) for number, _ in paths]
        ends = np.cumsum([len(place) for place in places])
        if ends[-1] == 0:
            return {number: _none(vocabulary, sampling) for number, _ in paths}
        # Every predicted token: the node that predicts it, and the token.
        nodes = np.concatenate([path[place - 1 - start] for (_, path), place in zip(paths, places, strict=True)])
        tokens = np.concatenate([records[n].ids[place] for (n, _), place in zip(paths, places, strict=True)])
        nodes, where = np.unique(nodes, return_inverse=True)
        states, head = self._read(trees, None if after is None else after.read, starts, nodes)
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
        self, trees: Sequence[_Tree], after: Beginning | None, starts: np.ndarray, nodes: np.ndarray
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
        with segments(parts, after=after):
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
    drawn = None if sampling is None else sampled(logits, sampling)[rows, tokens]
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
    return own - (top[:, 0] + size.log())[rows], best[rows] == tokens, mean, deviation, drawn


def sampled(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
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


def check_sampling(sampling: Sampling) -> None:
    """Refuses what is out of its bounds.

    Raises:
        ValueError: temperature is not above 0, or a truncation keeps nothing.
    """
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

    A group of more than ``max_tokens`` beyond its prompt is several trees: what a tree's nodes see of each other is
    a square matrix.
    """
    groups: dict[bytes, list[int]] = {}
    for number, record in records.items():
        first = int(np.argmax(record.trained))
        key = record.ids[:first].tobytes() if first > 1 else number.to_bytes(8, "big") + b"\0"
        groups.setdefault(key, []).append(number)
    trees = []
    for members in groups.values():
        if len(members) == 1:
            trees.append(_chain(records, members[0]))
        else:
            trees += _grown(records, members, max_tokens)
    return trees


def _chain(records: dict[int, Tokens], number: int) -> _Tree:
    ids = records[number].ids[:-1]
    nodes = np.arange(len(ids))
    return _Tree(ids, nodes - 1, nodes, [(number, nodes)], _silent(records[number]))


def _silent(record: Tokens) -> int:
    """Tokens at its beginning that predict nothing that is asked."""
    return max(int(np.argmax(record.trained)) - 1, 0)


def _grown(records: dict[int, Tokens], members: Sequence[int], most: int) -> Iterator[_Tree]:
    """Trees of records with one prompt, each of at most ``most`` nodes beyond it; one record may be longer."""
    silent = _silent(records[members[0]])
    prompt = records[members[0]].ids[: silent + 1]
    nodes: list[tuple[int, int, int]] = []  # token, parent, depth of those beyond the prompt
    paths: list[tuple[int, np.ndarray]] = []
    children: dict[tuple[int, int], int] = {}
    for number in members:
        ids = records[number].ids[silent + 1 : -1].tolist()
        path, parent = [], silent
        for token in ids:
            if (parent, token) not in children:
                break
            parent = children[parent, token]
            path.append(parent)
        if nodes and len(nodes) + len(ids) - len(path) > most:
            yield _tree(prompt, nodes, paths)
            nodes, paths, children, path, parent = [], [], {}, [], silent
        for depth in range(len(path), len(ids)):
            node = silent + 1 + len(nodes)
            children[parent, ids[depth]] = node
            nodes.append((ids[depth], parent, silent + 1 + depth))
            parent = node
            path.append(parent)
        paths.append((number, np.concatenate([np.arange(silent + 1), np.array(path, dtype=np.int64)])))
    yield _tree(prompt, nodes, paths)


def _tree(prompt: np.ndarray, nodes: list[tuple[int, int, int]], paths: list[tuple[int, np.ndarray]]) -> _Tree:
    at = np.arange(len(prompt))
    beyond = np.array(nodes, dtype=np.int64).reshape(-1, 3).T
    ids, parents, depths = (np.concatenate(both) for both in zip((prompt, at - 1, at), beyond, strict=True))
    return _Tree(ids, parents, depths, paths, len(prompt) - 1)


def _mask(tree: _Tree, device: torch.device) -> torch.Tensor | None:
    """(nodes, nodes): each node sees itself and its ancestors; None for a plain chain."""
    turns = np.flatnonzero(np.diff(tree.parents, prepend=-2) != 1)
    if not len(turns):
        return None
    mask = np.eye(len(tree.ids), dtype=bool)
    chain = int(turns[0])
    mask[:chain, :chain] = np.tri(chain, dtype=bool)
    for node in range(chain, len(mask)):
        if (parent := tree.parents[node]) >= 0:
            mask[node] |= mask[parent]
    return torch.from_numpy(mask).to(device)


# -------------------------------------------------------------------------------------------------- shared beginnings


def _alike(trees: list[_Tree], longest: int, span: int | None) -> list[tuple[np.ndarray, list[_Tree]]]:
    """Trees by a long beginning that is theirs alone, of at most ``longest`` tokens; an empty one for all others.

    A model that attends to the last ``span`` tokens only reads longer texts whole.
    """
    fit = [tree.silent >= _SHORTEST and (span is None or tree.silent + len(tree.ids) <= span) for tree in trees]
    those = [tree for tree, fits in zip(trees, fit, strict=True) if fits]
    if sum(min(tree.silent, longest) for tree in those[1:]) < _SAVED:
        return [(np.empty(0, dtype=np.int64), trees)]
    those.sort(key=lambda tree: tree.ids[: tree.silent].tobytes())
    common = [
        _in_common(one.ids[: min(one.silent, longest)], other.ids[: other.silent])
        for one, other in itertools.pairwise(those)
    ]
    groups = []
    alone = [tree for tree, fits in zip(trees, fit, strict=True) if not fits]
    end = 0
    for first, last, tokens in _ranges(common, np.cumsum([0, *(len(tree.ids) for tree in those)])):
        groups.append((those[first].ids[:tokens], those[first:last]))
        alone += those[end:first]
        end = last
    alone += those[end:]
    return [*groups, (np.empty(0, dtype=np.int64), alone)]


def _ranges(common: Sequence[int], sizes: np.ndarray) -> list[tuple[int, int, int]]:
    """Where sorted texts are best read after a beginning that they share: first text, behind the last, tokens.

    ``common``: the tokens that each text and the next have in common; ``sizes``: the tokens of all texts before each.
    Ranges that lie in each other are weighed by what they save.
    """
    opened: list[tuple[int, int, int, list[tuple[int, int, int]]]] = []  # tokens, first, what its parts save, the parts
    for number, tokens in enumerate([*common, 0]):
        first, saved = number, 0
        parts: list[tuple[int, int, int]] = []
        while opened and opened[-1][0] >= tokens:
            shared, first, before, earlier = opened.pop()
            saved, parts = saved + before, earlier + parts
            whole = (number - first) * shared
            enough = shared >= _SHORTEST and whole >= max(_SAVED, (sizes[number + 1] - sizes[first]) / 8)
            if shared > tokens and enough and whole >= saved:
                saved, parts = whole, [(first, number + 1, shared)]
        opened.append((tokens, first, saved, parts))
    return [part for _, _, _, parts in opened for part in parts]


def _in_common(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that both begin with."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


def _together(trees: Sequence[_Tree], before: int) -> list[_Tree]:
    """Trees side by side, half as many nodes as stand ``before`` each: those are then not repeated for every tree."""
    size = max(before // 2, _SIDE)
    return [one[0] if len(one) == 1 else _side_by_side(one) for one in _rows(trees, size)]


def _side_by_side(trees: Sequence[_Tree]) -> _Tree:
    starts = np.cumsum([0, *(len(tree.ids) for tree in trees)])
    pairs = list(zip(starts, trees, strict=False))
    return _Tree(
        np.concatenate([tree.ids for tree in trees]),
        np.concatenate([np.where(tree.parents < 0, -1, tree.parents + at) for at, tree in pairs]),
        np.concatenate([tree.depths for tree in trees]),
        [(number, at + path) for at, tree in pairs for number, path in tree.paths],
    )


def _kept_tokens(model: PreTrainedModel) -> int:
    """Tokens whose keys and values take `_KEPT` bytes."""
    config = model.config.get_text_config()
    heads, pairs = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(_KEPT // (2 * config.num_hidden_layers * (pairs or heads) * dim * model.dtype.itemsize))


def _window(model: PreTrainedModel) -> int | None:
    """Tokens that some layer attends to at most, itself included."""
    said = getattr(model.config.get_text_config(), "sliding_window", None)
    return None if said is None else int(said)


# -------------------------------------------------------------------------------------------------------------- rows


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
