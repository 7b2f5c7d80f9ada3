"""Tiny random models of several families, and the slow oracle that every private path is held against."""

import copy
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

from reticent.gradients.attention import use_segments
from reticent.gradients.rows import Unit
from reticent.tokens import Tokens

torch.set_num_threads(1)
transformers_logging.set_verbosity_error()

VOCABULARY = 64
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_GROUPED, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_GROUPED),
    "neox": lambda: GPTNeoXConfig(**_SIZES),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=5),
    "gemma": lambda: GemmaConfig(**_GROUPED),
    "gpt2": lambda: GPT2Config(
        **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": VOCABULARY},
        **{"bos_token_id": 0, "eos_token_id": 1, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
    "llama-biases": lambda: LlamaConfig(**_GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
}


def build(config: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of ``config`` whose outputs are far from uniform, so that gradients are large."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.1))
    model.requires_grad_(False)
    return model.to(dtype).eval()


def with_lora(model: PreTrainedModel, *, seed: int = 0, **settings: Any) -> Any:
    """``model`` with adapters whose B is not zero, so that A has a gradient too."""
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # peft mends it itself
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    return wrapped


def record(ids: Sequence[int], prompt: int = 1) -> Tokens:
    """A record whose tokens after the first ``prompt`` are trained."""
    return Tokens(np.array(ids, dtype=np.int64), np.arange(len(ids)) >= prompt)


def random_record(rng: np.random.Generator, length: int) -> Tokens:
    """A record of random tokens below 60 and a random prompt; 60 to 63 are left for tests that need rare tokens."""
    return record(rng.integers(2, 60, length).tolist(), int(rng.integers(1, length)))


def random_units(count: int, *, seed: int = 0, longest: int = 20, records: int = 1) -> list[Unit]:
    """Units of up to ``records`` random records."""
    rng = np.random.default_rng(seed)
    return [
        Unit(
            f"u{i}",
            tuple(random_record(rng, int(rng.integers(2, longest + 1))) for _ in range(rng.integers(1, records + 1))),
        )
        for i in range(count)
    ]


def plain(model: Any) -> Any:
    """A copy that knows nothing of packed rows: transformers' own eager attention."""
    twin = copy.deepcopy(model)
    (twin.get_base_model() if hasattr(twin, "peft_config") else twin).set_attn_implementation("eager")
    return twin


def oracle(model: Any, units: Sequence[Unit], *, clip: float, loss: str = "sum") -> dict[str, torch.Tensor]:
    """The sum of clipped unit gradients, by the definition: one record at a time through an ordinary forward pass."""
    twin = plain(model)
    parameters = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for unit in units:
        own = {name: torch.zeros_like(value) for name, value in total.items()}
        for tokens in unit.records:
            logp = twin(input_ids=torch.from_numpy(tokens.ids)[None]).logits[0].log_softmax(-1)
            at = np.flatnonzero(tokens.trained)
            nll = -logp[at - 1, tokens.ids[at]].sum() / (len(at) if loss == "mean" else 1)
            for name, part in zip(
                own, torch.autograd.grad(nll, list(parameters.values()), allow_unused=True), strict=True
            ):
                if part is not None:
                    own[name] += part
        factor = min(1.0, clip / norm(own))
        for name, gradient in own.items():
            total[name] += factor * gradient
    return total


def norm(sums: dict[str, torch.Tensor]) -> float:
    """The norm over all tensors together."""
    return float(torch.stack([value.double().square().sum() for value in sums.values()]).sum().sqrt())


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The norm of the difference."""
    assert a.keys() == b.keys()
    return norm({name: a[name].double() - b[name].double() for name in a})


class Helpers:
    """What tests share, without imports between test files."""

    vocabulary = VOCABULARY
    families = FAMILIES
    lora = staticmethod(with_lora)
    plain = staticmethod(plain)
    record = staticmethod(record)
    random_record = staticmethod(random_record)
    units = staticmethod(random_units)
    oracle = staticmethod(oracle)
    norm = staticmethod(norm)
    distance = staticmethod(distance)
    build = staticmethod(build)

    @staticmethod
    def model(family: str = "llama", **options: Any) -> PreTrainedModel:
        """A tiny random model that reads packed rows."""
        model = build(FAMILIES[family](), **options)
        use_segments(model)
        return model


@pytest.fixture(scope="session")
def tiny() -> Helpers:
    """Tiny models, records and the oracle."""
    return Helpers()


SETTINGS: dict[str, Any] = {
    "min_learning_rate": 0.0,
    "learning_rate": 0.01,
    "optimizer": "adamw",
    "momentum": 0.0,
    "beta1": 0.9,
    "beta2": 0.999,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0,
    "loss": "mean",
    "micro_batch_tokens": 64,
    "checkpoint_every": 2,
    "shard": False,
    "seed": 0,
}


@pytest.fixture
def settings() -> Callable[..., Any]:
    """`Settings` of a short run."""
    from reticent.training.loop import Settings

    def make(**changes: Any) -> Settings:
        return Settings(**{**SETTINGS, **changes})

    return make


@pytest.fixture(scope="session")
def benchmark_script() -> Callable[[str], ModuleType]:
    """A script of benchmarks/ as a module, by its name."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look there
        spec.loader.exec_module(module)
        return module

    return load
