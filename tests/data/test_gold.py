"""Labelled text of each form becomes the mentions that it marks; what does not fit is refused without its text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from reticent.data import gold
from reticent.data.spans import Mention
from reticent.errors import DataError

FIXTURES = Path(__file__).parent / "gold"
SECRET = "Ada Quill"


def _write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    lines = content if isinstance(content, str) else "\n".join(json.dumps(row) for row in content)
    path.write_text(lines, encoding="utf-8")
    return path


def test_a_tab_document_has_the_mentions_of_each_annotator() -> None:
    first, second = gold.read(FIXTURES / "tab.json")
    assert (first.id, second.id) == ("001-1", "001-2")
    assert [m.annotator for m in first.mentions] == ["annotator1"] * 5 + ["annotator2"] * 4
    assert first.mentions[0] == Mention(0, 12, "PERSON", "a1_e1", "direct", "annotator1")
    assert [first.text[m.start : m.end] for m in first.mentions[5:]] == ["Ada Quill", "Quill", "Norby", "3 May 2001"]
    assert [m.identifier for m in first.mentions[5:]] == ["direct", "direct", "none", "quasi"]


def test_a_span_without_id_is_its_own_entity_and_direct() -> None:
    first, second, third = gold.read(FIXTURES / "spans.jsonl")
    assert first.mentions == (
        Mention(5, 14, "PERSON", "ada", "direct"),
        Mention(18, 26, "PHONE_NUMBER", "span 2", "direct"),
    )
    assert second.mentions[0].identifier == "quasi"
    assert second.mentions[1].annotator == "x"
    assert third.mentions == ()


def test_a_cut_name_is_joined_to_its_prompt() -> None:
    first, second = gold.read(FIXTURES / "cut.jsonl")
    assert first.text == "7.  The court heard Ada Quill"
    assert first.mentions == (Mention(20, 29, "PERSON", "target", "direct"),)
    assert second.id == "cut.jsonl:2"


NOTE = """<?xml version="1.0" encoding="UTF-8" ?>
<deIdi2b2>
<TEXT><![CDATA[Ada Quill, 44, was seen by Dr. Ferre.]]></TEXT>
<TAGS>
<NAME id="P0" start="0" end="9" text="Ada Quill" TYPE="PATIENT" comment="" />
<AGE id="P1" start="11" end="13" text="44" TYPE="AGE" comment="" />
<NAME id="P2" start="31" end="36" text="Ferre" TYPE="DOCTOR" comment="" />
</TAGS>
</deIdi2b2>
"""


def test_a_note_of_i2b2_has_the_finer_types(tmp_path: Path) -> None:
    _write(tmp_path, "110-01.xml", NOTE)
    (note,) = gold.read(tmp_path)
    assert note.id == "110-01"
    assert [(m.entity, note.text[m.start : m.end], m.identifier) for m in note.mentions] == [
        ("PATIENT", "Ada Quill", "direct"),
        ("AGE", "44", "quasi"),
        ("DOCTOR", "Ferre", "direct"),
    ]


def test_the_notes_of_i2b2_as_json_are_found_by_their_fields(tmp_path: Path) -> None:
    tag = {"type": "NAME", "subtype": "PATIENT", "id": "P0", "value": "Ada Quill", "start_indices": [[0, 9]]}
    path = _write(tmp_path, "phi.json", json.dumps([{"id": "110-01", "text": "Ada Quill left.", "tags": [tag]}]))
    (note,) = gold.read(path)
    assert note.mentions[0][:3] == (0, 9, "PATIENT")


@pytest.mark.parametrize(("name", "form"), [("tab.json", "tab"), ("spans.jsonl", "spans"), ("cut.jsonl", "cut-name")])
def test_the_form_is_found_by_the_fields(name: str, form: str) -> None:
    assert gold.form_of(FIXTURES / name) == form


def test_generated_notes_have_all_their_identifiers_marked() -> None:
    notes = list(gold.generated_notes(60, seed=1))
    for note in notes:
        kinds = [mention.entity for mention in note.mentions]
        assert (kinds.count("PERSON"), kinds.count("MEDICAL_RECORD"), kinds.count("PHONE_NUMBER")) == (2, 1, 1)
        rest = list(note.text)
        for mention in note.mentions:
            rest[mention.start : mention.end] = "." * (mention.end - mention.start)
        # What is left of numbers are days and weeks; what is left of dates, nothing.
        assert not re.search(r"\d{3}|\d [A-Z][a-z]{2} ", "".join(rest))
    assert len({note.mentions[0].id for note in notes}) == 60
    assert notes == list(gold.generated_notes(60, seed=1))


def test_rows_of_another_form_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, "notes.jsonl", [{"note": SECRET}])
    with pytest.raises(DataError, match=r"notes.jsonl: not a form of labelled text"):
        gold.read(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"empty.jsonl: there is no labelled text"):
        list(gold.read(_write(tmp_path, "empty.jsonl", ""), "spans"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        gold.read(tmp_path / "none.json")


def _tab(**changes: Any) -> list[Any]:
    mention = {
        "entity_type": "PERSON",
        "start_offset": 5,
        "end_offset": 14,
        "span_text": SECRET,
        "identifier_type": "DIRECT",
        "entity_id": "e1",
    }
    mention |= changes
    return [{"doc_id": "d", "text": f"Call {SECRET}.", "annotations": {"a": {"entity_mentions": [mention]}}}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_offset": 16}, r"tab.json:1: mention 1: goes from 5 to 16, but the text has 15 characters"),
        ({"start_offset": -1}, r"mention 1: goes from -1 to 14"),
        ({"start_offset": 14}, r"mention 1: goes from 14 to 14"),
        ({"end_offset": 13}, r"mention 1: field 'span_text' is not what stands in the text from 5 to 13"),
        ({"start_offset": "5"}, r"mention 1: field 'start_offset' must be int, got str"),
        ({"start_offset": True}, r"field 'start_offset' must be int, got bool"),
        ({"identifier_type": SECRET}, r"field 'identifier_type' must be one of DIRECT, QUASI, NO_MASK"),
        ({"entity_id": None}, r"field 'entity_id' must be str, got NoneType"),
    ],
)
def test_a_tab_mention_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = _write(tmp_path, "tab.json", json.dumps(_tab(**changes)))
    with pytest.raises(DataError, match=message) as caught:
        list(gold.read(path))
    assert SECRET not in str(caught.value)


def test_a_tab_mention_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    documents = _tab()
    del documents[0]["annotations"]["a"]["entity_mentions"][0]["entity_id"]
    with pytest.raises(DataError, match=r"tab.json:1: mention 1: there is no field 'entity_id'"):
        list(gold.read(_write(tmp_path, "tab.json", json.dumps(documents))))


def test_a_document_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tab.json:2: field 'doc_id' repeats an earlier one"):
        list(gold.read(_write(tmp_path, "tab.json", json.dumps(_tab() + _tab()))))


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start": 5, "end": 99, "entity": "PERSON"}, r"s.jsonl:1: span 1: goes from 5 to 99"),
        ({"start": 5, "end": 14}, r"span 1: there is no field 'entity'"),
        ({"start": 5, "end": 14, "entity": "PERSON", "identifier": "maybe"}, r"one of direct, quasi, none"),
        (SECRET, r"span 1: must be an object, got str"),
    ],
)
def test_a_span_that_does_not_fit_is_refused(tmp_path: Path, span: Any, message: str) -> None:
    path = _write(tmp_path, "s.jsonl", [{"id": "a", "text": f"Call {SECRET}.", "spans": [span]}])
    with pytest.raises(DataError, match=message) as caught:
        list(gold.read(path))
    assert SECRET not in str(caught.value)


def test_an_empty_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"c.jsonl:1: field 'target' is empty"):
        list(gold.read(_write(tmp_path, "c.jsonl", [{"prompt": "heard ", "target": " "}])))


def test_malformed_json_is_refused_without_its_text(tmp_path: Path) -> None:
    path = _write(tmp_path, "s.jsonl", '{"id": "a", "text": "' + SECRET)
    with pytest.raises(DataError, match=r"s.jsonl:1: malformed line") as caught:
        list(gold.read(path, "spans"))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
