"""Prompts of benchmarks, to the character and to the token; what goes first when there is no room."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reticent.errors import DataError
from reticent.utility.exam_prompts import SYSTEM, Layout, Prompter, text
from reticent.utility.questions import Question

RED = Question("1", "Which is red?", ("sky", "rose"), 1, reasoning="Not the sky.")
BLUE = Question("2", "Which is blue?", ("sky", "rose"), 0)
MAY = Question("3", "Does it rain?", ("yes", "no", "maybe"), 2, ("Clouds came.", "Wind too."))


def _tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    """Its tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=more.pop("merges", [])))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", **more)


TOKENIZER = _tokenizer()


def _said(ids: np.ndarray) -> str:
    return str(TOKENIZER.decode(ids.tolist()))


def test_zero_shot_is_the_sources_to_the_character() -> None:
    assert text(RED, Layout("Be right."), "letter") == (
        "Be right.\nQuestion: Which is red?\nOptions:\nA. sky\nB. rose\nThe answer is:\n"
    )


def test_few_shot_is_the_sources_to_the_character() -> None:
    assert text(BLUE, Layout("Be right.", (RED, BLUE)), "letter") == (
        "Be right.\nQuestion: Which is red?\nOptions:\nA. sky\nB. rose\nThe answer is: B\n\n"
        "Question: Which is blue?\nOptions:\nA. sky\nB. rose\nThe answer is: A\n\n"
        "Question: Which is blue?\nOptions:\nA. sky\nB. rose\nThe answer is:"
    )


def test_a_closed_question_is_its_contexts_and_itself() -> None:
    assert text(MAY, Layout("", (MAY,)), "letter") == (
        "Clouds came.\nWind too.\nDoes it rain?\nThe answer is: maybe\n\nClouds came.\nWind too.\nDoes it rain?\n"
        "The answer is:"
    )


def test_without_letters_the_options_are_not_listed() -> None:
    assert text(BLUE, Layout("", (RED,)), "text") == (
        "Question: Which is red?\nThe answer is: rose\n\nQuestion: Which is blue?\nThe answer is:"
    )


def test_reasoning_stands_before_a_solved_answer() -> None:
    assert text(BLUE, Layout("", (RED,)), "reasoning") == (
        "Question: Which is red?\nOptions:\nA. sky\nB. rose\nNot the sky.\nThe answer is: B\n\n"
        "Question: Which is blue?\nOptions:\nA. sky\nB. rose\n"
        "Let's think step by step, and end with: The answer is: A or B"
    )


def test_every_named_set_has_the_sources_system_text() -> None:
    assert SYSTEM["mmlu-medical"] == SYSTEM["medmcqa"] != SYSTEM["medqa"] == SYSTEM["medqa4"]
    assert SYSTEM["medmcqa"].startswith("You are a medical doctor answering realworld medical entrance exam questions.")
    assert SYSTEM["medqa"].startswith("You are a medical doctor taking the US Medical Licensing Examination.")
    assert SYSTEM["pubmedqa"] == (
        "As an expert doctor in clinical science and medical knowledge, can you tell me if the following statement is "
        "correct? Answer yes, no, or maybe."
    )


@pytest.mark.parametrize(
    ("layout", "form", "endings"),
    [
        (Layout("S", (BLUE,)), "letter", [" A", " B"]),
        (Layout("S"), "letter", ["\nA", "\nB"]),
        (Layout("S", (BLUE,)), "text", [" sky", " rose"]),
    ],
)
def test_what_counts_is_the_answer_with_the_blank_before_it(layout: Layout, form: Any, endings: list[str]) -> None:
    made = Prompter(TOKENIZER, context=1000).options(RED, layout, form)
    assert [_said(one.ids[one.trained]) for one in made.options] == endings
    assert [_said(one.ids[~one.trained]) for one in made.options] == [text(RED, layout, form).rstrip()] * 2
    assert not made.truncated


def test_a_token_on_the_border_is_scored_for_all_options() -> None:
    """With ": " merged where an A follows, the options share one token less with the prompt."""
    tokenizer = _tokenizer()
    ids = {"stem": [1, 2, 3], "A": [1, 2, 9], "B": [1, 2, 3, 7]}

    class Merging(Prompter):
        def _ids(self, prompt: str, chat: bool) -> list[int]:
            return ids.get(prompt[-1], ids["stem"])

    made = Merging(tokenizer, context=100).options(RED, Layout(), "letter")
    assert [one.trained.tolist() for one in made.options] == [[False, False, True], [False, False, True, True]]


def test_a_tokenizers_start_token_comes_first() -> None:
    tokenizer = _tokenizer(bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    made = Prompter(tokenizer, context=1000).options(RED, Layout(), "letter")
    assert [one.ids.tolist().count(tokenizer.bos_token_id) for one in made.options] == [1, 1]
    assert made.options[0].ids[0] == tokenizer.bos_token_id


def test_a_chat_template_takes_the_whole_prompt_as_one_turn() -> None:
    tokenizer = _tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    made = Prompter(tokenizer, context=1000).options(RED, Layout("S", chat=True), "letter")
    assert [_said(one.ids) for one in made.options] == [
        f"<user>S\nQuestion: Which is red?\nOptions:\nA. sky\nB. rose\nThe answer is:<assistant>{letter}"
        for letter in "AB"
    ]


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(DataError, match="no chat template; say template: source"):
        Prompter(TOKENIZER, context=1000).options(RED, Layout(chat=True), "letter")


# No room.

LAYOUT = Layout("System.", (RED, BLUE))


def _cut(context: int, question: Question = MAY) -> str:
    """The prompt that is left in so many tokens, which are bytes; what is written after it takes 5."""
    made = Prompter(TOKENIZER, context=context).opened(question, LAYOUT, "letter", max_new_tokens=5)
    assert len(made.ids) + 4 <= context
    assert made.truncated == (len(made.ids) < len(text(question, LAYOUT, "letter")))
    return _said(made.ids)


def test_what_fits_stays() -> None:
    whole = text(MAY, LAYOUT, "letter")
    assert _cut(len(whole) + 4) == whole


def test_demonstrations_go_first_and_the_first_one_before_all() -> None:
    whole = text(MAY, LAYOUT, "letter")
    assert _cut(len(whole) + 3) == text(MAY, Layout("System.", (BLUE,)), "letter")


def test_then_the_beginning_of_the_context_goes_word_by_word() -> None:
    bare = text(MAY, Layout("System."), "letter")
    for context in range(len(bare) + 4, 60, -1):
        kept = _cut(context)
        assert kept.endswith("Does it rain?\nThe answer is:\n")
    assert _cut(len(bare) + 3) == bare.replace("Clouds ", "")
    assert _cut(len(bare) + 3 - len("Clouds ")) == bare.replace("Clouds came.\n", "")


def test_then_the_system_text_goes_and_the_question_stays() -> None:
    question = text(MAY._replace(context=()), Layout(), "letter")
    assert _cut(len(question) + 4) == question
    with pytest.raises(DataError, match=f"3: the question with its options is longer than the {len(question) + 3} tok"):
        _cut(len(question) + 3)


def test_options_fit_up_to_the_last_token_which_needs_no_place() -> None:
    longest = len(text(RED, Layout(), "text").rstrip()) + len("\nrose") - 1
    assert not Prompter(TOKENIZER, context=longest).options(RED, Layout(), "text").truncated
    with pytest.raises(DataError, match="longer than"):
        Prompter(TOKENIZER, context=longest - 1).options(RED, Layout(), "text")


def test_a_shortened_context_keeps_its_lines() -> None:
    long = MAY._replace(context=("a b", "c d", "e"))
    layout = Layout()
    whole = text(long, layout, "letter")
    made = Prompter(TOKENIZER, context=len(whole) - 1).opened(long, layout, "letter", max_new_tokens=1)
    assert _said(made.ids) == whole.removeprefix("a ")
