import pytest
import torch
from transformers import AutoModelForCausalLM

from reticent.errors import ModelError
from reticent.models import load as loading
from reticent.models.load import load

CUDA = torch.device("cuda")


@pytest.fixture
def asked(tiny, monkeypatch):
    """Loads a model as if this were a machine with a GPU and bitsandbytes; what transformers was asked for."""
    told = {}

    def from_pretrained(where, **options):
        told.update(options)
        return tiny.model()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(loading, "load_tokenizer", lambda base: base)
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    monkeypatch.setattr(loading, "BitsAndBytesConfig", dict)  # its own asks for the package

    def make(**options):
        load("maker/name", device=CUDA, **options)
        return told

    return make


def test_quantising_without_a_gpu_is_refused():
    with pytest.raises(ModelError, match="model.quantize: 4bit needs a machine with an NVIDIA GPU. Set .* to null"):
        load("maker/name", quantize="4bit", device=torch.device("cpu"))


def test_quantising_without_the_package_is_refused(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"model.quantize: 8bit needs the package bitsandbytes \(pip install"):
        load("maker/name", quantize="8bit", device=CUDA)


def test_four_bits_are_nf4_and_computed_in_bfloat16(asked):
    told = asked(quantize="4bit")
    assert told["device_map"] == {"": CUDA}
    assert told["quantization_config"] == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }


def test_eight_bits_round_each_token_by_itself(asked):
    assert asked(quantize="8bit")["quantization_config"] == {"load_in_8bit": True, "llm_int8_threshold": 0.0}


def test_a_model_is_put_on_the_given_device(tiny, asked, monkeypatch):
    monkeypatch.setattr(loading, "best_device", lambda: torch.device("meta"))
    assert load("maker/name").model.device.type == "meta"
    assert load("maker/name", device=torch.device("cpu")).model.device.type == "cpu"
