"""Fair and independent coins, one unit each, and a commitment that binds all of it."""

from dataclasses import replace

import numpy as np
import pytest

from reticent.data.canary import Canary, alternatives, commitment, from_json, make, planted_records, to_json


@pytest.fixture(scope="module")
def canaries() -> list[Canary]:
    return make(pairs=30, copies=5, candidates=40, digits=4, seed=0)


def _family(canaries: list[Canary], family: str) -> list[Canary]:
    return [c for c in canaries if c.family == family]


def test_one_of_each_pair_is_planted_with_all_copies(canaries: list[Canary]) -> None:
    secrets = _family(canaries, "secret")
    assert len(secrets) == 60
    for pair in range(30):
        assert sorted(c.copies for c in secrets if c.pair == pair) == [0, 5]
    assert all(c.planted == (c.copies > 0) for c in canaries)


def test_members_are_planted_once_or_not_at_all(canaries: list[Canary]) -> None:
    members = _family(canaries, "member")
    assert len(members) == 40 and {c.copies for c in members} == {0, 1}
    assert all(c.pair is None and c.space is None for c in members)


def test_coins_are_fair_and_independent() -> None:
    bits = np.array(
        [[c.planted for c in make(pairs=8, copies=1, candidates=8, digits=3, seed=s)] for s in range(400)], float
    )
    bits = np.concatenate([bits[:, 0:16:2], bits[:, 16:]], axis=1)  # the first of each pair, and the members
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4 * 0.5 / 20  # 4 sd of 400 coins
    correlation = np.corrcoef(bits, rowvar=False) - np.eye(16)
    assert np.abs(correlation).max() < 4.5 / 20


def test_coins_do_not_depend_on_copies() -> None:
    flips = [[c.planted for c in make(pairs=9, copies=copies, candidates=9, digits=4, seed=4)] for copies in (1, 10)]
    assert flips[0] == flips[1]


def test_all_names_ids_and_owners_differ(canaries: list[Canary]) -> None:
    assert len({c.record.owner for c in canaries}) == len({c.id for c in canaries}) == len(canaries)
    assert len({c.record.prompt for c in _family(canaries, "secret")}) == 60


def test_a_secret_is_one_of_its_alternatives(canaries: list[Canary]) -> None:
    for secret in _family(canaries, "secret"):
        fills = alternatives(secret)
        assert len(set(fills)) == len(fills) == secret.space == 10_000
        assert fills[int(secret.record.completion)] == secret.record.completion


def test_planted_records_are_the_copies_each_in_the_unit_of_its_canary(canaries: list[Canary]) -> None:
    planted = planted_records(canaries)
    assert len(planted) == 30 * 5 + sum(c.planted for c in _family(canaries, "member"))
    assert len({record.id for record, _ in planted}) == len(planted)
    assert all(unit == record.owner for record, unit in planted)
    assert {unit for _, unit in planted} == {c.id for c in canaries if c.planted}


def test_json_goes_there_and_back(canaries: list[Canary]) -> None:
    assert from_json(to_json(canaries)) == canaries


def test_the_commitment_binds_coins_texts_and_seed(canaries: list[Canary]) -> None:
    first = canaries[0]
    others = [
        replace(first, planted=not first.planted),
        replace(first, record=replace(first.record, completion="0")),
        replace(first, seed=1),
    ]
    assert commitment(canaries) == commitment(make(pairs=30, copies=5, candidates=40, digits=4, seed=0))
    assert commitment(canaries) not in {commitment([other, *canaries[1:]]) for other in others}


def test_no_canaries_is_possible() -> None:
    assert make(pairs=0, copies=1, candidates=0, digits=4, seed=0) == []
