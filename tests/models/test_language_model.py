"""Log-probabilities and generation against plain forward passes."""

import itertools
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, GraniteConfig
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from reticent.errors import ModelError
from reticent.gradients.attention import use_segments
from reticent.models import language_model
from reticent.models.generation import greedy
from reticent.models.language_model import CausalModel, Sampling
from reticent.tokens import Tokens

FAMILIES = ["llama", "llama-tied", "qwen3", "neox", "gemma"]
_SIZES = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
}


@torch.no_grad()
def _slow(tiny, model, record):
    """Log-probabilities and hits of one record by an ordinary forward pass."""
    logits = tiny.plain(model)(input_ids=torch.from_numpy(record.ids)[None]).logits[0].float()
    at = np.flatnonzero(record.trained)
    return logits.log_softmax(-1)[at - 1, record.ids[at]].numpy(), (logits.argmax(-1)[at - 1].numpy() == record.ids[at])


def _shared(tiny, rng):
    """Records of every shape: trees of continuations, plain texts, copies, gaps, single tokens; in random order."""
    prompts = [rng.integers(2, 60, 7).tolist(), rng.integers(2, 60, 3).tolist()]
    records = [tiny.record(p + rng.integers(2, 6, n).tolist(), len(p)) for p in prompts for n in (1, 1, 2, 3, 9)]
    records += [records[0], tiny.record([*prompts[0][:4], 9], 4), tiny.record(rng.integers(2, 60, 12).tolist(), 1)]
    records += [tiny.record([5, 6], 1), tiny.record([5, 7, 8], 1)]
    gaps = rng.random(15) < 0.5
    gaps[[0, 14]] = False, True
    records.append(Tokens(rng.integers(2, 60, 15), gaps))
    return [records[i] for i in rng.permutation(len(records))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_tokens", [1, 20, 2048])
def test_log_probs_equal_plain_forward_passes_in_order(tiny, family, max_tokens):
    model, records = tiny.model(family), _shared(tiny, np.random.default_rng(0))
    found = CausalModel(model, max_tokens=max_tokens).log_probs(records)
    for scores, record in zip(found, records, strict=True):
        logp, hit = _slow(tiny, model, record)
        np.testing.assert_allclose(scores.logp, logp, rtol=0, atol=2e-5)
        assert scores.hit.tolist() == hit.tolist()


def test_log_probs_with_a_sliding_window_equal_plain_forward_passes(tiny):
    model, records = tiny.model("mistral"), [tiny.record(list(range(2, 2 + n))) for n in (3, 5, 6, 20)]
    for scores, record in zip(CausalModel(model).log_probs(records), records, strict=True):
        np.testing.assert_allclose(scores.logp, _slow(tiny, model, record)[0], rtol=0, atol=2e-5)


def test_log_probs_of_an_adapter_equal_plain_forward_passes(tiny):
    model, records = tiny.lora(tiny.model()), _shared(tiny, np.random.default_rng(1))
    for scores, record in zip(CausalModel(model).log_probs(records), records, strict=True):
        np.testing.assert_allclose(scores.logp, _slow(tiny, model, record)[0], rtol=0, atol=2e-5)


def test_a_shared_prompt_is_read_once(tiny):
    model, read = tiny.model(), []
    model.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    CausalModel(model).log_probs([tiny.record([*range(2, 22), 30, last], 20) for last in range(30, 40)])
    assert read == [21]  # 20 tokens of the prompt and one of the completions; the last token predicts nothing


def test_all_completions_of_one_length_have_probability_one(tiny):
    config = tiny.families["llama"]()
    config.vocab_size = 5
    model = tiny.build(config)
    from reticent.gradients.attention import use_segments

    use_segments(model)
    records = [tiny.record([2, 3, *end], 2) for end in itertools.product(range(5), repeat=3)]
    scores = CausalModel(model).log_probs(records)
    assert sum(np.exp(s.logp.astype(np.float64).sum()) for s in scores) == pytest.approx(1, abs=1e-5)


def test_no_records_give_no_scores(tiny):
    assert CausalModel(tiny.model()).log_probs([]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_what_log_probs_call_hits(tiny, family):
    model, prompt = CausalModel(tiny.model(family)), np.array([2, 9, 4])
    (said,) = greedy(model, [prompt], max_new_tokens=6, end_of_text=None)
    ids = np.concatenate([prompt, said])
    (scores,) = model.log_probs([Tokens(ids, np.arange(len(ids)) >= 3)])
    assert len(said) == 6 and scores.hit.all()


# --- over the vocabulary ---


def _same(found, logits, record, sampling=None):
    """The scores of one record against float64 arithmetic on its logits."""
    at = np.flatnonzero(record.trained)
    logs = logits.double().log_softmax(-1)[at - 1]
    p = logs.exp()
    mean = (p * logs).sum(-1)
    deviation = (p * (logs - mean[:, None]) ** 2).sum(-1).sqrt()
    own = logs[torch.arange(len(at)), torch.from_numpy(record.ids[at])]
    np.testing.assert_allclose(found.logp, own.numpy(), rtol=0, atol=3e-5)
    np.testing.assert_allclose(found.mean, mean.numpy(), rtol=0, atol=3e-5)
    np.testing.assert_allclose(found.deviation, deviation.numpy(), rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "capped", "scaled"])
def test_mean_and_deviation_over_the_vocabulary_are_those_of_float64(tiny, family):
    model = _unusual(tiny, family) if family in ("capped", "scaled") else tiny.model(family)
    records = _shared(tiny, np.random.default_rng(2))
    plain = tiny.plain(model)
    for found, record in zip(CausalModel(model).log_probs(records, vocabulary=True), records, strict=True):
        with torch.no_grad():
            _same(found, plain(input_ids=torch.from_numpy(record.ids)[None]).logits[0], record)


def _unusual(tiny, kind):
    """Models that do more with their scores than their head does."""
    sizes = {key: value for key, value in tiny.families["gemma"]().to_dict().items() if key in _SIZES}
    if kind == "capped":
        config = Gemma2Config(**sizes, final_logit_softcapping=2.0, attn_logit_softcapping=None)
    else:
        config = GraniteConfig(**sizes, logits_scaling=3.0)
    model = tiny.build(config)
    use_segments(model)
    return model


def test_extreme_scores_give_no_nan():
    logits = torch.tensor([[0.0, -1e30, -torch.inf, 0.0], [0.0, -300.0, -1e4, -torch.inf]])
    where, tokens = np.array([0, 1, 1]), np.array([3, 0, 1])
    found = language_model._over_vocabulary(logits, None, where, tokens, True, Sampling(top_k=2, top_p=0.9))
    np.testing.assert_allclose(found.logp, [-np.log(2), 0, -300], rtol=1e-6)
    np.testing.assert_allclose(found.mean, [-np.log(2), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.deviation, [0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
def test_chunks_change_nothing(tiny, chunk, monkeypatch):
    model, records = CausalModel(tiny.model()), _shared(tiny, np.random.default_rng(3))
    whole = model.log_probs(records, vocabulary=True, sampling=Sampling(0.7, 5, 0.8))
    monkeypatch.setattr(language_model, "_CHUNK_CPU", chunk)
    for one, other in zip(
        whole, model.log_probs(records, vocabulary=True, sampling=Sampling(0.7, 5, 0.8)), strict=True
    ):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_the_scores_of_all_tokens_never_stand_in_memory_at_once(tiny, monkeypatch):
    shapes = []
    chunk = language_model._chunk
    monkeypatch.setattr(language_model, "_CHUNK_CPU", 10 * tiny.vocabulary)
    monkeypatch.setattr(
        language_model, "_chunk", lambda logits, *rest: shapes.append(logits.shape) or chunk(logits, *rest)
    )
    model = tiny.model()
    widest = []
    model.register_forward_hook(lambda m, args, out: widest.append(out.logits.shape[-1]))
    CausalModel(model).log_probs([tiny.record(list(range(2, 50)))])
    assert max(rows for rows, _ in shapes) == 10 and widest == [model.config.hidden_size]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5, None, 0.9), Sampling(2.0, 7, 0.6), Sampling(1.0, None)])
@pytest.mark.parametrize("ties", [False, True])
def test_sampled_is_what_transformers_draws_from(sampling, ties):
    logits = torch.randn(20, 60, generator=torch.Generator().manual_seed(0)) * 3
    if ties:
        logits = logits.round()
    expected = logits / sampling.temperature
    if sampling.top_k is not None:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p is not None:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    expected = expected.log_softmax(-1)
    where, tokens = np.repeat(np.arange(20), 60), np.tile(np.arange(60), 20)
    found = language_model._over_vocabulary(logits, None, where, tokens, False, sampling).sampled.reshape(20, 60)
    expected = expected.numpy()
    if ties and sampling.top_p is not None:  # which of equal ones stays is a matter of torch's unstable sort
        found, expected = np.sort(found), np.sort(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1, 0), Sampling(1, None, 0.0), Sampling(1, None, 1.5)])
def test_sampling_out_of_bounds_is_refused(tiny, sampling):
    with pytest.raises(ValueError, match="must be"):
        CausalModel(tiny.model()).log_probs([tiny.record([2, 3])], sampling=sampling)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_model_is_said_to_be_broken(tiny, value):
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight[7] = value
    with pytest.raises(ModelError, match="not finite"):
        CausalModel(model).log_probs([tiny.record([2, 3, 4])])


# --- many records ---


class _Lazy(Sequence):
    """Records made when asked for, and how many are held."""

    def __init__(self, make, count):
        self._make, self._count, self.alive = make, count, 0

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        record = self._make(index)
        self.alive += 1
        weakref.finalize(record, self._gone)
        return record

    def _gone(self):
        self.alive -= 1


def test_streamed_scores_are_those_of_log_probs_and_hold_few_records(tiny, monkeypatch):
    monkeypatch.setattr(language_model, "_BLOCK", 64)
    model = CausalModel(tiny.model(), max_tokens=32)
    lazy = _Lazy(lambda i: tiny.record([2 + i % 3, 5, 6, 7 + i % 50, 8, 9, 10, 11], 3), 100)
    listed, most, seen = model.log_probs([lazy[i] for i in range(100)]), 0, {}
    for number, scores in model.scores(lazy):
        most = max(most, lazy.alive)
        seen[number] = scores
    assert sorted(seen) == list(range(100)) and most <= 20
    for number, scores in seen.items():
        np.testing.assert_allclose(scores.logp, listed[number].logp, rtol=0, atol=2e-5)


def test_a_large_group_of_completions_is_read_in_parts(tiny):
    model, read = tiny.model(), []
    model.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    records = [tiny.record([2, 3, 4, a, b, 5], 3) for a in range(10, 20) for b in range(10, 20)]
    found = CausalModel(model, max_tokens=30).log_probs(records)
    assert max(read) <= 33 and len(read) < 6
    for scores, record in zip(found, records, strict=True):
        np.testing.assert_allclose(scores.logp, _slow(tiny, model, record)[0], rtol=0, atol=2e-5)


def test_a_record_of_which_nothing_is_trained_has_no_scores(tiny):
    empty = Tokens(np.array([3, 4, 5]), np.zeros(3, dtype=bool))
    first, second = CausalModel(tiny.model()).log_probs([empty, tiny.record([2, 3])], vocabulary=True)
    assert len(first.logp) == len(first.mean) == 0 and len(second.logp) == 1
    (alone,) = CausalModel(tiny.model()).log_probs([empty], vocabulary=True)
    assert len(alone.logp) == len(alone.deviation) == 0


# --- shared beginnings ---


def _record(ids, prompt):
    return Tokens(np.array(ids, dtype=np.int64), np.arange(len(ids)) >= prompt)


def _begun(rng, count=8):
    """Records whose prompts share 40 tokens, some 60; two of them twice with other completions; and a text alone."""
    first, more = rng.integers(2, 60, 40).tolist(), rng.integers(2, 60, 20).tolist()
    prompts = [first + (more if n % 3 else []) + rng.integers(2, 60, n % 4).tolist() for n in range(count)]
    records = [_record(p + rng.integers(2, 60, n).tolist(), len(p)) for p in prompts for n in (1, 3, 2)]
    records += [_record([*first, 5, 6], 38), _record([*first[:39], 7, 7], 40), _record(first, 1)]
    records += [_record([*first, *more[:9], 7, 8, 9], 41)]
    return [records[i] for i in rng.permutation(len(records))]


@pytest.fixture
def eager(monkeypatch):
    """Beginnings are shared where anything at all is saved; returns the shared ones' tokens, as they are read."""
    monkeypatch.setattr(language_model, "_SAVED", 1)
    monkeypatch.setattr(language_model, "_SIDE", 6)
    read = []
    known = CausalModel._known

    def noted(self, ids, before):
        found = known(self, ids, before)
        read.append(len(found.ids))
        return found

    monkeypatch.setattr(CausalModel, "_known", noted)
    return read


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_tokens", [1, 20, 2048])
def test_prompts_that_begin_alike_are_scored_as_by_plain_forward_passes(tiny, family, max_tokens, eager):
    model, records = tiny.model(family), _begun(np.random.default_rng(4))
    for scores, record in zip(
        CausalModel(model, max_tokens=max_tokens).log_probs(records, vocabulary=True), records, strict=True
    ):
        logp, hit = _slow(tiny, model, record)
        np.testing.assert_allclose(scores.logp, logp, rtol=0, atol=2e-5)
        assert scores.hit.tolist() == hit.tolist() and len(scores.mean) == len(logp)
    assert eager


def test_a_beginning_in_several_blocks_is_read_once(tiny, eager, monkeypatch):
    monkeypatch.setattr(language_model, "_BLOCK", 300)
    model, first = tiny.model(), np.random.default_rng(5).integers(2, 60, 40).tolist()
    records = [_record([*first, 2 + n % 50, 5 + n % 7, 9], 41) for n in range(30)]
    read = []
    model.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    found = CausalModel(model).log_probs(records)
    assert read.count(40) == 1 and sum(read) <= 40 + 30 * 2
    for scores, record in zip(found, records, strict=True):
        np.testing.assert_allclose(scores.logp, _slow(tiny, model, record)[0], rtol=0, atol=2e-5)


def test_a_longer_beginning_read_before_serves_a_shorter_one(tiny, eager, monkeypatch):
    monkeypatch.setattr(language_model, "_BLOCK", 200)
    model, first = tiny.model(), np.random.default_rng(6).integers(2, 60, 44).tolist()
    records = [_record([*first, 2 + n, 9], 45) for n in range(4)]
    records += [_record([*first[:40], 2 + n, 9], 41) for n in range(4)]
    found = CausalModel(model).log_probs(records)
    assert eager == [44, 40]
    for scores, record in zip(found, records, strict=True):
        np.testing.assert_allclose(scores.logp, _slow(tiny, model, record)[0], rtol=0, atol=2e-5)


def test_a_model_with_a_short_window_shares_no_beginning(tiny, eager):
    model, first = tiny.model("mistral"), np.random.default_rng(7).integers(2, 60, 40).tolist()
    records = [_record([*first, 2 + n, 9], 41) for n in range(4)]
    for scores, record in zip(CausalModel(model).log_probs(records), records, strict=True):
        np.testing.assert_allclose(scores.logp, _slow(tiny, model, record)[0], rtol=0, atol=2e-5)
    assert not eager


def test_the_memory_of_a_beginning_has_a_bound(tiny, eager, monkeypatch):
    monkeypatch.setattr(language_model, "_KEPT", 2 * 2 * 2 * 8 * 4 * 35)  # keys and values, layers, heads, dim, bytes
    model, records = tiny.model(), _begun(np.random.default_rng(8))
    for scores, record in zip(CausalModel(model).log_probs(records), records, strict=True):
        np.testing.assert_allclose(scores.logp, _slow(tiny, model, record)[0], rtol=0, atol=2e-5)
    assert set(eager) == {35}


@pytest.mark.parametrize(
    ("common", "expected"),
    [
        ([], []),
        ([40] * 5, []),  # too little is saved
        ([600], [(0, 2, 600)]),
        ([0, 600, 600, 0], [(1, 4, 600)]),
        ([50] * 9 + [700] * 2 + [50] * 9, [(9, 12, 700)]),
        ([100] * 19 + [300] * 2 + [100] * 9, [(0, 31, 100)]),
        ([700, 50, 700, 50, 700], [(0, 2, 700), (2, 4, 700), (4, 6, 700)]),
        (list(range(40, 400)), [(180, 361, 220)]),
    ],
)
def test_what_is_shared_saves_the_most(common, expected):
    found = language_model._ranges(common, np.arange(len(common) + 2) * 8)
    if len(common) > 100:
        best = max(((len(common) - n) * common[n], n) for n in range(len(common)))
        assert [(first, tokens) for first, _, tokens in found] == [(best[1], common[best[1]])]
    else:
        assert found == expected


def test_texts_with_nothing_in_common_are_read_as_before(tiny, eager):
    rng, model = np.random.default_rng(9), tiny.model()
    records = [_record(rng.integers(2, 60, 50).tolist(), 45) for _ in range(20)]
    read = []
    model.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    CausalModel(model).log_probs(records)
    assert read == [20 * 49] and not eager
