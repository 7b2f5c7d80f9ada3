"""Ctrl-C and a full disk, anywhere: one message, whole files, and the same command goes on."""

import errno
import os
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def at_sync(monkeypatch):
    """Makes something happen when a file is about to be on disk, the ``time``-th time."""

    def arm(name, action, time=1):
        real, seen = os.fsync, []

        def fsync(handle):
            path = os.readlink(f"/proc/self/fd/{handle}")
            if path.endswith(name):
                seen.append(path)
                if len(seen) == time:
                    action()
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        return seen

    return arm


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A shell starts background jobs, as a CI may be, with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# (the stage, a file that it writes, and which write of it)
PLACES = [
    ("prepare", "data-00000-of-00001.arrow", 1),
    ("prepare", "canaries.json", 1),
    ("prepare", "prepare.json", 1),
    ("train", "ledger.jsonl", 1),
    ("train", "ledger.jsonl", 2),
    ("train", "ledger.jsonl", 4),
    ("train", "adapter_model.safetensors", 1),
    ("train", "adapter_model.safetensors", 2),
    ("audit", "audit.json", 1),
    ("evaluate", "evaluate.json", 1),
    ("report", "report.json", 1),
    ("report", "report.html", 1),
]


@pytest.mark.parametrize(("stage", "name", "time"), PLACES)
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(before, at_sync, monkeypatch, stage, name, time):
    place = before(stage)
    seen = at_sync(name, interrupt, time)
    told = place.call(stage, "runs/my", code=1).stderr
    assert len(seen) == time
    assert "stopped; the same command resumes" in told
    assert not place.leaked(told)
    assert not place.run.finished(stage)
    assert place.half_written() == []
    monkeypatch.undo()
    monkeypatch.chdir(place.folder)
    place.call(stage, "runs/my")
    assert place.run.finished(stage)
    assert stage != "train" or place.releases() == place.steps


@pytest.mark.parametrize(("stage", "name", "time"), PLACES)
def test_a_full_disk_is_told_and_the_same_command_goes_on(before, at_sync, monkeypatch, stage, name, time):
    place = before(stage)
    at_sync(name, full, time)
    place.refused(stage, "runs/my", match="No space left on device")
    assert not place.run.finished(stage)
    monkeypatch.undo()
    monkeypatch.chdir(place.folder)
    place.call(stage, "runs/my")
    assert place.run.finished(stage)
    assert stage != "train" or place.releases() == place.steps


@contextmanager
def no_file_above(size):
    """A write past ``size`` bytes fails as on a full disk, in every library."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("stage", "size", "match"),
    [
        ("prepare", 5_000, "cannot write runs/my: File too large"),
        ("train", 5_000, "cannot write the checkpoint runs/my/models/twin/checkpoint"),
        ("audit", 1_000, "the checks of the training cannot write their ledger"),
        ("report", 20_000, "cannot write runs/my/report.json: File too large"),
    ],
)
def test_a_write_that_fails_half_way_leaves_nothing(before, stage, size, match):
    place = before(stage)
    with no_file_above(size):
        place.refused(stage, "runs/my", match=match)
    assert not place.run.finished(stage)
    place.call(stage, "runs/my")
    assert stage != "train" or place.releases() == place.steps


@pytest.mark.parametrize(
    ("lost", "size", "match"),
    [
        ("private", 0, "cannot write to runs/my: File too large"),
        ("private", 100, "cannot write to runs/my: File too large"),  # In the middle of the plan.
        ("private", 300, "cannot write to runs/my: File too large"),  # In the middle of the first release.
        ("private/model", 20_000, "cannot write runs/my/models/private/model: is the disk full?"),
    ],
)
def test_a_private_model_cut_off_half_way_is_finished_within_its_plan(before, lost, size, match):
    place = before("audit")
    (place.run_folder / "stages" / "train.json").unlink()
    shutil.rmtree(place.run_folder / "models" / lost)
    with no_file_above(size):
        place.refused("train", "runs/my", match=match)
    place.call("train", "runs/my")
    assert place.releases() == place.steps
    assert place.run.facts("train")["guarantee"]["steps"] == place.steps


def test_a_folder_that_cannot_be_written_is_told(place, monkeypatch):
    Path("taken").write_text("a file")
    place.refused("run", "my.yaml", "--run", "taken/my", match="cannot write taken/my: Not a directory")

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", denied)
    place.refused("run", "my.yaml", match="cannot write runs/my: Permission denied; make room or name another folder")


def test_a_place_with_other_files_is_left_alone(place):
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    place.refused("run", "my.yaml", "--run", "mine", match="mine holds other files and no run")
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


def test_one_command_stopped_in_every_stage_still_ends_well(place, at_sync, monkeypatch):
    for name in ("canaries.json", "ledger.jsonl", "audit.json", "evaluate.json", "report.html"):
        at_sync(name, interrupt)
        place.call("run", "my.yaml", code=1)
        monkeypatch.undo()
        monkeypatch.chdir(place.folder)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place.call("run", "my.yaml")
    assert (place.run_folder / "report.html").is_file()
    assert place.releases() == place.steps


def test_again_cut_off_between_removals_keeps_no_model_of_older_data(before, at_sync, monkeypatch):
    place, removed = before("report"), []
    real = os.replace

    def replace(source, target):
        if ".removed-" in str(target):
            removed.append(Path(source).name)
            if removed[-1] == "models":
                interrupt()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    told = place.call("run", "my.yaml", "--again", code=1).stderr
    assert "the same command resumes" in told
    assert place.run.finished("prepare")
    assert not place.run.finished("train")
