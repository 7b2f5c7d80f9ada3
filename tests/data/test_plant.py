"""Planted identifiers: where they are, what they are, and that the recall on them is unbiased."""

import re
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from reticent.data.plant import KINDS, PHRASES, Planted, plant, recall
from reticent.data.record import Record
from reticent.data.scrub import Settings, scrub
from reticent.data.spans import Span
from reticent.errors import DataError
from reticent.statistics import clopper_pearson

TEXT = "The knee hurts since May. No swelling was seen.\nPlan: rest, then again in two weeks."


def _records(count: int, *, prompt: str = "Write a note.", text: str = TEXT) -> Iterator[Record]:
    for i in range(count):
        yield Record(id=f"r{i}", owner=f"o{i}", prompt=prompt, completion=f"{text} ({i})", origin="test")


def _texts(planted: Planted) -> tuple[str, str]:
    return planted.record.prompt, planted.record.completion


def _value(planted: Planted) -> str:
    return _texts(planted)[planted.part][planted.span.start : planted.span.end]


def _number(planted: Planted) -> int:
    """Of the record, from the end of its text."""
    numbers = re.findall(r"weeks\.[^()]* \((\d+)\)|\((\d+)\)$", planted.record.completion)
    return int("".join(numbers[-1]))


@pytest.fixture(scope="module")
def plants() -> list[Planted]:
    return list(plant(_records(100), count=400, seed=1))


def test_a_plant_is_the_only_change_of_its_copy(plants: list[Planted]) -> None:
    originals = {record.completion for record in _records(100)}
    for planted in plants:
        text, value = _texts(planted)[planted.part], _value(planted)
        shortened = set()
        for phrase in [phrase for phrases in PHRASES[planted.span.entity] for phrase in phrases]:
            whole = phrase.format(value)
            shortened |= {
                text.replace(f"{before}{whole}{after}", "", 1)
                for before in ("", " ", "\n")
                for after in ("", " ", "\n")
                if f"{before}{whole}{after}" in text
            }
        assert shortened & (originals if planted.part else {"Write a note."})
        assert _texts(planted)[1 - planted.part] in (originals | {"Write a note."})


def test_each_kind_is_planted_as_often_as_any_other(plants: list[Planted]) -> None:
    assert set(Counter(planted.span.entity for planted in plants).values()) == {400 // len(KINDS)}


def test_plants_stand_at_sentence_borders_and_inside_sentences_of_both_parts(plants: list[Planted]) -> None:
    assert {planted.part for planted in plants} == {0, 1}
    before = Counter(_texts(p)[p.part][: p.span.start].count(".") for p in plants if p.part == 1)
    assert len(before) >= 3
    assert any(re.search(r"since \(|knee \(|hurts,", _texts(p)[1]) for p in plants)


def test_a_copy_has_an_owner_of_its_own_and_no_record_changes() -> None:
    records = list(_records(20))
    copies = [planted.record for planted in plant(records, count=20, seed=2)]
    assert records == list(_records(20))
    assert {copy.owner for copy in copies}.isdisjoint(record.owner for record in records)
    assert len({copy.id for copy in copies}) == 20
    assert {copy.origin for copy in copies} == {"plant"}


def test_values_are_fictional(plants: list[Planted]) -> None:
    values = {kind: [_value(p) for p in plants if p.span.entity == kind] for kind in KINDS}
    assert all(re.search(r"555[- .)]+01\d\d$", value) for value in values["PHONE_NUMBER"])
    assert all(re.search(r"@example\.(com|org|net)$", value) for value in values["EMAIL_ADDRESS"])
    assert all(re.fullmatch(r"9\d\d-[1-4]\d-\d{4}", value) for value in values["US_SSN"])
    assert all(re.fullmatch(r"[1-9]\d{4,7}", value) for value in values["MEDICAL_RECORD"])


def test_ibans_have_valid_check_digits(plants: list[Planted]) -> None:
    for value in (_value(p) for p in plants if p.span.entity == "IBAN_CODE"):
        code = value.replace(" ", "")
        assert int("".join(str(int(letter, 36)) for letter in code[4:] + code[:4])) % 97 == 1


def test_plants_differ(plants: list[Planted]) -> None:
    assert len({_value(planted) for planted in plants}) > 0.95 * len(plants)


def test_the_same_seed_plants_the_same_and_another_seed_does_not() -> None:
    first, again, other = (list(plant(_records(50), count=40, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_order_of_the_records_does_not_matter() -> None:
    records = list(_records(200))
    assert list(plant(records, count=40, seed=1)) == list(plant(records[::-1], count=40, seed=1))


def test_every_record_is_as_likely_to_be_chosen() -> None:
    chosen = Counter(
        _number(p) for seed in range(100) for p in plant(_records(40), count=10, seed=seed, kinds=["MEDICAL_RECORD"])
    )
    # 40 records, each chosen Binomial(100, 1/4) times: 5 standard deviations either way.
    assert sum(chosen.values()) == 1000
    assert max(abs(chosen[i] - 25) for i in range(40)) < 5 * np.sqrt(100 / 4 * 3 / 4)


def test_few_records_are_copied_again_with_every_kind_in_each() -> None:
    pairs = {(_number(p), p.span.entity) for p in plant(_records(8), count=800, seed=3)}
    assert len(pairs) == 8 * len(KINDS)


def test_a_question_gets_its_plant_in_the_prompt_and_keeps_its_answer() -> None:
    question = Record(
        id="q", owner="o", prompt="Which one is it?", completion="b", origin="t", options=("a", "b"), answer=1
    )
    for planted in plant([question], count=40, seed=4):
        assert planted.part == 0
        assert planted.record.options[1] == planted.record.completion == "b"


def test_no_record_is_refused() -> None:
    with pytest.raises(DataError, match="there is no record to plant identifiers in"):
        list(plant([], count=10, seed=0))


@pytest.mark.parametrize(("count", "kinds"), [(0, KINDS), (len(KINDS) - 1, KINDS), (5, ())])
def test_less_than_one_of_each_kind_is_refused(count: int, kinds: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="at least one of each"):
        list(plant(_records(5), count=count, seed=0, kinds=kinds))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DataError, match="no plants of kind 'SHOE_SIZE'; there are PERSON, "):
        list(plant(_records(5), seed=0, kinds=["SHOE_SIZE"]))


def test_no_more_records_are_held_than_plants_are_made() -> None:
    tracemalloc.start()
    try:
        next(plant(_records(20_000, text=TEXT * 10), count=20, seed=0))  # 17 MB of text in all
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6


# Recall.


def _found(planted: Planted, *spans: Span) -> list[list[Span]]:
    return [list(spans) if part == planted.part else [] for part in (0, 1)]


def test_a_plant_must_be_covered_wholly(plants: list[Planted]) -> None:
    few = plants[:50]
    whole = recall(few, [_found(p, p.span) for p in few])
    partly = recall(few, [_found(p, p.span._replace(start=p.span.start + 1)) for p in few])
    wrong_part = recall(few, [_found(p, p.span)[::-1] for p in few])
    assert whole[0][:4] == ("planted_recall", 1.0, clopper_pearson(50, 50), 50)
    assert partly[0].value <= 0.2  # a bracket before a telephone number may show
    assert wrong_part[0].value == 0


def test_recall_is_counted_by_kind(plants: list[Planted]) -> None:
    found = [_found(p, p.span) if p.span.entity == "DATE" else _found(p) for p in plants]
    scores = {scored.name: scored for scored in recall(plants, found)}
    assert scores["planted_recall_date"][1:4] == (1.0, clopper_pearson(50, 50), 50)
    assert scores["planted_recall_person"].value == 0
    assert scores["planted_recall"].value == 1 / len(KINDS)


def test_a_dropped_copy_is_left_out_and_counts_neither_way(plants: list[Planted]) -> None:
    found: list[list[list[Span]]] = [[] if i % 2 else _found(p, p.span) for i, p in enumerate(plants)]
    assert recall(plants, found)[0][1::2] == (1.0, len(plants) // 2, recall(plants, found)[0].method)


def test_a_scrubber_that_drops_every_copy_is_refused(plants: list[Planted]) -> None:
    with pytest.raises(DataError, match="dropped every copy"):
        recall(plants, [[] for _ in plants])


class Digits:
    """Finds numbers."""

    name, version = "digits", "1"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        return [[Span(*number.span(), "ID") for number in re.finditer(r"\d[\d -]*", text)] for text in texts]


def test_what_the_scrubber_answers_can_be_counted(plants: list[Planted]) -> None:
    scrubbed = scrub((planted.record for planted in plants), Settings(recognisers=("digits",)), recogniser=Digits())
    scores = {scored.name: scored.value for scored in recall(plants, (result.spans for result in scrubbed))}
    assert scores["planted_recall_us_ssn"] == scores["planted_recall_medical_record"] == 1
    assert scores["planted_recall_person"] == 0


@pytest.mark.parametrize("chance", [0.3, 0.9, 0.98])
def test_recall_is_unbiased_and_its_interval_holds(plants: list[Planted], chance: float) -> None:
    rng = np.random.default_rng([6, int(100 * chance)])
    few, rounds = plants[:100], 400
    values, held = [], 0
    for _ in range(rounds):
        found = [_found(p, p.span) if rng.random() < chance else _found(p) for p in few]
        scored = recall(few, found)[0]
        assert scored.interval is not None
        values.append(scored.value)
        held += scored.interval[0] <= chance <= scored.interval[1]
    assert abs(np.mean(values) - chance) < 4 * np.sqrt(chance * (1 - chance) / len(few) / rounds)
    assert held >= 0.95 * rounds - 3 * np.sqrt(rounds * 0.95 * 0.05)


def test_recall_over_places_is_unbiased_for_the_corpus() -> None:
    """A scrubber that masks everything in half of the records, and nothing elsewhere, has a recall of one half."""
    values = []
    for seed in range(60):
        few = list(plant(_records(200), count=80, seed=seed, kinds=["MEDICAL_RECORD", "DATE"]))
        found = []
        for p in few:
            found.append([[Span(0, len(text), "X")] if _number(p) % 2 else [] for text in _texts(p)])
        values.append(recall(few, found)[0].value)
    assert abs(np.mean(values) - 0.5) < 4 * np.sqrt(0.25 / 80 / 60)
