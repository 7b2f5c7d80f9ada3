"""The Gaussian mechanism on a clipped sum."""

from collections.abc import Mapping

import torch

from reticent.privacy.entropy import Words, normals


def add_noise(
    sums: Mapping[str, torch.Tensor], *, noise_multiplier: float, clip_norm: float, source: Words
) -> dict[str, torch.Tensor]:
    """Every tensor plus independent N(0, (noise_multiplier * clip_norm)^2) in every coordinate, float32.

    With unit gradients of norm at most ``clip_norm`` this is the Gaussian mechanism of that noise multiplier (Dwork and
    Roth 2014, appendix A; Abadi et al. 2016, algorithm 1). What is not covered: floating-point attacks on the noise's
    last bits (Mironov 2012).
    """
    scale = noise_multiplier * clip_norm
    noised = {}
    for name, value in sums.items():
        assert value.dtype == torch.float32, (name, value.dtype)
        noise = torch.from_numpy(normals(source, value.numel())).view_as(value)
        noised[name] = value + scale * noise.to(value.device)
    return noised
