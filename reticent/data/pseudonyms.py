"""Invented names, numbers and dates in the place of real ones, the same within an owner.

A fake follows from a secret key, the owner and the original (HMAC-SHA256, RFC 2104), so without the key nobody can
tell which fake stands for whom, nor link two owners. Numbers keep their shape and their check digits, in ranges that
nobody has where there is such a range. Dates of an owner move by one number of days, 400 to 2920 into the past, which
keeps the time between them. What is not hidden: that two mentions are one person, and how far apart two dates are; who
knows one true date of an owner learns all of them.
"""

import hashlib
import hmac
import re
import string
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from reticent.data.clinical import luhn, nhs_number
from reticent.errors import DataError

if TYPE_CHECKING:
    from faker import Faker

MISSING = "pseudonyms need one more package: pip install 'reticent[scrub]'; or choose style mask, tag or redact"
KEY = 32  # bytes
ATTEMPTS = 64  # to draw a fake that the owner does not have yet
OWNERS = 10_000  # whose fakes are remembered at one time

Draw = Callable[[Random], str]


class Pseudonyms:
    """The fakes of one key.

    A fake is never the original, and never that of another original of its owner. The fakes of the last 10,000 owners
    are remembered; of earlier ones only that they were there, and which fakes were not the first choice (about 100
    bytes each). An owner that comes back gets the same fakes for what it had; only a name that is new then may get one
    that the owner had already.

    Raises:
        DataError: The package that knows the names is missing, or the key is not 32 bytes long.
    """

    def __init__(self, key: bytes, *, day_first: bool = False) -> None:
        if len(key) != KEY:
            raise DataError(f"the key of pseudonyms has {KEY} bytes, got {len(key)}; make one with os.urandom({KEY})")
        self._key = key
        self._day_first = day_first
        self._names = _names()
        self._faker = _faker()
        self._owners: OrderedDict[str, _Owner] = OrderedDict()
        self._left: set[bytes] = set()
        self._odd: dict[bytes, int] = {}

    def replace(self, owner: str, entity: str, text: str) -> str | None:
        """What stands for ``text``; None if there is no fake of this kind, or the text cannot be read as its kind."""
        maker = _MAKERS.get(entity)
        fake = maker(self, owner, text) if maker else None
        return None if fake is None or _folded(fake) == _folded(text) else fake

    def days(self, owner: str) -> int:
        """By how many days the dates of an owner move."""
        return _OFFSETS[int.from_bytes(self._digest(owner, "days", ""), "big") % len(_OFFSETS)]

    # --- One fake ---

    def _digest(self, *parts: str) -> bytes:
        message = b"".join(
            len(code := part.encode("utf-8", "surrogatepass")).to_bytes(8, "big") + code for part in parts
        )
        return hmac.digest(self._key, message, hashlib.sha256)

    def _owner(self, name: str) -> "_Owner":
        if name not in self._owners:
            self._owners[name] = _Owner(back=self._digest(name, "owner", "") in self._left)
            if len(self._owners) > OWNERS:
                left, _ = self._owners.popitem(last=False)
                self._left.add(self._digest(left, "owner", ""))
        self._owners.move_to_end(name)
        return self._owners[name]

    def _fake(self, owner: str, kind: str, original: str, draw: Draw) -> str | None:
        """The owner's fake of ``original`` (in its plain form): the first draw that is neither it nor taken."""
        mine, digest = self._owner(owner), self._digest(owner, kind, original)
        if (known := mine.fakes.get((kind, original))) is not None:
            return known
        chosen = self._odd.get(digest)
        for attempt in range(ATTEMPTS) if chosen is None else [chosen]:
            fake = draw(Random(digest + attempt.to_bytes(2, "big")))
            folded = _folded(fake)
            if chosen is not None or (folded != original and (mine.back or folded not in mine.taken)):
                if attempt:
                    self._odd[digest] = attempt
                mine.fakes[kind, original] = fake
                mine.taken |= {folded, original}
                return fake
        return None

    # --- Names ---

    def _name(self, owner: str, text: str) -> str | None:
        """Each word of a name becomes a name; titles before and suffixes after it stay."""
        text = unicodedata.normalize("NFKC", text)
        words = list(_WORD.finditer(text))
        titled = 0
        while titled < len(words) - 1 and _folded(words[titled][0]) in _TITLES:
            titled += 1
        end = len(words)
        while end > titled + 1 and _folded(words[end - 1][0]) in _SUFFIXES:
            end -= 1
        named = words[titled:end]
        if not named:
            return None
        pieces, position = [], 0
        for word in named:
            fake = self._word(owner, word[0])
            if fake is None:
                return None
            pieces += [text[position : word.start()], fake]
            position = word.end()
        whole = "".join([*pieces, text[position:]])
        return self._digits(owner, whole) if re.search(r"\d", text) else whole

    def _word(self, owner: str, word: str) -> str | None:
        plain = _plain(word)
        if len(plain) == 1:
            fake = self._fake(owner, "initial", plain, lambda rng: rng.choice(string.ascii_uppercase))
        else:
            fake = self._fake(owner, "name", plain, lambda rng: rng.choice(self._names.like(plain))) if plain else None
        return fake and _cased(fake, word)

    # --- Numbers ---

    def _digits(self, owner: str, text: str) -> str | None:
        """Each number in it becomes another of as many digits."""
        failed = False

        def other(match: re.Match[str]) -> str:
            nonlocal failed
            fake = self._fake(owner, "number", match[0], lambda rng: _shape(rng, match[0]))
            failed |= fake is None
            return fake or ""

        changed = re.sub(r"\d+", other, text)
        return None if failed else changed

    def _shaped(self, owner: str, text: str, draw: Callable[[Random, str], str]) -> str | None:
        """Letters and digits as drawn, in the places and the case that the text has them."""
        plain = "".join(char for char in _folded(text) if char.isalnum())
        if not plain:
            return None
        fake = self._fake(owner, "id", plain, lambda rng: draw(rng, plain))
        return fake and _poured(fake, text)

    def _id(self, owner: str, text: str) -> str | None:
        return self._shaped(owner, text, _shape)

    def _ssn(self, owner: str, text: str) -> str | None:
        return self._shaped(owner, text, _ssn)

    def _card(self, owner: str, text: str) -> str | None:
        return self._shaped(owner, text, _card)

    def _nhs(self, owner: str, text: str) -> str | None:
        return self._shaped(owner, text, _nhs)

    def _iban(self, owner: str, text: str) -> str | None:
        return self._shaped(owner, text, _iban) if re.match(r"\s*[A-Za-z]{2}\s*\d", text) else None

    def _phone(self, owner: str, text: str) -> str | None:
        extension = re.search(r"(?i)[\s,;]*(?:extension|ext|x|#)\.?\s*\d+\s*$", text)
        main = text[: extension.start()] if extension else text
        if re.search(r"[^\W\d_]", _PHONE_WORDS.sub("", main)):  # 1-800-FLOWERS
            return None
        whole = re.sub(r"\D", "", unicodedata.normalize("NFKC", main))
        prefix = "1" if len(whole) == 11 and whole[0] == "1" else ""
        number = whole[len(prefix) :]
        kept = 2 if main.lstrip(" (").startswith("+") and not prefix else int(number[:1] == "0")
        fake = self._fake(owner, "phone", number, lambda rng: _phone(rng, number, kept)) if number else ""
        rest = self._digits(owner, extension[0]) if extension else ""
        return None if fake is None or rest is None else _poured(prefix + fake, main, digits=True) + rest

    def _age(self, owner: str, text: str) -> str | None:
        """Another age of the same ten years; over 89 is one group."""
        failed = not re.search(r"\d", text)

        def other(match: re.Match[str]) -> str:
            nonlocal failed
            low = min(int(match[0]) // 10 * 10, 90)
            fake = self._fake(owner, "age", str(int(match[0])), lambda rng: str(low + rng.randrange(10)))
            failed |= fake is None
            return fake or ""

        changed = re.sub(r"\d+", other, text)
        return None if failed else changed

    # --- Addresses of all kinds ---

    def _email(self, owner: str, text: str) -> str | None:
        return self._fake(owner, "email", _folded(text), lambda rng: f"{self._user(rng)}@example.{_top(rng)}")

    def _user(self, rng: Random) -> str:
        return f"{rng.choice(self._names.female + self._names.male)}.{rng.choice(self._names.last)}".lower()

    def _url(self, owner: str, text: str) -> str | None:
        scheme = re.match(r"(?i)\s*[a-z]+://", text)
        start = scheme[0] if scheme else ""
        page = self._fake(
            owner, "url", _folded(text), lambda rng: f"www.example.{_top(rng)}/{_shape(rng, 'aaaaaaaa').lower()}"
        )
        return page and start + page

    def _ip(self, owner: str, text: str) -> str | None:
        """In the ranges for documentation: RFC 5737 and RFC 3849."""

        def draw(rng: Random) -> str:
            if ":" in text:
                return f"2001:db8::{rng.randrange(1, 2**16):x}:{rng.randrange(1, 2**16):x}"
            return f"{rng.choice(('192.0.2', '198.51.100', '203.0.113'))}.{rng.randrange(1, 255)}"

        return self._fake(owner, "ip", _folded(text), draw)

    def _place(self, owner: str, text: str) -> str | None:
        stripped = text.strip()
        if re.fullmatch(r"[\d\s-]+", stripped):  # a postal code
            return self._id(owner, text)
        state = re.fullmatch(r"[A-Z]{2}", stripped)
        return self._worded(owner, "place", text, lambda f: str(f.state_abbr() if state else f.city()))

    def _address(self, owner: str, text: str) -> str | None:
        def draw(faker: "Faker") -> str:
            street = faker.street_address()
            tail = f", {faker.city()}, {faker.state_abbr()} {faker.zipcode()}" if re.search(r"[,\n]", text) else ""
            return street + tail

        return self._worded(owner, "address", text, draw)

    def _organization(self, owner: str, text: str) -> str | None:
        return self._worded(owner, "organization", text, lambda faker: str(faker.company()))

    def _worded(self, owner: str, kind: str, text: str, make: Callable[["Faker"], str]) -> str | None:
        """What faker makes."""

        def draw(rng: Random) -> str:
            self._faker.seed_instance(rng.getrandbits(64))
            return make(self._faker)

        words = _folded(" ".join(text.split()))
        fake = self._fake(owner, kind, words, draw) if words else None
        return fake and (fake.upper() if text.isupper() and len(text) > 2 else fake)

    def _date(self, owner: str, text: str) -> str | None:
        return shift_dates(text, self.days(owner), day_first=self._day_first)


_MAKERS: dict[str, Callable[[Pseudonyms, str, str], str | None]] = {
    **dict.fromkeys(("PERSON", "NAME", "PATIENT", "DOCTOR"), Pseudonyms._name),
    **dict.fromkeys(("DATE", "DATE_TIME", "DATE_OF_BIRTH"), Pseudonyms._date),
    **dict.fromkeys(("PHONE_NUMBER", "PHONE", "FAX", "FAX_NUMBER"), Pseudonyms._phone),
    **dict.fromkeys(("EMAIL_ADDRESS", "EMAIL"), Pseudonyms._email),
    **dict.fromkeys(("LOCATION", "GPE", "LOC", "FAC", "CITY", "STATE", "ZIP"), Pseudonyms._place),
    **dict.fromkeys(("ADDRESS", "STREET"), Pseudonyms._address),
    **dict.fromkeys(("ORGANIZATION", "ORG", "HOSPITAL"), Pseudonyms._organization),
    **dict.fromkeys(
        ("ID", "MEDICAL_RECORD", "LICENSE_PLATE", "MEDICAL_LICENSE", "US_DRIVER_LICENSE", "US_PASSPORT", "US_ITIN"),
        Pseudonyms._id,
    ),
    "AGE": Pseudonyms._age,
    "URL": Pseudonyms._url,
    "IP_ADDRESS": Pseudonyms._ip,
    "US_SSN": Pseudonyms._ssn,
    "CREDIT_CARD": Pseudonyms._card,
    "IBAN_CODE": Pseudonyms._iban,
    "UK_NHS": Pseudonyms._nhs,
    "US_BANK_NUMBER": Pseudonyms._id,
}


@dataclass(slots=True)
class _Owner:
    """The fakes of one owner by kind and original, and all that may not be a fake again; ``back``: it was forgotten."""

    back: bool
    fakes: dict[tuple[str, str], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


# --- Names ---

# A word is all that is no space, digit, ASCII or general punctuation, and not the s of a genitive.
_MARKS = r"\s\d!-/:-@\[-`{-~\u2010-\u2027\u2030-\u205e"
_WORD = re.compile(rf"(?!(?<=['’])s(?:[{_MARKS}]|$))[^{_MARKS}]+")
_TITLES = frozenset(("dr", "mr", "mrs", "ms", "miss", "mx", "prof", "professor", "doctor", "sir"))
_SUFFIXES = frozenset(("jr", "sr", "ii", "iii", "md", "phd", "rn", "esq"))


class _Names(NamedTuple):
    """Lists of names: ours to draw from, and those of all languages to tell first names from last names."""

    female: tuple[str, ...]
    male: tuple[str, ...]
    last: tuple[str, ...]
    all_female: frozenset[str]
    all_male: frozenset[str]

    def like(self, plain: str) -> tuple[str, ...]:
        """First names of the same gender, where the lists are sure of it, else last names.

        It looks at the name alone: one that stands as a first name here and as a last name there is one name.
        """
        female, male = plain in self.all_female, plain in self.all_male
        if female and male:
            return self.female + self.male
        return self.female if female else self.male if male else self.last


@cache
def _names() -> _Names:
    try:
        import importlib
        import pkgutil

        from faker.providers import person
        from faker.providers.person.en_US import Provider
    except ImportError:
        raise DataError(MISSING) from None

    found: dict[str, set[str]] = {"female": set(), "male": set()}
    for module in pkgutil.iter_modules(person.__path__):
        provider = importlib.import_module(f"{person.__name__}.{module.name}").Provider
        for gender, names in found.items():
            listed = getattr(provider, f"first_names_{gender}", ())
            names |= set() if isinstance(listed, property) else {_plain(name) for name in listed}
    last = {_plain(name) for name in Provider.last_names}
    ours = {gender: {_plain(name) for name in getattr(Provider, f"first_names_{gender}")} for gender in found}
    usual = ours["female"] | ours["male"]  # which knows better than other languages' lists, and than last names
    female, male = ((found[gender] - usual - last) | ours[gender] for gender in found)
    return _Names(
        female=tuple(dict.fromkeys(Provider.first_names_female)),
        male=tuple(dict.fromkeys(Provider.first_names_male)),
        last=tuple(dict.fromkeys(Provider.last_names)),
        all_female=frozenset(female),
        all_male=frozenset(male),
    )


def _faker() -> "Faker":
    from faker import Faker

    return Faker("en_US", use_weighting=False)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _plain(word: str) -> str:
    """Without case, accents and invisible characters."""
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if unicodedata.category(c)[0] not in "MC")


def _cased(fake: str, word: str) -> str:
    if len(word) > 1 and word.isupper():
        return fake.upper()
    return fake.lower() if word.islower() else fake


# --- Numbers ---

_PHONE_WORDS = re.compile(r"(?i)\b(?:tel|phone|telephone|fax|cell|mobile|pager|ph|call)\b")


def _top(rng: Random) -> str:
    return rng.choice(("com", "net", "org"))  # example.com and the others are nobody's: RFC 2606


def _shape(rng: Random, plain: str) -> str:
    """A digit for a digit and a letter for a letter."""
    return "".join(
        rng.choice(string.ascii_lowercase) if char.isalpha() else rng.choice(string.digits) for char in plain
    )


def _poured(fake: str, text: str, *, digits: bool = False) -> str:
    """The characters of ``fake`` where ``text`` has letters and digits (or digits alone), in the case it has."""
    left, poured = iter(fake), []
    for char in unicodedata.normalize("NFKC", text):
        if char.isdigit() if digits else char.isalnum():
            new = next(left, "")
            poured.append(new.upper() if char.isupper() else new)
        elif unicodedata.category(char)[0] not in "MC" or char in "\n\t":
            poured.append(char)
    return "".join(poured) + "".join(left)


def _phone(rng: Random, number: str, kept: int) -> str:
    """Of as many digits, ending in 555-0100 to 555-0199, which no subscriber has (of seven digits and more)."""
    if len(number) < 7:
        return _shape(rng, number)
    end = f"55501{rng.randrange(100):02d}"
    if len(number) == 10 and not kept:  # an American area code: 200 to 989
        return f"{rng.randrange(200, 990)}{end}"
    start = number[:-7]
    return start[:kept] + _shape(rng, start[kept:]) + end


def _ssn(rng: Random, plain: str) -> str:
    """Nobody's: area numbers from 900 are never assigned, groups under 50 are no taxpayer numbers either."""
    if not (plain.isdecimal() and len(plain) == 9):
        return _shape(rng, plain)
    return f"{rng.randrange(900, 1000)}{rng.randrange(1, 50):02d}{rng.randrange(1, 10_000):04d}"


def _card(rng: Random, plain: str) -> str:
    """Begins with 9999, which no issuer has: ISO/IEC 7812 leaves 9 to the countries, and 999 is none."""
    if not (plain.isdecimal() and len(plain) >= 12):
        return _shape(rng, plain)
    while not luhn(fake := "9999" + _shape(rng, plain[4:])):
        pass
    return fake


def _nhs(rng: Random, plain: str) -> str:
    """Begins with 999, which is kept for tests, with its check digit (modulus 11)."""
    if not (plain.isdecimal() and len(plain) == 10):
        return _shape(rng, plain)
    while not nhs_number(fake := "999" + _shape(rng, plain[3:])):
        pass
    return fake


def _iban(rng: Random, plain: str) -> str:
    """Of the same country, with its check digits (ISO 7064, modulus 97-10)."""
    country, account = plain[:2], _shape(rng, plain[4:])
    number = int("".join(str(int(char, 36)) for char in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02d}{account}"


# --- Dates ---

# Not the calendar module's: those follow the locale.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_LEAP = 2000  # the year of dates without one: it has all days

# Never whole weeks and never near whole years, so that weekdays and days without a year move too.
_OFFSETS = tuple(-n for n in range(400, 2921) if n % 7 and 20 < n % 365.25 < 345)

_W = (
    r"(?P<w>mon(?:day)?|tue(?:s(?:day)?)?|wed(?:nesday)?|thu(?:rs?(?:day)?)?|fri(?:day)?|sat(?:urday)?|sun(?:day)?)"
    r"\b\.?"
)
_M = (
    r"(?P<mon>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)(?![^\W\d_])\.?"
)
_D = r"(?P<d>\d{1,2})(?P<o>st|nd|rd|th)?(?!\d)"
_Y = r"(?P<y>\d{4}|['’]?\d{2})"
_SEP = r"[\s\-/.,]{0,3}"
_END = r"(?!\w)"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        r"(?P<y>\d{4})(?P<s>[-/.])(?P<m>\d{1,2})(?P=s)(?P<d>\d{1,2})(?:(?=T\d)|(?!\w))",
        r"(?P<a>\d{1,2})(?P<s>[-/.])(?P<b>\d{1,2})(?P=s)(?P<y>\d{4}|\d{2})" + _END,
        r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})(?:(?=T\d)|(?!\w))",
        rf"(?:{_W},?\s+)?(?:the\s+)?{_D}{_SEP}(?:of\s+)?{_M}(?:{_SEP}{_Y})?{_END}",
        rf"(?:{_W},?\s+)?{_M}{_SEP}(?:the\s+)?{_D}(?:{_SEP}{_Y})?{_END}",
        rf"{_M}{_SEP}(?:of\s+)?(?P<y>\d{{4}}|['’]\d{{2}}){_END}",
        r"(?P<m>\d{1,2})[-/](?P<y>\d{4})" + _END,
        r"(?P<y>\d{4})[-/](?P<m>\d{1,2})" + _END,
        r"(?P<a>\d{1,2})/(?P<b>\d{1,2})" + _END,
        r"(?P<y>(?:18|19|20)\d{2})" + _END,
        rf"{_M}{_END}",
        rf"{_W}{_END}",
    )
)
_TIME = re.compile(
    r"T?\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:\s*[ap]\.?m\b\.?)?(?:\s?(?:Z|UTC|GMT|[+-]\d{2}:?\d{2}))?" + _END,
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"[\s,;.()\-–—]+|(?:on|of|the|in|to|and|or|from|until|till|through|between|by|since|at|early|late|mid)\b",
    re.IGNORECASE,
)


def shift_dates(text: str, days: int, *, day_first: bool = False) -> str | None:
    """``text`` with every date in it moved by ``days`` and written as before; None if anything in it is no date.

    Numbers such as 3/4/2019 are month and day, or day and month if ``day_first``; where only the other order is a
    date, that. Two-digit years to 68 are of this century, as in POSIX. Of a month or year alone the middle is moved.
    Times of day and words between dates stay.
    """
    out: list[str] = []
    position, found = 0, False
    while position < len(text):
        if kept := _TIME.match(text, position):
            out.append(kept[0])
            position = kept.end()
            continue
        for form in _FORMS:
            match = form.match(text, position)
            if match and (new := _moved(match, days, day_first)):
                out.append(new)
                position, found = match.end(), True
                break
        else:
            between = _BETWEEN.match(text, position)
            if not between:
                return None
            out.append(between[0])
            position = between.end()
    return "".join(out) if found else None


def _moved(match: re.Match[str], days: int, day_first: bool) -> str | None:
    """The match with its date moved; None if it is none."""
    has = {name: value for name, value in match.groupdict().items() if value is not None}
    if set(has) == {"w"}:
        return _put(match, {"w": _titled(_DAYS[(_index(_DAYS, has["w"]) + days) % 7], has["w"], _DAYS)})
    orders = [("b", "a"), ("a", "b")] if day_first else [("a", "b"), ("b", "a")]
    for month, day in orders if "a" in has else [("m", "d")]:
        try:
            old = date(
                _year(has), _index(_MONTHS, has["mon"]) + 1 if "mon" in has else int(has.get(month, 7)), _day(has, day)
            )
            new = old + timedelta(days)
        except (ValueError, OverflowError):
            continue
        numbers = [value for name, value in has.items() if name in "mdab"]
        pad = any(value[0] == "0" for value in numbers) or ("mon" not in has and all(len(v) == 2 for v in numbers))
        written = {
            month: f"{new.month:0{1 + pad}d}",
            day: f"{new.day:0{1 + pad}d}",
            "o": _ordinal(new.day),
            "mon": _titled(_MONTHS[new.month - 1], has.get("mon", ""), _MONTHS),
            "w": _titled(_DAYS[new.weekday()], has.get("w", ""), _DAYS),
        }
        if "y" in has:
            quote = has["y"].rstrip(string.digits)
            four = len(has["y"]) == 4
            written["y"] = f"{new.year:04d}" if four else f"{quote}{new.year % 100:02d}"
        return _put(match, written)
    return None


def _year(has: dict[str, str]) -> int:
    if "y" not in has:
        return _LEAP
    year = int(has["y"].lstrip("'’"))
    return year if len(has["y"]) == 4 else year + (1900 if year > 68 else 2000)


def _day(has: dict[str, str], name: str) -> int:
    if name in has:
        return int(has[name])
    return 15 if has.keys() & {"m", "mon"} else 1  # the middle of the month, or of the year


def _put(match: re.Match[str], written: dict[str, str]) -> str:
    """The match with these groups rewritten."""
    out, position = [], match.start()
    for start, name in sorted(
        (match.start(name), name) for name, value in match.groupdict().items() if value is not None
    ):
        if name in written:
            out += [match.string[position:start], written[name]]
            position = match.end(name)
    return "".join([*out, match.string[position : match.end()]])


def _index(names: tuple[str, ...], name: str) -> int:
    return next(index for index, full in enumerate(names) if full[:3].casefold() == name[:3].casefold())


def _titled(full: str, like: str, names: tuple[str, ...]) -> str:
    """A name of a month or weekday, as short and in the case of ``like``."""
    name = full if like.capitalize() in names else full[:3]
    return name.upper() if like.isupper() else name.lower() if like.islower() else name


def _ordinal(day: int) -> str:
    return "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
