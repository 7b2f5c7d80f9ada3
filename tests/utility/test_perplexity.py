"""Perplexity against the definition."""

import numpy as np
import pytest

from reticent.utility.perplexity import perplexity


def test_a_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    logp = [np.full(n, -np.log(50), dtype=np.float32) for n in (3, 10, 1)]
    result = perplexity(logp, ["a", "b", "b"], rng=np.random.default_rng(0))
    assert result.value == pytest.approx(50, rel=1e-6) and result.interval == pytest.approx((50, 50), rel=1e-6)
    assert (result.tokens, result.owners) == (14, 2)


def test_every_token_weighs_the_same() -> None:
    rng = np.random.default_rng(1)
    logp = [-rng.exponential(2, size=n) for n in rng.integers(1, 40, 100)]
    result = perplexity(logp, [str(i // 2) for i in range(100)], rng=rng)
    assert result.value == pytest.approx(np.exp(-np.concatenate(logp).mean()))
    assert result.interval is not None and result.interval[0] < result.value < result.interval[1]


def test_one_owner_has_no_interval() -> None:
    assert perplexity([np.array([-1.0])] * 3, ["a"] * 3, rng=np.random.default_rng(0)).interval is None


def test_an_empty_record_is_refused() -> None:
    with pytest.raises(ValueError, match="record 1 needs"):
        perplexity([np.array([-1.0]), np.array([])], ["a", "b"], rng=np.random.default_rng(0))
