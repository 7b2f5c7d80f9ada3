"""Talk with a model of a run. What it says may be private text, as what it was trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reticent.data.encode import Template
from reticent.errors import RecipeError
from reticent.progress import SILENT, Progress
from reticent.run import Run
from reticent.stages.continuing import Beginning, Endings, beginnings, chosen_model, context, decoded
from reticent.stages.generate import Asked, check, decoding_of, seed_of
from reticent.stages.inputs import AnyModel, open_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.models.language_model import CausalModel

_UNKNOWN = "\ufffd"  # stands for the bytes of a letter that is not whole yet
# What would command a terminal is not shown there.
_CONTROLS = {code: _UNKNOWN for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


@dataclass(frozen=True)
class _Turn:
    """What was said, what was answered, and the tokens of both."""

    said: str
    begin: Beginning
    ids: list[int]
    text: str


class Chat:
    """A talk with one model, which is loaded once. Make it with `open`.

    With the chat template (of the recipe, or of a base model that comes with one) turns are messages. Otherwise each
    message is a prompt as the records were, and earlier turns stand before it as records that ended.
    """

    def __init__(
        self,
        name: AnyModel,
        model: "CausalModel",
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        asked: Asked,
        progress: Progress,
    ) -> None:
        self.name, self.template = name, template
        self._model, self._tokenizer, self._asked, self._progress = model, tokenizer, asked, progress
        self._turns: list[_Turn] = []
        self._said = 0

    @classmethod
    def open(cls, run: Run, asked: Asked, progress: Progress = SILENT) -> "Chat":
        """With the model and the options of decoding in ``asked``; ``progress`` is told when old turns are forgotten.

        Raises:
            RecipeError: An option is out of its bounds.
            RunError: The run has no such model.
        """
        from reticent.models.load import load_tokenizer

        check(asked)
        name = chosen_model(run, asked.model)
        tokenizer = load_tokenizer(run.recipe.model.base)
        template = run.recipe.data.template
        if name == "base" and tokenizer.chat_template is not None:
            template = "chat"
        return cls(name, open_model(run, name), tokenizer, template, asked, progress)

    def reply(self, message: str) -> Iterator[str]:
        """The answer, piece by piece, each of whole letters. What was said until it is stopped stays in the talk.

        Raises:
            RecipeError: The message alone is longer than what the model reads.
        """
        from reticent.models.generation import continue_tokens

        begin = beginnings([message], self._tokenizer, self.template)[0]
        prompt = self._fitting(message, begin)
        seed = seed_of(self._asked.seed, self._said, 0)
        self._said += 1
        saying = _Saying(begin.end, self._asked.stop, self._tokenizer)
        try:
            for token in continue_tokens(
                self._model, prompt, decoding_of(self._asked), seed=seed, end_of_text=saying.token
            ):
                if piece := saying.add(token):
                    yield piece
                if saying.ended:
                    break
            if rest := saying.rest():
                yield rest
        finally:
            self._turns.append(saying.turn(message, begin))

    def forget(self) -> None:
        """Begin a new talk."""
        self._turns.clear()

    def _fitting(self, message: str, begin: Beginning) -> np.ndarray:
        """The tokens of the whole talk; of as much of its end as the model reads."""
        most = context(self._model)
        before = len(self._turns)
        while True:
            ids = self._ids(message, begin)
            if most is None or len(ids) + self._asked.max_new_tokens <= most:
                break
            if not self._turns:
                raise RecipeError(
                    f"the message has {len(ids)} tokens, and the model reads {most}, max_new_tokens "
                    f"({self._asked.max_new_tokens}) among them; say less, or ask for fewer"
                )
            del self._turns[0]
        if gone := before - len(self._turns):
            self._progress.say(
                f"the talk is longer than the model reads: the first {gone} of {before} turns are forgotten"
            )
        return ids

    def _ids(self, message: str, begin: Beginning) -> np.ndarray:
        if self.template == "chat" and self._turns:
            return _messages([(turn.said, turn.text) for turn in self._turns], message, self._tokenizer)
        parts = [np.array([*turn.begin.ids, *turn.ids, *turn.begin.end], dtype=np.int64) for turn in self._turns]
        return np.concatenate([*parts, begin.ids])


def _messages(turns: Sequence[tuple[str, str]], message: str, tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """Token ids (n,) of a talk in the tokenizer's chat template, the answer to ``message`` opened."""
    talk = [
        {"role": role, "content": content}
        for said, answered in turns
        for role, content in (("user", said), ("assistant", answered))
    ]
    text = tokenizer.apply_chat_template(
        [*talk, {"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    return np.array(tokenizer.encode(str(text), add_special_tokens=False), dtype=np.int64)


class _Saying:
    """An answer that grows by tokens and is shown by letters, never of its end."""

    def __init__(self, end: tuple[int, ...], stop: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> None:
        self._endings, self._end, self._stop = Endings([end], stop, tokenizer), end, stop
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0
        self.ended = False

    @property
    def token(self) -> int:
        """What decoding itself looks for."""
        return self._endings.token

    def add(self, token: int) -> str:
        """What can be shown with this token: no half letter, and nothing that may become an end."""
        self._ids.append(token)
        ids = np.array(self._ids, dtype=np.int64)
        if self._endings(0, ids):
            self.ended = True
            return ""
        text = decoded(self._ids[: len(ids) - _begun(self._ids, self._end)], self._tokenizer).rstrip(_UNKNOWN)
        return self._next(text[: len(text) - max((_begun(text, one) for one in self._stop), default=0)])

    def rest(self) -> str:
        """What is still to be shown when nothing more comes."""
        return self._next(self._text())

    def turn(self, message: str, begin: Beginning) -> _Turn:
        """What stays in the talk."""
        text = self._text()
        ids = self._tokenizer.encode(text, add_special_tokens=False) if self.ended else self._ids
        return _Turn(message, begin, list(ids), text)

    def _text(self) -> str:
        return self._endings.cut(0, np.array(self._ids, dtype=np.int64), "length").text

    def _next(self, text: str) -> str:
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece.translate(_CONTROLS)


def _begun(said: Sequence[int] | str, end: tuple[int, ...] | str) -> int:
    """How many of the last tokens or letters of ``said`` may be the start of ``end``."""
    most = min(len(end) - 1, len(said))
    return next((count for count in range(most, 0, -1) if tuple(said[-count:]) == tuple(end[:count])), 0)
