"""Prompts of benchmarks: the source system's layout, as tokens, and shortened by rule where the context is too small.

The layout is Meditron's (arXiv 2311.16079), and so are the system texts::

    {system}
    {demonstration}
    The answer is: {answer}

    {question}
    The answer is:

With demonstrations it ends there, without any in a line break, as in the source. A question of options is ``Question:
...``, ``Options:`` and a line for each letter; one of yes, no or maybe is its contexts and the question. Where options
are scored by their text the list is left out, and the text is what goes on (the cloze form of Brown et al. 2020,
arXiv 2005.14165, section 2.4).
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np

from reticent.errors import DataError
from reticent.tokens import Tokens
from reticent.utility.questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Form = Literal["letter", "text", "reasoning"]

ANSWER = "The answer is:"
REASON = "Let's think step by step, and end with: The answer is: {labels}"
_ENTRANCE = (
    "You are a medical doctor answering realworld medical entrance exam questions. Based on your understanding of "
    "basic and clinical science, medical knowledge, and mechanisms underlying health, disease, patient care, and modes "
    "of therapy, answer the following multiple-choice question. Select one correct answer from A to D. Base your "
    "answer on the current and standard practices referenced in medical guidelines."
)
_LICENSING = (
    "You are a medical doctor taking the US Medical Licensing Examination. You need to demonstrate your understanding "
    "of basic and clinical science, medical knowledge, and mechanisms underlying health, disease, patient care, and "
    "modes of therapy. Show your ability to apply the knowledge essential for medical practice. For the following "
    "multiple-choice question, select one correct answer from A to E. Base your answer on the current and standard "
    "practices referenced in medical guidelines."
)
_CLOSED = (
    "As an expert doctor in clinical science and medical knowledge, can you tell me if the following statement is "
    "correct? Answer yes, no, or maybe."
)
SYSTEM = {
    "mmlu-medical": _ENTRANCE,
    "medmcqa": _ENTRANCE,
    "medqa": _LICENSING,
    "medqa4": _LICENSING,
    "pubmedqa": _CLOSED,
}
"""The source system's text for each named set."""


class Layout(NamedTuple):
    """What stands around every question: ``system`` ("": nothing), solved examples, and whether it is a turn of the
    model's chat template."""

    system: str = ""
    demonstrations: tuple[Question, ...] = ()
    chat: bool = False


class Scorable(NamedTuple):
    """A question's options as tokens that share their prompt, and whether something was left out to make room."""

    options: list[Tokens]
    truncated: bool


class Opened(NamedTuple):
    """A prompt to be gone on with, (tokens,) int64, and whether something was left out to make room."""

    ids: np.ndarray
    truncated: bool


def text(question: Question, layout: Layout, form: Form) -> str:
    """The whole prompt, before any chat template.

    ``form``: the answer is a letter (or yes, no or maybe), the option's text, or comes after reasoning.
    """
    solved = [f"{_block(one, form)}\n{_solution(one, form)}" for one in layout.demonstrations]
    cue = REASON.format(labels=_either(question.labels)) if form == "reasoning" else ANSWER
    body = "\n\n".join([*solved, f"{_block(question, form)}\n{cue}"])
    end = "" if layout.demonstrations else "\n"
    return f"{layout.system}\n{body}{end}" if layout.system else body + end


def _block(one: Question, form: Form) -> str:
    context = "".join(f"{part}\n" for part in one.context)
    if one.closed:
        return context + one.question
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(one.labels, one.options, strict=True))
    return f"{context}Question: {one.question}" + ("" if form == "text" else f"\nOptions:\n{listed}")


def _solution(one: Question, form: Form) -> str:
    answer = f"{ANSWER} {(one.options if form == 'text' else one.labels)[one.answer]}"
    return f"{one.reasoning}\n{answer}" if form == "reasoning" and one.reasoning else answer


def _either(labels: Sequence[str]) -> str:
    return f"{', '.join(labels[:-1])} or {labels[-1]}"


class Prompter:
    """Makes tokens of questions, at most ``context`` of them.

    What does not fit is left out in this order, and told: demonstrations, the first one first; the beginning of the
    question's own context, word by word; the system text. Question and options stay.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        first = tokenizer.encode("", add_special_tokens=True)[:1]
        self._start: list[int] = first if first and first[0] == tokenizer.bos_token_id else []

    def options(self, question: Question, layout: Layout, form: Form) -> Scorable:
        """Each option behind the prompt.

        White space at the prompt's end belongs to the option, and what the options' tokens do not all share with the
        prompt's is scored with them: so no token lies on the border.

        Raises:
            DataError: The tokenizer has no chat template, or question and options do not fit.
        """

        def make(question: Question, layout: Layout) -> list[Tokens] | None:
            made = self._pairs(self._render(question, layout, form), self._endings(question, form), layout.chat)
            # The last token predicts nothing, so it needs no place.
            return made if max(map(len, made)) - 1 <= self._context else None

        return Scorable(*self._fitted(question, layout, make))

    def opened(self, question: Question, layout: Layout, form: Form, *, max_new_tokens: int) -> Opened:
        """The prompt, with room for ``max_new_tokens``.

        Raises:
            DataError: As `options`.
        """

        def make(question: Question, layout: Layout) -> np.ndarray | None:
            ids = self._ids(self._render(question, layout, form), layout.chat)
            return np.array(ids, dtype=np.int64) if len(ids) + max_new_tokens - 1 <= self._context else None

        return Opened(*self._fitted(question, layout, make))

    def length(self, answer: str) -> int:
        """Tokens of an answer behind a blank."""
        return len(self._tokenizer.encode(f" {answer}", add_special_tokens=False))

    def _endings(self, question: Question, form: Form) -> tuple[str, ...]:
        return question.options if form == "text" else question.labels

    def _pairs(self, prompt: str, endings: Sequence[str], chat: bool) -> list[Tokens]:
        stem = prompt.rstrip()
        opener = prompt[len(stem) :] or ("" if chat else " ")
        before = self._ids(stem, chat)
        wholes = [self._ids(stem + opener + ending, chat) for ending in endings]
        shared = min(_shared(before, whole) for whole in wholes)
        assert shared, "a prompt has tokens"
        return [Tokens(np.array(one, dtype=np.int64), np.arange(len(one)) >= shared) for one in wholes]

    def _ids(self, prompt: str, chat: bool) -> list[int]:
        # verbose=False: no warning about the model's longest text; `context` decides.
        ids: list[int] = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        return ids if chat else [*self._start, *ids]  # a chat template writes the start token itself

    def _render(self, question: Question, layout: Layout, form: Form) -> str:
        prompt = text(question, layout, form)
        if not layout.chat:
            return prompt
        if self._tokenizer.chat_template is None:
            raise DataError("the tokenizer has no chat template; say template: source for the benchmark")
        turn = [{"role": "user", "content": prompt.rstrip()}]
        return str(self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def _fitted(
        self, question: Question, layout: Layout, make: Callable[[Question, Layout], T | None]
    ) -> tuple[T, bool]:
        """What ``make`` makes of the longest prompt that fits, and whether it is not the whole one."""
        found = make(question, layout)
        if found is not None:
            return found, False
        for first in range(1, len(layout.demonstrations) + 1):
            found = make(question, layout._replace(demonstrations=layout.demonstrations[first:]))
            if found is not None:
                return found, True
        bare = layout._replace(demonstrations=())
        for shell in (bare, bare._replace(system="")):
            found = _shortened(question, shell, make)
            if found is not None:
                return found, True
        raise DataError(
            f"{question.id}: the question with its options is longer than the {self._context} tokens that the model "
            "reads (and writes); leave it out, lower max_new_tokens, or take a model with a longer context"
        )


def _shortened(question: Question, layout: Layout, make: Callable[[Question, Layout], T | None]) -> T | None:
    """What ``make`` makes with as much of the end of the context as fits, by halving: if some fits, less does too."""
    whole = "\n".join(question.context)
    starts = [*(word.start() for word in re.finditer(r"\S+", whole)), len(whole)]

    def cut(place: int) -> T | None:
        context = (whole[starts[place] :],) if starts[place] < len(whole) else ()
        return make(question._replace(context=context), layout)

    low, high, best = 0, len(starts) - 1, cut(len(starts) - 1)
    while best is not None and low < high:
        middle = (low + high) // 2
        found = cut(middle)
        if found is None:
            low = middle + 1
        else:
            high, best = middle, found
    return best


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens they begin with alike; of the second one at least one is left over."""
    pairs = zip(first, second[:-1], strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second) - 1))
