"""Texts as points: the mean of a language model's last hidden states over the tokens of each."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from reticent.gradients.attention import causal, segments
from reticent.models.language_model import CausalModel
from reticent.progress import SILENT, Progress

_ROW = 2048  # tokens


@torch.no_grad()
def embed(model: CausalModel, texts: Sequence[np.ndarray], progress: Progress = SILENT) -> np.ndarray:
    """(texts, width) float32: what ``model`` makes of each text, (tokens,) ids, by itself.

    Raises:
        ValueError: a text has no token.
    """
    if empty := sum(len(text) == 0 for text in texts):
        raise ValueError(f"a text must hold a token, and {empty} of {len(texts)} hold none")
    inner: Any = model.model.base_model  # without the head
    found: dict[int, np.ndarray] = {}
    with progress.task("reading texts", total=len(texts)) as task:
        for numbers in _rows(texts):
            ends = np.cumsum([len(texts[number]) for number in numbers])
            with segments(causal(ends.tolist())):
                states = inner(
                    input_ids=_row(np.concatenate([texts[number] for number in numbers]), model),
                    position_ids=_row(np.concatenate([np.arange(len(texts[number])) for number in numbers]), model),
                    use_cache=False,
                ).last_hidden_state[0]
            parts = states.float().tensor_split(ends[:-1].tolist())
            found |= {number: part.mean(dim=0).cpu().numpy() for number, part in zip(numbers, parts, strict=True)}
            task.advance(len(numbers))
    return np.stack([found[number] for number in range(len(texts))])


def _row(values: np.ndarray, model: CausalModel) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))[None].to(model.model.device)


def _rows(texts: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """Numbers of texts, the shortest first, of about `_ROW` tokens together."""
    row: list[int] = []
    size = 0
    for number in sorted(range(len(texts)), key=lambda number: len(texts[number])):
        if row and size + len(texts[number]) > _ROW:
            yield row
            row, size = [], 0
        row.append(number)
        size += len(texts[number])
    if row:
        yield row
