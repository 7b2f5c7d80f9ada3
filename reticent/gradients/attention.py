"""Attention within segments of a packed row, through transformers' attention interface.

A segment is a record (causal) or a tree of continuations of one prompt (every token sees its ancestors). What is not
covered: architectures that do not call the attention interface, soft-capped scores and attention sinks; they are refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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


_segments: ContextVar[Sequence[Segment] | None] = ContextVar("segments", default=None)


@contextmanager
def segments(parts: Sequence[Segment]) -> Iterator[None]:
    """Within the block, a row of a model prepared by `use_segments` consists of these segments."""
    token = _segments.set(parts)
    try:
        yield
    finally:
        _segments.reset(token)


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
            f"{type(model).__name__} does not take an attention function of its own, so records packed in one row would "
            "see each other. Use a model of another family (Llama, Qwen, Mistral, Gemma, GPT-NeoX, ...)."
        )
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        raise ModelError(f"{type(model).__name__} caps attention scores, which packed rows do not support.")
    model.set_attn_implementation(NAME)


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
    parts = _segments.get()
    if parts is None or query.shape[0] != 1 or parts[-1].end != query.shape[2] or key.shape[2] != query.shape[2]:
        raise ModelError("a packed row was read without its segments: records could see each other")
    if rest.get("softcap") is not None or rest.get("s_aux") is not None:
        raise ModelError(f"{type(module).__name__} changes attention scores in a way packed rows do not support")
    out = []
    for start, end, mask in parts:
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
