"""Tokens per second of generation, ours against transformers' `generate`; and multiple-choice scoring against lm-eval.

    python benchmarks/generation.py [--quick] [--json FILE]

Both sides answer the same questions, asked through the model's chat template, with the same model in float32, threads,
16 texts at once and the same bound on their length; texts end where the model ends them. `generate` gets batches in the
order given, padded on the left, with its cache. Greedy texts of both must be the same: where two part, the two tokens
must be as likely as each other up to rounding. They take turns on the same questions, in random order; ratios are taken
within a turn, and shown are their median and quartiles. The rows of multiple-choice scoring are those of
`multiple_choice.py`, which needs lm-eval.
"""

import argparse
import json
import os
import platform
import random
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from reticent.data.clinic import clinic
from reticent.errors import ReticentError
from reticent.models.generation import greedy, sample
from reticent.models.language_model import CausalModel, Sampling
from reticent.models.load import load
from reticent.tokens import Tokens

BATCH = 16
QUESTIONS, TURNS, LENGTH = 64, 4, 256
QUESTIONS_QUICK, TURNS_QUICK, LENGTH_QUICK = 32, 2, 96
SAMPLING = Sampling(temperature=0.8, top_k=40, top_p=0.95)
BOUND = 1.5
ROUNDING = 1e-3  # nats between two tokens of which rounding may take either

OF_NOTES = (
    "Shorten this note to one line.\n\n{}",
    "Which treatment does this note plan? Answer with its name alone.\n\n{}",
    "Rewrite this visit note in plain words for the patient.\n\n{}",
)
OF_DISEASES = (
    "ICD-10 chapter of: {}",
    "What is {}? Answer in one sentence.",
    "Explain to a patient what {} is.",
    "Is {} contagious? Answer yes or no.",
    "List three signs of {}.",
    "Which specialist treats {}?",
    "Write a short letter that asks for an appointment because of {}.",
)


class Row(NamedTuple):
    """``ratio``: the median of ours / other, with its quartiles as ``spread``; no ``bound``: nothing asks for it.

    ``same``: whether the texts are, up to rounding; ``difference``: the largest of two log-likelihoods where texts
    part, nats; both None where texts are drawn.
    """

    metric: str
    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]
    sense: str
    bound: float | None
    holds: bool | None
    same: bool | None
    difference: float | None


def row(metric: str, ours: Sequence[float], other: Sequence[float], differences: Sequence[float] | None) -> Row:
    """From tokens per second of each turn, and the nats at each parting of two texts."""
    ratios = [mine / theirs for mine, theirs in zip(ours, other, strict=True)]
    low, ratio, high = (float(value) for value in np.percentile(ratios, [25, 50, 75]))
    medians = statistics.median(ours), statistics.median(other)
    if differences is None:
        return Row(metric, *medians, ratio, (low, high), "at least", None, None, None, None)
    difference = max(differences, default=0.0)
    same = difference <= ROUNDING
    return Row(metric, *medians, ratio, (low, high), "at least", BOUND, same and ratio >= BOUND, same, difference)


# --- questions ---


def questions(count: int) -> list[str]:
    """Different ones: on notes of bundled/clinic, and on its diseases; short and long in no order."""
    records = clinic(patients=count, questions=count, seed=1)
    notes = [record.completion for record in records if record.origin == "clinic/note"]
    diseases = [record.prompt.split(": ", 1)[1] for record in records if record.origin == "clinic/coding"]
    found = [OF_DISEASES[number % len(OF_DISEASES)].format(what) for number, what in enumerate(diseases)]
    found += [OF_NOTES[number % len(OF_NOTES)].format(note) for number, note in enumerate(notes[: count // 3])]
    return random.Random(0).sample(found, count)


def encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Tokens of each question as it is put to the model."""
    return [
        np.array(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            ),
            dtype=np.int64,
        )
        for text in texts
    ]


# --- both sides ---


class Side(NamedTuple):
    """Texts of prompts, and what they took."""

    texts: list[np.ndarray]
    seconds: float

    @property
    def speed(self) -> float:
        """Tokens per second, those that end a text not counted."""
        return sum(len(text) for text in self.texts) / self.seconds


def ours(
    model: CausalModel, prompts: Sequence[np.ndarray], length: int, end: int | None, sampling: Sampling | None
) -> list[np.ndarray]:
    """Texts by this project."""
    if sampling is None:
        return greedy(model, prompts, max_new_tokens=length, end_of_text=end, batch=BATCH)
    return sample(model, prompts, sampling=sampling, max_new_tokens=length, seed=0, end_of_text=end, batch=BATCH)


def plain(
    model: CausalModel, prompts: Sequence[np.ndarray], length: int, end: int | None, sampling: Sampling | None
) -> list[np.ndarray]:
    """Texts by transformers, batch after batch."""
    how = {} if sampling is None else sampling._asdict()
    pad = 0 if end is None else end
    asked = GenerationConfig(
        do_sample=sampling is not None, max_new_tokens=length, eos_token_id=end, pad_token_id=pad, use_cache=True, **how
    )
    found = []
    with by_default(model.model) as ready:
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            width = max(len(prompt) for prompt in part)
            ids = torch.tensor([[pad] * (width - len(prompt)) + prompt.tolist() for prompt in part])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in part])
            said = ready.generate(ids, attention_mask=mask, generation_config=asked)[:, width:].numpy()
            ends = [np.flatnonzero(text == (-1 if end is None else end)) for text in said]
            found += [text[: at[0]] if len(at) else text for text, at in zip(said, ends, strict=True)]
    return found


@contextmanager
def by_default(model: PreTrainedModel) -> Iterator[Any]:
    """The model with the attention that transformers gives it."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


def timed(write: Callable[..., list[np.ndarray]], *values: Any) -> Side:
    """What it writes, and the seconds of it."""
    began = time.perf_counter()
    return Side(write(*values), time.perf_counter() - began)


def partings(
    model: CausalModel, prompts: Sequence[np.ndarray], one: Sequence[np.ndarray], other: Sequence[np.ndarray], end: int
) -> list[float]:
    """Of each prompt whose two texts differ, the nats between the two tokens with which they part."""
    records = []
    for prompt, *both in zip(prompts, one, other, strict=True):
        first, second = ([*text.tolist(), end] for text in both)
        at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
        if at is not None:
            for text in (first, second):
                ids = np.array([*prompt.tolist(), *text[: at + 1]])
                records.append(Tokens(ids, np.arange(len(ids)) == len(ids) - 1))
    logp = [float(scores.logp[0]) for scores in model.log_probs(records)]
    return [abs(a - b) for a, b in zip(logp[::2], logp[1::2], strict=True)]


def rows(quick: bool, name: str = "bundled/smollm2-135m") -> list[dict[str, Any]]:
    """Greedy and sampled texts; of sampled ones half the turns, for nothing is asked of them."""
    count, turns, length = (QUESTIONS_QUICK, TURNS_QUICK, LENGTH_QUICK) if quick else (QUESTIONS, TURNS, LENGTH)
    loaded, rng = load(name), random.Random(0)
    model, end = CausalModel(loaded.model), loaded.tokenizer.eos_token_id
    asked = encoded(questions(count * turns), loaded.tokenizer)
    found = []
    for how, sampling, times in (("greedy", None, turns), ("sampled", SAMPLING, turns // 2)):
        sides: dict[Callable[..., list[np.ndarray]], list[Side]] = {ours: [], plain: []}
        differences: list[float] = []
        for turn in range(times + 1):  # the first, of one question, does not count
            part = asked[(turn - 1) * count : turn * count] if turn else asked[:1]
            for side in rng.sample([ours, plain], 2):
                sides[side].append(timed(side, model, part, length if turn else 2, end, sampling))
            if sampling is None:
                differences += partings(model, part, sides[ours][-1].texts, sides[plain][-1].texts, end)
        speeds = [[side.speed for side in sides[write][1:]] for write in (ours, plain)]
        metric = f"{how} text, {count} questions a turn, at most {length} tokens each: tokens/s"
        found.append(row(metric, *speeds, None if sampling else differences)._asdict())
    return found


# --- all ---


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| metric | ours | other | speed-up [quartiles] | bound | holds | same |", "|---|---|---|---|---|---|---|"]
    for one in found:
        bound = "" if one["bound"] is None else f"{one['sense']} {one['bound']:g}"
        holds = "" if one["holds"] is None else "yes" if one["holds"] else "**no**"
        spread = f"{one['ratio']:.2f} [{one['spread'][0]:.2f}, {one['spread'][1]:.2f}]"
        same = "" if one["same"] is None else f"{'yes' if one['same'] else '**no**'} ({one['difference']:.0e} nats)"
        lines.append(
            f"| {one['metric']} | {one['ours']:.3g} | {one['other']:.3g} | {spread} | {bound} | {holds} | {same} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where it ran."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Of what was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    names = ("reticent", "torch", "numpy", "transformers", "lm-eval")
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "commit": commit.stdout.strip()}


def choices(quick: bool) -> list[dict[str, Any]]:
    """The rows of multiple-choice scoring."""
    found: list[dict[str, Any]] = runpy.run_path(str(Path(__file__).with_name("multiple_choice.py")))["rows"](quick)
    return found


def main(line: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs what the command line asks for; prints the table, and writes it."""
    parser = argparse.ArgumentParser(description="Generation and multiple-choice scoring against what others use.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter texts: five minutes on a processor")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    asked = parser.parse_args(line)
    torch.set_num_threads(1)
    where = machine()
    found = [*choices(asked.quick), *rows(asked.quick)]
    if asked.json:
        whole = {
            "rows": found,
            "quick": asked.quick,
            "machine": where,
            "versions": versions(),
            "table": table(found),
        }
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(whole, indent=1) + "\n")
    print(table(found))
    return found


if __name__ == "__main__":
    try:
        main()
    except ReticentError as error:
        sys.exit(str(error))
