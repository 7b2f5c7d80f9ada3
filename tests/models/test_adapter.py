"""Models go to a folder and come back equal; what is missing is refused."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BloomConfig, PreTrainedTokenizerFast

from reticent.errors import ModelError
from reticent.gradients.attention import causal, segments
from reticent.gradients.engines import trained
from reticent.models import adapter
from reticent.models.load import load, load_tokenizer


@pytest.fixture
def base(tiny, tmp_path):
    """A folder with a tiny model and a tokenizer of single digits."""
    folder = tmp_path / "base"
    tiny.build(tiny.families["llama-tied"]()).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(tiny.vocabulary)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0", eos_token="1").save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def _logits(model):
    with segments(causal([3, 8])):
        return model(input_ids=torch.arange(2, 10)[None], position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])).logits


def _lora(model, targets="all-linear", seed=0):
    return adapter.add_lora(model, rank=2, alpha=4, dropout=0.0, targets=targets, seed=seed)


def _train(model):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in trained(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_a_local_folder_is_loaded_frozen_and_ready_for_packed_rows(base):
    model, tokenizer = load(base)
    assert not model.training and not trained(model)
    assert _logits(model).shape == (1, 8, 64) and tokenizer.encode("3 5") == [3, 5]
    assert load_tokenizer(base).encode("3 5") == [3, 5]


def test_a_new_adapter_changes_nothing_and_is_float32(base):
    before = _logits(load(base).model)
    model = _lora(load(base).model)
    assert torch.equal(_logits(model), before)
    assert {p.dtype for p in trained(_lora(load(base, dtype="bfloat16").model)).values()} == {torch.float32}


def test_only_adapters_are_trained(base):
    assert all(".lora_A." in name or ".lora_B." in name for name in trained(_lora(load(base).model)))


def test_the_seed_makes_the_adapter_and_no_global_state_is_touched(base):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (_lora(load(base).model, seed=seed) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    pairs = [trained(model) for model in (first, second, other)]
    name = next(name for name in pairs[0] if "lora_A" in name)
    assert torch.equal(pairs[0][name], pairs[1][name]) and not torch.equal(pairs[0][name], pairs[2][name])


@pytest.mark.parametrize("merge", [False, True])
def test_a_saved_adapter_gives_the_same_logits(base, tmp_path, merge):
    model = _train(_lora(load(base).model))
    adapter.save(model, tmp_path / "trained", base="base")
    loaded, tokenizer = adapter.load_trained(base, tmp_path / "trained", dtype="float32", merge=merge)
    torch.testing.assert_close(_logits(loaded), _logits(model), rtol=0, atol=1e-5 if merge else 0)
    assert not loaded.training and tokenizer.encode("3 5") == [3, 5]


def test_a_saved_whole_model_gives_the_same_logits(base, tmp_path):
    model = _train(adapter.train_everything(load(base).model))
    adapter.save(model, tmp_path / "trained", base="base")
    loaded, tokenizer = adapter.load_trained(base, tmp_path / "trained", dtype="float32")
    assert torch.equal(_logits(loaded), _logits(model)) and not trained(loaded)
    assert tokenizer.encode("3 5") == [3, 5]


def test_an_adapter_without_its_weights_is_refused(base, tmp_path):
    from safetensors.torch import load_file, save_file

    adapter.save(_lora(load(base).model), tmp_path / "trained", base="base")
    weights = load_file(tmp_path / "trained" / "adapter_model.safetensors")
    save_file(
        {n: w for n, w in weights.items() if "q_proj" not in n}, tmp_path / "trained" / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match="adapter"):
        adapter.load_trained(base, tmp_path / "trained", dtype="float32")


def test_an_adapter_for_another_base_is_refused_and_both_are_named(base, tmp_path):
    adapter.save(_lora(load(base).model), tmp_path / "trained", base="somebody/other-7b")
    with pytest.raises(
        ModelError, match=r"was trained on somebody/other-7b, and model.base is .*/base\. Set model.base"
    ):
        adapter.load_trained(base, tmp_path / "trained")


def test_a_base_that_has_moved_is_the_same_base(base, tmp_path):
    """Of a local folder an adapter knows the name alone."""
    adapter.save(_lora(load(base).model), tmp_path / "trained", base="/elsewhere/base")
    assert adapter.load_trained(base, tmp_path / "trained").tokenizer.encode("3 5") == [3, 5]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"r": 2}'])
def test_an_adapter_that_names_no_base_is_refused(base, tmp_path, text):
    adapter.save(_lora(load(base).model), tmp_path / "trained", base="base")
    (tmp_path / "trained" / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"adapter_config.json cannot be read or does not name its base model"):
        adapter.load_trained(base, tmp_path / "trained")


def test_what_is_saved_does_not_say_where_the_base_lies(base, tmp_path):
    adapter.save(_lora(load(base).model), tmp_path / "trained", base="base")
    texts = [path.read_bytes() for path in (tmp_path / "trained").iterdir()]
    assert texts and not any(base.encode() in text for text in texts)


@pytest.mark.parametrize("targets", [["qq_proj"], "no-such-layer"])
def test_targets_that_fit_nothing_are_refused(base, targets):
    with pytest.raises(ModelError, match=r"model.adapter.targets .* fit no linear layer of LlamaForCausalLM"):
        _lora(load(base).model, targets)


def test_everything_is_trained_in_float32(base):
    model = adapter.train_everything(load(base, dtype="bfloat16").model)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and all(p.requires_grad for p in model.parameters())


def test_a_missing_folder_is_refused(base, tmp_path):
    with pytest.raises(ModelError, match=r"trained is neither a local folder nor reachable"):
        adapter.load_trained(base, tmp_path / "trained", dtype="float32")


@pytest.mark.parametrize("read", [load, load_tokenizer])
def test_an_unknown_model_is_refused_with_what_to_do(read):
    with pytest.raises(ModelError, match=r"nobody/no-such-model .* Set model.base to .* a folder with config.json"):
        read("nobody/no-such-model")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no model that transformers can load"):
        load(str(tmp_path))


def test_a_model_that_cannot_keep_records_apart_is_refused(tiny, base, tmp_path):
    tiny.build(BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=64)).save_pretrained(tmp_path / "bloom")
    load_tokenizer(base).save_pretrained(tmp_path / "bloom")
    with pytest.raises(ModelError, match="BloomForCausalLM does not take an attention function"):
        load(str(tmp_path / "bloom"))
