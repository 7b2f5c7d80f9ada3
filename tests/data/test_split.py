"""No owner and no text on both sides; near duplicates against a slow oracle."""

from itertools import combinations

import numpy as np
import pytest

from reticent.data.corpus import Corpus
from reticent.data.near import bands
from reticent.data.record import Record
from reticent.data.split import PARTS, Units, assign_units, joined, split
from reticent.errors import DataError


def _corpus(records: list[Record], near_duplicates: float = 0.8) -> Corpus:
    corpus = Corpus(near_duplicates=near_duplicates)
    for start in range(0, len(records), 7):  # The batches do not matter.
        corpus.add(records[start : start + 7])
    return corpus


def _units(records: list[Record], unit: str, near_duplicates: float = 0.8) -> tuple[list[int], int, int]:
    found = assign_units(_corpus(records, near_duplicates), unit=unit)  # type: ignore[arg-type]  # a parameter's word
    return found.first.tolist(), found.exact_duplicates, found.near_duplicates


def _split(records: list[Record], units: Units | None = None, **shares: float) -> dict[str, list[int]]:
    corpus = _corpus(records)
    first = (units or assign_units(corpus, unit="record")).first
    part = split(corpus, first, **{"held_out": 0.0, "seed": 0, **shares}).part  # type: ignore[arg-type]  # seed is whole
    return {name: np.flatnonzero(part == i).tolist() for i, name in enumerate(PARTS)}


def _records(texts: list[str], owners: list[str] | None = None) -> list[Record]:
    owners = owners or [f"o{i}" for i in range(len(texts))]
    return [
        Record(id=f"r{i}", owner=owner, prompt="", completion=text, origin="test")
        for i, (text, owner) in enumerate(zip(texts, owners, strict=True))
    ]


def test_unit_owner_joins_the_records_of_one_owner_and_unit_record_does_not() -> None:
    records = _records(["one", "two", "three"], ["p", "q", "p"])
    assert _units(records, "owner") == ([0, 1, 0], 0, 0)
    assert _units(records, "record") == ([0, 1, 2], 0, 0)


def test_equal_texts_of_two_owners_are_one_unit_with_all_that_the_owners_have() -> None:
    records = _records(["Same  text", "same text", "other", "else"], ["p", "q", "q", "s"])
    assert _units(records, "owner") == ([0, 0, 0, 3], 1, 0)


def test_the_prompt_counts_as_text() -> None:
    records = [Record(id=p, owner=p, prompt=p, completion="yes", origin="test") for p in ("is it A", "is it B")]
    assert _units(records, "record")[0] == [0, 1]


def test_short_texts_are_joined_only_if_equal() -> None:
    records = _records(["a b c d", "a b c e", "A B c d"])
    assert _units(records, "record", 0.1) == ([0, 1, 0], 1, 0)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_near_duplicates_are_those_of_all_pairs_compared(threshold: float) -> None:
    rng = np.random.default_rng(0)
    base = [list(map(str, rng.integers(10**6, size=30))) for _ in range(40)]
    texts = []
    for words in base:
        for changes in (0, 1, 2):  # 30 words are 26 shingles; a changed word breaks up to 5
            changed = list(words)
            for place in rng.choice(30, size=changes, replace=False):
                changed[place] = str(rng.integers(10**6))
            texts.append(" ".join(changed))

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    together = {
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if len(shingles(texts[i]) & shingles(texts[j])) >= threshold * len(shingles(texts[i]) | shingles(texts[j]))
    }
    first = list(range(len(texts)))  # the smallest text that each hangs together with
    for i, j in sorted(together):
        low, high = sorted((first[i], first[j]))
        first = [low if one == high else one for one in first]
    found, exact, near = _units(_records(texts), "record", threshold)
    assert together and len(set(first)) >= len(base)
    assert found == first
    assert (exact, near) == (0, len(texts) - len(set(first)))


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_a_pair_on_the_threshold_is_hardly_ever_overlooked(threshold: float) -> None:
    count, rows = bands(threshold)
    assert count * rows <= 128
    assert (1 - threshold**rows) ** count <= (2e-3 if threshold < 0.1 else 1e-3)


@pytest.mark.parametrize("unit", ["record", "owner"])
def test_no_owner_and_no_unit_in_two_parts(unit: str) -> None:
    rng = np.random.default_rng(1)
    texts = [f"text {rng.integers(150)}" for _ in range(200)]  # some equal, across owners
    records = _records(texts, [f"p{rng.integers(120)}" for _ in range(200)])
    units = assign_units(_corpus(records), unit=unit)  # type: ignore[arg-type]  # a parameter's word
    parts = _split(records, units, held_out=0.3, calibration=0.3)
    assert sorted(i for part in parts.values() for i in part) == list(range(200))
    assert all(parts.values())
    for value in ([r.owner for r in records], units.first.tolist(), texts):
        seen = [{value[i] for i in part} for part in parts.values()]
        assert not any(one & other for one, other in combinations(seen, 2))


def test_the_share_is_of_groups_and_the_seed_decides() -> None:
    records = _records([f"t{i}" for i in range(2000)], [f"p{i // 2}" for i in range(2000)])
    first = _split(records, held_out=0.1)
    assert abs(len(first["held_out"]) / 2 - 100) < 4 * (1000 * 0.1 * 0.9) ** 0.5  # owners, 4 sd
    assert first == _split(records, held_out=0.1)
    assert first != _split(records, held_out=0.1, seed=1)


def test_calibration_leaves_the_held_out_records_as_they_are() -> None:
    records = _records([f"t{i}" for i in range(300)])
    without, with_it = _split(records, held_out=0.2), _split(records, held_out=0.2, calibration=0.2)
    assert without["held_out"] == with_it["held_out"]
    assert set(with_it["calibration"]) < set(without["train"])


def test_one_owner_more_moves_nobody_else() -> None:
    records = _records([f"t{i}" for i in range(300)], [f"p{i // 3}" for i in range(300)])
    whole = _split(records, held_out=0.3)
    kept = [i for i in range(300) if records[i].owner != "p7"]
    less = _split([records[i] for i in kept], held_out=0.3)
    assert {kept[i] for i in less["train"]} == set(whole["train"]) & set(kept)


@pytest.mark.parametrize(
    ("shares", "match"),
    [
        ({"held_out": 0.001}, "data.held_out = 0.001 takes nobody of 3 owners"),
        ({"held_out": 0.999}, "data.held_out = 0.999 takes everybody of 3 owners"),
        ({"held_out": 0.4, "calibration": 0.001}, "data.calibration = 0.001 takes nobody of 3"),
        ({"held_out": 0.5, "calibration": 0.499}, "leave none of 3 owners"),
    ],
)
def test_an_empty_part_is_refused(shares: dict[str, float], match: str) -> None:
    for seed in range(50):  # Until both are held out by some, for the last case.
        try:
            _split(_records(["a", "b", "c"]), **shares, seed=seed)
        except DataError as error:
            if match in str(error):
                return
    pytest.fail(f"nothing was refused with {match!r}")


def test_a_single_owner_is_refused() -> None:
    with pytest.raises(DataError, match="the 2 records form 1 group"):
        _split(_records(["a", "b"], ["p", "p"]), held_out=0.5)


def test_labels_join_through_one_another() -> None:
    units, owners = np.array([1, 1, 2, 3, 4, 5]), np.array([10, 11, 11, 12, 13, 12])
    assert joined(units, owners).tolist() == [0, 0, 0, 3, 4, 3]


def test_joined_groups_are_those_of_joining_one_pair_after_another() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        units, owners = rng.integers(0, 12, (2, 15))
        group = np.arange(15)
        for i in range(15):
            for j in range(i):
                if units[i] == units[j] or owners[i] == owners[j]:
                    group[group == group[i]] = group[j]
        found = joined(units, owners)
        assert ((found[:, None] == found) == (group[:, None] == group)).all()
        assert found.tolist() == [found.tolist().index(one) for one in found.tolist()]  # named after their first


def test_a_label_of_one_kind_may_be_that_of_another() -> None:
    assert joined(np.array([1, 2]), np.array([2, 1])).tolist() == [0, 1]
