"""Forward passes that go on with texts: new prompts and next tokens packed in one row, keys and values kept.

Each text has a slot. A pass reads the next token of each text that goes on, then whole prompts of new ones, without
padding; attention sees a text's own slot alone. What the model must be is said in `reticent.gradients.attention`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from reticent.errors import ModelError
from reticent.gradients import attention

NAME = "reticent_cache"
_GROWTH, _STEP = 1.5, 64  # of the room for tokens, when it is used up


class Read(NamedTuple):
    """Tokens that the text in ``slot`` goes on with: (n,) int64, of which ``start`` stand in the cache before."""

    slot: int
    start: int
    ids: np.ndarray


class KeyValues:
    """What the attention layers of a model keep of ``slots`` texts, in memory that grows with the longest."""

    def __init__(self, model: PreTrainedModel, slots: int) -> None:
        self._model, self._slots, self._room = model, slots, 0
        self._layers: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def logits(self, reads: Sequence[Read]) -> torch.Tensor:
        """Scores (texts, vocabulary) float32 of what follows each read, in a pass over all; within `reading`.

        ``reads``: first those of one token behind others, then those that begin a text.

        Raises:
            ModelError: no attention layer asked for the cache, so what was read could not be kept.
        """
        ends = np.cumsum([len(read.ids) for read in reads])
        step = _Step(self, reads, self._model.device)
        self._grow(max(read.start + len(read.ids) for read in reads))
        last = torch.from_numpy(ends - 1).to(self._model.device)
        with ExitStack() as stack:
            if step.prompts:
                stack.enter_context(attention.segments(attention.causal(step.prompts)))
            token = _step.set(step)
            stack.callback(_step.reset, token)
            found: torch.Tensor = self._model(
                input_ids=step.row(np.concatenate([read.ids for read in reads]))[None],
                position_ids=step.positions[None],
                logits_to_keep=last,
                use_cache=False,
            ).logits[0]
        if not step.asked:
            raise ModelError(f"{type(self._model).__name__} did not ask for the cache of what it read")
        return (found if len(found) == len(reads) else found[last]).float()  # not every model knows logits_to_keep

    def move(self, source: int, target: int, tokens: int) -> None:
        """The text of one slot, of so many tokens, now has another."""
        for pair in self._layers.values():
            for kept in pair:
                kept[target, :, :tokens] = kept[source, :, :tokens]

    def write(self, layer: nn.Module, step: "_Step", key: torch.Tensor, value: torch.Tensor) -> None:
        """Keeps ``key`` and ``value``, (tokens, heads, dim), of one layer."""
        for kept, new in zip(self._of(layer, key, value), (key, value), strict=True):
            kept[step.slots, :, step.positions] = new

    def read(self, layer: nn.Module, rows: int, tokens: int) -> tuple[torch.Tensor, ...]:
        """Keys and values, (rows, heads, tokens, dim), of one layer in the first slots."""
        return tuple(kept[:rows, :, :tokens] for kept in self._layers[layer])

    def _of(self, layer: nn.Module, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if layer not in self._layers:
            key, value = (x.new_zeros(self._slots, x.shape[1], self._room, x.shape[2]) for x in states)
            self._layers[layer] = (key, value)
        return self._layers[layer]

    def _grow(self, tokens: int) -> None:
        if tokens <= self._room:
            return
        self._room = max(int(self._room * _GROWTH), tokens) // _STEP * _STEP + _STEP
        for layer, pair in self._layers.items():
            wider = tuple(x.new_zeros(*x.shape[:2], self._room, x.shape[3]) for x in pair)
            for new, old in zip(wider, pair, strict=True):
                new[:, :, : old.shape[2]] = old
            self._layers[layer] = (wider[0], wider[1])


class _Step:
    """One pass: where its tokens go, the same for all layers. Rows that go on stand in the first slots, in order."""

    def __init__(self, kept: KeyValues, reads: Sequence[Read], device: torch.device) -> None:
        self.kept, self._device, self.asked = kept, device, False
        going = [read for read in reads if read.start]
        self.going = len(going)
        self.longest = max((read.start + 1 for read in going), default=0)
        self.prompts = np.cumsum([len(read.ids) for read in reads if not read.start]).tolist()
        """Ends of the prompts in the part of the row behind the tokens that go on."""
        self.slots = self.row(np.concatenate([np.full(len(read.ids), read.slot) for read in reads]))
        self.positions = self.row(np.concatenate([read.start + np.arange(len(read.ids)) for read in reads]))
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def row(self, values: np.ndarray) -> torch.Tensor:
        """Whole numbers on the device."""
        return torch.from_numpy(values.astype(np.int64)).to(self._device)

    def mask(self, window: int | None) -> torch.Tensor | None:
        """(going, 1, 1, longest): what each next token sees of its slot; None where that is everything."""
        window = window if window is not None and window < self.longest else None
        if window not in self._masks:
            behind = self.positions[: self.going, None] - torch.arange(self.longest, device=self._device)
            seen = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
            self._masks[window] = None if seen.all() else seen[:, None, None]
        return self._masks[window]


_step: ContextVar[_Step] = ContextVar("step")


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one pass. ``query``: (1, heads, T, dim); returns (1, T, heads, dim)."""
    step = _step.get()
    step.asked = True
    step.kept.write(module, step, key[0].transpose(0, 1), value[0].transpose(0, 1))
    going, parts = step.going, []
    if going:
        keys, values = step.kept.read(module, going, step.longest)
        # The heads that share keys stand in the place of further tokens: no copy of the keys for each.
        shared = query[0, :, :going].transpose(0, 1).unflatten(1, (keys.shape[1], -1))
        said = scaled_dot_product_attention(shared, keys, values, attn_mask=step.mask(sliding_window), scale=scaling)
        parts.append(said.flatten(1, 2)[None])
    if step.prompts:
        q, k, v = (x[:, :, going:] for x in (query, key, value))
        packed = AttentionInterface()[attention.NAME]
        parts.append(packed(module, q, k, v, None, scaling=scaling, sliding_window=sliding_window, **rest)[0])
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


# ------------------------------------------------------------------------------------------------------- the model


@contextmanager
def reading(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, ``model`` reads through `KeyValues`, and its linear layers are those that are fast for few
    tokens; then all is as before."""
    before = model.config._attn_implementation
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _quicker(layer)]
    model.set_attn_implementation(NAME)
    for layer in layers:
        layer.forward = partial(_linear, layer)  # type: ignore[method-assign]  # the instance's own, until the end
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        model.set_attn_implementation(before)


def _quicker(layer: nn.Linear) -> bool:
    """Whether oneDNN may compute it: torch has MKL do float32, which takes twice as long on some processors."""
    ours = layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
    return ours and "forward" not in vars(layer) and _has_onednn()


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
    return found
