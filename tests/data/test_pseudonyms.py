"""Fakes: the same within an owner, independent across owners, of the shape of what they stand for."""

import os
import random
import re
from datetime import date, datetime, timedelta

import pytest

from reticent.data import pseudonyms
from reticent.data.clinical import luhn, nhs_number
from reticent.data.pseudonyms import Pseudonyms, shift_dates
from reticent.errors import DataError

KEY = bytes(range(32))


@pytest.fixture
def fakes() -> Pseudonyms:
    return Pseudonyms(KEY)


def test_the_forms_of_a_name_are_parts_of_one_fake_person(fakes):
    first, last = fakes.replace("p", "PERSON", "Maria Kowalski").split()
    assert fakes.replace("p", "PERSON", "Kowalski") == last
    assert fakes.replace("p", "PERSON", "Ms Kowalski") == f"Ms {last}"
    assert fakes.replace("p", "PERSON", "KOWALSKI, MARIA") == f"{last}, {first}".upper()
    assert fakes.replace("p", "PERSON", "maria kowalski's") == f"{first} {last}'s".lower()


def test_accents_and_invisible_marks_do_not_make_another_person(fakes):
    assert fakes.replace("p", "PERSON", "Jose\u0301") == fakes.replace("p", "PERSON", "José")
    assert fakes.replace("p", "PERSON", "Jose\u200f") == fakes.replace("p", "PERSON", "José")


@pytest.mark.parametrize("name", ["דנה כהן", "李小明", "Ада 🙂", "Zoë\u0323", "Đỗ Do", "O'Neill", "J0hn_87", "Jr Jr."])
def test_no_word_of_a_name_is_left(fakes, name):
    words = set(re.findall(r"\w\w+", name)) - {"Jr"}
    assert not words & set(re.findall(r"\w\w+", fakes.replace("p", "PERSON", name)))


def test_a_title_alone_or_no_letter_at_all_has_no_fake(fakes):
    assert fakes.replace("p", "PERSON", "--") is None
    assert "Ms" not in fakes.replace("p", "PERSON", "Ms")


def test_first_names_keep_their_gender(fakes):
    names = pseudonyms._names()
    assert all(fakes.replace(f"p{i}", "PERSON", "Maria Kowalski").split()[0] in names.female for i in range(20))


def test_owners_are_independent():
    fakes = Pseudonyms(KEY)
    drawn = {fakes.replace(f"p{i}", "PERSON", "Maria Kowalski") for i in range(200)}
    assert len(drawn) > 190


def test_the_same_key_gives_the_same_fakes_and_another_key_others():
    names = [f"{first} {last}" for first in ("Ana", "Ivo", "Uma") for last in ("Aster", "Bex", "Corlo")]
    one, same, other = (
        [Pseudonyms(key).replace("p", "PERSON", n) for n in names] for key in (KEY, KEY, os.urandom(32))
    )
    assert one == same
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 3


def test_many_names_of_one_owner_have_distinct_fakes_none_its_own(fakes):
    rng = random.Random(0)
    names = ["".join(rng.choices("abcdefgh", k=6)).title() for _ in range(300)]
    drawn = {name: fakes.replace("p", "PERSON", name) for name in dict.fromkeys(names)}
    assert len(set(drawn.values())) == len(drawn)
    assert all(fake != name for name, fake in drawn.items())
    assert not set(drawn) & set(drawn.values())


def test_an_owner_that_was_forgotten_gets_the_same_fakes_again(monkeypatch):
    monkeypatch.setattr(pseudonyms, "OWNERS", 2)
    fakes = Pseudonyms(KEY)
    names = [f"Name{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(120)] + [
        "Ms Taylor",
        "James Aster",
        "Aster James",
    ]
    first = [fakes.replace("p", "PERSON", name) for name in names]
    for i in range(5):
        fakes.replace(f"q{i}", "PERSON", "Maria")
    assert "p" not in fakes._owners
    assert [fakes.replace("p", "PERSON", name) for name in reversed(names)] == first[::-1]


@pytest.mark.parametrize(
    ("entity", "text", "form"),
    [
        ("PHONE_NUMBER", "(212) 867-5309", r"\([2-9]\d\d\) 555-01\d\d"),
        ("PHONE_NUMBER", "+1 212 867 5309", r"\+1 [2-9]\d\d 555 01\d\d"),
        ("PHONE_NUMBER", "867-5309", r"555-01\d\d"),
        ("PHONE_NUMBER", "+44 20 7946 0958", r"\+44 \d\d \d555 01\d\d"),
        ("PHONE_NUMBER", "tel 212.867.5309 ext. 41", r"tel \d{3}\.555\.01\d\d ext\. \d\d"),
        ("PHONE_NUMBER", "x1234", r"x\d{4}"),
        ("US_SSN", "123-45-6789", r"9\d\d-[0-4]\d-\d{4}"),
        ("MEDICAL_RECORD", "AB-1234/c", r"[A-Z]{2}-\d{4}/[a-z]"),
        ("LICENSE_PLATE", "B-XY 123", r"[A-Z]-[A-Z]{2} \d{3}"),
        ("EMAIL_ADDRESS", "ana@aster.de", r"[a-z]+\.[a-z]+@example\.(com|net|org)"),
        ("URL", "https://aster.de/ana", r"https://www\.example\.(com|net|org)/[a-z]{8}"),
        ("IP_ADDRESS", "10.1.2.3", r"(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+"),
        ("LOCATION", "62701", r"\d{5}"),
        ("LOCATION", "IL", r"[A-Z]{2}"),
        ("LOCATION", "Springfield", r"[A-Z][A-Za-z ]+"),
        ("ADDRESS", "12 Elm St", r"\d+ [^,]+"),
        ("ADDRESS", "12 Elm St, Springfield, IL 62701", r"\d+ [^,]+, [^,]+, [A-Z]{2} \d{5}"),
        ("AGE", "42-year-old", r"4\d-year-old"),
        ("AGE", "103", r"9\d"),
    ],
)
def test_a_fake_has_the_form_of_the_original_and_is_another(fakes, entity, text, form):
    for owner in map(str, range(20)):
        fake = fakes.replace(owner, entity, text)
        assert re.fullmatch(form, fake) and fake != text


@pytest.mark.parametrize(
    ("entity", "text"),
    [("NRP", "German"), ("PHONE_NUMBER", "1-800-FLOWERS"), ("AGE", "ninety"), ("DATE", "two weeks"), ("WHATEVER", "x")],
)
def test_what_cannot_be_read_as_its_kind_has_no_fake(fakes, entity, text):
    assert fakes.replace("p", entity, text) is None


def test_one_number_written_twice_is_one_number(fakes):
    one, other = (
        fakes.replace("p", "PHONE_NUMBER", "(212) 867-5309"),
        fakes.replace("p", "PHONE_NUMBER", "1-212-867-5309"),
    )
    assert re.sub(r"\D", "", other) == "1" + re.sub(r"\D", "", one)


def test_check_digits_hold(fakes):
    for owner in map(str, range(30)):
        card = fakes.replace(owner, "CREDIT_CARD", "4111 1111 1111 1111")
        assert luhn(card.replace(" ", "")) and card.startswith("9999 ")
        assert nhs_number(fakes.replace(owner, "UK_NHS", "943 476 5919").replace(" ", ""))
        iban = fakes.replace(owner, "IBAN_CODE", "DE89 3704 0044 0532 0130 00")
        plain = iban.replace(" ", "")
        assert int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1  # ISO 13616
        assert re.fullmatch(r"DE\d\d \d{4} \d{4} \d{4} \d{4} \d\d", iban)


def test_a_number_of_few_digits_runs_out_of_fakes_rather_than_repeat(fakes):
    drawn = [fakes.replace("p", "ID", str(digit)) for digit in range(10)]
    given = [fake for fake in drawn if fake is not None]
    assert len(set(given)) == len(given)
    assert all(fake != str(digit) for digit, fake in enumerate(drawn))


# --- Dates ---


@pytest.mark.parametrize(
    ("text", "days", "moved"),
    [
        ("2019-05-03", 31, "2019-06-03"),
        ("2019/5/3", -3, "2019/4/30"),
        ("20190503", 1, "20190504"),
        ("2019-05-03T10:30:00Z", 1, "2019-05-04T10:30:00Z"),
        ("3/4/2019", 1, "3/5/2019"),
        ("03/04/2019 at 4:15 pm", 1, "03/05/2019 at 4:15 pm"),
        ("13/4/19", 20, "3/5/19"),
        ("12.31.1999", 1, "01.01.2000"),
        ("1/1/70", -1, "12/31/69"),
        ("May 3, 2019", 31, "June 3, 2019"),
        ("Sept. 3rd", 28, "Oct. 1st"),
        ("3rd of May 2019", -2, "1st of May 2019"),
        ("3 may 19", 9, "12 may 19"),
        ("MAY 3", 31, "JUNE 3"),
        ("Friday, 3 May 2019", 1, "Saturday, 4 May 2019"),
        ("Fri 3-Jan-2020", 1, "Sat 4-Jan-2020"),
        ("May 2019", 31, "June 2019"),
        ("Dec '19", 31, "Jan '20"),
        ("05/2019", 31, "06/2019"),
        ("2019-12", 31, "2020-01"),
        ("7/21", 20, "8/10"),
        ("2019", 400, "2020"),
        ("Monday", 3, "Thursday"),
        ("on 29 Feb 2020 and 1 March", 1, "on 1 Mar 2020 and 2 March"),
        ("2019-2021", 366, "2020-2022"),
    ],
)
def test_a_date_moves_and_keeps_its_written_form(text, days, moved):
    assert shift_dates(text, days) == moved


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "10:30",
            "two weeks",
            "3-5 May 2019",
            "31/31/2019",
            "30 Feb 2019",
            "the 1990s",
            "Christmas 2019",
            "today",
        ),
        *("2019-05-03 Aster", "Mayer 2019", "3 Maya 2019", "0001-01-01", "12345", "1/2/3/4", "May 3 2019x"),
    ],
)
def test_what_is_no_date_throughout_is_not_moved(text):
    assert shift_dates(text, -400) is None


def test_the_order_of_day_and_month_is_as_asked_where_both_can_be():
    assert shift_dates("3/4/2019", 1, day_first=True) == "4/4/2019"
    assert shift_dates("4/13/2019", 1, day_first=True) == "4/14/2019"


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%m/%d/%Y", "%B %d, %Y", "%A, %d %B %Y", "%m/%d/%y"])
def test_the_time_between_dates_is_kept(fakes, form):
    rng = random.Random(1)
    days = [date(1995, 1, 1) + timedelta(rng.randrange(9000)) for _ in range(50)]
    moved = [datetime.strptime(fakes.replace("p", "DATE", day.strftime(form)), form).date() for day in days]
    assert {new - old for new, old in zip(moved, days, strict=True)} == {timedelta(fakes.days("p"))}


def test_no_owner_has_dates_that_stay_or_come_later():
    texts = ["2019-05-03", "May 2019", "2019", "3 May", "Monday", "7/21", "May"]
    for days in pseudonyms._OFFSETS:
        assert -2920 <= days <= -400
        assert all(shift_dates(text, days) != text for text in texts)


def test_owners_have_offsets_of_their_own(fakes):
    assert len({fakes.days(f"p{i}") for i in range(100)}) > 80


def test_a_key_of_another_length_is_refused():
    with pytest.raises(DataError, match="32 bytes, got 3"):
        Pseudonyms(b"key")
