"""Labelled text, to measure a scrubber against: TAB, i2b2 2014, spans in JSON lines, and names cut from their text.

The first bad row ends the reading: a gold standard with gaps gives numbers that mean nothing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Literal, get_args

from reticent.data import i2b2
from reticent.data.clinic import NoteWriter
from reticent.data.rows import rows
from reticent.data.spans import Labelled, Mention
from reticent.errors import DataError

Form = Literal["tab", "i2b2", "spans", "cut-name"]
Identifier = Literal["direct", "quasi", "none"]

_FIELDS: dict[Form, set[str]] = {
    "tab": {"doc_id", "text", "annotations"},
    "spans": {"id", "text", "spans"},
    "cut-name": {"prompt", "target"},
    "i2b2": {"id", "text", "tags"},
}
_TAB_IDENTIFIERS: dict[str, Identifier] = {"DIRECT": "direct", "QUASI": "quasi", "NO_MASK": "none"}


# As `reticent.data.clinic` signs and dates its notes.
_DOCTOR = re.compile(r"(?:Dr\. |Signed )([^,.]+)[,.]")
_DAY = re.compile(r"\b\d{1,2} [A-Z][a-z]{2} \d{4}\b")


def form_of(path: Path) -> Form:
    """What kind of labelled text ``path`` holds, by its ending or by the fields of its first row.

    Raises:
        DataError: It is none of the four, or cannot be read.
    """
    if path.is_dir() or path.suffix.lower() == ".xml":
        return "i2b2"
    fields: Set[str] = next((row.values.keys() for row in rows(path)), frozenset())
    for form, needed in _FIELDS.items():
        if needed <= fields:
            return form
    raise DataError(
        f"{path.name}: not a form of labelled text; give the folder of .xml files of i2b2 2014, or rows "
        f"with {', or '.join(' and '.join(sorted(needed)) for needed in _FIELDS.values())}"
    )


def read(path: Path, form: Form | None = None) -> Iterator[Labelled]:
    """The labelled texts in ``path``, in a stream; without ``form`` it is found out by `form_of`.

    Raises:
        DataError: There is no such file, it is of another form, or a row is malformed.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check the path")
    form = form or form_of(path)
    if form not in get_args(Form):
        raise DataError(f"{form!r} is not a form of labelled text; take one of {', '.join(get_args(Form))}")
    readers = {"tab": read_tab, "i2b2": read_i2b2, "spans": read_spans, "cut-name": read_cut_names}
    return _not_empty(readers[form](path), path)


def read_tab(path: Path) -> Iterator[Labelled]:
    """The format of the Text Anonymization Benchmark (Pilan et al. 2022): a list of documents, several annotators each.

    Raises:
        DataError: It is not that format, or an offset does not fit its text.
    """
    seen: set[str] = set()
    for row, where in _rows(path):
        name = _new_id(_get(row, "doc_id", str, where), "doc_id", seen, where)
        text = _get(row, "text", str, where)
        mentions: list[Mention] = []
        for annotator, marked in _get(row, "annotations", dict, where).items():
            if not isinstance(marked, dict):
                raise DataError(f"{where}: field 'annotations' must hold an object for each annotator")
            for place, mention in enumerate(_get(marked, "entity_mentions", list, where), start=1):
                mentions.append(_tab_mention(mention, text, annotator, f"{where}: mention {place}"))
        yield Labelled(name, text, tuple(mentions))


def _tab_mention(row: Any, text: str, annotator: str, where: str) -> Mention:
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object, got {type(row).__name__}")
    start, end = _offsets(row, "start_offset", "end_offset", text, where)
    if "span_text" in row and row["span_text"] != text[start:end]:
        raise DataError(f"{where}: field 'span_text' is not what stands in the text from {start} to {end}; mend it")
    identifier = _get(row, "identifier_type", str, where)
    if identifier not in _TAB_IDENTIFIERS:
        raise DataError(f"{where}: field 'identifier_type' must be one of {', '.join(_TAB_IDENTIFIERS)}")
    entity, name = _get(row, "entity_type", str, where), _get(row, "entity_id", str, where)
    return Mention(start, end, entity, name, _TAB_IDENTIFIERS[identifier], annotator)


def read_i2b2(path: Path) -> Iterator[Labelled]:
    """The notes of i2b2 2014, cleaned as for training, one annotator; see `reticent.data.i2b2`.

    Raises:
        DataError: As `reticent.data.i2b2.read_notes`.
    """
    return map(i2b2.labelled, i2b2.read_notes(path))


def read_spans(path: Path) -> Iterator[Labelled]:
    """JSON lines ``{"id", "text", "spans": [{"start", "end", "entity", "id"?, "identifier"?, "annotator"?}]}``.

    A span without ``id`` is an entity of its own; without ``identifier`` ("direct", "quasi", "none") it is direct.

    Raises:
        DataError: A line is malformed, or an offset does not fit its text.
    """
    seen: set[str] = set()
    for row, where in _rows(path):
        name = _new_id(_get(row, "id", str, where), "id", seen, where)
        text = _get(row, "text", str, where)
        mentions = []
        for place, span in enumerate(_get(row, "spans", list, where)):
            here = f"{where}: span {place + 1}"
            if not isinstance(span, dict):
                raise DataError(f"{here}: must be an object, got {type(span).__name__}")
            start, end = _offsets(span, "start", "end", text, here)
            identifier: Identifier = _get({"identifier": "direct", **span}, "identifier", str, here)
            if identifier not in get_args(Identifier):
                raise DataError(f"{here}: field 'identifier' must be one of {', '.join(get_args(Identifier))}")
            entity = _get({"id": f"span {place + 1}", **span}, "id", str, here)
            annotator = _get({"annotator": "", **span}, "annotator", str, here)
            mentions.append(Mention(start, end, _get(span, "entity", str, here), entity, identifier, annotator))
        yield Labelled(name, text, tuple(mentions))


def read_cut_names(path: Path) -> Iterator[Labelled]:
    """JSON lines ``{"prompt", "target"}``: a text cut just before a person's name, and that name.

    Only this one name is marked: what else a scrubber masks counts as a false mask here, also where it is right.

    Raises:
        DataError: A line is malformed, or a target is empty.
    """
    for row, where in _rows(path):
        prompt, target = _get(row, "prompt", str, where), _get(row, "target", str, where)
        if not target.strip():
            raise DataError(f"{where}: field 'target' is empty; remove the line")
        text = prompt + target
        yield Labelled(where, text, (Mention(len(prompt), len(text), "PERSON", "target", "direct"),))


def generated_notes(patients: int, *, seed: int) -> Iterator[Labelled]:
    """One visit note of each of ``patients`` invented patients, prompt and note, with all that identifies anybody.

    Patient, record number, telephone number and doctor are direct identifiers, dates quasi. `reticent.data.clinic`
    knows what it wrote, so nothing is overlooked here.
    """
    writer = NoteWriter([seed, 11])
    for number in range(1, patients + 1):
        patient = writer.patient()
        text = "\n".join(writer.note(patient))
        known = {"PERSON": patient.name, "MEDICAL_RECORD": patient.number, "PHONE_NUMBER": patient.phone}
        found = [(text.index(value), value, kind) for kind, value in known.items()]
        found += [(doctor.start(1), doctor[1], "PERSON") for doctor in _DOCTOR.finditer(text)]
        found += [(day.start(), day[0], "DATE") for day in _DAY.finditer(text)]
        mentions = (
            Mention(start, start + len(value), kind, value, "quasi" if kind == "DATE" else "direct")
            for start, value, kind in sorted(found)
        )
        yield Labelled(f"note-{number}", text, tuple(mentions))


def _rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    for row in rows(path):
        yield row.values, row.where


def _get(row: Mapping[str, Any], field: str, kind: type, where: str) -> Any:
    if field not in row:
        raise DataError(f"{where}: there is no field {field!r}; add it")
    value = row[field]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: field {field!r} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _offsets(row: Mapping[str, Any], start: str, end: str, text: str, where: str) -> tuple[int, int]:
    offsets: tuple[int, int] = _get(row, start, int, where), _get(row, end, int, where)
    _check_offsets(*offsets, text, where)
    return offsets


def _check_offsets(start: int, end: int, text: str, where: str) -> None:
    if not 0 <= start < end <= len(text):
        raise DataError(f"{where}: goes from {start} to {end}, but the text has {len(text)} characters; mend it")


def _new_id(name: str, field: str, seen: set[str], where: str) -> str:
    if name in seen:
        raise DataError(f"{where}: field {field!r} repeats an earlier one; a document that comes twice counts twice")
    seen.add(name)
    return name


def _not_empty(documents: Iterable[Labelled], path: Path) -> Iterator[Labelled]:
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise DataError(f"{path.name}: there is no labelled text in it")
