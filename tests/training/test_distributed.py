"""Two processes (gloo, CPU) do what one does: the same sum, noise once, one ledger. `processes.py` is what they run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reticent.errors import RunError
from reticent.privacy.ledger import Ledger
from reticent.training import loop
from reticent.training.distributed import ALONE, _told, split

SCRIPT = Path(__file__).parent / "processes.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]


def _imported():
    spec = importlib.util.spec_from_file_location("processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


one = _imported()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the two processes wrote what they saw."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*TORCHRUN, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """The facts of both processes."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def close(tiny, got, want):
    return tiny.distance(got, want) <= 1e-6 * tiny.norm(want)


@pytest.mark.parametrize("kind", one.DRAWS)
@pytest.mark.parametrize("case", one.SUMS)
def test_the_sum_of_two_processes_is_that_of_one(ranks, tiny, case, kind):
    make, _, engine = one.SUMS[case]
    want = engine(make()).unit_sum(one.draw(one.DRAWS[kind]))
    for rank in ranks:
        total, counts = rank["sums"][case][kind]
        assert close(tiny, total, want.gradient)
        assert counts == pytest.approx(tuple(want[1:]), rel=1e-5)


def test_the_counts_are_not_trivial(ranks):
    _, _, dropped, below = ranks[0]["sums"]["lora"]["seven"][1]
    assert (dropped, 0 < below < 7) == (0, True)


def test_every_drawn_unit_is_in_one_share(ranks):
    shares = [rank["share"] for rank in ranks]
    assert sorted(shares[0] + shares[1]) == sorted(unit.id for unit in one.draw(7))


def test_shares_have_like_numbers_of_tokens():
    lengths = np.random.default_rng(0).integers(30, 512, 64).tolist()
    loads = [sum(lengths[i] for i in part) for part in split(lengths, 4)]
    assert max(loads) - min(loads) < 30
    assert split([], 2) == [[], []]
    assert split([5], 2) == [[0], []]


@pytest.mark.parametrize(
    ("text", "kind"), [("Connection closed by peer [127.0.0.1]:4", RunError), ("out of memory", RuntimeError)]
)
def test_a_lost_process_is_told_and_other_errors_are_left(text, kind):
    with pytest.raises(kind), _told():
        raise RuntimeError(text)


def _variance(values):
    return float(values.double().var() / one.STD**2)


@pytest.mark.parametrize("case", one.RUNS)
def test_noise_is_added_once(ranks, case):
    values = ranks[0]["noise"][case]
    assert abs(_variance(values) - 1) < 5 * (2 / len(values)) ** 0.5
    assert torch.equal(values, ranks[1]["noise"][case])


@pytest.mark.parametrize("case", one.RUNS)
def test_the_law_catches_noise_of_every_process(ranks, case):
    values = ranks[0]["mutants"][case]
    assert abs(_variance(values) - 2) < 10 * (2 / len(values)) ** 0.5


@pytest.mark.parametrize("case", one.RUNS)
def test_a_stopped_and_resumed_training_of_two_processes_ends_where_that_of_one_does(ranks, tiny, tmp_path, case):
    make, _ = one.RUNS[case]
    want, _ = one.run(ALONE, tmp_path, make, False, one.nonprivate_plan(**one.PLAN), "twin")
    got, _ = ranks[0][f"twin {case}"]
    assert tiny.distance(got, want) <= 1e-4 * tiny.norm(want)


def test_one_process_goes_on_where_two_that_shared_the_weights_were_stopped(ranks, folder, tiny):
    make, _ = one.RUNS["full, sharded"]
    got, _ = one.run(ALONE, folder, make, False, one.nonprivate_plan(**one.PLAN), "handed over")
    want, _ = ranks[0]["twin full, sharded"]
    assert tiny.distance(got, want) <= 1e-4 * tiny.norm(want)


@pytest.mark.parametrize("case", one.RUNS)
def test_both_processes_hold_the_same_weights_after_private_steps(ranks, case):
    (first, _), (second, _) = (rank[f"private {case}"] for rank in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", one.RUNS)
def test_one_ledger_has_one_release_a_step(folder, case):
    ledger = Ledger.open(folder / f"private {case}" / "ledger.jsonl")
    assert len(ledger) == len(loop.read_log(folder / f"private {case}" / "log.jsonl")) == one.PLAN["steps"]


def test_a_followed_clip_norm_moves_alike_in_both_processes(ranks):
    norms = [[clipping.norm for clipping in rank["followed"][1]] for rank in ranks]
    assert norms[0] == norms[1]
    assert len(set(norms[0])) == one.PLAN["steps"]


def test_no_process_sees_a_sum_before_its_release_is_on_disk(ranks):
    recorded = ranks[0]["order"][0]
    assert len(recorded) == one.PLAN["steps"]
    for rank in ranks:
        assert all(before < after for before, after in zip(recorded, rank["order"][1], strict=True))


def test_no_thread_of_gloo_is_left_that_could_abort_the_process_at_its_end(ranks):
    if ranks[0]["threads while joined"] is None:
        pytest.skip("the names of threads are not told here")
    for rank in ranks:
        assert rank["threads while joined"] > 0
        assert rank["threads at the end"] == 0
