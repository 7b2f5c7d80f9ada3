"""Attention within segments of a packed row, through transformers' attention interface.

A segment is a record (causal) or a tree of continuations of one prompt (every token sees its ancestors). What is not
covered: architectures that do not call the attention interface or mix tokens in other ways too (convolutions, state
spaces), soft-capped scores, attention sinks and positions that depend on the length of the row; they are refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from reticent.errors import ModelError

NAME = "reticent_segments"


class Segment(NamedTuple):
    """Tokens ``start`` to ``end`` of a row; ``mask``: (end-start, end-start) True where seen, None for causal."""

    start: int
    end: int
    mask: torch.Tensor | None = None


@dataclass
class _Row:
    """The segments of the row being read, and whether any layer asked for them."""

    parts: Sequence[Segment]
    asked: bool = False


_row: ContextVar[_Row | None] = ContextVar("row", default=None)


@contextmanager
def segments(parts: Sequence[Segment]) -> Iterator[None]:
    """Within the block, a row of a model prepared by `use_segments` consists of these segments.

    Raises:
        ModelError: the block ended and no attention layer asked for them.
    """
    row = _Row(parts)
    token = _row.set(row)
    try:
        yield
    finally:
        _row.reset(token)
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
    row = _row.get()
    if row is None or query.shape[0] != 1 or row.parts[-1].end != query.shape[2] or key.shape[2] != query.shape[2]:
        raise ModelError("a packed row was read without its segments: records could see each other")
    row.asked = True
    if rest.get("softcap") is not None or rest.get("s_aux") is not None:
        raise ModelError(f"{type(module).__name__} changes attention scores in a way packed rows do not support")
    out = []
    for start, end, mask in row.parts:
        if sliding_window is not None and end - start > sliding_window:
            if mask is not None:
                raise ModelError(f"a prompt with continuations is longer than the attention window {sliding_window}")
            at = torch.arange(end - start, device=query.device)
            distance = at[:, None] - at[None, :]
            mask = (distance >= 0) & (distance < sliding_window)
        out.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(out, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
