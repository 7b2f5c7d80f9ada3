"""What each of two processes sees; torchrun starts it for test_distributed.py, and it writes rank0.pt and rank1.pt."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import SETTINGS, Helpers

from reticent.gradients.engines import OneByOne, engine_for, trained
from reticent.privacy.clipping import Clipping, Quantile
from reticent.privacy.entropy import SystemWords
from reticent.privacy.ledger import Ledger
from reticent.privacy.noise import add_noise
from reticent.privacy.plan import dpsgd_plan, nonprivate_plan
from reticent.training import loop
from reticent.training.distributed import Team, joined

tiny = Helpers()
CLIP, STD, REPEATS = 40.0, 3.0, 10
DRAWS = {"seven": 7, "one": 1, "none": 0}


def lora(family="llama"):
    return tiny.lora(tiny.model(family))


def full(family):
    return tiny.model(family).requires_grad_(True)


def checkpointed():
    model = full("llama")
    model.activation_checkpointing_enable()
    return model.train()


def packed(model):
    return engine_for(model, clipping=Clipping(CLIP), **READING)


def one_by_one(model):
    return OneByOne(model, clipping=Clipping(CLIP), **READING)


def batch(model):
    return engine_for(model, clipping=None, **READING)


READING = {"loss": "sum", "micro_batch_tokens": 48}
# the model, whether it is sharded, its engine
SUMS = {
    "lora": (lora, False, packed),
    "lora, sharded": (lora, True, packed),
    "full": (lambda: full("llama-tied"), False, packed),
    "full, sharded": (lambda: full("llama-tied"), True, packed),
    "full, sharded, not tied": (lambda: full("qwen3"), True, packed),
    "full, sharded, checkpointed": (checkpointed, True, packed),
    "full, sharded, one by one": (lambda: full("gemma"), True, one_by_one),
    "twin of lora, sharded": (lora, True, batch),
    "twin of full, sharded": (lambda: full("neox"), True, batch),
}
RUNS = {
    "lora": (lora, False),
    "lora, sharded": (lora, True),
    "full, sharded": (lambda: full("llama-tied"), True),
}
PLAN = {"unit": "record", "units": 12, "batch_size": 3, "steps": 5}


def draw(count):
    return tiny.units(count, seed=3, records=2)


def private_plan(**changes):
    return dpsgd_plan(**PLAN, delta=1e-3, clip_norm=CLIP, noise_multiplier=1.0, **changes)


def whole(team, tree):
    """On every process, not only the first."""
    return {name: getattr(value, "full_tensor", lambda v=value: v)().clone() for name, value in tree.items()}


def sums(team, make, shard, engine):
    """For each draw the sum over both processes and the counts."""
    model = make()
    machine = engine(model)
    team.spread(model, shard=shard)
    found = {kind: team.unit_sum(machine, team.share(draw(count))) for kind, count in DRAWS.items()}
    return {kind: (whole(team, team.sum(one.gradient)), tuple(one[1:])) for kind, one in found.items()}


def noise(team, make, shard):
    """All coordinates of sums of nothing but noise."""
    model = make()
    team.spread(model, shard=shard)
    seen = []
    for _ in range(REPEATS):
        nothing = {name: torch.zeros(p.shape) for name, p in trained(model).items()}
        add_noise(team.own(nothing), STD, SystemWords())
        seen += whole(team, team.sum(nothing)).values()
    return torch.cat([value.flatten() for value in seen])


def run(team, folder, make, shard, plan, name, stop=None):
    """A whole training; ``stop``: the step before which all processes are killed."""
    (folder / name).mkdir(exist_ok=True)
    files = loop.Files(*(folder / name / part for part in ("ledger.jsonl", "log.jsonl", "checkpoint")))
    model, steps = make(), iter(range(1, plan.steps + 2))
    before, norms = Team.unit_sum, []

    def unit_sum(team, machine, units):
        if next(steps) == stop:
            raise KeyboardInterrupt
        norms.append(getattr(machine, "clipping", None))
        return before(team, machine, units)

    settings = loop.Settings(**{**SETTINGS, "shard": shard})
    with mock.patch.object(Team, "unit_sum", unit_sum):
        try:
            loop.train(model, draw(plan.units), plan, settings, files if team.first else None, team=team)
        except KeyboardInterrupt:
            return None, norms
    return whole(team, loop.weights(model)), norms


def order(team, folder):
    """When the ledger of each step was on disk (first process), and when its sum was there (both)."""
    recorded, summed = [], []
    record, add = Ledger.record, Team.sum

    def slow_record(ledger, entry):
        time.sleep(0.1)
        record(ledger, entry)
        recorded.append(time.time())

    def timed_sum(team, values):
        total = add(team, values)
        summed.append(time.time())
        return total

    with mock.patch.object(Ledger, "record", slow_record), mock.patch.object(Team, "sum", timed_sum):
        run(team, folder, lora, False, private_plan(), "order")
    return recorded, summed


def gloo_threads(wanted=None):
    """How many threads of this process make gloo's calls, once they are ``wanted``; None if the system does not tell.

    A thread that has ended is still listed for a moment.
    """
    for _ in range(100):
        names = []
        for path in Path("/proc/self/task").glob("*/comm"):
            with suppress(OSError):
                names.append(path.read_text())
        count = sum(name.startswith("pt_gloo") for name in names) if names else None
        if wanted is None or count in (wanted, None):
            break
        time.sleep(0.05)
    return count


def main(folder):
    folder, facts = Path(folder), {}
    # Computing epsilon takes seconds and is not the matter here.
    with joined() as team, mock.patch.object(Ledger, "epsilon", lambda ledger: 0.0):
        facts["share"] = [unit.id for unit in team.share(draw(7))]
        facts["sums"] = {name: sums(team, *case) for name, case in SUMS.items()}
        facts["noise"] = {name: noise(team, make, shard) for name, (make, shard) in RUNS.items()}
        with mock.patch.object(Team, "own", lambda team, values: values):  # a mutant: noise in every process
            facts["mutants"] = {name: noise(team, make, shard) for name, (make, shard) in RUNS.items()}
        for name, case in RUNS.items():
            twin = nonprivate_plan(**PLAN)
            run(team, folder, *case, twin, f"twin {name}", stop=4)
            facts[f"twin {name}"] = run(team, folder, *case, twin, f"twin {name}")
            facts[f"private {name}"] = run(team, folder, *case, private_plan(), f"private {name}")
        run(team, folder, *RUNS["full, sharded"], nonprivate_plan(**PLAN), "handed over", stop=4)
        followed = private_plan(quantile=Quantile(target=0.5, rate=0.5, noise=5.0))
        facts["followed"] = run(team, folder, lora, False, followed, "followed")
        facts["order"] = order(team, folder)
        facts["threads while joined"] = gloo_threads()
    facts["threads at the end"] = gloo_threads(wanted=0)
    torch.save(facts, folder / f"rank{team.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
