"""Sample a corpus from the private model, filter it, judge it and audit it: what may be given away, and its worth.

What is sampled depends on the private data through the private model alone, so it is as private as the model
(post-processing), whatever is done with it. Judging and auditing read private text: their numbers stay with the run,
and none of them decides what is kept.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reticent import recipe as recipes
from reticent.asked import public_name
from reticent.data.prompts import Prompt, read_prompts
from reticent.errors import ModelError, PrivacyError, RecipeError
from reticent.progress import Progress
from reticent.recipe import Recipe, Synthetic
from reticent.run import Run
from reticent.stages.attacking import Findings
from reticent.stages.continuing import beginnings, context, decoded
from reticent.stages.inputs import open_model
from reticent.stages.report import broken
from reticent.utility.synthetic import Chosen, Sample, choose

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.models.language_model import CausalModel

SHOWN, SHOWN_LETTERS = 5, 400  # texts that the report shows, and the length of one
_LEAST_KEPT = 0.1  # the smallest share of samples that the next round counts on


class Corpus(NamedTuple):
    """Kept texts, each with the public prompt and label that it was made for: (texts,)."""

    prompts: list[str]
    labels: list[str | None]
    texts: list[str]

    def pairs(self) -> list[tuple[str, str]]:
        """Prompts and texts, as records are encoded."""
        return list(zip(self.prompts, self.texts, strict=True))

    def digest(self) -> str:
        """Which corpus it is: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16]


def synthesize(run: Run, progress: Progress) -> None:
    """Writes the texts with their card, and what was measured on them.

    Raises:
        PrivacyError: nothing is promised for the model, or a check of its training failed.
        ModelError: none of the texts that it writes can be kept.
        RecipeError: prompt and text are longer than what the model reads.
    """
    from reticent.models.load import load_tokenizer

    recipe = run.recipe
    asked = recipe.synthetic
    assert asked is not None
    guarantee = promised(run)
    prompts = [Prompt("")] if asked.prompts is None else read_prompts(Path(asked.prompts))
    if asked.prompts is not None:
        _caution(run, prompts, progress)
    tokenizer = load_tokenizer(recipe.model.base)
    corpus, funnel = _made(run, asked, prompts, tokenizer, progress)
    found = list(_found(run, corpus, tokenizer, progress))
    plots: dict[str, Any] = {
        "funnel": funnel,
        "labels": dict(Counter(label for label in corpus.labels if label is not None).most_common()),
        "samples": _shown(corpus),
        "guarantee": guarantee,
        "unanswered": [why for one in found for why in one.plots.pop("unanswered", [])],
    }
    _write(run, corpus, _card(run, guarantee, funnel, conditioned=asked.prompts is not None))
    run.write_measurements("synthesize", [m for one in found for m in one.measurements])
    run.write_plots("synthesize", {**plots, **{name: drawn for one in found for name, drawn in one.plots.items()}})
    shutil.rmtree(run.synthetic_work, ignore_errors=True)
    run.finish("synthesize", {"records": len(corpus.texts), "sampled": funnel["sampled"]})


def promised(run: Run) -> dict[str, Any]:
    """The guarantee under which text of the private model may be given away.

    Raises:
        PrivacyError: there is none, or a check of the training failed.
    """
    if failed := broken(run):
        raise PrivacyError(
            f"the training does not keep what the ledger counts on (check {', '.join(failed)} failed), so nothing is "
            "promised for what the model writes. Mend the training and redo it: reticent train ... --again"
        )
    guarantee: dict[str, Any] | None = run.facts("train").get("guarantee")
    if guarantee is None or guarantee.get("epsilon") is None or not np.isfinite(guarantee["epsilon"]):
        raise PrivacyError(
            "no model with a promise was trained, and text of a model without one is as private as the data; say "
            "privacy: {kind: dp-sgd, epsilon: 8}, or synthetic: null"
        )
    return guarantee


def _caution(run: Run, prompts: Sequence[Prompt], progress: Progress) -> None:
    """Says how many prompts are one unit's alone: the promise covers what the model writes, not what it is asked."""
    units: dict[str, set[str]] = {one.text: set() for one in prompts}
    for record, unit in run.read_records("train"):
        if record.prompt in units:
            units[record.prompt].add(unit)
    if alone := sum(len(own) == 1 for own in units.values()):
        progress.say(
            f"{alone:,} of {len(units):,} prompts are that of one {run.recipe.privacy.unit} in the training data; "
            "prompts are given away with the texts, so make sure that they are public"
        )


# ---------------------------------------------------------------------------------------------------------- sampling


class _Drawn(NamedTuple):
    """A line of the work file: what the model wrote for one number."""

    number: int
    text: str
    finished: bool


def _made(
    run: Run, asked: Synthetic, prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", progress: Progress
) -> tuple[Corpus, dict[str, int]]:
    """Samples until enough are kept, or as many as were allowed."""
    _say_what_was_learned(run.recipe, asked, progress)
    order = _Order(prompts, asked.seed)
    sampler = _Sampler(run, asked, tokenizer, progress)
    most, wanted = asked.records * asked.attempts, asked.records
    while True:
        drawn = sampler.drawn([order[number] for number in range(wanted)])
        samples = [Sample(order[one.number].text, one.text, one.finished) for one in drawn]
        chosen = choose(samples, most=asked.records, min_words=asked.min_words, near_duplicates=asked.near_duplicates)
        kept = len(chosen.numbers)
        if kept == asked.records or wanted == most:
            break
        share = max(_LEAST_KEPT, kept / wanted)
        wanted = min(most, wanted + ceil((asked.records - kept) / share))
    if not chosen.numbers:
        raise ModelError(_nothing(chosen))
    if kept < asked.records:
        progress.say(
            f"{kept:,} texts of {asked.records:,} were kept of {most:,} samples; synthetic.attempts allows no more"
        )
    own = [order[number] for number in chosen.numbers]
    texts = [samples[number].text for number in chosen.numbers]
    return Corpus([one.text for one in own], [one.label for one in own], texts), chosen.funnel


def _say_what_was_learned(recipe: Recipe, asked: Synthetic, progress: Progress) -> None:
    if asked.prompts is None and not recipe.data.train_on_prompt and not _plain(recipe):
        progress.say(
            "the model begins by itself, and learned answers alone if the records have prompts; give "
            "synthetic.prompts, or train with data.train_on_prompt: true"
        )


def _plain(recipe: Recipe) -> bool:
    """Whether the records are plain texts, as far as the recipe says it."""
    source = recipe.data.source
    return isinstance(source, recipes.Source) and source.name is None and source.completion is None


def _nothing(chosen: Chosen) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in chosen.funnel.items() if count and name != "sampled")
    return (
        f"none of {chosen.funnel['sampled']:,} texts that the private model wrote can be kept ({counts}). Unfinished: "
        "raise synthetic.max_new_tokens; too short: lower synthetic.min_words; else train it longer"
    )


class _Order:
    """The prompt of each number: all prompts by their counts in random order, again and again."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._all = [prompt for prompt in prompts for _ in range(prompt.count)]
        self._seed = seed
        self._rounds: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> Prompt:
        turn, place = divmod(number, len(self._all))
        if turn not in self._rounds:
            self._rounds[turn] = np.random.default_rng([self._seed, 70, turn]).permutation(len(self._all))
        return self._all[int(self._rounds[turn][place])]


class _Sampler:
    """Texts by number, the same for the same recipe and model; each is written down as soon as it is there."""

    def __init__(self, run: Run, asked: Synthetic, tokenizer: "PreTrainedTokenizerBase", progress: Progress) -> None:
        self._run, self._asked, self._tokenizer, self._progress = run, asked, tokenizer, progress
        self._path = run.synthetic_work / "samples.jsonl"
        self._model: CausalModel | None = None

    def drawn(self, prompts: Sequence[Prompt]) -> list[_Drawn]:
        """What the model wrote for the first numbers, whose prompts these are."""
        key = _key(self._run, self._asked)
        found = {one.number: one for one in _read(self._path, key)}
        missing = [number for number in range(len(prompts)) if number not in found]
        if missing:
            if found and self._model is None:
                self._progress.say(f"{len(found):,} texts are there from before")
            lines = [json.dumps({"key": key}), *(json.dumps(one._asdict()) for one in found.values())]
            self._run.write_text(self._path, "".join(line + "\n" for line in lines))  # without a line cut off
            with self._run.temporary(), open(self._path, "a", encoding="utf-8") as file:
                for one in self._sample([(number, prompts[number].text) for number in missing]):
                    file.write(json.dumps(one._asdict()) + "\n")
                    file.flush()
                    found[one.number] = one
        return [found[number] for number in range(len(prompts))]

    def _sample(self, asked: Sequence[tuple[int, str]]) -> Iterator[_Drawn]:
        from reticent.models.generation import Decoding, stream
        from reticent.models.language_model import Sampling

        begins = beginnings([text for _, text in asked], self._tokenizer, self._run.recipe.data.template)
        if self._model is None:
            self._model = open_model(self._run, "private")
        _refuse_long(self._model, max(len(one.ids) for one in begins), self._asked.max_new_tokens)
        sampling = Sampling(self._asked.temperature, self._asked.top_k, self._asked.top_p)
        eos = self._tokenizer.eos_token_id
        with self._progress.task("sampling", total=len(asked)) as task:
            for end in dict.fromkeys(one.end[0] for one in begins):  # of a text, and of a turn of a talk
                own = [i for i, one in enumerate(begins) if one.end[0] == end]
                found = stream(
                    self._model,
                    [begins[i].ids for i in own],
                    Decoding(self._asked.max_new_tokens, sampling),
                    seeds=[_seed(self._asked.seed, asked[i][0]) for i in own],
                    end_of_text=end,
                    stop=lambda _, ids: bool(ids[-1] == eos),
                )
                for place, said in found:
                    text = decoded(said.ids.tolist(), self._tokenizer).strip()
                    yield _Drawn(asked[own[place]][0], text, said.finish != "length")
                    task.advance()


def _refuse_long(model: "CausalModel", prompt: int, text: int) -> None:
    most = context(model)
    if most is not None and prompt + text > most:
        raise RecipeError(
            f"synthetic: a prompt of {prompt:,} tokens and synthetic.max_new_tokens = {text:,} are more than the "
            f"{most:,} tokens that the model reads; shorten the prompt, or lower max_new_tokens"
        )


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, 71, number]).generate_state(1)[0])


def _key(run: Run, asked: Synthetic) -> str:
    """What the samples follow from: how they are asked for, of which weights."""
    whole = hashlib.sha256()
    sampled = asked.model_dump(mode="json", exclude={"records", "attempts", "min_words", "near_duplicates"})
    whole.update(json.dumps([sampled, run.recipe.data.template], sort_keys=True).encode())
    files = [Path(asked.prompts)] if asked.prompts is not None else []
    for path in [*files, *sorted(run.model_folder("private").glob("*.safetensors"))]:
        with run.temporary(), open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _read(path: Path, key: str) -> list[_Drawn]:
    """What a work file of this key holds; a line that was cut off in the middle is left out."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    except (OSError, ValueError):
        return []
    return [_Drawn(**line) for line in lines[1:]] if lines and lines[0].get("key") == key else []


# ------------------------------------------------------------------------------------------------ judging and writing


def _found(run: Run, corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", progress: Progress) -> Iterator[Findings]:
    from reticent.stages import judging, synthetic_audit

    asked = run.recipe.synthetic
    assert asked is not None
    folder = run.synthetic_work / f"{corpus.digest()}-{asked.seed}"  # what learned another corpus is not gone on with
    if asked.judge:
        yield judging.judge(run, corpus, tokenizer, folder, progress)
    if asked.audit:
        yield synthetic_audit.audit(run, corpus, folder, progress)


def _shown(corpus: Corpus) -> list[str]:
    whole = [f"{prompt}\n{text}" if prompt else text for prompt, text in corpus.pairs()]
    return [text for text in whole if len(text) <= SHOWN_LETTERS][:SHOWN]


def _card(run: Run, guarantee: dict[str, Any], funnel: dict[str, int], *, conditioned: bool) -> dict[str, Any]:
    """What goes with the texts. Nothing in it was measured on private text."""
    asked = run.recipe.synthetic
    assert asked is not None
    return {
        "what": "text written by a language model that was fine-tuned with differential privacy; no record of a person",
        "guarantee": guarantee,
        "base": public_name(run.recipe.model.base),
        "prompts": "public prompts from a file" if conditioned else "none",
        "sampling": asked.model_dump(mode="json", include={"temperature", "top_k", "top_p", "max_new_tokens", "seed"}),
        "texts": funnel,
        "recipe": recipes.digest(run.recipe),
    }


def _write(run: Run, corpus: Corpus, card: dict[str, Any]) -> None:
    rows = (
        {"id": f"synthetic-{number:06d}", "prompt": prompt, "label": label, "text": text}
        for number, (prompt, label, text) in enumerate(zip(*corpus, strict=True), start=1)
    )
    texts = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    card = {**card, "sha256": {"texts.jsonl": hashlib.sha256(texts.encode()).hexdigest()}}
    with run.replacing(run.synthetic_folder) as folder:
        (folder / "texts.jsonl").write_text(texts, encoding="utf-8")
        (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
