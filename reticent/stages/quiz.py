"""Public examinations: every model takes them, in the same words, and each answer is kept beside the data."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from reticent.data import store
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Benchmark, Scorer
from reticent.run import Run
from reticent.stages.attacking import Findings
from reticent.stages.inputs import AnyModel
from reticent.statistics import mcnemar, wilson
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.models.language_model import CausalModel, TokenScores
    from reticent.utility.exam_prompts import Form, Layout, Opened, Prompter, Scorable
    from reticent.utility.questions import Question, Read, Shots

SPARE = 8  # tokens that may be written beyond the longest answer
REASONING = 256  # tokens of reasoning and answer
TEMPERATURE = 0.8  # of the branches
_READ: dict[Scorer, str] = {
    "options": "log-likelihood of the option's text",
    "options-per-token": "log-likelihood of the option's text per token",
    "options-per-byte": "log-likelihood of the option's text per byte",
    "letter": "log-likelihood of the letter",
    "generate": "what the model writes, parsed",
}
_F1 = 70  # a stream of chance


@dataclass(eq=False)
class _Exam:
    """One benchmark, as it is put to every model.

    ``scored``: by form, each question's options as tokens; ``opened``: prompts to be gone on with. ``chosen``: by model
    and scorer the option of each question, None where there is none; ``said``: by model what it wrote, all branches of
    each question.
    """

    asked: Benchmark
    read: "Read"
    layout: "Layout"
    skipped: int
    contaminated: np.ndarray
    budget: int
    scored: "dict[Form, list[Scorable]]"
    opened: "list[Opened]"
    chosen: dict[tuple[str, Scorer], list[int | None]] = field(default_factory=dict)
    said: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def questions(self) -> "list[Question]":
        return self.read.questions

    @property
    def models(self) -> list[str]:
        """Those that took it, in their order."""
        return list(dict.fromkeys(model for model, _ in self.chosen))

    def tokens(self) -> list[Tokens]:
        """All options in all forms, one after the other."""
        return [option for items in self.scored.values() for item in items for option in item.options]

    def truncated(self, scorer: Scorer) -> list[bool]:
        """Which items had to be shortened for a scorer."""
        items: Sequence[Opened | Scorable] = self.opened if scorer == "generate" else self.scored[_form(scorer)]
        return [item.truncated for item in items]

    def correct(self, model: str, scorer: Scorer) -> np.ndarray:
        """Which questions a model got right, (questions,) bool."""
        pairs = zip(self.chosen[model, scorer], self.questions, strict=True)
        return np.array([choice == one.answer for choice, one in pairs], dtype=bool)

    def classes(self, model: str, scorer: Scorer) -> tuple[list[str], list[str | None]]:
        """The label of each right answer, and of each that was chosen."""
        pairs = zip(self.chosen[model, scorer], self.questions, strict=True)
        chosen = [None if choice is None else one.labels[choice] for choice, one in pairs]
        return [one.labels[one.answer] for one in self.questions], chosen


class Quizzes:
    """The benchmarks of a recipe: read and made into tokens at once, then put to one model after the other."""

    def __init__(self, run: Run, tokenizer: "PreTrainedTokenizerBase", progress: Progress) -> None:
        """Reads everything.

        Raises:
            DataError: A benchmark cannot be read, an item of it is not as it must be, or a question does not fit.
        """
        from reticent.utility.exam_prompts import Prompter

        self._run, self._tokenizer, self._progress = run, tokenizer, progress
        recipe = run.recipe
        items = [read_benchmark(asked, recipe.data.seed) for asked in recipe.evaluate.benchmarks]
        prompter = Prompter(tokenizer, context=_context(recipe.model.base, tokenizer))
        self._exams = [
            _prepared(run, asked, *found, prompter, progress)
            for asked, found in zip(recipe.evaluate.benchmarks, items, strict=True)
        ]
        for exam in self._exams:
            for line in _told(exam):
                progress.say(f"benchmark {exam.asked.name}: {line}")

    def ask(self, name: AnyModel, model: "CausalModel") -> None:
        """Put all of them to one model: every option in one pass, and then what it writes."""
        scores = iter(model.log_probs([one for exam in self._exams for one in exam.tokens()], self._progress))
        for exam in self._exams:
            for form, items in exam.scored.items():
                found = [[next(scores) for _ in item.options] for item in items]
                for scorer in exam.asked.scorers:
                    if _form(scorer) == form and scorer != "generate":
                        exam.chosen[name, scorer] = _picked(exam, scorer, found)
            if exam.opened:
                exam.said[name] = self._written(exam, model)
                exam.chosen[name, "generate"] = _parsed(exam, exam.said[name])

    def _written(self, exam: _Exam, model: "CausalModel") -> list[list[str]]:
        """What a model writes under each question, once or in several branches."""
        from reticent.models.generation import greedy, sample
        from reticent.models.language_model import Sampling

        branches = exam.asked.branches
        prompts = [one.ids for one in exam.opened for _ in range(branches)]
        end = self._tokenizer.eos_token_id
        if branches == 1:
            ids = greedy(model, prompts, max_new_tokens=exam.budget, end_of_text=end, progress=self._progress)
        else:
            ids = sample(
                model,
                prompts,
                sampling=Sampling(TEMPERATURE, top_k=None),
                max_new_tokens=exam.budget,
                seed=self._run.recipe.data.seed,
                end_of_text=end,
                progress=self._progress,
            )
        texts = [str(self._tokenizer.decode(one.tolist(), skip_special_tokens=True)) for one in ids]
        return [texts[start : start + branches] for start in range(0, len(texts), branches)]

    def findings(self) -> Findings:
        """Numbers of every model that was asked, and what the table of the benchmarks shows."""
        seed = self._run.recipe.data.seed
        measurements = [one for exam in self._exams for one in _measured(exam, seed)]
        return Findings(measurements, {"benchmarks": [_summary(exam) for exam in self._exams]})

    def write(self) -> None:
        """Writes what every model answered to each item, beside the data: a line an item, a file a benchmark."""
        with self._run.replacing(self._run.benchmarks_folder) as folder:
            for exam in self._exams:
                name = quote(exam.asked.name, safe=" ").replace(".", "%2E")
                with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                    for line in _lines(exam):
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------------------- the items


def read_benchmark(asked: Benchmark, seed: int) -> "tuple[Read, Shots]":
    """The questions and the demonstrations of one benchmark; no model and no tokenizer is needed.

    Raises:
        DataError: It cannot be read, or an item of it is not as it must be.
    """
    from reticent.utility import questions

    path = None if asked.path is None else Path(asked.path)
    read = questions.read(asked.name, path=path, split=asked.split, limit=asked.limit, seed=seed)
    file = None if asked.demonstrations is None else Path(asked.demonstrations)
    # Of all its questions, not only of those drawn: else an example would hang on data.seed.
    tested = (
        read if not asked.shots or asked.limit is None else questions.read(asked.name, path=path, split=asked.split)
    )
    return read, questions.shots(asked.name, asked.shots, path=path, file=file, questions=tested.questions)


def _prepared(
    run: Run, asked: Benchmark, read: "Read", shots: "Shots", prompter: "Prompter", progress: Progress
) -> _Exam:
    from reticent.utility.exam_prompts import SYSTEM, Layout
    from reticent.utility.questions import contaminated

    system = SYSTEM.get(asked.name, "") if asked.system == "source" else asked.system or ""
    layout = Layout(system, tuple(shots.questions), asked.template == "chat")
    labels = sorted({label for one in read.questions for label in one.labels})
    budget = asked.max_new_tokens
    if budget is None:  # from all answers there are, never from the right one
        longest = max(map(prompter.length, labels))
        budget = REASONING if asked.chain_of_thought else longest + SPARE
    forms = dict.fromkeys(_form(scorer) for scorer in asked.scorers if scorer != "generate")
    writing: Form = "reasoning" if asked.chain_of_thought else "letter"
    scored: dict[Form, list[Scorable]] = {form: [] for form in forms}
    opened: list[Opened] = []
    with progress.task(f"preparing benchmark {asked.name}", total=len(read.questions)) as task:
        for one in read.questions:
            for form, items in scored.items():
                items.append(prompter.options(one, layout, form))
            if "generate" in asked.scorers:
                opened.append(prompter.opened(one, layout, writing, max_new_tokens=budget))
            task.advance()
    return _Exam(
        asked=asked,
        read=read,
        layout=layout,
        skipped=shots.skipped,
        contaminated=contaminated(read.questions, _training_texts(run)),
        budget=budget,
        scored=scored,
        opened=opened,
    )


def _form(scorer: Scorer) -> "Form":
    return "text" if scorer.startswith("options") else "letter"


def _training_texts(run: Run) -> Iterator[list[str]]:
    for batch in store.batches((record for record, _ in run.read_records("train")), store.characters):
        yield [f"{record.prompt}\n{record.completion}" for record in batch]


def _context(base: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens that the model reads, known before its weights are loaded."""
    from reticent.models.load import skeleton

    positions = getattr(skeleton(base, dtype="float32")[0].config, "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)


def _told(exam: _Exam) -> Iterator[str]:
    """What the user should know of the items before the models are asked."""
    counts = _counts(exam)
    for count, what in (
        (counts["duplicates"], "repeat another one and are left out"),
        (counts["equal_options"], "have two equal options, as published"),
        (counts["truncated"], "do not fit and lose demonstrations or the beginning of their context"),
        (counts["contaminated"], "stand in the training data"),
    ):
        if count:
            yield f"{count} of its items {what}"
    if exam.skipped:
        yield f"{exam.skipped} demonstrations were skipped: they are among its questions"


# --------------------------------------------------------------------------------------------------------- the answers


def _picked(exam: _Exam, scorer: Scorer, found: "Sequence[Sequence[TokenScores]]") -> list[int | None]:
    from reticent.utility.choices import likeliest

    chosen = []
    for one, scores in zip(exam.questions, found, strict=True):
        logp = [score.logp for score in scores]
        lengths: list[int] | None = None
        if scorer == "options-per-token":
            lengths = [len(tokens) for tokens in logp]
        elif scorer == "options-per-byte":
            lengths = [len(option.encode()) for option in one.options]
        chosen.append(likeliest(logp, lengths))
    return chosen


def _parsed(exam: _Exam, said: Sequence[Sequence[str]]) -> list[int | None]:
    from reticent.utility.parsing import parse, vote

    reasoned = exam.asked.chain_of_thought
    return [
        vote([parse(text, one.options, one.labels, reasoned=reasoned) for text in texts])
        for one, texts in zip(exam.questions, said, strict=True)
    ]


def _lines(exam: _Exam) -> Iterator[dict[str, Any]]:
    first = exam.truncated(exam.asked.scorers[0])
    for number, one in enumerate(exam.questions):
        choices: dict[str, dict[str, str | None]] = {}
        for (model, scorer), chosen in exam.chosen.items():
            choice = chosen[number]
            choices.setdefault(model, {})[scorer] = None if choice is None else one.labels[choice]
        yield {
            "item": number,
            "id": one.id,
            "subject": one.subject,
            "answer": one.labels[one.answer],
            "contaminated": bool(exam.contaminated[number]),
            "truncated": first[number],
            "choices": choices,
            "texts": {model: said[number] for model, said in exam.said.items()},
        }


# --------------------------------------------------------------------------------------------------------- the numbers


def _measured(exam: _Exam, seed: int) -> Iterator[Measurement]:
    name, first = exam.asked.name, exam.asked.scorers[0]
    yield _majority(exam)
    for model in exam.models:
        for scorer in exam.asked.scorers:
            label = name if scorer == first else f"{name}, {scorer}"
            everything = np.ones(len(exam.questions), dtype=bool)
            yield _accuracy(exam, model, scorer, f"accuracy[{label}]", everything, _marked(exam))
            clean = ~exam.contaminated
            if scorer == first and exam.contaminated.any() and clean.any():
                what = f"accuracy[{name}, without contaminated]"
                yield _accuracy(exam, model, scorer, what, clean, "items that stand in the training data left out")
        yield _macro_f1(exam, model, seed)
        if "generate" in exam.asked.scorers:
            yield from _of_writing(exam, model)


def _accuracy(exam: _Exam, model: str, scorer: Scorer, what: str, kept: np.ndarray, note: str) -> Measurement:
    correct = exam.correct(model, scorer)[kept]
    floor = float(np.mean([1 / len(one.options) for one, keep in zip(exam.questions, kept, strict=True) if keep]))
    return _share(exam, model, what, int(correct.sum()), len(correct), scorer, note, floor=floor, ceiling=1.0)


def _share(
    exam: _Exam, model: str, what: str, k: int, n: int, scorer: Scorer, note: str = "", **more: Any
) -> Measurement:
    return Measurement(
        name=what,
        model=model,
        value=k / n,
        interval=wilson(k, n),
        n=n,
        unit="share",
        counted="questions",
        method="; ".join(filter(None, [_how(exam, scorer), note, "Wilson"])),
        **more,
    )


def _how(exam: _Exam, scorer: Scorer) -> str:
    asked = exam.asked
    shots = f"{asked.shots}-shot" if asked.shots else "zero-shot"
    words = scorer == "letter" and all(one.closed for one in exam.questions)
    told = [
        "log-likelihood of yes, no and maybe" if words else _READ[scorer],
        shots,
        f"{len(exam.questions):,} of {exam.read.available:,} questions",
    ]
    if asked.template == "chat":
        told.append("in the chat template")
    if scorer == "generate":
        if asked.chain_of_thought:
            told.append("chain of thought")
        decoding = "greedy" if asked.branches == 1 else f"majority of {asked.branches} branches at T = {TEMPERATURE}"
        told.append(f"{decoding}, at most {exam.budget} tokens")
    if count := sum(exam.truncated(scorer)):
        told.append(f"{count} shortened")
    return ", ".join(told)


def _marked(exam: _Exam) -> str:
    count = int(exam.contaminated.sum())
    return f"{count} of {len(exam.questions)} items stand in the training data" if count else ""


def _majority(exam: _Exam) -> Measurement:
    from reticent.utility.choices import majority

    hits, n = majority([one.labels[one.answer] for one in exam.questions]), len(exam.questions)
    return Measurement(
        name=f"majority[{exam.asked.name}]",
        model="data",
        value=hits / n,
        interval=wilson(hits, n),
        n=n,
        unit="share",
        counted="questions",
        method="always the most frequent right answer; Wilson",
    )


def _macro_f1(exam: _Exam, model: str, seed: int) -> Measurement:
    from reticent.utility.choices import macro_f1

    first = exam.asked.scorers[0]
    found = macro_f1(*exam.classes(model, first), rng=np.random.default_rng([seed, _F1]))
    return Measurement(
        name=f"macro_f1[{exam.asked.name}]",
        model=model,
        value=found.value,
        interval=found.interval,
        n=len(exam.questions),
        unit="F1",
        counted="questions",
        method="; ".join(filter(None, [_how(exam, first), _marked(exam), "bootstrap over questions"])),
        ceiling=1.0,
    )


def _of_writing(exam: _Exam, model: str) -> Iterator[Measurement]:
    """What only written answers have: some cannot be read, and the source system reads them in its own way."""
    from reticent.utility.parsing import as_source, vote

    name, asked = exam.asked.name, exam.asked
    correct, n = exam.correct(model, "generate"), len(exam.questions)
    parsed = sum(choice is not None for choice in exam.chosen[model, "generate"])
    yield _share(exam, model, f"unparsed[{name}]", n - parsed, n, "generate")
    if parsed:
        hits = int(correct.sum())
        note = "over parsed answers only"
        yield _share(exam, model, f"calibrated_accuracy[{name}]", hits, parsed, "generate", note, ceiling=1.0)
    reading = {"shots": asked.shots > 0, "reasoned": asked.chain_of_thought}
    theirs = [
        vote([as_source(text, one.labels, **reading) for text in texts]) == one.answer
        for one, texts in zip(exam.questions, exam.said[model], strict=True)
    ]
    note = "as the source system parses it: the first character, no maybe"
    yield _share(exam, model, f"compat_accuracy[{name}]", sum(theirs), n, "generate", note, ceiling=1.0)


def _counts(exam: _Exam) -> dict[str, int]:
    return {
        "duplicates": exam.read.duplicates,
        "equal_options": exam.read.equal_options,
        "truncated": sum(exam.truncated(exam.asked.scorers[0])),
        "contaminated": int(exam.contaminated.sum()),
    }


def _summary(exam: _Exam) -> dict[str, Any]:
    from reticent.utility.choices import majority, weighted

    first, n = exam.asked.scorers[0], len(exam.questions)
    right = {model: exam.correct(model, first) for model in exam.models}
    return {
        "name": exam.asked.name,
        "questions": n,
        "scorer": first,
        "shots": exam.asked.shots,
        "chance": float(np.mean([1 / len(one.options) for one in exam.questions])),
        "majority": majority([one.labels[one.answer] for one in exam.questions]) / n,
        **_counts(exam),
        "skipped_demonstrations": exam.skipped,
        "weighted": {model: weighted(*exam.classes(model, first))._asdict() for model in exam.models},
        "subjects": _subjects(exam, right),
        "mcnemar": [
            {"one": one, "other": other, **_differing(right[one], right[other])}
            for one, other in combinations(exam.models, 2)
        ],
    }


def _subjects(exam: _Exam, right: dict[str, np.ndarray]) -> dict[str, Any]:
    """Questions and each model's accuracy by subject, where the set has subjects."""
    subjects = np.array([one.subject or "" for one in exam.questions])
    return {
        str(subject): {
            "questions": int((subjects == subject).sum()),
            "accuracy": {model: float(correct[subjects == subject].mean()) for model, correct in right.items()},
        }
        for subject in np.unique(subjects)
        if subject
    }


def _differing(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return {"only_one": only_one, "only_other": only_other, "p_value": mcnemar(only_one, only_other)}
