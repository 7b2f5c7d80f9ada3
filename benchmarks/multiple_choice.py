"""Multiple-choice scoring: ours against lm-eval's own back end for transformers, on the same requests.

    python benchmarks/multiple_choice.py [--quick] [--data FOLDER] [--json FILE]

Both get lm-eval's requests (context, continuation) and tokenise them; both hold the bundled model in float32 with the
same number of threads. They take turns on the same items, in random order; ratios are taken within a turn, and shown
are their median and quartiles. The answers of both, by sum and by length, must be the same. Where all continuations are
one token, such as letters, lm-eval too reads the context once for all options; no bound is set where nothing else is
shared either. ``--data``: PubMedQA (ori_pqal.json or pubmedqa_ori_pqal.json) and MedMCQA (*medmcqa*.jsonl) from there.
"""

import argparse
import copy
import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from reticent.data.clinic import clinic
from reticent.errors import DataError, ReticentError
from reticent.models.language_model import CausalModel
from reticent.models.load import load

ITEMS, TURNS = 40, 5
ITEMS_QUICK, TURNS_QUICK = 6, 3  # half as many where each option is read
SHOTS = 5
BATCH = 8  # of lm-eval
SAME = 1e-3  # nats that the log-likelihoods of both may differ by
LETTERS = "ABCDE"


class Item(NamedTuple):
    """A question with its options; ``context``: what stands before it."""

    question: str
    options: tuple[str, ...]
    answer: int
    context: str = ""


class Shape(NamedTuple):
    """How ``items`` are asked: after ``shots`` of them, by letters or the options' text. ``bound``: the least ratio."""

    name: str
    items: Sequence[Item]
    shots: int
    letters: bool
    bound: float | None


class Row(NamedTuple):
    """``ratio``: the median of other / ours, with its quartiles as ``spread``; no ``bound``: nothing asks for it.

    ``same``: whether all answers are; ``difference``: the largest of two log-likelihoods, nats.
    """

    metric: str
    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]
    sense: str
    bound: float | None
    holds: bool | None
    same: bool
    difference: float


def rows(quick: bool, data: Path | None = None) -> list[dict[str, Any]]:
    """One row for each shape of question."""
    count, turns = (ITEMS_QUICK, TURNS_QUICK) if quick else (ITEMS, TURNS)
    both = back_ends()
    return [
        measured(shape, both, count if shape.letters or not shape.shots else (count + 1) // 2, turns)._asdict()
        for shape in shapes(count * turns + 1, data)
    ]


def shapes(count: int, data: Path | None) -> list[Shape]:
    """What is asked."""
    items = coding(count + SHOTS)
    found = [
        Shape(f"coding questions, {SHOTS} demonstrations, the options' text", items, SHOTS, False, 2),
        Shape(f"coding questions, {SHOTS} demonstrations, letters", items, SHOTS, True, 2),
        Shape("coding questions, no demonstrations, the options' text", items, 0, False, 2),
        Shape("coding questions, no demonstrations, letters", items, 0, True, None),
    ]
    if data is not None:
        for name, others in (("PubMedQA", pubmedqa(data)), ("MedMCQA", medmcqa(data))):
            found += [
                Shape(f"{name}, {shots} demonstrations, {what}", others[: count + shots], shots, letters, None)
                for shots in (0, SHOTS)
                for letters, what in ((False, "the options' text"), (True, "letters"))
            ]
    return found


# --- items ---


def coding(count: int) -> list[Item]:
    """Coding questions over the real ICD-10-CM titles."""
    return [
        Item(record.prompt, record.options, record.answer or 0)
        for record in clinic(patients=0, questions=max(count, 40), seed=0)
        if record.options
    ][:count]


def pubmedqa(folder: Path) -> list[Item]:
    """Questions about an abstract, to be answered by yes, no or maybe."""
    options = ("yes", "no", "maybe")
    return [
        Item(one["QUESTION"], options, options.index(one["final_decision"]), "\n".join(one["CONTEXTS"]))
        for one in json.loads(_only(folder, "*ori_pqal.json").read_text()).values()
    ]


def medmcqa(folder: Path) -> list[Item]:
    """Questions of entrance examinations with four options."""
    lines = _only(folder, "*medmcqa*.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [Item(one["question"], tuple(one[f"op{key}"] for key in "abcd"), int(one["cop"]) - 1) for one in found]


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise DataError(f"{folder} has no file {pattern}")
    return found[0]


def asked(item: Item, letters: bool) -> str:
    """The question, and with ``letters`` the options below it."""
    listed = [f"{letter}. {option}\n" for letter, option in zip(LETTERS, item.options, strict=False)] if letters else []
    context = f"Context: {item.context}\n" if item.context else ""
    return f"{context}Question: {item.question}\n{''.join(listed)}Answer:"


def answers(item: Item, letters: bool) -> list[str]:
    """What may stand behind it."""
    return [f" {word}" for word in (LETTERS[: len(item.options)] if letters else item.options)]


def pairs(shape: Shape, items: Sequence[Item]) -> list[list[tuple[str, str]]]:
    """For each item, a context and continuation for each option; demonstrations are the first items."""
    shown = "".join(
        f"{asked(one, shape.letters)}{answers(one, shape.letters)[one.answer]}\n\n"
        for one in shape.items[: shape.shots]
    )
    return [[(shown + asked(one, shape.letters), option) for option in answers(one, shape.letters)] for one in items]


# --- both sides ---


def back_ends(name: str = "bundled/smollm2-135m") -> tuple[Any, Any]:
    """Ours and lm-eval's."""
    try:
        from lm_eval.models.huggingface import HFLM

        from reticent.utility.harness import HarnessModel
    except ImportError:
        raise DataError("lm-eval is not installed: pip install 'reticent[lm-eval]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = load(name)
    return HarnessModel(CausalModel(model), tokenizer), HFLM(
        pretrained=plain(model), tokenizer=tokenizer, batch_size=BATCH
    )


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights as transformers runs them by default."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("sdpa")
    return twin


def measured(shape: Shape, both: tuple[Any, Any], count: int, turns: int) -> Row:
    """Both in turns, each turn on its items; the first, of one item, does not count."""
    rng = random.Random(0)
    left = list(shape.items[shape.shots :])
    seconds: tuple[list[float], list[float]] = ([], [])
    same, difference = True, 0.0
    for turn in range(turns + 1):
        part, left = left[: count if turn else 1], left[count if turn else 1 :]
        asking = pairs(shape, part)
        found: dict[int, list[float]] = {}
        for side in rng.sample([0, 1], 2):
            began = time.perf_counter()
            found[side] = scored(both[side], asking)
            if turn:
                seconds[side].append(time.perf_counter() - began)
        same = same and chosen(found[0], asking) == chosen(found[1], asking)
        difference = max(difference, float(np.abs(np.subtract(found[0], found[1])).max()))
    ratios = [other / mine for mine, other in zip(*seconds, strict=True)]
    low, ratio, high = (float(value) for value in np.percentile(ratios, [25, 50, 75]))
    equal = same and difference <= SAME
    holds = None if shape.bound is None else equal and ratio >= shape.bound
    metric = f"{shape.name}, {count} items a turn, s"
    ours, other = (statistics.median(one) for one in seconds)
    return Row(metric, ours, other, ratio, (low, high), "at least", shape.bound, holds, same, difference)


def scored(model: Any, asking: Sequence[Sequence[tuple[str, str]]]) -> list[float]:
    """Log-likelihoods of all options of all items."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, 0) for item in asking for pair in item]
    return [logp for logp, _ in model.loglikelihood(requests, disable_tqdm=True)]


def chosen(scores: Sequence[float], asking: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[int, int]]:
    """For each item, the most likely option, and the most likely by its length."""
    left = iter(scores)
    found = []
    for item in asking:
        logp = np.array([next(left) for _ in item])
        lengths = np.array([len(option) for _, option in item])
        found.append((int(logp.argmax()), int((logp / lengths).argmax())))
    return found


# --- all ---


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| metric | ours | lm-eval | ratio [quartiles] | bound | holds | same answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        bound = "" if row["bound"] is None else f"{row['sense']} {row['bound']:g}"
        holds = "" if row["holds"] is None else "yes" if row["holds"] else "**no**"
        spread = f"{row['ratio']:.2f} [{row['spread'][0]:.2f}, {row['spread'][1]:.2f}]"
        same = f"{'yes' if row['same'] else '**no**'} ({row['difference']:.0e} nats)"
        lines.append(
            f"| {row['metric']} | {row['ours']:.3g} | {row['other']:.3g} | {spread} | {bound} | {holds} | {same} |"
        )
    return "\n".join(lines)


def main(line: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs what the command line asks for; prints the table, and writes it."""
    parser = argparse.ArgumentParser(description="Multiple-choice scoring against lm-eval's own back end.")
    parser.add_argument("--quick", action="store_true", help="few items: two minutes on a processor")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="PubMedQA and MedMCQA too, from their files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    asked = parser.parse_args(line)
    torch.set_num_threads(1)
    found = rows(asked.quick, asked.data)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({"rows": found, "quick": asked.quick, "table": table(found)}, indent=1) + "\n")
    print(table(found))
    return found


if __name__ == "__main__":
    try:
        main()
    except ReticentError as error:
        sys.exit(str(error))
