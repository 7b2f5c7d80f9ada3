"""A language model as attacks and utility see it: token log-probabilities and generated text, nothing else."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from reticent.gradients.attention import Segment, segments
from reticent.progress import SILENT, Progress
from reticent.tokens import Tokens


class TokenScores(NamedTuple):
    """Of the trained tokens of one record, given all tokens before: ``logp`` (n,) float32 nats, and ``hit`` (n,)
    whether the token is the most likely one (greedy decoding would say it)."""

    logp: np.ndarray
    hit: np.ndarray


class LanguageModel(Protocol):
    """All that attacks and utility need."""

    def log_probs(self, records: Sequence[Tokens], progress: Progress = SILENT) -> list[TokenScores]:
        """Scores of each record, in order."""
        ...

    def generate(self, prompts: Sequence[np.ndarray], *, max_new_tokens: int) -> list[np.ndarray]:
        """The most likely continuation of each prompt, (tokens,) int64, without the prompt."""
        ...


class _Tree(NamedTuple):
    """Records that share a prompt, as a tree of tokens: each distinct beginning is computed once.

    ``ids``, ``parents``, ``depths``: one entry a node, parents first (the root's parent is -1). ``paths``: for each
    record its number and the nodes of its tokens; the last token predicts nothing and has no node.
    """

    ids: list[int]
    parents: list[int]
    depths: list[int]
    paths: list[tuple[int, list[int]]]


class CausalModel:
    """A transformers model, with or without an adapter."""

    def __init__(self, model: PreTrainedModel, *, max_tokens: int = 2048, end_of_text: int | None = None) -> None:
        self._model, self._max_tokens, self._end = model, max_tokens, end_of_text

    @torch.no_grad()
    def log_probs(self, records: Sequence[Tokens], progress: Progress = SILENT) -> list[TokenScores]:
        """Scores of each record, in order. Prompts that records share are computed once."""
        results: dict[int, TokenScores] = {}
        trees = sorted(_trees(records), key=lambda tree: len(tree.ids), reverse=True)
        with progress.task("scoring", total=sum(len(tree.ids) for tree in trees)) as task:
            for row in _rows(trees, self._max_tokens):
                results |= self._score(row, records)
                task.advance(sum(len(tree.ids) for tree in row))
        return [results[i] for i in range(len(records))]

    def _score(self, trees: Sequence[_Tree], records: Sequence[Tokens]) -> dict[int, TokenScores]:
        """Scores of the records of trees that stand in one row."""
        device = self._model.device
        parts, starts, start = [], [], 0
        for tree in trees:
            starts.append(start)
            parts.append(Segment(start, start + len(tree.ids), _mask(tree, device)))
            start += len(tree.ids)
        # Every predicted token: (record, node that predicts it, token).
        asked = [
            (number, at + path[i - 1], int(records[number].ids[i]))
            for at, tree in zip(starts, trees, strict=True)
            for number, path in tree.paths
            for i in np.flatnonzero(records[number].trained)
        ]
        nodes, where = np.unique(np.array([node for _, node, _ in asked], dtype=np.int64), return_inverse=True)
        with segments(parts):
            logits = self._model(
                input_ids=torch.tensor([[token for tree in trees for token in tree.ids]], device=device),
                position_ids=torch.tensor([[depth for tree in trees for depth in tree.depths]], device=device),
                logits_to_keep=torch.from_numpy(nodes).to(device),
                use_cache=False,
            ).logits[0]
        tokens = torch.tensor([token for _, _, token in asked], device=device)
        at_node = torch.from_numpy(where).to(device)
        normaliser = logits.float().logsumexp(-1)
        logp = (logits[at_node, tokens].float() - normaliser[at_node]).cpu().numpy()
        hit = (logits.argmax(-1)[at_node] == tokens).cpu().numpy()
        owners = np.array([number for number, _, _ in asked])
        ends = np.flatnonzero(np.diff(owners, append=-1)) + 1
        begins = [0, *ends[:-1]]
        return {int(owners[b]): TokenScores(logp[b:e], hit[b:e]) for b, e in zip(begins, ends, strict=True)}

    @torch.no_grad()
    def generate(self, prompts: Sequence[np.ndarray], *, max_new_tokens: int) -> list[np.ndarray]:
        """The most likely continuation of each prompt, (tokens,) int64, up to and without the end of text."""
        out = []
        for prompt in prompts:
            ids = [int(token) for token in prompt]
            for _ in range(max_new_tokens):
                with segments([Segment(0, len(ids))]):
                    logits = self._model(
                        input_ids=torch.tensor([ids], device=self._model.device), logits_to_keep=1, use_cache=False
                    ).logits
                token = int(logits[0, -1].argmax())
                if token == self._end:
                    break
                ids.append(token)
            out.append(np.array(ids[len(prompt) :], dtype=np.int64))
        return out


def _trees(records: Sequence[Tokens]) -> list[_Tree]:
    """Records grouped by their untrained beginning; those that train on all their tokens stand alone."""
    groups: dict[bytes, list[int]] = {}
    for number, record in enumerate(records):
        first = int(np.argmax(record.trained))
        key = record.ids[:first].tobytes() if first > 1 else number.to_bytes(8, "big") + b"\0"
        groups.setdefault(key, []).append(number)
    return [_tree(records, members) for members in groups.values()]


def _tree(records: Sequence[Tokens], members: Sequence[int]) -> _Tree:
    tree = _Tree([], [], [], [])
    children: dict[tuple[int, int], int] = {}
    for number in members:
        path, parent = [], -1
        for depth, token in enumerate(records[number].ids[:-1].tolist()):
            node = children.get((parent, token))
            if node is None:
                node = len(tree.ids)
                children[parent, token] = node
                tree.ids.append(token)
                tree.parents.append(parent)
                tree.depths.append(depth)
            path.append(node)
            parent = node
        tree.paths.append((number, path))
    return tree


def _mask(tree: _Tree, device: torch.device) -> torch.Tensor | None:
    """(nodes, nodes): each node sees itself and its ancestors; None for a plain chain."""
    if all(parent == node - 1 for node, parent in enumerate(tree.parents)):
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
