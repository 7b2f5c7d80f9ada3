"""The probe against gradients whose tokens are known: exact where the algebra says so, chance where it must be."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from reticent.attacks import server_probe
from reticent.attacks.server_probe import FirstLayer, at_random, canary_scores, canary_update, overlap, probe, span
from reticent.gradients.attention import use_segments
from reticent.gradients.engines import Batch, engine_for
from reticent.gradients.rows import Unit
from reticent.models import adapter
from reticent.privacy.clipping import Clipping
from reticent.tokens import Tokens

VOCABULARY, D = 1000, 128


def llama(tied=False):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=D,
            intermediate_size=2 * D,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0)
    )


def neox():
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def made(build, rank=None, targets=("q_proj", "k_proj", "v_proj"), freeze_a=False):
    """A random model with all weights trained, or a LoRA adapter of ``rank``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
    use_segments(model)
    model.requires_grad_(False)
    if rank is None:
        return adapter.train_everything(model)
    return adapter.add_lora(model, rank=rank, alpha=rank, dropout=0.0, targets=list(targets), seed=0, freeze_a=freeze_a)


def moved(model):
    """B as it is in a later round."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.02 * torch.randn(value.shape, generator=generator))
    return model


def text(count, vocabulary=VOCABULARY, seed=0, longest=32):
    """Units of ``count`` random tokens in all."""
    rng, units = np.random.default_rng(seed), []
    for start in range(0, count, longest):
        size = min(longest, count - start)
        units.append(Unit(str(start), (Tokens(rng.integers(0, vocabulary, size), np.arange(size) > 0),)))
    return units


def distinct(units):
    return np.unique(np.concatenate([record.ids for unit in units for record in unit.records]))


def gradient(model, units):
    return Batch(model, loss="mean", micro_batch_tokens=4096).unit_sum(units).gradient


def without(update, name):
    return {own: value for own, value in update.items() if own != name}


def read(model, units, *, leave_out_embedding=False, layer=None):
    """What is read of the units' gradient, against what is there."""
    layer = layer or server_probe.first_layer(model)
    update, there = gradient(model, units), distinct(units)
    reading = probe(without(update, layer.embedding) if leave_out_embedding else update, layer, told=len(there))
    return reading.how, overlap(reading.tokens, there)


@pytest.fixture(scope="module")
def untied():
    return made(llama)


@pytest.fixture(scope="module")
def tied():
    return made(lambda: llama(tied=True))


# One linear layer, whose algebra is known.


def linear(inputs, tokens, generator):
    """dW of one linear layer that read these tokens, and the layer as the probe knows it."""
    delta = torch.randn(len(tokens), 48, generator=generator)
    layer = FirstLayer((inputs,), ("w",), frozenset(), {}, "e", False)
    return {"w": delta.T @ inputs[torch.as_tensor(tokens)]}, layer


@pytest.fixture
def inputs():
    return torch.randn(500, 32, generator=torch.Generator().manual_seed(0))


def test_one_example_in_one_linear_layer_is_read_exactly(inputs):
    update, layer = linear(inputs, [17], torch.Generator().manual_seed(1))
    assert probe(update, layer, told=1).tokens.tolist() == [17]


def test_tokens_below_the_dimensions_of_one_linear_layer_are_all_read(inputs):
    tokens = list(range(0, 400, 20))
    update, layer = linear(inputs, tokens, torch.Generator().manual_seed(1))
    reading = probe(update, layer, told=len(tokens))
    assert reading.how == "span"
    assert sorted(reading.tokens) == tokens


def test_as_many_tokens_as_dimensions_hide_each_other(inputs):
    tokens = list(range(100))
    update, layer = linear(inputs, tokens, torch.Generator().manual_seed(1))
    reading = probe(update, layer, told=len(tokens))
    assert reading.how == "ranking"
    assert overlap(reading.tokens, tokens).recall < 0.6


def test_a_sum_over_clients_is_read_as_the_union_of_their_tokens(inputs):
    generator = torch.Generator().manual_seed(1)
    parts = [linear(inputs, tokens, generator)[0]["w"] for tokens in ([1, 2, 3], [3, 40, 50], [600 - 499, 7])]
    layer = linear(inputs, [0], generator)[1]
    assert sorted(probe({"w": sum(parts)}, layer, told=7).tokens) == [1, 2, 3, 7, 40, 50, 101]


def test_the_sum_of_too_many_clients_is_not_read(inputs):
    generator = torch.Generator().manual_seed(1)
    groups = np.random.default_rng(0).permutation(500)[:160].reshape(16, 10)
    alone, layer = linear(inputs, groups[0], generator)
    assert overlap(probe(alone, layer, told=10).tokens, groups[0]).recall == 1.0
    total = {"w": sum(linear(inputs, tokens, generator)[0]["w"] for tokens in groups)}
    assert probe(total, layer, told=160).how == "ranking"


def test_clipping_changes_nothing(inputs):
    update, layer = linear(inputs, [3, 5, 8], torch.Generator().manual_seed(1))
    shorter = {"w": update["w"] * 1e-6}
    assert sorted(probe(shorter, layer, told=3).tokens) == [3, 5, 8]


def test_a_stored_transpose_is_turned(inputs):
    update, _ = linear(inputs, [3, 5, 8], torch.Generator().manual_seed(1))
    turned = FirstLayer((inputs,), ("w",), frozenset({"w"}), {}, "e", False)
    assert sorted(probe({"w": update["w"].T}, turned, told=3).tokens) == [3, 5, 8]


def test_the_rank_of_a_span_is_that_of_numpy():
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        6, 30, generator=torch.Generator().manual_seed(1)
    )
    found = span(rows)
    assert len(found.basis) == np.linalg.matrix_rank(rows.numpy()) == 6
    assert found.free == 24


def test_a_span_of_zeros_is_empty():
    found = span(torch.zeros(4, 5))
    assert found.basis.shape == (0, 5)
    assert found.distances(torch.eye(5)).tolist() == [1.0] * 5


def test_an_oracle_says_the_rank_where_noise_hides_it(inputs):
    update, _ = linear(inputs, [3, 5, 8], torch.Generator().manual_seed(1))
    noisy = update["w"] + 1e-3 * torch.randn(48, 32, generator=torch.Generator().manual_seed(2))
    assert len(span(noisy).basis) == 32
    found = span(noisy, rank=3).distances(inputs)
    assert sorted(torch.argsort(found)[:3].tolist()) == [3, 5, 8]


def test_a_span_tells_tokens_apart_only_with_room_for_less_than_one_wrong_token():
    assert not server_probe.says_something(0, 10)
    assert not server_probe.says_something(2, 50_000)
    assert server_probe.says_something(3, 50_000)


def test_an_update_without_the_first_layer_is_refused(inputs):
    layer = linear(inputs, [0], torch.Generator())[1]
    with pytest.raises(ValueError, match="no tensor of the first layer"):
        probe({"other": torch.ones(2)}, layer, told=1)


def test_a_matrix_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        span(torch.tensor([[float("nan")]]))


# Small models: the table of what is seen, by tokens in the update.


@pytest.mark.parametrize("count", [8, 32, 112])
def test_full_fine_tuning_shows_its_tokens_while_they_are_fewer_than_dimensions(untied, count):
    how, found = read(untied, text(count), leave_out_embedding=True)
    assert how == "span"
    assert found.precision == 1.0
    assert found.recall > 0.85  # the last token of a record is read by no query that is trained


def test_more_tokens_than_dimensions_fail_the_span_test_but_embedding_rows_still_show_them(untied):
    units = text(256)
    how, found = read(untied, units, leave_out_embedding=True)
    assert (how, found.recall < 0.9) == ("ranking", True)
    how, found = read(untied, units)
    assert (how, found.precision) == ("embedding rows", 1.0)
    assert found.recall > 0.9


def test_rows_of_an_embedding_that_is_shared_with_the_head_all_change_and_still_rank_their_tokens(tied):
    units = text(256)
    update, there = gradient(tied, units), distinct(units)
    sizes = update["model.embed_tokens.weight"].norm(dim=1)
    assert bool((sizes > 0).all())
    assert len(server_probe.embedding_rows(update["model.embed_tokens.weight"])) == 0
    assert overlap(sizes.argsort(descending=True)[: len(there)].numpy(), there).recall > 0.9


@pytest.mark.parametrize("count", [8, 16, 32])
def test_lora_with_b_shows_up_to_as_many_tokens_as_its_ranks_together(count):
    how, found = read(moved(made(llama, 16)), text(count))
    assert (how, found.precision) == ("span", 1.0)
    assert found.recall > 0.85


@pytest.mark.parametrize("freeze_a", [False, True])
def test_lora_shows_fewer_tokens_than_its_rank_by_b_alone(freeze_a):
    how, found = read(made(llama, 16, freeze_a=freeze_a), text(8))
    assert (how, found.precision) == ("projected span", 1.0)
    assert found.recall > 0.85


@pytest.mark.parametrize("build", [lambda: made(llama, 16), lambda: moved(made(llama, 16))])
def test_more_tokens_than_ranks_fail_both_tests_of_lora(build):
    how, found = read(build(), text(256))
    assert how == "ranking"
    assert found.recall < 0.75


def test_more_tokens_than_ranks_are_still_ranked_above_chance():
    how, found = read(moved(made(llama, 16)), text(64))
    assert how == "ranking"
    assert found.recall > 10 * at_random(found.named, found.there, VOCABULARY).recall


def test_a_frozen_a_leaves_only_b_to_read():
    model = moved(made(llama, 16, freeze_a=True))
    assert not any("lora_A" in name for name in gradient(model, text(8)))
    assert read(model, text(8))[0] == "projected span"


@pytest.mark.parametrize(("share", "least"), [(1e-4, 0.7), (1e-3, 0.3)])
def test_a_little_noise_takes_little_from_an_attacker_who_is_told_the_rank(untied, share, least):
    units = text(24)
    layer, there = server_probe.first_layer(untied), distinct(units)
    found = engine_for(untied, clipping=Clipping(1.0), loss="mean", micro_batch_tokens=4096).unit_sum(units).gradient
    generator = torch.Generator().manual_seed(3)
    noisy = {n: v + share * torch.randn(v.shape, generator=generator) for n, v in found.items() if n in layer.rows}
    reading = probe(noisy, layer, told=len(there))
    assert reading.how == "ranking"
    assert overlap(reading.tokens, there).recall > least


def test_noise_of_a_promise_leaves_chance(untied):
    layer, hits = server_probe.first_layer(untied), 0
    for seed in range(5):
        units = text(24, seed=seed)
        there, generator = distinct(units), torch.Generator().manual_seed(seed)
        found = engine_for(untied, clipping=Clipping(1.0), loss="mean", micro_batch_tokens=4096).unit_sum(units)
        noisy = {n: v + torch.randn(v.shape, generator=generator) for n, v in found.gradient.items()}
        hits += overlap(probe(noisy, layer, told=len(there)).tokens, there).found
    assert stats.binom.sf(hits - 1, 5 * 24, 24 / VOCABULARY) > 1e-3


def test_layer_norm_without_positions_is_read_too():
    how, found = read(made(neox), text(24), leave_out_embedding=True)
    assert (how, found.precision) == ("span", 1.0)
    assert found.recall > 0.9


def test_learned_positions_are_tried_one_by_one():
    model, units = made(gpt2), text(10, vocabulary=300)
    layer = server_probe.first_layer(model, positions=10)
    assert len(layer.inputs) == 10
    how, found = read(model, units, leave_out_embedding=True, layer=layer)
    assert (how, found.precision) == ("span", 1.0)
    assert found.recall > 0.85


def test_what_the_first_layer_reads_is_the_norm_of_the_embedding(untied):
    layer = server_probe.first_layer(untied)
    inner = untied.model
    with torch.no_grad():
        expected = inner.layers[0].input_layernorm(inner.embed_tokens.weight)
    assert len(layer.inputs) == 1
    torch.testing.assert_close(layer.inputs[0], expected)


def test_asking_a_model_leaves_it_as_it_was(untied):
    untied.train()
    server_probe.first_layer(untied)
    assert all(module.training for module in untied.modules())
    assert not any(module._forward_pre_hooks for module in untied.modules())


def test_overlap_counts_distinct_tokens():
    found = overlap([1, 1, 2, 9], [1, 2, 3, 3])
    assert (found.found, found.there, found.named) == (2, 3, 3)
    assert (found.recall, found.precision) == (2 / 3, 2 / 3)
    assert overlap([], [1]).precision == 0.0


def test_chance_names_tokens_at_random():
    assert at_random(100, 50, 1000) == (5, 50, 100)


# Clients that send a direction.

SHAPES = {"a": (40, 50), "b": (1000,)}


def test_a_canary_has_the_clip_norm_and_is_the_same_again():
    one = canary_update(SHAPES, clip_norm=0.3, seed=1, index=2)
    again = canary_update(SHAPES, clip_norm=0.3, seed=1, index=2)
    assert sum(float(v.square().sum()) for v in one.values()) == pytest.approx(0.09, rel=1e-5)
    assert all(torch.equal(one[name], again[name]) for name in SHAPES)
    assert not torch.equal(one["b"], canary_update(SHAPES, clip_norm=0.3, seed=1, index=3)["b"])


def test_directions_share_no_stream_of_chance_with_what_else_hangs_on_the_seed():
    for index, other in ((0, 5), (20, [5, 20])):
        drawn = torch.from_numpy(np.random.default_rng(other).standard_normal(SHAPES["a"], dtype=np.float32))
        direction = canary_update(SHAPES, clip_norm=1.0, seed=5, index=index)["a"]
        assert abs(float(torch.nn.functional.cosine_similarity(drawn.flatten(), direction.flatten(), dim=0))) < 0.5


def test_cosines_of_directions_that_were_not_sent_are_normal():
    change = {"a": torch.ones(40, 50), "b": torch.arange(1000.0)}
    found = canary_scores(change, seed=5, inserted=range(200), held_out=range(200, 400))
    assert found.std == pytest.approx(3000**-0.5)
    assert stats.kstest(found.held_out / found.std, "norm").pvalue > 0.01
    assert stats.kstest(found.p_values, "uniform").pvalue > 0.01


def test_directions_that_were_sent_stand_out():
    change = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for index in range(10):
        for name, value in canary_update(SHAPES, clip_norm=1.0, seed=5, index=index).items():
            change[name] += value
    found = canary_scores(change, seed=5, inserted=range(10), held_out=range(10, 20))
    assert found.inserted.min() > found.held_out.max()
    assert found.p_values.max() < 1e-6


def test_a_change_of_nothing_has_no_direction():
    with pytest.raises(ValueError, match="norm"):
        canary_scores({"a": torch.zeros(3)}, seed=0, inserted=[0], held_out=[1])
