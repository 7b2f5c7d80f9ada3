"""Measure how useful each model is: on records that no model was trained on, in examinations, on public questions."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from reticent.data.record import Record
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Recipe
from reticent.run import Run
from reticent.stages.attacking import Findings
from reticent.stages.inputs import AnyModel, all_models, encode_answers, encoder, held_out, open_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.models.language_model import CausalModel

Normalise = Literal["sum", "tokens"]
_WORDS: dict[Normalise, str] = {"sum": "of the whole text", "tokens": "per token"}


class Part(Protocol):
    """Something that every model is measured by. Models come one after the other: base, twin, private."""

    def ask(self, name: AnyModel, model: "CausalModel") -> None:
        """Measure one model."""
        ...

    def findings(self) -> Findings:
        """What was measured on all of them."""
        ...

    def write(self) -> None:
        """Store what the models answered, beside the data."""
        ...


def evaluate(run: Run, progress: Progress) -> None:
    """Writes perplexity, bits per byte, accuracy, and what each model answered; each model is loaded once."""
    from reticent.models.load import load_tokenizer

    recipe = run.recipe
    texts = _HeldOut(run, load_tokenizer(recipe.model.base), progress)
    parts = [
        texts,
        *_public(run, texts.tokenizer, progress),
    ]  # what is wrong in a file is told before a model is loaded
    for name in all_models(recipe):
        _ask(run, name, parts)
    found = [part.findings() for part in parts]
    for part in parts:
        part.write()
    run.write_measurements("evaluate", [one for part in found for one in part.measurements])
    run.write_plots("evaluate", {key: points for part in found for key, points in part.plots.items()})
    run.finish("evaluate", texts.facts())


def _public(run: Run, tokenizer: "PreTrainedTokenizerBase", progress: Progress) -> Iterator[Part]:
    """Examinations and questions that the recipe names."""
    if run.recipe.evaluate.benchmarks:
        from reticent.stages.quiz import Quizzes

        yield Quizzes(run, tokenizer, progress)
    if run.recipe.evaluate.questions is not None:
        from reticent.stages.questions import PublicQuestions

        yield PublicQuestions(run, tokenizer, progress)


def _ask(run: Run, name: AnyModel, parts: Sequence[Part]) -> None:
    model = open_model(run, name)
    for part in parts:
        part.ask(name, model)


# ------------------------------------------------------------------------------------------------- held-out records


class _Group(NamedTuple):
    """Some of the records, by number. ``label``: as in ``perplexity[LABEL]``; "" for all of them."""

    label: str
    records: list[int]


class _HeldOut:
    """Perplexity and bits per byte, of all records and by silo and origin; accuracy on those that are questions."""

    def __init__(self, run: Run, tokenizer: "PreTrainedTokenizerBase", progress: Progress) -> None:
        self.tokenizer = tokenizer
        self._recipe, self._progress = run.recipe, progress
        asked = run.recipe.evaluate
        self._records, self._owners = held_out(run)
        self._questions = [record for record in self._records if record.options] if asked.choices else []
        options = [(question.prompt, option) for question in self._questions for option in question.options]
        self._options = encode_answers(run.recipe, options, tokenizer)
        texts = [(record.prompt, record.completion) for record in self._records] if asked.perplexity else []
        self._tokens, self._pieces, *_ = encoder(run.recipe, tokenizer)(texts)
        spelt: list[str] = tokenizer.batch_decode(
            [piece.ids[piece.trained].tolist() for piece in self._tokens],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        left = iter([len(text.encode()) for text in spelt])
        self._sizes = [sum(next(left) for _ in range(pieces)) for pieces in self._pieces]
        self._measured: list[Measurement] = []

    def ask(self, name: AnyModel, model: "CausalModel") -> None:
        """Measure one model."""
        scores = iter(score.logp for score in model.log_probs([*self._tokens, *self._options], self._progress))
        logp = [np.concatenate([np.empty(0), *(next(scores) for _ in range(pieces))]) for pieces in self._pieces]
        if any(len(one) for one in logp):
            for group in self._groups([number for number, one in enumerate(logp) if len(one)]):
                self._measured += self._predicted(name, group, logp)
        if self._questions:
            self._measured += self._answered(name, [[next(scores) for _ in one.options] for one in self._questions])

    def findings(self) -> Findings:
        """What was measured on all of them."""
        return Findings(self._measured, {})

    def write(self) -> None:
        """Nothing: numbers are all there is."""

    def facts(self) -> dict[str, Any]:
        """How much there was, which records, and why there is nothing by silo, if so."""
        missing = _no_silos(self._recipe)
        return {
            "records": len(self._records),
            "questions": len(self._questions),
            "sha256": _digest(self._records),
            **({} if missing is None else {"left_out": [missing]}),
        }

    def _groups(self, numbers: Sequence[int]) -> list[_Group]:
        """All of the records ``numbers``, and wherever there are two or more, those of each silo and of each origin."""
        found = [_Group("", list(numbers))]
        for kind, name in (("silo", self._silo), ("origin", _origin)):
            held: dict[str, list[int]] = {}
            for number in numbers:
                if own := name(self._records[number]):
                    held.setdefault(own, []).append(number)
            if len(held) > 1:
                found += [_Group(f"{kind} {own}", held[own]) for own in sorted(held)]
        return found

    def _silo(self, record: Record) -> str | None:
        return silo_of(record, self._recipe)

    def _predicted(self, name: AnyModel, group: _Group, logp: Sequence[np.ndarray]) -> Iterator[Measurement]:
        """Perplexity and bits per byte of one model on one group."""
        from reticent.utility import perplexity

        seed = self._recipe.data.seed
        scores = [logp[number] for number in group.records]
        owners = [self._owners[number] for number in group.records]
        sizes = [self._sizes[number] for number in group.records]
        at = f"[{group.label}]" if group.label else ""
        found = perplexity.perplexity(scores, owners, rng=np.random.default_rng(seed))
        measured = Measurement(
            name=f"perplexity{at}",
            model=name,
            value=found.value,
            interval=found.interval,
            n=found.owners,
            unit="perplexity",
            counted="held-out owners",
            method=f"{found.tokens:,} tokens, bootstrap over owners",
        )
        yield measured
        if not group.label:
            by_text = perplexity.perplexity_by_text(scores, owners, rng=np.random.default_rng(seed))
            method = (
                f"for comparison with published numbers only: mean over {len(scores):,} texts, however short; "
                "bootstrap over owners"
            )
            yield replace(
                measured, name="perplexity_by_text", value=by_text.value, interval=by_text.interval, method=method
            )
        if any(sizes):
            bits = perplexity.bits_per_byte(scores, sizes, owners, rng=np.random.default_rng(seed))
            what = "prompts and completions" if self._recipe.data.train_on_prompt else "completions"
            method = (
                f"{found.tokens:,} tokens, {bits.size:,} bytes of UTF-8 that they spell: {what}; the end of a text "
                "counts in the bits and has no bytes; bootstrap over owners"
            )
            yield replace(
                measured,
                name=f"bits_per_byte{at}",
                value=bits.value,
                interval=bits.interval,
                n=bits.owners,
                unit="bits per byte",
                method=method,
            )

    def _answered(self, name: AnyModel, scored: Sequence[Sequence[np.ndarray]]) -> Iterator[Measurement]:
        """Accuracy of one model. ``scored``: of each question, of each option, log-probabilities of its tokens."""
        from reticent.utility.choices import accuracy

        right = [question.answer for question in self._questions if question.answer is not None]
        for label, normalise in scorers(self._recipe):
            chosen = accuracy(scored, right, normalise=normalise)
            yield Measurement(
                name=label,
                model=name,
                value=chosen.accuracy,
                interval=chosen.interval,
                n=chosen.n,
                unit="share",
                counted="held-out questions",
                method=f"option log-likelihood, {_WORDS[normalise]}; Wilson",
                floor=chosen.chance,
                ceiling=1.0,
            )


def scorers(recipe: Recipe) -> list[tuple[str, Normalise]]:
    """The accuracy that the recipe asks for, and beside it the one by the other way to score an option."""
    chosen = recipe.evaluate.normalise
    other: Normalise = "sum" if chosen == "tokens" else "tokens"
    return [("accuracy", chosen), (f"accuracy_by_{other}", other)]


def silo_of(record: Record, recipe: Recipe) -> str | None:
    """The institution of a held-out record, which was dealt to none: the one that it names, or its origin's.

    None where chance decides: of silos that are drawn, and of the origins in data.silos.sensitive.
    """
    asked = recipe.data.silos
    if asked is None:
        return record.silo
    if _no_silos(recipe) is not None or record.origin in asked.sensitive:
        return None
    return record.origin if asked.kind == "by-origin" else record.silo


def _no_silos(recipe: Recipe) -> str | None:
    """Why held-out records belong to no silo; None: they do."""
    asked = recipe.data.silos
    if asked is None or asked.kind in ("by-key", "by-origin"):
        return None
    return (
        f"perplexity by silo: data.silos.kind {asked.kind} draws who goes where, and held-out owners were not dealt; "
        "origins tell what the data tell"
    )


def _digest(records: Sequence[Record]) -> str:
    """SHA-256 of the text of records, in hexadecimal: runs with the same are compared on the same."""
    texts = [[record.prompt, record.completion, *record.options] for record in records]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _origin(record: Record) -> str:
    return record.origin
