"""Each way to join adapters, against dense matrices and against each other."""

import pytest
import torch

from reticent.errors import FederationError
from reticent.federation import joining, lora
from reticent.federation.joining import added, factored, joining_for, shapes_of

OUT, IN, RANK, SITES = 6, 5, 2, 3
LAYER = "base_model.model.layer"
A, B = f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.default.weight"
MODES = ["whole", "freeze-a", "average", "product", "residual", "merged"]


def adapter(seed, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    return {A: scale * torch.randn(RANK, IN, generator=rng), B: scale * torch.randn(OUT, RANK, generator=rng)}


WEIGHTS = adapter(0)
CHANGES = [adapter(1 + i, 0.3) for i in range(SITES)]
COUNTS = [1.0, 2.0, 5.0]


def product(adapter):
    return adapter[B].double() @ adapter[A].double()


def full(change):
    return {name: value + change[name] for name, value in WEIGHTS.items()}


def mean(values):
    return sum(count * value for count, value in zip(COUNTS, values, strict=True)) / sum(COUNTS)


def joined(mode, base=None, seed=3):
    one = joining_for(mode, WEIGHTS, base or {}, seed=seed)
    for change, count in zip(CHANGES, COUNTS, strict=True):
        one.add({LAYER: product(full(change)).float()} if mode == "merged" else change, count)
    return one.result()


EXACT = mean([product(full(change)) for change in CHANGES])
PLAIN = product({name: mean([full(change)[name] for change in CHANGES]) for name in WEIGHTS})


def close(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["whole", "freeze-a", "average"])
def test_changes_are_averaged_tensor_by_tensor(mode):
    found = joined(mode)
    assert found.weights is None and found.base is None
    for name in WEIGHTS:
        close(found.change[name], mean([change[name] for change in CHANGES]))


def test_what_plain_averaging_misses_is_estimated():
    expected = float((EXACT - PLAIN).norm() / EXACT.norm())
    assert joined("average").error == pytest.approx(expected, rel=0.4)
    assert joined("whole").error is None


def test_the_estimate_is_right_on_average_over_probes():
    expected = float((EXACT - PLAIN).norm() / EXACT.norm())
    found = [joined("average", seed=seed).error ** 2 for seed in range(60)]
    assert (sum(found) / len(found)) ** 0.5 == pytest.approx(expected, rel=0.1)


def test_a_product_is_the_mean_product_at_the_rank_of_the_adapter():
    found = joined("product")
    u, s, v = torch.linalg.svd(EXACT)
    close(product(found.weights), (u[:, :RANK] * s[:RANK]) @ v[:RANK])
    assert found.weights[A].shape == (RANK, IN)
    assert found.error == pytest.approx(float((EXACT - PLAIN).norm() / EXACT.norm()), rel=1e-4)


def test_a_residual_and_the_plain_mean_are_the_mean_product():
    found = joined("residual")
    close(product(found.weights), PLAIN)
    close(product(found.weights) + added(found.base, 1.0)[LAYER], EXACT)
    assert found.error == pytest.approx(float((EXACT - PLAIN).norm() / EXACT.norm()), rel=1e-4)


def test_residuals_of_rounds_add_up():
    before = joined("residual").base
    found = joined("residual", before)
    close(added(found.base, 1.0)[LAYER], 2 * added(before, 1.0)[LAYER])
    assert found.base[f"{LAYER}/a"].shape[0] <= min(OUT, IN)


def test_merged_products_add_up_and_adapters_begin_anew():
    found = joined("merged", {LAYER: torch.ones(OUT, IN)})
    close(found.base[LAYER], 1 + EXACT)
    assert not found.weights[B].any()
    assert 0.5 * IN**-0.5 < float(found.weights[A].abs().max()) <= IN**-0.5


def test_adapters_that_begin_anew_follow_from_the_seed_alone():
    first, again, other = (joined("merged", seed=seed).weights[A] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_scale_is_that_of_the_adapter():
    base = joined("residual").base
    close(added(base, 2.0)[LAYER], 2 * added(base, 1.0)[LAYER])
    dense = {LAYER: torch.ones(OUT, IN)}
    assert torch.equal(added(dense, 2.0)[LAYER], dense[LAYER])  # merged models send products that are scaled already


@pytest.mark.parametrize("mode", MODES)
def test_one_site_alone_is_its_own_mean(mode):
    one = joining_for(mode, WEIGHTS, {}, seed=0)
    one.add({LAYER: product(full(CHANGES[0])).float()} if mode == "merged" else CHANGES[0], 7.0)
    found = one.result()
    weights = found.weights or {name: WEIGHTS[name] + value for name, value in found.change.items()}
    total = product(weights) + added(found.base or {}, 1.0).get(LAYER, torch.zeros(OUT, IN))
    close(total, product(full(CHANGES[0])))


@pytest.mark.parametrize("mode", MODES)
def test_an_update_is_not_changed_by_being_added(mode):
    update = {LAYER: torch.ones(OUT, IN)} if mode == "merged" else {n: v.clone() for n, v in CHANGES[0].items()}
    before = {name: value.clone() for name, value in update.items()}
    one = joining_for(mode, WEIGHTS, {}, seed=0)
    one.add(update, 2.0)
    one.add(update, 3.0)
    one.result()
    assert all(torch.equal(update[name], value) for name, value in before.items())


@pytest.mark.parametrize("mode", MODES)
def test_nothing_has_no_mean(mode):
    with pytest.raises(FederationError, match="to average"):
        joining_for(mode, WEIGHTS, {}, seed=0).result()


def test_shapes_are_those_of_what_a_site_sends():
    assert shapes_of("average", WEIGHTS) == {A: (RANK, IN), B: (OUT, RANK)}
    assert shapes_of("merged", WEIGHTS) == {LAYER: (OUT, IN)}


def test_factors_have_their_layers_back():
    base = joined("residual").base
    assert base.keys() == {f"{LAYER}/a", f"{LAYER}/b"}
    both = factored(base)[LAYER]
    assert isinstance(both, lora.Factors)
    close(both.b @ both.a, EXACT - PLAIN)
    assert joining.factored({}) == {}
