"""The benchmark of preparing: what it writes and how it judges."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def data(benchmark_script: Any) -> ModuleType:
    return benchmark_script("data")


@pytest.mark.filterwarnings("ignore:.* is deprecated. Use files:DeprecationWarning")  # simple_icd_10_cm, on 3.11
def test_one_record_in_fifty_is_nearly_a_copy_of_the_one_before(data: ModuleType, tmp_path: Path) -> None:
    data.write_records(tmp_path / "records.jsonl", 200)
    texts = [json.loads(line)["text"] for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [i for i in range(1, 200) if texts[i] == f"{texts[i - 1]} again"] == [49, 99, 149, 199]
    assert len(set(texts)) == 200 and min(len(text.split()) for text in texts) >= 138


def test_ratios_are_of_pairs_and_held_to_the_bound(data: ModuleType) -> None:
    found = data.row("m", [2.0, 30.0, 4.0], [1.0, 10.0, 4.0], 2.5)
    assert (found["ours"], found["other"], found["ratio"], found["holds"]) == (4.0, 4.0, 2.0, True)
    assert not data.row("m", [3.0], [1.0], 2.5)["holds"]
