"""Perplexity and bits per byte against their definitions."""

import numpy as np
import pytest

from reticent.utility.perplexity import bits_per_byte, perplexity, perplexity_by_text


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


def test_texts_weigh_the_same_where_texts_are_counted() -> None:
    logp = [np.full(9, -1.0), np.full(1, -3.0)]
    rng = np.random.default_rng(0)
    assert perplexity_by_text(logp, ["a", "b"], rng=rng).value == pytest.approx(np.exp(2))
    assert perplexity(logp, ["a", "b"], rng=rng).value == pytest.approx(np.exp(1.2))


def test_a_uniform_model_of_bytes_needs_eight_bits_for_each() -> None:
    logp = [np.full(n, -np.log(256)) for n in (3, 10, 1)]
    result = bits_per_byte(logp, [3, 10, 1], ["a", "b", "b"], rng=np.random.default_rng(0))
    assert result.value == pytest.approx(8) and result.interval == pytest.approx((8, 8))
    assert (result.size, result.owners) == (14, 2)


def test_bits_per_byte_is_all_bits_over_all_bytes() -> None:
    rng = np.random.default_rng(2)
    logp = [-rng.exponential(2, size=n) for n in rng.integers(1, 40, 60)]
    sizes = rng.integers(1, 90, 60).tolist()
    result = bits_per_byte(logp, sizes, [str(i // 3) for i in range(60)], rng=rng)
    assert result.value == pytest.approx(-np.concatenate(logp).sum() / np.log(2) / sum(sizes))
    assert result.interval is not None and result.interval[0] < result.value < result.interval[1]


def test_bits_per_byte_of_one_owner_has_no_interval() -> None:
    assert bits_per_byte([np.array([-1.0])] * 2, [1, 2], ["a", "a"], rng=np.random.default_rng(0)).interval is None


def test_an_owner_without_bytes_is_left_out() -> None:
    logp = [np.array([-np.log(2)]), np.array([-5.0])]
    result = bits_per_byte(logp, [1, 0], ["a", "b"], rng=np.random.default_rng(0))
    assert (result.value, result.owners) == (pytest.approx(1), 1)


def test_texts_without_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 bytes"):
        bits_per_byte([np.array([-1.0])], [0], ["a"], rng=np.random.default_rng(0))
