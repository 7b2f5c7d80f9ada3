"""The adapter for lm-eval against lm-eval's own back end on the same model."""

import json
import random

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from reticent.gradients.attention import use_segments
from reticent.models.generation import greedy
from reticent.models.language_model import CausalModel

pytest.importorskip("lm_eval")
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from reticent.utility.choices import likeliest
from reticent.utility.exam_prompts import Layout, Prompter, text
from reticent.utility.harness import HarnessModel
from reticent.utility.questions import Question

CONTEXT = 512
WORDS = ["qua", "zim", "torv", "blen", "yost", "kape", "wurr", "nalf", "mib", "drox"]


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def both(tiny, tokenizer):
    """lm-eval's back end and ours, on models with the same weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = tiny.build(config)
    use_segments(model)
    other = tiny.plain(model)
    return HFLM(pretrained=other, tokenizer=tokenizer, batch_size=4), HarnessModel(CausalModel(model), tokenizer)


def _instances(kind, arguments):
    return [Instance(kind, {}, one, number, (None, None, None)) for number, one in enumerate(arguments)]


def _texts(rng, count, most):
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, most))) for _ in range(count)]


def _pairs():
    rng = random.Random(0)
    shared = " ".join(rng.choices(WORDS, k=6)) + "\n"
    pairs = [(text, option) for text in _texts(rng, 5, 8) for option in (" a", " b", " torv", " torv mib", "qua")]
    pairs += [
        (shared + text + tail, " " + option)
        for text in _texts(rng, 5, 4)
        for tail in ("", " ", " \n")
        for option in _texts(rng, 2, 2)
    ]
    pairs += [("", text) for text in _texts(rng, 3, 5)] + [("<s>", "mib"), ("<s>qua", " zim"), ("", "<s>zim")]
    return [*pairs, *((" ".join(_texts(rng, 150, 3)), " zim" * count) for count in (1, 20)), pairs[0]]


def test_log_likelihoods_and_greedy_flags_are_those_of_lm_evals_own_back_end(both):
    theirs, ours = (lm.loglikelihood(_instances("loglikelihood", _pairs())) for lm in both)
    np.testing.assert_allclose([one[0] for one in ours], [one[0] for one in theirs], rtol=0, atol=1e-4)
    assert [one[1] for one in ours] == [one[1] for one in theirs]


def test_a_continuation_that_greedy_decoding_says_is_called_greedy(both):
    prompt = both[1].tok_encode("qua zim")
    (said,) = greedy(both[1]._model, [np.array(prompt)], max_new_tokens=3, end_of_text=None)
    other = [*said[:2].tolist(), (said[2] + 1) % 256]
    found = both[1]._loglikelihood_tokens([(("", ""), prompt, ids) for ids in (said.tolist(), other)])
    assert [hit for _, hit in found] == [True, False]


@pytest.mark.parametrize("length", [0, 1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 5])
def test_the_log_likelihood_of_a_whole_text_is_that_of_lm_evals_own_back_end(both, length):
    text = ("qua zim torv " * CONTEXT)[:length]
    asked = _instances("loglikelihood_rolling", [(text,), ("mib",)])
    theirs, ours = (lm.loglikelihood_rolling(asked, disable_tqdm=True) for lm in both)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("until", [[], ["a"], ["e", "\n"], "o"])
def test_greedy_text_is_that_of_lm_evals_own_back_end(both, until):
    contexts = [*_texts(random.Random(1), 6, 4), " ".join(WORDS * 4)]
    asked = [(text, {"until": until, "max_gen_toks": 5 + number % 2}) for number, text in enumerate(contexts)]
    theirs, ours = (lm.generate_until(_instances("generate_until", asked)) for lm in both)
    assert ours == theirs


def test_nothing_is_generated_behind_a_stop_string(both):
    said = both[1].generate_until(_instances("generate_until", [("qua zim", {"until": [], "max_gen_toks": 40})]))[0]
    read = []
    hook = both[1]._model.model.register_forward_hook(lambda *_: read.append(1))
    asked = _instances("generate_until", [("qua zim", {"until": [said[4:6]], "max_gen_toks": 40})])
    assert both[1].generate_until(asked) == [said[: said.index(said[4:6])]]
    hook.remove()
    assert len(read) < 30


@pytest.mark.parametrize("last", ["user", "assistant"])
def test_a_conversation_is_written_as_by_lm_evals_own_back_end(both, monkeypatch, last):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[>]{% endif %}"
    )
    monkeypatch.setattr(both[1].tokenizer, "chat_template", template)
    turns = [
        {"role": role, "content": "qua"} for role in ("system", "user", "assistant")[: 3 if last == "assistant" else 2]
    ]
    theirs, ours = (lm.apply_chat_template(turns, add_generation_prompt=last == "user") for lm in both)
    assert ours == theirs and ours.endswith("[user]qua[>]" if last == "user" else "[assistant]qua")
    assert both[1].tokenizer_name == both[0].tokenizer_name


def test_sampled_text_depends_on_the_seed_alone(both):
    asked = _instances("generate_until", [("qua", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 20})] * 2)
    state = torch.random.get_rng_state()
    first, other = HarnessModel(both[1]._model, both[1].tokenizer, seed=1), both[1]
    assert other.generate_until(asked) == other.generate_until(asked) != first.generate_until(asked)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_continuation_longer_than_the_context_is_refused(both):
    with pytest.raises(ValueError, match=f"1 to {CONTEXT} tokens"):
        both[1].loglikelihood(_instances("loglikelihood", [("qua", "z" * (CONTEXT + 1))]))


# --- a task ---


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with a task of questions and options, some of many tokens."""
    folder, rng = tmp_path_factory.mktemp("tasks"), random.Random(2)
    rows = [
        {"question": question, "options": _texts(rng, 4, 4), "answer": rng.randrange(4)}
        for question in _texts(rng, 40, 6)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "invented",
                "dataset_path": "json",
                "dataset_kwargs": {
                    "data_files": {"test": str(folder / "items.jsonl")},
                    "cache_dir": str(folder / "cache"),
                },
                "test_split": "test",
                "fewshot_split": "test",
                "fewshot_config": {"sampler": "first_n"},
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}?",
                "doc_to_choice": "{{options}}",
                "doc_to_target": "answer",
                "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            }
        )
    )
    return folder


@pytest.mark.parametrize("shots", [0, 1])
def test_every_item_of_a_task_is_answered_as_by_lm_evals_own_back_end(both, task, shots):
    found = []
    for lm in both:
        loaded = TaskManager(include_path=str(task), include_defaults=False).load(["invented"])
        loaded["tasks"]["invented"].set_config(key="num_fewshot", value=shots)
        found.append(evaluate(lm, loaded, bootstrap_iters=0))
    items = [[(one["doc_id"], one["acc"], one["acc_norm"]) for one in each["samples"]["invented"]] for each in found]
    assert items[0] == items[1] and len(items[0]) == 40
    assert 0 < sum(acc for _, acc, _ in items[0]) < 40


# --- our own benchmarks ---


def _questions(count=24):
    rng = random.Random(3)
    for number, question in enumerate(_texts(rng, count, 5)):
        closed = number % 4 == 0
        options = ("yes", "no", "maybe") if closed else tuple(f"{text} {i}" for i, text in enumerate(_texts(rng, 4, 4)))
        context = tuple(_texts(rng, 2, 3)) if closed else ()
        yield Question(str(number), question, options, rng.randrange(len(options)), context)


@pytest.mark.parametrize("shots", [0, 1])
@pytest.mark.parametrize("form", ["text", "letter"])
def test_our_benchmarks_answer_every_item_as_lm_eval_does_on_the_same_prompt(both, tmp_path, form, shots):
    theirs, ours = both
    *questions, shown = _questions()
    layout, prompter = Layout("Torv.", (shown,) * shots), Prompter(ours.tokenizer, context=1024)
    rows = [
        {
            "prompt": text(one, layout, form),
            "options": one.options if form == "text" else one.labels,
            "answer": one.answer,
        }
        for one in questions
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "same-prompt",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": " " if shots else "",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm", "acc_bytes")],
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = evaluate(theirs, manager.load(["same-prompt"]), bootstrap_iters=0)["samples"]["same-prompt"]
    items = [prompter.options(one, layout, form).options for one in questions]
    scores = iter(ours._model.log_probs([option for item in items for option in item]))
    logp = [[next(scores).logp for _ in item] for item in items]
    lengths = [[len(option.encode()) for option in row["options"]] for row in rows]
    by_sum = [likeliest(one) == row["answer"] for one, row in zip(logp, rows, strict=True)]
    by_byte = [likeliest(one, n) == row["answer"] for one, n, row in zip(logp, lengths, rows, strict=True)]
    assert by_sum == [one["acc"] == 1 for one in found] and any(by_sum)
    assert by_byte == [one["acc_norm"] == 1 for one in found] == [one["acc_bytes"] == 1 for one in found]
    np.testing.assert_allclose(
        [float(one.sum()) for item in logp for one in item],
        [float(one[0]) for item in found for one in item["filtered_resps"]],
        rtol=0,
        atol=1e-4,
    )
