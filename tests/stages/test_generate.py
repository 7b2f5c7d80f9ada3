"""Texts from a tiny run, and from a server of canned answers."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reticent.data.encode import Encoder
from reticent.errors import DataError, PrivacyError, RecipeError, RunError
from reticent.models import generation
from reticent.models.generation import Decoding
from reticent.models.language_model import Sampling
from reticent.models.load import load_tokenizer
from reticent.progress import Progress
from reticent.recipe import NonPrivate
from reticent.run import Run
from reticent.stages.continuing import Endings, beginnings, decoded
from reticent.stages.generate import Asked, example, generate, seed_of
from reticent.stages.inputs import open_model

SHORT = Asked(max_new_tokens=6)
PROMPTS = ({"prompt": "Zorb says", "count": 3, "label": "zorb"}, {"prompt": "Q"}, {"prompt": "", "count": 2})


class Told(Progress):
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A copy of the finished run, to write texts into."""
    folder = tmp_path_factory.mktemp("generate") / "my"
    shutil.copytree(finished[0].run_folder, folder)
    return Run.open(folder)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in PROMPTS))
    return path


def asked(**changes):
    return dataclasses.replace(SHORT, **changes)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def stopped_after(monkeypatch, count):
    """Ctrl-C when the model has finished so many texts."""
    real = generation.stream

    def stream(*args, **kwargs):
        yield from itertools.islice(real(*args, **kwargs), count)
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "stream", stream)


# ------------------------------------------------------------------------------------------------------------ texts


def test_each_prompt_of_a_file_gets_its_count_of_texts_in_order(run, prompts, tmp_path):
    path = generate(run, asked(prompts=prompts, copies=2, out=tmp_path / "new" / "out.jsonl"))
    found = lines(path)
    assert [(one["id"], one["copy"]) for one in found] == [
        *(("prompts:1", copy) for copy in range(6)),
        *(("prompts:2", copy) for copy in range(2)),
        *(("prompts:3", copy) for copy in range(4)),
    ]
    assert found[0].keys() == {"id", "prompt", "label", "copy", "text", "finish", "seed", "model"}
    assert found[0]["label"] == "zorb"
    assert "label" not in found[6]
    assert {one["model"] for one in found} == {"private"}
    assert len({one["seed"] for one in found}) == len(found)


def test_a_text_is_what_the_model_says_after_the_prompt_as_it_was_trained(run, prompts, tmp_path):
    tokenizer = load_tokenizer(run.recipe.model.base)
    found = lines(generate(run, asked(prompts=prompts, out=tmp_path / "out.jsonl", model="twin")))
    ids = np.array(tokenizer.encode("Zorb says\n", add_special_tokens=False))
    one = generation.stream(
        open_model(run, "twin"),
        [ids],
        Decoding(6, Sampling(1.0, 50, None)),
        seeds=[seed_of(0, 0, 1)],
        end_of_text=tokenizer.eos_token_id,
    )
    [(_, said)] = one
    assert found[1]["text"] == tokenizer.decode(said.ids, skip_special_tokens=True)
    assert found[1]["finish"] == said.finish


def test_the_default_place_is_in_the_data_and_differs_with_what_is_asked(run, prompts):
    paths = [generate(run, one) for one in (asked(prompts=prompts), asked(prompts=prompts, seed=1), asked())]
    assert len(set(paths)) == 3
    assert {path.parent for path in paths} == {run.generated_folder}
    assert paths[0].name.startswith("private-prompts-")


def test_a_text_does_not_depend_on_how_many_are_written_at_once(run, prompts, tmp_path):
    one, other = (
        generate(run, asked(prompts=prompts, batch=batch, out=tmp_path / f"{batch}.jsonl")).read_bytes()
        for batch in (1, 4)
    )
    assert one == other


def test_another_seed_writes_other_texts(run, prompts, tmp_path):
    one, other = (
        [
            line["text"]
            for line in lines(generate(run, asked(prompts=prompts, seed=seed, out=tmp_path / f"{seed}.jsonl")))
        ]
        for seed in (0, 1)
    )
    assert one != other


def test_seeds_are_each_others_strangers():
    seeds = {seed_of(*at) for at in itertools.product(range(5), repeat=3)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_each_record_of_a_split_is_a_prompt(run):
    found = lines(generate(run, asked(split="held_out", limit=3)))
    records = [record for record, _ in run.read_records("held_out")][:3]
    assert [one["prompt"] for one in found] == [record.prompt for record in records]
    assert [one["id"] for one in found] == ["held_out:1", "held_out:2", "held_out:3"]


def test_without_prompts_the_model_begins_by_itself(run):
    found = lines(generate(run, asked(copies=2, model="base")))
    assert [(one["id"], one["prompt"]) for one in found] == [("start:1", "")] * 2


def test_a_text_without_a_prompt_begins_where_texts_begin(run):
    tokenizer = load_tokenizer(run.recipe.model.base)
    [begin] = beginnings([""], tokenizer, "plain")
    assert begin.ids.tolist() == [tokenizer.bos_token_id]
    assert begin.end == (tokenizer.eos_token_id,)


def test_with_a_chat_template_the_prompt_opens_an_answer_and_its_end_ends_the_text(model):
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}|end|{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    [begin] = beginnings(["Zorb"], tokenizer, "chat")
    assert tokenizer.decode(begin.ids) == "[user]Zorb|end|[assistant]"
    assert tokenizer.decode(begin.end) == "|end|"
    endings = Endings([begin.end], (), tokenizer)
    ids = np.array(tokenizer.encode("Quix|end|"))
    assert [endings(0, ids[:stop]) for stop in (4, 8, 9)] == [False, False, True]
    assert endings.cut(0, ids, "stop") == ("Quix", "end")


def test_a_completion_is_the_text_again_where_a_blank_marks_the_start_of_a_text():
    alphabet = ["\u2581", *"abcdehntsk\n", "<unk>"]
    bare = Tokenizer(models.BPE(vocab={one: i for i, one in enumerate(alphabet)}, merges=[], unk_token="<unk>"))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    encode = Encoder(tokenizer, template="plain", train_on_prompt=False, max_tokens=99, long_records="cut")
    [record] = encode([("task", "the end")]).tokens
    [begin] = beginnings(["task"], tokenizer, "plain")
    assert record.ids[: len(begin.ids)].tolist() == begin.ids.tolist()
    assert decoded(record.ids[len(begin.ids) :].tolist(), tokenizer) == "the end"


def test_a_prompt_that_is_too_long_loses_its_beginning_and_that_is_told(run, tmp_path):
    (tmp_path / "p.txt").write_text("Z" * 2000 + "\nshort\n")
    told = Told()
    generate(run, asked(prompts=tmp_path / "p.txt", out=tmp_path / "out.jsonl"), told)
    assert any("1 prompts are longer than 1018 tokens" in line for line in told.lines)


# -------------------------------------------------------------------------------------------------------------- stops


def test_a_text_ends_before_a_stop_string(run, prompts, tmp_path):
    free = lines(generate(run, asked(prompts=prompts, max_new_tokens=40, out=tmp_path / "free.jsonl")))
    whole = next(one for one in free if len(one["text"]) > 20)
    stop = whole["text"][7:9]
    bound = asked(prompts=prompts, max_new_tokens=40, stop=(stop, "never said"), out=tmp_path / "bound.jsonl")
    for one, other in zip(free, lines(generate(run, bound)), strict=True):
        assert other["text"] == one["text"].partition(stop)[0]
        assert (other["finish"] == "stop") == (stop in one["text"])


def test_a_stop_string_of_several_tokens_ends_the_text_as_soon_as_it_is_whole(model):
    tokenizer = load_tokenizer(str(model))
    endings = Endings([(tokenizer.eos_token_id,)], ("né",), tokenizer)
    ids = np.array(tokenizer.encode("a long begun text, then née"))
    at = tokenizer.encode("a long begun text, then né")
    assert next(stop for stop in range(1, len(ids) + 1) if endings(0, ids[:stop])) == len(at)
    assert endings.cut(0, ids[: len(at)], "stop") == ("a long begun text, then ", "stop")


# ------------------------------------------------------------------------------------------------------------- resumed


@pytest.mark.parametrize("form", ["jsonl", "text"])
@pytest.mark.parametrize("torn", [False, True])
def test_what_was_stopped_comes_out_as_if_it_was_not(run, prompts, tmp_path, monkeypatch, form, torn):
    whole, cut = (asked(prompts=prompts, format=form, batch=3, out=tmp_path / name) for name in ("whole", "cut"))
    expected = generate(run, whole).read_bytes()
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            generate(run, cut)
    work = cut.out if form == "jsonl" else tmp_path / "cut.jsonl"
    assert len(lines(work)) == 3
    if torn:
        work.write_bytes(work.read_bytes()[:-5])
    calls = []
    real = generation.stream
    monkeypatch.setattr(generation, "stream", lambda *a, **k: calls.append(len(a[1])) or real(*a, **k))
    assert generate(run, cut).read_bytes() == expected
    assert calls == [3 + torn]
    assert (tmp_path / "whole.asked.json").read_bytes() == (tmp_path / "cut.asked.json").read_bytes()


def test_what_is_whole_is_not_written_again(run, prompts, tmp_path, monkeypatch):
    what = asked(prompts=prompts, out=tmp_path / "out.jsonl")
    before = generate(run, what).read_bytes()
    monkeypatch.setattr(generation, "stream", None)
    assert generate(run, what).read_bytes() == before


def test_the_text_form_is_a_block_for_each_text(run, prompts, tmp_path):
    path = generate(run, asked(prompts=prompts, format="text", out=tmp_path / "out.txt"))
    expected = "".join(f"Generated:\n{one['text']}\n" for one in lines(tmp_path / "out.txt.jsonl"))
    assert path.read_bytes() == expected.encode()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 3}, "seed 0, not 3"),
        ({"temperature": 0.5}, "temperature 1.0, not 0.5"),
        ({"model": "twin"}, "model 'private', not 'twin' and another training"),
        ({"limit": 1}, "other prompts and limit None, not 1"),
    ],
)
def test_a_file_of_other_texts_is_refused_with_the_difference(run, prompts, tmp_path, change, told):
    what = asked(prompts=prompts, out=tmp_path / "out.jsonl")
    before = generate(run, what).read_bytes()
    with pytest.raises(RunError, match=f"was begun with {told}"):
        generate(run, dataclasses.replace(what, **change))
    assert what.out.read_bytes() == before


def test_a_file_that_was_not_begun_like_this_is_refused(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for form in ("jsonl", "text"):
        with pytest.raises(RunError, match="was not begun by this command"):
            generate(run, asked(out=tmp_path / "mine.txt", format=form))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(RunError, match="is a folder"):
        generate(run, asked(out=tmp_path))


def test_a_line_that_somebody_broke_is_named(run, tmp_path):
    what = asked(out=tmp_path / "out.jsonl")
    generate(run, what)
    what.out.write_text("Zorb\n" + what.out.read_text())
    with pytest.raises(RunError, match=r"out.jsonl:1: is no line of a text") as raised:
        generate(run, what)
    assert "Zorb" not in str(raised.value)


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"temperature": 0.0}, "for the likeliest text say greedy"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": 7}, "min_new_tokens must be from 0 to max_new_tokens \\(6\\)"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"copies": 0}, "copies"),
        ({"batch": 0}, "batch"),
        ({"limit": 0}, "limit"),
        ({"seed": -1}, "seed"),
        ({"copies": 10**9}, "1,000,000,000 texts are asked for"),
        ({"stop": ("",)}, "stop string is empty"),
        ({"server_model": "quix"}, "needs the address"),
        ({"server": "http://localhost:1", "model": "twin"}, "leave one of them out"),
        ({"max_new_tokens": 1024}, "max_new_tokens must leave room"),
    ],
)
def test_an_option_out_of_its_bounds_is_refused(run, change, told):
    with pytest.raises(RecipeError, match=told):
        generate(run, asked(**change))


def test_a_split_and_a_file_contradict_each_other(run, prompts):
    with pytest.raises(RecipeError, match="name one of them"):
        generate(run, asked(prompts=prompts, split="train"))


def test_an_unknown_and_an_empty_split_are_named(run):
    with pytest.raises(RunError, match="no part 'test'; take one of train, held_out, calibration"):
        generate(run, asked(split="test"))
    with pytest.raises(RunError, match="calibration of the data in .* is empty"):
        generate(run, asked(split="calibration"))


def test_a_broken_count_is_an_error_before_a_model_is_loaded(run, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("Zorb #### x\n")
    monkeypatch.setattr("reticent.stages.generate.open_model", None)
    with pytest.raises(DataError, match="p.txt:1"):
        generate(run, asked(prompts=tmp_path / "p.txt"))


def test_a_run_without_a_model_says_how_to_train_one(tmp_path, run):
    empty = Run.create(tmp_path / "new", run.recipe)
    with pytest.raises(RunError, match="no trained model yet; train it with: reticent train"):
        generate(empty, asked())
    assert not (tmp_path / "new" / "data").exists()


def test_a_model_that_the_recipe_does_not_train_is_named(run):
    alone = Run(
        run.folder, run.recipe.model_copy(update={"audit": run.recipe.audit.model_copy(update={"twin": False})})
    )
    with pytest.raises(RunError, match="no model twin: its recipe trains private"):
        generate(alone, asked(model="twin"))


def test_private_text_outside_the_data_is_told(run, prompts, tmp_path):
    for change, warned in (
        ({"prompts": prompts}, False),
        ({"prompts": prompts, "model": "base"}, False),
        ({"prompts": prompts, "model": "twin"}, True),
        ({"split": "held_out", "limit": 1}, True),
    ):
        told = Told()
        generate(run, asked(out=tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", **change), told)
        assert any("as private as the data" in line for line in told.lines) is warned
    told = Told()
    generate(run, asked(split="held_out", limit=1), told)
    assert not told.lines


def test_the_example_is_of_the_private_model_or_there_is_none(run):
    assert example(run, tokens=5)
    assert example(Run(run.folder, run.recipe.model_copy(update={"privacy": NonPrivate()}))) is None


# ------------------------------------------------------------------------------------------------------------- server


@pytest.fixture
def standin():
    """The address of a server that repeats the prompt; its requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, body))
            text = f"<{body.get('prompt', body.get('messages'))}> END {body['seed']}"
            content = json.dumps({"choices": [{"text": text, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            with contextlib.suppress(OSError):  # who asked has gone
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.daemon_threads = True
    threading.Thread(target=there.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{there.server_address[1]}", requests
    there.shutdown()
    there.server_close()


def test_a_server_gets_what_the_model_was_trained_to_go_on_from(run, prompts, tmp_path, standin):
    url, requests = standin
    found = lines(
        generate(
            run, asked(prompts=prompts, server=url, server_model="quix", stop=("END",), out=tmp_path / "out.jsonl")
        )
    )
    assert [one["text"] for one in found] == ["<Zorb says\n> "] * 3 + ["<Q\n> "] + ["<<s>> "] * 2
    assert {one["finish"] for one in found} == {"stop"}
    assert {one["model"] for one in found} == {"quix"}
    assert {(path, body["model"], body["max_tokens"]) for path, body in requests} == {("/v1/completions", "quix", 6)}
    assert sorted(body["seed"] for _, body in requests) == sorted(one["seed"] for one in found)


def test_a_start_that_a_server_sets_before_every_text_is_not_sent(run, prompts, tmp_path, standin, monkeypatch):
    url, requests = standin
    tokenizer = load_tokenizer(run.recipe.model.base)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    monkeypatch.setattr("reticent.models.load.load_tokenizer", lambda base: tokenizer)
    generate(run, asked(prompts=prompts, server=url, server_model="quix", out=tmp_path / "out.jsonl"))
    assert {body["prompt"] for _, body in requests} == {"Zorb says\n", "Q\n", ""}


def test_texts_of_a_server_are_resumed_too(run, prompts, tmp_path, standin):
    url, requests = standin
    what = asked(prompts=prompts, server=url, server_model="quix", out=tmp_path / "out.jsonl", batch=2)
    expected = generate(run, what).read_bytes()
    what.out.write_bytes(b"".join(expected.splitlines(keepends=True)[2:]))
    requests.clear()
    assert generate(run, what).read_bytes() == expected
    assert len(requests) == 2


def test_private_prompts_are_not_sent_to_another_machine(run):
    with pytest.raises(PrivacyError, match="prompts of held_out are private"):
        generate(run, asked(split="held_out", server="http://example.org:8000", server_model="quix"))


def test_private_prompts_may_be_sent_to_a_server_on_this_machine(run, standin):
    url, requests = standin
    generate(run, asked(split="held_out", limit=2, server=url, server_model="quix"))
    assert len(requests) == 2


def test_by_chat_completions_a_model_cannot_begin_by_itself(run, standin):
    url, _ = standin
    with pytest.raises(RecipeError, match="only through completions"):
        generate(run, asked(server=f"{url}/v1/chat/completions", server_model="quix"))
