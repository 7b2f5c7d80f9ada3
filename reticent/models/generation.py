"""Text from a model, many prompts at once: the most likely, or sampled; with transformers' `generate` and its cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from reticent.models.language_model import CausalModel, Sampling
from reticent.progress import SILENT, Progress


def greedy(
    model: CausalModel,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    end_of_text: int | None,
    batch: int = 16,
    frequency_penalty: float = 0.0,
    progress: Progress = SILENT,
) -> list[np.ndarray]:
    """The most likely continuation of each prompt, (tokens,) int64, up to and without ``end_of_text``.

    Token for token what `TokenScores.hit` calls the most likely. ``frequency_penalty`` is taken off a token's logit for
    each time it was already said; what comes out is then no longer the most likely text.

    Raises:
        ValueError: a prompt is empty, or ``max_new_tokens`` or ``batch`` is under 1.
    """
    asked = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end_of_text)
    return _generated(model, prompts, asked, batch, progress, frequency_penalty)


def sample(
    model: CausalModel,
    prompts: Sequence[np.ndarray],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    end_of_text: int | None,
    batch: int = 32,
    progress: Progress = SILENT,
) -> list[np.ndarray]:
    """One sampled continuation of each prompt, (tokens,) int64, up to and without ``end_of_text``.

    The same for the same ``seed``, prompts and ``batch``; torch's own stream of chance is left as it was.

    Raises:
        ValueError: as `greedy`.
    """
    asked = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k or 0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_of_text,
    )
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return _generated(model, prompts, asked, batch, progress)


class _FrequencyPenalty(LogitsProcessor):
    """Takes ``penalty`` off a token's logit for each time that it stands behind the first ``start`` columns."""

    def __init__(self, start: int, penalty: float) -> None:
        self._start, self._penalty = start, penalty

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        said = input_ids[:, self._start :]
        cost = torch.full_like(said, -self._penalty, dtype=scores.dtype)
        return scores.scatter_add(1, said, cost)  # type: ignore[return-value]  # a sum of floats is one; the stub says Tensor


@torch.no_grad()
def _generated(
    model: CausalModel,
    prompts: Sequence[np.ndarray],
    asked: GenerationConfig,
    batch: int,
    progress: Progress,
    penalty: float = 0.0,
) -> list[np.ndarray]:
    if batch < 1 or asked.max_new_tokens < 1:
        raise ValueError(f"batch and max_new_tokens must be >= 1, got {batch} and {asked.max_new_tokens}")
    if empty := sum(len(prompt) == 0 for prompt in prompts):
        raise ValueError(f"a prompt must hold a token, and {empty} of {len(prompts)} hold none")
    end = asked.eos_token_id
    asked.pad_token_id = 0 if end is None else end  # never seen: the mask hides it, and what is behind an end is cut
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))  # like lengths: little padding
    found: dict[int, np.ndarray] = {}
    with _ready(model.model) as ready, progress.task("generating", total=len(prompts)) as task:
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            width = max(len(prompts[number]) for number in numbers)
            ids = torch.full((len(numbers), width), asked.pad_token_id)
            for row, number in enumerate(numbers):
                ids[row, width - len(prompts[number]) :] = torch.from_numpy(np.asarray(prompts[number], np.int64))
            lengths = torch.tensor([len(prompts[number]) for number in numbers])
            mask = (torch.arange(width) >= width - lengths[:, None]).long()
            drawn: Any = ready.generate(  # type: ignore[operator]  # a mixin's method that its stub does not know
                ids.to(ready.device),
                attention_mask=mask.to(ready.device),
                generation_config=asked,
                logits_processor=LogitsProcessorList([_FrequencyPenalty(width, penalty)] if penalty else []),
            )
            for number, said in zip(numbers, drawn[:, width:].cpu().numpy(), strict=True):
                ends = np.flatnonzero(said == (-1 if end is None else end))
                found[number] = said[: ends[0]] if len(ends) else said
            task.advance(len(numbers))
    return [found[number] for number in range(len(prompts))]


@contextmanager
def _ready(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """``model`` with an attention that reads a cache, and without generation settings of its own, for a while."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]  # of peft
    attention, settings = inner.config._attn_implementation, inner.generation_config
    inner.set_attn_implementation("sdpa")  # the one for packed rows reads no cache
    inner.generation_config = GenerationConfig()
    try:
        yield inner
    finally:
        inner.generation_config = settings
        inner.set_attn_implementation(attention)
