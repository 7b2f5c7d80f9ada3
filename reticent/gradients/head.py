"""The output head and its loss in chunks: the scores of all tokens over the vocabulary never stand in memory at once.

With a frozen head the loss's gradient for the head's input is computed on the way forward and nothing else is kept.
With a trained head the gradient for the scores is kept too, because the head's own gradient needs it.
"""

from typing import Any

import torch
from torch.nn.functional import linear

from reticent.gradients.tally import Tally

_CHUNK = 512


class HeadLoss(torch.autograd.Function):
    """sum_k weights_k (logsumexp(s_k) - s_k[label_k]), s = h W^T + bias, float32.

    ``h``: (K, d), ``weight``: (V, d), ``labels``, ``weights``: (K,). If ``tally`` is given, it gets the unit gradients
    of a trained ``weight`` and ``bias``, and autograd none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        weights: torch.Tensor,
        names: tuple[str, str],
        tally: Tally | None,
    ) -> torch.Tensor:
        trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        count = len(h)
        scores = h.new_empty(count if trained else 0, len(weight))  # later: their gradient
        dh, losses = torch.empty_like(h), torch.empty(count, device=h.device)
        for start in range(0, count, _CHUNK):
            part = slice(start, start + _CHUNK)
            own, weight_of = labels[part, None], weights[part, None]
            if trained and h.dtype == torch.float32:  # formed where it will be kept
                logits = torch.mm(h[part], weight.t(), out=scores[part])
                if bias is not None:
                    logits.add_(bias)
            else:
                logits = linear(h[part], weight, bias).float()
            # As probabilities minus one-hot; scores are taken off their maximum first, or their digits are lost.
            logits.sub_(logits.amax(1, keepdim=True))
            at_label = logits.gather(1, own)
            size = logits.exp_().sum(1, keepdim=True)
            losses[part] = (size.log() - at_label)[:, 0]
            logits.mul_(weight_of / size).scatter_add_(1, own, -weight_of)
            low = logits.to(h.dtype)
            dh[part] = low @ weight
            if trained and low is not logits:
                scores[part] = low
        ctx.save_for_backward(h, dh, scores)
        ctx.about = names, tally
        return (losses * weights).sum()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, dh, scores = ctx.saved_tensors
        names, tally = ctx.about
        of_weight, of_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        nothing = (None, None, None, None)
        if (of_weight or of_bias) and float(dy) != 1:
            scores = scores * dy
        dx = dh * dy if ctx.needs_input_grad[0] else None
        if tally is None:
            return dx, scores.t() @ h if of_weight else None, scores.sum(0) if of_bias else None, *nothing
        if of_weight:
            tally.product(names[0], scores, h)
        if of_bias:
            tally.vector(names[1], scores)
        return dx, None, None, *nothing
