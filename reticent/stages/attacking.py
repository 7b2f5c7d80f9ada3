"""What every attack of the audit is given, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reticent.data.canary import Canary
from reticent.data.record import Record
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Recipe
from reticent.run import Run
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.data.encode import Encoded


class Scored(NamedTuple):
    """Scores of one attack on one model, higher = more likely a member, for the table of all scores.

    ``ids``: whose, a unit of privacy each, never its own name; ``groups``: "in", "out" or "calibration"; ``copies``:
    times trained on.
    """

    attack: str
    ids: Sequence[str]
    groups: Sequence[str]
    copies: Sequence[int]
    scores: np.ndarray


class Findings(NamedTuple):
    """Numbers for the table, points to draw by the plot's name, and scores behind them.

    ``private``: plain values that may hold text of records, for a file beside the data and nowhere else.
    """

    measurements: list[Measurement]
    plots: dict[str, Any]
    scored: Sequence[Scored] = ()
    private: Sequence[Any] = ()


class Texts(NamedTuple):
    """Real records with their units of privacy: (records,) each. Planted canaries are not among them."""

    records: list[Record]
    units: list[str]


@dataclass(frozen=True, eq=False)
class Audited:
    """A run under audit.

    ``secrets`` and ``members`` are the canaries of both roles, with the copies that were trained on; empty where there
    is nothing to compare. ``trained`` and ``held_out`` are real records, a sample drawn by data.seed over whole units.
    ``calibration``: records that only set thresholds; may be empty.
    """

    run: Run
    tokenizer: "PreTrainedTokenizerBase"
    secrets: Sequence[Canary]
    members: Sequence[Canary]
    trained: Texts
    held_out: Texts
    calibration: Texts
    progress: Progress

    @property
    def recipe(self) -> Recipe:
        """What was asked."""
        return self.run.recipe

    def rng(self, stream: int) -> np.random.Generator:
        """Chance of one part of the audit: the same for the same recipe. Privacy never hangs on it."""
        return np.random.default_rng([self.recipe.data.seed, 60, stream])

    def encode(self, texts: Texts) -> "Encoded":
        """Texts as tokens, as they are learned; long ones may be several (``pieces``)."""
        from reticent.stages.inputs import encoder

        return encoder(self.recipe, self.tokenizer)([(record.prompt, record.completion) for record in texts.records])

    def without_end(self, whole: Tokens, completion: str) -> Tokens:
        """Prompt and ``completion`` as they are learned, ``whole``, without what ends the text."""
        end = int(np.argmax(whole.trained)) + len(self.tokenizer.encode(completion, add_special_tokens=False))
        return Tokens(whole.ids[:end], whole.trained[:end])

    def encode_answers(self, answers: Sequence[tuple[str, str]]) -> list[Tokens]:
        """Prompts with completions, as they would have been learned; only the completions' tokens count."""
        from reticent.stages.inputs import encode_answers

        return encode_answers(self.recipe, answers, self.tokenizer)
