"""The noise has the promised scale, everywhere, and is never the same twice. Wrong noise must fail the same checks."""

import numpy as np
import pytest
import torch
from scipy import stats

from reticent.privacy.entropy import SystemWords
from reticent.privacy.noise import add_noise

SURE = 1e-6
SHAPES = {"x.lora_A": (50, 40), "x.lora_B": (30, 7), "bias": (301,), "scale": ()}


def _add(sums, std=1.5 * 0.2):
    noised = {name: value.clone() for name, value in sums.items()}
    add_noise(noised, std, SystemWords())
    return noised


def _has_the_law(noise, scale):
    """Whether every tensor is N(0, scale^2) in every coordinate (chi-square on its squares)."""
    for value in noise.values():
        squares = float((value.double() / scale).square().sum())
        if not SURE < stats.chi2(value.numel()).cdf(squares) < 1 - SURE:
            return False
    return True


def test_every_tensor_has_noise_of_the_promised_scale():
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    assert _has_the_law({name: value for name, value in _add(zeros).items() if name != "scale"}, 1.5 * 0.2)


def test_noise_is_added_to_the_sum():
    sums = {name: torch.full(shape, 1e6) for name, shape in SHAPES.items()}
    assert all((value - 1e6).abs().max() < 10 and value.dtype == torch.float32 for value in _add(sums).values())


def test_parts_of_a_tensor_are_noised_in_their_place():
    whole = torch.zeros(40, 30)
    add_noise({"rows": whole[:10], "columns": whole[10:, :7]}, 1.0, SystemWords())
    assert (whole[:10] != 0).all() and (whole[10:, :7] != 0).all() and (whole[10:, 7:] == 0).all()


def test_no_two_tensors_or_releases_share_noise():
    zeros = {name: torch.zeros(1000) for name in "ab"}
    first, second = _add(zeros), _add(zeros)
    parts = [first["a"], first["b"], second["a"], second["b"]]
    assert all(abs(np.corrcoef(parts)[i, j]) < 0.2 for i in range(4) for j in range(i))


def test_sums_of_another_precision_are_refused():
    with pytest.raises(AssertionError, match="bfloat16"):
        _add({"a": torch.zeros(3, dtype=torch.bfloat16)})


@pytest.mark.parametrize(
    "mutant",
    [
        lambda sums: sums,
        lambda sums: {name: _add({"a": v})["a"] if "lora_A" in name else v for name, v in sums.items()},
        lambda sums: {name: v + 1.5 * torch.randn_like(v) for name, v in sums.items()},
        lambda sums: {name: v + 1.5 * 0.2 / 4 * torch.randn_like(v) for name, v in sums.items()},
    ],
    ids=["missing", "lora-a-only", "without-clip-norm", "divided-by-the-batch"],
)
def test_wrong_noise_fails_the_law(mutant):
    with torch.random.fork_rng():
        assert not _has_the_law(mutant({name: torch.zeros(shape) for name, shape in SHAPES.items()}), 1.5 * 0.2)
