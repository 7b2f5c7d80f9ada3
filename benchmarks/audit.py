"""What an audit's scores cost: all that two models say about records, beside the two models' bare forward passes.

    python benchmarks/audit.py [--quick] [--model MODEL] [--json FILE]

Ours: both caches written to disk (log-probability, hit, mean and deviation over the vocabulary of every token), opened,
and every score that needs two models. Beside it: the same records in the same packed rows through both models, logits
of all tokens included and nothing done with them. They take turns on the same part of the records; ratios are taken
within a turn, and shown are their median and quartiles. Memory is read in a new process (Linux: the high-water mark of
resident memory).
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from reticent.attacks import scores
from reticent.attacks.cache import Cache
from reticent.errors import ReticentError
from reticent.gradients.attention import causal, segments, use_segments
from reticent.models.language_model import CausalModel
from reticent.models.load import best_device, load
from reticent.tokens import Tokens

TOKENS = 200
RECORDS, TURNS = 10_000, 10
RECORDS_QUICK, TURNS_QUICK = 30, 3
FEW = 1_000  # and ten times as many, for memory
ROW = 2048
MIB = 2**20


class Claim(NamedTuple):
    """One row. ``ratio``: a median, with its quartiles as ``spread``; no ``bound``: a number that nothing asks for."""

    metric: str
    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]
    bound: float | None
    holds: bool | None


def claim(metric: str, ours: Sequence[float], other: Sequence[float], bound: float | None = None) -> Claim:
    """The median of ours / other against the most it may be."""
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    low, ratio, high = (float(value) for value in np.percentile(ratios, [25, 50, 75]))
    holds = None if bound is None else ratio <= bound
    return Claim(metric, statistics.median(ours), statistics.median(other), ratio, (low, high), bound, holds)


class Random(Sequence[Tokens]):
    """Records of random tokens, made when asked for."""

    def __init__(self, first: int, count: int, size: int) -> None:
        self._first, self._count, self._size = first, count, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if index >= self._count:
            raise IndexError(index)
        rng = np.random.default_rng(self._first + index)
        return Tokens(rng.integers(0, self._size, TOKENS), np.arange(TOKENS) > 0)


# --- time ---


def open_models(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The base model, and a target that is as large and has other weights."""
    found = []
    for seed in range(2):
        model = of_its_size() if name == "random" else load(name).model
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 1e-3 * seed)
        found.append(model.to(best_device()).eval())  # type: ignore[arg-type]  # transformers hides torch's signature
    return found[0], found[1]


def of_its_size() -> PreTrainedModel:
    """Random weights in the sizes of the bundled model."""
    return random_model(576, 1536, 30, 9, 3, 49152)


def random_model(hidden: int, inner: int, layers: int, heads: int, pairs: int, vocabulary: int) -> PreTrainedModel:
    """A Llama with tied weights."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=pairs,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    use_segments(model)
    return model.requires_grad_(False)


@torch.no_grad()
def bare(model: PreTrainedModel, records: Sequence[Tokens]) -> None:
    """Forward passes of the rows that ours reads (a record's last token predicts nothing), with all logits."""
    each = ROW // (TOKENS - 1)
    ids = [torch.from_numpy(record.ids[:-1]) for record in records]
    for start in range(0, len(ids), each):
        row = ids[start : start + each]
        ends = np.cumsum([len(one) for one in row]).tolist()
        with segments(causal(ends)):
            model(
                input_ids=torch.cat(row)[None].to(model.device),
                position_ids=torch.cat([torch.arange(len(one)) for one in row])[None].to(model.device),
                use_cache=False,
            )
    finish(model)


def finish(model: PreTrainedModel) -> None:
    """Waits for an accelerator."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def ours(models: tuple[PreTrainedModel, PreTrainedModel], records: Sequence[Tokens], folder: Path) -> list[float]:
    """Seconds of both caches, and of all scores from them."""
    began = time.perf_counter()
    base, target = (
        Cache.write(folder / name, CausalModel(model, max_tokens=ROW), records)
        for name, model in zip(("base", "target"), models, strict=True)
    )
    cached = time.perf_counter()
    scores.from_two_models(target, base)
    return [cached - began, time.perf_counter() - cached]


def timed(name: str, records: int, turns: int) -> tuple[list[Claim], dict[str, list[float]]]:
    """Ours and bare passes in turns, each turn on its part of the records; the first, of one record, does not count."""
    models, rng = open_models(name), random.Random(0)
    size = models[0].config.vocab_size
    seconds: dict[str, list[float]] = {"caches": [], "scores": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns + 1):
            part = [*Random(turn * records, records // turns if turn else 1, size)]
            found: dict[str, list[float]] = {}

            def mine(part: list[Tokens] = part, found: dict[str, list[float]] = found) -> None:
                found["caches"], found["scores"] = ([one] for one in ours(models, part, Path(folder)))

            def other(part: list[Tokens] = part, found: dict[str, list[float]] = found) -> None:
                began = time.perf_counter()
                for model in models:
                    bare(model, part)
                found["bare"] = [time.perf_counter() - began]

            for task in rng.sample([mine, other], 2):
                task()
            if turn:
                seconds = {key: [*seconds[key], *found[key]] for key in seconds}
    both = [a + b for a, b in zip(seconds["caches"], seconds["scores"], strict=True)]
    what = f"{records // turns * turns:,} records of {TOKENS} tokens, two models"
    return [
        claim(f"{what}: caches and all scores / bare forward passes, s", both, seconds["bare"], 1.3),
        claim(f"{what}: caches / bare forward passes, s", seconds["caches"], seconds["bare"]),
        claim(f"{what}: all scores from the caches / bare forward passes, s", seconds["scores"], seconds["bare"]),
    ], seconds


# --- memory ---


def memory(few: int) -> list[Claim]:
    """Peaks of few records and of ten times as many."""
    found = [alone(peaks, count) for count in (few, 10 * few)]
    written, scored = zip(*found, strict=True)
    what = f"{10 * few:,} records / {few:,}: MiB"
    return [
        claim(f"peak memory of writing a cache, {what}", [written[1] / MIB], [written[0] / MIB], 1.1),
        claim(f"peak memory with all scores, the mapped files counted, {what}", [scored[1] / MIB], [scored[0] / MIB]),
    ]


def peaks(count: int) -> tuple[int, int]:
    """Bytes above a loaded small model while a cache is written, and while all scores come from two of them."""
    torch.set_num_threads(1)
    model = CausalModel(random_model(64, 128, 1, 2, 1, 1024))
    with tempfile.TemporaryDirectory() as folder:
        model.log_probs([*Random(0, 200, 1024)], vocabulary=True)  # what is allocated once
        start = settled()
        cache = Cache.write(Path(folder) / "scores", model, Random(0, count, 1024))
        written = resident("VmHWM") - start
        scores.from_two_models(cache, cache)
        return written, resident("VmHWM") - start


def alone(function: Callable[..., Any], *values: Any) -> Any:
    """The function's result from a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def resident(what: str) -> int:
    """Bytes of resident memory of this process: VmRSS is now, VmHWM the most since `settled`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def settled() -> int:
    """Bytes in use once what was freed is given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


# --- all ---


def table(claims: Sequence[Claim]) -> str:
    """The rows in Markdown."""
    lines = ["| metric | ours | other | ratio | at most | holds |", "|---|---|---|---|---|---|"]
    for row in claims:
        bound = "" if row.bound is None else f"{row.bound:g}"
        holds = "" if row.holds is None else "yes" if row.holds else "no"
        spread = f"{row.ratio:.3g} ({row.spread[0]:.3g} to {row.spread[1]:.3g})"
        lines.append(f"| {row.metric} | {row.ours:.4g} | {row.other:.4g} | {spread} | {bound} | {holds} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where it ran."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "accelerator": device,
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Of what was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    names = ("reticent", "torch", "numpy", "transformers")
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "commit": commit.stdout.strip()}


def main(line: Sequence[str] | None = None) -> list[Claim]:
    """Runs what the command line asks for; prints the table, and writes it."""
    parser = argparse.ArgumentParser(description="What an audit's scores cost.")
    parser.add_argument("--quick", action="store_true", help="fewer records: some minutes on a processor")
    parser.add_argument("--model", default="bundled/smollm2-135m", help="as model.base, or random: of the same size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    asked = parser.parse_args(line)
    torch.set_num_threads(1)
    where = machine()
    claims, seconds = timed(asked.model, *((RECORDS_QUICK, TURNS_QUICK) if asked.quick else (RECORDS, TURNS)))
    claims += memory(FEW)
    if asked.json:
        found = {
            "rows": [row._asdict() for row in claims],
            "seconds": seconds,
            "quick": asked.quick,
            "model": asked.model,
            "machine": where,
            "versions": versions(),
            "table": table(claims),
        }
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(claims))
    return claims


if __name__ == "__main__":
    try:
        main()
    except ReticentError as error:
        sys.exit(str(error))
