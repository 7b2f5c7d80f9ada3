"""No owner and no text on both sides; near duplicates against a slow oracle."""

from itertools import combinations

import numpy as np
import pytest

from reticent.data.record import Record
from reticent.data.split import _bands, assign_units, split
from reticent.errors import DataError


def _records(texts: list[str], owners: list[str] | None = None) -> list[Record]:
    owners = owners or [f"o{i}" for i in range(len(texts))]
    return [
        Record(id=f"r{i}", owner=owner, prompt="", completion=text, origin="test")
        for i, (text, owner) in enumerate(zip(texts, owners, strict=True))
    ]


def test_unit_owner_joins_the_records_of_one_owner_and_unit_record_does_not() -> None:
    records = _records(["one", "two", "three"], ["p", "q", "p"])
    assert assign_units(records, unit="owner", near_duplicates=0.8) == (["p", "q", "p"], 0, 0)
    assert assign_units(records, unit="record", near_duplicates=0.8) == (["r0", "r1", "r2"], 0, 0)


def test_equal_texts_of_two_owners_are_one_unit_with_all_that_the_owners_have() -> None:
    records = _records(["Same  text", "same text", "other", "else"], ["p", "q", "q", "s"])
    assert assign_units(records, unit="owner", near_duplicates=0.8) == (["p", "p", "p", "s"], 1, 0)


def test_the_prompt_counts_as_text() -> None:
    records = [Record(id=p, owner=p, prompt=p, completion="yes", origin="test") for p in ("is it A", "is it B")]
    assert len(set(assign_units(records, unit="record", near_duplicates=0.8).unit)) == 2


def test_short_texts_are_joined_only_if_equal() -> None:
    records = _records(["a b c d", "a b c e", "A B c d"])
    assert assign_units(records, unit="record", near_duplicates=0.1) == (["r0", "r1", "r0"], 1, 0)


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
    units = assign_units(_records(texts), unit="record", near_duplicates=threshold)
    assert together
    assert all(units.unit[i] == units.unit[j] for i, j in together)
    assert units.near_duplicates == len({j for _, j in together})
    assert len(set(units.unit)) >= len(base)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_a_pair_on_the_threshold_is_hardly_ever_overlooked(threshold: float) -> None:
    bands, rows = _bands(threshold)
    assert bands * rows <= 128
    assert (1 - threshold**rows) ** bands <= (2e-3 if threshold < 0.1 else 1e-3)


@pytest.mark.parametrize("unit", ["record", "owner"])
def test_no_owner_and_no_unit_on_both_sides(unit: str) -> None:
    rng = np.random.default_rng(1)
    texts = [f"text {rng.integers(150)}" for _ in range(200)]  # some equal, across owners
    records = _records(texts, [f"p{rng.integers(120)}" for _ in range(200)])
    units = assign_units(records, unit=unit, near_duplicates=0.8)  # type: ignore[arg-type]
    train, held_out = split(records, units.unit, held_out=0.5, seed=0)
    assert sorted(train + held_out) == list(range(200))
    assert train and held_out
    for value in ([r.owner for r in records], units.unit, [r.completion for r in records]):
        assert not {value[i] for i in train} & {value[i] for i in held_out}


def test_the_share_is_of_groups_and_the_seed_decides() -> None:
    records = _records([f"t{i}" for i in range(2000)], [f"p{i // 2}" for i in range(2000)])
    units = [r.owner for r in records]
    first = split(records, units, held_out=0.1, seed=0)
    assert abs(len(first.held_out) / 2 - 100) < 4 * (1000 * 0.1 * 0.9) ** 0.5  # owners, 4 sd
    assert first == split(records, units, held_out=0.1, seed=0)
    assert first != split(records, units, held_out=0.1, seed=1)


def test_one_owner_more_moves_nobody_else() -> None:
    records = _records([f"t{i}" for i in range(300)], [f"p{i // 3}" for i in range(300)])
    units = [r.owner for r in records]
    whole = split(records, units, held_out=0.3, seed=0)
    kept = [i for i in range(300) if units[i] != "p7"]
    less = split([records[i] for i in kept], [units[i] for i in kept], held_out=0.3, seed=0)
    assert {kept[i] for i in less.train} == set(whole.train) & set(kept)


@pytest.mark.parametrize(("held_out", "who"), [(0.001, "nobody"), (0.999, "everybody")])
def test_an_empty_side_is_refused(held_out: float, who: str) -> None:
    records = _records(["a", "b", "c"])
    with pytest.raises(DataError, match=f"holds out {who} of 3 owners"):
        split(records, ["r0", "r1", "r2"], held_out=held_out, seed=0)


def test_a_single_owner_is_refused() -> None:
    records = _records(["a", "b"], ["p", "p"])
    with pytest.raises(DataError, match="the 2 records form 1 group"):
        split(records, ["r0", "r1"], held_out=0.5, seed=0)
