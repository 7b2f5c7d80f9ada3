"""From the norms of unit gradients to the factors that bound them."""

import re
from collections.abc import Iterable, Mapping

import torch

from reticent.privacy.clipping import Clipping

Groups = Mapping[str, str]
_STABILITY = 0.01  # gamma of AUTO-S


def layers(names: Iterable[str]) -> Groups:
    """For each parameter the layer that it belongs to: adapters belong to the layer that they adapt."""
    return {
        name: re.sub(r"(\.(lora_\w+|base_layer|modules_to_save|default|weight|bias))+$", "", name) for name in names
    }


def clip_factors(
    squares: Mapping[str, torch.Tensor], clipping: Clipping, groups: Groups
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """The factor of each parameter's unit gradients, which units are finite, and which of them within the norm.

    ``squares``: for each parameter the squared norms of its unit gradients, (units,) float32. All results are (units,).
    A unit that is not finite anywhere has factor 0 everywhere. With these factors, no unit's gradient has a norm above
    ``clipping.norm`` (see `Clipping`).
    """
    total = torch.stack(list(squares.values())).sum(0)
    finite = torch.isfinite(total)
    below = finite & (total <= clipping.norm**2)
    if clipping.style == "per-layer":
        members: dict[str, list[str]] = {}
        for name in squares:
            members.setdefault(groups[name], []).append(name)
        share = clipping.norm / len(set(groups.values())) ** 0.5
        factors = {
            name: _factor(torch.stack([squares[other] for other in own]).sum(0).sqrt(), share, "flat", finite)
            for own in members.values()
            for name in own
        }
        return factors, finite, below
    factor = _factor(total.sqrt(), clipping.norm, clipping.style, finite)
    return dict.fromkeys(squares, factor), finite, below


def _factor(norms: torch.Tensor, clip_norm: float, style: str, finite: torch.Tensor) -> torch.Tensor:
    if style == "automatic":
        factor = clip_norm / (norms + _STABILITY)
    elif style == "normalised":
        factor = torch.where(norms > 0, clip_norm / norms, 0.0)
    else:
        factor = (clip_norm / norms).clamp(max=1.0)  # a zero gradient gives inf, hence 1
    return torch.where(finite, factor, torch.zeros_like(factor))
