"""Notes are cleaned and every mark still holds what it held."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reticent.data.i2b2 import clean, labelled, read_notes, read_records
from reticent.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"
NOTES = FIXTURES / "i2b2"


def test_a_note_is_cleaned_as_the_source_does() -> None:
    note = next(read_notes(NOTES))
    assert note.text == (
        "Record date: 2070-03-04\n"
        "VELD VALLEY CLINIC\n"
        "Seen with her husband, who says that the pain began when Zenna "
        "Quorl came home; she was seen by Dr. Orrin Tas & Dr. Ulma "
        "Brix on the same day and went home after two hours of rest. "
        "Medications given on this day and to be taken for one week:\n"
        "1. Aspirin 81 mg\n"
        "2. Rest and plenty of water, as was said the last time that she was here, to "
        "Zenna Quorl and to her husband\n"
        "- call 555-0142 if it comes back and ask there for somebody of the ward\n"
        "# MRN: 0099123"
    )


def test_every_tag_holds_its_cleaned_value() -> None:
    for note in read_notes(NOTES):
        tags = ElementTree.parse(NOTES / f"{note.id}.xml").getroot().find("TAGS")
        assert tags is not None
        said = sorted((int(tag.attrib["start"]), clean(tag.attrib["text"])[0]) for tag in tags)
        assert [note.text[tag.start : tag.end] for tag in note.tags] == [value for _, value in said]
        assert len(note.tags) == len(note.subtypes) > 0


def test_a_name_across_a_hard_wrap_is_whole() -> None:
    note = next(read_notes(NOTES))
    found = [(note.text[t.start : t.end], t.entity, s) for t, s in zip(note.tags, note.subtypes, strict=True)]
    assert ("Zenna Quorl", "NAME", "PATIENT") in found
    assert ("Ulma Brix", "NAME", "DOCTOR") in found


def test_spans_follow_their_text_through_any_layout() -> None:
    rng = np.random.default_rng(7)
    parts = [
        "ab",
        "c",
        " ",
        "  ",
        "\n",
        "\n\n",
        "&amp;",
        "&lt;",
        "--",
        "===\n",
        "x: y",
        "1. ",
        "- ",
        "\u2019",
        "\u00a0",
        "z" * 50,
    ]
    for _ in range(300):
        pieces = [parts[i] for i in rng.integers(len(parts), size=20)]
        text = "".join(pieces)
        at = int(rng.integers(19))
        start = len("".join(pieces[:at]))
        end = start + len("".join(pieces[at : at + 2]))
        cleaned, (moved,) = clean(text, [(start, end)])
        kept = "".join(clean(pieces[at])[0].split() + clean(pieces[at + 1])[0].split())
        shown = "" if moved is None else "".join(cleaned[moved[0] : moved[1]].split())
        # A piece of signs alone may be a separator line by itself and text beside a word.
        assert shown.replace("-", "").replace("=", "").replace(".", "") == kept.replace("-", "").replace(
            "=", ""
        ).replace(".", "")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a  \t b", "a b"),
        ("a\n\n \nb", "a\nb"),
        ("a\n-----\n* * *\nb", "a\nb"),
        ("x" * 50 + "\nb", "x" * 50 + " b"),
        ("x" * 49 + "\nb", "x" * 49 + "\nb"),
        ("x" * 50 + "\n- b", "x" * 50 + "\n- b"),
        ("x" * 50 + "\n#b", "x" * 50 + "\n#b"),
        ("x" * 50 + "\n12) b", "x" * 50 + "\n12) b"),
        ("x" * 50 + "\nb. c", "x" * 50 + "\nb. c"),
        ("x" * 50 + "\niv. c", "x" * 50 + "\niv. c"),
        ("a:" + "x" * 50 + "\nb: c", "a:" + "x" * 50 + "\nb: c"),
        ("a:" + "x" * 50 + "\nb c", "a:" + "x" * 50 + " b c"),
        ("a &lt; b &amp;&#39;c&#39; AT&T", "a < b &'c' AT&T"),
        ("\u201ca\u201d \u2013 b\u00a0c\u2026", '"a" - b c...'),
        ("a\r\nb\r\n", "a\nb"),
    ],
)
def test_cleaning(text: str, cleaned: str) -> None:
    assert clean(text)[0] == cleaned


def test_a_record_is_the_template_and_carries_its_id() -> None:
    records = list(read_records(NOTES))
    notes = list(read_notes(NOTES))
    assert [r.completion for r in records] == [f"Medical Note: {n.id}\n{n.text}\n" for n in notes]
    assert [r.completion[14:20] for r in records] == ["101-01", "101-02", "102-01"]


def test_the_owner_is_the_patient() -> None:
    assert [r.owner for r in read_records(NOTES)] == ["101", "101", "102"]


def test_the_preprocessed_file_reads_the_same_way() -> None:
    (record,) = read_records(FIXTURES / "PHI_dataset.json")
    assert record.completion == (
        "Medical Note: 101-01\nRecord date: 2070-03-04\nZenna Quorl rests. Zenna Quorl sleeps.\n"
    )
    (note,) = read_notes(FIXTURES / "PHI_dataset.json")
    assert [note.text[t.start : t.end] for t in note.tags] == ["2070-03-04", "Zenna Quorl", "Zenna Quorl"]
    assert note.subtypes == ("DATE", "PATIENT", "PATIENT")


def test_equal_names_are_one_thing_to_be_masked() -> None:
    (note,) = read_notes(FIXTURES / "PHI_dataset.json")
    mentions = labelled(note).mentions
    assert [(m.entity, m.identifier) for m in mentions] == [
        ("DATE", "quasi"),
        ("PATIENT", "direct"),
        ("PATIENT", "direct"),
    ]
    assert mentions[1].id == mentions[2].id != mentions[0].id


@pytest.mark.parametrize("most", [40, 100, 10_000])
def test_a_long_note_is_cut_once_and_fits(most: int) -> None:
    counts: Counter[str] = Counter()
    records = list(read_records(NOTES, length=len, max_length=most, counts=counts))
    whole = list(read_records(NOTES))
    assert all(len(r.completion) == min(most, len(w.completion)) for r, w in zip(records, whole, strict=True))
    assert all(r.completion[:-1] == w.completion[: len(r.completion) - 1] for r, w in zip(records, whole, strict=True))
    assert counts["truncated"] == sum(len(w.completion) > most for w in whole)


def test_a_bound_that_not_even_the_head_meets_is_refused() -> None:
    with pytest.raises(DataError, match=r"note 101-01: not even its head fits into max_length = 10"):
        list(read_records(NOTES, length=len, max_length=10))


NOTE = "<deIdi2b2><TEXT>{text}</TEXT><TAGS>{tags}</TAGS></deIdi2b2>"
TAG = '<NAME id="P0" start="{start}" end="{end}" text="SECRET" TYPE="DOCTOR" comment=""/>'
BOMB = '<!DOCTYPE x [<!ENTITY a "SECRET"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;">]>'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("101-01.xml", BOMB + NOTE.format(text="&c;", tags=""), r"101-01.xml: declares a document type or entities"),
        (
            "101-01.xml",
            '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + NOTE.format(text="&a;", tags=""),
            r"declares a document type or entities",
        ),
        (
            "101-01.xml",
            '<!DOCTYPE x SYSTEM "http://x.example/x.dtd">' + NOTE.format(text="x", tags=""),
            r"declares a document type or entities",
        ),
        ("101-01.xml", NOTE.format(text="SECRET", tags="")[:-5], r"101-01.xml: not well-formed XML"),
        ("101-01.xml", NOTE.format(text="SECRET &undeclared;", tags=""), r"101-01.xml: not well-formed XML"),
        ("101-01.xml", "<a>" * 100_000, r"101-01.xml: not well-formed XML"),
        ("101-01.xml", "<note>SECRET</note>", r"not a note of the i2b2 task: it needs TEXT and TAGS"),
        ("101-01.xml", NOTE.format(text=" ", tags=""), r"it needs TEXT and TAGS"),
        ("101-01.xml", NOTE.format(text="----", tags=""), r"a note without text"),
        ("101-01.xml", NOTE.format(text="a SECRET", tags=TAG.format(start=1, end=8)), None),
        (
            "101-01.xml",
            NOTE.format(text="a SECRET", tags=TAG.format(start=0, end=8)),
            r"tag 'P0': start=0 and end=8 do not",
        ),
        (
            "101-01.xml",
            NOTE.format(text="a SECRET", tags=TAG.format(start=2, end=99)),
            r"tag 'P0': start=2 and end=99 do",
        ),
        ("101-01.xml", NOTE.format(text="a SECRET", tags=TAG.format(start="x", end=8)), r"a tag <NAME> without start"),
        ("note.xml", NOTE.format(text="SECRET", tags=""), r"the name of a note is patient-number"),
        ("a.json", json.dumps([{"id": "1", "text": "SECRET", "tags": []}]), r"a.json:1: the name of a note is patient"),
        ("a.json", json.dumps([{"id": "101-01", "text": "SECRET", "tags": "x"}]), r"field 'tags' must be a list"),
        ("a.json", json.dumps([{"id": "101-01", "text": "SECRET", "tags": ["SECRET"]}]), r"tags\[0\]: needs type"),
        ("a.json", json.dumps([{"id": "101-01", "text": "101-01\n", "tags": []}]), r"a.json:1: a record with no text"),
    ],
)
def test_bad_notes_are_refused_without_their_text(tmp_path: Path, name: str, content: str, message: str | None) -> None:
    (tmp_path / name).write_text(content)
    if message is None:
        assert len(list(read_notes(tmp_path / name))) == 1
        return
    with pytest.raises(DataError, match=message) as caught:
        list(read_notes(tmp_path / name))
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_note_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "101-01.xml").write_text(NOTE.format(text="x", tags=""))
    with pytest.raises(DataError, match=r"note 101-01: is there twice"):
        list(read_notes(tmp_path))


def test_a_folder_without_notes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .xml file"):
        list(read_notes(tmp_path))
