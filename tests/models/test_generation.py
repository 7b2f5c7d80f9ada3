"""Batched generation against one token at a time, transformers' generate, and the model's own probabilities."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig

from reticent.errors import ModelError
from reticent.gradients.attention import NAME, Segment, segments
from reticent.models import sampling as texts
from reticent.models.generation import Decoding, continue_tokens, greedy, sample, stream
from reticent.models.kv_cache import reading
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


def _by_transformers(tiny, model, prompts, **settings):
    """What transformers says to each prompt alone, by ``settings`` and nothing that the model itself says on it."""
    twin, said = tiny.plain(model), []
    twin.generation_config = GenerationConfig()
    how = GenerationConfig(do_sample=False, pad_token_id=0, **settings)
    for prompt in prompts:
        ids = torch.from_numpy(prompt)[None]
        whole = twin.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
        said.append(whole[0, len(prompt) :].numpy())
    return said


def _written(model, prompts, decoding, *, seeds=None, end=None, **more):
    seeds = range(len(prompts)) if seeds is None else seeds
    found = dict(stream(CausalModel(model), prompts, decoding, seeds=seeds, end_of_text=end, **more))
    return [found[number] for number in range(len(prompts))]


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_text_is_that_of_transformers(tiny, family, batch):
    model, prompts = tiny.model(family), _ragged(2, 20)
    expected = _by_transformers(tiny, model, prompts, max_new_tokens=9)
    end = int(np.bincount(np.concatenate(expected)).argmax())
    whole = [(said, np.flatnonzero(said == end)) for said in expected]
    cut = [said[: at[0]] if len(at) else said for said, at in whole]
    found = _written(model, prompts, Decoding(9), end=end, batch=batch)
    assert _same([one.ids for one in found], cut)
    assert [one.finish for one in found] == ["end" if len(at) else "length" for _, at in whole]


@pytest.mark.parametrize("tie", [False, True])
def test_greedy_text_is_what_scores_call_a_hit(tiny, tie):
    model, prompts = CausalModel(tiny.model("llama-tied" if tie else "llama")), _ragged(3, 12)
    said = greedy(model, prompts, max_new_tokens=10, end_of_text=None)
    records = [tiny.record([*prompt, *text], len(prompt)) for prompt, text in zip(prompts, said, strict=True)]
    assert all(scores.hit.all() for scores in model.log_probs(records))


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_is_that_of_transformers(tiny, penalty):
    model, prompts = tiny.model(), _ragged(4, 12)
    found = _written(model, prompts, Decoding(12, repetition_penalty=penalty), batch=5)
    expected = _by_transformers(tiny, model, prompts, max_new_tokens=12, repetition_penalty=penalty)
    assert _same([one.ids for one in found], expected)
    assert not _same([one.ids for one in found], [one.ids for one in _written(model, prompts, Decoding(12))])


def test_a_text_does_not_end_before_its_least_length(tiny):
    model, prompts = tiny.model(), _ragged(1, 30)
    end = int(np.bincount(np.concatenate(_one_at_a_time(model, prompts, 8))).argmax())
    found = _written(model, prompts, Decoding(8, min_new_tokens=5), end=end, batch=7)
    expected = _by_transformers(tiny, model, prompts, max_new_tokens=8, min_new_tokens=5, eos_token_id=end)
    assert [one.ids.tolist() for one in found] == [[token for token in text if token != end] for text in expected]
    assert {one.finish for one in found} == {"end", "length"}


@pytest.mark.parametrize("batch", [3, 50])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_sampled_text_is_of_its_prompt_and_seed_alone(tiny, family, batch):
    model, prompts, decoding = tiny.model(family), _ragged(5, 10), Decoding(8, Sampling(1.0, 20, 0.9))
    alone = [_written(model, [prompt], decoding, seeds=[7 + i], end=9)[0] for i, prompt in enumerate(prompts)]
    order = np.random.default_rng(0).permutation(len(prompts))
    found = _written(
        model, [prompts[i] for i in order], decoding, seeds=[7 + int(i) for i in order], end=9, batch=batch
    )
    assert _same([one.ids for one in found], [alone[i].ids for i in order])
    assert [one.finish for one in found] == [alone[i].finish for i in order]


def test_a_text_is_drawn_by_one_number_of_its_stream_for_each_token(tiny):
    model, prompt, sampling = tiny.model(), np.array([2, 9, 4]), Sampling(0.9, None, None)
    (found,) = _written(model, [prompt], Decoding(12, sampling), seeds=[2**70 + 3])
    chance, ids = np.random.Generator(np.random.Philox(key=2**70 + 3)), prompt
    for token in found.ids:
        powers = _next(tiny, model, ids) ** (1 / 0.9)
        assert token == np.searchsorted(np.cumsum(powers) / powers.sum(), chance.random(), side="right")
        ids = np.append(ids, token)


def test_a_stop_ends_its_own_text_with_the_tokens_that_it_saw(tiny):
    model, prompts = tiny.model(), _ragged(6, 10)
    whole = _one_at_a_time(model, prompts, 8)
    found = _written(model, prompts, Decoding(8), stop=lambda number, ids: len(ids) == 1 + number, batch=4)
    assert _same([one.ids for one in found], [text[: 1 + number] for number, text in enumerate(whole)])
    assert [one.finish for one in found] == [*["stop"] * 8, *["length"] * 2]


def test_texts_are_handed_out_as_they_end_and_the_model_can_be_used_between(tiny):
    model = CausalModel(tiny.model())
    record, order = tiny.record([3, 4, 5]), []
    before = model.log_probs([record])[0].logp
    texts_of = stream(
        model,
        _ragged(7, 6),
        Decoding(9),
        seeds=[0] * 6,
        end_of_text=None,
        stop=lambda number, ids: number == 2,
        batch=2,
    )
    for number, _ in texts_of:
        order.append(number)
        assert np.array_equal(model.log_probs([record])[0].logp, before)
        assert "forward" not in vars(model.model.lm_head)
    assert order == [0, 1, 2, 3, 4, 5]


def test_a_short_text_does_not_wait_for_a_long_one(tiny):
    order = stream(
        CausalModel(tiny.model()),
        _ragged(7, 6),
        Decoding(30),
        seeds=[0] * 6,
        end_of_text=None,
        stop=lambda number, ids: number > 0,
        batch=2,
    )
    assert [number for number, _ in order] == [1, 2, 3, 4, 5, 0]


def test_each_new_token_is_read_once(tiny):
    model, read = tiny.model(), []
    model.register_forward_pre_hook(lambda m, args, how: read.append(how["input_ids"].shape), with_kwargs=True)
    prompts = _ragged(8, 5)
    _written(model, prompts, Decoding(4), batch=2)
    assert sum(columns for _, columns in read) == sum(map(len, prompts)) + 3 * len(prompts)


def test_the_cache_grows_with_its_longest_text(tiny):
    model, prompts = tiny.model(), [np.array([3]), np.arange(2, 60), np.array([5, 6])]
    found = _written(model, prompts, Decoding(69), batch=2)
    assert _same([one.ids for one in found], _one_at_a_time(model, prompts, 69))


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, 10, None)])
def test_one_text_comes_token_by_token(tiny, sampling):
    model, prompt, decoding = tiny.model(), _ragged()[4], Decoding(20, sampling)
    for end in (None, 9, 30):
        (whole,) = _written(model, [prompt], decoding, seeds=[11], end=end)
        said = continue_tokens(CausalModel(model), prompt, decoding, seed=11, end_of_text=end)
        assert list(said) == whole.ids.tolist()
    assert model.config._attn_implementation == NAME


def test_a_text_ends_where_positions_do(tiny):
    model, prompts = tiny.model("gpt2"), [np.arange(2, 60), np.array([3] * 126)]
    found = _written(model, prompts, Decoding(100))
    assert [len(one.ids) for one in found] == [70, 2]
    assert [one.finish for one in found] == ["length", "length"]


def test_a_prompt_that_leaves_no_room_is_refused_with_the_bound(tiny):
    with pytest.raises(ModelError, match="1 of 2 prompts .* at most 128 tokens, and the longest has 130"):
        _written(tiny.model(), [np.array([3]), np.array([3] * 130)], Decoding(1))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (Decoding(0), "max_new_tokens must be >= 1, got 0"),
        (Decoding(3, min_new_tokens=4), "min_new_tokens must be from 0 to max_new_tokens, 3, got 4"),
        (Decoding(3, repetition_penalty=0.0), "repetition_penalty must be above 0, got 0.0"),
        (Decoding(3, Sampling(temperature=0.0)), "temperature must be above 0"),
        (Decoding(3, Sampling(top_k=0)), "top_k must be at least 1"),
    ],
)
def test_numbers_out_of_bounds_are_refused_at_once(tiny, wrong, named):
    with pytest.raises(ValueError, match=named):
        stream(CausalModel(tiny.model()), [np.array([3])], wrong, seeds=[0], end_of_text=None)


def test_as_many_seeds_as_prompts_are_needed(tiny):
    with pytest.raises(ValueError, match="got 1 for 2 prompts"):
        stream(CausalModel(tiny.model()), _ragged()[:2], Decoding(2), seeds=[0], end_of_text=None)


@pytest.mark.parametrize("sampling", [None, Sampling()])
def test_scores_that_are_not_finite_are_refused(tiny, sampling):
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        _written(model, [np.array([3])], Decoding(2, sampling))


@pytest.mark.parametrize("family", ["llama", "llama-biases", "llama-tied"])
def test_linear_layers_compute_what_they_compute_outside(tiny, family):
    model = tiny.model(family)
    layer, x = model.model.layers[0].mlp.up_proj, torch.randn(1, 5, 32)
    expected = layer(x)
    with reading(model):
        assert "forward" in vars(layer) and torch.allclose(layer(x), expected, atol=1e-5)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_read_too(tiny, dtype):
    model = tiny.model("llama", dtype=dtype)
    assert _same(
        [one.ids for one in _written(model, [np.array([3, 4])], Decoding(3))],
        _one_at_a_time(model, [np.array([3, 4])], 3),
    )


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
