"""Counterfactual memorisation against scipy's t-test, planted effects and its law without an effect."""

import numpy as np
import pytest
from scipy import stats

from reticent.attacks.counterfactual import memorisation, seed_spread


def _twins(rng: np.random.Generator, models: int, records: int, effect: np.ndarray | float) -> tuple[np.ndarray, ...]:
    trained = rng.random((models, records)) < 0.5
    return effect * trained + rng.standard_normal((models, records)), trained


def test_equals_the_pooled_t_test_record_by_record() -> None:
    scores, trained = _twins(np.random.default_rng(0), 9, 40, 0.5)
    found = memorisation(scores, trained)
    for place, record in enumerate(found.records):
        inside, outside = scores[trained[:, record], record], scores[~trained[:, record], record]
        if min(len(inside), len(outside)) < 2:
            continue  # scipy needs two of each
        oracle = stats.ttest_ind(inside, outside, alternative="greater")
        ends = stats.ttest_ind(inside, outside).confidence_interval(0.95)
        assert found.value[place] == pytest.approx(inside.mean() - outside.mean())
        assert found.p_value[place] == pytest.approx(oracle.pvalue)
        assert (found.low[place], found.high[place]) == pytest.approx((ends.low, ends.high))


def test_without_an_effect_p_values_are_uniform_and_nothing_is_found() -> None:
    found = memorisation(*_twins(np.random.default_rng(1), 8, 2000, 0.0))
    assert stats.kstest(found.p_value, "uniform").pvalue > 0.01
    assert (found.corrected < 0.05).sum() <= 1
    assert np.mean((found.low <= 0) & (found.high >= 0)) == pytest.approx(0.95, abs=0.015)


def test_memorised_records_are_found_with_few_false_finds() -> None:
    effect = np.where(np.arange(1000) < 200, 6.0, 0.0)
    found = memorisation(*_twins(np.random.default_rng(2), 16, 1000, effect))
    named = found.records[found.corrected < 0.05]
    assert (named < 200).sum() > 190 and (named >= 200).mean() < 0.08


def test_records_that_all_or_no_models_saw_are_left_out() -> None:
    trained = np.array([[True, True, False], [True, False, False], [True, False, False]])
    assert memorisation(np.arange(9.0).reshape(3, 3), trained).records.tolist() == [1]


def test_scores_that_never_vary_give_the_permutation_p_value() -> None:
    trained = np.array([[True, True, False]] * 2 + [[False, True, True]] * 2)
    scores = np.where(trained, 1.0, 0.0)
    found = memorisation(scores, trained)
    assert found.records.tolist() == [0, 2] and found.p_value.tolist() == [1 / 6, 1 / 6]
    assert memorisation(np.ones((4, 3)), trained).p_value.tolist() == [1, 1]


def test_permuted_membership_is_silent() -> None:
    rng = np.random.default_rng(3)
    scores, trained = _twins(rng, 20, 500, 3.0)
    assert (memorisation(scores, trained).corrected < 0.05).mean() > 0.9
    assert (memorisation(scores, rng.permuted(trained, axis=0)).corrected < 0.05).sum() <= 1


def test_the_spread_over_seeds_equals_scipy() -> None:
    values = [0.5, 0.7, 0.65, 0.4]
    found = seed_spread(values)
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((oracle.low, oracle.high))
    assert (found.mean, found.deviation, found.n) == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="3 or more models"):
        memorisation(np.zeros((2, 4)), np.zeros((2, 4), dtype=bool))
    with pytest.raises(ValueError, match="finite"):
        memorisation(np.full((3, 1), np.inf), np.zeros((3, 1), dtype=bool))
    with pytest.raises(ValueError, match="no record was in the training data of some"):
        memorisation(np.zeros((3, 2)), np.zeros((3, 2), dtype=bool))
    with pytest.raises(ValueError, match="two or more finite values"):
        seed_spread([1.0])
