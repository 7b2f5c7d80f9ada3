"""The streamed mean against numpy's in float64, and updates that must not count."""

import math

import numpy as np
import pytest
import torch

from reticent.errors import FederationError
from reticent.federation.aggregate import WeightedMean, check

SHAPES = {"a": (3, 5), "b": (1000,)}


def _updates(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{n: torch.randn(s, generator=generator) for n, s in SHAPES.items()} for _ in range(count)]


def _mean(updates, weights):
    mean = WeightedMean()
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    return mean


@pytest.mark.parametrize("weights", [[1, 1, 1], [70, 141, 293], [0.1, 1e-9, 3e6]])
def test_the_mean_is_that_of_all_updates_at_once(weights):
    updates = _updates(3)
    mean = _mean(updates, weights)
    assert mean.weight == pytest.approx(sum(weights))
    for name, value in mean.result().items():
        stacked = np.stack([update[name].numpy().astype(np.float64) for update in updates])
        np.testing.assert_allclose(value, np.average(stacked, axis=0, weights=weights), rtol=0, atol=1e-6)


def test_a_mean_by_hand():
    mean = _mean([{"a": torch.tensor([1.0, -2.0])}, {"a": torch.tensor([4.0, 1.0])}], [1, 2])
    assert mean.result()["a"].tolist() == [3.0, 0.0]


@pytest.mark.parametrize("count", [2, 100, 1000])
def test_rounding_stays_within_its_bound(count):
    """K 2^-24 mean|x|; and its size is that of a random walk, sqrt(K)."""
    updates = _updates(count)
    found = _mean(updates, [1] * count).result()["b"].double()
    stacked = torch.stack([update["b"] for update in updates]).double()
    error = (found - stacked.mean(dim=0)).abs() / stacked.abs().mean(dim=0)
    assert error.max() <= count * 2.0**-24
    assert error.square().mean().sqrt() <= math.sqrt(count) * 2.0**-24


def test_memory_does_not_grow_with_updates():
    mean = WeightedMean()
    update = {"a": torch.ones(1000)}
    mean.add(update, 1)
    held = sum(value.numel() for value in mean._sums.values())
    for _ in range(10):
        mean.add(update, 1)
    assert sum(value.numel() for value in mean._sums.values()) == held == 1000


def test_an_update_is_not_kept():
    update = {"a": torch.ones(2)}
    mean = _mean([update], [1])
    update["a"].zero_()
    assert mean.result()["a"].tolist() == [1.0, 1.0]


def test_transposed_tensors_are_read_in_their_order():
    value = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(_mean([{"a": value}], [2]).result()["a"], value)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(FederationError, match="weight"):
        WeightedMean().add({"a": torch.ones(1)}, weight)


@pytest.mark.parametrize(
    "bad",
    [{}, {"a": torch.ones(2), "c": torch.ones(1)}, {"a": torch.ones(1, 2)}, {"a": torch.ones(2, dtype=torch.float64)}],
)
def test_a_refused_update_leaves_the_mean_as_it_was(bad):
    mean = _mean([{"a": torch.tensor([1.0, 2.0])}], [1])
    with pytest.raises(FederationError, match="same recipe"):
        mean.add(bad, 1)
    assert mean.weight == 1 and mean.result()["a"].tolist() == [1.0, 2.0]


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(FederationError, match="no update"):
        WeightedMean().result()


def test_a_whole_update_passes_the_check():
    check({"a": torch.ones(2, 3), "b": torch.ones(0)}, {"a": (2, 3), "b": (0,)})


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        ({"a": torch.tensor([1.0, float("nan")])}, "a of the update is not finite"),
        ({"a": torch.tensor([1.0, float("-inf")])}, "a of the update is not finite"),
        ({"a": torch.ones(3)}, r"shape \(2,\), got torch.float32 of shape \(3,\)"),
        ({"a": torch.ones(2, dtype=torch.bfloat16)}, "must be float32"),
        ({}, "a of the update is missing"),
        ({"a": torch.ones(2), "b": torch.ones(2)}, "b of the update is not one of those"),
    ],
)
def test_an_update_that_is_not_as_it_must_be_is_refused_by_name(update, fault):
    with pytest.raises(FederationError, match=fault):
        check(update, {"a": (2,)})
