"""Records to token ids, with the exact mask of what is learned.

The prompt part and the completion part are tokenised apart and joined, so that no token lies on the border and an
option of a multiple-choice question is encoded exactly as it would have been trained. The end-of-text token is always
trained: a model that never learned to stop goes on with somebody else's text.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from reticent.errors import DataError
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["chat", "plain", "verbatim"]
LongRecords = Literal["cut", "split", "drop"]

PROBE = "reticent"  # stands for an answer, to see what a chat template puts behind it


class Encoded(NamedTuple):
    """``tokens`` in the order of the records, of which each has the next ``pieces`` (none: it is left out).

    ``cut``, ``split`` and ``dropped`` count records: shortened (a cut record has lost its end-of-text token), made
    into pieces, and left out for their length or because nothing in them would be trained.
    """

    tokens: list[Tokens]
    pieces: list[int]
    cut: int
    split: int
    dropped: int


class Encoder:
    """Encodes batches of records, all in one way; see `encode`."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: Template,
        train_on_prompt: bool,
        max_tokens: int,
        long_records: LongRecords,
    ) -> None:
        self._frame = _Frame(tokenizer, template)
        self._train_on_prompt = train_on_prompt
        self._max_tokens = max_tokens
        self._long_records: LongRecords = long_records

    def __call__(self, texts: Sequence[tuple[str, str]]) -> Encoded:
        """Prompts and completions, as `encode` does each."""
        tokens: list[Tokens] = []
        counts: list[int] = []
        cut = split = dropped = 0
        for head, body in self._frame.parts(texts):
            pieces = _fit(
                head,
                body,
                train_on_prompt=self._train_on_prompt,
                max_tokens=self._max_tokens,
                long_records=self._long_records,
            )
            tokens += pieces
            counts.append(len(pieces))
            too_long = len(head) + len(body) > self._max_tokens
            dropped += not pieces
            cut += bool(pieces) and too_long and self._long_records == "cut"
            split += bool(pieces) and too_long and self._long_records == "split"
        return Encoded(tokens, counts, cut, split, dropped)


def encode(
    prompt: str,
    completion: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: Template,
    train_on_prompt: bool,
    max_tokens: int,
    long_records: LongRecords,
) -> list[Tokens]:
    """One record as pieces of at most ``max_tokens``: mostly one, none if nothing would be trained.

    "plain" is the prompt, a line break, the completion and the end-of-text token; "verbatim" the same without the line
    break. "chat" is the prompt as the
    tokenizer's chat template opens an answer, the completion, and what the template ends an answer with. An empty
    prompt makes plain text under all: the completion and the end-of-text token. The token that a tokenizer puts
    before every text stays, and the first token is never trained.

    A longer record is cut at its end (and so loses its end-of-text token), left out ("drop"), or split. Pieces of a
    split record repeat a prompt of at most half of ``max_tokens`` and divide the completion; with no or a longer prompt
    they go on where the last one ended, repeating its last token to predict from. Either way each token to be trained
    is trained in exactly one piece.

    Raises:
        DataError: The tokenizer has no chat template or no end-of-text token.
    """
    encoder = Encoder(
        tokenizer,
        template=template,
        train_on_prompt=train_on_prompt,
        max_tokens=max_tokens,
        long_records=long_records,
    )
    return encoder([(prompt, completion)]).tokens


class _Frame:
    """What a tokenizer puts around texts, looked up once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: Template) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-text token (eos_token); set one, or use another model")
        if template == "chat" and tokenizer.chat_template is None:
            raise DataError("the tokenizer has no chat template; set data.template: plain")
        self._tokenizer = tokenizer
        self._template = template
        self._eos: list[int] = [int(tokenizer.eos_token_id)]
        first = tokenizer.encode("", add_special_tokens=True)[:1]
        self._start: list[int] = first if first and first[0] == tokenizer.bos_token_id else []
        self._fast = _core(tokenizer)
        self._chat_end = self._ids([self._behind_answer()])[0] or self._eos if template == "chat" else self._eos

    def parts(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Token ids of each prompt part (empty for plain text) and of each completion part with its end."""
        heads = iter(self._ids([self._head(prompt) for prompt, _ in texts if prompt]))
        bodies = self._ids([completion for _, completion in texts])
        for (prompt, _), body in zip(texts, bodies, strict=True):
            if not prompt:
                yield [], [*self._start, *body, *self._eos]
            elif self._template == "chat":
                yield next(heads), [*body, *self._chat_end]  # the template writes the start token itself
            else:
                yield [*self._start, *next(heads)], [*body, *self._eos]

    def _head(self, prompt: str) -> str:
        if self._template == "chat":
            return self._render([_said("user", prompt)], opens_answer=True)
        return f"{prompt}\n" if self._template == "plain" else prompt

    def _behind_answer(self) -> str:
        talk = self._render([_said("user", "?"), _said("assistant", PROBE)], opens_answer=False)
        # Without the line break after the end-of-turn token: generation has stopped before it.
        return talk[talk.rindex(PROBE) + len(PROBE) :].strip()

    def _render(self, talk: list[dict[str, str]], *, opens_answer: bool) -> str:
        text: Any = self._tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=opens_answer)
        return str(text)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        if self._fast is not None:
            return [one.ids for one in self._fast.encode_batch_fast(texts, add_special_tokens=False)]
        # verbose=False: no warning about the model's longest text; max_tokens decides.
        found = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[list[int]] = found["input_ids"]
        return ids


def _core(tokenizer: "PreTrainedTokenizerBase") -> Any:
    """The tokenizer's own core, where it has one: it encodes many texts at once, on all processors."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        core.no_truncation()
        core.no_padding()
    return core


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _fit(
    head: list[int], body: list[int], *, train_on_prompt: bool, max_tokens: int, long_records: LongRecords
) -> list[Tokens]:
    """The pieces of prompt part ``head`` and completion part ``body`` in which something is trained."""
    assert max_tokens >= 2, max_tokens
    ids = np.array(head + body, dtype=np.int64)
    trained = np.arange(len(ids)) >= (0 if train_on_prompt else len(head))
    trained[0] = False  # nothing stands before it
    if len(ids) <= max_tokens:
        pieces = [Tokens(ids, trained)]
    elif long_records == "drop":
        pieces = []
    elif long_records == "cut":
        pieces = [Tokens(ids[:max_tokens], trained[:max_tokens])]
    elif head and len(head) <= max_tokens // 2:
        prompt, room = np.arange(len(head)), max_tokens - len(head)
        starts = range(len(head), len(ids), room)
        takes = [np.concatenate([prompt, np.arange(start, min(start + room, len(ids)))]) for start in starts]
        pieces = [Tokens(ids[take], trained[take]) for take in takes]
        for piece in pieces[1:]:
            piece.trained[: len(head)] = False  # learned in the first piece, if at all
    else:
        pieces = []
        for start in range(0, len(ids) - 1, max_tokens - 1):
            learned = trained[start : start + max_tokens].copy()
            learned[0] = False  # learned in the piece before
            pieces.append(Tokens(ids[start : start + max_tokens], learned))
    return [piece for piece in pieces if piece.trained.any()]
