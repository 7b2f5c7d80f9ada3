"""Attention within segments of a packed row, through transformers' attention interface.

A segment is a record (causal) or a tree of continuations of one prompt (every token sees its ancestors). What is not
covered: architectures that do not call the attention interface or mix tokens in other ways too (convolutions, state
spaces), soft-capped scores, attention sinks and positions that depend on the length of the row; they are refused.

On a GPU in half precision a row of causal segments is one call of torch's flash attention, without padding. All else
goes through batches of segments of like length.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from reticent.errors import ModelError

_varlen: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn as _varlen
except ImportError:  # torch 2.9
    _varlen = None

NAME = "reticent_segments"


class Segment(NamedTuple):
    """Tokens ``start`` to ``end`` of a row; ``mask``: (end-start, end-start) True where seen, None for causal."""

    start: int
    end: int
    mask: torch.Tensor | None = None


class Beginning:
    """Keys and values, layer by layer, of ``tokens`` tokens that stand before every segment of later rows."""

    def __init__(self) -> None:
        self.tokens = 0
        self.layers: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}  # (tokens, heads, dim) each

    def first(self, tokens: int) -> "Beginning":
        """Only the first ``tokens`` of it."""
        cut = Beginning()
        cut.tokens = tokens
        cut.layers = {layer: (key[:tokens], value[:tokens]) for layer, (key, value) in self.layers.items()}
        return cut

    def add(self, layer: torch.nn.Module, key: torch.Tensor, value: torch.Tensor) -> None:
        """What ``layer`` made of the tokens."""
        if layer in self.layers:
            raise ModelError(
                f"{type(layer).__name__} attends twice in one pass, which shared beginnings do not support"
            )
        self.tokens, self.layers[layer] = len(key), (key, value)


@dataclass
class _Row:
    """The segments of the row being read, and whether any layer asked for them."""

    parts: Sequence[Segment]
    after: Beginning | None = None
    into: Beginning | None = None
    asked: bool = False
    layouts: "dict[tuple[int | None, torch.device], _Layout]" = field(default_factory=dict)
    bounds: dict[torch.device, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest segment, with what stands before it."""
        return self.before + max(end - start for start, end, _ in self.parts)

    @property
    def before(self) -> int:
        """Tokens before each segment."""
        return 0 if self.after is None else self.after.tokens

    @cached_property
    def causal(self) -> bool:
        """Whether no segment has a mask or anything before it."""
        return self.after is None and all(mask is None for _, _, mask in self.parts)

    def layout(self, window: int | None, device: torch.device) -> "_Layout":
        """How the segments are batched, the same for all layers with this attention window."""
        if (window, device) not in self.layouts:
            self.layouts[window, device] = _layout(self.parts, self.before, window, device)
        return self.layouts[window, device]

    def bound(self, device: torch.device) -> torch.Tensor:
        """(segments + 1) int32, the segments' ends behind a zero, the same for all layers."""
        if device not in self.bounds:
            ends = [0, *(part.end for part in self.parts)]
            self.bounds[device] = torch.tensor(ends, dtype=torch.int32, device=device)
        return self.bounds[device]


# Not of a thread: with gradient checkpointing, layers read the row again in autograd's own threads. One row at a time.
_row: _Row | None = None
_reading = threading.RLock()


@contextmanager
def segments(
    parts: Sequence[Segment], *, after: Beginning | None = None, into: Beginning | None = None
) -> Iterator[None]:
    """Within the block, a row of a model prepared by `use_segments` consists of these segments.

    ``after``: what stands before each of them, read earlier; ``into`` takes up the row, one causal segment, as such.

    Raises:
        ModelError: the block ended and no attention layer asked for them.
    """
    global _row
    row = _Row(parts, after, into)
    with _reading:
        before, _row = _row, row
        try:
            yield
        finally:
            _row = before
    if not row.asked:
        raise ModelError(
            "a packed row was read by a model that use_segments did not prepare: records could see each other"
        )


def causal(ends: Sequence[int]) -> list[Segment]:
    """Consecutive causal segments with these ends."""
    return [Segment(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def use_segments(model: PreTrainedModel) -> None:
    """Lets ``model`` read packed rows.

    Raises:
        ModelError: the architecture cannot keep the records of a row apart.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelError(
            f"{type(model).__name__} does not take an attention function of its own, so records packed in one row "
            "would see each other. Use a model of another family (Llama, Qwen, Mistral, Gemma, GPT-NeoX, ...)."
        )
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        raise ModelError(f"{type(model).__name__} caps attention scores, which packed rows do not support.")
    if kinds := _rope_types(model) & {"dynamic", "longrope"}:
        raise ModelError(
            f"{type(model).__name__} turns positions by the longest record of a row (rope type {min(kinds)}), so "
            "records packed in one row would change each other. Use a model with another rope type."
        )
    model.set_attn_implementation(NAME)
    if model.device.type != "meta":
        _refuse_leaks(model)


def _rope_types(model: PreTrainedModel) -> set[str]:
    """The kinds of rotary positions in use; a model may have one for each kind of layer."""
    found = [module.rope_type for module in model.modules() if hasattr(module, "rope_type")]
    return {str(kind) for kinds in found for kind in (kinds.values() if isinstance(kinds, dict) else [kinds])}


def _refuse_leaks(model: PreTrainedModel) -> None:
    """Reads two records whose first is not a number: none of it may reach the second."""
    n = 4
    ids, positions = torch.zeros(1, 2 * n, dtype=torch.long), torch.arange(n).repeat(2)[None]

    def spoil(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        spoilt = output.clone()
        spoilt[:, :n] = torch.nan
        return spoilt

    hook = model.get_input_embeddings().register_forward_hook(spoil)
    try:
        with torch.no_grad(), segments(causal([n, 2 * n])):
            logits = model(
                input_ids=ids.to(model.device), position_ids=positions.to(model.device), use_cache=False
            ).logits
    finally:
        hook.remove()
    if not logits[:, n:].isfinite().all():
        raise ModelError(
            f"{type(model).__name__} mixes tokens outside attention, so records packed in one row would see each "
            "other. Use a model of another family (Llama, Qwen, Mistral, Gemma, GPT-NeoX, ...)."
        )


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention segment by segment. ``query``: (1, heads, T, dim); returns (1, T, heads, dim)."""
    row = _row
    if row is None or query.shape[0] != 1 or row.parts[-1].end != query.shape[2] or key.shape[2] != query.shape[2]:
        raise ModelError("a packed row was read without its segments: records could see each other")
    row.asked = True
    if rest.get("softcap") is not None or rest.get("s_aux") is not None:
        raise ModelError(f"{type(module).__name__} changes attention scores in a way packed rows do not support")
    window = sliding_window if sliding_window is not None and sliding_window < row.longest else None
    if window is not None and row.after is not None:
        raise ModelError(f"a shared beginning and a segment are longer than the attention window {window}")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, dim)
    if row.into is not None:
        row.into.add(module, k, v)
    if varlen := _kernel(q, v, row, window, dropout):
        return _flash(varlen, q, k, v, row, window, scaling)[None], None
    layout = row.layout(window, query.device)
    if row.after is None:
        padded = [_take(x, layout.take, layout.back).split(layout.sizes) for x in (q, k, v)]
    else:
        padded = [q[layout.take].split(layout.sizes), *_behind(row.after.layers[module], (k, v), layout)]
    out = []
    for (count, mask), q, k, v in zip(layout.groups, *padded, strict=True):
        q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, k, v))  # (records, heads, tokens, dim)
        if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] <= _SHORT and not dropout:
            attended = _dense(q, k, v, mask, scaling)
        else:
            attended = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling, enable_gqa=True
            )
        out.append(attended.transpose(1, 2).flatten(0, 1))
    return _drop(torch.cat(out), layout.back)[None], None


_HALF = (torch.bfloat16, torch.float16)


def _kernel(
    query: torch.Tensor, value: torch.Tensor, row: _Row, window: int | None, dropout: float
) -> Callable[..., Any] | None:
    """Torch's attention for packed rows if it can do this: flash attention has no masks of one's own."""
    dim = query.shape[-1]
    fits = dim <= 256 and dim % 8 == 0 and value.shape[-1] == dim and query.dtype in _HALF
    if _varlen is None or not (fits and row.causal and not dropout and _has_flash(query.device)):
        return None
    return _varlen if window is None or "window_size" in _options(_varlen) else None


def _has_flash(device: torch.device) -> bool:
    """Flash attention needs a GPU of the Ampere generation or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _options(varlen: Callable[..., Any]) -> frozenset[str]:
    """What it takes: torch 2.10 has ``is_causal``, later ``scale`` and ``window_size``, then ``enable_gqa`` too."""
    return frozenset(inspect.signature(varlen).parameters)


def _flash(
    varlen: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: _Row,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """Causal attention of the whole row in one call. ``query``: (T, heads, dim), as the result."""
    takes = _options(varlen)
    options: dict[str, Any] = {}
    if "enable_gqa" in takes:
        options["enable_gqa"] = True
    else:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if "scale" in takes:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if "is_causal" in takes:
        options["is_causal"] = True
    if "window_size" in takes:
        # Tokens to the left and right, the token itself not counted; a tuple, for torch compares it with (-1, 0).
        options["window_size"] = (-1 if window is None else window - 1, 0)
    bound, longest = row.bound(query.device), row.longest
    attended: torch.Tensor = varlen(query, key, value, bound, bound, longest, longest, **options)
    return attended


_SHORT = 512


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention by its formula: on a CPU, torch's kernel for bfloat16 takes 2 to 8 times as long on short records."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    if mask is None:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype) @ v


class _Layout(NamedTuple):
    """Segments of like length, padded to batches. Padding repeats a segment's last token, behind all that see it.

    ``take``: for each place of the padded batches its token in the row; ``back``: for each token of the row its place.
    ``sizes``: places of each batch; ``groups``: its number of segments and its mask, None for causal. Where ``before``
    tokens stand before each segment, masks have as many columns in front, seen by all.
    """

    take: torch.Tensor
    back: torch.Tensor
    sizes: list[int]
    groups: list[tuple[int, torch.Tensor | None]]


def _behind(
    first: tuple[torch.Tensor, torch.Tensor], own: tuple[torch.Tensor, torch.Tensor], layout: _Layout
) -> list[list[torch.Tensor]]:
    """Keys, then values, of each batch: for each segment those of the beginning, then its own."""
    return [
        [
            torch.cat([before.expand(count, -1, -1, -1), x[take].unflatten(0, (count, -1))], 1).flatten(0, 1)
            for (count, _), take in zip(layout.groups, layout.take.split(layout.sizes), strict=True)
        ]
        for before, x in zip(first, own, strict=True)
    ]


def _layout(parts: Sequence[Segment], before: int, window: int | None, device: torch.device) -> _Layout:
    take, sizes, groups = [], [], []
    back = torch.empty(parts[-1].end, dtype=torch.long)
    filled = 0
    for members in _alike(parts):
        longest = max(end - start for start, end, _ in members)
        for start, end, _ in members:
            take.append((start + torch.arange(longest)).clamp(max=end - 1))
            back[start:end] = filled + torch.arange(end - start)
            filled += longest
        sizes.append(longest * len(members))
        groups.append((len(members), _widened(_masks(members, longest, window, device), before, longest, device)))
    return _Layout(torch.cat(take).to(device), back.to(device), sizes, groups)


def _alike(parts: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Groups of segments of which none is over a quarter, or 8 tokens, longer than another."""
    group: list[Segment] = []
    for part in sorted(parts, key=lambda part: part.end - part.start):
        shortest = group[0].end - group[0].start if group else 0
        if group and part.end - part.start > max(1.25 * shortest, shortest + 8):
            yield group
            group = []
        group.append(part)
    yield group


def _masks(members: Sequence[Segment], longest: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """(segments, 1, longest, longest) where seen; None if plain causality says it all."""
    narrow = window if window is not None and window < longest else None
    if narrow is None and all(mask is None for _, _, mask in members):
        return None
    at = torch.arange(longest, device=device)
    distance = at[:, None] - at[None, :]
    masks = (distance >= 0).repeat(len(members), 1, 1)
    for seen, (start, end, mask) in zip(masks, members, strict=True):
        if mask is not None:
            if narrow is not None:
                raise ModelError(f"a prompt with continuations is longer than the attention window {window}")
            seen[: end - start, : end - start] = mask
    if narrow is not None:
        masks &= distance < narrow
    return masks[:, None]


def _widened(mask: torch.Tensor | None, before: int, longest: int, device: torch.device) -> torch.Tensor | None:
    """``mask`` with ``before`` columns in front that all see."""
    if before == 0:
        return mask
    if mask is None:
        mask = torch.ones(1, 1, longest, longest, dtype=torch.bool, device=device).tril()
    return torch.cat([mask.new_ones(*mask.shape[:3], before), mask], 3)


class _Take(torch.autograd.Function):
    """Rows of x by index. Places that only pad get no gradient, so the way back is a choice of rows too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, take: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return dy.index_select(0, back), None, None


class _Drop(torch.autograd.Function):
    """Leaves the padding out; its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.places = x.shape[0]
        return x.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        (back,) = ctx.saved_tensors
        return dy.new_zeros(ctx.places, *dy.shape[1:]).index_copy_(0, back, dy), None


_take: Callable[..., torch.Tensor] = _Take.apply
_drop: Callable[..., torch.Tensor] = _Drop.apply
AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
