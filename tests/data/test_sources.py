"""Every format gives the same records; every bad input is refused with its place and without its text."""

import json
from pathlib import Path

import pytest

from reticent.data.sources import Fields, read_file, read_hub
from reticent.errors import DataError

ROWS = [{"ask": "q1", "say": "a1", "who": "p1", "key": "k1"}, {"ask": "", "say": "a2", "who": "p2", "key": "k2"}]
ALL = Fields(prompt="ask", completion="say", owner="who", id="key")
SAY = Fields(completion="say")


def _written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _in_format(folder: Path, ending: str) -> Path:
    path = folder / f"notes.{ending}"
    if ending == "jsonl":
        return _written(path, "\n".join(map(json.dumps, ROWS)) + "\n")
    if ending == "json":
        return _written(path, json.dumps(ROWS))
    if ending == "csv":
        return _written(path, "ask,say,who,key\r\nq1,a1,p1,k1\r\n,a2,p2,k2\r\n")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_formats_agree(tmp_path: Path, ending: str) -> None:
    records = read_file(_in_format(tmp_path, ending), ALL)
    assert [(r.id, r.owner, r.prompt, r.completion) for r in records] == [
        ("k1", "p1", "q1", "a1"),
        ("k2", "p2", "", "a2"),
    ]
    assert {r.origin for r in records} == {f"notes.{ending}"}


def test_object_of_lists(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.json", '{"say": ["x", "y"], "who": ["p", "q"]}')
    assert [(r.id, r.owner) for r in read_file(path, Fields(completion="say", owner="who"))] == [
        ("a.json:1", "p"),
        ("a.json:2", "q"),
    ]


def test_text_has_one_record_a_line_named_by_its_line_and_owned_by_itself(tmp_path: Path) -> None:
    records = read_file(_written(tmp_path / "a.txt", "\ufeffone\r\n\r\ntwo\u2028still two\n"), Fields())
    assert [(r.id, r.owner, r.completion) for r in records] == [
        ("a.txt:1", "a.txt:1", "one"),
        ("a.txt:3", "a.txt:3", "two\u2028still two"),
    ]


def test_a_text_field_is_a_completion_without_prompt(tmp_path: Path) -> None:
    (record,) = read_file(_written(tmp_path / "a.jsonl", '{"note": "x"}'), Fields(text="note"))
    assert (record.prompt, record.completion) == ("", "x")


def test_limit(tmp_path: Path) -> None:
    assert len(read_file(_in_format(tmp_path, "jsonl"), ALL, limit=1)) == 1


def test_numbers_become_names(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.jsonl", '{"say": "x", "who": 7}\n{"say": "y", "who": 7.0}\n{"say": "z", "who": " 7"}')
    assert {r.owner for r in read_file(path, Fields(completion="say", owner="who"))} == {"7"}


def test_a_csv_row_may_span_lines(tmp_path: Path) -> None:
    records = read_file(_written(tmp_path / "a.csv", 'say\n"one\nline more"\n\ntwo\n'), SAY)
    assert [(r.id, r.completion) for r in records] == [("a.csv:3", "one\nline more"), ("a.csv:5", "two")]


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("a.xml", "x", SAY, r"ends in '.xml'; convert it to one of .jsonl, .json"),
        ("a.jsonl", '{"say": "x"}\n{"say": "SECRET', SAY, r"a.jsonl:2: malformed line: not JSON"),
        ("a.jsonl", '{"say": "x"}\n\n["SECRET"]', SAY, r"a.jsonl:3: malformed line: not a JSON object"),
        ("a.jsonl", '{"say": ' + "9" * 5000 + "}", SAY, r"a.jsonl:1: malformed line"),
        ("a.json", '[{"say": "x"},\n {"SECRET}]', SAY, r"a.json:2: not JSON"),
        ("a.json", '{"say": "SECRET"}', SAY, r"must hold a list of objects, or one object of lists"),
        ("a.json", '["SECRET"]', SAY, r"a.json: row 1 is not an object"),
        ("a.json", '{"say": ["x", "y"], "who": ["p"]}', SAY, r"field 'who' has 1 and field 'say' has 2"),
        ("a.csv", "say,who\nx,p\nSECRET\n", SAY, r"a.csv:3: malformed line: not as many cells"),
        ("a.csv", "say,who\nx,p,SECRET\n", SAY, r"a.csv:2: malformed line: not as many cells"),
        ("a.csv", 'say\nx\n"SECRET', SAY, r"a.csv:3: malformed line: unexpected end of data"),
        ("a.parquet", "SECRET", SAY, r"not a parquet file"),
        ("a.jsonl", '{"SECRET": "x"}', SAY, r"a.jsonl:1: there is no field 'say'"),
        ("a.jsonl", '{"say": "x"}', Fields(completion="say", owner="who"), r"a.jsonl:1: there is no field 'who'"),
        ("a.jsonl", "", SAY, r"a.jsonl: an empty data set"),
        ("a.json", "[]", SAY, r"a.json: an empty data set"),
        ("a.csv", "say,who\n", SAY, r"a.csv: an empty data set"),
        ("a.txt", " \n", SAY, r"a.txt: an empty data set"),
        ("a.jsonl", '{"say": " "}', SAY, r"a.jsonl:1: a record with no text in field 'say'"),
        ("a.jsonl", '{"say": 3}', SAY, r"a.jsonl:1: field 'say' must be text, got int"),
        ("a.jsonl", '{"say": null}', SAY, r"a.jsonl:1: field 'say' must be text, got NoneType"),
        ("a.jsonl", '{"say": "\\ud800"}', SAY, r"a.jsonl:1: field 'say' is not valid Unicode"),
        ("a.jsonl", '{"say": "x", "who": 1.5}', Fields(completion="say", owner="who"), r"a whole number, got float"),
        ("a.jsonl", '{"say": "x", "who": ""}', Fields(completion="say", owner="who"), r":1: field 'who' is empty"),
        (
            "a.jsonl",
            '{"s":"x","k":1}\n{"s":"y","k":"1"}',
            Fields(text="s", id="k"),
            r":2: .* repeats the id of a.jsonl:1",
        ),
        ("a.jsonl", b'{"say": "x"}\n{"say": "SECRET \xff"}', SAY, r"a.jsonl:2: not UTF-8"),
        ("a.csv", b"say\nx\nSECRET \xe9\n", SAY, r"a.csv:3: not UTF-8"),
        ("a.jsonl", '{"say": "x"}', Fields(), r"either completion \(prompt optional\) or text"),
        ("a.jsonl", '{"say": "x"}', Fields(text="say", completion="say"), r"either completion"),
        ("a.jsonl", '{"say": "x"}', Fields(text="say", prompt="say"), r"prompt goes with completion"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, name: str, content: str | bytes, fields: Fields, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_file(_written(tmp_path / name, content), fields)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None  # a traceback would show the line


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.jsonl: there is no such file"):
        read_file(tmp_path / "gone.jsonl", SAY)


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(ROWS))
    assert [r.id for r in read_hub("some/data", SAY, limit=1)] == ["some/data:1"]


def test_a_hub_out_of_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(name: str, split: str) -> None:
        raise ConnectionError("SECRET")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"'some/data' from the Hugging Face hub \(ConnectionError\).* as path"
    ) as caught:
        read_hub("some/data", SAY)
    assert "SECRET" not in str(caught.value)
