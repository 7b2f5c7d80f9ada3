"""Token scores on disk: what comes back, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from reticent.attacks import scores
from reticent.attacks.cache import Cache
from reticent.errors import ModelError, RunError
from reticent.models.language_model import CausalModel
from reticent.tokens import Tokens


def _records(count: int = 7) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens(rng.integers(0, 4, 3 + i % 4), np.arange(3 + i % 4) > 1) for i in range(count)]


@pytest.fixture
def model(table_model):
    return table_model.TableModel(lambda ids: [0.1, 0.2, 0.3, 0.4] if sum(ids) % 2 else [0.7, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("vocabulary", [True, False])
def test_what_was_written_comes_back(tmp_path, model, vocabulary):
    records = _records()
    cache = Cache.write(tmp_path / "scores" / "base", model, records, vocabulary=vocabulary)
    for found, expected in zip(cache, model.log_probs(records, vocabulary=vocabulary), strict=True):
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == other.dtype and one.tolist() == other.tolist()
    assert len(Cache.open(tmp_path / "scores" / "base")) == len(records) and len(cache[2:5]) == 3


def test_scores_in_any_order_find_their_places(tmp_path, tiny):
    records = [tiny.record(list(range(2, 2 + n))) for n in (3, 20, 5, 40, 2)]
    model = CausalModel(tiny.model(), max_tokens=16)
    cache = Cache.write(tmp_path / "scores", model, records)
    for found, expected in zip(cache, model.log_probs(records, vocabulary=True), strict=True):
        np.testing.assert_array_equal(found.logp, expected.logp)
        np.testing.assert_array_equal(found.deviation, expected.deviation)


def test_every_attack_reads_the_cache_as_it_reads_scores(tmp_path, model):
    records = _records()
    cache, listed = Cache.write(tmp_path / "scores", model, records), model.log_probs(records, vocabulary=True)
    found, expected = scores.from_two_models(cache, cache), scores.from_two_models(listed, listed)
    assert found.keys() == expected.keys() and "min_k_plus" in found
    assert all(found[name].tolist() == expected[name].tolist() for name in found)


def test_the_arrays_cannot_be_changed(tmp_path, model):
    cache = Cache.write(tmp_path / "scores", model, _records())
    with pytest.raises(ValueError, match="read-only"):
        cache[0].logp[0] = 0


def test_no_records_make_an_empty_cache(tmp_path, model):
    assert len(Cache.write(tmp_path / "scores", model, [])) == 0


def test_writing_again_replaces(tmp_path, model):
    Cache.write(tmp_path / "scores", model, _records(5))
    assert len(Cache.write(tmp_path / "scores", model, _records(3))) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_a_failure_half_way_leaves_nothing(tmp_path, model):
    class Failing:
        def scores(self, records, progress, *, vocabulary):
            yield from list(model.scores(records, vocabulary=vocabulary))[:2]
            raise ModelError("broken")

    with pytest.raises(ModelError, match="broken"):
        Cache.write(tmp_path / "scores", Failing(), _records())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_what_was_there(tmp_path, model):
    Cache.write(tmp_path / "scores", model, _records(5))

    class Failing:
        def scores(self, records, progress, *, vocabulary):
            raise ModelError("broken")
            yield

    with pytest.raises(ModelError, match="broken"):
        Cache.write(tmp_path / "scores", Failing(), _records())
    assert len(Cache.open(tmp_path / "scores")) == 5


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["offsets", "logp", "hit", "mean", "deviation"])
def test_a_damaged_array_is_refused(tmp_path, model, name, damage):
    Cache.write(tmp_path / "scores", model, _records())
    damage(tmp_path / "scores" / name)
    with pytest.raises(RunError, match="Delete it and score again"):
        Cache.open(tmp_path / "scores")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"records": 6},
        {"arrays": {}},
        {"arrays": None},
        {"arrays": {"offsets": 3, "logp": 3, "hit": 3}},
    ],
)
def test_a_changed_manifest_is_refused(tmp_path, model, change):
    Cache.write(tmp_path / "scores", model, _records())
    path = tmp_path / "scores" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match="Delete it and score again"):
        Cache.open(tmp_path / "scores")


def test_no_cache_is_refused(tmp_path):
    with pytest.raises(RunError, match="No such file"):
        Cache.open(tmp_path / "none")
