"""The annotated notes of the i2b2/UTHealth 2014 task on de-identification: cleaned, with the marks still in place.

Stubbs and Uzuner, "Annotating longitudinal clinical narratives for de-identification", Journal of Biomedical
Informatics 58, 2015. 1,304 notes of 296 patients; ``110-02.xml`` is the second note of patient 110. The owner of a note
is the patient, never the note: what is in one note of a patient is often in the next.

Notes come as the XML that is distributed, or as the PHI_dataset.json of "Mitigating Unintended Memorization with LoRA
in Federated Learning for LLMs" (arXiv 2502.05087), whose cleaning is reproduced here.
"""

import html
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from reticent.data.record import Record
from reticent.data.rows import Row, rows
from reticent.data.sources import name_of, text_of, value_of
from reticent.data.spans import Labelled, Mention, Span
from reticent.errors import DataError

ID = re.compile(r"\d{3}-\d{2}")
HEAD = "Medical Note: "

WRAPPED = 50  # characters: a shorter line was ended by its writer, not by the edge of the screen
SEPARATOR = re.compile(r"[-_=*~#+.\s]*")
LIST_ITEM = re.compile(r"[-#]|\(?(\d{1,3}|[A-Za-z]|[IVXivx]{1,5})[.)](\s|$)")
ENTITY = re.compile(r"&(#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Word processors' characters, as the keyboard has them. One for one or one for several.
TYPED = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
        "\u00a0": " ",
        "\ufeff": " ",
    }
)

LARGEST = 16 << 20  # bytes of an XML file; a note has some kilobytes
# Of the task's kinds those that name somebody by themselves; the rest do together.
NAMES = {"PATIENT", "DOCTOR", "USERNAME"}
CONTACTS = {"PHONE", "FAX", "EMAIL", "URL", "IPADDRESS", "IPADDR"}
NUMBERS = {"SSN", "MEDICALRECORD", "HEALTHPLAN", "ACCOUNT", "LICENSE", "VEHICLE", "DEVICE", "BIOID", "IDNUM"}
DIRECT = NAMES | CONTACTS | NUMBERS


class Note(NamedTuple):
    """A cleaned note. ``tags[i].entity`` is its kind (NAME, ...), ``subtypes[i]`` the finer one (DOCTOR, ...)."""

    id: str
    patient: str
    text: str
    tags: tuple[Span, ...]
    subtypes: tuple[str, ...]


class _Tag(NamedTuple):
    start: int
    end: int
    type: str
    subtype: str


def read_notes(path: Path) -> Iterator[Note]:
    """The notes of a folder of .xml files (or of one), or of a PHI_dataset.json, in a stream.

    Raises:
        DataError: A file is no such note, declares entities, or marks a stretch that is not what it says.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.xml"))
        if not files:
            raise DataError(f"{path}: there is no .xml file in this folder; give the folder of the i2b2 notes")
        return _distinct(map(_xml_note, files))
    if path.suffix.lower() == ".xml":
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; check the path (it is relative to the recipe)")
        return map(_xml_note, [path])
    return _distinct(map(_json_note, rows(path)))


def _distinct(notes: Iterator[Note]) -> Iterator[Note]:
    """The notes, if no id comes twice: the parts of the set are easily unpacked twice."""
    seen: set[str] = set()
    for note in notes:
        if note.id in seen:
            raise DataError(f"note {note.id}: is there twice; ids must differ")
        seen.add(note.id)
        yield note


def read_records(
    path: Path,
    *,
    length: Callable[[str], int] | None = None,
    max_length: int = 1024,
    counts: Counter[str] | None = None,
    limit: int | None = None,
) -> Iterator[Record]:
    """Each note as ``Medical Note: {id}\\n{note}\\n``, owned by its patient.

    A note longer than ``max_length`` in the unit of ``length`` (tokens, say) is cut where it just fits, and counted
    under "truncated" in ``counts``.
    """
    for note in islice(read_notes(path), limit):
        head, body = f"{HEAD}{note.id}\n", note.text
        if length is not None:
            body = _cut(head, body, length, max_length, note.id)
            if len(body) < len(note.text) and counts is not None:
                counts["truncated"] += 1
        yield Record(id=note.id, owner=note.patient, prompt="", completion=f"{head}{body}\n", origin="i2b2-2014")


def labelled(note: Note) -> Labelled:
    """The note as gold for scrubbing: one mention a tag, of the finer kind; equal words of a kind are one thing."""
    mentions = tuple(
        Mention(
            start=tag.start,
            end=tag.end,
            entity=subtype,
            id=f"{subtype}:{note.text[tag.start : tag.end].casefold()}",
            identifier="direct" if subtype in DIRECT else "quasi",
        )
        for tag, subtype in zip(note.tags, note.subtypes, strict=True)
    )
    return Labelled(id=note.id, text=note.text, mentions=mentions)


def clean(text: str, spans: Sequence[tuple[int, int]] = ()) -> tuple[str, list[tuple[int, int] | None]]:
    """The text without layout, and where each span lies in it; None if nothing of the span is left.

    Empty lines and lines of signs only go; runs of white space become one blank; character references are resolved;
    a line goes on with the next, unless it is short or the next opens an item of a list or both have a colon.
    """
    kept: list[tuple[str, int]] = []  # each character with the place where it, or what it stands for, began
    previous: str | None = None
    for start, line in _lines(text):
        pieces = _cleaned_line(line, start)
        shown = "".join(character for character, _ in pieces)
        if SEPARATOR.fullmatch(shown):
            continue
        if previous is not None:
            kept.append((" " if _goes_on(previous, shown) else "\n", start - 1))
        kept += pieces
        previous = shown
    origins = [origin for _, origin in kept]
    cleaned = "".join(character for character, _ in kept)
    return cleaned, [_moved(cleaned, bisect_left(origins, s), bisect_left(origins, e)) for s, e in spans]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _cleaned_line(line: str, start: int) -> list[tuple[str, int]]:
    """Its characters, each with its place in the note; without blanks at the ends or next to one another."""
    cleaned: list[tuple[str, int]] = []
    at = 0
    while at < len(line):
        found = ENTITY.match(line, at)
        resolved = html.unescape(found[0]) if found else line[at]
        for character in resolved.translate(TYPED):
            if not character.isspace():
                cleaned.append((character, start + at))
            elif cleaned and cleaned[-1][0] != " ":
                cleaned.append((" ", start + at))
        at = found.end() if found else at + 1
    if cleaned and cleaned[-1][0] == " ":
        cleaned.pop()
    return cleaned


def _goes_on(line: str, following: str) -> bool:
    return len(line) >= WRAPPED and not LIST_ITEM.match(following) and not (":" in line and ":" in following)


def _moved(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


def _cut(head: str, body: str, length: Callable[[str], int], most: int, id: str) -> str:
    """The longest beginning of ``body`` that fits with its head and its last line end."""
    if length(f"{head}{body}\n") <= most:
        return body
    low, high = 0, len(body)  # `low` fits (or is empty), `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(f"{head}{body[:middle]}\n") <= most else (low, middle)
    while low and length(f"{head}{body[:low]}\n") > most:  # a tokenizer may shorten a text by a character more
        low -= 1
    if not low:
        raise DataError(f"note {id}: not even its head fits into max_length = {most}; raise it")
    return body[:low]


# XML.


def _xml_note(path: Path) -> Note:
    import defusedxml.ElementTree
    from defusedxml.common import DefusedXmlException

    name = path.name
    if path.stat().st_size > LARGEST:
        raise DataError(f"{name}: larger than {LARGEST >> 20} MiB; a note of the i2b2 task has some kilobytes")
    try:
        # Nothing is declared in the task's files, so a document type is refused as a whole.
        root = defusedxml.ElementTree.parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException:
        raise DataError(
            f"{name}: declares a document type or entities, as an attack does; the notes of the task have none"
        ) from None
    except (defusedxml.ElementTree.ParseError, ValueError, LookupError):  # not chained: it may quote the note
        raise DataError(f"{name}: not well-formed XML; fetch the file again") from None
    except RecursionError:
        raise DataError(f"{name}: nested too deeply; fetch the file again") from None
    text, tags = root.find("TEXT"), root.find("TAGS")
    if text is None or tags is None or not (text.text or "").strip():
        raise DataError(f"{name}: not a note of the i2b2 task: it needs TEXT and TAGS")
    raw = text.text or ""
    marked = [_xml_tag(element.tag, dict(element.attrib), raw, name) for element in tags]
    return _note(path.stem, raw, marked, name)


def _xml_tag(kind: str, attributes: dict[str, str], text: str, name: str) -> _Tag:
    try:
        start, end, said = int(attributes["start"]), int(attributes["end"]), attributes["text"]
    except (KeyError, ValueError):
        raise DataError(f"{name}: a tag <{kind}> without start, end (whole numbers) and text") from None
    _require_marked(text, start, end, said, f"{name}: tag {attributes.get('id', kind)!r}")
    return _Tag(start, end, kind, attributes.get("TYPE") or kind)


def _require_marked(text: str, start: int, end: int, said: str, where: str) -> None:
    # An attribute cannot hold a line end, so white space is compared as one blank.
    if not 0 <= start < end <= len(text) or text[start:end].split() != said.split():
        raise DataError(f"{where}: start={start} and end={end} do not hold what the tag says; fetch the file again")


def _note(id: str, raw: str, tags: Sequence[_Tag], name: str) -> Note:
    _require_id(id, name)
    tags = sorted(tags)
    text, moved = clean(raw, [(tag.start, tag.end) for tag in tags])
    if not text:
        raise DataError(f"{name}: a note without text; remove it")
    left = [(tag, at) for tag, at in zip(tags, moved, strict=True) if at is not None]
    spans = tuple(Span(at[0], at[1], tag.type, by="i2b2") for tag, at in left)
    return Note(id, id[:3], text, spans, tuple(tag.subtype for tag, _ in left))


def _require_id(id: str, name: str) -> None:
    if not ID.fullmatch(id):
        raise DataError(f"{name}: the name of a note is patient-number, as 110-02, so that its patient is known")


# PHI_dataset.json.


def _json_note(row: Row) -> Note:
    """{id, text, tags: [{type, subtype, id, value, start_indices: [[start, end], ...]}]}, cleaned already."""
    id, text = name_of(row, "id"), text_of(row, "text")
    _require_id(id, row.where)
    tags = value_of(row, "tags")
    if not isinstance(tags, list):
        raise DataError(f"{row.where}: field 'tags' must be a list, got {type(tags).__name__}")
    found = sorted(
        tag for index, entry in enumerate(tags) for tag in _json_tags(entry, text, f"{row.where}: tags[{index}]")
    )
    # The text opens with the id; it is given once, in the head.
    offset = len(id) + 1 if text.startswith((f"{id}\n", f"{id} ")) else 0
    found = [tag for tag in found if tag.start >= offset]
    text = text[offset:]
    if not text.strip():
        raise DataError(f"{row.where}: a record with no text in field 'text'; remove it")
    spans = tuple(Span(tag.start - offset, tag.end - offset, tag.type, by="i2b2") for tag in found)
    return Note(id, id[:3], text.rstrip("\n"), spans, tuple(tag.subtype for tag in found))


def _json_tags(entry: Any, text: str, where: str) -> list[_Tag]:
    try:
        type_, subtype, value = str(entry["type"]), str(entry["subtype"]), str(entry["value"])
        places = [(int(start), int(end)) for start, end in entry["start_indices"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where}: needs type, subtype, value and start_indices of [start, end]") from None
    for start, end in places:
        _require_marked(text, start, end, value, where)
    return [_Tag(start, end, type_, subtype) for start, end in places]
