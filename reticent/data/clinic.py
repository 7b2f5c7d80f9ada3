"""``bundled/clinic``: a generated data set, so that everything runs with nobody's text.

Two kinds of record: coding questions over the real ICD-10-CM titles, in which usefulness can be measured, and visit
notes of invented patients, in which leaks can. All follows from a seed (and the versions of the packages that know the
names and titles). Telephone numbers are in the range kept for fiction, 555-0100 to 555-0199. What is not here: real
clinical language. Notes join a score of phrases, so a model learns their form quickly, and the numbers measured on them
compare models with each other, not with a hospital.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reticent.data.record import Record
from reticent.errors import DataError

if TYPE_CHECKING:
    from faker import Faker

# Our short titles: the official ones run to fifteen words. Chapter 22 has too few codes to ask about.
CHAPTERS = {
    "1": "Infectious and parasitic diseases",
    "2": "Neoplasms",
    "3": "Diseases of the blood",
    "4": "Endocrine and metabolic diseases",
    "5": "Mental and behavioral disorders",
    "6": "Diseases of the nervous system",
    "7": "Diseases of the eye",
    "8": "Diseases of the ear",
    "9": "Diseases of the circulatory system",
    "10": "Diseases of the respiratory system",
    "11": "Diseases of the digestive system",
    "12": "Diseases of the skin",
    "13": "Diseases of muscles and bones",
    "14": "Diseases of the genitourinary system",
    "15": "Pregnancy and childbirth",
    "16": "Conditions of the newborn",
    "17": "Congenital malformations",
    "18": "Symptoms and abnormal findings",
    "19": "Injury and poisoning",
    "20": "External causes of morbidity",
    "21": "Factors influencing health status",
}
OPTIONS = 4
LONGEST_DESCRIPTION = 55  # characters
LONGEST_TITLE = 45  # characters, of a block
SMALLEST_BLOCK = 4  # categories
LONGEST_DIAGNOSIS = 30  # characters, in a note

MISSING = "invented patients and coding questions need more packages: pip install 'reticent[clinic]'"
TODAY = date(2026, 1, 1)  # a constant: a data set must not depend on the day it was made

FINDINGS = (
    "Had {symptom} for {days} days; {diagnosis}.",
    "Came with {symptom}. {diagnosis}.",
    "{diagnosis}, still {symptom}.",
    "Complains of {symptom}, likely {diagnosis}.",
    "Known {diagnosis}, now {symptom}.",
    "Exam: {symptom}. Assessment: {diagnosis}.",
)
PLANS = (
    "Start {drug}.",
    "Give {drug}, review in {weeks} weeks.",
    "Plan {procedure}.",
    "Stop {drug}.",
    "Back on {next}.",
    "Refer for {procedure}.",
)
CONTACTS = (
    "MRN {number}, phone {phone}.",
    "Call {phone}, MRN {number}.",
    "Record {number}, tel {phone}.",
    "Phone {phone}. Record {number}.",
)
SIGNATURES = ("Seen {day}, Dr. {doctor}.", "{day}, Dr. {doctor}.", "Dr. {doctor}, {day}.", "Signed {doctor}, {day}.")
REQUESTS = ("Visit note for {name}:", "Clinic note, {name}:", "Note on {name}:", "Today's visit of {name}:")


class Category(NamedTuple):
    """A three-character ICD-10-CM category: its chapter, its block, and the short titles at or under it."""

    code: str
    chapter: str
    block: str
    descriptions: tuple[str, ...]


class Patient(NamedTuple):
    """Who does not exist. ``number`` is the record number."""

    name: str
    number: str
    phone: str


class NoteWriter:
    """Invents patients and writes their visit notes; no name and no record number comes twice from one writer."""

    def __init__(self, seed: int | list[int]) -> None:
        self._rng = np.random.default_rng(seed)
        self._faker = _faker(int(self._rng.integers(2**32)))
        self._taken: set[str] = set()
        # Chapters 1 to 14 are diseases; the later ones hold injuries, accidents and reasons for an encounter.
        diseases = list(CHAPTERS.values())[:14]
        texts = (c.descriptions[0] for c in _categories() if c.chapter in diseases)
        self._diagnoses = [text for text in texts if len(text) <= LONGEST_DIAGNOSIS]

    def patient(self) -> Patient:
        """The next patient."""
        return Patient(
            name=self.name(),
            number=self._new(lambda: f"{self._rng.integers(10**5, 10**6)}"),
            phone=f"{self._rng.integers(201, 990)}-555-01{self._rng.integers(100):02d}",
        )

    def name(self) -> str:
        """The next name."""
        return self._new(lambda: f"{self._faker.first_name()} {self._faker.last_name()}")

    def note(self, patient: Patient) -> tuple[str, str]:
        """A prompt, and the note of one visit: finding, plan, contact and signature, in some order."""
        day = TODAY - timedelta(days=int(self._rng.integers(1, 1500)))
        values = {
            **patient._asdict(),
            "symptom": self._faker.symptom().lower(),
            "diagnosis": self._pick(self._diagnoses),
            "drug": self._faker.medication().lower(),
            "procedure": self._faker.medical_procedure().lower(),
            "doctor": self._faker.last_name(),
            "days": str(self._rng.integers(2, 60)),
            "weeks": str(self._rng.integers(2, 12)),
            "day": _written(day),
            "next": _written(day + timedelta(days=int(self._rng.integers(7, 90)))),
        }
        parts = [self._pick(phrases) for phrases in (FINDINGS, PLANS, CONTACTS, SIGNATURES)]
        self._rng.shuffle(parts)
        return self._pick(REQUESTS).format(**values), " ".join(parts).format(**values)

    def _pick(self, phrases: Sequence[str]) -> str:
        return phrases[int(self._rng.integers(len(phrases)))]

    def _new(self, draw: Callable[[], str]) -> str:
        value = draw()
        while value in self._taken:
            value = draw()
        self._taken.add(value)
        return value


def clinic(*, patients: int, questions: int, seed: int) -> list[Record]:
    """The data set ``bundled/clinic``: coding questions, owned by the category, and 2 to 4 notes of each patient.

    Raises:
        DataError: ICD-10-CM has too few categories for ``questions`` (693 is the most), or a package is missing.
    """
    return _questions(questions, np.random.default_rng([seed, 1])) + _notes(patients, seed)


def _notes(patients: int, seed: int) -> list[Record]:
    rng, writer = np.random.default_rng([seed, 2]), NoteWriter([seed, 3])
    records = []
    for index in range(patients):
        owner, patient = f"patient-{index + 1:04d}", writer.patient()
        for visit in range(int(rng.integers(2, 5))):
            prompt, completion = writer.note(patient)
            name = f"{owner}/{visit + 1}"
            records.append(Record(id=name, owner=owner, prompt=prompt, completion=completion, origin="clinic/note"))
    return records


def _questions(count: int, rng: np.random.Generator) -> list[Record]:
    """Three quarters ask for the chapter, one quarter for the block; a category is one owner.

    The right answers go round all chapters (blocks) as evenly as their sizes allow, and the wrong ones are drawn from
    the others in the same proportions, so an answerer that knows the titles but not the diseases is right about one
    time in four. No category is asked about twice in one kind, and as one owner it is never asked about in training
    and held-out questions both.
    """
    records: list[Record] = []
    for kind, groups, share in (("chapter", _chapters(), count - count // 4), ("block", _blocks(), count // 4)):
        titles = list(groups)
        drawn = _even_draw(groups, share, kind=kind, rng=rng)
        weights = np.array([sum(title == right for right, _ in drawn) for title in titles], dtype=float)
        for right, category in drawn:
            others = np.where([title == right for title in titles], 0.0, weights)
            if np.count_nonzero(others) < OPTIONS - 1:  # few questions: any other title will do
                others = np.array([title != right for title in titles], dtype=float)
            wrong = rng.choice(len(titles), size=OPTIONS - 1, replace=False, p=others / others.sum())
            options = [right, *(titles[i] for i in wrong)]
            rng.shuffle(options)
            description = category.descriptions[int(rng.integers(len(category.descriptions)))]
            records.append(
                Record(
                    id=f"question-{len(records) + 1:04d}",
                    owner=f"category-{category.code}",
                    prompt=f"ICD-10 {kind} of: {description}",
                    completion=right,
                    origin="clinic/coding",
                    options=tuple(options),
                    answer=options.index(right),
                )
            )
    return records


def _even_draw(
    groups: dict[str, list[Category]], count: int, *, kind: str, rng: np.random.Generator
) -> list[tuple[str, Category]]:
    """``count`` categories with the title of their group, none twice, in random order.

    Every group gives as many as any other until it has no more; what does not divide evenly goes to a random part.
    """
    most = sum(map(len, groups.values()))
    if count > most:
        raise DataError(
            f"questions: ICD-10-CM gives at most {most} questions that ask for the {kind}, got {count} of this kind; "
            f"lower data.questions"
        )
    shuffled = [
        [(title, categories[i]) for i in rng.permutation(len(categories))] for title, categories in groups.items()
    ]
    drawn: list[tuple[str, Category]] = []
    while len(drawn) < count:  # a round takes one of each group that has one left
        layer = [group.pop() for group in shuffled if group]
        drawn += [layer[i] for i in rng.permutation(len(layer))[: count - len(drawn)]]
    return [drawn[i] for i in rng.permutation(len(drawn))]


@cache
def _categories() -> tuple[Category, ...]:
    """All categories with a short enough title, in the order of the code book. Loading takes 2 s, once."""
    try:
        with warnings.catch_warnings():
            # It reads its tables with a function that Python 3.11 calls deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            import simple_icd_10_cm as icd
    except ImportError:
        raise DataError(MISSING) from None

    categories = []
    for code in dict.fromkeys(icd.get_all_codes()):
        if not icd.is_category(code) or icd.is_block(code):  # a block of one category has its category's name
            continue
        block, *_, chapter = icd.get_ancestors(code)
        texts = dict.fromkeys(icd.get_description(c) for c in (code, *icd.get_children(code)))
        short = tuple(text for text in texts if len(text) <= LONGEST_DESCRIPTION)
        if chapter in CHAPTERS and short:
            categories.append(Category(code, CHAPTERS[chapter], _clean(icd.get_description(block)), short))
    return tuple(categories)


def _chapters() -> dict[str, list[Category]]:
    """Chapter title -> its categories."""
    return {title: [c for c in _categories() if c.chapter == title] for title in CHAPTERS.values()}


def _blocks() -> dict[str, list[Category]]:
    """Block title -> its categories, for blocks with a short title and enough categories to ask about."""
    groups: dict[str, list[Category]] = {}
    for category in _categories():
        if len(category.block) <= LONGEST_TITLE and category.block not in category.descriptions:
            groups.setdefault(category.block, []).append(category)
    return {title: categories for title, categories in groups.items() if len(categories) >= SMALLEST_BLOCK}


def _clean(title: str) -> str:
    """A title without its range of codes, bracketed synonyms and reservation."""
    return re.sub(r"\s*\([^)]*\)|\s*\[[^]]*\]|, not elsewhere classified", "", title)


def _faker(seed: int) -> "Faker":
    try:
        from faker import Faker
        from faker_healthcare import HealthcareProvider  # type: ignore[import-untyped]  # it has none
    except ImportError:
        raise DataError(MISSING) from None

    faker = Faker("en_US", use_weighting=False)  # all names equally likely: fewer repeats
    faker.add_provider(HealthcareProvider)
    faker.seed_instance(seed)
    return faker


def _written(day: date) -> str:
    return f"{day.day} {day:%b %Y}"
