"""Sums of encoded values are sums of the values, to half a step a site, or refused."""

import numpy as np
import pytest

from reticent.errors import FederationError
from reticent.federation.fixed_point import check_headroom, decode, encode

SIZES = [0, 1, 7, 2**16, 2**16 + 3]


def _values(count, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


@pytest.mark.parametrize("count", SIZES)
def test_encoding_is_the_nearest_integer_in_twos_complement(count):
    values, grid = _values(count), 0.001
    expected = [round(float(value) / grid) % 2**64 for value in values]  # Python's integers and its half-to-even
    encoded = encode(values, grid)
    assert encoded.dtype == np.uint64 and encoded.tolist() == expected


@pytest.mark.parametrize("count", SIZES)
def test_a_sum_of_encoded_values_is_the_sum_to_half_a_step_a_site(count):
    sites = [_values(count, seed) for seed in range(9)]
    total = np.zeros(count, dtype=np.uint64)
    for values in sites:
        total += encode(values, 2.0**-20)
    exact = np.sum([values.astype(np.float64) for values in sites], axis=0)
    assert (np.abs(decode(total, 2.0**-20) - exact) <= 9 * 2.0**-21 + 1e-6).all()


def test_masks_that_cancel_leave_the_sum():
    values, mask = _values(100), np.random.default_rng(1).integers(0, 2**64, 100, dtype=np.uint64)
    assert (encode(values, 1e-6) + mask - mask == encode(values, 1e-6)).all()


def test_rounding_moves_the_norm_by_no_more_than_half_a_step_a_coordinate():
    values, grid = _values(1000), 0.5
    steps = encode(values, grid).view(np.int64)
    assert np.linalg.norm(steps * grid - values.astype(np.float64)) <= grid * np.sqrt(1000) / 2


def test_equal_values_are_encoded_equally():
    values = _values(1000, scale=0.01)
    assert (encode(values, 0.01) == encode(values, 0.01)).all()


def test_a_value_that_is_a_multiple_of_the_grid_survives():
    values = np.array([-3.0, -0.25, 0.0, 0.25, 1e6], dtype=np.float32)
    assert decode(encode(values, 0.25), 0.25).tolist() == values.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_cannot_be_encoded_is_refused(bad):
    with pytest.raises(FederationError, match="must be finite and below"):
        encode(np.array([0.0, bad], dtype=np.float32), 1.0)


def test_a_sum_that_could_wrap_around_is_refused():
    check_headroom(sites=100, largest=1e3, grid=1e-12)
    with pytest.raises(FederationError, match="over 100000 sites .* more than 2.63"):
        check_headroom(sites=100_000, largest=1e3, grid=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_with_headroom_does_not_wrap_around(sign):
    largest, grid, sites = 2.0**40, 2.0**-19, 8
    check_headroom(sites=sites - 1, largest=largest, grid=grid)
    total = np.zeros(1, dtype=np.uint64)
    for _ in range(sites - 1):
        total += encode(np.array([sign * largest], dtype=np.float32), grid)
    assert decode(total, grid)[0] == sign * (sites - 1) * largest
