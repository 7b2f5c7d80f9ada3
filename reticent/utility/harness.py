"""A model as lm-eval's tasks ask for it: log-likelihoods of continuations and of texts, and text up to a stop string.

Needs the extra ``lm-eval``: import this module only where it is asked for. What is the same for several requests, such
as a question with its options or the demonstrations in front of all questions, is computed once; nothing is padded.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from reticent.errors import ModelError
from reticent.models.generation import Decoding, stream
from reticent.models.language_model import CausalModel, Sampling, TokenScores
from reticent.progress import SILENT, Progress
from reticent.tokens import Tokens

_NEW_TOKENS = 256  # where a task does not say how many, as lm-eval's own models


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """``model`` and ``tokenizer`` for `lm_eval.simple_evaluate(model=...)`.

    Requests longer than ``max_tokens`` (None: the model's context) lose their beginning. ``seed``: for tasks that
    sample, below 2**64. ``batch``: texts generated at once.
    """

    def __init__(
        self,
        model: CausalModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int | None = None,
        seed: int = 0,
        batch: int = 16,
        progress: Progress = SILENT,
    ) -> None:
        super().__init__()
        self._model, self.tokenizer, self._seed, self._batch, self._progress = model, tokenizer, seed, batch, progress
        self.max_length = max_tokens or int(resolve_max_length(model.model.config, tokenizer))
        self._device = model.model.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ModelError("the tokenizer has no end-of-text token (eos_token), and lm-eval's tasks need one")
        return int(end)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """Tells lm-eval's caches of requests apart."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's own template writes it; without it, the last message stays open."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; the tokenizer's own beginning is added unless the text has it."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        said = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, verbose=False, **said)  # `max_length` decides
        return ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of each continuation, and whether greedy decoding would say it."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood (nats) of each whole text, window by window if it is longer than the context."""
        windows = [
            (number, make_disjoint_window(window))
            for number, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
        ]
        scores = self._loglikelihood_tokens([(("", ""), *window) for _, window in windows])
        sums = [0.0] * len(requests)
        for (number, _), (logp, _) in zip(windows, scores, strict=True):
            sums[number] += logp
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        records = [self._record(context, continuation) for _, context, continuation in requests]
        return [_summed(scores) for scores in self._model.log_probs(records, self._progress)]

    def _record(self, context: list[int], continuation: list[int]) -> Tokens:
        """The model reads at most ``max_length`` tokens; the last one it is only asked for."""
        if not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"a continuation must have 1 to {self.max_length} tokens (the model's context), got {len(continuation)}"
            )
        ids = np.array([*context, *continuation][-(self.max_length + 1) :], dtype=np.int64)
        return Tokens(ids, np.arange(len(ids)) >= len(ids) - len(continuation))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """What the model writes behind each context, up to the first of the task's stop strings."""
        found: dict[int, str] = {}
        settings = [normalize_gen_kwargs(request.args[1], _NEW_TOKENS) for request in requests]
        for asked in {repr(setting): setting for setting in settings}.values():
            numbers = [number for number, setting in enumerate(settings) if setting == asked]
            room = self.max_length - asked["max_gen_toks"]
            if room < 1:
                raise ValueError(
                    f"max_gen_toks must be under {self.max_length} (the model's context), got {asked['max_gen_toks']}"
                )
            prompts = [self._prompt(requests[number].args[0], room) for number in numbers]
            stops = [stop for stop in (*asked["until"], self.tokenizer.decode([self.eot_token_id])) if stop]
            texts = stream(
                self._model,
                prompts,
                _decoding(asked),
                seeds=[(number << 64) + self._seed for number in numbers],
                end_of_text=self.eot_token_id,
                stop=partial(self._stops, stops),
                batch=self._batch,
                progress=self._progress,
            )
            for place, text in texts:
                whole = self.tokenizer.decode(text.ids, skip_special_tokens=True)
                found[numbers[place]] = postprocess_generated_text(whole, stops, None)
        return [found[number] for number in range(len(requests))]

    def _prompt(self, context: str, room: int) -> np.ndarray:
        return np.array(self.tok_encode(context)[-room:] or [self.prefix_token_id], dtype=np.int64)

    def _stops(self, stops: Sequence[str], number: int, ids: np.ndarray) -> bool:
        """Whether a stop string stands in the last tokens; each is at least one byte long."""
        most = max(len(stop.encode()) for stop in stops) + 4  # a letter whose bytes are several tokens
        tail = self.tokenizer.decode(ids[-most:], skip_special_tokens=True)
        return any(stop in tail for stop in stops)


def _summed(scores: TokenScores) -> tuple[float, bool]:
    return float(scores.logp.sum(dtype=np.float64)), bool(scores.hit.all())


def _decoding(asked: dict[str, Any]) -> Decoding:
    if not asked["do_sample"]:
        return Decoding(asked["max_gen_toks"])
    return Decoding(
        asked["max_gen_toks"], Sampling(asked["temperature"], asked.get("top_k") or None, asked.get("top_p"))
    )
