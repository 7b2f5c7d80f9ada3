"""Takes what identifies people out of records; a text that could not be looked at never comes out.

The recognisers look at prompt, completion and options of a record as one text, so that a name which the prompt gives
away is found in the completion too. A record at which they fail, in whatever way, is dropped and counted, or ends the
run. What is no guarantee: that they find everything; `reticent.data.scrub_score` measures how much they miss.
"""

import math
import multiprocessing
import os
import re
import secrets
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from reticent.data.pseudonyms import Pseudonyms
from reticent.data.record import Record
from reticent.data.scrub_map import MapWriter, Row
from reticent.data.span_cache import SpanCache
from reticent.data.spans import Span, UnavailableError
from reticent.errors import DataError
from reticent.progress import SILENT, Progress

if TYPE_CHECKING:
    from reticent.data.recognise import Recogniser

Style = Literal["mask", "tag", "pseudonym", "redact"]
Found = list[Span] | str  # the spans of a text, or the class of the error

MASK = "<MASK>"
BATCH = 16  # records: small, so that processes end together
BATCH_SIZE = 100_000  # characters, if that is less
WAITING = 2  # batches for each process that are read ahead
TIMEOUT = "Timeout"  # the error of a record at which the recogniser took too long
CLOSING = re.compile(r"[.,;:!?)\]\n]|\Z")
ENTITY = re.compile(r"[A-Z][A-Z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to scrub.

    ``recognisers`` and ``language`` are those of `reticent.data.recognise.build`, and so is ``entities`` (None: all).
    ``style``: what stands in the place of a span, "<MASK>", "<PERSON>", an invented one that is the same within an
    owner, or nothing. ``on_error``: drop the record or stop. With ``timeout``, seconds for a batch, the recognisers
    work in processes of their own, also if ``processes`` is 1: only a process can be stopped. ``day_first``: 3/4/2019
    is in April. ``key``: of the pseudonyms, 32 bytes; the same key gives the same ones again, and who has it can find
    out whom one stands for. Without it a new one is drawn and forgotten.

    Raises:
        DataError: A value is out of its bounds.
    """

    recognisers: tuple[str, ...] = ()
    entities: tuple[str, ...] | None = None
    style: Style = "tag"
    on_error: Literal["drop", "stop"] = "drop"
    language: str = "en"
    processes: int = 1
    timeout: float | None = None
    day_first: bool = False
    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.style not in get_args(Style):
            raise DataError(f"style of scrubbing: {self.style!r} is none of {', '.join(get_args(Style))}")
        if self.on_error not in ("drop", "stop"):
            raise DataError(f"on_error of scrubbing: {self.on_error!r} is neither drop nor stop")
        if self.processes < 1:
            raise DataError(f"processes of scrubbing: at least 1, got {self.processes}")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise DataError(f"timeout of scrubbing: more than 0 seconds, got {self.timeout}; leave it out for none")


class Scrubbed(NamedTuple):
    """A scrubbed record, or None in the place of one that was dropped for ``error``, the class of what went wrong.

    ``spans``: what was replaced, in the original prompt, completion and options. `scrub` alone makes these: a record
    that comes out of one has been looked at whole.
    """

    record: Record | None
    spans: tuple[tuple[Span, ...], ...]
    error: str | None


@dataclass
class Counts:
    """What scrubbing did so far. ``dropped``: records by error; ``masks``: spans by entity; ``cached``: texts that
    were not looked at again; ``words``: of the records that came out, before, and how many of them a span covers.
    """

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    masks: Counter[str] = field(default_factory=Counter)
    cached: int = 0
    words: int = 0
    masked_words: int = 0

    @property
    def masked_share(self) -> float:
        """Of the words; 0 of none."""
        return self.masked_words / self.words if self.words else 0.0


def scrub(
    records: Iterable[Record],
    settings: Settings,
    *,
    cache: Path | None = None,
    recogniser: "Recogniser | None" = None,
    counts: Counts | None = None,
    keep: MapWriter | None = None,
    total: int | None = None,
    progress: Progress = SILENT,
) -> Generator[Scrubbed, None, None]:
    """Each record scrubbed, in order, as a stream; as many results as records.

    The results do not depend on ``settings.processes``. What was found is kept in the folder ``cache``, so a run that
    was cut off, or one in another style, does not look again. ``recogniser`` takes the place of those that the settings
    name (it must pickle if it has to work in another process). ``counts`` is filled in on the way. Every replacement
    is given to ``keep``, if asked. ``total``: of the records, for the progress. Close the iterator if you stop early.

    Raises:
        DataError: A setting is wrong, a recogniser cannot be built, a process was killed, the cache is damaged, or a
            record could not be scrubbed and the settings say to stop.
        UnavailableError: A recogniser cannot be reached or refuses; what was found so far stays in the cache.
    """
    if recogniser is None and not settings.recognisers:
        raise DataError("scrubbing needs a recogniser; name one, such as clinical")
    pseudonyms = None
    if settings.style == "pseudonym":
        pseudonyms = Pseudonyms(settings.key or secrets.token_bytes(32), day_first=settings.day_first)
    counts = Counts() if counts is None else counts
    style = _Style(settings.style, pseudonyms)
    return _scrub(iter(records), settings, style, cache, recogniser, counts, keep, total or 0, progress)


def _scrub(
    records: Iterator[Record],
    settings: Settings,
    style: "_Style",
    cache: Path | None,
    recogniser: "Recogniser | None",
    counts: Counts,
    keep: MapWriter | None,
    total: int,
    progress: Progress,
) -> Generator[Scrubbed, None, None]:
    with ExitStack() as stack:
        source = _Source(settings.recognisers, settings.entities, settings.language, recogniser)
        finder: _Here | _Pool = _Here(source)
        if settings.processes > 1 or settings.timeout is not None:
            finder = stack.enter_context(_Pool(source, settings.processes, settings.timeout))
        scheme = [*finder.identity, settings.language, *sorted(settings.entities or ["all"])]
        memory = stack.enter_context(SpanCache(cache, scheme)) if cache else None
        task = stack.enter_context(progress.task("scrubbing", total))
        waiting: deque[tuple[list[Record], dict[str, Found]]] = deque()

        def jobs() -> Iterator[list[str]]:
            for batch in _batches(records):
                texts = list(dict.fromkeys(map(_joined, batch)))
                known: dict[str, Found] = {"": []}
                if memory:
                    known |= {text: _remembered(text, spans) for text, spans in memory.get(texts).items()}
                waiting.append((batch, known))
                counts.cached += len(known.keys() & set(texts) - {""})
                yield [text for text in texts if text not in known]

        for looked_at in finder.map(jobs()):
            batch, known = waiting.popleft()
            new = dict(looked_at)
            if memory and (good := {text: found for text, found in new.items() if not isinstance(found, str)}):
                memory.put(good)
            for record in batch:
                result, rows = _result(record, (known | new)[_joined(record)], style)
                _count(counts, record, result)
                if result.error and settings.on_error == "stop":
                    raise DataError(
                        f"record {record.id}: could not be scrubbed ({result.error}). See why the recognisers fail "
                        "at it, or set on_error to drop such records"
                    )
                if keep:
                    for row in rows:
                        keep.add(row)
                yield result
            task.advance(len(batch), note=f"{counts.dropped.total()} dropped, {counts.masks.total()} masks")


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.prompt) + len(record.completion)
        if len(batch) == BATCH or size >= BATCH_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count(counts: Counts, record: Record, result: Scrubbed) -> None:
    counts.records += 1
    if result.error:
        counts.dropped[result.error] += 1
        return
    texts = (record.prompt, record.completion, *record.options)
    for text, spans in dict(zip(texts, result.spans, strict=True)).items():
        counts.masks.update(span.entity for span in spans)
        counts.words += len(text.split())
        counts.masked_words += sum(len(text[span.start : span.end].split()) for span in spans)


# --- One record ---


class _Style(NamedTuple):
    """What to write in the place of a span."""

    name: Style
    pseudonyms: Pseudonyms | None

    def fill(self, owner: str, entity: str, text: str) -> str:
        if self.name == "mask":
            return MASK
        if self.name == "redact":
            return ""
        fake = self.pseudonyms.replace(owner, entity, text) if self.pseudonyms else None
        return f"<{entity}>" if fake is None else fake


def _parts(record: Record) -> list[str]:
    """The texts of a record that say something, each once."""
    return [text for text in dict.fromkeys((record.prompt, record.completion, *record.options)) if text]


def _joined(record: Record) -> str:
    return "\n".join(_parts(record))


def _result(record: Record, found: Found, style: _Style) -> tuple[Scrubbed, list[Row]]:
    """The record with what was found replaced, and the replacements."""
    if isinstance(found, str):
        return Scrubbed(None, (), found), []
    rows: list[Row] = []

    def fill(span: Span, text: str) -> str:
        original = text[span.start : span.end]
        rows.append(Row(record.owner, original, style.fill(record.owner, span.entity, original), span.entity))
        return rows[-1].replacement

    try:
        cut = {"": ((), ""), **{text: (spans, _replaced(text, spans, fill)) for text, spans in _cut(record, found)}}
        new = replace(
            record,
            prompt=cut[record.prompt][1],
            completion=cut[record.completion][1],
            options=tuple(cut[option][1] for option in record.options),
        )
        return Scrubbed(new, tuple(cut[t][0] for t in (record.prompt, record.completion, *record.options)), None), rows
    except Exception as error:  # a pseudonym that cannot be made is an error of its record like any other
        return Scrubbed(None, (), type(error).__name__), []


def _cut(record: Record, spans: Sequence[Span]) -> Iterator[tuple[str, tuple[Span, ...]]]:
    """The spans of the joined text, for each of its parts; one across a border is cut in two."""
    parts = _parts(record)
    starts = accumulate((len(part) + 1 for part in parts), initial=0)
    for start, part in zip(starts, parts, strict=False):
        end = start + len(part)
        inside = (s._replace(start=max(s.start, start) - start, end=min(s.end, end) - start) for s in spans)
        yield part, tuple(span for span in inside if span.start < span.end)


def _replaced(text: str, spans: Sequence[Span], fill: Callable[[Span, str], str]) -> str:
    out, position = "", 0
    for span in spans:
        out += text[position : span.start]
        new = fill(span, text)
        position = span.end
        if new:
            out += new
            continue
        # Nothing is left: nor are two spaces, or one before a full stop or at an end.
        if (not out or out[-1].isspace()) and text[position : position + 1] == " ":
            position += 1
        if CLOSING.match(text, position):
            out = out.rstrip(" ")
    return out + text[position:]


# --- Looking ---


class InvalidSpansError(Exception):
    """A recogniser's answer that does not fit its question."""


class _Source(NamedTuple):
    """Where the recogniser comes from: names cross the border to a process, models do not."""

    names: tuple[str, ...]
    entities: tuple[str, ...] | None
    language: str
    recogniser: "Recogniser | None"

    def build(self) -> "Recogniser":
        if self.recogniser is not None:
            return self.recogniser
        from reticent.data import recognise

        return recognise.build(self.names, entities=self.entities, language=self.language)


def _look(recogniser: "Recogniser", texts: Sequence[str]) -> list[Found]:
    """What is found in each text; if it fails at all of them, one by one.

    Raises:
        UnavailableError: The recogniser works at no text.
    """
    try:
        answers = recogniser.find(texts)
        if len(answers) != len(texts):
            raise InvalidSpansError
        return [_checked(text, spans) for text, spans in zip(texts, answers, strict=True)]
    except UnavailableError:
        raise
    except Exception as error:  # whatever it is: the text must not pass
        failed = type(error).__name__
    return [failed] if len(texts) == 1 else [found for text in texts for found in _look(recogniser, [text])]


def _checked(text: str, spans: Iterable[Span]) -> list[Span]:
    """The spans in order, if they are ones of this text.

    Raises:
        InvalidSpansError: They are empty, overlap, lie outside, or are no spans.
    """
    checked, position = [], 0
    for start, end, entity, score, by in sorted(spans):
        whole = type(start) is int and type(end) is int and position <= start < end <= len(text)
        if not (whole and isinstance(entity, str) and ENTITY.fullmatch(entity) and 0 <= score <= 1):
            raise InvalidSpansError
        checked.append(Span(start, end, entity, float(score), str(by)))
        position = end
    return checked


def _remembered(text: str, spans: list[Span]) -> list[Span]:
    try:
        return _checked(text, spans)
    except Exception:
        raise DataError("the cache of spans holds spans that do not fit their text; delete its folder") from None


class _Here:
    """Looks in this process."""

    def __init__(self, source: _Source) -> None:
        self._recogniser = source.build()
        self.identity = (self._recogniser.name, self._recogniser.version)

    def map(self, jobs: Iterator[list[str]]) -> Iterator[Iterable[tuple[str, Found]]]:
        """Each job's texts with what was found in them."""
        for texts in jobs:
            yield zip(texts, _look(self._recogniser, texts) if texts else [], strict=True)


class _Job:
    """Texts on their way; ``found`` is whole when nothing in it is None."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.found: list[Found | None] = [None] * len(texts)


class _Worker:
    """One process that looks. It works at ``part``, some texts of a job, until ``deadline``; first it builds."""

    def __init__(self, source: _Source) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy locks and threads of this process
        self.connection, other = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(other, source), daemon=True)
        self.process.start()
        other.close()
        self.ready = False
        self.part: tuple[_Job, list[int]] | None = None
        self.deadline = math.inf

    def give(self, job: _Job, places: list[int], timeout: float | None) -> None:
        self.part, self.deadline = (job, places), time.monotonic() + (timeout or math.inf)
        try:
            self.connection.send([job.texts[place] for place in places])
        except OSError:
            raise self.died() from None

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self.died() from None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def died(self) -> DataError:
        self.process.join(5)
        return DataError(
            f"a process that scrubs ended (exit code {self.process.exitcode}; -9 is mostly too little memory), so "
            "nothing goes on. Lower the number of processes, and run again: what is in the cache stays"
        )


class _Pool:
    """Looks in processes, each of which builds the recogniser once and has one part of a job at a time."""

    def __init__(self, source: _Source, processes: int, timeout: float | None) -> None:
        self._source, self._timeout = source, timeout
        self._workers: list[_Worker] = []
        self._parts: deque[tuple[_Job, list[int]]] = deque()
        try:
            for _ in range(processes):
                self._workers.append(_Worker(source))
            identities = {self._started(worker) for worker in self._workers}
        except BaseException:
            self.end()
            raise
        if len(identities) > 1:
            self.end()
            raise DataError("the processes that scrub have different versions of a recogniser; run again")
        (self.identity,) = identities

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """No process is left after this."""
        for worker in self._workers:
            worker.end()

    def map(self, jobs: Iterator[list[str]]) -> Iterator[Iterable[tuple[str, Found]]]:
        """Each job's texts with what was found in them, in order; a few jobs are read ahead."""
        waiting: deque[_Job] = deque()
        while True:
            for texts in islice(jobs, WAITING * len(self._workers) - len(waiting)):
                waiting.append(_Job(texts))
                if texts:
                    self._parts.append((waiting[-1], list(range(len(texts)))))
            if not waiting:
                return
            for worker in self._workers:
                if worker.ready and worker.part is None and self._parts:
                    worker.give(*self._parts.popleft(), self._timeout)
            self._collect(block=None in waiting[0].found)
            if None not in waiting[0].found:
                job = waiting.popleft()
                yield [(text, found) for text, found in zip(job.texts, job.found, strict=True) if found is not None]

    def _collect(self, *, block: bool) -> None:
        """Takes what the workers have; if ``block``, waits for one of them or for the next deadline."""
        busy = {worker.connection: worker for worker in self._workers if worker.part or not worker.ready}
        soonest = min((worker.deadline for worker in busy.values()), default=math.inf)
        patience = (None if soonest == math.inf else max(soonest - time.monotonic(), 0)) if block else 0
        for connection in wait(list(busy), patience):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            if worker.part is None:
                self._started(worker)
                continue
            (job, places), worker.part, worker.deadline = worker.part, None, math.inf
            answer = worker.receive()
            if isinstance(answer, str):
                raise UnavailableError(answer)
            for place, found in zip(places, answer, strict=True):
                job.found[place] = found
        for index, worker in enumerate(self._workers):
            if worker.part and time.monotonic() >= worker.deadline:
                worker.end()
                self._give_up(*worker.part)
                self._workers[index] = _Worker(self._source)

    def _give_up(self, job: _Job, places: list[int]) -> None:
        """A part that took too long: one by one, then not at all."""
        if len(places) == 1:
            job.found[places[0]] = TIMEOUT
        else:
            self._parts.extendleft((job, [place]) for place in reversed(places))

    def _started(self, worker: _Worker) -> tuple[str, str]:
        fault, name, version = worker.receive()
        if fault:
            raise DataError(fault)
        worker.ready = True
        return name, version


def _work(connection: Connection, source: _Source) -> None:
    """What a worker does until its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # the processes are the parallelism
    try:
        try:
            recogniser = source.build()
        except Exception as error:
            fault = str(error) if isinstance(error, DataError) else f"no recogniser: {type(error).__name__} in building"
            connection.send((fault, "", ""))
            return
        connection.send(("", recogniser.name, recogniser.version))
        while True:
            try:
                connection.send(_look(recogniser, connection.recv()))
            except UnavailableError as error:
                connection.send(str(error))
    except BaseException:  # the parent is gone, or something that must not be printed: it could hold a text
        os._exit(1)


def _end_with_parent() -> None:
    """Ends a process also if its recogniser hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
