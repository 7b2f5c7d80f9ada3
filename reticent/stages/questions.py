"""Public questions that every model of a run answers, greedily, so that the answers can stand side by side."""

from math import exp
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np

from reticent.data import catalog
from reticent.data.prompts import read_prompts
from reticent.errors import DataError
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Recipe, Source
from reticent.run import Run
from reticent.stages.attacking import Findings
from reticent.stages.continuing import beginnings, context, decoded
from reticent.stages.inputs import AnyModel
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.models.language_model import CausalModel


class PublicQuestions:
    """The questions of evaluate.questions, as the recipe's records are put to the model; one part of `evaluate`.

    Raises:
        DataError: the file cannot be read, or a question has no text.
    """

    def __init__(self, run: Run, tokenizer: "PreTrainedTokenizerBase", progress: Progress) -> None:
        asked = run.recipe.evaluate.questions
        assert asked is not None
        self._run, self._tokenizer, self._progress = run, tokenizer, progress
        self._path, self._max_new_tokens = Path(asked.path), asked.max_new_tokens
        self._questions = [prompt.text.strip() for prompt in read_prompts(self._path)[: asked.limit]]
        if "" in self._questions:
            raise DataError(
                f"{self._path}: question {self._questions.index('') + 1} has no text; write one, or take the line out"
            )
        frame = _frame(run.recipe)
        posed = [frame.replace("{question}", question) for question in self._questions]
        begun = beginnings(posed, tokenizer, run.recipe.data.template)
        self._prompts = [one.ids for one in begun]
        self._end = begun[0].end[0] if len(begun[0].end) == 1 else tokenizer.eos_token_id
        self._answers: dict[str, list[str]] = {}
        self._perplexity: dict[str, list[dict[str, float | None]]] = {}
        self._measured: list[Measurement] = []

    def ask(self, name: AnyModel, model: "CausalModel") -> None:
        """Answer all questions by one model.

        Raises:
            DataError: a question and its answer are longer than what the model reads.
        """
        from reticent.models.generation import greedy

        self._check(model)
        said = greedy(
            model,
            self._prompts,
            max_new_tokens=self._max_new_tokens,
            end_of_text=self._end,
            progress=self._progress,
        )
        said = [_before(ids, self._tokenizer.eos_token_id) for ids in said]
        self._answers[name] = [decoded(ids.tolist(), self._tokenizer).strip() for ids in said]
        echo, both = self._scored(model, said)
        self._perplexity[name] = [
            {"prompt": _perplexity(prompt), "answer": _perplexity(whole[len(prompt) :]), "both": _perplexity(whole)}
            for prompt, whole in zip(echo, both, strict=True)
        ]
        if all(map(len, echo)):
            self._measured.append(self._echoed(name, echo))

    def findings(self) -> Findings:
        """The perplexity of the questions themselves; the answers are for people to read."""
        return Findings(self._measured, {})

    def write(self) -> None:
        """Store questions and answers beside the data.

        With them, of each answer, the perplexity of the ``prompt`` that is echoed, of the ``answer`` without it, and
        of ``both`` together.
        """
        self._run.write_answers(
            {"questions": self._questions, "answers": self._answers, "perplexity": self._perplexity}
        )

    def _check(self, model: "CausalModel") -> None:
        most = context(model)
        longest = int(np.argmax([len(prompt) for prompt in self._prompts]))
        needed = len(self._prompts[longest]) + self._max_new_tokens
        if most is not None and needed > most:
            raise DataError(
                f"{self._path}: question {longest + 1} and its answer may take {needed} tokens, and the model reads "
                f"{most}; shorten it, or lower evaluate.questions.max_new_tokens"
            )

    def _scored(self, model: "CausalModel", said: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Log-probabilities of the tokens of each prompt, all but its first, and of prompt and answer together."""
        ids = [np.concatenate([prompt, answer]) for prompt, answer in zip(self._prompts, said, strict=True)]
        scores = model.log_probs([Tokens(one, np.arange(len(one)) > 0) for one in ids], self._progress)
        both = [score.logp for score in scores]
        return [logp[: len(prompt) - 1] for prompt, logp in zip(self._prompts, both, strict=True)], both

    def _echoed(self, name: AnyModel, echo: list[np.ndarray]) -> Measurement:
        from reticent.utility.perplexity import perplexity

        rng = np.random.default_rng(self._run.recipe.data.seed)
        found = perplexity(echo, [str(number) for number in range(len(echo))], rng=rng)
        return Measurement(
            name="question_perplexity",
            model=name,
            value=found.value,
            interval=found.interval,
            n=found.owners,
            unit="perplexity",
            counted="public questions",
            method=f"of the echoed prompts, {found.tokens:,} tokens; bootstrap over questions",
        )


def _frame(recipe: Recipe) -> str:
    """What stands around a question in the records: the template of a set of the catalog that holds nothing else."""
    source = recipe.data.source
    if recipe.data.template == "verbatim" and isinstance(source, Source) and source.name is not None:
        prompt, _ = catalog.get(source.name).templates[source.template or "verbatim"]
        if [field for _, field, _, _ in Formatter().parse(prompt) if field is not None] == ["question"]:
            return prompt
    return "{question}"


def _perplexity(logp: np.ndarray) -> float | None:
    return exp(-float(logp.mean(dtype=np.float64))) if len(logp) else None


def _before(ids: np.ndarray, end: Any) -> np.ndarray:
    """What stands before the first ``end``: a model may end a text by that, though its template has another token."""
    found = np.flatnonzero(ids == end)
    return ids[: found[0]] if len(found) else ids
