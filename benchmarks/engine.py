"""The gradient engine beside its peers, in one run: how fast, in how much memory, and whether the sum is right.

Every contender gets the same records and computes the same thing, the sum over records of the clipped gradient of the
record's mean loss; the non-private ones leave out the clipping. They take turns on the same batches, in a new order
each round, so that a busy machine slows all of them; ratios are taken within a round. Peak memory is measured in a new
process for each contender and batch. The error of a sum is relative to the naive loop in float64: one record at a time,
the definition. What is not measured: quality of the trained models, and more than one device.
"""

import argparse
import copy
import ctypes
import gc
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from reticent.data.clinic import clinic
from reticent.data.encode import Encoder
from reticent.data.record import Record
from reticent.data.sources import Fields, read_file
from reticent.errors import DataError, ReticentError
from reticent.gradients.attention import causal, segments, use_segments
from reticent.gradients.engines import engine_for, trained
from reticent.gradients.rows import Unit, pack
from reticent.models.adapter import add_lora, train_everything
from reticent.models.load import load, load_tokenizer
from reticent.privacy.clipping import Clipping
from reticent.privacy.ledger import Ledger
from reticent.privacy.noise import mechanism_for
from reticent.privacy.plan import dpsgd_plan
from reticent.privacy.sampling import PoissonSampler, Sampler, SeededPoissonSampler
from reticent.tokens import Tokens

Sums = dict[str, torch.Tensor]
Step = Callable[[Sequence[Unit]], Any]

RANK = 16
PHYSICAL = 8  # records that a padded contender computes at once; larger batches accumulate
SECTIONS = ("lora", "bf16", "full", "steps", "growth")
PEERS = ("opacus", "dp-lora")
MIB = 2**20

# Llama-shaped, of random weights: layers, hidden size, size of the MLP, heads, heads of keys, vocabulary.
RANDOM = {
    "random-tiny": (2, 64, 96, 4, 2, 512),
    "random-0.5b": (28, 1024, 4096, 16, 8, 49152),
    "random-1b": (32, 1536, 6144, 24, 8, 49152),
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What holds for the whole run. ``tokens``: of a packed row; ``max_tokens``: of a record."""

    model: str
    device: str
    threads: int
    tokens: int
    max_tokens: int
    file: str | None


@dataclass(frozen=True)
class Case:
    """One race: what is trained ("LoRA" or "full"), in which precision, on batches of which records."""

    mode: str
    dtype: str
    source: str
    batch: int

    def __str__(self) -> str:
        return f"{self.mode}, {self.dtype}, {self.source}, batch {self.batch}"


class Contender(NamedTuple):
    """A way to a sum of gradients. ``make``: (model of its own, clip norm, tokens of a row) -> step."""

    name: str
    make: Callable[[Any, float, int], Step]
    private: bool
    modes: tuple[str, ...] = ("LoRA", "full")
    peer: str | None = None


@dataclass
class Outcome:
    """What a race found, by contender: seconds of each round, peak MiB of each batch, error of the sum.

    ``starts``: peak MiB while the contender is made. ``faults``: why a peer has no figures.
    """

    case: Case
    about: str
    clip: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, list[float]] = field(default_factory=dict)
    starts: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


# --- Models and records ---


def build(setup: Setup, mode: str, dtype: str) -> Any:
    """The model, ready to train: all weights, or LoRA on all linear layers, B not zero so that A has gradients."""
    torch.set_num_threads(setup.threads)
    if setup.model in RANDOM:
        layers, hidden, mlp, heads, key_heads, vocabulary = RANDOM[setup.model]
        config = LlamaConfig(
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            vocab_size=vocabulary,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        use_segments(model)
        model.requires_grad_(False)
    else:
        model = load(setup.model, dtype=dtype).model
    model.to(setup.device)
    if mode == "full":
        return train_everything(model).train()
    wrapped = add_lora(model, rank=RANK, alpha=2 * RANK, dropout=0.0, targets="all-linear", seed=0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return wrapped.train()


def twin(model: Any, attention: str | None = None) -> Any:
    """The same model again for another contender: the weights are shared, what is hung on parameters is not."""
    shared = {id(p): torch.nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    other = copy.deepcopy(model, shared)
    if attention is not None:
        (other.get_base_model() if hasattr(other, "peft_config") else other).set_attn_implementation(attention)
    return other


@cache
def records(setup: Setup, source: str) -> list[Tokens]:
    """Encoded records of ``clinic`` (the recipe's usual mixture), of random tokens, or else of the file.

    Raises:
        DataError: the file cannot be read, or has none of the known fields.
    """
    if source == "random":
        rng = np.random.default_rng(0)
        vocabulary = RANDOM[setup.model][-1] if setup.model in RANDOM else 49152
        lengths = np.clip(rng.lognormal(math.log(setup.max_tokens / 5), 0.9, 1000), 4, setup.max_tokens).astype(int)
        return [Tokens(rng.integers(0, vocabulary, n), np.arange(n) > n // 4) for n in lengths]
    if source == "clinic":
        found = clinic(patients=150, questions=600, seed=0)
    else:
        assert setup.file is not None
        found = read(Path(setup.file))
    tokenizer = load_tokenizer("bundled/smollm2-135m" if setup.model in RANDOM else setup.model)
    encode = Encoder(
        tokenizer, template="plain", train_on_prompt=False, max_tokens=setup.max_tokens, long_records="cut"
    )
    return encode([(record.prompt, record.completion) for record in found]).tokens


def read(path: Path) -> list[Record]:
    """Records of a file with ``text``, ``prompt`` and ``completion``, or ``input`` and ``output``."""
    for fields in (
        Fields(text="text"),
        Fields(prompt="prompt", completion="completion"),
        Fields(prompt="input", completion="output"),
    ):
        try:
            return list(read_file(path, fields))
        except DataError as error:
            reason = error
    raise reason


def batches(found: Sequence[Tokens], size: int, count: int) -> list[list[Unit]]:
    """``count`` batches of ``size`` records, each record a unit."""
    rng = np.random.default_rng(size)
    return [
        [Unit(str(i), (found[i],)) for i in rng.choice(len(found), size, replace=len(found) < size)]
        for _ in range(count)
    ]


# --- Contenders ---


class Padded(NamedTuple):
    """Records padded to the longest, (records, longest). ``labels``: the next token, -100 where it is not trained."""

    ids: torch.Tensor
    seen: torch.Tensor
    labels: torch.Tensor


def padded(units: Sequence[Unit], device: torch.device) -> Padded:
    """Right-padded, as every fine-tuner does it."""
    longest = max(len(unit.records[0]) for unit in units)
    ids, seen = (torch.zeros(len(units), longest, dtype=torch.long) for _ in range(2))
    labels = torch.full((len(units), longest), -100)
    for i, (record,) in enumerate(unit.records for unit in units):
        n = len(record)
        ids[i, :n], seen[i, :n] = torch.from_numpy(record.ids), 1
        at = np.flatnonzero(record.trained)
        labels[i, at - 1] = torch.from_numpy(record.ids[at])
    return Padded(ids.to(device), seen.to(device), labels.to(device))


def record_losses(model: Any, units: Sequence[Unit]) -> torch.Tensor:
    """(records,) the mean loss over each record's own trained tokens, nats, through an ordinary padded forward pass."""
    part = padded(units, next(model.parameters()).device)
    logits = model(input_ids=part.ids, attention_mask=part.seen, use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = cross_entropy(logits.flatten(0, 1), part.labels.flatten(), reduction="none", ignore_index=-100)
    return losses.view_as(part.labels).sum(1) / (part.labels != -100).sum(1)


def unit_gradients(model: Any, units: Sequence[Unit]) -> Iterator[tuple[list[torch.Tensor], float]]:
    """Each record's gradient by autograd, alone and without padding, and its norm."""
    for unit in units:
        parts = torch.autograd.grad(record_losses(model, [unit]).sum(), list(trained(model).values()))
        yield list(parts), float(torch.stack([part.float().square().sum() for part in parts]).sum().sqrt())


def naive(model: Any, clip: float, tokens: int) -> Step:
    """The definition: one record at a time, clipped, summed in float32."""
    return lambda units: clipped_sums(model, units, [clip])[0]


def clipped_sums(model: Any, units: Sequence[Unit], clips: Sequence[float]) -> list[Sums]:
    """The sum for each clip norm, by the definition."""
    totals = [{name: torch.zeros_like(p, dtype=torch.float32) for name, p in trained(model).items()} for _ in clips]
    for parts, norm in unit_gradients(model, units):
        for clip, total in zip(clips, totals, strict=True):
            for value, part in zip(total.values(), parts, strict=True):
                value.add_(part, alpha=min(1.0, clip / norm))
    return totals


def taken(model: Any) -> Sums:
    """The gradients that stand at the parameters, which lose them."""
    sums = {}
    for name, parameter in trained(model).items():
        assert parameter.grad is not None, name
        sums[name] = parameter.grad.float()
        parameter.grad = None
    return sums


def chunks(units: Sequence[Unit]) -> Iterator[Sequence[Unit]]:
    """The batches that a padded contender computes at once."""
    for start in range(0, len(units), PHYSICAL):
        yield units[start : start + PHYSICAL]


def nonprivate_padded(model: Any, clip: float, tokens: int) -> Step:
    """Ordinary fine-tuning: right padding, an attention mask, one backward pass."""

    def step(units: Sequence[Unit]) -> Sums:
        for part in chunks(units):
            record_losses(model, part).sum().backward()
        return taken(model)

    return step


def nonprivate_packed(model: Any, clip: float, tokens: int) -> Step:
    """Ordinary training on our rows: torch's backward pass, all logits of the trained tokens at once."""

    def step(units: Sequence[Unit]) -> Sums:
        device = next(model.parameters()).device
        for group in pack(units, max_tokens=tokens, loss="mean"):
            for row in group:
                with segments(causal(row.records)):
                    logits = model(
                        input_ids=row.ids.to(device),
                        position_ids=row.positions.to(device),
                        logits_to_keep=row.predict.to(device),
                        use_cache=False,
                    ).logits[0]
                losses = cross_entropy(logits.float(), row.labels.to(device), reduction="none")
                (losses * row.weights.to(device)).sum().backward()
        return taken(model)

    return step


def nonprivate_best(model: Any, clip: float, tokens: int) -> Step:
    """The loop's own engine without privacy."""
    engine = engine_for(model, clipping=None, loss="mean", micro_batch_tokens=tokens)
    return lambda units: engine.unit_sum(units).gradient


def ours(model: Any, clip: float, tokens: int) -> Step:
    """The loop's engine with privacy."""
    engine = engine_for(model, clipping=Clipping(clip), loss="mean", micro_batch_tokens=tokens)
    return lambda units: engine.unit_sum(units).gradient


def ours_padded(model: Any, clip: float, tokens: int) -> Step:
    """The same with every record as long as the longest: untrained tokens behind it, which it does not see."""
    packed = ours(model, clip, tokens)

    def longer(record: Tokens, length: int) -> Tokens:
        more = (0, length - len(record))
        return Tokens(np.pad(record.ids, more), np.pad(record.trained, more))

    def step(units: Sequence[Unit]) -> Any:
        longest = max(len(unit.records[0]) for unit in units)
        return packed([Unit(unit.id, (longer(unit.records[0], longest),)) for unit in units])

    return step


def opacus_hooks(model: Any, clip: float, tokens: int) -> Step:
    """Opacus: a gradient for every record, clipped and summed by its optimiser."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped, parameters = GradSampleModule(model, loss_reduction="sum"), trained(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters.values(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1,
        loss_reduction="sum",
    )

    def step(units: Sequence[Unit]) -> Sums:
        for part in chunks(units):
            record_losses(wrapped, part).sum().backward()
            optimizer.clip_and_accumulate()
            for parameter in parameters.values():
                parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus sets it
        sums = {name: parameter.summed_grad for name, parameter in parameters.items()}  # type: ignore[attr-defined]  # so here
        optimizer.zero_grad()
        return sums

    return step


def opacus_norms(model: Any, clip: float, tokens: int, *, ghost: bool) -> Step:
    """Opacus in two backward passes: norms of the records, then the gradient of the reweighted losses."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    wrapped, parameters = (
        GradSampleModuleFastGradientClipping(model, loss_reduction="sum", max_grad_norm=clip, use_ghost_clipping=ghost),
        trained(model),
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(parameters.values(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1,
        loss_reduction="sum",
    )

    def step(units: Sequence[Unit]) -> Sums:
        total: Sums = {}
        for part in chunks(units):
            DPTensorFastGradientClipping(wrapped, optimizer, record_losses(wrapped, part), "sum").backward()
            found = taken(model)
            total = {name: total[name] + value for name, value in found.items()} if total else found
        return total

    return step


def opacus_ghost(model: Any, clip: float, tokens: int) -> Step:
    """Ghost clipping: norms from activations and gradients of outputs."""
    return opacus_norms(model, clip, tokens, ghost=True)


def opacus_fast(model: Any, clip: float, tokens: int) -> Step:
    """Fast gradient clipping: norms from gradients of records, layer by layer."""
    return opacus_norms(model, clip, tokens, ghost=False)


def dp_lora_hooks(model: Any, clip: float, tokens: int) -> Step:
    """The package dp-lora: a gradient for every record, from hooks on the adapters."""
    from dp_lora.grad_sample import GradSampleModule
    from dp_lora.optimizers.dp_optimizer import DPOptimizer

    hooks, parameters = GradSampleModule(model, method="vanilla"), trained(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters.values(), lr=0.0), noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=1
    )

    def step(units: Sequence[Unit]) -> Sums:
        for part in chunks(units):
            record_losses(model, part).sum().backward()
            optimizer.clip_and_accumulate(hooks.get_per_sample_grads())
            hooks.clear_per_sample_grads()
            for parameter in parameters.values():
                parameter.grad = None
        sums = {name: optimizer._summed_grads[id(parameter)] for name, parameter in parameters.items()}
        optimizer.zero_grad()
        return sums

    return step


def dp_lora_ghost(model: Any, clip: float, tokens: int) -> Step:
    """The package dp-lora in two backward passes; its norms are upper bounds."""
    from dp_lora.grad_sample import GhostClippingModule

    hooks = GhostClippingModule(model, method="vanilla")

    def step(units: Sequence[Unit]) -> Sums:
        total: Sums = {}
        for part in chunks(units):
            losses = record_losses(model, part)
            losses.sum().backward(retain_graph=True)
            factors = hooks.compute_clip_factors(clip)
            taken(model)
            (factors * losses).sum().backward()
            hooks.clear_state()
            found = taken(model)
            total = {name: total[name] + value for name, value in found.items()} if total else found
        return total

    return step


OURS, PACKED, BEST, PADDED = "ours, packed", "non-private, packed", "non-private, packed, best", "non-private, padded"
HOOKS, GHOST = "Opacus hooks", "Opacus ghost clipping"
CONTENDERS = (
    Contender(OURS, ours, True),
    Contender("ours, padded", ours_padded, True),
    Contender(PACKED, nonprivate_packed, False),
    Contender(BEST, nonprivate_best, False),
    Contender(PADDED, nonprivate_padded, False),
    Contender("naive loop", naive, True),
    Contender(HOOKS, opacus_hooks, True, peer="opacus"),
    Contender(GHOST, opacus_ghost, True, peer="opacus"),
    Contender("Opacus fast clipping", opacus_fast, True, peer="opacus"),
    Contender("dp-lora hooks", dp_lora_hooks, True, modes=("LoRA",), peer="dp-lora"),
    Contender("dp-lora ghost clipping", dp_lora_ghost, True, modes=("LoRA",), peer="dp-lora"),
)
CLAIMED = (OURS, PACKED, BEST, PADDED, HOOKS, GHOST)
CLOSE = (OURS, PACKED, BEST)


def enter(contender: Contender, model: Any, clip: float, tokens: int) -> Step:
    """The contender's step, on a model of its own."""
    own = twin(model, None if contender.make in (ours, ours_padded, nonprivate_packed, nonprivate_best) else "sdpa")
    step = contender.make(own, clip, tokens)
    return quiet(step) if contender.peer else step


def quiet(step: Step) -> Step:
    """Without the warnings that a peer causes in torch."""

    def silent(units: Sequence[Unit]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step(units)

    return silent


def version(package: str) -> str | None:
    """The installed version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# --- Measuring ---


def race(tasks: Mapping[str, Callable[[int], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Wall seconds of each task in each round; the order changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    order, rng = list(tasks), random.Random(0)
    gc.freeze()  # what was imported and built is no garbage, and looking through it takes half a second
    for number in range(rounds):
        rng.shuffle(order)
        for name in order:
            gc.collect()
            wait(device)
            started = time.perf_counter()
            tasks[name](number)
            wait(device)
            seconds[name].append(time.perf_counter() - started)
    gc.unfreeze()
    return seconds


def wait(device: str) -> None:
    """Until the accelerator is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def difference(found: Sums, reference: Sums) -> float:
    """|found - reference| / |reference|, in float64."""
    assert found.keys() == reference.keys()
    gap = sum(float((found[n] - reference[n]).double().square().sum()) for n in found)
    return math.sqrt(gap / sum(float(value.double().square().sum()) for value in reference.values()))


def median_norm(model: Any, units: Sequence[Unit]) -> float:
    """Near the norm that half of the units exceed."""
    return float(np.median([norm for _, norm in unit_gradients(twin(model, "sdpa"), units)]))


def alone(function: Callable[..., Any], *values: Any) -> Any:
    """The function's result from a new process, which takes nothing along and leaves nothing behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def compare(setup: Setup, case: Case, names: Collection[str], rounds: int) -> Outcome:
    """One case: errors in a warm-up, then the race.

    The contenders that claims put within a few per cent of each other run on for twice as many rounds.
    """
    say(f"{case}: warm-up")
    model = build(setup, case.mode, case.dtype)
    found = batches(records(setup, case.source), case.batch, 3 * rounds)
    clip = median_norm(model, found[0][:PHYSICAL])
    outcome = Outcome(case, about(setup, found, clip, rounds), clip)
    entered: dict[str, Step] = {}
    # In float64, loss included: torch's float32 cross-entropy on a CPU alone moves the gradient by up to 1e-4.
    clipped, plain = clipped_sums(twin(model, "sdpa").double(), found[0], [clip, math.inf])
    for contender in CONTENDERS:
        name = contender.name
        if name not in names or case.mode not in contender.modes:
            continue
        if contender.peer and version(contender.peer) is None:
            outcome.faults[name] = "not installed: pip install 'reticent[bench]'"
            continue
        try:
            step = enter(contender, model, clip, setup.tokens)
            outcome.errors[name] = difference(step(found[0]), clipped if contender.private else plain)
            entered[name] = step
        except Exception as error:  # a peer fails in its own way; the table shows it
            if not contender.peer:
                raise
            outcome.faults[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    del clipped, plain
    say(f"{case}: {rounds} rounds")
    outcome.seconds = race({name: partial(on, step, found) for name, step in entered.items()}, rounds, setup.device)
    close = {name: partial(on, step, found[rounds:]) for name, step in entered.items() if name in CLOSE}
    for name, seconds in race(close, 2 * rounds, setup.device).items():
        outcome.seconds[name] += seconds
    return outcome


def on(step: Step, found: Sequence[Sequence[Unit]], number: int) -> None:
    """A step on the round's batch."""
    step(found[number])


def about(setup: Setup, found: Sequence[Sequence[Unit]], clip: float, rounds: int) -> str:
    """The lengths that were met, in one line."""
    lengths = [len(unit.records[0]) for units in found for unit in units]
    places = sum(len(part) * max(len(u.records[0]) for u in part) for units in found for part in chunks(units))
    return (
        f"{np.mean(lengths):.0f} tokens a record ({min(lengths)} to {max(lengths)}), padding makes them "
        f"{places / sum(lengths):.2f} times as many; rows of {setup.tokens}; clip norm {clip:.3g}; {rounds} rounds"
    )


def keep(outcome: Outcome, name: str, found: Sequence["Peak"]) -> None:
    """Adds the memory of a contender."""
    outcome.peaks[name] = [peak.step for peak in found]
    outcome.starts[name] = max(peak.start for peak in found)


class Peak(NamedTuple):
    """MiB above the loaded model: most while the contender is made, and most during one step."""

    start: float
    step: float


def peaks(setup: Setup, case: Case, name: str, clip: float, count: int) -> list[Peak]:
    """Of a contender in each of ``count`` batches; not a number where there is too little memory."""
    say(f"{case}: memory of {name}")
    found = []
    for index in range(count):
        try:
            found.append(alone(peak, setup, case, name, clip, index))
        except BrokenProcessPool:  # ended by the system
            found.append(Peak(math.nan, math.nan))
    return found


def peak(setup: Setup, case: Case, name: str, clip: float, index: int) -> Peak:
    """Of one contender and batch, to be called in a new process.

    On Linux: resident memory, whose high-water mark can be reset. On a GPU: what torch allocated there. The loaded
    model is read before the contender is made: what that frees may stay with the process, and would hide the step.
    """
    units = batches(records(setup, case.source), case.batch, 2)[index]
    model = build(setup, case.mode, case.dtype)
    (contender,) = (c for c in CONTENDERS if c.name == name)
    if contender.peer:
        contender.make(build(replace(setup, model="random-tiny"), case.mode, case.dtype), clip, setup.tokens)  # imports
    if setup.device == "cpu":
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # weights in a mapped file are not in memory before their first use
    loaded = settled(setup.device)
    step = enter(contender, model, clip, setup.tokens)
    start = most(setup.device) - loaded
    settled(setup.device)
    sums = step(units)
    found = Peak(start / MIB, (most(setup.device) - loaded) / MIB)
    least = sum(value.nbytes for value in sums.values()) / MIB
    assert found.step > least - 16, f"{name}: {found.step:.0f} MiB cannot hold a sum of {least:.0f} MiB"
    return found


def settled(device: str) -> int:
    """Bytes in use once what was freed is given back; `most` begins anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def most(device: str) -> int:
    """The most bytes in use since `settled`."""
    return int(torch.cuda.max_memory_allocated()) if device == "cuda" else memory("VmHWM")


def memory(what: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of resident memory of this process: now, or at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


PRIVATE, ORDINARY = "private step", "non-private step"


def steps(setup: Setup, case: Case, rounds: int) -> Outcome:
    """Whole steps as the loop makes them: draw, sum, noise and ledger if private, optimiser.

    Both sample for themselves, then compute the same batch, so that the sizes of their draws are no difference. The
    running epsilon, which the loop computes twenty times a run, is left out.
    """
    say(f"{case}: whole steps")
    model = build(setup, case.mode, case.dtype)
    known = records(setup, case.source)
    found = batches(known, case.batch, rounds + 1)
    clip = median_norm(model, found[0][:PHYSICAL])
    plan = dpsgd_plan(
        unit="record",
        units=len(known),
        batch_size=case.batch,
        steps=rounds + 1,
        delta=0.1 / len(known),
        clip_norm=clip,
        noise_multiplier=1.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        ledger, mechanism = Ledger.create(Path(folder) / "ledger.jsonl", plan), mechanism_for(plan)

        def whole(private: bool) -> Callable[[int], None]:
            own = copy.deepcopy(model)  # its weights move
            clipping = mechanism.clipping if private else None
            engine = engine_for(own, clipping=clipping, loss="mean", micro_batch_tokens=setup.tokens)
            optimizer = torch.optim.AdamW(trained(own).values(), lr=1e-6)
            draws = plan.units, plan.sampling_prob
            sampler: Sampler = PoissonSampler(*draws) if private else SeededPoissonSampler(*draws, 0)

            def step(number: int) -> None:
                sampler.draw(number + 1)
                sums = engine.unit_sum(found[number]).gradient
                if private:
                    mechanism.add_noise(sums)
                    ledger.record(mechanism.entry)
                for name, parameter in trained(own).items():
                    parameter.grad = (sums[name] / plan.batch_size).to(parameter.dtype)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            step(rounds)  # warm-up, on the last batch
            return step

        tasks = {PRIVATE: whole(True), ORDINARY: whole(False)}
        return Outcome(case, about(setup, found, clip, rounds), clip, race(tasks, rounds, setup.device))


def row_for(setup: Setup, source: str, size: int) -> int:
    """Tokens of a row into which each batch of ``size`` records just fits."""
    found = batches(records(setup, source), size, 8)
    longest = max(len(record) for record in records(setup, source))
    return max(longest, *(sum(len(unit.records[0]) for unit in units) for units in found))


def growth(setup: Setup, case: Case, sizes: Sequence[int], rounds: int) -> Outcome:
    """Ours with batches of several sizes and the same rows. ``seconds`` is per token; contenders are the sizes."""
    say(f"{case}: growth")
    found = {size: batches(records(setup, case.source), size, rounds) for size in sizes}
    model = build(setup, case.mode, case.dtype)
    clip = median_norm(model, found[sizes[0]][0])
    step = ours(model, clip, setup.tokens)
    step(found[sizes[0]][0])
    seconds = race({grown(size): partial(on, step, found[size]) for size in sizes}, rounds, setup.device)
    for size in sizes:
        tokens = [sum(len(unit.records[0]) for unit in units) for units in found[size]]
        seconds[grown(size)] = [took / count for took, count in zip(seconds[grown(size)], tokens, strict=True)]
    return Outcome(case, about(setup, found[sizes[-1]], clip, rounds), clip, seconds)


def grown(size: int) -> str:
    """A contender of `growth`."""
    return f"batch {size}"


# --- Claims ---


class Claim(NamedTuple):
    """A line of the issue: ``ratio`` is a median of ratios within rounds, or for memory the worst of the batches."""

    metric: str
    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]
    sense: Literal["at most", "at least"]
    bound: float
    holds: bool


def claim(
    metric: str,
    ours: Sequence[float],
    other: Sequence[float],
    bound: float,
    *,
    least: bool = False,
    worst: bool = False,
) -> Claim:
    """Holds ours / other to at most ``bound``, or other / ours to at least, in the rounds that both ran."""
    above, below = (other, ours) if least else (ours, other)
    ratios = [a / b for a, b in zip(above, below, strict=False)]
    ratio = float((min if least else max)(ratios) if worst else np.median(ratios))
    low, high = np.percentile(ratios, [25, 75])
    return Claim(
        metric,
        float(np.median(ours)),
        float(np.median(other)),
        ratio,
        (float(low), float(high)),
        "at least" if least else "at most",
        bound,
        ratio >= bound if least else ratio <= bound,
    )


def claims_of(outcome: Outcome) -> list[Claim]:
    """What the issue asks of a race between contenders."""
    case, seconds, peaks = outcome.case, outcome.seconds, outcome.peaks
    lora = case.mode == "LoRA"
    asked: list[tuple[str, str, float, bool]] = [("time", PACKED, 1.05 if lora else 1.15, False)]
    if lora:
        asked += [
            ("time", BEST, 1.10, False),
            ("time", PADDED, 1.9, True),
            ("time", HOOKS, 2.0, True),
            ("time", GHOST, 3.5, True),
        ]
    asked += [("peak memory", PACKED, 1.10 if lora else 1.25, False)]
    if lora:
        asked += [("peak memory", other, 0.5, False) for other in (PADDED, HOOKS, GHOST)]
    claims = []
    for what, other, bound, least in asked:
        values = seconds if what == "time" else peaks
        if OURS in values and other in values:
            names = (other, OURS) if least else (OURS, other)
            claims.append(
                claim(
                    f"{case}: {what}, {names[0]} / {names[1]}",
                    values[OURS],
                    values[other],
                    bound,
                    least=least,
                    worst=what != "time",
                )
            )
    if OURS in outcome.errors and case.dtype == "float32":
        claims.append(claim(f"{case}: error of the sum, ours / allowed", [outcome.errors[OURS]], [1e-5], 1.0))
    return claims


def claims_of_steps(outcome: Outcome) -> list[Claim]:
    """What the issue asks of whole steps."""
    both = outcome.seconds[PRIVATE], outcome.seconds[ORDINARY]
    return [claim(f"{outcome.case}: time of a whole step, private / non-private", *both, 1.10)]


def claims_of_growth(outcome: Outcome) -> list[Claim]:
    """Largest to smallest batch: neither the time of a token nor the memory may grow by more than a tenth."""
    first, *_, last = outcome.seconds
    name = f"{outcome.case.mode}, {outcome.case.dtype}, {outcome.case.source}"
    claims = []
    for what, values in (("time of a token", outcome.seconds), ("peak memory", outcome.peaks)):
        pair = values[last], values[first]
        claims.append(claim(f"{name}: {what}, {last} / {first}", *pair, 1.10, worst=what == "peak memory"))
    return claims


# --- Words ---


def say(line: str) -> None:
    """Progress, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def quartiles(values: Sequence[float], form: str) -> str:
    """The median and the quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def table(outcome: Outcome) -> str:
    """One case as a Markdown table."""
    base = OURS if OURS in outcome.seconds else next(iter(outcome.seconds))
    lines = [
        f"**{outcome.case}**: {outcome.about}.",
        "",
        f"| contender | seconds | time / {base} | MiB to start | peak MiB | error of the sum |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in outcome.seconds.items():
        ratios = [a / b for a, b in zip(seconds, outcome.seconds[base], strict=False)]
        peaks = " / ".join(f"{value:,.0f}" for value in outcome.peaks.get(name, []))
        start = f"{outcome.starts[name]:,.0f}" if name in outcome.starts else ""
        error = f"{outcome.errors[name]:.0e}" if name in outcome.errors else ""
        lines.append(
            f"| {name} | {quartiles(seconds, '.3g')} | {quartiles(ratios, '.2f')} | {start} | {peaks} | {error} |"
        )
    lines += [f"| {name} | {fault} | | | | |" for name, fault in outcome.faults.items()]
    return "\n".join(lines)


def claims_table(claims: Sequence[Claim]) -> str:
    """The claims and whether they hold."""
    lines = ["| claim | ratio [quartiles] | bound | holds |", "|---|---|---|---|"]
    for c in claims:
        spread = f"{c.ratio:.2f} [{c.spread[0]:.2f}, {c.spread[1]:.2f}]"
        lines.append(f"| {c.metric} | {spread} | {c.sense} {c.bound:g} | {'yes' if c.holds else '**no**'} |")
    return "\n".join(lines)


def machine(setup: Setup) -> dict[str, Any]:
    """Where it ran."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": setup.threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if setup.device == "cuda" else None,
    }


def versions() -> dict[str, str | None]:
    """Of what was compared."""
    names = ("reticent", "torch", "transformers", "peft", *PEERS)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "commit": commit.stdout.strip(),
    }


# --- The run ---


def arguments(line: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Our gradient engine beside its peers.")
    parser.add_argument(
        "--quick", action="store_true", help="batches of 8, few rounds, of the file if one is given; no growth"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    parser.add_argument("--file", metavar="FILE", help="records with text, prompt and completion, or input and output")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, help="default: 5 of LoRA with the first batch size, else 3; quick 1 or 2")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], metavar="RECORDS")
    parser.add_argument(
        "--model", default="bundled/smollm2-135m", help=f"a name, a folder or one of {', '.join(RANDOM)}"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tokens", type=int, default=2048, help="of a packed row")
    parser.add_argument("--max-tokens", type=int, default=512, help="of a record")
    parser.add_argument(
        "--source", choices=["clinic", "random"], default="clinic", help="records beside those of a file"
    )
    return parser.parse_args(line)


def main(line: Sequence[str] | None = None) -> list[Claim]:
    """Runs what the command line asks for; prints the tables, and writes them."""
    asked = arguments(line)
    setup = Setup(
        model=asked.model,
        device=asked.device,
        threads=asked.threads,
        tokens=asked.tokens,
        max_tokens=asked.max_tokens,
        file=asked.file,
    )
    where = machine(setup)
    claims: list[Claim] = []
    tables: list[str] = []
    outcomes: list[Outcome] = []
    for outcome, found in run(setup, asked):
        claims += found
        outcomes.append(outcome)
        tables.append(table(outcome))
        if asked.json:  # after every case: a run that is cut off keeps what it has
            asked.json.parent.mkdir(parents=True, exist_ok=True)
            asked.json.write_text(json.dumps(document(where, claims, outcomes, tables), indent=1) + "\n")
    print(page(where, claims, tables))
    return claims


def page(where: Mapping[str, Any], claims: Sequence[Claim], tables: Sequence[str]) -> str:
    """Everything as Markdown."""
    place = where["gpu"] or f"{where['cpu']}, {where['cores']} cores, {where['threads']} in use"
    names = ", ".join(f"{name} {number}" for name, number in versions().items() if number)
    return "\n\n".join([f"{place}; {names}.", *tables, claims_table(claims)])


def document(
    where: Mapping[str, Any], claims: Sequence[Claim], outcomes: Sequence[Outcome], tables: Sequence[str]
) -> dict[str, Any]:
    """What is saved."""
    return {
        "machine": {**where, "load_after": [round(value, 2) for value in os.getloadavg()]},
        "versions": versions(),
        "rows": [claim._asdict() for claim in claims],
        "cases": [asdict(outcome) for outcome in outcomes],
        "table": page(where, claims, tables),
    }


def run(setup: Setup, asked: argparse.Namespace) -> Iterator[tuple[Outcome, list[Claim]]]:
    """The cases, in order."""
    quick, only = asked.quick, asked.only or (SECTIONS[:-1] if asked.quick else SECTIONS)
    sources = [asked.source, *([Path(setup.file).stem] if setup.file else [])][-1 if quick else 0 :]
    sizes = asked.batches[:1] if quick else asked.batches
    everyone = [contender.name for contender in CONTENDERS]
    low = "bfloat16" if setup.device == "cuda" else "float32"
    lora, full = ("LoRA", low), ("full", "float32")
    sections = {"lora": lora, "bf16": ("LoRA", "bfloat16"), "full": full}
    if quick or setup.device == "cuda" or not torch.cpu._is_avx512_bf16_supported():
        del sections["bf16"]
    few = 1 if quick else 3
    for section, (mode, dtype) in sections.items():
        for source in sources if section in only else []:
            for size in sizes[:1] if section == "bf16" else sizes:
                case, first = Case(mode, dtype, source, size), size == sizes[0]
                names = everyone if first and not quick else CLAIMED if mode == "LoRA" else CLOSE
                rounds = asked.rounds or (5 if first and mode == "LoRA" and not quick else few)
                outcome = alone(compare, setup, case, names, rounds)
                for name in outcome.errors if first else []:
                    if not quick or name in (OURS, PACKED, HOOKS):
                        keep(outcome, name, peaks(setup, case, name, outcome.clip, 1 if quick else 2))
                yield outcome, claims_of(outcome)
    rounds = asked.rounds or (2 if quick else 3)
    if "steps" in only:
        for mode, dtype in [lora] if quick else [lora, full]:
            outcome = alone(steps, setup, Case(mode, dtype, sources[-1], sizes[-1]), rounds)
            yield outcome, claims_of_steps(outcome)
    if "growth" in only:
        several = (8, 32) if quick else (8, 32, 128)
        case = Case(*lora, sources[-1], several[-1])
        within = replace(setup, tokens=row_for(setup, case.source, several[0]))
        outcome = alone(growth, within, case, several, rounds)
        for size in several:
            keep(outcome, grown(size), peaks(within, replace(case, batch=size), OURS, outcome.clip, 2))
        yield outcome, claims_of_growth(outcome)


if __name__ == "__main__":
    try:
        main()
    except ReticentError as error:
        sys.exit(str(error))
