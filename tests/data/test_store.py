"""What is written comes back, and no batch border matters."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from reticent.data import store
from reticent.data.corpus import Corpus
from reticent.data.record import Record
from reticent.tokens import Tokens

RECORDS = [
    Record(id="1", owner="a", prompt="p", completion="é\n", origin="x", options=("é\n", "b"), answer=0, silo="s"),
    Record(id="2", owner="b", prompt="", completion="c", origin="y"),
    Record(id="3", owner="b", prompt="", completion="d", origin="x"),
]
TOKENS = [
    Tokens(np.array([5, 6, 7]), np.array([False, True, True])),
    Tokens(np.array([9, 10]), np.array([False, True])),
    Tokens(np.array([1, 2, 3, 4]), np.array([False, False, False, True])),
]


def _same(one: list[Tokens], other: list[Tokens]) -> bool:
    return [(t.ids.tolist(), t.trained.tolist()) for t in one] == [(t.ids.tolist(), t.trained.tolist()) for t in other]


def test_records_and_tokens_come_back() -> None:
    assert store.to_records(store.to_table(RECORDS)) == RECORDS
    assert _same(store.to_tokens(store.tokens_to_table(TOKENS)), TOKENS)
    assert store.to_tokens(store.tokens_to_table([])) == []


def _written(folder: Path, *batches: list[Record]) -> str:
    folder.mkdir()
    writer = store.Folder(folder, store.record_schema())
    for batch in batches:
        writer.append(store.to_table(batch))
    writer.close()
    assert writer.rows == sum(map(len, batches))
    return writer.sha256


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    _written(tmp_path / "one", RECORDS[:1], RECORDS[1:])
    assert datasets.load_from_disk(tmp_path / "one").to_list() == store.to_table(RECORDS).to_pylist()
    assert [r for table in store.read_tables(tmp_path / "one") for r in store.to_records(table)] == RECORDS


def test_the_digest_follows_from_the_rows_and_from_each_of_them(tmp_path: Path) -> None:
    first = _written(tmp_path / "one", RECORDS)
    assert first == _written(tmp_path / "two", RECORDS)
    changes = [
        [RECORDS[1], RECORDS[0], RECORDS[2]],
        RECORDS[:2],
        [RECORDS[0], RECORDS[1], Record(id="3", owner="b", prompt="d", completion="", origin="x")],
        [RECORDS[0], RECORDS[1], Record(id="3", owner="b", prompt="", completion="d", origin="x", silo="")],
    ]
    assert len({first, *(_written(tmp_path / f"change{i}", change) for i, change in enumerate(changes))}) == 5


def test_batches_are_bounded_in_rows_and_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ROWS", 3)
    monkeypatch.setattr(store, "CHARACTERS", 10)
    assert list(store.batches(range(7))) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(store.batches([1, 9, 4, 20, 1], size=lambda item: item)) == [[1, 9], [4, 20], [1]]
    assert list(store.batches([])) == []


def test_a_corpus_gives_back_records_tokens_and_columns(tmp_path: Path) -> None:
    corpus = Corpus(near_duplicates=0.8, folder=tmp_path)
    assert not list(tmp_path.iterdir())  # no name, so nothing is left behind
    for record, tokens in zip(RECORDS, ([TOKENS[0]], [], TOKENS[1:]), strict=True):
        corpus.add([record])
        corpus.add_tokens(tokens, [len(tokens)])
    assert [r for _, table in corpus.tables() for r in store.to_records(table)] == RECORDS
    found = [(r.tolist(), store.to_tokens(table)) for r, table in corpus.token_tables()]
    assert [i for rows, _ in found for i in rows] == [0, 2, 2]
    assert _same([t for _, tokens in found for t in tokens], TOKENS)
    assert [corpus.origins[code] for code in corpus.origin] == ["x", "y", "x"]
    assert corpus.silos == ["s"] and corpus.silo.tolist() == [0, -1, -1]
    assert corpus.size.tolist() == [4, 1, 1]
    assert (corpus.owner[0] != corpus.owner[1]) and (corpus.owner[1] == corpus.owner[2])
    assert corpus.take(np.array([2, 0, 2]), "id") == ["3", "1", "3"]
