"""Files of prompts."""

import gzip
import json
from pathlib import Path

import pytest

from reticent.data.prompts import Prompt, read_prompts
from reticent.errors import DataError


def written(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_line_of_json_says_prompt_count_and_label(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "p.jsonl",
        json.dumps({"prompt": " Zorb note: ", "count": 3, "label": "zorb"}),
        json.dumps({"prompt": "Plain"}),
        "",
        json.dumps({"prompt": "", "count": 2}),
    )
    assert read_prompts(path) == [Prompt(" Zorb note: ", 3, "zorb"), Prompt("Plain"), Prompt("", 2)]


def test_a_line_of_text_is_a_prompt(tmp_path: Path) -> None:
    path = written(tmp_path, "p.txt", "Tell of Zorb. ", "", "  And of Quix\u2028too")
    assert read_prompts(path) == [Prompt("Tell of Zorb."), Prompt("And of Quix\u2028too")]


def test_an_instruction_has_its_repetitions_behind_four_hashes(tmp_path: Path) -> None:
    path = written(tmp_path, "p.txt", "Tell of Zorb. #### 3", "Explain #### in text####12 ")
    assert read_prompts(path) == [Prompt("Tell of Zorb.", 3), Prompt("Explain #### in text", 12)]


def test_a_packed_file_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.txt.gz"
    path.write_bytes(gzip.compress("\ufeffZorb #### 2\r\n".encode()))
    assert read_prompts(path) == [Prompt("Zorb", 2)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Zorb #### 0", "at least 1, got 0"),
        ("Zorb #### -2", "at least 1, got -2"),
        ("Zorb #### 1.5", "whole number, got 1.5"),
        ("Zorb ####", "behind #### must be a whole number;"),
        ("Zorb #### Quix", "behind #### must be a whole number;"),
        ("Zorb", "no #### with a count"),
        ("#### 3", "no instruction"),
        ("Zorb #### \u0663", "whole number;"),
    ],
)
def test_a_broken_count_is_named_with_its_line_and_no_text(tmp_path: Path, line: str, told: str) -> None:
    path = written(tmp_path, "p.txt", "Fine #### 1", line)
    with pytest.raises(DataError, match=told) as raised:
        read_prompts(path)
    assert str(raised.value).startswith("p.txt:2: ")
    assert "Zorb" not in str(raised.value)
    assert "Quix" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "Zorb", "count": 0}', "at least 1, got 0"),
        ('{"prompt": "Zorb", "count": 2.0}', "whole number, got 2.0"),
        ('{"prompt": "Zorb", "count": true}', "whole number, got True"),
        ('{"prompt": "Zorb", "count": "Quix"}', "whole number;"),
        ('{"prompt": "Zorb", "count": null}', "whole number;"),
        ('{"prompt": 3}', "prompt must be text"),
        ('{"prompt": "Zorb \\ud83d"}', "half of a letter"),
        ('{"count": 3}', "prompt must be text"),
        ('{"prompt": "Zorb", "label": 3}', "label must be text"),
        ('{"prompt": "Zorb", "Quix": 3}', "1 fields beside prompt, count, label"),
        ('{"prompt": "Zorb"', "not JSON"),
        ('"Zorb"', "not a JSON object"),
    ],
)
def test_a_broken_line_of_json_is_named_without_its_text(tmp_path: Path, line: str, told: str) -> None:
    path = written(tmp_path, "p.jsonl", '{"prompt": "fine"}', line)
    with pytest.raises(DataError, match=told) as raised:
        read_prompts(path)
    assert str(raised.value).startswith("p.jsonl:2: ")
    assert "Zorb" not in str(raised.value)
    assert "Quix" not in str(raised.value)


def test_json_under_the_name_of_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="p.txt:1: looks like JSON"):
        read_prompts(written(tmp_path, "p.txt", '{"prompt": "Zorb"}'))


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(written(tmp_path, name, "", "  "))


def test_what_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"fine\n\xff\xfe\xfa\n")
    with pytest.raises(DataError, match="p.txt:2: not UTF-8"):
        read_prompts(path)


def test_a_missing_file_a_folder_and_another_ending_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name, told in (("none.txt", "no such file"), ("folder.txt", "no such file"), ("p.csv", "read from .jsonl")):
        if name == "p.csv":
            written(tmp_path, name, "prompt")
        with pytest.raises(DataError, match=told):
            read_prompts(tmp_path / name)
