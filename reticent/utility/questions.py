"""Questions with options, from published benchmarks in their original schemas or from any file.

The named sets: ``mmlu-medical`` (the nine scored subjects), ``pubmedqa`` (the official test split of the labelled
rows), ``medmcqa``, ``medqa`` (five options) and ``medqa4`` (four). Any other name is a file of rows {question, options,
answer} with context, subject, id and reasoning where there are some.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np

from reticent.data import catalog, schemas
from reticent.data.contamination import Benchmark
from reticent.data.rows import KEY, Row, has_split, rows
from reticent.data.schemas import DataSet, Query
from reticent.data.sources import name_of
from reticent.errors import DataError

SHOTS_SEED = 1234  # the source system's
WORDS = ("yes", "no", "maybe")
_MMLU_FILE = re.compile(r"\w+?_(test|val|dev)\.csv")
_WORD = re.compile(r"\w+")


class Question(NamedTuple):
    """One question: its ``context`` (paragraphs, mostly none), its options' texts and the index of the right one.

    ``reasoning`` explains the answer, where the source does; ``id`` is the source's, or its file and row.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    context: tuple[str, ...] = ()
    subject: str | None = None
    reasoning: str = ""

    @property
    def closed(self) -> bool:
        """Whether it is to be answered by yes, no or maybe, and not by a letter."""
        return set(self.options) <= set(WORDS)

    @property
    def labels(self) -> tuple[str, ...]:
        """What names each option in an answer: its letter, or yes, no and maybe themselves."""
        return self.options if self.closed else tuple(ascii_uppercase[: len(self.options)])


class Read(NamedTuple):
    """The questions of a benchmark.

    ``duplicates``: later items with the same question and options, left out. ``equal_options``: items of a published
    set with two equal options, which stay in as published. ``available``: items before ``limit``.
    """

    questions: list[Question]
    duplicates: int
    equal_options: int
    available: int


class Shots(NamedTuple):
    """Solved examples, and how many were skipped because they are among the questions themselves."""

    questions: list[Question]
    skipped: int


class _Set(NamedTuple):
    data: DataSet
    split: str
    training: str
    question: Callable[[Row], Question | None]


def read(name: str, *, path: Path | None, split: str | None = None, limit: int | None = None, seed: int = 0) -> Read:
    """The questions of the benchmark ``name``: of a file or folder, or of the hub.

    ``split``: None is the one that the field reports on. ``limit`` of them are drawn by ``seed``, in their order.

    Raises:
        DataError: It cannot be reached or read, or an item has a missing or empty option, fewer than two, an answer
            outside them, or (in a file of your own) two equal ones; file and row are named.
    """
    kept: dict[tuple[Any, ...], Question] = {}
    total = equal = 0
    for one, same in _questions(name, path, split):
        total += 1
        if kept.setdefault(_identity(one), one) is one:
            equal += same
    if not kept:
        raise DataError(f"{path or name}: there is no question in it; check the path and the split")
    questions = list(kept.values())
    if limit is not None and limit < len(questions):
        drawn = sorted(random.Random(seed).sample(range(len(questions)), limit))
        questions = [questions[i] for i in drawn]
    return Read(questions, total - len(kept), equal, len(kept))


def shots(
    name: str,
    count: int,
    *,
    path: Path | None,
    file: Path | None,
    questions: Sequence[Question],
    seed: int = SHOTS_SEED,
) -> Shots:
    """``count`` solved examples, the same for all questions: of ``file``, or of the set's training split.

    They are the first of ``datasets``' ``shuffle(seed)``, without those that stand among ``questions``.

    Raises:
        DataError: There are not so many, or one cannot be read.
    """
    if count == 0:
        return Shots([], 0)
    source = [*_rows(name, path, None, training=True)] if file is None else [*_rows(name, file, "all")]
    make = SETS[name].question if name in SETS else _plain
    tested = {_identity(one)[:2] for one in questions}
    found: dict[tuple[Any, ...], Question] = {}
    skipped = 0
    for index in np.random.default_rng(seed).permutation(len(source)).tolist():
        one = make(source[index])
        if one is None:
            continue
        _require_options(one, source[index].where, published=name in SETS)
        if _identity(one)[:2] in tested:
            skipped += 1
            continue
        found.setdefault(_identity(one), one)
        if len(found) == count:
            return Shots(list(found.values()), skipped)
    raise DataError(
        f"{file or path or name}: {count} demonstrations are asked for, and there are {len(found)} that are none of "
        "the questions; lower shots, or give another file as demonstrations"
    )


def contaminated(questions: Sequence[Question], texts: Iterable[Sequence[str]]) -> np.ndarray:
    """Which questions stand in ``texts`` (batches of them), (questions,) bool.

    One does if its question or context shares a run of 13 words with a text, or if its question is a whole line of one
    (what stands before a colon left aside), whatever the case and the punctuation.
    """
    items = ["\n".join([*one.context, one.question]) for one in questions]
    lines = [_normalised(one.question) for one in questions]
    wanted, benchmark = set(lines), Benchmark(items)
    hit_texts: list[str] = []
    hit_lines: set[str] = set()
    for batch in texts:
        hit_texts += [text for text, hit in zip(batch, benchmark.hits(batch), strict=True) if hit]
        hit_lines |= {line for text in batch for line in _lines(text) if line in wanted}
    runs = Benchmark(hit_texts).hits(items)
    return np.array([run or line in hit_lines for run, line in zip(runs.tolist(), lines, strict=True)], dtype=bool)


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield _normalised(line)
        yield _normalised(line.partition(":")[2])


def _normalised(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _identity(one: Question) -> tuple[Any, ...]:
    """What makes two items the same: context and question, and then the options."""
    return tuple(map(_squeezed, one.context)), _squeezed(one.question), tuple(map(_squeezed, one.options))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


# ----------------------------------------------------------------------------------------------------------- items


def _questions(name: str, path: Path | None, split: str | None) -> Iterator[tuple[Question, bool]]:
    """Each with whether two of its options are equal, which only a published set may have."""
    make = SETS[name].question if name in SETS else _plain
    for row in _rows(name, path, split):
        one = make(row)
        if one is not None:
            yield one, _require_options(one, row.where, published=name in SETS)


def _require_options(one: Question, where: str, *, published: bool) -> bool:
    if not one.question.strip():
        raise DataError(f"{where}: the question is empty; fill it in, or remove the row")
    if len(one.options) < 2:
        raise DataError(f"{where}: a question needs two options or more, and it has {len(one.options)}")
    if len(one.options) > len(ascii_uppercase):
        raise DataError(f"{where}: at most {len(ascii_uppercase)} options have letters, and it has {len(one.options)}")
    for number, option in enumerate(one.options):
        if not option.strip():
            raise DataError(f"{where}: option {ascii_uppercase[number]} is empty; fill it in, or remove the row")
    seen: dict[str, int] = {}
    for number, option in enumerate(one.options):
        first = seen.setdefault(_squeezed(option), number)
        if first != number and published:
            return True
        if first != number:
            letters = f"{ascii_uppercase[first]} and {ascii_uppercase[number]}"
            raise DataError(f"{where}: options {letters} are equal, so there is no one answer; mend or remove the row")
    return False


def _value(row: Row, field: str) -> Any:
    if field not in row.values:
        # The fields that there are stay unnamed: in a csv without a header they would be somebody's text.
        raise DataError(f"{row.where}: there is no field {field!r}, which every item of this benchmark has")
    return row.values[field]


def _text(row: Row, field: str) -> str:
    value = _value(row, field)
    if not isinstance(value, str):
        raise DataError(f"{row.where}: field {field!r} must be text, got {type(value).__name__}")
    return value


def _texts(values: Any, row: Row, field: str) -> tuple[str, ...]:
    """A list of texts; an option that is missing is named by its letter."""
    if not isinstance(values, list | tuple):
        raise DataError(f"{row.where}: field {field!r} must be a list of texts, got {type(values).__name__}")
    for number, value in enumerate(values):
        if not isinstance(value, str):
            which = ascii_uppercase[number] if number < len(ascii_uppercase) else str(number + 1)
            what = "missing" if value is None else f"not text but {type(value).__name__}"
            raise DataError(f"{row.where}: in field {field!r} entry {which} is {what}; fill it in, or remove the row")
    return tuple(values)


def _by_letter(values: Mapping[str, Any], row: Row, field: str) -> tuple[str, ...]:
    """Texts under the letters A, B, ... without a gap. A missing one at the end is none: parquet fills it in."""
    letters = sorted(values)
    while letters and values[letters[-1]] is None:
        letters.pop()
    if letters != list(ascii_uppercase[: len(letters)]):
        raise DataError(f"{row.where}: the options in field {field!r} must have the letters A, B, ... without a gap")
    return _texts([values[letter] for letter in letters], row, field)


def _index(answer: Any, options: Sequence[str], labels: Sequence[str], row: Row, field: str = "answer") -> int:
    """Of an answer given as a letter, an index from 0 or the option's text."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, str):
        text = _squeezed(answer)
        as_text = [i for i, option in enumerate(options) if _squeezed(option) == text]
        as_label = [i for i, label in enumerate(labels) if label == text]
        if as_text and as_label and as_text != as_label:
            raise DataError(f"{row.where}: field {field!r} is a letter and another option's text; say it as an index")
        if found := as_label or as_text:
            return found[0]
        answer = int(text) if text.isdecimal() else None
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    raise DataError(
        f"{row.where}: field {field!r} is none of the {len(options)} options; it must be a letter, an index from 0 or "
        "an option's text"
    )


def _made(row: Row, options: tuple[str, ...], answer: int, **more: Any) -> Question:
    return Question(
        **{"id": row.where, "question": _text(row, "question"), "options": options, "answer": answer, **more}
    )


def _plain(row: Row) -> Question:
    """{question, options, answer}: options as a list, by letter, as JSON text of either, or in columns A, B, ..."""
    given = row.values.get("options")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise DataError(f"{row.where}: field 'options' must be a list or an object, here as JSON text") from None
    if given is None:
        columns = {letter: row.values[letter] or None for letter in ascii_uppercase if letter in row.values}
        if not columns:
            raise DataError(f"{row.where}: there is no field 'options', and there are no columns A, B, ... of them")
        options = _by_letter(columns, row, "A, B, ...")
    elif isinstance(given, Mapping):
        options = _by_letter(given, row, "options")
    else:
        options = _texts(given, row, "options")
    context = row.values.get("context") or ()
    blank = Question("", "", options, 0)
    return _made(
        row,
        options,
        _index(_value(row, "answer"), options, blank.labels, row),
        context=(context,) if isinstance(context, str) else _texts(context, row, "context"),
        subject=row.values.get("subject") or None,
        reasoning=row.values.get("reasoning") or "",
        **({"id": name_of(row, "id")} if row.values.get("id") is not None else {}),
    )


def _medmcqa(row: Row) -> Question:
    """Its label counts from 0 by now."""
    options = _texts([_value(row, f"op{letter}") for letter in "abcd"], row, "opa..opd")
    label = _value(row, "cop")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 4:
        raise DataError(f"{row.where}: field 'cop' is none of the four options (the test split has no answers)")
    return _made(
        row,
        options,
        label,
        subject=row.values.get("subject_name") or None,
        reasoning=row.values.get("exp") or "",
        **({"id": name_of(row, "id")} if row.values.get("id") is not None else {}),
    )


def _medqa(row: Row, count: int) -> Question:
    """The options by letter, or as a list of {key, value}."""
    given = _value(row, "options")
    if isinstance(given, list) and all(isinstance(one, Mapping) and {"key", "value"} <= set(one) for one in given):
        given = {one["key"]: one["value"] for one in given}
    if not isinstance(given, Mapping):
        raise DataError(f"{row.where}: field 'options' must be an object of letters and texts")
    options = _by_letter(given, row, "options")
    if len(options) != count:
        other = {4: "medqa4", 5: "medqa"}.get(len(options))
        hint = f"; that is the benchmark {other}" if other else ""
        raise DataError(f"{row.where}: {count} options are expected, and it has {len(options)}{hint}")
    field = "answer_idx" if "answer_idx" in row.values else "answer"
    return _made(row, options, _index(_value(row, field), options, ascii_uppercase[:count], row, field))


def _mmlu(row: Row) -> Question | None:
    subject = schemas.mmlu_subject(row)
    if subject is not None and subject not in schemas.MMLU_SUBJECTS:
        return None
    choices = row.values["choices"] if "choices" in row.values else [_value(row, letter) for letter in "ABCD"]
    options = _texts(choices, row, "choices")
    if len(options) != 4:
        raise DataError(f"{row.where}: field 'choices' must be four texts, got {len(options)}")
    answer = _value(row, "answer")
    if answer not in (*"ABCD", *range(4)) or isinstance(answer, bool):
        raise DataError(f"{row.where}: field 'answer' must be a letter of A to D, or an index of 0 to 3")
    return _made(row, options, answer if isinstance(answer, int) else "ABCD".index(answer), subject=subject)


def _pubmedqa(row: Row) -> Question:
    original = "QUESTION" in row.values
    contexts = _value(row, "CONTEXTS" if original else "context")
    if isinstance(contexts, Mapping):
        contexts = contexts.get("contexts")
    decision = _text(row, "final_decision")
    if decision not in WORDS:
        raise DataError(f"{row.where}: field 'final_decision' must be yes, no or maybe")
    name = next((field for field in (KEY, "pubid", "PMID", "pmid") if field in row.values), None)
    return Question(
        id=row.where if name is None else name_of(row, name),
        question=_text(row, "QUESTION" if original else "question"),
        options=WORDS,
        answer=WORDS.index(decision),
        context=_texts(contexts, row, "CONTEXTS"),
        reasoning=row.values.get("LONG_ANSWER" if original else "long_answer") or "",
    )


# ----------------------------------------------------------------------------------------------------------- places

_FIVE = replace(
    catalog.get("medqa"),
    hub="bigbio/med_qa",  # its script no longer runs; the parquet branch has the same rows
    folder="med_qa_en_source",
    revision="refs/convert/parquet",
    splits={"train": None, "validation": None, "test": None},
)
SETS: dict[str, _Set] = {
    "mmlu-medical": _Set(catalog.get("mmlu-medical"), "test", "dev", _mmlu),
    "pubmedqa": _Set(catalog.get("pubmedqa-labelled"), "test", "train", _pubmedqa),
    "medmcqa": _Set(catalog.get("medmcqa"), "validation", "train", _medmcqa),
    "medqa": _Set(_FIVE, "test", "train", lambda row: _medqa(row, 5)),
    "medqa4": _Set(catalog.get("medqa"), "test", "train", lambda row: _medqa(row, 4)),
}


def _rows(name: str, path: Path | None, split: str | None, *, training: bool = False) -> Iterator[Row]:
    """The rows of the split that is asked for, or of the one to test on, or of the one for demonstrations."""
    if path is not None and not path.exists():
        raise DataError(f"{path}: there is no such file; check the path (it is relative to the recipe)")
    if name not in SETS:
        return _own_rows(name, path, split, training)
    known = SETS[name]
    if split is not None and split != "all" and not set(split.split("+")) <= set(known.data.splits):
        raise DataError(f"{name}: there is no split {split!r}; it has {', '.join(known.data.splits)}")
    wanted = split or (known.training if training else known.split)
    asked = Query(
        data=known.data,
        path=path,
        split=wanted,
        template="verbatim",
        limit=None,
        length=None,
        max_length=0,
        counts=Counter(),
        options={},
    )
    if name == "pubmedqa":
        return schemas.labelled_rows(asked)  # a file too: its official split is drawn here
    if path is not None and wanted != "all":
        asked = replace(asked, split=_split_of(path, wanted, known, named=split is not None, training=training))
    if name == "mmlu-medical":
        return _of_kind(schemas.mmlu_rows(asked), path, wanted)
    found = schemas.source_rows(asked)
    if name == "medmcqa" and path is not None:
        base, found = _label_base(found, path)
        return (row._replace(values={**row.values, "cop": _less(row.values.get("cop"), base)}) for row in found)
    return found


def _label_base(found: Iterator[Row], path: Path) -> tuple[int, Iterator[Row]]:
    held = [*found]
    if not held:
        return 0, iter(held)
    try:
        return schemas.label_base(iter(held), str(path))
    except DataError as error:
        if "never 0 nor 4" not in str(error):
            raise
        raise DataError(
            f"{path}: field 'cop' is never 0 nor 4, so it does not show whether labels count from 0 (the hub's copy) "
            "or from 1 (the original files); give more of its rows, or give the benchmark another name and its rows as "
            "{question, options, answer}"
        ) from None


def _less(label: Any, base: int) -> Any:
    """The label counted from 0; what is no number stays, to be refused where the item is read."""
    return label - base if isinstance(label, int) and not isinstance(label, bool) else label


def _split_of(path: Path, wanted: str, known: _Set, *, named: bool, training: bool) -> str | None:
    """The split to ask ``path`` for; None: all that is there, because nothing in it is called after a split."""
    if path.is_dir() and any(has_split(path, one) for one in known.data.splits):
        return wanted
    if training and known.data.name != "mmlu-medical":
        raise DataError(
            f"{path}: there is no split {wanted!r} for the demonstrations; give a file of them as demonstrations"
        )
    return wanted if named and path.is_file() else None


def _of_kind(found: Iterator[Row], path: Path | None, wanted: str) -> Iterator[Row]:
    """Of a folder of MMLU's csv files those of one split, as they are called: anatomy_test.csv."""
    for row in found:
        kind = _MMLU_FILE.fullmatch(row.file.rsplit("/")[-1])
        if path is None or path.is_file() or wanted == "all" or kind is None or wanted.startswith(kind[1]):
            yield row


def _own_rows(name: str, path: Path | None, split: str | None, training: bool) -> Iterator[Row]:
    if path is None:
        raise DataError(
            f"there is no benchmark called {name!r} on the hub that reticent knows; it knows {', '.join(SETS)}. Give "
            "the path of a file of questions, options and answers"
        )
    wanted = split or ("train" if training else "test")
    there = path.is_dir() and has_split(path, wanted)
    if training and not there:
        raise DataError(f"{path}: there is no split 'train' for the demonstrations; give a file as demonstrations")
    if split not in (None, "all") and path.is_file():
        raise DataError(f"{path}: a file holds no splits; leave split out, or give the folder of the splits' files")
    return rows(path, split=wanted if there or split not in (None, "all") else None)
