"""Models and tokenizers: bundled, a local folder, or a hub id."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from reticent.errors import ModelError
from reticent.gradients.attention import use_segments
from reticent.models import bundled


class Loaded(NamedTuple):
    """A model that reads packed rows, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(base: str, *, dtype: str = "float32", tokenizer: str | None = None) -> Loaded:
    """The model ``base`` on the best device, in evaluation mode, nothing trainable.

    ``dtype`` is "float32", "bfloat16", or "auto": bfloat16 where the machine computes in it. ``tokenizer`` is the model
    whose tokenizer it uses, if not its own.

    Raises:
        ModelError: it cannot be found or reached, or cannot read packed rows.
    """
    where = bundled.smollm2() if base == bundled.NAME else base
    with _explained(base):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=_dtype(dtype))
    use_segments(model)
    model.requires_grad_(False)
    model.to(device())  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
    return Loaded(model.eval(), load_tokenizer(tokenizer or base))


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


def device() -> torch.device:
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
