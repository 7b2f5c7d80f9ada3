"""A trained model as a folder that others load without this package, checked by loading it that way.

What is compared with the run's own model: logits on public texts and random tokens, and the mean log-probability of
texts. In float32 the two must be equal up to the order of additions. Weights that are stored in 16 bits are first
compared in float32 with the rounded ones, as strictly; what rounding itself does is a second, wider bound.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import exp
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reticent.errors import ModelError
from reticent.gradients.attention import causal, segments
from reticent.models import adapter, bundled, count
from reticent.models.language_model import CausalModel
from reticent.tokens import Tokens

Kind = Literal["adapter", "merged"]

RMS: Final = 2e-5
"""In float32: largest root mean square of the differences of logits, over that of the logits."""
LARGEST: Final = 2e-4
"""In float32: largest difference of two logits, over the largest logit."""
DIVERGENCE: Final = 0.05
"""In 16 bits: largest mean Kullback-Leibler divergence of the next token from the run's model, nats."""
AGREEMENT: Final = 0.75
"""In 16 bits: smallest share of positions with the same likeliest token; most probes are random tokens, where several
are about as likely."""
PERPLEXITY: Final = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest relative difference of perplexities, by the numbers' type."""

_SHARD = "5GB"
_LENGTH = 64  # tokens of a probe
_TEXTS = (
    "Water boils at 100 degrees Celsius at sea level, and at a lower temperature on a mountain.",
    "Question: Which organ pumps blood through the body?\nAnswer: The heart.",
    "def area(width, height):\n    return width * height\n",
    "The train leaves at 08:15 and arrives at noon; a ticket costs 24.50 in either direction.",
)


class Agreement(NamedTuple):
    """Two models' logits at the same ``positions``: root mean square of the differences over that of the logits, the
    largest difference over the largest logit, mean Kullback-Leibler divergence in nats, and the share of positions
    with the same likeliest token."""

    rms: float
    largest: float
    divergence: float
    same: float
    positions: int


class Exported(NamedTuple):
    """What was written, and how the reloaded model compares with the run's.

    ``dtype``: of the stored numbers. ``exact``: in float32; ``rounded``: as it is stored, None where that is float32.
    ``perplexity``: the run's and the reloaded model's, and the number of texts; None without texts. ``extent``: least
    and largest of the trained numbers. ``tuned``: how much the adapter changes the logits, as `Agreement.rms`; None
    without one. ``lost``: how much rounding the weights does; None where they are not rounded.
    """

    kind: Kind
    dtype: str
    size: count.Size
    extent: tuple[float, float]
    tuned: float | None
    lost: float | None
    exact: Agreement
    rounded: Agreement | None
    perplexity: tuple[float, float] | None
    texts: int


def export(base: str, trained: Path, folder: Path, *, name: str, kind: Kind, texts: Sequence[Tokens]) -> Exported:
    """Writes the model in ``trained`` to the empty ``folder``, loads it from there with plain transformers (and PEFT)
    and compares.

    Args:
        base: the model that was fine-tuned.
        name: what that is called in the files; not where it lies on this machine.
        kind: "adapter", or "merged": whole weights, in the type that the base's own configuration names.
        texts: compared by perplexity; private ones may be, nothing of them is kept.

    Raises:
        ModelError: there is no adapter to export, or what was written is not the model.
    """
    loaded = adapter.load_trained(base, trained)
    model: Any = loaded.model
    if kind == "adapter" and not isinstance(model, PeftModel):
        raise ModelError("the run's model is whole weights and no adapter; export it with --kind merged")
    size, extent = count.size(model), count.extent(model)
    ids = probes(loaded.tokenizer, len(model.get_input_embeddings().weight))
    expected = rounded = _read(model, ids, packed=True)
    tuned = None
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            tuned = compare(_read(model, ids, packed=True), expected).rms
    dtype = torch.float32
    if kind == "adapter":
        adapter.save(model, folder, base=name)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload().eval()
    own = _perplexity([score.logp for score in CausalModel(model).log_probs(texts)]) if texts else None
    if kind == "merged":
        refuse_difference(compare(expected, _read(model, ids, packed=True)), "merging the adapter into the base")
        dtype = dtype_of(base)
        if dtype != torch.float32:
            _round(model, dtype)
            rounded = _read(model, ids, packed=True)
        _save(model.to(dtype), folder, name)
    loaded.tokenizer.save_pretrained(folder)
    device = model.device
    del loaded, model
    with _loading("what was written"):
        again = reload(folder, base if kind == "adapter" else None).to(device)
        _refuse_tokenizer(folder, base)
    if kind == "merged" and again.dtype != dtype:
        raise _failed(f"it is stored as {_word(dtype)} and loads as {_word(again.dtype)}")
    stored = None if dtype == torch.float32 else compare(expected, _read(again, ids))
    theirs = _perplexity(list(log_probs(again, texts))) if texts else None
    exact = compare(rounded, _read(again.float(), ids))
    refuse_difference(exact, "loading it again")
    if stored is not None:
        _refuse_rounding(stored, dtype)
    perplexity = None if own is None or theirs is None else (own, theirs)
    if perplexity is not None:
        _refuse_perplexity(*perplexity, dtype)
    lost = None if dtype == torch.float32 else compare(expected, rounded).rms
    return Exported(kind, _word(dtype), size, extent, tuned, lost, exact, stored, perplexity, len(texts))


# -------------------------------------------------------------------------------------------------------------- saving


def dtype_of(base: str) -> torch.dtype:
    """What the base's own configuration names, if it is of 16 bits; else float32.

    Raises:
        ModelError: it has no configuration that can be read.
    """
    with _loading(f"the configuration of {base}"):
        named = AutoConfig.from_pretrained(_where(base)).get_text_config().dtype
    return named if named in (torch.bfloat16, torch.float16) else torch.float32


def _round(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Rounds what is stored to ``dtype`` and keeps it in float32. Not what is computed from the configuration, as the
    turns of positions: that is never rounded when a model is loaded."""
    with torch.no_grad():
        for one in model.state_dict().values():
            if one.is_floating_point():
                one.copy_(one.to(dtype))


def _save(model: PreTrainedModel, folder: Path, name: str) -> None:
    """Whole weights, in several files where they are large; the configuration says what is there, and no more."""
    model.config._name_or_path = name
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # of the base's files; these weights are plain
    model.save_pretrained(folder, max_shard_size=_SHARD)


# ------------------------------------------------------------------------------------------------------------- loading


def reload(folder: Path, base: str | None) -> PreTrainedModel:
    """What a user gets: transformers alone, with PEFT on top of ``base`` for an adapter. In evaluation mode.

    Raises:
        ModelError: weights are missing, or are there that the model has no place for.
    """
    model: Any
    if base is None:
        found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
        model, told = found
        wrong = [f"{key.partition('_')[0]} weights" for key, names in told.items() if key.endswith("_keys") and names]
        if wrong:
            raise _failed(f"it loads with {' and '.join(wrong)}")
        return cast("PreTrainedModel", model.eval())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        model = AutoModelForCausalLM.from_pretrained(_where(base), dtype=torch.float32)
        return cast("PreTrainedModel", PeftModel.from_pretrained(model, str(folder)).eval())


def _refuse_tokenizer(folder: Path, base: str) -> None:
    ours, theirs = AutoTokenizer.from_pretrained(_where(base)), AutoTokenizer.from_pretrained(folder)
    if any(ours.encode(text) != theirs.encode(text) for text in _TEXTS) or ours.chat_template != theirs.chat_template:
        raise _failed("the tokenizer loads as another one")


def _where(base: str) -> str | Path:
    return bundled.smollm2() if base == bundled.NAME else base


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turns every failure to load into one message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # libraries' own, about each other
            yield
    except ModelError:
        raise
    except Exception as error:  # of many types for one fact: what is there cannot be loaded
        raise _failed(f"{what} cannot be loaded ({type(error).__name__})") from None


# ------------------------------------------------------------------------------------------------------------ comparing


def probes(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[torch.Tensor]:
    """(tokens,) int64 each: public texts, and as many rows of random tokens, always the same."""
    rng = np.random.default_rng(0)
    rows = [np.asarray(tokenizer.encode(text)[:_LENGTH]) for text in _TEXTS]
    rows += [rng.integers(0, vocabulary, _LENGTH // 2) for _ in _TEXTS]
    return [torch.from_numpy(row.astype(np.int64)) for row in rows]


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> Agreement:
    """Two models' logits, (positions, vocabulary) float32; the divergence is that of ``theirs`` from ``ours``."""
    difference = ours - theirs
    log_p, log_q = ours.log_softmax(1), theirs.log_softmax(1)
    return Agreement(
        rms=float(difference.square().mean().sqrt() / ours.square().mean().sqrt()),
        largest=float(difference.abs().max() / ours.abs().max()),
        divergence=float((log_p.exp() * (log_p - log_q)).sum(1).mean().clamp(min=0)),
        same=float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
        positions=len(ours),
    )


def refuse_difference(found: Agreement, step: str) -> None:
    """For float32.

    Raises:
        ModelError: the logits differ by more than rounding; ``step`` is what was done between the two.
    """
    if not (found.rms <= RMS and found.largest <= LARGEST):  # also where they are not numbers
        raise _failed(
            f"{step} changed the logits by {found.rms:.2g} of their size (at most {RMS:g}), the largest by "
            f"{found.largest:.2g} (at most {LARGEST:g})"
        )


def _refuse_rounding(found: Agreement, dtype: torch.dtype) -> None:
    if not (found.divergence <= DIVERGENCE and found.same >= AGREEMENT):
        raise _failed(
            f"in {_word(dtype)} the next token diverges by {found.divergence:.3g} nats (at most {DIVERGENCE:g}) and "
            f"the likeliest one is the same at {found.same:.0%} of positions (at least {AGREEMENT:.0%})"
        )


def _refuse_perplexity(ours: float, theirs: float, dtype: torch.dtype) -> None:
    if not abs(theirs / ours - 1) <= PERPLEXITY[dtype]:
        raise _failed(
            f"its perplexity on held-out text is {theirs:.4g}, that of the run's model {ours:.4g} (they may differ by "
            f"{PERPLEXITY[dtype]:.1%})"
        )


@torch.no_grad()
def log_probs(model: PreTrainedModel, texts: Sequence[Tokens]) -> Iterator[np.ndarray]:
    """Natural log-probabilities (n,) of each text's trained tokens, by plain forward passes, one text at a time."""
    for text in texts:
        ids = torch.from_numpy(text.ids.astype(np.int64))
        logits = _read(model, [ids])
        at = torch.from_numpy(np.flatnonzero(text.trained))
        yield logits[at - 1].log_softmax(1).gather(1, ids[at][:, None])[:, 0].numpy()


def _perplexity(logp: Sequence[np.ndarray]) -> float:
    return exp(-float(np.concatenate(logp).mean(dtype=np.float64)))


@torch.no_grad()
def _read(model: nn.Module, ids: Sequence[torch.Tensor], *, packed: bool = False) -> torch.Tensor:
    """Logits (positions, vocabulary), float32 on the CPU; ``packed``: the model was prepared for rows of records."""
    device = next(model.parameters()).device
    found = []
    for row in ids:
        inputs = {"input_ids": row[None].to(device), "use_cache": False}
        if packed:
            with segments(causal([len(row)])):
                logits = model(**inputs, position_ids=torch.arange(len(row), device=device)[None]).logits
        else:
            logits = model(**inputs).logits
        found.append(logits[0].float().cpu())
    return torch.cat(found)


def _failed(why: str) -> ModelError:
    return ModelError(
        f"the exported model is not the run's: {why}. Nothing was kept. Export it again; if that fails too, the model "
        "or the disk is damaged."
    )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
