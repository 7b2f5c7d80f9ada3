"""Every format gives the same records; every bad input is refused with its place and without its text."""

import gzip
import io
import json
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reticent.data.record import Record
from reticent.data.rows import Bounds
from reticent.data.sources import Fields, Format, read_file, read_hub
from reticent.errors import DataError

ROWS = [{"ask": "q1", "say": "a1", "who": "p1", "key": "k1"}, {"ask": "", "say": "a2", "who": "p2", "key": "k2"}]
ALL = Fields(prompt="ask", completion="say", owner="who", id="key")
SAY = Fields(completion="say")
SMALL = Bounds(line=100, whole=1000, unpacked=1 << 20)


def _written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _content(ending: str) -> bytes:
    if ending == "jsonl":
        return ("\n".join(map(json.dumps, ROWS)) + "\n").encode()
    if ending == "json":
        return json.dumps(ROWS).encode()
    if ending == "csv":
        return b"ask,say,who,key\r\nq1,a1,p1,k1\r\n,a2,p2,k2\r\n"
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def _in_format(folder: Path, ending: str) -> Path:
    return _written(folder / f"notes.{ending}", _content(ending))


def _zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _read(path: Path, fields: Fields = SAY, **options: Any) -> list[Record]:
    return list(read_file(path, fields, **options))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_formats_agree(tmp_path: Path, ending: str) -> None:
    records = _read(_in_format(tmp_path, ending), ALL)
    assert [(r.id, r.owner, r.prompt, r.completion) for r in records] == [
        ("k1", "p1", "q1", "a1"),
        ("k2", "p2", "", "a2"),
    ]
    assert {r.origin for r in records} == {f"notes.{ending}"}


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_compressed_file_reads_as_it_does_unpacked(tmp_path: Path, ending: str) -> None:
    path = _written(tmp_path / f"notes.{ending}.gz", gzip.compress(_content(ending)))
    assert [r.id for r in _read(path, ALL)] == ["k1", "k2"]


@pytest.mark.parametrize("archive", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_an_archive_reads_as_its_files_do(tmp_path: Path, archive: str, ending: str) -> None:
    pack = _zipped if archive.endswith("zip") else _tarred
    path = pack(tmp_path / archive, {"README.md": b"how it was made", f"data/x.{ending}": _content(ending)})
    assert [r.completion for r in _read(path)] == ["a1", "a2"]
    number = 2 if ending == "csv" else 1
    assert [r.id for r in _read(path, limit=1)] == [f"{archive}/data/x.{ending}:{number}"]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        _written(tmp_path / "notes" / name, json.dumps({"say": name}))
    _written(tmp_path / "notes/LICENSE.txt", "free")
    records = _read(tmp_path / "notes")
    assert [r.completion for r in records] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert records[2].id == "notes/sub/c.jsonl:1"
    assert {r.origin for r in records} == {"notes"}


def test_a_split_of_a_folder_is_its_files_of_that_name(tmp_path: Path) -> None:
    for name in ("train-00000.jsonl", "test.jsonl", "train/more.jsonl", "training.jsonl"):
        _written(tmp_path / name, json.dumps({"say": name}))
    assert [r.completion for r in _read(tmp_path, split="train")] == ["train-00000.jsonl", "train/more.jsonl"]


def test_a_data_set_that_was_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert [r.completion for r in _read(tmp_path / "saved", split="test")] == ["a1"]
    with pytest.raises(DataError, match=r"no split 'dev'; it has 'train', 'test'"):
        _read(tmp_path / "saved", split="dev")


def test_object_of_lists(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.json", '{"say": ["x", "y"], "who": ["p", "q"]}')
    assert [(r.id, r.owner) for r in _read(path, Fields(completion="say", owner="who"))] == [
        ("a.json:1", "p"),
        ("a.json:2", "q"),
    ]


def test_object_of_objects_has_its_names_in_a_field(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.json", '{"7": {"say": "x"}, "8": {"say": "y"}}')
    assert [(r.id, r.completion) for r in _read(path, Fields(completion="say", id="@key"))] == [("7", "x"), ("8", "y")]


@pytest.mark.parametrize("shape", ["list", "objects"])
def test_a_json_file_of_many_chunks_reads_as_it_was_written(
    tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reticent.data.rows.CHUNK", 7)  # every value is cut somewhere, within characters too
    rows = [{"say": f'é\U0001f600\\" {i}', "n": [i, -1.5e-7, None, True]} for i in range(30)]
    data: Any = rows if shape == "list" else {str(i): row for i, row in enumerate(rows)}
    path = _written(tmp_path / "a.json", json.dumps(data, ensure_ascii=False, indent=1))
    assert [r.completion for r in _read(path)] == [row["say"] for row in rows]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, ending: str) -> None:
    line = {
        "jsonl": json.dumps({"say": "x" * 1000}) + "\n",
        "json": "," + json.dumps({"say": "x" * 1000}),
        "csv": "x" * 1000 + "\n",
        "txt": "x" * 1000 + "\n",
    }[ending]
    head, tail = {"json": ('[{"say": "x"}', "]"), "csv": ("say\n", "")}.get(ending, ("", ""))
    path = _written(tmp_path / f"a.{ending}", head + line * 8000 + tail)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_file(path, SAY)) >= 8000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20  # of 8 MiB


def test_reading_is_lazy(tmp_path: Path) -> None:
    records = read_file(_written(tmp_path / "a.jsonl", '{"say": "x"}\n{"say": 3}'), SAY)
    assert isinstance(records, Iterator)
    assert next(records).completion == "x"


def test_text_has_one_record_a_line_named_by_its_line_and_owned_by_itself(tmp_path: Path) -> None:
    records = _read(_written(tmp_path / "a.txt", "\ufeffone\r\n\r\ntwo\u2028still two\n"), Fields())
    assert [(r.id, r.owner, r.completion) for r in records] == [
        ("a.txt:1", "a.txt:1", "one"),
        ("a.txt:3", "a.txt:3", "two\u2028still two"),
    ]


def test_documents_are_one_record_a_file(tmp_path: Path) -> None:
    _written(tmp_path / "d/a.txt", "one\r\n\r\nstill one\n")
    _written(tmp_path / "d/b.txt", "two")
    assert [r.completion for r in _read(tmp_path / "d", Fields(), format="documents")] == ["one\n\nstill one\n", "two"]


def test_a_text_field_is_a_completion_without_prompt(tmp_path: Path) -> None:
    (record,) = _read(_written(tmp_path / "a.jsonl", '{"note": "x"}'), Fields(text="note"))
    assert (record.prompt, record.completion) == ("", "x")


def test_the_silo_is_read(tmp_path: Path) -> None:
    (record,) = _read(_written(tmp_path / "a.jsonl", '{"say": "x", "site": 4}'), Fields(completion="say", silo="site"))
    assert record.silo == "4"


def test_limit(tmp_path: Path) -> None:
    assert len(_read(_in_format(tmp_path, "jsonl"), ALL, limit=1)) == 1


def test_numbers_become_names(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.jsonl", '{"say": "x", "who": 7}\n{"say": "y", "who": 7.0}\n{"say": "z", "who": " 7"}')
    assert {r.owner for r in _read(path, Fields(completion="say", owner="who"))} == {"7"}


def test_a_csv_row_may_span_lines(tmp_path: Path) -> None:
    records = _read(_written(tmp_path / "a.csv", 'say\n"one\nline more"\n\ntwo\n'))
    assert [(r.id, r.completion) for r in records] == [("a.csv:3", "one\nline more"), ("a.csv:5", "two")]


def test_a_csv_cell_may_be_longer_than_the_module_allows(tmp_path: Path) -> None:
    assert len(_read(_written(tmp_path / "a.csv", "say\n" + "x" * 200_000))[0].completion) == 200_000


@pytest.mark.parametrize("formula", ['=HYPERLINK("http://x.example","y")', "+1+1", "-2", "@SUM(A1)", "0012", "1e5"])
def test_formulas_in_a_csv_stay_text(tmp_path: Path, formula: str) -> None:
    quoted = formula.replace('"', '""')
    assert _read(_written(tmp_path / "a.csv", f'say\n"{quoted}"\n'))[0].completion == formula


def test_not_a_number_in_a_field_that_is_not_asked_for_is_no_harm(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.jsonl", '{"say": "x", "score": NaN, "other": -Infinity}')
    assert _read(path)[0].completion == "x"


# Chat and instructions.


def _chat(tmp_path: Path, row: dict[str, Any]) -> tuple[str, str]:
    (record,) = _read(_written(tmp_path / "a.jsonl", json.dumps(row)), Fields(), format="chat")
    return record.prompt, record.completion


USER, ASSISTANT = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}


def test_a_chat_of_one_question_is_that_question(tmp_path: Path) -> None:
    assert _chat(tmp_path, {"messages": [USER, ASSISTANT]}) == ("Hi?", "Ho.")


def test_a_chat_of_several_turns_shows_who_spoke(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, {"role": "user", "content": "Why?"}]
    assert _chat(tmp_path, {"messages": [*turns, {"role": "assistant", "content": "Because."}, USER]}) == (
        "System: Be brief.\n\nUser: Hi?\n\nAssistant: Ho.\n\nUser: Why?",
        "Because.",
    )


def test_conversations_are_a_chat(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]}
    assert _chat(tmp_path, row) == ("Hi?", "Ho.")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Do.", "input": "This.", "output": "Done."}, "Do.\nThis."),
        ({"instruction": "Do.", "input": "", "output": "Done."}, "Do."),
        ({"instruction": "Do.", "output": "Done."}, "Do."),
        ({"instruction": "Do.", "input": None, "output": "Done."}, "Do."),
    ],
)
def test_alpaca(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    (record,) = _read(_written(tmp_path / "a.jsonl", json.dumps(row)), Fields(), format="alpaca")
    assert (record.prompt, record.completion) == (prompt, "Done.")


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        ("chat", {"messages": "SECRET"}, r"a.jsonl:1: field 'messages' must be a list of turns, got str"),
        ("chat", {"messages": ["SECRET"]}, r"field 'messages\[0\]' must be an object, got str"),
        ("chat", {"messages": [USER]}, r"has no turn of the assistant"),
        ("chat", {"messages": []}, r"has no turn of the assistant"),
        ("chat", {"messages": [USER, {"role": "SECRET", "content": "x"}]}, r"the role of 'messages\[1\]' is none of"),
        ("chat", {"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\].content' must be text"),
        ("chat", {"messages": [USER, {"role": "assistant", "content": " "}]}, r"no text in field 'messages\[1\]'"),
        ("chat", {"messages": [{"SECRET": 1}]}, r"needs role and content, or from and value"),
        ("chat", {"text": "SECRET"}, r"there is no field 'messages'"),
        ("alpaca", {"instruction": "SECRET", "input": 3, "output": "x"}, r"field 'input' must be text, got int"),
        ("alpaca", {"instruction": "SECRET", "output": ""}, r"no text in field 'output'"),
    ],
)
def test_a_bad_turn_is_refused(tmp_path: Path, format: Format, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _read(_written(tmp_path / "a.jsonl", json.dumps(row)), Fields(), format=format)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fields", "format", "message"),
    [
        ("a.jsonl", SAY, "chat", r"format chat knows its own fields"),
        ("a.txt", Fields(), "alpaca", r".txt file has no fields to read as alpaca"),
        ("a.jsonl", Fields(), "sharegpt", r"unknown format 'sharegpt'; it is one of fields, chat, alpaca, documents"),
    ],
)
def test_a_format_that_does_not_fit_is_refused_at_once(
    tmp_path: Path, name: str, fields: Fields, format: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_file(_written(tmp_path / name, "x"), fields, format=format)


# Bad input.


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("a.xml", "x", SAY, r"ends in '.xml'; convert it to one of .jsonl, .json"),
        ("a.jsonl", '{"say": "x"}\n{"say": "SECRET', SAY, r"a.jsonl:2: malformed line: not JSON"),
        ("a.jsonl", '{"say": "x"}\n\n["SECRET"]', SAY, r"a.jsonl:3: malformed line: not a JSON object"),
        ("a.jsonl", '{"say": ' + "9" * 5000 + "}", SAY, r"a.jsonl:1: malformed line"),
        ("a.jsonl", '{"say": ' + "[" * 100_000, SAY, r"a.jsonl:1: malformed line: nested too deeply"),
        ("a.json", '[{"say": ' + "[" * 100_000, SAY, r"a.json:1: not JSON: nested too deeply"),
        ("a.json", '[{"say": "x"},\n {"SECRET}]', SAY, r"a.json:2: not JSON"),
        ("a.json", '[{"say": "x"},\n {"say": "SECRET"}', SAY, r"a.json:2: not JSON: it ends too early"),
        ("a.json", '[{"say": "x"}\n {"say": "SECRET"}]', SAY, r"a.json:2: not JSON: expected one of ,\]"),
        ("a.json", '[{"say": "x"}]\nSECRET', SAY, r"a.json:2: not JSON: more than one value"),
        ("a.json", '[{"say": ' + "9" * 5000 + "}]", SAY, r"a.json:1: not JSON: a number out of bounds"),
        ("a.json", '{"say": "SECRET"}', SAY, r"must hold a list of objects, or one object of lists"),
        ("a.json", '{"say": ["x"], "who": {"SECRET": 1}}', SAY, r"must hold a list of objects, or one object of lists"),
        ("a.json", '{"say": {"say": "x"}, "who": ["SECRET"]}', SAY, r"must hold a list of objects"),
        ("a.json", '"SECRET"', SAY, r"must hold a list of objects"),
        ("a.json", '["SECRET"]', SAY, r"a.json: row 1 is not an object"),
        ("a.json", '{"say": ["x", "y"], "who": ["p"]}', SAY, r"field 'who' has 1 and field 'say' has 2"),
        ("a.csv", "say,who\nx,p\nSECRET\n", SAY, r"a.csv:3: malformed line: not as many cells"),
        ("a.csv", "say,who\nx,p,SECRET\n", SAY, r"a.csv:2: malformed line: not as many cells"),
        ("a.csv", 'say\nx\n"SECRET', SAY, r"a.csv:3: malformed line: unexpected end of data"),
        ("a.csv", "SECRET,SECRET\nx,y\n", SAY, r"a.csv:1: the header names a field twice"),
        ("a.parquet", "SECRET", SAY, r"not a parquet file"),
        ("a.jsonl", '{"SECRET": "x"}', SAY, r"a.jsonl:1: there is no field 'say'"),
        ("a.jsonl", '{"say": "x"}', Fields(completion="say", owner="who"), r"a.jsonl:1: there is no field 'who'"),
        ("a.jsonl", '{"say": "x"}', Fields(completion="say", silo="site"), r"a.jsonl:1: there is no field 'site'"),
        ("a.jsonl", "", SAY, r"a.jsonl: an empty data set"),
        ("a.json", "", SAY, r"a.json: an empty data set"),
        ("a.json", "[]", SAY, r"a.json: an empty data set"),
        ("a.json", "{}", SAY, r"a.json: an empty data set"),
        ("a.csv", "", SAY, r"a.csv: an empty data set"),
        ("a.csv", "say,who\n", SAY, r"a.csv: an empty data set"),
        ("a.txt", " \n", SAY, r"a.txt: an empty data set"),
        ("a.jsonl", '{"say": " "}', SAY, r"a.jsonl:1: a record with no text in field 'say'"),
        ("a.jsonl", '{"say": 3}', SAY, r"a.jsonl:1: field 'say' must be text, got int"),
        ("a.jsonl", '{"say": NaN}', SAY, r"a.jsonl:1: field 'say' must be text, got float"),
        ("a.jsonl", '{"say": null}', SAY, r"a.jsonl:1: field 'say' must be text, got NoneType"),
        ("a.jsonl", '{"say": "\\ud800"}', SAY, r"a.jsonl:1: field 'say' is not valid Unicode"),
        ("a.jsonl", '{"say": "x", "who": "\\ud800"}', Fields(text="say", owner="who"), r"'who' is not valid Unicode"),
        ("a.jsonl", '{"say": "x", "who": 1.5}', Fields(completion="say", owner="who"), r"a whole number, got float"),
        ("a.jsonl", '{"say": "x", "who": Infinity}', Fields(completion="say", owner="who"), r"whole number, got float"),
        ("a.jsonl", '{"say": "x", "who": true}', Fields(completion="say", owner="who"), r"whole number, got bool"),
        ("a.jsonl", '{"say": "x", "who": ""}', Fields(completion="say", owner="who"), r":1: field 'who' is empty"),
        ("a.jsonl", '{"say": "x", "who": null}', Fields(completion="say", owner="who"), r":1: field 'who' .* got null"),
        (
            "a.jsonl",
            '{"s":"x","k":1}\n{"s":"y","k":2}\n{"s":"y","k":"1"}\n{"s":"y","k":"2"}',
            Fields(text="s", id="k"),
            r"a.jsonl:3: .*'k' repeats the id of a.jsonl:1",
        ),
        ("a.jsonl", b'{"say": "x"}\n{"say": "SECRET \xff"}', SAY, r"a.jsonl:2: not UTF-8"),
        ("a.json", b'[{"say": "x"},\n{"say": "SECRET \xff"}]', SAY, r"a.json:2: not UTF-8"),
        ("a.csv", b"say\nx\nSECRET \xe9\n", SAY, r"a.csv:3: not UTF-8"),
        ("a.jsonl", '{"say": "SECRET"}'.encode("utf-16"), SAY, r"a.jsonl: UTF-16 text; save the file as UTF-8"),
        ("a.json", '[{"say": "SECRET"}]'.encode("utf-16"), SAY, r"a.json: UTF-16 text; save the file as UTF-8"),
        ("a.csv", "say\nSECRET".encode("utf-16-le"), SAY, r"a.csv:1: NUL bytes, so it is UTF-16"),
        ("a.json", '[{"say": "SECRET"}]'.encode("utf-16-le"), SAY, r"a.json: NUL bytes, so it is UTF-16"),
        ("a.jsonl", '{"say": "' + "SECRET" * 20 + '"}', SAY, r"a.jsonl:1: a line longer than 100 bytes"),
        ("a.txt", "x\n" + "SECRET" * 20, SAY, r"a.txt:2: a line longer than 100 bytes"),
        ("a.csv", 'say\n"' + "SECRET\n" * 20, SAY, r"a row longer than 100 bytes; is a quote left open"),
        ("a.json", '[{"say": "' + "SECRET" * 90_000, SAY, r"a.json:1: not JSON: one object is longer than 100 bytes"),
        ("a.jsonl", '{"say": "x"}', Fields(), r"either completion \(prompt optional\) or text"),
        ("a.jsonl", '{"say": "x"}', Fields(text="say", completion="say"), r"either completion"),
        ("a.jsonl", '{"say": "x"}', Fields(text="say", prompt="say"), r"prompt goes with completion"),
        ("a.jsonl.gz", gzip.compress(b'{"say": "SECRET"}')[:-9], SAY, r"a damaged or cut-off archive"),
        ("a.jsonl.gz", b"SECRET", SAY, r"cannot be read \(BadGzipFile\)"),
        ("a.zip", b"SECRET", SAY, r"a damaged or cut-off archive"),
        ("a.tar", b"SECRET", SAY, r"a damaged or cut-off archive"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, name: str, content: str | bytes, fields: Fields, message: str) -> None:
    bounds = SMALL if "longer" in message else Bounds()
    with pytest.raises(DataError, match=message) as caught:
        _read(_written(tmp_path / name, content), fields, bounds=bounds)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None  # a traceback would show the line


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.csv", "\ufeffsay,who\r\nx,p\r\n")
    assert [(r.completion, r.owner) for r in _read(path, Fields(completion="say", owner="who"))] == [("x", "p")]
    path = _written(tmp_path / "a.json", '\ufeff[{"say": "x"}]\r\n')
    assert [r.completion for r in _read(path)] == ["x"]


def test_an_endless_line_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room, and would take hours
    with pytest.raises(DataError, match="a line longer than 1 MiB"):
        _read(path, bounds=Bounds(line=1 << 20))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.jsonl: there is no such file"):
        read_file(tmp_path / "gone.jsonl", SAY)


@pytest.mark.parametrize(
    ("split", "message"), [(None, r"there is no file in"), ("test", r"no file of the split 'test'")]
)
def test_an_empty_folder_is_refused(tmp_path: Path, split: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(tmp_path, split=split)


def test_a_file_of_another_kind_in_a_folder_is_refused(tmp_path: Path) -> None:
    _written(tmp_path / "letters.doc", "SECRET")
    with pytest.raises(DataError, match=r"letters.doc: cannot read a file that ends in '.doc'"):
        _read(tmp_path)


# Archives that were made to harm.

LINE = b'{"say": "SECRET"}\n'


@pytest.mark.parametrize("pack", [_zipped, _tarred])
@pytest.mark.parametrize("member", ["../a.jsonl", "x/../../a.jsonl", "/etc/a.jsonl", "..\\a.jsonl", "C:/a.jsonl"])
def test_a_member_that_leads_out_is_refused(tmp_path: Path, pack: Any, member: str) -> None:
    path = pack(tmp_path / ("a.zip" if pack is _zipped else "a.tar.gz"), {member: LINE})
    with pytest.raises(DataError, match="leads out of the archive"):
        _read(path)


@pytest.mark.parametrize("pack", [_zipped, _tarred])
def test_an_archive_in_an_archive_is_refused(tmp_path: Path, pack: Any) -> None:
    path = pack(tmp_path / ("a.zip" if pack is _zipped else "a.tar.gz"), {"b.zip": b"PK"})
    with pytest.raises(DataError, match=r"its file 'b.zip' is an archive itself"):
        _read(path)


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive_:
        info = zipfile.ZipInfo("a.jsonl")
        info.external_attr = 0o120777 << 16
        archive_.writestr(info, "/etc/passwd")
    for name in ("a.tar", "a.zip"):
        with pytest.raises(DataError, match=r"'a.jsonl' is a link"):
            _read(tmp_path / name)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = _zipped(tmp_path / "a.zip", {"a.jsonl": LINE})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"'a.jsonl' is encrypted"):
        _read(path)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("bounds", "message"),
    [(Bounds(), r"more than 200 times its size"), (SMALL, r"unpacks to more than 1 MiB")],
)
def test_a_bomb_is_refused(
    tmp_path: Path, name: str, bounds: Bounds, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reticent.data.rows.FAIR", 1 << 20)
    content = LINE * ((3 << 20) // len(LINE))
    path = tmp_path / name
    if name == "a.zip":
        _zipped(path, {"a.jsonl": content})
    elif name == "a.tar.gz":
        _tarred(path, {"a.jsonl": content})
    else:
        _written(path, gzip.compress(content))
    with pytest.raises(DataError, match=message):
        for _ in read_file(path, SAY, bounds=bounds):
            pass


def test_what_must_be_read_whole_is_bounded(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.json", json.dumps({"say": ["x" * 100] * 10_000}))
    with pytest.raises(DataError, match="longer than 1000 bytes"):
        _read(path, bounds=SMALL)
    path = _zipped(tmp_path / "a.zip", {"a.parquet": b"\0" * 2000})
    with pytest.raises(DataError, match="larger than 1000 bytes"):
        _read(path, bounds=SMALL)


# The hub.


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str | None, **options: Any) -> Any:
        asked.append((name, config, options["split"], options["streaming"]))
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [r.id for r in read_hub("some/data", SAY, config="c", split="test", limit=1)] == ["some/data:1"]
    assert asked == [("some/data", "c", "test", True)]


def test_a_hub_out_of_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(name: str, config: str | None, **options: Any) -> None:
        raise ConnectionError("SECRET")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"'some/data' from the Hugging Face hub \(ConnectionError\).* as path"
    ) as caught:
        list(read_hub("some/data", SAY))
    assert "SECRET" not in str(caught.value)
