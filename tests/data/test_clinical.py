"""Identifiers by their form: every usual way to write one is found, and what only looks like one is not."""

import time

import pytest

from reticent.data import clinical
from reticent.data.recognise import join


def _found(text: str, entity: str) -> list[str]:
    return [text[s.start : s.end] for s in join(text, clinical.find(text)) if s.entity == entity]


@pytest.mark.parametrize(
    "date",
    [
        "2019-05-03",
        "2019-05-03T14:22:05Z",
        "2019/05/03",
        "03/05/1948",
        "5/28/48",
        "3.5.2019",
        "3 May 2019",
        "3rd of May 2019",
        "third of May, 2019",
        "May 3rd, 2019",
        "May 3, 2019 at 10:15 a.m.",
        "Friday, 3 May 2019",
        "May 2019",
        "May '19",
        "3 May",
        "May 3rd",
        "12-15 May 2019",
        "May 3-5, 2019",
        "03MAY2019",
        "03-May-19",
        "SEPT 4, 2020",
        "12 and 14 June 2020",
        "05/2019",
        "Christmas 2018",
        "Monday",
    ],
)
def test_a_date_is_found_whole(date: str) -> None:
    assert _found(f"She came on {date} with a cough.", "DATE") == [date]


@pytest.mark.parametrize("text", ["Admitted 12/24 with fever", "seen on 24/12 with fever"])
def test_a_day_and_month_count_after_a_word_of_time(text: str) -> None:
    assert len(_found(text, "DATE")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Pain 5/10, murmur 3/6, BP 120/80.",
        "5-10 mg, then 1-2 tablets, version 1.2.3.",
        "It may improve. March on. WBC 12,000; Na 140; HbA1c 7.2 %.",
        "Take 2 tablets twice daily for 10 days, 500 mg each.",
        "45-year-old man, BMI 31.2, aged 45, stage 3 of 4",
    ],
)
def test_measurements_are_no_identifiers(text: str) -> None:
    assert clinical.find(text) == []


@pytest.mark.parametrize("text", ["on 31/13/2019", "on 45.45.2019", "2019-13-45 was"])
def test_an_impossible_date_is_none(text: str) -> None:
    assert [s for s in clinical.find(text) if s.entity == "DATE" and s.score > 0.5] == []


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("A 93-year-old man", "93-year-old"),
        ("a 101 years old lady", "101 years old"),
        ("aged 91 at the time", "91"),
        ("is ninety-two years old", "ninety-two years old"),
        ("age: 97", "97"),
        ("95 y/o with", "95 y/o"),
        ("a centenarian", "centenarian"),
    ],
)
def test_an_age_over_89_is_found(text: str, age: str) -> None:
    assert _found(text, "AGE") == [age]


def test_an_age_of_89_is_no_identifier() -> None:
    assert _found("An 89-year-old man, aged 89.", "AGE") == []


@pytest.mark.parametrize(
    "number",
    ["555-0142", "212-555-0100", "(312) 555-0142 x12", "+44 20 7946 0958", "+1 312 555 0143", "1-800-555-0199"],
)
def test_a_telephone_number_is_found(number: str) -> None:
    assert _found(f"Fax or call {number} please", "PHONE_NUMBER") == [number]


def test_a_valid_social_security_number_needs_no_context() -> None:
    assert _found("it is 123-45-6789 here", "US_SSN") == ["123-45-6789"]


@pytest.mark.parametrize("number", ["000-12-3456", "666-12-3456", "912-34-5678", "123-00-4567", "123-45-0000"])
def test_a_number_never_given_out_counts_only_after_the_words_that_say_so(number: str) -> None:
    assert _found(f"code {number}", "US_SSN") == [] and _found(f"SSN: {number}", "US_SSN") == [number]


@pytest.mark.parametrize(
    ("check", "number"),
    [
        (clinical.luhn, "4111 1111 1111 1111"),  # ISO/IEC 7812's usual example
        (clinical.iban, "GB82 WEST 1234 5698 7654 32"),  # of the IBAN registry
        (clinical.nhs_number, "943 476 5919"),  # of the NHS Data Dictionary
        (clinical.npi, "1234567893"),  # of 45 CFR 162
        (clinical.vin, "1M8GDM9AXKP042788"),
    ],
)
def test_a_checksum_accepts_the_known_number_and_no_other_last_digit(check, number: str) -> None:  # type: ignore[no-untyped-def]
    assert [d for d in "0123456789" if check(number[:-1] + d)] == [number[-1]]


def test_an_nhs_number_whose_check_would_be_ten_is_none() -> None:
    heads = [f"{n:09d}" for n in range(100_000_000, 100_000_060)]
    assert any(not any(clinical.nhs_number(head + d) for d in "0123456789") for head in heads)


def test_a_mistyped_card_counts_after_the_word_card_alone() -> None:
    wrong = "4111 1111 1111 1112"
    assert _found(f"Visa card {wrong}", "CREDIT_CARD") == [wrong] and _found(f"item {wrong}", "CREDIT_CARD") == []


@pytest.mark.parametrize(
    ("text", "entity", "found"),
    [
        ("IBAN GB82 WEST 1234 5698 7654 32.", "IBAN_CODE", "GB82 WEST 1234 5698 7654 32"),
        ("write to a.roe@mail.example.org.", "EMAIL_ADDRESS", "a.roe@mail.example.org"),
        ("see https://example.org/a?b=1.", "URL", "https://example.org/a?b=1"),
        ("at example.com/x now", "URL", "example.com/x"),
        ("from 192.168.0.7 and", "IP_ADDRESS", "192.168.0.7"),
        ("from fe80::1 and", "IP_ADDRESS", "fe80::1"),
        ("plate no. ABC-1234 seen", "LICENSE_PLATE", "ABC-1234"),
        ("MRN 483920 today", "MEDICAL_RECORD", "483920"),
        ("MRN: AB-48392.", "MEDICAL_RECORD", "AB-48392"),
        ("Medical record number 00123.", "MEDICAL_RECORD", "00123"),
        ("chart #4821;", "MEDICAL_RECORD", "4821"),
        ("account number 99887.", "ID", "99887"),
        ("case no. 12345/06 of", "ID", "12345/06"),
        ("NPI 1234567893.", "NPI", "1234567893"),
        ("at 12 Oak Street, Apt 4, Hillby, IL 62704.", "ADDRESS", "12 Oak Street, Apt 4, Hillby, IL 62704"),
        ("10 High Street, London SW1A 1AA.", "ADDRESS", "10 High Street, London SW1A 1AA"),
        ("PO Box 12, Dover, DE 19901.", "ADDRESS", "PO Box 12, Dover, DE 19901"),
        ("Hauptstraße 5,", "ADDRESS", "Hauptstraße 5"),
        ("Seen by Dr. Quillane.", "PERSON", "Quillane"),
        ("patient: Ada Quillane,", "PERSON", "Ada Quillane"),
        ("Signed Quillane, 3 May.", "PERSON", "Quillane"),
        ("Dear Ada, thank you", "PERSON", "Ada"),
        ("Visit note for Ada Quillane: cough", "PERSON", "Ada Quillane"),
        ("Ada Quillane, M.D., wrote", "PERSON", "Ada Quillane"),
        ("Name: QUILLANE, ADA", "PERSON", "QUILLANE, ADA"),
        ("Mr Ünal Çelik‑Öz came", "PERSON", "Ünal Çelik‑Öz"),
        ("Mrs van der Quill came", "PERSON", "van der Quill"),
    ],
)
def test_an_identifier_is_found_whole(text: str, entity: str, found: str) -> None:
    assert _found(text, entity) == [found]


def test_both_of_a_couple_are_found() -> None:
    assert _found("Mr and Mrs Oake and Drs. Quill and Vant met.", "PERSON") == ["Oake", "Quill", "Vant"]


def test_a_title_before_no_name_marks_nobody() -> None:
    assert _found("The patient: He is well. Dear Sir, signed by the nurse.", "PERSON") == []


@pytest.mark.parametrize(
    "piece", ["1, ", "A. ", "de ", "Ab'c-", "may ", "a-", "1/1/", "note on Ab ", " ", "A9-", "+1("]
)
def test_a_long_text_of_one_piece_takes_time_in_proportion(piece: str) -> None:
    started = time.process_time()
    clinical.find(piece * 3000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "address",
    [
        "31 Kessel Stravenue",
        "1068 Brand Drives, Perrystad",
        "9022 Ostler Vista, Port Merrow, GU 88523",
        "5 Old Mill Landing, East Wick",
        "77 Lindt Road, Wick, MH 10797",
    ],
)
def test_an_address_is_found_whole_with_its_town_whatever_its_kind_of_street(address: str) -> None:
    text = f"The letter went to {address} and came back."
    assert _found(text, "ADDRESS") == [address]
