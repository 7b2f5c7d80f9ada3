"""Scrubbing: every style on every kind of span, and no failure of a recogniser that lets a text pass."""

import math
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from reticent.data import recognise, scrub_map
from reticent.data.record import Record
from reticent.data.scrub import Counts, Settings, _look, scrub
from reticent.data.spans import Span, UnavailableError
from reticent.errors import DataError

KEY = bytes(range(32))
NAMES = ("Aster Bexley", "Corlo", "Dimity Efron", "Фаддей", "جهان", "Zoe\u0301")

# Recognisers that a new process can import too.
FAKES = '''
import os, re, time
from reticent.data.spans import Span, UnavailableError

NAMES = re.compile(r"Aster Bexley|Bexley|Corlo|Dimity Efron|Фаддей|جهان|Zoe\\u0301")

class Names:
    """Marks known names; ``calls`` are the texts it saw."""
    name, version = "names", "1"

    def __init__(self, version="1"):
        self.version, self.calls = version, []

    def find(self, texts):
        self.calls += texts
        return [[Span(m.start(), m.end(), "PERSON") for m in NAMES.finditer(text)] for text in texts]

class Moody(Names):
    """Fails in many ways at texts that hold a word."""

    def find(self, texts):
        found = super().find(texts)
        for text, spans in zip(texts, found):
            if "HANG" in text:
                time.sleep(1000)
            if "DIE" in text:
                os._exit(3)
            if "FAIL" in text:
                raise ValueError(text)
        return found

class Gone(Names):
    """Cannot be reached."""

    def find(self, texts):
        raise UnavailableError("gone: cannot be reached")
'''


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recognisers")
    (folder / "fake_recognisers.py").write_text(FAKES)
    sys.path.insert(0, str(folder))  # spawned processes get the same path
    import fake_recognisers

    yield fake_recognisers
    sys.path.remove(str(folder))


class Fixed:
    """Answers what it was made with."""

    name, version = "fixed", "1"

    def __init__(self, *spans):
        self.spans = [Span(*span) for span in spans]

    def find(self, texts):
        return [list(self.spans) for _ in texts]


def note(number: int, text: str, prompt: str = "", owner: str | None = None) -> Record:
    return Record(id=f"r{number}", owner=owner or f"o{number % 5}", prompt=prompt, completion=text, origin="test")


def notes(count: int, words: tuple[str, ...] = ()) -> list[Record]:
    rng = random.Random(0)
    return [
        note(i, f"{rng.choice(NAMES)} came {i}. {rng.choice(words) if words else ''}", f"On {rng.choice(NAMES)}:")
        for i in range(count)
    ]


def completions(records, settings, recogniser, **more):
    return [done.record and done.record.completion for done in scrub(records, settings, recogniser=recogniser, **more)]


def one(text, style, *spans):
    return completions([note(0, text)], Settings(style=style, key=KEY), Fixed(*spans))[0]


# --- Styles ---


@pytest.mark.parametrize(
    ("style", "scrubbed"),
    [("mask", "Seen <MASK>, 2 days."), ("tag", "Seen <PERSON>, 2 days."), ("redact", "Seen, 2 days.")],
)
def test_a_span_is_replaced_as_the_style_says(style, scrubbed):
    assert one("Seen Aster, 2 days.", style, (5, 10, "PERSON")) == scrubbed


def test_a_pseudonym_is_a_name_and_a_kind_without_pseudonyms_is_a_tag():
    text = one("Aster is German", "pseudonym", (0, 5, "PERSON"), (9, 15, "NRP"))
    assert re.fullmatch(r"[A-Z][a-z]+ is <NRP>", text) and "Aster" not in text


def test_a_date_that_cannot_be_read_is_a_tag():
    assert one("since spring", "pseudonym", (6, 12, "DATE")) == "since <DATE>"


@pytest.mark.parametrize("style", ["mask", "tag", "redact", "pseudonym"])
@pytest.mark.parametrize("text", ["Aster", "Zoe\u0301 \U0001f642", "جهان", "ß", "\n", " "])
def test_a_span_over_the_whole_text_leaves_nothing_of_it(style, text):
    assert text not in one(text, style, (0, len(text), "PERSON")) or not text.strip()


@pytest.mark.parametrize(
    ("text", "spans", "left"),
    [
        ("Aster came. Corlo left.", [(0, 5), (12, 17)], "came. left."),
        ("call (Aster) now", [(6, 11)], "call () now"),
        ("by Aster\nand Corlo", [(3, 8), (13, 18)], "by\nand"),
        ("AsterCorlo", [(0, 5), (5, 10)], ""),
        ("a Aster Corlo b", [(2, 7), (8, 13)], "a b"),
        ("wide  gaps stay  Aster", [(17, 22)], "wide  gaps stay"),
    ],
)
def test_redaction_tidies_the_spaces_around_it_and_no_others(text, spans, left):
    assert one(text, "redact", *[(*span, "PERSON") for span in spans]) == left


def test_adjacent_spans_are_replaced_one_by_one():
    assert one("AsterCorlo", "tag", (5, 10, "ID"), (0, 5, "PERSON")) == "<PERSON><ID>"


def test_a_text_without_spans_stays_and_so_does_an_empty_record(fakes):
    records = [note(0, "🙂 e\u0301 \u202bمرحبا\u202c\r\n"), note(1, "")]
    assert [done.record for done in scrub(records, Settings(), recogniser=fakes.Names())] == records


def test_all_but_the_texts_stays(fakes):
    record = replace(note(0, "Corlo"), silo="north")
    (done,) = scrub([record], Settings(style="mask"), recogniser=fakes.Names())
    assert done.record == replace(record, completion="<MASK>")


def test_a_span_across_prompt_and_completion_is_cut_in_two():
    record = note(0, "Bexley came", "Note on Aster")
    (done,) = scrub([record], Settings(), recogniser=Fixed((8, 20, "PERSON")))
    assert (done.record.prompt, done.record.completion) == ("Note on <PERSON>", "<PERSON> came")
    assert done.spans == ((Span(8, 13, "PERSON"),), (Span(0, 6, "PERSON"),))


def test_prompt_and_completion_are_looked_at_as_one_text(fakes):
    names = fakes.Names()
    list(scrub([note(0, "b", "a")], Settings(), recogniser=names))
    assert names.calls == ["a\nb"]


@pytest.mark.parametrize("style", ["mask", "tag", "redact", "pseudonym"])
def test_the_completion_is_still_the_right_option(fakes, style):
    options = ("Corlo, 2 days", "Aster Bexley, 2 days", "nobody")
    record = replace(note(0, options[1], "Who?"), options=options, answer=1)
    (done,) = scrub([record], Settings(style=style), recogniser=fakes.Names())
    assert done.record.completion == done.record.options[1]
    assert not any(name in option for name in ("Corlo", "Aster") for option in done.record.options)
    assert done.record.options[2] == "nobody"
    assert len(done.spans) == 2 + len(options)


# --- Pseudonyms of records ---


def test_names_are_consistent_within_an_owner_and_independent_across_owners(fakes):
    records = [note(i, "Aster Bexley", owner=f"p{i % 30}") for i in range(60)]
    texts = completions(records, Settings(style="pseudonym"), fakes.Names())
    assert texts[:30] == texts[30:]
    assert len(set(texts)) > 25


def test_the_time_between_dates_of_an_owner_is_kept():
    records = [note(0, "2019-05-03", owner="p"), note(1, "2020-02-29", owner="p")]
    early, late = completions(records, Settings(style="pseudonym"), Fixed((0, 10, "DATE")))
    assert date.fromisoformat(late) - date.fromisoformat(early) == date(2020, 2, 29) - date(2019, 5, 3)


def test_two_runs_differ_unless_they_have_one_key(fakes):
    records = [note(i, "Aster Bexley", owner=f"p{i}") for i in range(10)]
    secret, other = Settings(style="pseudonym"), Settings(style="pseudonym", key=KEY)
    assert completions(records, secret, fakes.Names()) != completions(records, secret, fakes.Names())
    assert completions(records, other, fakes.Names()) == completions(records, other, fakes.Names())


def test_the_key_is_not_shown():
    assert repr(KEY) not in repr(Settings(key=KEY)) and "key" not in repr(Settings(key=KEY))


# --- Failures ---


class Bad:
    """Gives one kind of wrong answer, or fails, at random; its answer is right otherwise."""

    name, version = "bad", "1"
    WAYS = (
        "raise",
        "few",
        "many",
        "outside",
        "negative",
        "overlap",
        "empty",
        "float",
        "bool",
        "nan",
        "score",
        "entity",
    )

    def __init__(self, names, seed):
        self.names, self.rng = names, random.Random(seed)

    def find(self, texts):
        found = self.names.find(texts)
        way, spans, size = self.rng.choice((None, *self.WAYS)), found[-1], len(texts[-1])
        wrong = {
            "outside": (0, size + 1, "PERSON"),
            "negative": (-1, 2, "PERSON"),
            "empty": (2, 2, "PERSON"),
            "float": (0.0, 2, "PERSON"),
            "bool": (False, 2, "PERSON"),
            "nan": (size - 1, size, "PERSON", math.nan),
            "score": (size - 1, size, "PERSON", 1.5),
            "entity": (size - 1, size, "Aster Bexley"),
        }
        if way == "raise":
            raise ValueError(texts[-1])
        if way == "few":
            return found[:-1]
        if way == "many":
            return [*found, []]
        if way == "overlap":
            spans += [Span(0, 3, "PERSON"), Span(2, 4, "PERSON")]
        if way in wrong:
            spans.append(Span(*wrong[way]))
        return found


def leaks(look, fakes, seeds) -> int:
    """Names that come out of ``look`` though something failed."""
    passed = 0
    for seed in seeds:
        records = [note(i, f"{name} came") for i, name in enumerate(NAMES)]
        for done in scrub(records, Settings(style="mask"), recogniser=Bad(fakes.Names(), seed)):
            passed += done.record is not None and any(name in done.record.completion for name in NAMES)
    return passed


def test_no_failure_lets_a_name_pass(fakes):
    assert leaks(_look, fakes, range(300)) == 0


@pytest.mark.parametrize("mutant", ["an error is no spans", "answers are not checked"])
def test_a_scrubber_that_fails_open_is_caught(fakes, monkeypatch, mutant):
    def trusting(recogniser, texts):
        try:
            found = recogniser.find(texts)
        except ValueError:
            return [[] for _ in texts] if mutant == "an error is no spans" else ["ValueError" for _ in texts]
        return [*found, *([] for _ in texts)][: len(texts)]

    monkeypatch.setattr("reticent.data.scrub._look", trusting)
    assert leaks(trusting, fakes, range(100)) > 0


@pytest.mark.parametrize("way", Bad.WAYS)
def test_every_wrong_answer_is_an_error(fakes, way):
    class Always(Bad):
        WAYS = (way, way)

    bad = Always(fakes.Names(), 0)
    bad.rng.choice = lambda ways: way
    (done,) = scrub([note(0, "Aster came")], Settings(), recogniser=bad)
    assert done == (None, (), "ValueError" if way == "raise" else "InvalidSpansError")


def test_only_the_record_that_fails_is_dropped_and_counted(fakes):
    counts = Counts()
    records = notes(100)
    records[41] = note(41, "FAIL Corlo")
    results = list(scrub(records, Settings(), recogniser=fakes.Moody(), counts=counts))
    assert [i for i, done in enumerate(results) if done.record is None] == [41]
    assert results[41].error == "ValueError"
    assert (counts.records, counts.dropped) == (100, {"ValueError": 1})


def test_stopping_names_the_record_and_not_its_text(fakes):
    records = [*notes(3), note(3, "FAIL Corlo")]
    with pytest.raises(DataError, match="record r3: .*ValueError") as refused:
        list(scrub(records, Settings(on_error="stop"), recogniser=fakes.Moody()))
    assert "Corlo" not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__context__ is None


def test_a_pseudonym_that_fails_drops_its_record(fakes, monkeypatch):
    def fail(*values):
        raise KeyError("Aster")

    monkeypatch.setattr("reticent.data.pseudonyms.Pseudonyms.replace", fail)
    (done,) = scrub([note(0, "Corlo")], Settings(style="pseudonym"), recogniser=fakes.Names())
    assert done == (None, (), "KeyError")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"style": "blur"}, "'blur' is none of mask, tag"),
        ({"on_error": "warn"}, "'warn' is neither drop nor stop"),
        ({"processes": 0}, "at least 1, got 0"),
        ({"timeout": 0.0}, "more than 0 seconds, got 0"),
        ({"style": "pseudonym", "key": b"x"}, "32 bytes, got 1"),
        ({"recognisers": ()}, "name one"),
    ],
)
def test_wrong_settings_are_refused_before_a_record_is_read(wrong, message):
    with pytest.raises(DataError, match=message):
        scrub(iter(()), Settings(**{"recognisers": ("clinical",)} | wrong))


def test_nothing_reaches_for_the_network_unless_a_remote_recogniser_is_named(monkeypatch):
    assert not any(map(recognise.is_remote, recognise.DEFAULT))
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    (done,) = scrub([note(0, "Dr. Aster Bexley, 3 May 2019")], Settings(recognisers=recognise.DEFAULT, style="mask"))
    assert done.record.completion == "Dr. <MASK>, <MASK>"


# --- A stream ---


def test_counts_say_what_was_masked(fakes):
    counts = Counts()
    record = replace(note(0, "Aster Bexley came", "On Corlo:"), options=("nobody", "Aster Bexley came"), answer=1)
    list(scrub([record], Settings(), recogniser=fakes.Names(), counts=counts))
    assert counts == Counts(records=1, masks={"PERSON": 2}, words=6, masked_words=3)
    assert counts.masked_share == 0.5


def test_few_records_are_read_ahead(fakes):
    read = 0

    def records():
        nonlocal read
        for record in notes(2000):
            read += 1
            yield record

    stream = scrub(records(), Settings(), recogniser=fakes.Names())
    next(stream)
    assert read <= 16
    stream.close()


# --- Processes ---


def alive() -> set[int]:
    import multiprocessing

    return {process.pid for process in multiprocessing.active_children()}


def test_two_processes_give_what_one_gives(fakes):
    records = notes(150, words=("", "FAIL", "2 May"))
    settings = Settings(style="pseudonym", key=KEY)
    counts, again = Counts(), Counts()
    serial = list(scrub(records, settings, recogniser=fakes.Moody(), counts=counts))
    parallel = scrub(records, replace(settings, processes=2), recogniser=fakes.Moody(), counts=again)
    assert list(parallel) == serial and counts == again and counts.dropped["ValueError"] > 10
    assert not alive()


def test_a_recogniser_that_hangs_costs_its_record_alone(fakes):
    records = notes(6)
    records[2] = note(2, "HANG Corlo")
    began = time.monotonic()
    results = list(scrub(records, Settings(timeout=0.3), recogniser=fakes.Moody()))
    assert [done.error for done in results] == [None, None, "Timeout", None, None, None]
    assert time.monotonic() - began < 20 and not alive()


def test_a_process_that_dies_stops_the_run(fakes):
    records = [*notes(3), note(3, "DIE Corlo"), *notes(100)]
    with pytest.raises(DataError, match=r"exit code 3.*Lower the number of processes") as refused:
        list(scrub(records, Settings(processes=2), recogniser=fakes.Moody()))
    assert "Corlo" not in str(refused.value) and not alive()


def test_a_stream_that_is_closed_leaves_no_process(fakes):
    stream = scrub(notes(500), Settings(processes=2), recogniser=fakes.Names())
    next(stream)
    assert len(alive()) == 2
    stream.close()
    assert not alive()


def test_a_recogniser_that_cannot_be_built_in_a_process_says_why():
    with pytest.raises(DataError, match="'nonesuch' is unknown"):
        list(scrub(notes(1), Settings(recognisers=("nonesuch",), timeout=10)))
    assert not alive()


def test_names_of_recognisers_are_built_in_the_processes():
    records = [note(0, "MRN 123456, call 212-867-5309.")]
    settings = Settings(recognisers=("clinical",))
    serial = list(scrub(records, settings))
    assert serial == list(scrub(records, replace(settings, timeout=60)))
    assert "212-867-5309" not in serial[0].record.completion and "123456" not in serial[0].record.completion


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_process_and_goes_on_where_it_was(fakes, tmp_path, how):
    script, cache = tmp_path / "run.py", tmp_path / "cache"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing, signal, sys
            from pathlib import Path
            sys.path.insert(0, sys.argv[1])
            if __name__ == "__main__":
                signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
                from fake_recognisers import Moody
                from reticent.data.record import Record
                from reticent.data.scrub import Settings, scrub
                texts = [f"Corlo {i}" for i in range(64)] + ["HANG"]
                records = [Record(id="r", owner="o", prompt="", completion=text, origin="test") for text in texts]
                stream = scrub(records, Settings(processes=2), recogniser=Moody(), cache=Path(sys.argv[2]))
                for _ in range(64):
                    next(stream)
                print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                list(stream)
        """)
    )
    line = [sys.executable, str(script), str(Path(fakes.__file__).parent), str(cache)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        children = list(map(int, run.stdout.readline().split()))
        run.send_signal(how)
    assert len(children) == 2
    end = time.monotonic() + 10
    while (left := [pid for pid in children if state(pid) != "Z"]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left
    again = fakes.Moody()
    records = [note(i, f"Corlo {i}") for i in range(70)]
    whole = list(scrub(records, Settings(), recogniser=fakes.Moody()))
    assert list(scrub(records, Settings(), recogniser=again, cache=cache)) == whole
    assert len(again.calls) == 6


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


# --- The cache ---


def test_a_second_run_does_not_look_again_whatever_its_style(fakes, tmp_path):
    first, second, counts = fakes.Names(), fakes.Names(), Counts()
    records = notes(100)
    once = list(scrub(records, Settings(), recogniser=first, cache=tmp_path))
    assert once == list(scrub(records, Settings(), recogniser=second, cache=tmp_path, counts=counts))
    list(scrub(records, Settings(style="mask"), recogniser=second, cache=tmp_path))
    assert len(first.calls) == counts.cached == 100 and second.calls == []


@pytest.mark.parametrize("change", [{"entities": ("PERSON",)}, {"language": "de"}])
def test_other_settings_look_again(fakes, tmp_path, change):
    again = fakes.Names()
    list(scrub(notes(3), Settings(), recogniser=fakes.Names(), cache=tmp_path))
    list(scrub(notes(3), Settings(**change), recogniser=again, cache=tmp_path))
    assert len(again.calls) == 3


def test_another_version_of_a_recogniser_looks_again(fakes, tmp_path):
    again = fakes.Names(version="2")
    list(scrub(notes(3), Settings(), recogniser=fakes.Names(), cache=tmp_path))
    list(scrub(notes(3), Settings(), recogniser=again, cache=tmp_path))
    assert len(again.calls) == 3


def test_a_run_that_stopped_in_the_middle_goes_on_and_gives_the_whole(fakes, tmp_path):
    records, settings = notes(200), Settings(style="pseudonym", key=KEY)
    whole = list(scrub(records, settings, recogniser=fakes.Names()))
    stream = scrub(records, settings, recogniser=fakes.Names(), cache=tmp_path)
    for _ in range(90):
        next(stream)
    stream.close()
    again = fakes.Names()
    assert list(scrub(records, settings, recogniser=again, cache=tmp_path)) == whole
    assert len(again.calls) == 200 - 96


def test_what_failed_is_not_remembered(fakes, tmp_path):
    records = [note(0, "FAIL Corlo")]
    for _ in range(2):
        (done,) = scrub(records, Settings(), recogniser=fakes.Moody(), cache=tmp_path)
        assert done.record is None


def test_the_cache_holds_no_text_and_is_private(fakes, tmp_path):
    list(scrub(notes(100), Settings(), recogniser=fakes.Names(), cache=tmp_path))
    for path in tmp_path.rglob("*"):
        content = path.read_bytes()
        assert not any(name.encode() in content for name in (*NAMES, "Bexley", "came"))
        assert path.stat().st_mode & 0o077 == 0


def test_a_damaged_cache_is_refused(fakes, tmp_path):
    list(scrub(notes(100), Settings(), recogniser=fakes.Names(), cache=tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"no database at all" * 400)
    with pytest.raises(DataError, match="If it is damaged delete it"):
        list(scrub(notes(100), Settings(), recogniser=fakes.Names(), cache=tmp_path))


def test_a_changed_row_of_the_cache_is_refused(fakes, tmp_path):
    list(scrub(notes(1), Settings(), recogniser=fakes.Names(), cache=tmp_path))
    with sqlite3.connect(next(tmp_path.iterdir())) as file:
        file.execute("UPDATE spans SET spans = '[]'")
    file.close()
    with pytest.raises(DataError, match="a row was changed"):
        list(scrub(notes(1), Settings(), recogniser=fakes.Names(), cache=tmp_path))


# --- The map ---


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(scrub_map, "SCRYPT", {"n": 2**4, "r": 8, "p": 1})
    monkeypatch.setattr(scrub_map, "BLOCK", 200)


@pytest.mark.parametrize("form", ["passphrase", "key file"])
def test_the_map_tells_what_stands_for_what_and_only_with_its_secret(fakes, tmp_path, form):
    secret = "long words" if form == "passphrase" else tmp_path / "key"
    path, settings = tmp_path / "map", Settings(style="pseudonym", key=KEY)
    with scrub_map.write_map(path, secret) as keep:
        results = list(scrub(notes(50), settings, recogniser=fakes.Names(), keep=keep))
    rows = list(scrub_map.read_map(path, secret))
    stands_for = {(row.owner, row.replacement): row.original for row in rows if row.entity == "PERSON"}
    for record, done in zip(notes(50), results, strict=True):
        (span,) = done.spans[1]
        fake = done.record.completion[: len(done.record.completion) - len(record.completion) + span.end]
        assert stands_for[record.owner, fake] == record.completion[: span.end]
    content = path.read_bytes()
    assert not any(name.encode() in content for name in NAMES)
    assert path.stat().st_mode & 0o077 == 0
    other = "other words" if form == "passphrase" else tmp_path / "other"
    if form == "key file":
        scrub_map.make_key(other)
    with pytest.raises(DataError, match="passphrase or key is wrong"):
        list(scrub_map.read_map(path, other))


def blocks(path: Path) -> tuple[bytes, list[bytes]]:
    content, start, found = path.read_bytes(), len(scrub_map.MAGIC) + scrub_map.SALT, []
    head = content[:start]
    while start < len(content):
        size = 4 + int.from_bytes(content[start : start + 4], "big")
        found.append(content[start : start + size])
        start += size
    return head, found


@pytest.mark.parametrize("change", ["removed", "swapped", "cut off", "last removed", "bit"])
def test_a_map_that_was_changed_is_refused_where_it_was_changed(tmp_path, change):
    path = tmp_path / "map"
    with scrub_map.write_map(path, "words") as keep:
        for i in range(100):
            keep.add(scrub_map.Row("p", f"Aster {i}", f"Corlo {i}", "PERSON"))
    head, parts = blocks(path)
    assert len(parts) > 5
    changed = {
        "removed": [*parts[:3], *parts[4:]],
        "swapped": [*parts[:2], parts[3], parts[2], *parts[4:]],
        "cut off": [*parts[:4], parts[4][:-3]],
        "last removed": parts[:-1],
        "bit": [*parts[:3], parts[3][:-1] + bytes([parts[3][-1] ^ 1]), *parts[4:]],
    }[change]
    path.write_bytes(head + b"".join(changed))
    with pytest.raises(DataError, match="was changed or cut off"):
        list(scrub_map.read_map(path, "words"))


def test_a_run_that_fails_leaves_no_map_and_nothing_in_clear(fakes, tmp_path):
    with pytest.raises(DataError), scrub_map.write_map(tmp_path / "map", "words") as keep:
        records = [*notes(40), note(99, "FAIL Corlo")]
        list(scrub(records, Settings(on_error="stop"), recogniser=fakes.Moody(), keep=keep))
    assert not (tmp_path / "map").exists()
    for path in tmp_path.iterdir():
        assert not any(name.encode() in path.read_bytes() for name in NAMES)


def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    key = tmp_path / "key"
    scrub_map.make_key(key)
    os.chmod(key, 0o640)
    with pytest.raises(DataError, match="chmod 600"), scrub_map.write_map(tmp_path / "map", key):
        pass


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_key_file_of_another_size_is_refused(tmp_path, content):
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(content)
    with pytest.raises(DataError, match="has 32 bytes"), scrub_map.write_map(tmp_path / "map", key):
        pass


def test_what_is_no_map_is_refused(tmp_path):
    path = tmp_path / "map"
    path.write_bytes(b"owner,original\n" * 10)
    with pytest.raises(DataError, match="no scrub map"):
        list(scrub_map.read_map(path, "words"))
    with pytest.raises(DataError, match="cannot be read"):
        list(scrub_map.read_map(tmp_path / "none", "words"))
    with pytest.raises(DataError, match="passphrase .* is empty"), scrub_map.write_map(tmp_path / "other", ""):
        pass


@pytest.mark.parametrize("processes", [1, 2])
def test_a_recogniser_that_cannot_be_reached_stops_the_run_and_drops_nobody(fakes, processes):
    counts = Counts()
    settings = Settings(processes=processes, on_error="drop")
    with pytest.raises(UnavailableError, match="gone: cannot be reached"):
        list(scrub(notes(99), settings, recogniser=fakes.Gone(), counts=counts))
    assert counts.records == 0 and not counts.dropped
