"""A checkpoint is there whole, or the one before it is."""

import pytest
import torch

from reticent.errors import RunError
from reticent.training import checkpoint
from reticent.training.checkpoint import State


def _state(step):
    return State(step, {"w": torch.full((3,), float(step))}, {"lr": 0.1}, 1.5, 0.3)


def test_a_checkpoint_reads_back_as_it_was(tmp_path):
    checkpoint.save(tmp_path / "c", _state(3))
    found = checkpoint.load(tmp_path / "c")
    assert found is not None
    assert (found.step, found.seconds, found.optimizer, found.clip_norm) == (3, 1.5, {"lr": 0.1}, 0.3)
    assert torch.equal(found.weights["w"], torch.full((3,), 3.0))


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load(tmp_path / "c") is None


def test_a_new_checkpoint_replaces_the_old_and_leaves_nothing_beside_it(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path / "c", _state(step))
    assert checkpoint.load(tmp_path / "c").step == 2 and [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_half_written(tmp_path, monkeypatch, error):
    checkpoint.save(tmp_path / "c", _state(1))

    def half(state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(RunError, match="cannot write the checkpoint .* Free some space"):
        checkpoint.save(tmp_path / "c", _state(2))
    assert checkpoint.load(tmp_path / "c").step == 1 and [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_crash_between_the_renames_leaves_the_old_one(tmp_path):
    checkpoint.save(tmp_path / "c", _state(1))
    (tmp_path / "c").rename(tmp_path / "c.old")
    assert checkpoint.load(tmp_path / "c").step == 1
    checkpoint.save(tmp_path / "c", _state(2))
    assert checkpoint.load(tmp_path / "c").step == 2


def test_a_crash_after_the_renames_does_not_stop_the_next_save(tmp_path):
    checkpoint.save(tmp_path / "c", _state(1))
    (tmp_path / "c").rename(tmp_path / "c.old")
    checkpoint.save(tmp_path / "d", _state(2))
    (tmp_path / "d").rename(tmp_path / "c")
    checkpoint.save(tmp_path / "c", _state(3))
    assert checkpoint.load(tmp_path / "c").step == 3


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    (tmp_path / "c").mkdir()
    torch.save({"step": Evil()}, tmp_path / "c" / "state.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.load(tmp_path / "c")
