"""How the rows of each catalogued data set become records: one reader a schema.

A reader takes a `Query` and gives a stream. `rendered` fills the template of the set with the items that a function
makes of its rows, and leaves out what the source leaves out, counted.
"""

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

from reticent.data import i2b2, mail
from reticent.data.record import Record
from reticent.data.rows import KEY, Reading, Row, has_split, rows
from reticent.data.sources import DistinctIds, hub_rows, name_of, text_of, value_of
from reticent.errors import DataError

LETTERS = "ABCDE"
SEE_PAGE = "see the hub page"
MMLU_SUBJECTS = (
    "anatomy",
    "college_biology",
    "college_medicine",
    "professional_medicine",
    "medical_genetics",
    "virology",
    "clinical_knowledge",
    "high_school_biology",
    "nutrition",
)
SUBJECT_FILE = re.compile(r"(\w+?)_(?:test|val|dev)\.csv")

LABELLED = 1_000  # rows of PubMedQA's PQA-L, and of PQA-A: its official splits are permutations of them
ARTIFICIAL = 211_269
ARTIFICIAL_TRAIN = 200_000
SENTENCE_ENDS = ("?", ".", ":", "-")  # after these MedMCQA's question gets no question mark
LOOK_AHEAD = 10_000  # rows within which MedMCQA's label base must show; one in two questions tells


class Item(NamedTuple):
    """One row as a question with its answer.

    ``fields`` fill the verbatim template, ``question`` and ``answer`` all others. ``options`` are the possible answers,
    ``measured`` is what the source's length filter measures, ``asked`` what a membership test shows.
    """

    question: str
    answer: str
    fields: Mapping[str, str]
    measured: str
    options: tuple[str, ...] = ()
    id: str | None = None
    asked: str = ""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked of a data set."""

    data: "DataSet"
    path: Path | None
    split: str | None
    template: str
    limit: int | None
    length: Callable[[str], int] | None
    max_length: int
    counts: Counter[str]
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set by its name. ``splits`` are the names and, where known, the rows of each.

    ``source`` is where the source system had it from, ``hub`` where it loads from: the same rows, in a form that needs
    no foreign code. ``hub_splits`` are all its splits there, where the set's own are drawn here. ``options`` are the
    arguments of `read` that this set knows besides the common ones.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    templates: Mapping[str, tuple[str, str]]
    owner: str
    read: Callable[[Query], Iterator[Record]] = field(repr=False)
    hub: str | None = None
    config: str | None = None
    folder: str | None = None
    revision: str | None = None
    source: str = ""
    splits: Mapping[str, int | None] = field(default_factory=dict)
    hub_splits: tuple[str, ...] = ()
    default_split: str = "train"
    default_limit: int | None = None
    licence: str = SEE_PAGE
    access: str = "open"
    filters: str = "none"
    options: Mapping[str, str] = field(default_factory=dict)


# From rows to records.


def source_rows(asked: Query, *, whole: bool = False, reading: Reading = Reading()) -> Iterator[Row]:  # noqa: B008  # never changed
    """The rows of the split that is asked for, or by default, or all (``whole``): of what was given, or of the hub."""
    data, path = asked.data, asked.path
    split = "all" if whole else asked.split or data.default_split
    parts = list(data.splits) if split == "all" else split.split("+")
    if path is None:
        return chain.from_iterable(_hub(data, part) for part in data.hub_splits or parts)
    if path.is_file() and not whole and asked.split not in (None, "all"):
        raise DataError(f"{path}: a file holds no splits; leave split out, or give the folder of the splits' files")
    if path.is_file() or split == "all" or (asked.split is None and not any(has_split(path, part) for part in parts)):
        return rows(path, reading)
    return chain.from_iterable(rows(path, reading, split=part) for part in parts)


def _hub(data: DataSet, split: str) -> Iterator[Row]:
    assert data.hub is not None
    for row in hub_rows(data.hub, config=data.config, split=split, revision=data.revision, folder=data.folder):
        yield row._replace(file=f"{row.file}/{split}")


def items(
    item: Callable[[Row, Query], Item | None],
) -> Callable[[Query], Iterator[Record]]:
    """The reader of a set in which every row is one question with one answer."""

    def read_rows(asked: Query) -> Iterator[Record]:
        return rendered(islice(source_rows(asked), asked.limit), item, asked)

    return read_rows


def rendered(source: Iterable[Row], item: Callable[[Row, Query], Item | None], asked: Query) -> Iterator[Record]:
    """Fills the template with what ``item`` makes of each row; leaves out long rows and empty answers, counted."""
    ids = DistinctIds("id")
    prompt, completion = asked.data.templates[asked.template]
    for row in source:
        made = item(row, asked)
        if made is None:  # left out, and counted
            continue
        if asked.length is not None and asked.length(made.measured) > asked.max_length:
            asked.counts["too long"] += 1
            continue
        if not made.answer.strip():
            asked.counts["no answer"] += 1
            continue
        if made.id is not None:
            ids.add(made.id, row)
        # The question that the source changes (a mark added, say) is in the fields; all other templates show it raw.
        fields = made.fields if asked.template == "verbatim" else {**made.fields, "question": made.question}
        fields = {**fields, "asked": made.asked}
        options = () if asked.template == "question" else made.options
        name = made.id or row.where
        yield Record(
            id=name,
            owner=name,
            prompt=prompt.format(**fields),
            completion=completion.format(**fields, answer=made.answer),
            origin=asked.data.name,
            options=tuple(completion.format(**fields, answer=option) for option in options),
            answer=options.index(made.answer) if options else None,
        )
    ids.require_distinct()


def _listed(question: str, options: Iterable[str]) -> str:
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])


# Medical questions.


def flashcard(row: Row, asked: Query) -> Item:
    """{input, output}: a question and its answer; the instruction says nothing."""
    question, answer = text_of(row, "input"), text_of(row, "output")
    return Item(question, answer, {"question": question}, question + answer, asked=question)


def meadow(row: Row, asked: Query) -> Item:
    """{instruction, input, output}: all three are shown."""
    instruction, given, answer = text_of(row, "instruction"), text_of(row, "input"), text_of(row, "output")
    question = f"{instruction}\n{given}" if given else instruction
    return Item(question, answer, {"instruction": instruction, "input": given}, question + answer)


def medmcqa(asked: Query) -> Iterator[Record]:
    """{question, opa..opd, cop}, whose labels count from 0 or from 1."""
    source: Iterator[Row] = islice(source_rows(asked), asked.limit)
    base = asked.options.get("label_base")
    if base not in (None, 0, 1):
        raise DataError(f"{asked.data.name}: label_base is 0 (the hub's copy) or 1 (the original files), got {base!r}")
    if base is None:
        base, source = (0, source) if asked.path is None else label_base(source, asked.data.name)
    return rendered(source, lambda row, asked: _medmcqa_item(row, asked, base), asked)


def label_base(source: Iterator[Row], name: str) -> tuple[int, Iterator[Row]]:
    """Whether MedMCQA's labels count from 0 or from 1, as the first 0 or 4 among them tells; and the rows again.

    Raises:
        DataError: None of the first 10,000 tells.
    """
    seen = []
    for row in islice(source, LOOK_AHEAD):
        seen.append(row)
        label = value_of(row, "cop")
        if label in (0, 4):
            return int(label == 4), chain(seen, source)
    raise DataError(
        f"{name}: field 'cop' is never 0 nor 4 in {len(seen)} rows, so it does not show whether labels count from 0 "
        "(the hub's copy) or from 1 (the original files); set label_base"
    )


def _medmcqa_item(row: Row, asked: Query, base: int) -> Item:
    question = text_of(row, "question")
    label = value_of(row, "cop")
    if isinstance(label, bool) or not isinstance(label, int) or not base <= label <= base + 3:
        why = (
            "the test split has no answers"
            if label == -1
            else "check label_base: 0 on the hub, 1 in the original files"
        )
        raise DataError(f"{row.where}: field 'cop' is not in {base}..{base + 3}; {why}")
    marked = question
    if not question.endswith(SENTENCE_ENDS):
        marked += "?"
        asked.counts["question marks added"] += 1
    options = [text_of(row, f"op{letter}") for letter in "abcd"]
    fields = {"question": marked, **dict(zip("abcd", options, strict=True))}
    id = name_of(row, "id") if "id" in row.values else None
    return Item(_listed(question, options), LETTERS[label - base], fields, question, tuple("ABCD"), id)


def medqa(row: Row, asked: Query) -> Item:
    """{question, options: {A..D}, answer_idx}."""
    options = value_of(row, "options")
    if not isinstance(options, Mapping) or not all(isinstance(option, str) for option in options.values()):
        raise DataError(f"{row.where}: field 'options' must be an object of letters and texts")
    letters = [letter for letter in LETTERS if options.get(letter) is not None]
    answer = text_of(row, "answer_idx")
    if answer not in letters:
        raise DataError(f"{row.where}: field 'answer_idx' is none of the options' letters")
    question = text_of(row, "question")
    listed = _listed(question, (options[letter] for letter in letters))
    return Item(listed, answer, {"block": _with_options(question, listed)}, listed, tuple(letters))


def _with_options(question: str, listed: str) -> str:
    return f"{question}\nOptions:{listed.removeprefix(question)}"


def mmlu(asked: Query) -> Iterator[Record]:
    """{question, choices, answer} of the hub, subject by subject; or the csv files without header, a subject each."""
    return rendered(islice(mmlu_rows(asked), asked.limit), _mmlu_item, asked)


def mmlu_rows(asked: Query) -> Iterator[Row]:
    """The rows of MMLU's medical subjects on the hub, or all of the files that were given."""
    if asked.path is not None:
        return source_rows(asked, reading=Reading(columns=("question", *"ABCD", "answer")))
    hub, split = asked.data.hub, asked.split or asked.data.default_split
    assert hub is not None
    return chain.from_iterable(
        (row._replace(file=f"{row.file}/{subject}/{split}") for row in hub_rows(hub, config=subject, split=split))
        for subject in MMLU_SUBJECTS
    )


def mmlu_subject(row: Row) -> str | None:
    """The subject of a row of MMLU: its field, or as its csv file is called."""
    subject = row.values.get("subject") or SUBJECT_FILE.fullmatch(row.file.rsplit("/")[-1])
    return subject if subject is None or isinstance(subject, str) else subject[1]


def _mmlu_item(row: Row, asked: Query) -> Item | None:
    subject = mmlu_subject(row)
    if subject is not None and subject not in MMLU_SUBJECTS:
        asked.counts["other subject"] += 1
        return None
    question, answer = text_of(row, "question"), value_of(row, "answer")
    choices = row.values["choices"] if "choices" in row.values else [text_of(row, letter) for letter in "ABCD"]
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{row.where}: field 'choices' must be a list of four texts")
    letter = LETTERS[answer] if isinstance(answer, int) and 0 <= answer < 4 else answer
    if letter not in ("A", "B", "C", "D"):
        raise DataError(f"{row.where}: field 'answer' must be a letter of A to D, or an index of 0 to 3")
    listed = _listed(question, choices)
    return Item(listed, letter, {"block": _with_options(question, listed)}, listed, tuple("ABCD"))


# PubMedQA.


def _pubmedqa_item(row: Row, asked: Query) -> Item:
    """Of the original schema (QUESTION, CONTEXTS), or of the hub's parquet (question, context.contexts)."""
    original = "QUESTION" in row.values
    question = text_of(row, "QUESTION" if original else "question")
    if original:
        contexts = value_of(row, "CONTEXTS")
    else:
        context = value_of(row, "context")
        contexts = context.get("contexts") if isinstance(context, Mapping) else context
    if not isinstance(contexts, list) or not contexts or not all(isinstance(part, str) for part in contexts):
        raise DataError(f"{row.where}: the contexts must be a list of texts")
    joined = "\n".join(contexts)
    fields = {"contexts": joined, "question": question}
    whole = f"{joined}\n{question}"
    return Item(whole, _decision(row), fields, whole, ("yes", "no", "maybe"), _pmid(row), asked=contexts[0])


def _decision(row: Row) -> str:
    decision = text_of(row, "final_decision")
    if decision not in ("yes", "no", "maybe"):
        raise DataError(f"{row.where}: field 'final_decision' must be yes, no or maybe")
    return decision


def _pmid(row: Row) -> str:
    return name_of(row, next((field for field in (KEY, "pubid", "PMID", "pmid") if field in row.values), "pubid"))


def pubmedqa_labelled(asked: Query) -> Iterator[Record]:
    """The rows of the experts, by their official split."""
    return rendered(islice(labelled_rows(asked), asked.limit), _pubmedqa_item, asked)


def labelled_rows(asked: Query) -> Iterator[Row]:
    """The official split of PubMedQA's 1,000 labelled rows; they are few, so they are held.

    Raises:
        DataError: In the stream: there are more or fewer.
    """
    source = source_rows(asked, whole=True)
    if asked.split == "all":
        yield from source
        return
    held = list(islice(source, LABELLED + 1))
    if len(held) != LABELLED:
        raise DataError(
            f"{asked.data.name}: its official splits are of all {LABELLED:,} labelled rows, and here are "
            f"{'more' if len(held) > LABELLED else len(held)}; take split 'all' to read the file as it is"
        )
    parts = labelled_splits([_decision(row) for row in held])
    wanted = (asked.split or asked.data.default_split).split("+")
    yield from (row for row, part in zip(held, parts, strict=True) if part in wanted)


def labelled_splits(decisions: list[str]) -> list[str]:
    """Of each of PubMedQA's labelled rows its official split: 500 for the test, fold 0 of ten of the rest to validate.

    As its authors' split_dataset.py draws them: Python's generator from seed 0, each decision apart.
    """
    draw = random.Random(0)
    everything = list(range(len(decisions)))
    rest, test = _folds(everything, decisions, 2, draw)
    validation = _folds(rest, decisions, 10, draw)[0]
    part = dict.fromkeys(everything, "train") | dict.fromkeys(test, "test") | dict.fromkeys(validation, "validation")
    return [part[index] for index in everything]


def _folds(indices: list[int], decisions: list[str], folds: int, draw: random.Random) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(folds)]
    for decision in ("yes", "no", "maybe"):
        group = [index for index in indices if decisions[index] == decision]
        draw.shuffle(group)
        size = math.ceil(len(group) / folds)
        for fold in range(folds):
            parts[fold] += group[fold * size :] if fold == folds - 1 else group[fold * size : (fold + 1) * size]
    if len(parts[-1]) != len(parts[0]):
        for part in parts[:-1]:
            moved = draw.choice(part)
            part.remove(moved)
            parts[-1].append(moved)
    return parts


def pubmedqa_artificial(asked: Query) -> Iterator[Record]:
    """The rows made from titles, by their official split, in the order of the file."""
    return rendered(_artificial_rows(asked), _pubmedqa_item, asked)


def _artificial_rows(asked: Query) -> Iterator[Row]:
    source = source_rows(asked, whole=True)
    if asked.split == "all":
        yield from islice(source, asked.limit)
        return
    # The authors shuffle all ids from seed 0 and cut; a permutation depends on their number only.
    order = list(range(ARTIFICIAL))
    random.Random(0).shuffle(order)
    drawn = order[ARTIFICIAL_TRAIN:] if asked.split == "validation" else order[:ARTIFICIAL_TRAIN]
    wanted = set(drawn[: asked.limit])
    total = 0
    for total, row in enumerate(source, start=1):
        if total - 1 in wanted:
            yield row
    if total != ARTIFICIAL:
        raise DataError(
            f"{asked.data.name}: its official splits are of all {ARTIFICIAL:,} artificial rows, and here are "
            f"{total:,}; take split 'all' to read the file as it is"
        )


# Instructions.


def alpaca(row: Row, asked: Query) -> Item:
    """OpenFedLLM's: the input behind the instruction, after a blank."""
    instruction, given, answer = text_of(row, "instruction"), row.values.get("input") or "", text_of(row, "output")
    question = f"{instruction} {text_of(row, 'input')}" if given else instruction
    return Item(question, answer, {"question": question}, question + answer)


def asking(question_field: str, answer_field: str) -> Callable[[Row, Query], Item]:
    """A question and an answer in fields of any names."""

    def item(row: Row, asked: Query) -> Item:
        question, answer = text_of(row, question_field), text_of(row, answer_field)
        return Item(question, answer, {"question": question}, question + answer)

    return item


def first_of_each_instruction(asked: Query) -> Iterator[Record]:
    """As OpenFedLLM does for MathInstruct; 16 bytes of each instruction are held."""
    seen: set[bytes] = set()

    def item(row: Row, asked: Query) -> Item | None:
        made = asking("instruction", "output")(row, asked)
        digest = hashlib.blake2b(made.question.encode(), digest_size=16).digest()
        if digest in seen:
            asked.counts["repeated instruction"] += 1
            return None
        seen.add(digest)
        return made

    return rendered(islice(source_rows(asked), asked.limit), item, asked)


def abstract(row: Row, asked: Query) -> Item:
    """{text}: nothing is asked, and the whole text is the answer."""
    text = text_of(row, "text")
    return Item("Abstract: ", text, {}, text)


# Texts with an owner.


def echr(asked: Query) -> Iterator[Record]:
    """Each fact of a case as one text, owned by the case."""
    source = source_rows(asked, whole=True)
    seed = asked.options.get("seed", 42)
    wanted = None if asked.split in (None, "all") else (asked.split or "").split("+")
    for row in islice(source, asked.limit):
        if wanted is not None and case_split(row.where, seed) not in wanted:
            continue
        facts = value_of(row, "facts")
        if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
            raise DataError(f"{row.where}: field 'facts' must be a list of texts")
        for number, fact in enumerate(facts):
            if not fact.strip():
                asked.counts["empty fact"] += 1
            elif asked.length is not None and asked.length(fact) > asked.max_length:
                asked.counts["too long"] += 1
            else:
                yield Record(
                    id=f"{row.where}#{number}", owner=row.where, prompt="", completion=fact, origin=asked.data.name
                )


def case_split(case: str, seed: int) -> str:
    """The split of a case: 45, 10 and 45 in a hundred, drawn by its name, so that no other case matters."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{case}".encode()).digest()[:8], "big") / 2**64
    return "train" if drawn < 0.45 else "test" if drawn < 0.55 else "validation"


def enron(asked: Query) -> Iterator[Record]:
    """Each message as one text, owned by its sender."""
    no_sender = asked.options.get("no_sender", "stop")
    if no_sender not in get_args(mail.NoSender):
        raise DataError(f"{asked.data.name}: no_sender is stop or drop, got {no_sender!r}")
    for record in mail.read_records(source_rows(asked), no_sender=no_sender, counts=asked.counts, limit=asked.limit):
        if asked.length is not None and asked.length(record.completion) > asked.max_length:
            asked.counts["too long"] += 1
        else:
            yield record


def i2b2_notes(asked: Query) -> Iterator[Record]:
    """Each note as one text, owned by its patient."""
    assert asked.path is not None
    return i2b2.read_records(
        asked.path, length=asked.length, max_length=asked.max_length, counts=asked.counts, limit=asked.limit
    )
