"""The clipped sums against the definition, their sensitivity, and what is refused.

The oracle (tests/conftest.py) reads one record at a time with transformers' own attention and shares no code with the
engines.
"""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import MixtralConfig

from reticent.errors import ModelError, PrivacyError
from reticent.gradients import engines, tally
from reticent.gradients.attention import use_segments
from reticent.gradients.clip import clip_factors
from reticent.gradients.engines import Batch, OneByOne, Packed, engine_for
from reticent.gradients.exact import refuse_inexact
from reticent.gradients.rows import Unit, pack
from reticent.privacy.clipping import Clipping

MOE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "num_local_experts": 4,
}
FAMILIES = ["llama", "llama-tied", "llama-biases", "qwen3", "neox", "mistral", "gemma", "gpt2"]
STYLES = ["flat", "per-layer", "automatic", "normalised"]
BOTH = pytest.mark.parametrize("kind", [Packed, OneByOne])
OFF = 1e9  # a clip norm that nothing reaches


def _sum(kind, model, units, *, clip=1.0, style="flat", loss="sum", tokens=64):
    return kind(model, clipping=Clipping(clip, style), loss=loss, micro_batch_tokens=tokens).unit_sum(units)


def _relative_error(tiny, found, expected):
    return tiny.distance(found.gradient, expected) / tiny.norm(expected)


# Against the oracle.


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_lora_everywhere_equals_the_oracle(tiny, kind, family, loss):
    model = tiny.lora(tiny.model(family))
    units = tiny.units(8, records=3)
    found = _sum(kind, model, units, clip=2.0, loss=loss)
    assert _relative_error(tiny, found, tiny.oracle(model, units, clip=2.0, loss=loss)) < 1e-5


@BOTH
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama", {"use_rslora": True}),
        ("llama", {"r": 8}),
        ("neox", {"bias": "lora_only", "target_modules": ["query_key_value", "dense"]}),
        ("neox", {"lora_bias": True, "target_modules": ["query_key_value", "dense"]}),
    ],
    ids=["q-and-v", "rslora", "rank-of-the-grouped-kernel", "bias", "lora-bias"],
)
def test_kinds_of_lora_equal_the_oracle(tiny, kind, family, settings):
    model = tiny.lora(tiny.model(family), **settings)
    units = tiny.units(8, records=2)
    assert _relative_error(tiny, _sum(kind, model, units), tiny.oracle(model, units, clip=1.0)) < 1e-5


@BOTH
def test_trained_linear_layers_with_bias_equal_the_oracle(tiny, kind):
    model = tiny.model("neox")
    for layer in model.gpt_neox.layers:
        layer.mlp.requires_grad_(True)
        layer.attention.requires_grad_(True)
    units = tiny.units(8, records=3)
    assert _relative_error(tiny, _sum(kind, model, units), tiny.oracle(model, units, clip=1.0)) < 1e-5


@BOTH
def test_only_biases_trained_equal_the_oracle(tiny, kind):
    model = tiny.model("neox")
    for layer in model.gpt_neox.layers:
        layer.mlp.dense_4h_to_h.bias.requires_grad_(True)
    units = tiny.units(8)
    assert _relative_error(tiny, _sum(kind, model, units), tiny.oracle(model, units, clip=1.0)) < 1e-5


@BOTH
def test_a_layer_that_is_used_twice_equals_the_oracle(tiny, kind):
    model = tiny.model()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    model = tiny.lora(model)
    units = tiny.units(8)
    assert _relative_error(tiny, _sum(kind, model, units), tiny.oracle(model, units, clip=1.0)) < 1e-5


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("longest", [4, 40], ids=["short", "long"])  # Gram matrices, and unit gradients formed
def test_full_fine_tuning_equals_the_oracle(tiny, kind, family, longest):
    model = tiny.model(family).requires_grad_(True)
    units = tiny.units(8, records=2, longest=longest)
    found = _sum(kind, model, units)
    assert _relative_error(tiny, found, tiny.oracle(model, units, clip=1.0)) < 1e-5


def test_several_threads_equal_the_oracle(tiny):
    """They take Gram matrices by another routine."""
    model, units = tiny.model("llama-tied").requires_grad_(True), tiny.units(8, longest=6)
    torch.set_num_threads(2)
    try:
        found = _sum(Packed, model, units)
    finally:
        torch.set_num_threads(1)
    assert _relative_error(tiny, found, tiny.oracle(model, units, clip=1.0)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_covered_by_rules(tiny, family):
    model = tiny.model(family).requires_grad_(True)
    assert isinstance(engine_for(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=64), Packed)


@BOTH
@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_equals_the_oracle(tiny, kind, full, reentrant):
    model = tiny.model("llama-tied").requires_grad_(True) if full else tiny.lora(tiny.model("llama-tied"))
    units = tiny.units(6, records=3)
    expected = tiny.oracle(model, units, clip=1.0)
    model.enable_input_require_grads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = _sum(kind, model.train(), units)
    assert _relative_error(tiny, found, expected) < 1e-5


@BOTH
def test_a_mixture_of_experts_has_no_loss_that_couples_records(tiny, kind):
    """Its router's balancing loss is not part of the records' losses, even where the configuration asks for it."""
    model = tiny.build(MixtralConfig(**MOE, output_router_logits=True))
    use_segments(model)
    for layer in model.model.layers:
        layer.self_attn.requires_grad_(True)
    units = tiny.units(6, records=2)
    assert _relative_error(tiny, _sum(kind, model, units), tiny.oracle(model, units, clip=1.0)) < 1e-5


def test_experts_go_to_the_exact_engine(tiny):
    model = tiny.build(MixtralConfig(**MOE))
    use_segments(model)
    model.requires_grad_(True)
    units = tiny.units(4)
    engine = engine_for(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=64)
    assert isinstance(engine, OneByOne)
    assert _relative_error(tiny, engine.unit_sum(units), tiny.oracle(model, units, clip=1.0)) < 1e-5


@pytest.mark.parametrize("adapters", [True, False])
def test_batch_is_the_plain_gradient(tiny, adapters):
    model = tiny.lora(tiny.model()) if adapters else tiny.model("llama-tied").requires_grad_(True)
    units = tiny.units(8, records=2)
    found = Batch(model, loss="mean", micro_batch_tokens=40).unit_sum(units)
    assert _relative_error(tiny, found, tiny.oracle(model, units, clip=OFF, loss="mean")) < 1e-5


@BOTH
def test_the_loss_is_the_sum_over_the_records(tiny, kind):
    model, units = tiny.lora(tiny.model()), tiny.units(6, records=2)
    expected = 0.0
    for tokens in (r for unit in units for r in unit.records):
        logp = tiny.plain(model)(input_ids=torch.from_numpy(tokens.ids)[None]).logits[0].log_softmax(-1)
        expected -= float(sum(logp[i - 1, tokens.ids[i]] for i in range(len(tokens)) if tokens.trained[i]).detach())
    found = _sum(kind, model, units)
    assert found.loss == pytest.approx(expected, rel=1e-5) and found.records == sum(len(u.records) for u in units)


# What the packing must not change.


@BOTH
@pytest.mark.parametrize("clip", [1e-3, OFF], ids=["all-clipped", "none-clipped"])
def test_a_unit_adds_the_same_whoever_shares_its_row(tiny, kind, clip):
    """Row B3-1: with a loss averaged over the micro-batch, long partners shrink a record's gradient."""
    model, unit = tiny.lora(tiny.model()), tiny.units(1, seed=9)[0]
    alone = _sum(kind, model, [unit], clip=clip).gradient
    for partners in (tiny.units(1, longest=4), tiny.units(3, seed=2, longest=60), tiny.units(20, seed=3)):
        with_unit = _sum(kind, model, [*partners, unit], clip=clip, tokens=1000).gradient
        without = _sum(kind, model, partners, clip=clip, tokens=1000).gradient
        added = {name: with_unit[name].double() - without[name].double() for name in alone}
        assert tiny.distance(added, alone) < 1e-5 * max(tiny.norm(with_unit), tiny.norm(alone))


@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_packed_rows_and_a_padded_batch_have_one_gradient(tiny, full):
    """The same records, padded behind to the longest, through transformers' own attention."""
    model = tiny.model().requires_grad_(True) if full else tiny.lora(tiny.model())
    units = tiny.units(6)
    records = [unit.records[0] for unit in units]
    ids = torch.zeros(len(records), max(map(len, records)), dtype=torch.long)
    mask, trained = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(records):
        ids[row, : len(tokens)] = torch.from_numpy(tokens.ids)
        mask[row, : len(tokens)] = 1
        trained[row, : len(tokens)] = torch.from_numpy(tokens.trained)
    padded = tiny.plain(model)
    logp = padded(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)[:, :-1]
    (-logp.gather(2, ids[:, 1:, None])[..., 0][trained[:, 1:]].sum()).backward()
    expected = {name: p.grad for name, p in engines.trained(padded).items()}
    found = Batch(model, loss="sum", micro_batch_tokens=64).unit_sum(units)
    assert _relative_error(tiny, found, expected) < 1e-5
    assert _relative_error(tiny, _sum(Packed, model, units, clip=OFF), expected) < 1e-5


@BOTH
@pytest.mark.parametrize("tokens", [1, 7, 30, 100])
def test_the_token_budget_changes_nothing(tiny, kind, tokens):
    model, units = tiny.lora(tiny.model()), tiny.units(5, records=6)
    whole, split = (_sum(kind, model, units, tokens=budget) for budget in (10_000, tokens))
    assert _relative_error(tiny, split, whole.gradient) < 1e-5


@BOTH
def test_copies_of_a_record_in_a_unit_count_by_their_number(tiny, kind):
    model, (one, two) = tiny.lora(tiny.model()), tiny.units(2)
    unit = Unit("u", one.records * 3 + two.records)
    assert _relative_error(tiny, _sum(kind, model, [unit]), tiny.oracle(model, [unit], clip=1.0)) < 1e-5


# Sensitivity.


def _adversaries(tiny, units):
    """Units made to move the sum as far as they can."""
    longest, short = tiny.units(1, seed=5, longest=80)[0], tiny.record([7, 8])
    return {
        "norm-of-a-million": Unit("x", longest.records * 100_000),
        "one-token": Unit("x", (short,)),
        "longest": Unit("x", (tiny.record(list(range(2, 60)) + list(range(2, 60))),)),
        "copy-of-a-member": Unit("x", units[0].records),
        "not-finite": Unit("x", (tiny.record([2, 63, 5, 6]),)),
        "owner-of-many": Unit("x", tuple(r for u in tiny.units(12, seed=6) for r in u.records)),
    }


ADVERSARIES = ["norm-of-a-million", "one-token", "longest", "copy-of-a-member", "owner-of-many", "not-finite"]


@BOTH
@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_one_unit_more_moves_the_sum_by_at_most_the_clip_norm(tiny, kind, name, style, full):
    model = tiny.model("llama-tied" if name != "not-finite" else "llama")
    with torch.no_grad():
        if name == "not-finite":
            model.get_input_embeddings().weight[63] = torch.inf
    model = model.requires_grad_(True) if full else tiny.lora(model)
    units = tiny.units(6)
    extra = _adversaries(tiny, units)[name]
    for clip in (0.1, 3.0):
        moved = tiny.distance(
            _sum(kind, model, [*units, extra], clip=clip, style=style).gradient,
            _sum(kind, model, units, clip=clip, style=style).gradient,
        )
        assert moved <= clip * (1 + 1e-5)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_both_engines_clip_alike(tiny, style, full):
    model = tiny.model("qwen3").requires_grad_(True) if full else tiny.lora(tiny.model("qwen3"))
    units = tiny.units(8, records=2)
    one, other = (_sum(kind, model, units, clip=2.0, style=style) for kind in (Packed, OneByOne))
    assert _relative_error(tiny, one, other.gradient) < 1e-5 and one.below == other.below


@pytest.mark.parametrize("style", ["automatic", "normalised"])
def test_the_factor_is_the_definition(tiny, style):
    model, unit = tiny.lora(tiny.model()), tiny.units(1)[0]
    plain = _sum(OneByOne, model, [unit], clip=OFF).gradient
    size = tiny.norm(plain)
    expected = {n: v * 0.7 / (size + (0.01 if style == "automatic" else 0)) for n, v in plain.items()}
    assert tiny.distance(_sum(Packed, model, [unit], clip=0.7, style=style).gradient, expected) < 1e-5


def test_layers_share_the_clip_norm(tiny):
    """C_l^2 sums to C^2; an adapter's A and B are one layer."""
    model, unit = tiny.lora(tiny.model()), Unit("x", tiny.units(1)[0].records * 1000)
    found = _sum(Packed, model, [unit], clip=0.7, style="per-layer").gradient
    adapted = {name.split(".lora_")[0] for name in found}
    assert len(adapted) == 14
    for layer in adapted:
        own = {name: value for name, value in found.items() if name.startswith(layer)}
        assert tiny.norm(own) == pytest.approx(0.7 / 14**0.5, rel=1e-4)


def test_below_counts_the_units_that_are_not_clipped(tiny):
    model, units = tiny.lora(tiny.model()), tiny.units(9)
    norms = sorted(tiny.norm(_sum(OneByOne, model, [unit], clip=OFF).gradient) for unit in units)
    for kind in (Packed, OneByOne):
        assert _sum(kind, model, units, clip=(norms[3] + norms[4]) / 2).below == 4


@BOTH
def test_the_adversary_of_a_million_is_one(tiny, kind):
    unit = _adversaries(tiny, tiny.units(1))["norm-of-a-million"]
    model = tiny.lora(tiny.model())
    assert tiny.norm(_sum(kind, model, [unit], clip=1e12).gradient) > 1e6
    assert tiny.norm(_sum(kind, model, [unit], clip=1.0).gradient) == pytest.approx(1, rel=1e-5)


def test_full_fine_tuning_with_tied_weights_keeps_the_bound(tiny):
    model, units = tiny.model("llama-tied").requires_grad_(True), tiny.units(4)
    for extra in _adversaries(tiny, units).values():
        moved = tiny.distance(
            _sum(OneByOne, model, [*units, extra], clip=0.5).gradient, _sum(OneByOne, model, units, clip=0.5).gradient
        )
        assert moved <= 0.5 * (1 + 1e-5)


@BOTH
def test_no_clipped_unit_exceeds_the_clip_norm(tiny, kind):
    model = tiny.lora(tiny.model())
    for unit in tiny.units(20, records=2):
        assert tiny.norm(_sum(kind, model, [unit], clip=0.3).gradient) <= 0.3 * (1 + 1e-5)


@BOTH
def test_a_unit_without_finite_gradient_adds_nothing(tiny, kind):
    model = tiny.model()
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = torch.inf  # read by one unit only; the head is not tied to it
    model, units = tiny.lora(model), tiny.units(6, records=2)
    bad = Unit("bad", (tiny.record([2, 63, 5, 6]),))
    found = _sum(kind, model, [*units[:3], bad, *units[3:]], tokens=1000)
    assert found.dropped == 1
    assert _relative_error(tiny, found, tiny.oracle(model, units, clip=1.0)) < 1e-5


@BOTH
def test_a_unit_with_one_bad_record_adds_nothing_at_all(tiny, kind):
    model = tiny.model()
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = torch.nan
    model = tiny.lora(model)
    found = _sum(kind, model, [Unit("bad", (tiny.record([2, 3, 4]), tiny.record([63, 5])))])
    assert found.dropped == 1 and tiny.norm(found.gradient) == 0


def test_clip_factors_are_the_definition():
    squares = {"a": torch.tensor([0.0, 1.0, 4.0, 16.0, torch.inf, torch.nan])}
    factors, finite, below = clip_factors(squares, Clipping(2.0), {"a": "a"})
    assert factors["a"].tolist() == [1, 1, 1, 0.5, 0, 0]
    assert finite.tolist() == [True] * 4 + [False] * 2
    assert below.tolist() == [True] * 3 + [False] * 3


# Precision.


@BOTH
def test_bfloat16_sums_are_float32_and_keep_the_bound(tiny, kind):
    model = tiny.lora(tiny.model(dtype=torch.bfloat16))
    assert {p.dtype for p in engines.trained(model).values()} == {torch.float32}
    for unit in tiny.units(10, records=2):
        found = _sum(kind, model, [unit], clip=0.1).gradient
        assert {value.dtype for value in found.values()} == {torch.float32}
        assert 0.1 * (1 - 1e-3) <= tiny.norm(found) <= 0.1 * (1 + 1e-4)


@BOTH
def test_bfloat16_sensitivity_keeps_the_bound(tiny, kind):
    model, units = tiny.lora(tiny.model(dtype=torch.bfloat16)), tiny.units(6)
    extra = tiny.units(1, seed=8, longest=60)[0]
    moved = tiny.distance(
        _sum(kind, model, [*units, extra], clip=0.1).gradient, _sum(kind, model, units, clip=0.1).gradient
    )
    assert moved <= 0.1 * (1 + 1e-4)


@BOTH
def test_bfloat16_is_close_to_float32(tiny, kind):
    units = tiny.units(10)
    low = tiny.lora(tiny.model(dtype=torch.bfloat16))
    exact = copy.deepcopy(low).float()
    assert _relative_error(tiny, _sum(kind, low, units), tiny.oracle(exact, units, clip=1.0)) < 0.1


# Which engine, and what none can do.


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, Packed),
        ({"lora_dropout": 0.1}, Packed),
        ({"use_dora": True}, OneByOne),
        ({"target_modules": ["embed_tokens", "q_proj"]}, OneByOne),
        ({"target_modules": ["lm_head", "q_proj"]}, Packed),
        ({"modules_to_save": ["lm_head"]}, Packed),
        ({"modules_to_save": ["norm"]}, Packed),
        ({"modules_to_save": ["embed_tokens"]}, Packed),
    ],
    ids=["plain", "dropout", "dora", "embedding", "head", "whole-head", "norm", "whole-embedding"],
)
def test_the_engine_is_exact_for_every_adapter(tiny, settings, kind):
    model = tiny.lora(tiny.model(), **settings).eval()
    units = tiny.units(6, records=2)
    engine = engine_for(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=64)
    assert isinstance(engine, kind)
    assert _relative_error(tiny, engine.unit_sum(units), tiny.oracle(model, units, clip=1.0)) < 1e-5


@BOTH
def test_linear_layers_that_share_a_weight_equal_the_oracle(tiny, kind):
    model = tiny.model()
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    second.weight = first.weight
    first.weight.requires_grad_(True)
    units = tiny.units(8, longest=6)
    assert _relative_error(tiny, _sum(kind, model, units), tiny.oracle(model, units, clip=1.0)) < 1e-5


class _Odd(nn.Module):
    """A layer that no rule knows."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(32))

    def forward(self, x):
        return x + self.shift


def test_a_layer_without_a_rule_is_named_and_goes_to_the_exact_engine(tiny):
    model = tiny.model()
    model.model.norm = nn.Sequential(model.model.norm, _Odd())
    units = tiny.units(4)
    assert "1 of 1 trained parameters have no fast rule, the first is model.norm.1.shift" in engines.why_not_packed(
        model
    )
    engine = engine_for(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=64)
    assert isinstance(engine, OneByOne)
    assert _relative_error(tiny, engine.unit_sum(units), tiny.oracle(model, units, clip=1.0)) < 1e-5
    with pytest.raises(ModelError, match="model.norm.1.shift"):
        _sum(Packed, model, units)


def test_a_weight_that_is_used_beside_its_layer_goes_to_the_exact_engine(tiny):
    model = tiny.model()
    layer = model.model.layers[0].mlp.up_proj
    layer.requires_grad_(True)
    model.model.norm.register_forward_hook(lambda module, inputs, output: output + layer.weight.sum())
    with pytest.raises(PrivacyError, match=r"mlp.up_proj.weight is used outside its layer's forward"):
        _sum(Packed, model, tiny.units(2))
    assert isinstance(engine_for(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=64), OneByOne)


def test_dropout_masks_are_drawn_per_record(tiny):
    """A mask shared by the row would give copies of a record in two units the same gradient."""
    model, unit = tiny.lora(tiny.model(), lora_dropout=0.5).train(), tiny.units(1, seed=3)[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        alone = [_sum(Packed, model, [unit], clip=1e-3).gradient for _ in range(20)]
        both = [_sum(Packed, model, [unit, unit], clip=1e-3).gradient for _ in range(20)]
    assert all(tiny.norm(value) == pytest.approx(1e-3, rel=1e-5) for value in alone)
    assert all(tiny.norm(value) < 1.999e-3 for value in both)  # parallel only if the masks are the same


def test_lora_dropout_keeps_the_bound(tiny):
    model = tiny.lora(tiny.model(), lora_dropout=0.5).train()
    with torch.random.fork_rng():
        assert tiny.norm(_sum(Packed, model, tiny.units(1), clip=0.01).gradient) == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4)])
def test_layers_that_mix_records_are_refused_by_name(tiny, layer):
    model = tiny.lora(tiny.model())
    model.get_base_model().model.layers[1].odd = layer
    with pytest.raises(ModelError, match=rf"layers.1.odd \({type(layer).__name__}\) mixes the records"):
        engine_for(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=64)


def _compiled(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        model.get_base_model().model.layers[1].mlp.compile()


def _hooked(model):
    model.get_base_model().model.layers[1].mlp.register_full_backward_hook(lambda module, before, after: None)


def _parameter_hooked(model):
    next(p for p in model.parameters() if p.requires_grad).register_hook(lambda gradient: gradient / 2)


def _accumulating(model):
    next(p for p in model.parameters() if p.requires_grad).register_post_accumulate_grad_hook(lambda p: None)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_compiled, r"layers.1.mlp \(LlamaMLP\) is compiled"),
        (_hooked, r"layers.1.mlp \(LlamaMLP\) has a backward hook of another tool"),
        (_parameter_hooked, r"lora_A.default.weight carries a gradient hook of another tool"),
        (_accumulating, r"lora_A.default.weight carries a gradient hook of another tool"),
        (lambda model: model.to(torch.bfloat16), r"lora_A.default.weight is trained in bfloat16"),
        (lambda model: model.half(), r"lora_A.default.weight is trained in float16"),
    ],
    ids=["compiled", "module-hook", "hook", "accumulate-hook", "bfloat16", "float16"],
)
def test_what_spoils_exactness_is_refused_by_name(tiny, spoil, match):
    model = tiny.lora(tiny.model())
    spoil(model)
    with pytest.raises(ModelError, match=match):
        engine_for(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=64)


def test_hooks_of_opacus_are_refused(tiny):
    model = tiny.lora(tiny.model())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule

        GradSampleModule(model.train())
    with pytest.raises(ModelError, match="hook of another tool"):
        engine_for(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=64)


@pytest.mark.parametrize("loss", ["batch-mean", lambda logits, labels: logits.mean()])
def test_a_loss_of_another_kind_is_refused(tiny, loss):
    with pytest.raises(PrivacyError, match="loss must be sum or mean, over a record's own tokens"):
        engine_for(tiny.lora(tiny.model()), clipping=Clipping(1.0), loss=loss, micro_batch_tokens=64)


def test_gradients_left_from_another_step_count_for_nothing(tiny):
    model, units = tiny.lora(tiny.model()), tiny.units(4)
    for parameter in engines.trained(model).values():
        parameter.grad = torch.ones_like(parameter)
    assert _relative_error(tiny, _sum(Packed, model, units), tiny.oracle(model, units, clip=1.0)) < 1e-5


def test_instance_norm_mixes_no_records(tiny):
    model = tiny.model()
    model.odd = nn.InstanceNorm1d(4)
    refuse_inexact(model)


def test_no_clip_norm_means_ordinary_training(tiny):
    engine = engine_for(tiny.lora(tiny.model()), clipping=None, loss="sum", micro_batch_tokens=64)
    assert isinstance(engine, Batch)


# What is left behind.


def _engines(model):
    return [
        Packed(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=30),
        OneByOne(model, clipping=Clipping(1.0), loss="sum", micro_batch_tokens=30),
        Batch(model, loss="sum", micro_batch_tokens=30),
    ]


def test_an_empty_draw_gives_zeros(tiny):
    model = tiny.lora(tiny.model())
    for engine in _engines(model):
        found = engine.unit_sum([])
        assert found.gradient.keys() == engines.trained(model).keys() and tiny.norm(found.gradient) == 0
        assert (found.loss, found.records, found.dropped) == (0, 0, 0)


def test_no_parameter_keeps_a_gradient_and_every_forward_is_restored(tiny):
    model = tiny.lora(tiny.model())
    for engine in _engines(model):
        engine.unit_sum(tiny.units(4, records=3))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any("forward" in vars(module) for module in model.modules())


def test_every_forward_is_restored_after_an_error(tiny, monkeypatch):
    model = tiny.lora(tiny.model())

    def fail(*args, **kwargs):
        assert any("forward" in vars(module) for module in model.modules())
        raise ZeroDivisionError

    monkeypatch.setattr(model.get_base_model().model, "forward", fail)
    with pytest.raises(ZeroDivisionError):
        _sum(Packed, model, tiny.units(2))
    monkeypatch.undo()
    assert not any("forward" in vars(module) for module in model.modules())


def test_weights_and_outputs_are_left_as_they_were(tiny):
    model = tiny.lora(tiny.model())
    before = copy.deepcopy(model.state_dict())
    for engine in _engines(model):
        engine.unit_sum(tiny.units(4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Wrong engines that these checks must catch.


class _ClipsTheBatch(Batch):
    """The mutant: clips the sum instead of each unit."""

    def __init__(self, model, *, clipping, loss, micro_batch_tokens):
        super().__init__(model, loss=loss, micro_batch_tokens=micro_batch_tokens)
        self._clipping = clipping

    def unit_sum(self, units):
        found = super().unit_sum(units)
        squares = {name: value.square().sum()[None] for name, value in found.gradient.items()}
        factors, _, _ = clip_factors(squares, self._clipping, {})
        return found._replace(gradient={name: factors[name] * value for name, value in found.gradient.items()})


def test_the_oracle_catches_batch_clipping(tiny):
    model, units = tiny.lora(tiny.model()), tiny.units(8)
    assert _relative_error(tiny, _sum(_ClipsTheBatch, model, units), tiny.oracle(model, units, clip=1.0)) > 0.5


@pytest.fixture
def averaged(monkeypatch):
    """The mutant: the mean over the tokens of the micro-batch, as a trainer's default loss takes it."""
    real = engines._Reader.backward

    def backward(self, row, tally=None):
        return real(self, replace(row, weights=row.weights / len(row.labels)), tally)

    monkeypatch.setattr(engines._Reader, "backward", backward)


@BOTH
def test_the_oracle_catches_a_token_mean_over_the_row(tiny, kind, averaged):
    model, units = tiny.lora(tiny.model()), tiny.units(8)
    assert _relative_error(tiny, _sum(kind, model, units, clip=OFF), tiny.oracle(model, units, clip=OFF)) > 0.1


def test_the_sensitivity_check_catches_a_token_mean_over_the_row(tiny, averaged):
    """Each unit is clipped, and still one unit more moves all the others: together by more than the clip norm."""
    model, units = tiny.lora(tiny.model()), tiny.units(12)
    extra = Unit("x", (tiny.record(list(range(2, 60)) * 2),))
    clip = 0.5
    moved = tiny.distance(
        _sum(Packed, model, [*units, extra], clip=clip, tokens=1000).gradient,
        _sum(Packed, model, units, clip=clip, tokens=1000).gradient,
    )
    assert moved > 1.2 * clip


def test_the_oracle_catches_records_clipped_one_by_one_instead_of_units(tiny):
    model, units = tiny.lora(tiny.model()), tiny.units(4, records=4)
    records = [Unit("r", (record,)) for unit in units for record in unit.records]
    assert _relative_error(tiny, _sum(Packed, model, records), tiny.oracle(model, units, clip=1.0)) > 0.1


def test_the_sensitivity_check_catches_a_missing_tied_term(tiny, monkeypatch):
    """Without 2 <L, E>, embedding and head of one weight are clipped as if they were two."""
    monkeypatch.setattr(tally.Tally, "_tied", lambda self, name, rows, apart: apart)
    model = tiny.model("llama-tied")
    model.get_input_embeddings().weight.requires_grad_(True)
    first, *units = [Unit("x", (tiny.record([token] * 4 + [token + 1] * 4),)) for token in range(2, 30)]
    alone = _sum(Packed, model, [first], clip=0.1).gradient
    moved = [tiny.distance(_sum(Packed, model, [first, unit], clip=0.1).gradient, alone) for unit in units]
    assert max(moved) > 0.1 * 1.01


def _tally(tiny):
    """A tally of two units of twelve tokens."""
    (row,) = next(iter(pack(tiny.units(1, longest=3), max_tokens=100, loss="sum")))
    found = tally.Tally()
    found.start(replace(row, units=(12, 24), predict=torch.arange(23), predicted=(11, 23)))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_a_unit_whose_tokens_nearly_cancel_keeps_the_bound(tiny, seed):
    """Gram norms lose their digits there; the unit's gradient is formed instead."""
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.normal(size=(6, 40))).float() for _ in range(2))
    found = _tally(tiny)
    found.product("w", torch.cat([a, a, a, a]), torch.cat([b, -b, b, -b * (1 + 1e-6)]))
    total = {"w": torch.zeros(40, 40)}
    found.add_clipped(total, Clipping(1e-6), {"w": "w"})
    assert total["w"].norm() <= 2e-6 * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_a_unit_whose_head_and_embedding_nearly_cancel_keeps_the_bound(tiny, seed):
    """|L|^2 + |E|^2 + 2 <L, E> loses its digits there; the sum is formed instead."""
    ids = torch.arange(24) % 12
    h = torch.from_numpy(np.random.default_rng(seed).normal(size=(24, 40))).float()
    found = _tally(tiny)
    found.product("w", torch.eye(40)[ids], h)
    found.rows("w", ids, -h * (1 + 1e-5), 40)
    total = {"w": torch.zeros(40, 40)}
    found.add_clipped(total, Clipping(1e-5), {"w": "w"})
    assert 1e-5 < total["w"].norm() <= 2e-5 * (1 + 1e-3)


def test_the_oracle_catches_attention_across_records(tiny, monkeypatch):
    model, units = tiny.lora(tiny.model()), tiny.units(6)
    monkeypatch.setattr(engines, "causal", lambda ends, real=engines.causal: real(ends[-1:]))
    assert _relative_error(tiny, _sum(Packed, model, units), tiny.oracle(model, units, clip=1.0)) > 0.1


def test_the_oracle_catches_norms_of_half_the_tensors(tiny, monkeypatch):
    """Clipping by the norm of the A matrices alone."""
    real = tally.clip_factors

    def half(squares, *rest):
        return real({name: value * ("lora_A" in name) for name, value in squares.items()}, *rest)

    monkeypatch.setattr(tally, "clip_factors", half)
    model = tiny.lora(tiny.model())
    assert max(tiny.norm(_sum(Packed, model, [unit], clip=0.1).gradient) for unit in tiny.units(5)) > 0.1 * 1.01
