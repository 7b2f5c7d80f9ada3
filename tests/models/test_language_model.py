"""Log-probabilities and generation against plain forward passes."""

import itertools

import numpy as np
import pytest
import torch

from reticent.models.language_model import CausalModel
from reticent.tokens import Tokens

FAMILIES = ["llama", "llama-tied", "qwen3", "neox", "gemma"]


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
    (said,) = model.generate([prompt], max_new_tokens=6)
    ids = np.concatenate([prompt, said])
    (scores,) = model.log_probs([Tokens(ids, np.arange(len(ids)) >= 3)])
    assert len(said) == 6 and scores.hit.all()


def test_generation_equals_the_librarys(tiny):
    model, prompts = tiny.model(), [np.array([2, 9, 4]), np.array([7])]
    for prompt, said in zip(prompts, CausalModel(model).generate(prompts, max_new_tokens=8), strict=True):
        ids = torch.from_numpy(prompt)[None]
        expected = tiny.plain(model).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert said.tolist() == expected[0, len(prompt) :].tolist()


def test_generation_stops_before_the_end_of_text(tiny):
    model, prompt = tiny.model(), np.array([2, 9, 4])
    (said,) = CausalModel(model).generate([prompt], max_new_tokens=6)
    (cut,) = CausalModel(model, end_of_text=int(said[2])).generate([prompt], max_new_tokens=6)
    assert cut.tolist() == said[: said.tolist().index(said[2])].tolist()
    assert cut.dtype == np.int64
