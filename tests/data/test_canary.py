"""Fair and independent coins, one unit each, and a commitment that binds all of it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reticent.data.canary import (
    FAMILIES,
    Canary,
    Material,
    alternatives,
    commitment,
    commitments,
    counts,
    from_json,
    make,
    member_share,
    planted_records,
    to_json,
    unused_tokens,
)
from reticent.data.record import Record
from reticent.errors import DataError

WORDS = [f"w{i}" for i in range(500)]


def _sample(count: int, seed: int) -> list[str]:
    return [f"text {i} of seed {seed}" for i in range(count)]


MATERIAL = Material(words=WORDS, sample=_sample, prompt="Write a note.", tokens=[f"tok{i}" for i in range(30)])


@pytest.fixture(scope="module")
def canaries() -> list[Canary]:
    return make(pairs=30, copies=5, candidates=40, digits=4, seed=0)


@pytest.fixture(scope="module")
def all_families() -> list[Canary]:
    return make(pairs=8, copies=(0, 1, 10, 100), candidates=dict.fromkeys(FAMILIES, 12), **_SMALL)


_SMALL: dict[str, Any] = {"digits": 3, "seed": 0, "material": MATERIAL}


def _role(canaries: list[Canary], role: str) -> list[Canary]:
    return [c for c in canaries if c.role == role]


def _family(canaries: list[Canary], family: str) -> list[Canary]:
    return [c for c in canaries if c.family == family and c.role == "member"]


def test_one_of_each_pair_is_planted_with_all_copies(canaries: list[Canary]) -> None:
    secrets = _role(canaries, "secret")
    assert len(secrets) == 60
    for pair in range(30):
        assert sorted(c.copies for c in secrets if c.pair == pair) == [0, 5]
    assert all(c.planted == (c.copies > 0) for c in canaries)


def test_members_are_planted_once_or_not_at_all(canaries: list[Canary]) -> None:
    members = _role(canaries, "member")
    assert len(members) == 40 and {c.copies for c in members} == {0, 1}
    assert all(c.pair is None and c.space is None for c in members)


def test_levels_are_dealt_evenly_over_the_pairs() -> None:
    secrets = make(pairs=42, copies=(0, 1, 10, 100), candidates=0, digits=3, seed=0)
    most = [max(c.copies for c in secrets if c.pair == pair) for pair in range(42)]
    assert sorted(Counter(most).values()) == [10, 10, 11, 11]
    assert set(most) == {0, 1, 10, 100}
    assert most != [(0, 1, 10, 100)[pair % 4] for pair in range(42)]


def test_a_pair_of_level_0_is_held_out_as_a_whole(all_families: list[Canary]) -> None:
    secrets = _role(all_families, "secret")
    held_out = [pair for pair in range(8) if not any(c.planted for c in secrets if c.pair == pair)]
    assert len(held_out) == 2


@pytest.mark.parametrize(
    ("pairs", "levels"), [(5, ()), (5, (0,)), (5, (1, 1)), (5, (-1, 1)), (3, (0, 1, 10, 100)), (5, 0)]
)
def test_levels_that_cannot_be_planted_are_refused(pairs: int, levels: Any) -> None:
    with pytest.raises(DataError, match=f"{pairs} pairs of secrets cannot be planted"):
        make(pairs=pairs, copies=levels, candidates=0, digits=3, seed=0)


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


def test_coins_do_not_depend_on_what_the_canaries_say() -> None:
    others = replace(MATERIAL, words=[f"x{i}" for i in range(100)], prefixes=["Seen today:"])
    made = [
        make(pairs=5, copies=1, candidates=dict.fromkeys(FAMILIES, 9), digits=3, seed=1, material=m)
        for m in (MATERIAL, others)
    ]
    assert made[0] != made[1]
    assert [c.planted for c in made[0]] == [c.planted for c in made[1]]


def test_a_later_family_leaves_the_earlier_ones_as_they_are() -> None:
    few = make(pairs=5, copies=1, candidates={"fake-patient": 7}, **_SMALL)
    more = make(pairs=5, copies=1, candidates={"new-token": 4, "fake-patient": 7}, **_SMALL)
    assert more[: len(few)] == few and len(more) == len(few) + 4


def test_all_names_ids_and_owners_differ(all_families: list[Canary]) -> None:
    assert len({c.record.owner for c in all_families}) == len({c.id for c in all_families}) == len(all_families)
    digits = [c.record.prompt for c in all_families if c.family == "random-digits"]
    assert len(set(digits)) == len(digits) == 16 + 12


def test_a_number_of_candidates_is_of_fake_patients(canaries: list[Canary]) -> None:
    assert {c.family for c in _role(canaries, "member")} == {"fake-patient"}


def test_all_families_are_made_in_the_numbers_asked(all_families: list[Canary]) -> None:
    assert Counter(c.family for c in _role(all_families, "member")) == dict.fromkeys(FAMILIES, 12)
    assert {c.family for c in _role(all_families, "secret")} == {"random-digits"}


def test_a_rare_suffix_is_drawn_uniformly_from_the_vocabulary() -> None:
    made = make(pairs=0, copies=1, candidates={"rare-suffix": 500}, **_SMALL)
    drawn = [c.record.completion.split()[-8:] for c in made]
    assert all(word in WORDS for words in drawn for word in words)
    times = Counter(word for words in drawn for word in words)
    assert sum((times[word] - 8) ** 2 / 8 for word in WORDS) < 499 + 4.5 * np.sqrt(2 * 499)  # chi-squared


def test_a_rare_suffix_starts_like_a_note(all_families: list[Canary]) -> None:
    for canary in _family(all_families, "rare-suffix"):
        assert canary.record.prompt.endswith(":")
        assert not set(canary.record.completion.split()[:-8]) & set(WORDS)
        assert len(canary.record.completion.split()) > 11


def test_given_prefixes_are_used() -> None:
    material = replace(MATERIAL, prefixes=["On call:", "At home:"])
    made = make(pairs=0, copies=1, candidates={"rare-suffix": 20}, digits=3, seed=0, material=material)
    assert {" ".join(c.record.completion.split()[:2]) for c in made} == {"On call:", "At home:"}


def test_rare_words_are_not_lacking_by_default() -> None:
    made = make(pairs=0, copies=1, candidates={"rare-suffix": 5}, digits=3, seed=0)
    assert len({c.record.completion for c in made}) == 5


def test_each_new_token_is_in_one_canary(all_families: list[Canary]) -> None:
    tokens = [c.record.completion for c in _family(all_families, "new-token")]
    assert len(set(tokens)) == 12 and set(tokens) <= set(MATERIAL.tokens)
    assert not any(token in c.record.prompt.split() for c in all_families for token in tokens)


def test_sampled_texts_are_the_completions(all_families: list[Canary]) -> None:
    sampled = _family(all_families, "high-temperature")
    assert {c.record.prompt for c in sampled} == {"Write a note."}
    assert [c.record.completion.split(" of ")[0] for c in sampled] == [f"text {i}" for i in range(12)]


@pytest.mark.parametrize(
    ("family", "material", "message"),
    [
        ("rare-suffix", Material(words=["a"] * 500), "at least 100 different words, got 1"),
        ("rare-suffix", Material(prefixes=[]), "list of prefixes"),
        ("high-temperature", Material(), "sampled from the base model, and none was given"),
        ("high-temperature", Material(sample=lambda n, s: ["a"] * n), "gave 1 different texts for 3"),
        ("high-temperature", Material(sample=lambda n, s: ["a", "b", " "]), "gave 2 different texts for 3"),
        ("high-temperature", Material(sample=lambda n, s: _sample(9, s)), "gave 9 different texts for 3"),
        ("new-token", Material(tokens=["a", "b", "b"]), "the tokenizer has 2"),
    ],
)
def test_a_family_without_its_material_is_refused(family: Any, material: Material, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(pairs=0, copies=1, candidates={family: 3}, digits=3, seed=0, material=material)


def test_an_unknown_family_is_refused_and_the_valid_ones_listed() -> None:
    with pytest.raises(DataError, match="fake-patient, random-digits, .* got fake-patients"):
        make(pairs=0, copies=1, candidates={"fake-patients": 3}, digits=3, seed=0)  # type: ignore[dict-item]


def test_tokens_of_the_corpus_are_not_new() -> None:
    ids = {"a": [1], "b": [2], "ab": [1, 2], "c": [3]}
    assert unused_tokens(ids, lambda text: ids[text], {2}) == ["a", "c"]


def test_a_secret_is_one_of_its_alternatives(canaries: list[Canary]) -> None:
    for secret in _role(canaries, "secret"):
        fills = alternatives(secret)
        assert len(set(fills)) == len(fills) == secret.space == 10_000
        assert fills[int(secret.record.completion)] == secret.record.completion


def test_planted_records_are_the_copies_each_in_the_unit_of_its_canary(all_families: list[Canary]) -> None:
    planted = planted_records(all_families)
    assert len(planted) == 2 * (1 + 10 + 100) + sum(c.planted for c in _role(all_families, "member"))
    assert len({record.id for record, _ in planted}) == len(planted)
    assert all(unit == record.owner for record, unit in planted)
    assert {unit for _, unit in planted} == {c.id for c in all_families if c.planted}


@pytest.mark.parametrize(
    "changes",
    [
        {"copies": 2},
        {"planted": False},
        {"copies": 0},
        {"pair": 1},
        {"space": 10},
        {"role": "secret"},
        {"id": "another"},
    ],
)
def test_a_member_with_copies_or_without_a_unit_of_its_own_cannot_be(
    canaries: list[Canary], changes: dict[str, Any]
) -> None:
    member = next(c for c in canaries if c.role == "member" and c.planted)
    with pytest.raises(DataError, match="canary .*; make the canaries again"):
        replace(member, **changes)


def test_a_secret_needs_a_space(canaries: list[Canary]) -> None:
    with pytest.raises(DataError, match="secrets have both"):
        replace(canaries[0], space=None)


def test_json_goes_there_and_back(all_families: list[Canary]) -> None:
    assert from_json(to_json(all_families)) == all_families


@pytest.mark.parametrize("what", ["ids", "texts"])
def test_canaries_that_repeat_another_are_refused(canaries: list[Canary], what: str) -> None:
    first, second = canaries[0], canaries[2]
    record = replace(second.record, prompt=first.record.prompt, completion=first.record.completion)
    other = first if what == "ids" else replace(second, record=record)
    with pytest.raises(DataError, match=f"1 of 2 canaries repeat {what}"):
        from_json(to_json([first, other]))


def test_the_commitment_binds_coins_texts_and_seed(canaries: list[Canary]) -> None:
    first = canaries[0]
    others = [
        replace(first, planted=not first.planted, copies=5 - first.copies),
        replace(first, record=replace(first.record, completion="0")),
        replace(first, seed=1),
    ]
    assert commitment(canaries) == commitment(make(pairs=30, copies=5, candidates=40, digits=4, seed=0))
    assert commitment(canaries) not in {commitment([other, *canaries[1:]]) for other in others}


def test_each_family_has_a_commitment_that_binds_it_alone(all_families: list[Canary]) -> None:
    before = commitments(all_families)
    last = all_families[-1]
    changed = replace(last, planted=not last.planted, copies=1 - last.copies)
    after = commitments([*all_families[:-1], changed])
    assert set(before) == set(FAMILIES)
    assert {family for family in FAMILIES if before[family] != after[family]} == {"new-token"}


def test_the_manifest_counts_each_family_and_role(all_families: list[Canary]) -> None:
    found = counts(all_families)
    assert found["random-digits secrets"] == {
        "planted": 6,
        "held_out": 10,
        "planted_by_copies": {"1": 2, "10": 2, "100": 2},
        "records": 222,
    }
    assert sum(one["planted"] + one["held_out"] for one in found.values()) == len(all_families)


def test_the_share_of_members_is_of_all_candidates(canaries: list[Canary]) -> None:
    assert member_share(canaries, 4000) == 0.01


def test_no_canaries_is_possible() -> None:
    assert make(pairs=0, copies=1, candidates=0, digits=4, seed=0) == []


def _corpus(count: int) -> Iterator[tuple[Record, str]]:
    for i in range(count):
        yield Record(id=f"r{i}", owner=f"p{i // 2}", prompt="", completion=f"t{i}", origin="o"), f"u{i // 2}"
