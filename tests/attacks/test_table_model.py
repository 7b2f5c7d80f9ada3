"""The attacks on a model whose probabilities are chosen: their answers are known in closed form."""

import numpy as np
import pytest

from reticent.attacks import scores
from reticent.models.language_model import Sampling
from reticent.tokens import Tokens

P = {0: [0.5, 0.25, 0.125, 0.125], 1: [0.0, 0.0, 1.0, 0.0], 2: [0.25, 0.25, 0.25, 0.25], 3: [0.1, 0.2, 0.3, 0.4]}


def _record(*ids: int) -> Tokens:
    return Tokens(np.array(ids), np.arange(len(ids)) > 0)


@pytest.fixture
def model(table_model):
    return table_model.TableModel(lambda ids: P[ids[-1]])


def test_scores_are_the_chosen_probabilities(model):
    (found,) = model.log_probs([_record(0, 0, 1, 2, 3)], vocabulary=True)
    np.testing.assert_allclose(np.exp(found.logp), [0.5, 0.25, 1, 0.25], rtol=1e-6)
    assert found.hit.tolist() == [True, False, True, False]
    np.testing.assert_allclose(found.mean, [-1.75 * np.log(2)] * 2 + [0, -np.log(4)], rtol=1e-6)
    spread = np.log(2) * np.sqrt(0.5 * 1 + 0.25 * 4 + 0.25 * 9 - 1.75**2)
    np.testing.assert_allclose(found.deviation, [spread, spread, 0, 0], rtol=1e-6, atol=1e-7)


def test_greedy_text_is_what_hits_say(model):
    (said,) = model.generate([np.array([3])], max_new_tokens=3)
    (found,) = model.log_probs([_record(3, *said)])
    assert said.tolist() == [3, 3, 3] and found.hit.all()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0, None, None), [0.1, 0.2, 0.3, 0.4]),
        (Sampling(1.0, 2, None), [0, 0, 3 / 7, 4 / 7]),
        (Sampling(1.0, None, 0.7), [0, 0, 3 / 7, 4 / 7]),
        (Sampling(0.5, 3, None), [0, 4 / 29, 9 / 29, 16 / 29]),
        (Sampling(0.5, 3, 0.5), [0, 0, 0, 1]),
    ],
)
def test_the_sampler_draws_what_is_left_renormalised(model, sampling, expected):
    found = model.log_probs([_record(3, token) for token in range(4)], sampling=sampling)
    np.testing.assert_allclose([np.exp(one.sampled[0]) for one in found], expected, rtol=1e-6)


def test_loss_and_its_kin(model):
    logp = [one.logp for one in model.log_probs([_record(0, 0, 1, 2, 3), _record(2, 2, 2)])]
    bits = np.array([5 / 4, 2.0])  # of surprise a token
    np.testing.assert_allclose(scores.loss(logp), -bits * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(scores.perplexity(logp), -(2**bits), rtol=1e-6)
    np.testing.assert_allclose(scores.min_k(logp), -2 * np.log([2, 2]), rtol=1e-6)
    np.testing.assert_allclose(scores.min_k(logp, 0.5), -2 * np.log([2, 2]), rtol=1e-6)
    np.testing.assert_allclose(scores.window(logp, 2), -np.log(2) * np.array([1, 2]), rtol=1e-6)


def test_min_k_plus_is_a_standard_score(model):
    found = model.log_probs([_record(0, 3), _record(2, 1)], vocabulary=True)
    spread = np.sqrt(0.5 * 1 + 0.25 * 4 + 0.25 * 9 - 1.75**2)
    np.testing.assert_allclose(scores.min_k_plus(found), [(-3 + 1.75) / spread, 0], rtol=1e-6)


def test_two_models_by_hand(table_model, model):
    base = table_model.TableModel(lambda ids: [0.25] * 4)
    records = [_record(0, 0, 1, 2, 3), _record(0, 0, 0)]
    target, before = model.log_probs(records), [one.logp for one in base.log_probs(records)]
    logp = [one.logp for one in target]
    np.testing.assert_allclose(scores.loss_difference(logp, before), np.log(2) * np.array([0.75, 1]), rtol=1e-6)
    np.testing.assert_allclose(scores.normalised_perplexity(logp, before), [2**0.75, 2], rtol=1e-6)
    np.testing.assert_allclose(scores.loss_ratio(logp, before), [-5 / 8, -1 / 2], rtol=1e-6)
    # Bits gained: 1, 0, 2, 0 and 1, 1. Windows of 1 that gained: 2 of 4 and all; of 2: all.
    np.testing.assert_allclose(scores.wbc(logp, before, (1, 2)), [0.75, 1])
    # The first record's errors gained nothing; the second has none and gained two bits.
    np.testing.assert_allclose(scores.ez(target, before), [0, np.log((2 * np.log(2) + 0.1) / 0.1)], atol=1e-6)


def test_recall_averages_the_same_tokens(table_model):
    """After the prefix 1, token 2 has half the surprise that it has after 0."""
    model = table_model.TableModel(lambda ids: [0.25] * 4 if 1 in ids else [0.0625, 0.0625, 0.0625, 0.8125])
    alone = model.log_probs([_record(0, 2, 2)])
    text = Tokens(np.array([1, 0, 2, 2]), np.array([False, False, True, True]))
    after = model.log_probs([text])
    assert scores.recall([alone[0].logp], [after[0].logp])[0] == pytest.approx(0.5)
