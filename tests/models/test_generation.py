"""Batched generation against one token at a time, and against the model's own probabilities."""

import numpy as np
import pytest
import torch
from scipy import stats

from reticent.gradients.attention import NAME, Segment, segments
from reticent.models import sampling as texts
from reticent.models.generation import greedy, sample
from reticent.models.language_model import CausalModel, Sampling

FAMILIES = ["llama", "qwen3", "neox", "mistral", "gemma", "gpt2"]


def _ragged(seed=0, count=9):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 60, int(rng.integers(1, 12))) for _ in range(count)]


def _same(found, expected):
    return [one.tolist() for one in found] == [one.tolist() for one in expected]


@torch.no_grad()
def _next(tiny, model, prompt):
    logits = tiny.plain(model)(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1]
    return logits.double().softmax(-1).numpy()


@torch.no_grad()
def _one_at_a_time(model, prompts, tokens, end=None):
    """What greedy decoding says, each token from a pass over all before it."""
    out = []
    for prompt in prompts:
        ids = prompt.tolist()
        for _ in range(tokens):
            with segments([Segment(0, len(ids))]):
                token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == end:
                break
            ids.append(token)
        out.append(np.array(ids[len(prompt) :]))
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_greedy_text_of_ragged_prompts_equals_that_of_one_token_at_a_time(tiny, family, batch):
    model, prompts = CausalModel(tiny.model(family)), _ragged()
    expected = _one_at_a_time(model.model, prompts, 12)
    assert _same(greedy(model, prompts, max_new_tokens=12, end_of_text=None, batch=batch), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_stops_before_the_end_of_text(tiny, family):
    model, prompts = tiny.model(family), _ragged(1, 30)
    said = _one_at_a_time(model, prompts, 8)
    end = int(np.bincount(np.concatenate(said)).argmax())
    expected = _one_at_a_time(model, prompts, 8, end)
    assert len({len(one) for one in expected}) > 1
    assert _same(greedy(CausalModel(model), prompts, max_new_tokens=8, end_of_text=end, batch=7), expected)


def test_an_adapter_takes_part(tiny):
    model = CausalModel(tiny.lora(tiny.model()))
    expected = _one_at_a_time(model.model, _ragged(), 6)
    assert _same(greedy(model, _ragged(), max_new_tokens=6, end_of_text=None), expected)


def test_what_the_model_itself_says_on_generation_has_no_effect(tiny):
    model = tiny.model()
    expected = _one_at_a_time(model, _ragged(), 6)
    model.generation_config.update(
        repetition_penalty=9.0, do_sample=True, max_length=3, eos_token_id=int(expected[0][0])
    )
    assert _same(greedy(CausalModel(model), _ragged(), max_new_tokens=6, end_of_text=None), expected)
    assert model.generation_config.repetition_penalty == 9.0


def test_the_attention_is_as_before_even_if_generation_fails(tiny):
    model = tiny.model()
    with pytest.raises(IndexError):
        greedy(CausalModel(model), [np.array([10**6])], max_new_tokens=2, end_of_text=None)
    assert model.config._attn_implementation == NAME
    assert len(CausalModel(model).log_probs([tiny.record([3, 4, 5])])) == 1


def test_no_prompts_give_no_texts(tiny):
    assert greedy(CausalModel(tiny.model()), [], max_new_tokens=2, end_of_text=None) == []


@pytest.mark.parametrize("wrong", [{"prompts": [np.array([], np.int64)]}, {"batch": 0}, {"max_new_tokens": 0}])
def test_an_empty_prompt_or_count_is_refused(tiny, wrong):
    asked = {"prompts": [np.array([3])], "max_new_tokens": 1, "end_of_text": None, **wrong}
    with pytest.raises(ValueError, match="must"):
        greedy(CausalModel(tiny.model()), **asked)


def test_a_frequency_penalty_counts_only_what_was_said(tiny):
    model, prompt, penalty = tiny.model(), np.array([2, 9, 9, 9, 4]), 2.5
    (said,) = greedy(CausalModel(model), [prompt], max_new_tokens=10, end_of_text=None, frequency_penalty=penalty)
    ids = prompt.tolist()
    for token in said.tolist():
        logits = np.log(_next(tiny, model, np.array(ids))) - penalty * np.bincount(ids[5:], minlength=tiny.vocabulary)
        assert token == int(logits.argmax())
        ids.append(token)


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, None, None), Sampling(0.7, None, None), Sampling(1.5, 6, None), Sampling(1.2, 10, 0.8)]
)
def test_sampled_tokens_follow_the_law_that_log_probs_state(tiny, sampling):
    model, prompt, draws = CausalModel(tiny.model()), np.array([2, 9, 4]), 4000
    found = sample(model, [prompt] * draws, sampling=sampling, max_new_tokens=1, seed=5, end_of_text=None, batch=1000)
    records = [tiny.record([*prompt, token], 3) for token in range(tiny.vocabulary)]
    stated = np.exp([float(s.sampled[0]) for s in model.log_probs(records, sampling=sampling)])
    counts = np.bincount([int(one[0]) for one in found], minlength=tiny.vocabulary)
    assert stated.sum() == pytest.approx(1, abs=1e-4)
    assert counts[stated == 0].sum() == 0
    expected = draws * stated
    rare = expected < 8
    observed, wanted = ([*part[~rare], part[rare].sum()] for part in (counts, expected))
    observed, wanted = (np.array(part)[np.array(wanted) > 0] for part in (observed, wanted))
    assert stats.chisquare(observed, wanted * draws / wanted.sum()).pvalue > 1e-3


def test_the_second_token_follows_the_first(tiny):
    model, prompt, draws = tiny.model(), np.array([7, 3]), 4000
    sampling = Sampling(1.0, 3, None)
    found = sample(CausalModel(model), [prompt] * draws, sampling=sampling, max_new_tokens=2, seed=1, end_of_text=None)
    pairs, counts = np.unique(np.stack(found), axis=0, return_counts=True)
    records = [tiny.record([*prompt, *pair], 2) for pair in pairs.tolist()]
    logs = [s.sampled.sum() for s in CausalModel(model).log_probs(records, sampling=sampling)]
    expected = draws * np.exp(np.array(logs, dtype=np.float64))
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())
    assert len(pairs) <= 9


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(tiny):
    model = CausalModel(tiny.model())
    asked = {"sampling": Sampling(), "max_new_tokens": 8, "end_of_text": None}
    first = sample(model, _ragged(), seed=3, **asked)
    assert _same(sample(model, _ragged(), seed=3, **asked), first)
    assert not _same(sample(model, _ragged(), seed=4, **asked), first)


def test_sampling_leaves_the_global_chance_alone(tiny):
    model = CausalModel(tiny.model())
    before = torch.get_rng_state()
    sample(model, _ragged(), sampling=Sampling(), max_new_tokens=4, seed=3, end_of_text=None)
    assert torch.equal(torch.get_rng_state(), before)


class _Letters:
    bos_token_id, eos_token_id = 0, 1

    def decode(self, ids, skip_special_tokens):
        return " ".join(str(i) for i in ids if i > 1)


@pytest.fixture
def from_tiny(tiny, monkeypatch):
    def use(**changes):
        model = tiny.model()
        for name, value in changes.items():
            setattr(model.config, name, value)
        monkeypatch.setattr(texts, "load", lambda base: (model, _Letters()))
        return model

    return use


def test_sampled_texts_differ_and_begin_alike_for_every_count(from_tiny):
    from_tiny()
    many = texts.sample_texts("tiny", 70, seed=2, temperature=1.0, max_new_tokens=2)
    assert len(set(many)) == 70
    assert texts.sample_texts("tiny", 10, seed=2, temperature=1.0, max_new_tokens=2) == many[:10]


def test_a_model_that_repeats_itself_is_refused(from_tiny):
    model = from_tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    with pytest.raises(Exception, match="gave only 1 different texts of 40"):
        texts.sample_texts("tiny", 40, seed=2, temperature=0.8, max_new_tokens=1)
