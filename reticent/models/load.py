"""Models and tokenizers: bundled, a local folder, or a hub id."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from reticent.errors import ModelError
from reticent.gradients.attention import use_segments
from reticent.models import bundled


class Loaded(NamedTuple):
    """A model that reads packed rows, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(base: str, *, dtype: str = "float32") -> Loaded:
    """The model ``base`` on the best device, in evaluation mode, nothing trainable.

    Raises:
        ModelError: it cannot be found or reached, or cannot read packed rows.
    """
    where = bundled.smollm2() if base == bundled.NAME else base
    with _explained(base):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, dtype))
        tokenizer = AutoTokenizer.from_pretrained(where)
    use_segments(model)
    model.requires_grad_(False)
    model.to(device())
    return Loaded(model.eval(), tokenizer)


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


def load_config(base: str) -> Any:
    """The configuration of ``base``, without its weights.

    Raises:
        ModelError: it cannot be found or reached.
    """
    from transformers import AutoConfig

    with _explained(base):
        return AutoConfig.from_pretrained(bundled.smollm2() if base == bundled.NAME else base)


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
            f"{what}. Set model.base to bundled/smollm2-135m, to a folder with config.json, *.safetensors and tokenizer "
            "files, or to a hub id while the hub can be reached."
        ) from None
