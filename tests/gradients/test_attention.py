"""Records in one row do not see each other; what cannot be kept apart is refused by name."""

import pytest
import torch
from transformers import BloomConfig, Gemma2Config, GptOssConfig, Lfm2Config, LlamaConfig

from reticent.errors import ModelError
from reticent.gradients.attention import Segment, causal, segments, use_segments
from reticent.gradients.rows import pack

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": None,
}
FAMILIES = ["llama", "llama-tied", "qwen3", "neox", "mistral", "gemma"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_packed_row_reads_each_record_as_if_alone(tiny, family):
    model = tiny.model(family, dtype=torch.float64)
    alone = tiny.plain(model)
    ((row,),) = pack(tiny.units(6), max_tokens=1000, loss="sum")
    with segments(causal(row.records)):
        packed = model(input_ids=row.ids, position_ids=row.positions, use_cache=False).logits[0]
    for start, end in zip((0, *row.records[:-1]), row.records, strict=True):
        torch.testing.assert_close(
            packed[start:end], alone(input_ids=row.ids[:, start:end]).logits[0], rtol=0, atol=1e-5
        )


@torch.no_grad()
def test_a_short_window_matters(tiny):
    """Guards the Mistral case above: with the window ignored its logits would differ."""
    model = tiny.model("mistral")
    ids = torch.arange(2, 22)[None]
    with segments(causal([20])):
        windowed = model(input_ids=ids).logits
    model.config.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    with segments(causal([20])):
        assert (model(input_ids=ids).logits - windowed).abs().max() > 0.01


def test_a_row_without_segments_is_refused(tiny):
    with pytest.raises(ModelError, match="without its segments"):
        tiny.model()(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_segments_of_another_length_are_refused(tiny):
    with pytest.raises(ModelError, match="without its segments"), segments(causal([3])):
        tiny.model()(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_a_padded_batch_is_refused(tiny):
    with pytest.raises(ModelError, match="without its segments"), segments(causal([4])):
        tiny.model()(input_ids=torch.zeros(2, 4, dtype=torch.long))


def test_a_cached_continuation_is_refused(tiny):
    model = tiny.model()
    with segments(causal([4])):
        cache = model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=True).past_key_values
    with pytest.raises(ModelError, match="without its segments"), segments(causal([1])):
        model(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)


def test_a_model_that_was_not_prepared_is_refused(tiny):
    model = tiny.build(tiny.families["llama"]())
    with pytest.raises(ModelError, match="use_segments did not prepare"), segments(causal([2, 4])):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_segments_end_with_their_block_even_after_an_error(tiny):
    with pytest.raises(ZeroDivisionError), segments(causal([4])):
        raise ZeroDivisionError
    with pytest.raises(ModelError, match="without its segments"):
        tiny.model()(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_a_tree_longer_than_the_window_is_refused(tiny):
    tree = Segment(0, 8, torch.eye(8, dtype=torch.bool))
    with pytest.raises(ModelError, match="longer than the attention window 5"), segments([tree]):
        tiny.model("mistral")(input_ids=torch.zeros(1, 8, dtype=torch.long))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=64),
            "BloomForCausalLM does not take an attention",
        ),
        (Gemma2Config(**SIZES), "Gemma2ForCausalLM caps attention scores"),
        (GptOssConfig(**{**SIZES, "num_local_experts": 2}), "GptOssAttention changes attention scores"),
        (Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), "Lfm2ForCausalLM mixes tokens outside attention"),
        (
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            r"LlamaForCausalLM turns positions by the longest record of a row \(rope type dynamic\)",
        ),
    ],
    ids=["own-attention", "softcap", "sinks", "convolution", "dynamic-rope"],
)
def test_what_cannot_keep_records_apart_is_refused_by_name(tiny, config, match):
    with pytest.raises(ModelError, match=match):
        use_segments(tiny.build(config))


def test_preparing_leaves_no_hook(tiny):
    assert not tiny.model().get_input_embeddings()._forward_hooks
