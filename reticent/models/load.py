"""Models and tokenizers: bundled, a local folder, or a hub id."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from reticent.errors import ModelError
from reticent.gradients.attention import use_segments
from reticent.models import bundled

Bits = Literal["4bit", "8bit"]


class Loaded(NamedTuple):
    """A model that reads packed rows, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(
    base: str,
    *,
    dtype: str = "float32",
    tokenizer: str | None = None,
    device: torch.device | None = None,
    quantize: Bits | None = None,
) -> Loaded:
    """The model ``base`` on ``device``, the best if None, in evaluation mode, nothing trainable.

    ``dtype`` is "float32", "bfloat16", or "auto": bfloat16 where the machine computes in it. ``tokenizer`` is the model
    whose tokenizer it uses, if not its own. ``quantize`` holds its linear layers in so many bits.

    Raises:
        ModelError: it cannot be found or reached, cannot read packed rows, or cannot be quantised here.
    """
    device = device or best_device()
    where = bundled.smollm2() if base == bundled.NAME else base
    held = {} if quantize is None else _quantized(quantize, device)
    with _explained(base):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=_dtype(dtype), **held)
    use_segments(model)
    model.requires_grad_(False)
    if quantize is None:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
    return Loaded(model.eval(), load_tokenizer(tokenizer or base))


def _quantized(bits: Bits, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` must be told."""
    for there, what in (
        (device.type == "cuda", "a machine with an NVIDIA GPU"),
        (find_spec("bitsandbytes") is not None, "the package bitsandbytes (pip install bitsandbytes)"),
    ):
        if not there:
            raise ModelError(f"model.quantize: {bits} needs {what}. Set model.quantize to null, or train where it is.")
    if bits == "4bit":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    else:
        # With a threshold, a large number in one record changes how the others of its row are rounded.
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return {"quantization_config": config, "device_map": {"": device}}


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of ``base``.

    Raises:
        ModelError: it cannot be found or reached.
    """
    with _explained(base):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            bundled.smollm2() if base == bundled.NAME else base
        )
    return tokenizer


def skeleton(base: str, *, dtype: str) -> tuple[PreTrainedModel, int]:
    """``base`` without its weights (all tensors on the meta device), and the bytes of each weight in ``dtype``.

    Raises:
        ModelError: it cannot be found or reached, or cannot read packed rows.
    """
    with _explained(base):
        config = AutoConfig.from_pretrained(bundled.smollm2() if base == bundled.NAME else base)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    use_segments(model)
    model.requires_grad_(False)
    return model, _dtype(dtype).itemsize


def _dtype(name: str) -> torch.dtype:
    if name == "auto":
        native = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
        name = "bfloat16" if native else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def best_device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _explained(base: str) -> Iterator[None]:
    """Loads quietly; turns every failure into one message that says what to do."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers' own, about its own API
            yield
    except ModelError:
        raise
    except Exception as error:  # transformers raises many types for one fact: no such model here
        if Path(base).is_dir():
            what = f"the folder {base} holds no model that transformers can load ({type(error).__name__})"
        else:
            what = f"model {base} is neither a local folder nor reachable on the hub ({type(error).__name__})"
        raise ModelError(
            f"{what}. Set model.base to bundled/smollm2-135m, to a folder with config.json, *.safetensors and "
            "tokenizer files, or to a hub id while the hub can be reached."
        ) from None
