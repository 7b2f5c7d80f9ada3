"""Laws of the generated data set: seeded, no duplicates, and guessing gives one in four."""

import re
import sys
from collections import Counter, defaultdict

import pytest

from reticent.data.clinic import CHAPTERS, NoteWriter, clinic
from reticent.data.corpus import Corpus
from reticent.data.record import Record
from reticent.data.split import assign_units
from reticent.errors import DataError


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return clinic(patients=40, questions=300, seed=0)


def _questions(records: list[Record], kind: str = "") -> list[Record]:
    return [r for r in records if r.origin == "clinic/coding" and kind in r.prompt]


def test_the_seed_decides(records: list[Record]) -> None:
    assert clinic(patients=40, questions=300, seed=0) == records
    assert clinic(patients=40, questions=300, seed=1) != records


def test_no_two_records_are_near_duplicates(records: list[Record]) -> None:
    corpus = Corpus(near_duplicates=0.8)
    corpus.add(records)
    assert assign_units(corpus, unit="record")[1:] == (0, 0)


def test_ids_are_unique(records: list[Record]) -> None:
    assert len({r.id for r in records}) == len(records)


def test_questions_have_four_different_options_with_the_right_one_among_them(records: list[Record]) -> None:
    questions = _questions(records)
    assert len(questions) == 300 and len(_questions(records, "ICD-10 chapter")) == 225
    for question in questions:
        assert question.answer is not None
        assert question.owner.startswith("category-")
        assert len(set(question.options)) == 4
        assert question.options[question.answer] == question.completion


def test_the_place_of_the_right_option_is_uniform() -> None:
    counts = Counter(q.answer for q in clinic(patients=0, questions=600, seed=3))
    assert all(abs(counts[place] - 150) < 4 * (600 * 3 / 16) ** 0.5 for place in range(4))  # 4 sd


def test_chapters_are_right_equally_often_and_wrong_uniformly_so_that_titles_alone_give_one_in_four() -> None:
    asked = _questions(clinic(patients=0, questions=560, seed=0), "ICD-10 chapter")  # 420: 20 a chapter
    right = Counter(q.completion for q in asked)
    wrong = Counter(option for q in asked for option in q.options) - right
    assert set(right) == set(CHAPTERS.values()) and set(right.values()) == {20}
    assert all(abs(wrong[title] - 60) < 4 * (400 * 0.15 * 0.85) ** 0.5 for title in right)  # 4 sd of Bin(400, 3/20)


def test_who_knows_only_how_often_a_title_is_right_is_right_about_one_time_in_four() -> None:
    asked = _questions(clinic(patients=0, questions=1600, seed=0), "ICD-10 chapter")
    often = Counter(q.completion for q in asked)
    share = sum(max(q.options, key=lambda title: (often[title], title)) == q.completion for q in asked) / len(asked)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(asked)) ** 0.5  # 4 sd


def test_no_category_is_asked_about_twice_in_one_kind(records: list[Record]) -> None:
    import simple_icd_10_cm as icd

    category = defaultdict(set)
    for code in icd.get_all_codes():
        if icd.is_category_or_subcategory(code):
            category[icd.get_description(code)].add(code[:3])
    for kind in ("chapter", "block"):
        asked = [category[q.prompt.partition(" of: ")[2]] for q in _questions(records, f"ICD-10 {kind}")]
        alone = [next(iter(codes)) for codes in asked if len(codes) == 1]
        assert len(alone) > 0.9 * len(asked)
        assert len(set(alone)) == len(alone)


def test_too_many_questions_are_refused() -> None:
    with pytest.raises(DataError, match=r"at most \d+ questions .*, got 2250 of this kind"):
        clinic(patients=0, questions=3000, seed=0)


def test_a_patient_has_two_to_four_notes_with_one_record_number_and_phone(records: list[Record]) -> None:
    notes = defaultdict(list)
    for record in records:
        if record.origin == "clinic/note":
            notes[record.owner].append(record.completion)
    assert len(notes) == 40 and {len(n) for n in notes.values()} == {2, 3, 4}
    for texts in notes.values():
        for pattern in (r"\d{6}\b", r"\d{3}-555-01\d\d"):
            assert len({match for text in texts for match in re.findall(pattern, text)}) == 1
        assert all(re.search(r"\d [A-Z][a-z]{2} 20\d\d", text) for text in texts)


def test_a_writer_repeats_no_name_and_no_record_number() -> None:
    writer = NoteWriter(0)
    patients = [writer.patient() for _ in range(2000)]
    assert len({p.name for p in patients}) == len({p.number for p in patients}) == 2000


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faker_healthcare", None)
    with pytest.raises(DataError, match=r"pip install 'reticent\[clinic\]'"):
        NoteWriter(0)
