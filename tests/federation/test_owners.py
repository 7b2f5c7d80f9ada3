"""Owners that sites share, by keyed hashes."""

import hashlib
import hmac

import pytest

from reticent.errors import FederationError
from reticent.federation.owners import hashes, shared

SECRET = bytes(range(32))


def test_a_hash_is_that_of_the_name_without_case_and_space_around_it():
    expected = hmac.new(SECRET, b"ada b", hashlib.sha256).hexdigest()
    assert hashes(["Ada B", " ada b\n"], SECRET) == [expected]


def test_another_secret_gives_other_hashes():
    assert not set(hashes(["a", "b"], SECRET)) & set(hashes(["a", "b"], SECRET[::-1]))


def test_the_order_tells_nothing_of_the_order_of_the_owners():
    assert hashes(["a", "b", "c"], SECRET) == hashes(["c", "a", "b"], SECRET)


def test_each_two_sites_are_counted():
    sites = {name: set(hashes(owners, SECRET)) for name, owners in {"x": "abc", "y": "bcd", "z": "e"}.items()}
    assert shared(sites) == {("x", "y"): 2}


def test_a_secret_that_can_be_guessed_is_refused():
    with pytest.raises(FederationError, match="must have 16 bytes or more, got 15"):
        hashes(["a"], SECRET[:15])
