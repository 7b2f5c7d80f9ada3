"""Exact masks, and the law that every token to be trained is trained exactly once."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reticent.data.encode import Encoder, LongRecords, Template, encode
from reticent.errors import DataError
from reticent.tokens import Tokens

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _tokenizer(*, chat: str | None = CHAT, eos: str | None = "<eos>", bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<eos>", "<bos>", "<|user|>", "<|assistant|>", "<|end|>"])
    if bos:
        core.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", core.token_to_id("<bos>"))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token="<bos>" if bos else None)
    tokenizer.chat_template = chat
    return tokenizer


def _encode(prompt: str, completion: str, tokenizer: Any = None, **changes: Any) -> list[Tokens]:
    settings = {"template": "plain", "train_on_prompt": False, "max_tokens": 1000, "long_records": "cut", **changes}
    return encode(prompt, completion, tokenizer or _tokenizer(), **settings)


def _shown(tokens: Tokens, tokenizer: Any = None) -> tuple[str, str]:
    """All of it, and what is trained."""
    tokenizer = tokenizer or _tokenizer()
    return tokenizer.decode(tokens.ids), tokenizer.decode(tokens.ids[tokens.trained])


@pytest.mark.parametrize(
    ("prompt", "changes", "expected"),
    [
        ("ask", {}, ("ask\nsay<eos>", "say<eos>")),
        ("ask", {"train_on_prompt": True}, ("ask\nsay<eos>", "sk\nsay<eos>")),
        ("", {}, ("say<eos>", "ay<eos>")),
        ("", {"template": "chat"}, ("say<eos>", "ay<eos>")),
        ("ask", {"template": "verbatim"}, ("asksay<eos>", "say<eos>")),
        ("ask", {"template": "chat"}, ("<|user|>ask<|end|>\n<|assistant|>say<|end|>", "say<|end|>")),
        ("ask", {"max_tokens": 6}, ("ask\nsa", "sa")),
    ],
)
def test_what_is_encoded_and_what_is_trained(prompt: str, changes: dict[str, Any], expected: tuple[str, str]) -> None:
    (tokens,) = _encode(prompt, "say", **changes)
    assert _shown(tokens) == expected


def test_the_tokenizers_own_first_token_stays_and_the_text_after_it_is_trained() -> None:
    tokenizer = _tokenizer(bos=True)
    assert _shown(_encode("", "say", tokenizer)[0], tokenizer) == ("<bos>say<eos>", "say<eos>")
    assert _shown(_encode("ask", "say", tokenizer)[0], tokenizer) == ("<bos>ask\nsay<eos>", "say<eos>")


def test_a_template_without_an_end_of_turn_ends_with_end_of_text() -> None:
    tokenizer = _tokenizer(chat="{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert _shown(_encode("ask", "say", tokenizer, template="chat")[0])[1] == "say<eos>"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("prompt_length", [0, 1, 5, 30])
def test_split_trains_every_token_exactly_once(
    prompt_length: int, template: Template, train_on_prompt: bool, bos: bool
) -> None:
    tokenizer = _tokenizer(bos=bos)
    prompt, completion = "p" * prompt_length, "".join(chr(33 + i) for i in range(80))  # no character twice
    settings: dict[str, Any] = {"template": template, "train_on_prompt": train_on_prompt}
    (whole,) = _encode(prompt, completion, tokenizer, **settings)
    for max_tokens in (8, 9, 16, 50, 84, 1000):
        pieces = _encode(prompt, completion, tokenizer, **settings, max_tokens=max_tokens, long_records="split")
        assert max(map(len, pieces)) <= max_tokens
        trained = np.concatenate([piece.ids[piece.trained] for piece in pieces])
        assert trained.tolist() == whole.ids[whole.trained].tolist()


def test_pieces_keep_a_short_prompt_and_go_on_after_a_long_one() -> None:
    short = [_shown(p) for p in _encode("ask", "0123456789", max_tokens=8, long_records="split")]
    assert short == [("ask\n0123", "0123"), ("ask\n4567", "4567"), ("ask\n89<eos>", "89<eos>")]
    long = [_shown(p) for p in _encode("a longer ask", "01234567", max_tokens=8, long_records="split")]
    assert long == [("r ask\n01", "01"), ("1234567<eos>", "234567<eos>")]


@pytest.mark.parametrize(
    ("long_records", "pieces", "counts"),
    [
        ("cut", [1, 1, 0], (1, 0, 1)),
        ("split", [1, 3, 2], (0, 2, 0)),
        ("drop", [1, 0, 0], (0, 0, 2)),
    ],
)
def test_counts(long_records: LongRecords, pieces: list[int], counts: tuple[int, int, int]) -> None:
    encode_all = Encoder(
        _tokenizer(), template="plain", train_on_prompt=False, max_tokens=10, long_records=long_records
    )
    encoded = encode_all([("ask", "say"), ("", "0123456789" * 2), ("a longer ask", "say it again")])
    assert encoded.pieces == pieces and len(encoded.tokens) == sum(pieces)
    assert (encoded.cut, encoded.split, encoded.dropped) == counts


class _Slow:
    """A tokenizer without a core of its own, as those written in Python are."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        self.chat_template, self.apply_chat_template = tokenizer.chat_template, tokenizer.apply_chat_template
        self.encode = tokenizer.encode

    def __call__(self, texts: list[str], **settings: Any) -> Any:
        return self._tokenizer(texts, **settings)


@pytest.mark.parametrize("template", ["chat", "plain", "verbatim"])
def test_many_texts_are_encoded_as_one_by_one_and_without_a_core(template: Template) -> None:
    texts = [("ask", "say"), ("", "plain"), ("longer ask", "  say\nit"), ("ask", "é ü <eos> x")]
    settings: dict[str, Any] = {
        "template": template,
        "train_on_prompt": False,
        "max_tokens": 99,
        "long_records": "cut",
    }
    many = Encoder(_tokenizer(), **settings)(texts).tokens
    slow = Encoder(_Slow(_tokenizer()), **settings)(texts).tokens  # type: ignore[arg-type]  # as far as it is used
    for (prompt, completion), one, other in zip(texts, many, slow, strict=True):
        (alone,) = encode(prompt, completion, _tokenizer(), **settings)
        assert one.ids.tolist() == other.ids.tolist() == alone.ids.tolist()
        assert one.trained.tolist() == other.trained.tolist() == alone.trained.tolist()


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(DataError, match=r"no chat template; set data.template: plain"):
        _encode("ask", "say", _tokenizer(chat=None), template="chat")


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    with pytest.raises(DataError, match="no end-of-text token"):
        _encode("ask", "say", _tokenizer(eos=None))
