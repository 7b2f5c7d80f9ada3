"""How far a record would still move the model: a record that was trained on moves it less."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel

from reticent.errors import ModelError
from reticent.gradients.engines import Batch, evaluating, trained
from reticent.gradients.rows import Unit
from reticent.progress import SILENT, Progress
from reticent.tokens import Tokens


def gradient_norm(model: PreTrainedModel, records: Sequence[Tokens], progress: Progress = SILENT) -> np.ndarray:
    """Minus the L2 norm of the gradient of each record's mean loss, in evaluation mode; higher = more likely a member.

    Over the parameters that are trained, or all of them where none is.

    Args:
        model: prepared by `reticent.gradients.attention.use_segments`.
        records: each with a trained token.
        progress: advances by record.

    Returns:
        (records,) float64.

    Raises:
        ModelError: a gradient is not finite.
    """
    scores = np.empty(len(records))
    with _differentiable(model), progress.task("gradients", total=len(records)) as task:
        engine = Batch(model, loss="mean", micro_batch_tokens=1)
        for i in range(len(records)):
            gradient = engine.unit_sum([Unit("", (records[i],))]).gradient
            norms = torch.stack([value.norm() for value in gradient.values()])
            scores[i] = -float(norms.double().norm())
            task.advance()
    if not np.isfinite(scores).all():
        raise ModelError(
            f"the gradient of record {int(np.argmin(np.isfinite(scores)))} is not finite, so the model is broken: "
            "train it again (a lower learning rate, or model.dtype: float32)."
        )
    return scores


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model is in evaluation mode, and some parameters have gradients."""
    frozen = [] if trained(model) else [p for p in model.parameters() if p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
