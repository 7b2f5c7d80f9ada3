"""What the coordinator of a federation reads from one update, in closed form: which tokens it was made of.

An honest but curious coordinator knows the model and sees how the weights have changed. The gradient of a layer that
reads x_1, ..., x_n is sum_i delta_i x_i^T, so its rows lie in the span of what was read (Petrov et al., DAGER,
arXiv:2405.15586, section 4). The first layer reads one vector a token of the vocabulary, which anyone can compute.

- Embedding rows: if the head has weights of its own, exactly the rows of the tokens that were read change. If it shares
  the embedding's, every row does, by the softmax; then those of the update's tokens only change more.
- Span test: a token was read if and only if its vector lies in the span, while fewer tokens were read than there are
  dimensions. This takes the changed weights of the first layer's query, key and value, or the changed A of their LoRA
  adapters, of as many dimensions as the ranks together (none while B is zero).
- LoRA's B: dB = sum_i delta_i (A x_i)^T, the same test on the projected vectors, of as many dimensions as the rank. It
  is all that there is while B is zero, or where A is frozen.

Directions that a client sends on purpose, to be found again in the final weights, are at the end of the module.

What is not covered: attacks that optimise or use a language model, and a malicious coordinator, who sends weights made
for reading (DECEPTICONS and its kind), is out of scope. Stronger attacks on updates are published: see `CAVEAT`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import special
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reticent.gradients.attention import causal, segments
from reticent.gradients.engines import evaluating

Update = Mapping[str, torch.Tensor]

CAVEAT = (
    "Passing this probe is not a safety statement: stronger attacks on updates are published "
    "(UTR, arXiv:2601.17533; TIGER, arXiv:2606.18312)."
)

TOLERANCE = 0.01  # relative distance from the span: far above float32 rounding, far below that of other tokens
_ROUNDING = float(torch.finfo(torch.float32).eps)
_CHUNK = 4096  # tokens of the vocabulary at once


@dataclass(frozen=True)
class FirstLayer:
    """What anyone who has the model knows of its first layer.

    ``inputs``: what it reads for each token, one (vocabulary, d) float32 for each position, a single one where the
    position does not matter. ``rows``: names of tensors whose gradient has rows in the span of that. ``columns``: those
    among them that are stored (in, out). ``projections``: A, (rank, d), by the name of its B. ``embedding``: its name.
    ``tied``: whether the head shares it.
    """

    inputs: tuple[torch.Tensor, ...]
    rows: tuple[str, ...]
    columns: frozenset[str]
    projections: dict[str, torch.Tensor]
    embedding: str
    tied: bool

    @property
    def names(self) -> frozenset[str]:
        """The tensors that the probe reads, if an update has them."""
        return frozenset({*self.rows, *self.projections, self.embedding})


class Reading(NamedTuple):
    """``tokens``: ids that were read off, surest first. ``how``: "embedding rows", "span", "projected span", "ranking".

    A ranking names as many tokens as the attacker was told there are; the others name those that pass the test.
    """

    tokens: np.ndarray
    how: str


class Span(NamedTuple):
    """An orthonormal ``basis`` (rank, d) of a row space; ``free``: how many dimensions it leaves."""

    basis: torch.Tensor
    free: int

    def distances(self, vectors: torch.Tensor) -> torch.Tensor:
        """(n,) |x - P x| / |x| of (n, d) float32 vectors, up to 1e-3; 1 for zeros."""
        across, found = self.basis.to(vectors.dtype).T, []
        for part in vectors.split(_CHUNK):
            sizes = part.square().sum(dim=1)
            within = (part @ across).square().sum(dim=1) / sizes.clamp_min(torch.finfo(part.dtype).tiny)
            found.append((1 - within).clamp_min(0).sqrt())
        return torch.cat(found)


class Overlap(NamedTuple):
    """``found`` of the ``there`` distinct tokens of an update are among the ``named`` ones."""

    found: int
    there: int
    named: int

    @property
    def recall(self) -> float:
        """Share of what is there that was found."""
        return self.found / self.there if self.there else 0.0

    @property
    def precision(self) -> float:
        """Share of what was named that is there; 0 if nothing was named."""
        return self.found / self.named if self.named else 0.0


# --------------------------------------------------------------------------------------------- what the model tells


class _Stop(Exception):  # noqa: N818  # no error: all that was wanted is there
    """Ends a forward pass."""


def first_layer(model: PreTrainedModel, *, positions: int = 1) -> FirstLayer:
    """Asks ``model``, with its adapter, what the first layer reads for every token of the vocabulary.

    ``positions``: how many are tried where the position matters (learned absolute ones, as in GPT-2).

    Raises:
        ValueError: ``positions`` is not positive, or the model has no linear layer above its embedding.
    """
    if positions < 1:
        raise ValueError(f"positions must be at least 1, got {positions}")
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    size = min(model.config.get_text_config().vocab_size, embedding.num_embeddings)
    modules = dict(model.named_modules())
    with evaluating(model), torch.no_grad():
        readers = _readers(model)
        if not readers:
            raise ValueError("the model has no linear layer above its embedding, so there is nothing to read")
        first = modules[readers[0]]
        few = torch.arange(min(size, 8))
        moves = not torch.equal(_read(model, first, few, 0), _read(model, first, few, 1))
        inputs = tuple(
            torch.cat([_read(model, first, ids, position) for ids in torch.arange(size).split(_CHUNK)])
            for position in range(positions if moves else 1)
        )
    parameters = dict(model.named_parameters())
    rows = [f"{name}.weight" for name in readers]
    projections = {}
    for name in readers:
        a, b = (f"{name.removesuffix('.base_layer')}.lora_{half}.default.weight" for half in "AB")
        if a in parameters and b in parameters:
            rows.append(a)
            projections[b] = parameters[a].detach().float().cpu().clone()
    head = model.get_output_embeddings()
    return FirstLayer(
        inputs,
        tuple(rows),
        frozenset(f"{name}.weight" for name in readers if isinstance(modules[name], Conv1D)),
        projections,
        next(name for name, value in parameters.items() if value is embedding.weight),
        head is not None and head.weight is embedding.weight,
    )


def _ask(model: PreTrainedModel, ids: torch.Tensor, position: int) -> None:
    """Reads each of (n,) ids as a record of one token at ``position``, until a hook stops it."""
    where = torch.full((len(ids), 1), position, device=model.device)
    with suppress(_Stop), segments(causal([1])):  # of the first one alone does the attention hear anything
        model(input_ids=ids[:, None].to(model.device), position_ids=where, use_cache=False)


def _readers(model: PreTrainedModel) -> list[str]:
    """The linear layers that read what the first of them reads, by name; adapters are left out."""
    found: list[tuple[str, torch.Tensor]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if found and inputs[0] is not found[0][1]:
                raise _Stop
            found.append((name, inputs[0]))

        return hook

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name
    ]
    try:
        _ask(model, torch.zeros(1, dtype=torch.long), 0)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, _ in found]


def _read(model: PreTrainedModel, module: nn.Module, ids: torch.Tensor, position: int) -> torch.Tensor:
    """(n, d) float32 on the CPU: what ``module`` reads for each of the ids."""
    found: list[torch.Tensor] = []

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0][:, 0].float().cpu())
        raise _Stop

    handle = module.register_forward_pre_hook(hook)
    try:
        _ask(model, ids, position)
    finally:
        handle.remove()
    return found[0]


# ------------------------------------------------------------------------------------------------- what is read off


def span(rows: torch.Tensor, *, rank: int | None = None) -> Span:
    """The row space of (m, d) ``rows``.

    ``rank``: told by an oracle, as where noise hides it; None: the singular values above max(m, d) times float32's
    epsilon times the largest, numpy's rule.

    Raises:
        ValueError: ``rows`` is no matrix, has a value that is not finite, or ``rank`` is negative.
    """
    if rows.dim() != 2 or not bool(torch.isfinite(rows).all()):
        raise ValueError(f"rows must be a matrix of finite numbers, got shape {tuple(rows.shape)}")
    if rank is not None and rank < 0:
        raise ValueError(f"rank must be at least 0, got {rank}")
    _, sizes, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    if rank is None:
        largest = float(sizes[0]) if len(sizes) else 0.0
        rank = int((sizes > max(rows.shape) * _ROUNDING * largest).sum())
    kept = basis[: min(rank, len(sizes))]
    return Span(kept, rows.shape[1] - len(kept))


def says_something(free: int, vocabulary: int) -> bool:
    """Whether a span that leaves ``free`` dimensions tells tokens apart.

    A vector that has nothing to do with it is within `TOLERANCE` with a probability of about TOLERANCE^free; fewer
    than one such token of the vocabulary must be expected. So as many tokens as dimensions are too many.
    """
    return free > 0 and vocabulary * TOLERANCE**free < 1


def embedding_rows(change: torch.Tensor) -> np.ndarray:
    """The tokens whose rows of an embedding's (vocabulary, d) ``change`` show that they were read, largest first.

    Rows that are not zero: where the head has weights of its own, exactly the tokens that were read. None if no row is
    zero, as under noise or weight decay, or where the head shares them.
    """
    sizes = change.double().norm(dim=1)
    kept = sizes > 0
    return np.empty(0, dtype=np.int64) if bool(kept.all()) else _first(-sizes, int(kept.sum()))


def probe(update: Update, layer: FirstLayer, *, told: int) -> Reading:
    """The tokens of an update: by the surest test that its tensors allow, in the order below.

    Untied embedding rows; span test; projected span test; and where noise or too many tokens leave none of these, the
    ``told`` tokens nearest to the strongest directions. The attacker is told the number of distinct tokens, so that a
    failure is not for want of a threshold.

    Raises:
        ValueError: the update has none of the tensors that are read, or ``told`` is not positive.
    """
    if told < 1:
        raise ValueError(f"told must be at least 1, got {told}")
    if not layer.names & update.keys():
        raise ValueError("the update has no tensor of the first layer, so this probe reads nothing from it")
    rows = update.get(layer.embedding)
    if rows is not None and not layer.tied and len(found := embedding_rows(rows)):
        return Reading(found, "embedding rows")
    size = len(layer.inputs[0])
    stacked = _stacked(update, layer)
    if stacked is not None and says_something((whole := span(stacked)).free, size):
        found = _within(_nearest(whole, layer.inputs))
        if len(found):
            return Reading(found, "span")
    projected = [(span(update[b].float()), a) for b, a in _projections(update, layer)]
    clear = [(one, a) for one, a in projected if len(one.basis) and says_something(one.free, size)]
    if clear:
        nearest = torch.stack([_nearest(one, (x @ a.T for x in layer.inputs)) for one, a in clear])
        found = _within(nearest.amin(dim=0))
        if len(found):
            return Reading(found, "projected span")
    return Reading(_first(_ranking(update, layer, stacked, told), told), "ranking")


def _stacked(update: Update, layer: FirstLayer) -> torch.Tensor | None:
    """All rows that lie in the span of the inputs, (m, d); None where they are all zero or not there."""
    parts = [
        (update[name].T if name in layer.columns else update[name]).float() for name in layer.rows if name in update
    ]
    parts = [part for part in parts if bool(part.any())]
    return torch.cat(parts) if parts else None


def _projections(update: Update, layer: FirstLayer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, a in layer.projections.items():
        if name in update:
            yield name, a


def _ranking(update: Update, layer: FirstLayer, stacked: torch.Tensor | None, told: int) -> torch.Tensor:
    """(vocabulary,) least first. Of a span at most half of the dimensions is taken: the whole would hold all tokens."""
    if layer.embedding in update:
        sizes: torch.Tensor = update[layer.embedding].double().norm(dim=1)
        return -sizes
    if stacked is not None:
        return _nearest(span(stacked, rank=min(told, stacked.shape[1] // 2)), layer.inputs)
    parts = [
        _nearest(span(update[b].float(), rank=min(told, max(1, len(a) // 2))), (x @ a.T for x in layer.inputs))
        for b, a in _projections(update, layer)
    ]
    return torch.stack(parts).mean(dim=0)


def _nearest(one: Span, inputs: Iterable[torch.Tensor]) -> torch.Tensor:
    """(vocabulary,) the distance of each token, at the position where it is nearest."""
    distances = [one.distances(values) for values in inputs]
    return torch.stack(distances).amin(dim=0)


def _within(distances: torch.Tensor) -> np.ndarray:
    return _first(distances, int((distances <= TOLERANCE).sum()))


def _first(values: torch.Tensor, count: int) -> np.ndarray:
    """The places of the ``count`` least values."""
    order: np.ndarray = torch.argsort(values, stable=True)[:count].numpy()
    return order


def overlap(named: np.ndarray | Sequence[int], there: np.ndarray | Sequence[int]) -> Overlap:
    """How far the named tokens are those of an update, as sets."""
    ours, theirs = np.unique(named), np.unique(there)
    return Overlap(len(np.intersect1d(ours, theirs)), len(theirs), len(ours))


def at_random(named: int, there: int, vocabulary: int) -> Overlap:
    """What ``named`` tokens drawn at random would find on average, rounded to whole tokens."""
    return Overlap(round(named * there / vocabulary), there, named)


# ---------------------------------------------------------------------------------- clients that send a direction


class CanaryScores(NamedTuple):
    """Cosines of directions with the joint change, those that were sent and those held out, and one-sided p-values.

    ``std``: of a direction that was not sent, 1 / sqrt(d).
    """

    inserted: np.ndarray
    held_out: np.ndarray
    p_values: np.ndarray
    std: float


def canary_update(
    shapes: Mapping[str, Sequence[int]], *, clip_norm: float, seed: int, index: int
) -> dict[str, torch.Tensor]:
    """The update C u_j of a client that sends a direction uniform on the sphere (Andrew et al., arXiv:2302.03098).

    ``index``: j; the same direction for the same seed, so that none need be kept.

    Raises:
        ValueError: ``clip_norm`` is not positive and finite.
    """
    if not 0 < clip_norm < math.inf:
        raise ValueError(f"clip_norm must be positive and finite, got {clip_norm}")
    rng = np.random.default_rng([seed, 70, index])  # numpy takes [seed, 0] for seed, and [seed, 20] are coins
    drawn = {name: rng.standard_normal(tuple(shapes[name]), dtype=np.float32) for name in sorted(shapes)}
    size = math.sqrt(math.fsum(float(np.square(value, dtype=np.float64).sum()) for value in drawn.values()))
    return {name: torch.from_numpy(value * np.float32(clip_norm / size)) for name, value in drawn.items()}


def canary_scores(change: Update, *, seed: int, inserted: Sequence[int], held_out: Sequence[int]) -> CanaryScores:
    """Cosines of directions, by their index, with ``change``, the final weights less the first (Andrew et al., 3).

    A direction that was not sent has a cosine of N(0, 1/d) in d dimensions, whatever the change is.

    Raises:
        ValueError: ``change`` is zero or not finite.
    """
    size = math.sqrt(sum(float(value.double().square().sum()) for value in change.values()))
    if not 0 < size < math.inf:
        raise ValueError(f"the change must have a positive, finite norm, got {size}")
    shapes = {name: tuple(value.shape) for name, value in change.items()}
    std = 1 / math.sqrt(sum(value.numel() for value in change.values()))

    def cosines(indices: Sequence[int]) -> np.ndarray:
        found = []
        for index in indices:
            direction = canary_update(shapes, clip_norm=1.0, seed=seed, index=index)
            found.append(sum(float((direction[n].double() * v.double()).sum()) for n, v in change.items()) / size)
        return np.array(found)

    ours = cosines(inserted)
    return CanaryScores(ours, cosines(held_out), special.ndtr(-ours / std), std)
