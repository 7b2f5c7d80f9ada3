"""Text from a model, many prompts at once: the most likely, or sampled.

A text that ends makes room for the next prompt at once, which is read in the same pass in which the others get their
next token. A text depends on its prompt, its seed and the decoding, not on what stands beside it (up to the rounding of
floating-point sums, which can turn the choice between two tokens that are all but equally likely).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from reticent.errors import ModelError
from reticent.models.kv_cache import KeyValues, Read, reading
from reticent.models.language_model import CausalModel, Sampling, check_sampling, sampled
from reticent.progress import SILENT, Progress

_AT_ONCE = 4096  # tokens of new prompts after which a pass takes no further one
_ENDLESS = 2**31  # positions of a model that has no bound


class Decoding(NamedTuple):
    """How texts are made of a model's scores.

    ``sampling``: None takes the most likely token each time. ``min_new_tokens``: before these, a text does not end.
    ``repetition_penalty``: the score of a token of the prompt or the text so far is divided by it where positive and
    multiplied by it where negative (Keskar et al. 2019, arXiv:1909.05858, section 4.1, as transformers has it).
    ``frequency_penalty``: taken off a token's score for each time that the text so far has it. Penalties come before
    temperature and truncation.
    """

    max_new_tokens: int
    sampling: Sampling | None = None
    min_new_tokens: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0


class Generated(NamedTuple):
    """What follows one prompt: ``ids`` (tokens,) int64 without the end of text.

    ``finish``: "end", the model ended the text; "stop", the caller did; "length", ``max_new_tokens`` are said, or the
    model's positions are used up.
    """

    ids: np.ndarray
    finish: Literal["end", "length", "stop"]


def greedy(
    model: CausalModel,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    end_of_text: int | None,
    batch: int = 16,
    frequency_penalty: float = 0.0,
    progress: Progress = SILENT,
) -> list[np.ndarray]:
    """The most likely continuation of each prompt, (tokens,) int64, up to and without ``end_of_text``.

    Token for token what `TokenScores.hit` calls the most likely. ``frequency_penalty`` is taken off a token's logit for
    each time it was already said; what comes out is then no longer the most likely text.

    Raises:
        ModelError, ValueError: as `stream`.
    """
    decoding = Decoding(max_new_tokens, frequency_penalty=frequency_penalty)
    return _all(model, prompts, decoding, [0] * len(prompts), end_of_text, batch, progress)


def sample(
    model: CausalModel,
    prompts: Sequence[np.ndarray],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    end_of_text: int | None,
    batch: int = 32,
    progress: Progress = SILENT,
) -> list[np.ndarray]:
    """One sampled continuation of each prompt, (tokens,) int64, up to and without ``end_of_text``.

    The same for the same ``seed`` (below 2**64), prompt and place among the prompts.

    Raises:
        ModelError, ValueError: as `stream`.
    """
    seeds = [(number << 64) + seed for number in range(len(prompts))]
    return _all(model, prompts, Decoding(max_new_tokens, sampling), seeds, end_of_text, batch, progress)


def _all(
    model: CausalModel,
    prompts: Sequence[np.ndarray],
    decoding: Decoding,
    seeds: Sequence[int],
    end_of_text: int | None,
    batch: int,
    progress: Progress,
) -> list[np.ndarray]:
    texts = stream(model, prompts, decoding, seeds=seeds, end_of_text=end_of_text, batch=batch, progress=progress)
    found = dict(texts)
    return [found[number].ids for number in range(len(prompts))]


def stream(
    model: CausalModel,
    prompts: Sequence[np.ndarray],
    decoding: Decoding,
    *,
    seeds: Sequence[int],
    end_of_text: int | None,
    stop: Callable[[int, np.ndarray], bool] | None = None,
    batch: int = 16,
    progress: Progress = SILENT,
) -> Iterator[tuple[int, Generated]]:
    """Each prompt's number and text, as it is finished; prompts are begun in order, ``batch`` texts at once.

    ``seeds``: one for each prompt, from 0 to 2**128 - 1; the text draws one number for each token from
    Philox(key=seed); unused if greedy. ``stop``: asked after each token with the prompt's number and the tokens so far,
    which it must not keep; True ends the text, and those tokens are the text. Between texts the model is as before.

    Raises:
        ModelError: a prompt leaves no room in the model's positions, or the model gives scores that are not finite.
        ValueError: a prompt is empty, seeds and prompts differ in number, or a number of ``decoding`` or ``batch`` is
            out of its bounds.
    """
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    inner, limit = _checked(model, prompts, decoding, seeds)
    texts = (_text(n, prompts[n], decoding, seeds[n], limit) for n in range(len(prompts)))  # when there is room
    writer = _Writer(inner, decoding, end_of_text, stop, min(batch, len(prompts)))
    return _streamed(inner, writer, texts, len(prompts), progress)


def _streamed(
    inner: PreTrainedModel, writer: "_Writer", waiting: Iterator["_Text"], count: int, progress: Progress
) -> Iterator[tuple[int, Generated]]:
    with progress.task("generating", total=count) as task:
        while count:
            ended: list[_Text] = []
            with reading(inner):  # whoever takes a text may use the model for something else
                while not ended:
                    ended = writer.step(waiting)
            count -= len(ended)
            for text in ended:
                task.advance()
                assert text.finish is not None
                yield text.number, Generated(text.said.copy(), text.finish)


def continue_tokens(
    model: CausalModel, prompt: np.ndarray, decoding: Decoding, *, seed: int, end_of_text: int | None
) -> Iterator[int]:
    """The tokens of one text, each as it is said; without ``end_of_text``. Between tokens the model is as before.

    Raises:
        ModelError, ValueError: as `stream`.
    """
    inner, limit = _checked(model, [prompt], decoding, [seed])
    writer, text = _Writer(inner, decoding, end_of_text, None, 1), _text(0, prompt, decoding, seed, limit)
    waiting = iter([text])
    while text.finish is None:
        before = text.size
        with reading(inner):
            writer.step(waiting)
        yield from text.ids[before : text.size].tolist()


def _checked(
    model: CausalModel, prompts: Sequence[np.ndarray], decoding: Decoding, seeds: Sequence[int]
) -> tuple[PreTrainedModel, int]:
    """The model without what wraps it, and the tokens of a prompt and its text that it reads at most."""
    _check(decoding)
    if len(seeds) != len(prompts):
        raise ValueError(f"there must be a seed for each prompt, got {len(seeds)} for {len(prompts)} prompts")
    if empty := sum(len(prompt) == 0 for prompt in prompts):
        raise ValueError(f"a prompt must hold a token, and {empty} of {len(prompts)} hold none")
    inner: Any = model.model
    if hasattr(inner, "get_base_model"):  # of peft
        inner = inner.get_base_model()
    limit = getattr(inner.config.get_text_config(), "max_position_embeddings", None) or _ENDLESS
    if long := [len(prompt) for prompt in prompts if len(prompt) >= limit]:
        raise ModelError(
            f"{len(long)} of {len(prompts)} prompts leave the model no room to go on: it reads at most {limit} tokens, "
            f"and the longest has {max(long)}. Shorten them, or use a model that reads more."
        )
    return inner, limit


def _check(decoding: Decoding) -> None:
    most = decoding.max_new_tokens
    if most < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {most}")
    if not 0 <= decoding.min_new_tokens <= most:
        raise ValueError(f"min_new_tokens must be from 0 to max_new_tokens, {most}, got {decoding.min_new_tokens}")
    if not decoding.repetition_penalty > 0:
        raise ValueError(f"repetition_penalty must be above 0, got {decoding.repetition_penalty}")
    if decoding.sampling is not None:
        check_sampling(decoding.sampling)


# ------------------------------------------------------------------------------------------------------------ texts


@dataclass
class _Text:
    """A prompt and what is said after it: the first ``size`` of ``ids``, of which the cache holds ``read``."""

    number: int
    ids: np.ndarray
    prompt: int
    size: int
    chance: np.random.Generator | None
    read: int = 0
    finish: Literal["end", "length", "stop"] | None = None

    @property
    def said(self) -> np.ndarray:
        """Tokens after the prompt."""
        return self.ids[self.prompt : self.size]

    @property
    def known(self) -> np.ndarray:
        """The prompt, and what was said."""
        return self.ids[: self.size]


def _text(number: int, prompt: np.ndarray, decoding: Decoding, seed: int, limit: int) -> _Text:
    size = len(prompt)
    ids = np.empty(min(size + decoding.max_new_tokens, limit), dtype=np.int64)
    ids[:size] = prompt
    chance = None if decoding.sampling is None else np.random.Generator(np.random.Philox(key=seed))
    return _Text(number, ids, size, size, chance)


class _Writer:
    """Up to ``batch`` texts that are written at once; each stands in the slot of its place among them."""

    def __init__(
        self,
        model: PreTrainedModel,
        decoding: Decoding,
        end_of_text: int | None,
        stop: Callable[[int, np.ndarray], bool] | None,
        batch: int,
    ) -> None:
        self._decoding, self._end, self._stop, self._batch = decoding, end_of_text, stop, batch
        self._kept = KeyValues(model, batch)
        self.texts: list[_Text] = []

    def step(self, waiting: Iterator[_Text]) -> list[_Text]:
        """One token for each text, new ones from ``waiting`` among them; those that ended with it."""
        self._take(waiting)
        reads = [Read(slot, text.read, text.ids[text.read : text.size]) for slot, text in enumerate(self.texts)]
        for text, token in zip(self.texts, self._choose(self._kept.logits(reads)), strict=True):
            self._say(text, token)
        ended = [text for text in self.texts if text.finish is not None]
        for slot in reversed(range(len(self.texts))):
            if self.texts[slot].finish is not None:
                last = self.texts.pop()
                if slot < len(self.texts):
                    self.texts[slot] = last
                    self._kept.move(len(self.texts), slot, last.read)
        return ended

    def _take(self, waiting: Iterator[_Text]) -> None:
        fresh = 0
        while len(self.texts) < self._batch and fresh < _AT_ONCE:
            if (text := next(waiting, None)) is None:
                break
            fresh += text.size
            self.texts.append(text)

    def _say(self, text: _Text, token: int) -> None:
        text.read = text.size
        if token == self._end:
            text.finish = "end"
            return
        text.ids[text.size] = token
        text.size += 1
        if self._stop is not None and self._stop(text.number, text.said):
            text.finish = "stop"
        elif text.size == len(text.ids):
            text.finish = "length"

    def _choose(self, logits: torch.Tensor) -> list[int]:
        """A token for each text from its scores, (texts, vocabulary), which are changed."""
        best = logits.argmax(1)
        if not logits.gather(1, best[:, None]).isfinite().all():  # what is not a number counts as the largest
            raise ModelError(
                "the model gives scores that are not finite, so it is broken: its training diverged or its weights are "
                "damaged. Train it again (a lower learning rate, or model.dtype: float32), or load other weights."
            )
        sampling = self._decoding.sampling
        if self._adjust(logits):
            best = logits.argmax(1)
        if sampling is None:
            return list(map(int, best.tolist()))
        drawn = [text.chance.random() for text in self.texts if text.chance is not None]
        return _drawn(sampled(logits, sampling), torch.tensor(drawn, dtype=torch.float64, device=logits.device))

    def _adjust(self, logits: torch.Tensor) -> bool:
        """Penalties and the least length, in place; whether there were any."""
        _, _, least, repetition, frequency = self._decoding
        if repetition != 1:
            at = _places([np.unique(text.known) for text in self.texts], logits.device)
            scores = logits[at]
            logits[at] = torch.where(scores < 0, scores * repetition, scores / repetition)
        if frequency:
            found = [np.unique(text.said, return_counts=True) for text in self.texts]
            counts = torch.from_numpy(np.concatenate([count for _, count in found])).to(logits)
            logits[_places([tokens for tokens, _ in found], logits.device)] -= frequency * counts
        short = [slot for slot, text in enumerate(self.texts) if len(text.said) < least]
        if short and self._end is not None:
            logits[short, self._end] = -torch.inf
        return bool(repetition != 1 or frequency or short)


def _places(tokens: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The row and the column of each token of each text."""
    rows = np.repeat(np.arange(len(tokens)), [len(one) for one in tokens])
    return torch.from_numpy(rows).to(device), torch.from_numpy(np.concatenate(tokens)).to(device)


def _drawn(logp: torch.Tensor, uniform: torch.Tensor) -> list[int]:
    """The first token of each row up to which there is more than ``uniform`` of the probability."""
    reached = logp.double().exp_().cumsum_(1)
    # Below the whole even after rounding, as the numbers are below 1: never a token that has no probability.
    return list(map(int, torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)[:, 0].tolist()))
