"""A talk with the models of a tiny run."""

import pytest

from reticent.errors import RecipeError, RunError
from reticent.models import generation
from reticent.models.language_model import CausalModel
from reticent.models.load import load, load_tokenizer
from reticent.progress import SILENT, Progress
from reticent.stages.chat import Chat
from reticent.stages.continuing import beginnings
from reticent.stages.generate import Asked

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Told(Progress):
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


@pytest.fixture(scope="module")
def loaded(model):
    return CausalModel(load(str(model)).model), load_tokenizer(str(model))


@pytest.fixture
def talk(loaded, monkeypatch):
    """Makes a talk with a model that says what it is told to, and writes down the prompts that it was given."""

    def make(*answers, template="plain", progress=SILENT, **options):
        model, tokenizer = loaded
        tokenizer.chat_template = TEMPLATE
        left, given = iter(answers), []

        def said(model, prompt, decoding, *, seed, end_of_text):
            given.append((tokenizer.decode(prompt), seed))
            for token in tokenizer.encode(next(left))[: decoding.max_new_tokens]:
                if token == end_of_text:
                    return
                yield token

        monkeypatch.setattr(generation, "continue_tokens", said)
        asked = Asked(**{"max_new_tokens": 200, **options})
        return Chat("private", model, tokenizer, template, asked, progress), given

    return make


def test_an_answer_comes_in_whole_letters(talk):
    chat, _ = talk("né 🙂 done</s>never")
    pieces = list(chat.reply("Q"))
    assert "".join(pieces) == "né 🙂 done"
    assert "🙂" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_letter_that_stays_half_is_shown_as_such_at_the_end(loaded):
    model, tokenizer = loaded
    half = tokenizer.encode("é")[:1]
    chat = Chat("private", model, tokenizer, "plain", Asked(max_new_tokens=5), SILENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "continue_tokens", lambda *_, **__: iter([*tokenizer.encode("a"), *half]))
        assert list(chat.reply("Q")) == ["a", "\ufffd"]


def test_in_the_chat_template_turns_are_messages(talk):
    chat, given = talk("one</s>", "two</s>", template="chat")
    for message in ("A", "B"):
        list(chat.reply(message))
    assert [prompt for prompt, _ in given] == [
        "[user]A</s>[assistant]",
        "[user]A</s>[assistant]one</s>[user]B</s>[assistant]",
    ]


def test_a_first_message_is_given_as_records_are(talk, loaded):
    for template in ("chat", "plain", "verbatim"):
        chat, given = talk("one</s>", template=template)
        list(chat.reply("A message"))
        [begin] = beginnings(["A message"], loaded[1], template)
        assert given[0][0] == loaded[1].decode(begin.ids)


def test_without_a_chat_template_earlier_turns_are_records_that_ended(talk):
    chat, given = talk("one</s>", "two</s>")
    for message in ("A", "B"):
        list(chat.reply(message))
    assert given[1][0] == "A\none</s>B\n"


def test_forgetting_begins_anew(talk):
    chat, given = talk("one</s>", "two</s>")
    list(chat.reply("A"))
    chat.forget()
    list(chat.reply("B"))
    assert given[1][0] == "B\n"


def test_each_turn_has_a_seed_of_its_own(talk):
    chat, given = talk("one</s>", "two</s>")
    for message in ("A", "B"):
        list(chat.reply(message))
    assert given[0][1] != given[1][1]


def test_what_was_said_before_it_was_stopped_stays(talk):
    chat, given = talk("one</s>", "two</s>")
    answer = chat.reply("A")
    assert next(answer) + next(answer) == "on"
    answer.close()
    list(chat.reply("B"))
    assert given[1][0] == "A\non</s>B\n"


def test_a_talk_that_is_too_long_loses_its_oldest_turns_and_says_so(talk):
    told = Told()
    chat, given = talk("x" * 150, "y" * 150, "z</s>", progress=told, max_new_tokens=200)
    for message in ("A" * 300, "B" * 300, "C" * 300):
        list(chat.reply(message))
    assert given[1][0].startswith("A")
    assert given[2][0] == "B" * 300 + "\n" + "y" * 150 + "</s>" + "C" * 300 + "\n"
    assert told.lines == ["the talk is longer than the model reads: the first 1 of 2 turns are forgotten"]


def test_a_message_that_is_too_long_by_itself_is_refused_and_not_kept(talk):
    chat, given = talk("one</s>")
    with pytest.raises(RecipeError, match="the message has 1001 tokens, and the model reads 1024"):
        list(chat.reply("A" * 1000))
    list(chat.reply("B"))
    assert given[0][0] == "B\n"


def test_an_end_of_several_tokens_is_never_shown(loaded):
    model, tokenizer = loaded
    tokenizer.chat_template = TEMPLATE.replace("</s>", "|end|")
    chat = Chat("private", model, tokenizer, "chat", Asked(max_new_tokens=50), SILENT)
    with pytest.MonkeyPatch.context() as patch:
        ids = tokenizer.encode("a |e|end|more")
        patch.setattr(generation, "continue_tokens", lambda *_, **__: iter(ids))
        pieces = list(chat.reply("Q"))
    assert "".join(pieces) == "a |e"


def test_a_stop_string_ends_the_answer_and_no_part_of_it_is_shown(talk):
    chat, given = talk("a\nUs and\nUser: more", "two</s>", stop=("\nUser:",))
    pieces = list(chat.reply("A"))
    assert "".join(pieces) == "a\nUs and"
    assert not any(piece.startswith("\nU") and len(piece) == 2 for piece in pieces)
    list(chat.reply("B"))
    assert given[1][0] == "A\na\nUs and</s>B\n"


def test_what_would_command_a_terminal_is_not_shown(talk):
    chat, given = talk("a\x1b[2J\n\tb</s>", "two</s>")
    assert "".join(chat.reply("A")) == "a\ufffd[2J\n\tb"
    list(chat.reply("B"))
    assert "a\x1b[2J" in given[1][0]


def test_a_real_answer_is_the_text_of_the_same_tokens_and_is_reproducible(finished):
    run = finished[0].run
    asked = Asked(max_new_tokens=12, seed=3, model="twin")
    chat = Chat.open(run, asked)
    assert (chat.name, chat.template) == ("twin", "plain")
    first = "".join(chat.reply("Zorb"))
    chat.forget()
    again = Chat.open(run, asked)
    assert "".join(again.reply("Zorb")) == first
    other = Chat.open(run, Asked(max_new_tokens=12, seed=4, model="twin"))
    assert "".join(other.reply("Zorb")) != first


def test_a_run_without_a_model_and_a_wrong_option_are_refused(finished, tmp_path):
    from reticent.run import Run

    run = Run.create(tmp_path / "new", finished[0].run.recipe)
    with pytest.raises(RunError, match="no trained model yet"):
        Chat.open(run, Asked())
    with pytest.raises(RecipeError, match="top_p"):
        Chat.open(run, Asked(top_p=2.0))
