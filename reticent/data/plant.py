"""Recall of a scrubber where nobody labelled anything: invented identifiers planted in copies of the records.

A random sample of the records is copied, one invented identifier is put into each copy, the copies are scrubbed with
the settings of the run and thrown away, and what was covered is counted. The training records are never touched. One
copy holds one plant, so the plants are independent trials (of a small data set they vary even less, for its records
take turns) and the Clopper-Pearson interval holds.

The estimate is unbiased for one thing: the chance that an identifier of *these* kinds, written as *these* generators
and phrases write it, is masked at a random place of *this* corpus. It is not the recall on the corpus' own identifiers:
those may be rarer names, misspelt, or written in ways that are not here. Only labelled text tells that
(`reticent.data.scrub_score`). Plants that survive are a warning; that none survives is no proof.

Telephone numbers are in the range kept for fiction (555-0100 to 555-0199), mail goes to example.com, numbers like those
of US social security start with 9 and are never issued.
"""

import hashlib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from reticent.data.record import Record
from reticent.data.scrub_score import LEVEL, Masks, Scored
from reticent.data.spans import Span
from reticent.errors import DataError
from reticent.statistics import clopper_pearson

if TYPE_CHECKING:
    from faker import Faker

T = TypeVar("T")

COUNT = 800
METHOD = "Clopper-Pearson, invented identifiers planted in copies"

# Kind -> phrases: whole sentences, and what fits between two words.
PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "PERSON": (
        ("{} was informed.", "This was discussed with {}.", "According to {}, this is new.", "Signed: {}"),
        ("(as told by {})", "with {}", "and {}", ", said {},"),
    ),
    "PHONE_NUMBER": (
        ("Please call {}.", "Phone: {}", "Can be reached at {} after noon.", "Fax {}."),
        ("(tel. {})", ", phone {},", "on {}"),
    ),
    "EMAIL_ADDRESS": (
        ("Write to {}.", "E-mail: {}", "Sent a copy to {} today."),
        ("({})", "from {}", ", mail {},"),
    ),
    "MEDICAL_RECORD": (
        ("MRN {}.", "Medical record number: {}", "See record no. {}.", "Chart #{} was reviewed."),
        ("(MRN {})", ", record number {},", "MRN: {}"),
    ),
    "DATE": (
        ("Seen on {}.", "Date: {}", "The next visit is on {}.", "Since {} there is no change."),
        ("on {}", "({})", ", dated {},"),
    ),
    "ADDRESS": (
        ("Lives at {}.", "Address: {}", "The letter went to {}."),
        (", of {},", "({})", "at {}"),
    ),
    "US_SSN": (
        ("SSN: {}", "The social security number is {}.", "SSN {} was on file."),
        ("(SSN {})", ", social security number {},"),
    ),
    "IBAN_CODE": (
        ("Please pay to {}.", "IBAN: {}", "The account is {}."),
        ("(IBAN {})", "to account {}"),
    ),
}
KINDS = tuple(PHRASES)

# Names and streets in Latin script, from more than one language.
LOCALES = ("en_US", "en_GB", "de_DE", "es_ES", "fr_FR", "it_IT", "nl_NL", "pl_PL", "tr_TR", "en_IN")
# Most streets of the USA are called so; faker's own names go through all 200 endings evenly.
STREETS = ("Street", "St", "St.", "Avenue", "Ave", "Ave.", "Road", "Rd", "Drive", "Dr", "Lane", "Court", "Way", "Blvd")
_DATES = (
    "{0.day} {0:%b %Y}",
    "{0:%B} {0.day}, {0.year}",
    "{0:%m/%d/%Y}",
    "{0:%Y-%m-%d}",
    "{0:%d.%m.%Y}",
    "{0:%m/%d/%y}",
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_SPACE = re.compile(r"(?<=\w) (?=\w)")


class Planted(NamedTuple):
    """A copy with one invented identifier: ``span`` of its prompt (``part`` 0) or completion (1)."""

    record: Record
    part: int
    span: Span


def plant(
    records: Iterable[Record], *, count: int = COUNT, seed: int, kinds: Sequence[str] = KINDS
) -> Iterator[Planted]:
    """``count`` copies of randomly chosen records, with one identifier each, as many of each of ``kinds`` as of others.

    Reads all records and holds at most ``count`` of them. Who is chosen depends on the ids and the seed, not on the
    order; of fewer than ``count`` records each is copied again, with another plant in another place. A copy has an id
    and an owner of its own, "plant-1" and so on. The place is at the border of two sentences or between two words of
    prompt or completion, the longer one more often; a multiple-choice question gets it in its prompt.

    Raises:
        DataError: ``count`` is below one of each kind, a kind is unknown, a package is missing, or there is no record.
    """
    if unknown := set(kinds) - set(KINDS):
        raise DataError(f"no plants of kind {min(unknown)!r}; there are {', '.join(KINDS)}")
    if not kinds or count < len(kinds):
        raise DataError(f"plants: at least one of each of {len(kinds)} kinds is needed, got {count}; raise the count")
    rng, inventor = np.random.default_rng([seed, 9]), _Inventor(seed)
    chosen = _sample(records, count, seed)
    turns = rng.permutation(np.arange(count) % len(kinds))
    for number, turn in enumerate(turns):
        record, kind = chosen[number % len(chosen)], kinds[int(turn)]
        yield _planted(record, kind, inventor.invent(kind), f"plant-{number + 1}", rng)


def recall(planted: Iterable[Planted], spans: Iterable[Sequence[Sequence[Span]]]) -> list[Scored]:
    """The share of plants that were masked, of all and of each kind, with Clopper-Pearson intervals.

    A plant is masked if every character of it is, punctuation and spaces aside. A copy that the scrubber dropped says
    nothing about recall and is left out; ``n`` tells.

    Args:
        planted: the copies.
        spans: of each copy, what the scrubber found in its prompt, completion and options (`Scrubbed.spans`); empty
            if it dropped the copy.

    Raises:
        DataError: The scrubber dropped every copy.
    """
    hits: dict[str, list[bool]] = {}
    for (record, part, span), found in zip(planted, spans, strict=True):
        if found:
            masks = Masks((record.prompt, record.completion)[part], found[part])
            hits.setdefault(span.entity, []).append(masks.hide(span.start, span.end))
    if not hits:
        raise DataError("the scrubber dropped every copy with a planted identifier; see its errors")
    shares = {"planted_recall": [hit for each in hits.values() for hit in each]}
    shares |= {f"planted_recall_{kind.lower()}": hits[kind] for kind in sorted(hits)}
    return [
        Scored(
            name, sum(each) / len(each), clopper_pearson(sum(each), len(each), level=LEVEL), len(each), "plants", METHOD
        )
        for name, each in shares.items()
    ]


def _sample(records: Iterable[Record], count: int, seed: int) -> list[Record]:
    """At most ``count`` records, all equally likely: those whose id has the smallest hashes, in the order of these."""

    def keyed() -> Iterator[tuple[bytes, str, Record]]:
        for record in records:
            digest = hashlib.blake2b(record.id.encode(), digest_size=16, key=str(seed).encode()).digest()
            yield digest, record.id, record

    chosen = heapq.nsmallest(count, keyed(), key=lambda entry: entry[:2])
    if not chosen:
        raise DataError("there is no record to plant identifiers in; check the data set")
    return [record for _, _, record in chosen]


def _planted(record: Record, kind: str, value: str, name: str, rng: np.random.Generator) -> Planted:
    texts = [record.prompt, record.completion]
    lengths = np.array([1, 0] if record.options else [len(text) for text in texts], dtype=float)
    part = int(rng.random() * lengths.sum() >= lengths[0])
    text = texts[part]
    sentences, inside = PHRASES[kind]
    spaces = [space.start() for space in _SPACE.finditer(text)]
    if spaces and rng.random() < 0.5:
        at, phrase = _any_of(spaces, rng), _any_of(inside, rng)
        before, after = "" if phrase.startswith(",") else " ", ""
    else:
        at = _any_of([0, *(border.end() for border in _SENTENCE.finditer(text)), len(text)], rng)
        phrase = _any_of(sentences, rng)
        gap = "\n" if phrase.endswith("{}") else " "  # "Phone: ..." has a line of its own
        before = gap if at and not text[:at].endswith((gap, "\n")) else ""
        after = gap if at < len(text) else ""
    head, tail = phrase.split("{}")
    start = at + len(before) + len(head)
    texts[part] = f"{text[:at]}{before}{head}{value}{tail}{after}{text[at:]}"
    copy = replace(record, id=name, owner=name, prompt=texts[0], completion=texts[1], origin="plant")
    return Planted(copy, part, Span(start, start + len(value), kind, by="plant"))


def _any_of(things: Sequence[T], rng: np.random.Generator) -> T:
    return things[int(rng.integers(len(things)))]


class _Inventor:
    """Writes identifiers of people who do not exist."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 10])
        self._fakers = [_faker(locale, int(self._rng.integers(2**32))) for locale in LOCALES]

    def invent(self, kind: str) -> str:
        writers: dict[str, Callable[[], str]] = {
            "PERSON": self._person,
            "PHONE_NUMBER": self._phone,
            "EMAIL_ADDRESS": self._mail,
            "MEDICAL_RECORD": lambda: f"{self._rng.integers(1, 10)}{self._digits(int(self._rng.integers(4, 8)))}",
            "DATE": self._date,
            "ADDRESS": self._address,
            "US_SSN": lambda: f"9{self._digits(2)}-{self._rng.integers(10, 50)}-{self._digits(4)}",
            "IBAN_CODE": self._iban,
        }
        return writers[kind]()

    def _pick(self, things: Sequence[T]) -> T:
        return _any_of(things, self._rng)

    def _digits(self, count: int) -> str:
        return "".join(map(str, self._rng.integers(10, size=count)))

    def _person(self) -> str:
        faker = self._pick(self._fakers)
        first, last = faker.first_name(), faker.last_name()
        return self._pick(("{0} {1}", "{0} {1}", "{2}. {1}", "{1}, {0}")).format(first, last, first[0])

    def _phone(self) -> str:
        form = self._pick(("{}-555-01{}", "({}) 555-01{}", "+1 {} 555 01{}", "{}.555.01{}"))
        return form.format(self._rng.integers(201, 990), self._digits(2))

    def _mail(self) -> str:
        faker = self._fakers[0]
        name = self._pick(("{0}.{1}", "{0}_{1}", "{1}{2}")).format(
            faker.first_name(), faker.last_name(), self._digits(2)
        )
        return f"{name.lower()}@{self._pick(('example.com', 'example.org', 'example.net'))}"

    def _date(self) -> str:
        day = date(1950, 1, 1) + timedelta(days=int(self._rng.integers(75 * 365)))
        return self._pick(_DATES).format(day)

    def _address(self) -> str:
        faker = self._fakers[0]
        street = f"{faker.last_name()} {self._pick(STREETS)}" if self._rng.random() < 0.75 else faker.street_name()
        form = self._pick(("{0} {1}", "{0} {1}, {2}", "{0} {1}, {2}, {3} {4}"))
        return form.format(self._rng.integers(1, 9900), street, faker.city(), faker.state_abbr(), faker.postcode())

    def _iban(self) -> str:
        code = self._pick(self._fakers[1:8]).iban()  # of European countries
        return code if self._rng.random() < 0.5 else " ".join(code[i : i + 4] for i in range(0, len(code), 4))


def _faker(locale: str, seed: int) -> "Faker":
    try:
        from faker import Faker
    except ImportError:
        raise DataError("planted identifiers need one more package: pip install faker") from None
    faker = Faker(locale, use_weighting=False)
    faker.seed_instance(seed)
    return faker
