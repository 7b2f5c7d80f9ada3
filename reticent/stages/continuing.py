"""What a model goes on from, and where its text ends: as the records that it was trained on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from reticent.asked import trained_models
from reticent.data.encode import Encoder, Template
from reticent.errors import RunError
from reticent.run import Run
from reticent.stages.inputs import AnyModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.models.language_model import CausalModel


Finish = Literal["end", "length", "stop"]


class Beginning(NamedTuple):
    """Token ids (n,) int64 of a prompt, n >= 1, and those that end what follows it."""

    ids: np.ndarray
    end: tuple[int, ...]


class Said(NamedTuple):
    """What a model wrote, without its end, and why it ended there."""

    text: str
    finish: Finish


def beginnings(prompts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", template: Template) -> list[Beginning]:
    """``prompts`` as `reticent.data.encode` sets them before a completion; an empty one is the start of a text.

    Raises:
        DataError: The tokenizer has no chat template or no end-of-text token.
    """
    encode = Encoder(tokenizer, template=template, train_on_prompt=False, max_tokens=2**31, long_records="cut")
    filled = iter(encode([(prompt, "") for prompt in prompts if prompt]).tokens)
    end = int(tokenizer.eos_token_id)
    start = end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    found = []
    for prompt in prompts:
        if prompt:
            one = next(filled)
            at = int(np.argmax(one.trained))
            found.append(Beginning(one.ids[:at], tuple(one.ids[at:].tolist())))
        else:
            found.append(Beginning(np.array([start], dtype=np.int64), (end,)))
    return found


def chosen_model(run: Run, name: AnyModel | None) -> AnyModel:
    """``name``, or the private model, or the twin where there is no other; it is there.

    Raises:
        RunError: The run has no such model, or none yet.
    """
    if name == "base":
        return name
    asked = trained_models(run.recipe)
    if name is not None and name not in asked:
        raise RunError(f"{run.folder} has no model {name}: its recipe trains {' and '.join(asked)}; take one of these")
    if not run.finished("train"):
        raise RunError(
            f"{run.folder} has no trained model yet; train it with: reticent train {run.folder} (or take the model "
            "base)"
        )
    return asked[-1] if name is None else name


def context(model: "CausalModel") -> int | None:
    """The most tokens that the model reads; None: it has no bound."""
    found = getattr(model.model.config, "max_position_embeddings", None)
    return None if found is None else int(found)


def decoded(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of a continuation.

    Completions were made into tokens apart from their prompts, and this undoes it: a tokenizer that marks the start of
    a text with a blank does so at the start of a completion too, and no other blank is lost.
    """
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Endings:
    """Where each text ends: at the tokens that end its kind of text, or before a stop string."""

    def __init__(
        self, ends: Sequence[tuple[int, ...]], stop: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        self._ends, self._stop, self._tokenizer = ends, stop, tokenizer
        self._end_of_text = int(tokenizer.eos_token_id)
        # A token is a byte or more, so these last ones hold every stop string that the newest one completes.
        self._window = max((len(one.encode()) for one in stop), default=0) + 8

    @property
    def token(self) -> int:
        """The one token that ends each text, or the end of text: what decoding itself looks for."""
        kinds = set(self._ends)
        only = kinds.pop() if len(kinds) == 1 else ()
        return only[0] if len(only) == 1 else self._end_of_text

    def __call__(self, number: int, ids: np.ndarray) -> bool:
        """Whether the text ``ids`` (n,) so far, of the row ``number``, is at its end."""
        if self._behind(number, ids):
            return True
        if not self._stop or before(decoded(ids[-self._window :].tolist(), self._tokenizer), self._stop) is None:
            return False
        return before(decoded(ids.tolist(), self._tokenizer), self._stop) is not None

    def cut(self, number: int, ids: np.ndarray, finish: Finish) -> Said:
        """The text before its end."""
        behind = self._behind(number, ids)
        text = decoded(ids[: len(ids) - behind].tolist(), self._tokenizer)
        kept = before(text, self._stop)
        if kept is not None:
            return Said(kept, "stop")
        return Said(text, "end" if behind else finish)

    def _behind(self, number: int, ids: np.ndarray) -> int:
        """How many tokens at the end of ``ids`` are no text but its end."""
        for end in (self._ends[number], (self._end_of_text,)):
            if tuple(ids[-len(end) :].tolist()) == end:
                return len(end)
        return 0


def before(text: str, stop: Sequence[str]) -> str | None:
    """``text`` before the first stop string in it; None if there is none."""
    found = [at for one in stop if (at := text.find(one)) >= 0]
    return text[: min(found)] if found else None
