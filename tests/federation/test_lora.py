"""Adapters aggregated as factors, against matrices written out."""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from reticent.errors import FederationError
from reticent.federation.aggregate import WeightedMean
from reticent.federation.lora import (
    Factors,
    Pair,
    PlainError,
    ProductMean,
    b_names,
    dense,
    factors,
    merge,
    named,
    one_adapter,
    pairs,
    plain_error,
    recompress,
    refactor,
    residual,
)

SIZES = {"m.0.q": (12, 10), "m.0.v": (9, 20)}  # out, in
RANK = 3


def _names(layer):
    return f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"


def _adapters(count, drift=0.5, seed=0, sizes=SIZES, rank=RANK):
    """Sites that began at one A and B = 0 and went ``drift`` each their own way."""
    generator = torch.Generator().manual_seed(seed)
    updates = [{} for _ in range(count)]
    for layer, (out, width) in sizes.items():
        a_name, b_name = _names(layer)
        first = torch.randn(rank, width, generator=generator)
        for update in updates:
            update[a_name] = first + drift * torch.randn(rank, width, generator=generator)
            update[b_name] = drift * torch.randn(out, rank, generator=generator)
    return updates


def _dense(update):
    """Each layer's product in float64."""
    return {
        layer: update[_names(layer)[1]].double().numpy() @ update[_names(layer)[0]].double().numpy() for layer in SIZES
    }


def _dense_mean(updates, weights):
    products = [_dense(update) for update in updates]
    return {layer: np.average([product[layer] for product in products], axis=0, weights=weights) for layer in SIZES}


def _whole(product):
    return {layer: b.double().numpy() @ a.double().numpy() for layer, (b, a) in product.items()}


def _norm(layers):
    return math.sqrt(sum(np.sum(np.square(value)) for value in layers.values()))


def _minus(x, y):
    return {layer: x[layer] - y[layer] for layer in x}


def _plain(updates, weights):
    mean = WeightedMean()
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    return mean.result()


def _exact(updates, weights, layers=None):
    mean = ProductMean(layers)
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    return mean.result()


def _spare(rank):
    return {layer: torch.ones(rank, width) for layer, (_, width) in SIZES.items()}


def _close(x, y, rtol=1e-6):
    assert x.keys() == y.keys()
    for layer, value in x.items():
        np.testing.assert_allclose(value, y[layer], rtol=0, atol=rtol * np.linalg.norm(y[layer]))


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v = nn.Linear(4, 6), nn.Linear(4, 5)

    def forward(self, x):
        return self.q(x), self.v(x)


def _peft(model, rank, alpha):
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q", "v"]))
    return model, {name: value for name, value in model.named_parameters() if value.requires_grad}


def test_names_of_a_peft_model_pair_up():
    names = list(_peft(_Model(), 2, 1)[1])
    assert [(pair.layer, {pair.a, pair.b}) for pair in pairs(names)] == [
        ("base_model.model.q", set(names[:2])),
        ("base_model.model.v", set(names[2:])),
    ]
    assert b_names(names) == [name for name in names if "lora_B" in name]


def test_names_of_a_saved_adapter_pair_up():
    assert pairs(["m.q.lora_B.weight", "m.q.lora_A.weight"]) == [Pair("m.q", "m.q.lora_A.weight", "m.q.lora_B.weight")]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["m.q.lora_A.default.weight"], "m.q has only the factor A"),
        (["m.q.bias", "m.q.lora_A.weight", "m.q.lora_B.weight"], "m.q.bias is not a factor"),
        (["m.e.lora_embedding_A.default"], "not a factor"),
    ],
)
def test_names_that_are_not_whole_pairs_are_refused(names, fault):
    with pytest.raises(FederationError, match=fault):
        pairs(names)


def test_factors_and_names_are_each_others_inverse():
    (update,) = _adapters(1)
    back = named(factors(update), update)
    assert back.keys() == update.keys() and all(back[name] is update[name] for name in update)


def test_the_mean_product_is_that_of_the_matrices():
    updates, weights = _adapters(4), [70, 141, 293, 0.5]
    _close(_whole(_exact(updates, weights)), _dense_mean(updates, weights))


def test_sites_of_different_ranks_have_a_mean_product():
    updates = [*_adapters(1, rank=2), *_adapters(1, rank=5, seed=1)]
    _close(_whole(_exact(updates, [1, 3])), _dense_mean(updates, [1, 3]))


def test_some_layers_alone_are_those_layers_of_all():
    updates = _adapters(2)
    some = _exact(updates, [1, 2], layers=["m.0.v"])
    assert list(some) == ["m.0.v"]
    assert torch.equal(some["m.0.v"].b, _exact(updates, [1, 2])["m.0.v"].b)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(FederationError, match="m.7.q is not a layer"):
        ProductMean(["m.7.q"]).add(_adapters(1)[0], 1)


def test_an_adapter_that_changes_later_changes_no_mean():
    (update,) = _adapters(1)
    mean, before = ProductMean(), _dense(update)
    mean.add(update, 2.0)
    for value in update.values():
        value.zero_()
    _close(_whole(mean.result()), before)


@pytest.mark.parametrize(("drift", "percent"), [(0.05, 4), (0.3, 24), (1.0, 58)])
def test_plain_averaging_of_three_sites_misses_4_to_58_percent(drift, percent):
    """For wide layers the law is drift sqrt((1 - 1/K) / (1 + drift^2)): 4.1, 23.5 and 57.7 %."""
    sizes = {"m.0.q": (200, 300)}
    updates = _adapters(3, drift, sizes=sizes, rank=8)
    found = plain_error(_exact(updates, [1, 1, 1]), factors(_plain(updates, [1, 1, 1])))
    assert 100 * found == pytest.approx(percent, abs=1)
    assert found == pytest.approx(drift * math.sqrt((2 / 3) / (1 + drift**2)), rel=0.05)


def test_the_plain_error_is_that_of_the_matrices():
    updates, weights = _adapters(3), [1, 2, 5]
    exact, plain = _dense_mean(updates, weights), _plain(updates, weights)
    expected = _norm(_minus(exact, _dense(plain))) / _norm(exact)
    assert plain_error(_exact(updates, weights), factors(plain)) == pytest.approx(expected, rel=1e-5)


def test_the_streamed_error_is_that_of_the_matrices_on_its_probes():
    """With more probes than a layer is wide it is within a few percent."""
    updates, weights = _adapters(3), [1, 2, 5]
    plain = _plain(updates, weights)
    stream = PlainError(seed=1, probes=4000)
    for update, weight in zip(updates, weights, strict=True):
        stream.add(update, weight)
    assert stream.result(plain) == pytest.approx(plain_error(_exact(updates, weights), factors(plain)), rel=0.03)


def test_sixteen_probes_are_unbiased_and_as_near_as_they_say():
    updates, weights = _adapters(3), [1, 2, 5]
    plain = _plain(updates, weights)
    found = []
    for seed in range(200):
        stream = PlainError(seed)
        for update, weight in zip(updates, weights, strict=True):
            stream.add(update, weight)
        found.append(stream.result(plain) / plain_error(_exact(updates, weights), factors(plain)))
    assert np.mean(found) == pytest.approx(1, abs=0.03)
    assert np.std(found) < 1 / math.sqrt(2 * 16)


def test_one_site_or_one_a_for_all_has_no_plain_error():
    one, many = _adapters(1), _adapters(3)
    for update in many:
        update.update({pair.a: many[0][pair.a] for pair in pairs(update)})
    for updates in (one, many):
        weights = range(1, len(updates) + 1)
        plain, stream = _plain(updates, weights), PlainError(seed=0)
        for update, weight in zip(updates, weights, strict=True):
            stream.add(update, weight)
        assert plain_error(_exact(updates, weights), factors(plain)) < 1e-6 and stream.result(plain) < 1e-6


def test_adapters_without_change_have_no_plain_error():
    updates = _adapters(2, drift=0.0)
    plain = _plain(updates, [1, 1])
    assert plain_error(_exact(updates, [1, 1]), factors(plain)) == 0.0


def test_refactored_factors_are_the_best_of_their_rank():
    updates, weights = _adapters(4), [1, 1, 2, 3]
    exact = _dense_mean(updates, weights)
    found, error = refactor(_exact(updates, weights), RANK, _spare(RANK))
    best = {}
    for layer, value in exact.items():
        u, s, vh = np.linalg.svd(value)
        best[layer] = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    _close(_whole(found), best)
    assert error == pytest.approx(_norm(_minus(exact, best)) / _norm(exact), rel=1e-6)


def test_refactoring_misses_no_more_than_plain_averaging():
    updates, weights = _adapters(4), [1, 1, 1, 1]
    product = _exact(updates, weights)
    _, error = refactor(product, RANK, _spare(RANK))
    assert error < plain_error(product, factors(_plain(updates, weights)))


def test_a_product_of_the_rank_is_refactored_exactly():
    (update,) = _adapters(1)
    found, error = refactor(factors(update), RANK, _spare(RANK))
    _close(_whole(found), _dense(update))
    assert error < 1e-12


def test_refactored_factors_are_balanced():
    found, _ = refactor(_exact(_adapters(3), [1, 1, 1]), RANK, _spare(RANK))
    for b, a in found.values():
        torch.testing.assert_close(b.t() @ b, a @ a.t())


def test_refactored_factors_depend_on_the_product_alone():
    """Not on how it was written: other factors of it, other order of sites, other signs."""
    updates = _adapters(3)
    first, _ = refactor(_exact(updates, [1, 1, 1]), RANK, _spare(RANK))
    mixed = {
        layer: Factors(-2 * b.flip(1), a.flip(0) / -2) for layer, (b, a) in _exact(updates[::-1], [1, 1, 1]).items()
    }
    second, _ = refactor(mixed, RANK, _spare(RANK))
    for layer in SIZES:
        torch.testing.assert_close(first[layer], second[layer], rtol=1e-4, atol=1e-5)


def test_what_a_product_has_no_direction_for_can_still_be_trained():
    zero = {layer: Factors(torch.zeros(out, RANK), torch.ones(RANK, width)) for layer, (out, width) in SIZES.items()}
    found, error = refactor(zero, RANK + 1, _spare(RANK + 1))
    assert error == 0.0
    for layer, (b, a) in found.items():
        assert not b.any() and torch.equal(a, _spare(RANK + 1)[layer])


def test_a_spare_of_another_shape_is_refused():
    with pytest.raises(FederationError, match="spare A of m.0.q"):
        refactor(factors(_adapters(1)[0]), RANK, _spare(RANK + 1))


def test_plain_mean_and_residual_are_the_mean_product():
    updates, weights = _adapters(3), [1, 2, 5]
    plain = factors(_plain(updates, weights))
    rest = residual(_exact(updates, weights), plain)
    whole = {layer: value + _whole(rest)[layer] for layer, value in _whole(plain).items()}
    _close(whole, _dense_mean(updates, weights))


def test_a_residual_has_the_rank_of_one_site_less():
    sizes = {"m.0.q": (60, 50)}
    updates = _adapters(4, sizes=sizes)
    rest = residual(_exact(updates, [1, 2, 3, 4]), factors(_plain(updates, [1, 2, 3, 4])))
    assert rest["m.0.q"].b.shape == (60, 3 * RANK)


def test_residuals_of_many_rounds_are_their_sum_at_a_bounded_rank():
    rounds = []
    for seed in range(6):
        updates = _adapters(3, seed=seed)
        rounds.append(residual(_exact(updates, [1, 1, 1]), factors(_plain(updates, [1, 1, 1]))))
    total = {}
    for rest in rounds:
        total = recompress([total, rest])
    _close(_whole(total), {layer: sum(_whole(rest)[layer] for rest in rounds) for layer in SIZES})
    assert {layer: b.shape[1] for layer, (b, _) in total.items()} == {"m.0.q": 10, "m.0.v": 9}


def test_what_cancels_leaves_no_rank():
    product = factors(_adapters(1)[0])
    against = {layer: Factors(-b, a) for layer, (b, a) in product.items()}
    empty = residual(product, product)
    assert {layer: b.shape[1] for layer, (b, _) in empty.items()} == dict.fromkeys(SIZES, 0)
    assert all(b.shape[1] == 0 for b, _ in recompress([empty, empty]).values())
    assert _norm(_whole(recompress([product, against]))) < 1e-6 * _norm(_whole(product))


def test_one_adapter_of_one_rank_is_adapter_and_residual():
    updates, weights, scale = _adapters(3), [1, 1, 1], 0.5
    plain = factors(_plain(updates, weights))
    rest = residual(_exact(updates, weights), plain)
    rest["m.0.v"] = Factors(rest["m.0.v"].b[:, :2], rest["m.0.v"].a[:2])
    saved = one_adapter(plain, rest, scale)
    assert saved.rank == 3 * RANK and saved.alpha / saved.rank == pytest.approx(scale)
    assert all(b.shape[1] == saved.rank == a.shape[0] for b, a in saved.factors.values())
    _close(_whole(saved.factors), {n: v + _whole(rest)[n] for n, v in _whole(plain).items()})


def test_peft_makes_the_same_model_of_the_one_adapter():
    torch.manual_seed(0)
    base, scale = _Model(), 4.0
    x, weight = torch.randn(3, 4), base.q.weight.detach().clone()
    _, trained = _peft(copy.deepcopy(base), 2, 8)
    adapter = factors({name: torch.randn_like(value) for name, value in trained.items()})
    rest = {"base_model.model.q": Factors(torch.randn(6, 3), torch.randn(3, 4))}
    saved = one_adapter(adapter, rest, scale)
    model, new = _peft(copy.deepcopy(base), saved.rank, saved.alpha)
    with torch.no_grad():
        for name, value in named(saved.factors, new).items():
            new[name].copy_(value)
    product = _whole(adapter)["base_model.model.q"] + _whole(rest)["base_model.model.q"]
    expected = x @ (weight + scale * torch.tensor(product, dtype=torch.float32)).t() + base.q.bias
    torch.testing.assert_close(model(x)[0], expected, rtol=1e-4, atol=1e-4)


def test_one_adapter_without_a_residual_is_itself():
    product = factors(_adapters(1)[0])
    saved = one_adapter(product, {}, 2.0)
    assert saved.rank == RANK and saved.alpha == 6.0 and torch.equal(saved.factors["m.0.q"].b, product["m.0.q"].b)


def test_merged_models_average_to_the_mean_product():
    """The mean over sites of base + scale B A is base + scale mean(B A), round after round."""
    delta, expected = {}, {layer: np.zeros(size) for layer, size in SIZES.items()}
    for seed in range(2):
        updates, weights = _adapters(3, seed=seed), [70, 141, 293]
        delta = merge(delta, _plain([dense(factors(update), 0.5) for update in updates], weights))
        expected = {layer: expected[layer] + 0.5 * value for layer, value in _dense_mean(updates, weights).items()}
    _close({layer: value.numpy() for layer, value in delta.items()}, expected)


def test_a_first_merge_does_not_share_memory_with_the_mean():
    mean = {"m.0.q": torch.ones(2, 2)}
    delta = merge({}, mean)
    mean["m.0.q"].zero_()
    assert delta["m.0.q"].sum() == 4


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("mean", [ProductMean, lambda: PlainError(0)])
def test_a_weight_that_is_not_positive_is_refused(mean, weight):
    with pytest.raises(FederationError, match="weight"):
        mean().add(_adapters(1)[0], weight)


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(FederationError, match="need one rank"):
        factors({"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(4, 3)})


def test_adapters_of_other_layers_or_widths_are_refused():
    mean = ProductMean()
    mean.add(_adapters(1)[0], 1)
    with pytest.raises(FederationError, match="m.0.v is not alike"):
        mean.add(_adapters(1, sizes={"m.0.q": (12, 10)})[0], 1)
    with pytest.raises(FederationError, match="m.0.q is not alike"):
        mean.add(_adapters(1, sizes={**SIZES, "m.0.q": (12, 11)})[0], 1)
    assert mean.weight == 1


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(FederationError, match="no adapter"):
        ProductMean().result()
