"""Shares give back a secret, and fewer of them fit every secret."""

import os
from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy import stats

from reticent.errors import PrivacyError
from reticent.federation import shamir
from reticent.federation.shamir import PRIME, SHARE_BYTES, recover, split, weights

SURE = 1e-6  # a true law fails each test below once in a million runs
SECRETS = [bytes(32), b"\xff" * 32, bytes(range(32))]


def numbers(shares):
    return [int.from_bytes(shares[point]) for point in sorted(shares)]


def differences(values, order):
    """Finite differences of values at consecutive points."""
    for _ in range(order):
        values = [(b - a) % PRIME for a, b in pairwise(values)]
    return values


def test_the_field_is_the_smallest_prime_above_two_to_the_256():
    def passes_fermat(number):
        return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7, 11))

    assert [number for number in range(2**256 + 1, PRIME + 1) if passes_fermat(number)] == [PRIME]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("threshold", [1, 2, 3, 5])
def test_every_set_of_threshold_shares_gives_the_secret(secret, threshold):
    shares = split(secret, threshold, range(1, 6))
    for points in combinations(shares, threshold):
        assert recover({point: shares[point] for point in points}, weights(points)) == secret


def test_more_shares_than_the_threshold_give_the_secret_too():
    shares = split(SECRETS[2], 3, range(1, 8))
    assert recover(shares, weights(shares)) == SECRETS[2]


def test_shares_worked_out_by_hand():
    """7 + 2 x + 3 x^2 at 1, 2 and 4: 12, 23, 63. The factors at 0 are 8/3, -2 and 1/3."""
    shares = {point: value.to_bytes(SHARE_BYTES) for point, value in {1: 12, 2: 23, 4: 63}.items()}
    third = pow(3, -1, PRIME)
    assert weights(shares) == {1: 8 * third % PRIME, 2: PRIME - 2, 4: third}
    assert recover(shares, weights(shares)) == (7).to_bytes(32)


def test_shares_are_a_polynomial_of_degree_below_the_threshold_with_the_secret_at_zero():
    values = numbers(split(SECRETS[2], 4, range(1, 11)))
    assert set(differences(values, 4)) == {0} and 0 not in differences(values, 3)
    steps = [differences(values, order)[0] for order in range(4)]
    at_zero = steps[0] - steps[1] + steps[2] - steps[3]  # Newton's series from 1 back to 0
    assert at_zero % PRIME == int.from_bytes(SECRETS[2])


def test_fewer_shares_than_the_threshold_fit_every_secret():
    shares = split(SECRETS[2], 3, range(1, 6))
    factors = weights([2, 4, 5])
    for other in (*SECRETS, os.urandom(32)):
        rest = int.from_bytes(other) - sum(int.from_bytes(shares[point]) * factors[point] for point in (2, 4))
        forged = (rest * pow(factors[5], -1, PRIME) % PRIME).to_bytes(SHARE_BYTES)
        assert recover({2: shares[2], 4: shares[4], 5: forged}, factors) == other


@pytest.mark.parametrize("secret", SECRETS)
def test_a_share_is_uniform_whatever_the_secret(secret):
    drawn = [int.from_bytes(split(secret, 2, [1, 2])[2]) / PRIME for _ in range(4000)]
    assert stats.kstest(drawn, "uniform").pvalue > SURE


def test_two_shares_of_three_are_independent():
    pairs = np.array(
        [[value * 4 // PRIME for value in numbers(split(bytes(32), 3, [1, 2, 3]))[:2]] for _ in range(4000)]
    )
    counts = np.bincount(4 * pairs[:, 0] + pairs[:, 1], minlength=16)
    assert stats.chisquare(counts).pvalue > SURE


@pytest.mark.parametrize("points", [[1], [0, 1, 2], [1, 2, PRIME]])
def test_points_that_are_too_few_or_would_be_the_secret_are_no_points(points):
    with pytest.raises(AssertionError):
        split(bytes(32), 2, points)


def test_a_false_share_gives_another_secret():
    shares = split(SECRETS[2], 3, range(1, 4))
    shares[2] = (int.from_bytes(shares[2]) + 1).to_bytes(SHARE_BYTES)
    false = int.from_bytes(recover(shares, weights(shares)))
    assert false == int.from_bytes(SECRETS[2]) - 3  # Lagrange's factor of 2 among 1, 2 and 3


def test_shares_of_no_secret_of_32_bytes_are_refused():
    with pytest.raises(PrivacyError, match="no secret"):
        recover({1: (2**256).to_bytes(SHARE_BYTES)}, weights([1]))


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), PRIME.to_bytes(SHARE_BYTES), b"\xff" * SHARE_BYTES])
def test_a_share_has_one_spelling(share):
    with pytest.raises(PrivacyError, match="share must be 33 bytes"):
        shamir.element(share)


def test_the_largest_element_is_a_share():
    assert shamir.element((PRIME - 1).to_bytes(SHARE_BYTES)) == PRIME - 1
