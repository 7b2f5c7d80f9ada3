"""Weights are counted exactly."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reticent.models import adapter, count

SEVEN_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def _lora(model, rank):
    return adapter.add_lora(model, rank=rank, alpha=32, dropout=0.0, targets="all-linear", seed=0)


def test_adapters_of_rank_16_on_llama_2_7b_are_39_976_960_numbers():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SEVEN_BILLION))
    embedding = model.get_input_embeddings().weight.numel()
    found = count.size(_lora(model, 16))
    assert found.whole == 6_738_415_616 and found.trained == found.adapter == 39_976_960
    assert found.share == pytest.approx(0.00593, abs=5e-6)
    # The published figures leave out the input embedding.
    assert found.trained / (found.whole - embedding) == pytest.approx(0.00605, abs=5e-6)
    assert (found.whole - embedding) / found.trained == pytest.approx(165, abs=0.5)


def test_tied_weights_count_once_and_without_adapters_all_is_trained(tiny):
    tied, untied = (tiny.build(tiny.families[name]()) for name in ("llama-tied", "llama"))
    first, second = count.size(tied), count.size(untied)
    assert second.whole - first.whole == 64 * 32 and first.adapter == 0 and first.share == 1


def test_the_extent_is_that_of_what_was_trained(tiny):
    model = tiny.build(tiny.families["llama"]())
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = -70.0
        model.get_output_embeddings().weight[0, 1] = 80.0
    assert count.extent(model) == (-70.0, 80.0)
    wrapped = _lora(model, 2)
    with torch.no_grad():
        next(one for name, one in wrapped.named_parameters() if ".lora_B." in name)[0, 0] = -3.0
    low, high = count.extent(wrapped)
    assert low == -3.0 and high < 80.0
