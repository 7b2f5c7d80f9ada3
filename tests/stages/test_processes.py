"""`torchrun ... reticent train`: one run folder, one ledger; an error or Ctrl-C ends all processes, and it resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reticent.models.adapter import load_trained

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
SECONDS = 120


@pytest.fixture
def torchrun(place):
    """Starts the command line in two processes."""

    def start(*arguments, **environment):
        return subprocess.Popen(
            [*TORCHRUN, *arguments],
            cwd=place.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return start


def wait_for_releases(place, count):
    ledger, start = place.run.ledger_path("private"), time.monotonic()
    while not ledger.exists() or place.releases() < count:
        assert time.monotonic() < start + SECONDS
        time.sleep(0.05)


def test_an_error_and_ctrl_c_end_both_processes_and_the_same_command_resumes(place, torchrun):
    steps = 40
    place.call("prepare", "my.yaml", "-s", f"train.steps={steps}", "-s", "audit.twin=false", "-s", "train.shard=true")

    failing = torchrun(str(Path(__file__).parent / "failing.py"), "train", "runs/my", FAILING="1")
    _, told = failing.communicate(timeout=SECONDS)
    assert failing.returncode != 0
    assert "process 1: error: this process cannot go on" in told
    assert "unexpected error" not in told
    assert not place.leaked(told)
    assert 2 <= place.releases() <= 3

    stopped = torchrun("-m", "reticent", "train", "runs/my")
    wait_for_releases(place, 6)
    stopped.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=SECONDS)
    assert told.count("stopped; the same command resumes") == 1
    assert 6 <= place.releases() < steps
    assert not place.run.finished("train")

    done = torchrun("-m", "reticent", "train", "runs/my")
    shown, _ = done.communicate(timeout=SECONDS)
    assert done.returncode == 0
    assert shown.count("epsilon") == 1  # the second process shows nothing
    assert place.releases() == steps
    assert place.half_written() == []
    load_trained(str(place.model), place.run.model_folder("private"))


@pytest.mark.slow
def test_an_error_in_the_first_process_ends_the_second(before, torchrun):
    before("train")
    failing = torchrun(str(Path(__file__).parent / "failing.py"), "train", "runs/my", FAILING="0")
    _, told = failing.communicate(timeout=SECONDS)
    assert failing.returncode != 0
    assert "error: this process cannot go on" in told
    assert "unexpected error" not in told


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_whole_run_in_two_processes(place, torchrun, adapter):
    place.write_recipe(model={"base": str(place.model), "adapter": {"kind": adapter}, "dtype": "float32"})
    for _ in range(2):  # the second time, nothing is left to train
        done = torchrun("-m", "reticent", "run", "my.yaml", "-s", "train.shard=true")
        shown, told = done.communicate(timeout=SECONDS)
        assert done.returncode == 0, told
        assert shown.count("report:") == 1
        assert place.releases() == place.steps
