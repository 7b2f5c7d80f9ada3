"""Coefficients of banded strategies against matrices written out."""

import numpy as np
import pytest
from scipy.linalg import sqrtm, toeplitz

from reticent.privacy.toeplitz import optimised, prefix_error, square_root


def matrix(c, steps):
    """The strategy matrix C of a column's coefficients."""
    column = np.zeros(steps)
    column[: len(c)] = c[:steps]
    return toeplitz(column, np.zeros(steps))


def _oracle(c, steps):
    return np.linalg.norm(np.tril(np.ones((steps, steps))) @ np.linalg.inv(matrix(c, steps))) / np.sqrt(steps)


def test_all_bands_are_the_square_root_of_the_prefix_sum():
    c = square_root(12)
    root = np.real(sqrtm(np.tril(np.ones((12, 12)))))[:, 0]
    np.testing.assert_allclose(c, root / np.linalg.norm(root), rtol=1e-6)


@pytest.mark.parametrize(("bands", "steps"), [(1, 5), (3, 20), (8, 5), (8, 50)])
def test_the_error_is_that_of_the_matrices(bands, steps):
    for c in (square_root(bands), optimised(bands, steps)):
        assert prefix_error(c, steps) == pytest.approx(_oracle(c, steps), rel=1e-9)


@pytest.mark.parametrize(("bands", "steps"), [(2, 50), (8, 50), (16, 500), (32, 20), (64, 2000)])
def test_optimised_coefficients_are_not_worse_and_have_norm_one(bands, steps):
    c = optimised(bands, steps)
    assert prefix_error(c, steps) <= prefix_error(square_root(bands), steps)
    assert len(c) == min(bands, steps) and np.linalg.norm(c) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("bands", [4, 8, 16])
def test_prefix_sums_have_less_error_than_with_independent_noise(bands):
    steps = 50
    independent = np.sqrt((steps + 1) / 2)  # prefix t has variance t
    assert prefix_error(optimised(1, steps), steps) == pytest.approx(independent)
    assert prefix_error(optimised(bands, steps), steps) < 0.7 * independent


def test_no_small_change_of_the_coefficients_is_better():
    c, rng = optimised(6, 40), np.random.default_rng(0)
    for _ in range(200):
        other = c + 0.01 * rng.standard_normal(6)
        assert prefix_error(other / np.linalg.norm(other), 40) > prefix_error(c, 40) - 1e-6


def test_columns_a_round_apart_do_not_overlap():
    """What the accounting of a unit that takes part every b steps rests on."""
    strategy = matrix(optimised(4, 22), 22)
    gram = strategy[:, 1::4].T @ strategy[:, 1::4]
    np.testing.assert_array_equal(gram - np.diag(np.diag(gram)), 0)
    assert np.diag(gram).max() <= 1 + 1e-12
