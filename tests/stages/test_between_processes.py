"""Real processes: a coordinator and three sites with TLS and keys on loopback, by the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

SITES = ("east", "north", "south")


class Workplace:
    """A folder with a recipe, a file of each site, and commands in processes of their own."""

    def __init__(self, folder, model):
        self.folder, self.model, self.started = folder, model, []
        rng = np.random.default_rng(2)

        def words(count):
            return " ".join("".join(rng.choice(list("bcdfghjklmnpqrstvwxz"), 9)) for _ in range(count))

        rows = [
            {"prompt": words(2), "completion": words(3), "owner": f"{site}-{i}", "site": site}
            for site in SITES
            for i in range(14)
        ]
        for name in (*SITES, "all"):
            own = [row for row in rows if name in ("all", row["site"])]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))

    def recipe(self, **changes):
        source = {"path": "all.jsonl", "prompt": "prompt", "completion": "completion", "owner": "owner", "silo": "site"}
        values = {
            "data": {"source": source, "template": "plain", "held_out": 0.2, "canaries": None},
            "model": {"base": str(self.model), "dtype": "float32", "adapter": {"kind": "lora", "rank": 4}},
            "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
            "privacy": {"kind": "none"},
            "federation": {"rounds": 2, "deadline": 60},
            "audit": {"twin": False},
            **changes,
        }
        (self.folder / "shared.yaml").write_text(yaml.safe_dump(values))

    def command(self, *arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{arguments[0]}-{len(self.started)}.log").open("w") as log:
            made = subprocess.Popen(
                [sys.executable, "-m", "reticent", *arguments],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append((made, log.name))
        return made

    def done(self, *processes, code=0, seconds=300):
        for process in processes:
            assert process.wait(timeout=seconds) == code, self.told(process)

    def told(self, process):
        with open(next(path for one, path in self.started if one is process)) as log:
            return log.read()

    def cards(self):
        made = [
            self.command(
                "site",
                "init",
                "shared.yaml",
                "--name",
                site,
                "-s",
                f"data.source.path={site}.jsonl",
                "-s",
                "data.seed=0",
            )
            for site in SITES
        ]
        self.done(*made)
        return [f"--card=sites/{site}/federation/{site}.card.json" for site in SITES]

    def invited(self, *more):
        """The coordinator, begun, and where its invitation lies."""
        coordinator = self.command("federate", "shared.yaml", "--port", str(_port()), "--wait", "200", *more)
        invitation = self.folder / "runs" / "shared" / "federation" / "invitation.json"
        _until(invitation.exists, 120)
        return coordinator, str(invitation)

    def site(self, name, invitation):
        return self.command("site", "start", f"sites/{name}", invitation)

    def rounds(self, model):
        path = self.folder / "runs" / "shared" / "models" / model / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def weights(self, *parts):
        return load_file(self.folder.joinpath(*parts, "model", "adapter_model.safetensors"))


@pytest.fixture
def place(tmp_path, model):
    made = Workplace(tmp_path, model)
    yield made
    for process, _ in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _until(true, seconds):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def _equal(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_between_machines_the_arrays_are_those_of_one_process(place):
    place.recipe()
    coordinator, invitation = place.invited(*place.cards())
    sites = [place.site(name, invitation) for name in SITES]
    place.done(coordinator, *sites)
    here = place.command("run", "shared.yaml", "--run", "runs/here", "-s", "data.silos={kind: by-key}")
    place.done(here)
    expected = place.weights("runs", "here", "models", "twin")
    assert _equal(place.weights("runs", "shared", "models", "twin"), expected)
    assert all(_equal(place.weights("sites", name, "models", "twin"), expected) for name in SITES)
    again = place.command("federate", "shared.yaml", "--port", "1")
    place.done(again)
    assert "all rounds are done" in place.told(again)


def test_a_site_that_is_killed_comes_back_and_keeps_its_ledger(place):
    place.recipe(
        privacy={"kind": "dp-sgd", "noise_multiplier": 1.0, "delta": 1e-3},
        train={"steps": 12, "batch_size": 4, "learning_rate": 1e-2},
        federation={"rounds": 6, "deadline": 25, "secure_sum": False},
    )
    coordinator, invitation = place.invited(*place.cards())
    sites = {name: place.site(name, invitation) for name in SITES}
    _until(lambda: place.rounds("private"), 200)
    os.killpg(sites["north"].pid, signal.SIGKILL)
    sites["north"] = place.site("north", invitation)
    place.done(coordinator, *sites.values())
    rounds = place.rounds("private")
    assert [line["round"] for line in rounds] == [1, 2, 3, 4, 5, 6]
    assert all(line["answered"] >= 2 for line in rounds)
    assert rounds[-1]["answered"] == 3
    facts = json.loads((place.folder / "runs" / "shared" / "models" / "private" / "federation.json").read_text())
    for name in SITES:
        path = place.folder / "sites" / name / "models" / "private" / "sites" / name / "ledger.jsonl"
        releases = len(path.read_text().splitlines()) - 1
        told = facts["sites"][name]["guarantee"]
        assert told["steps"] == releases
        assert releases == 12 if name != "north" else releases <= 12
    worst = max(facts["sites"][name]["guarantee"]["epsilon"] for name in SITES)
    assert facts["guarantee"]["epsilon"] == worst
    report = (place.folder / "runs" / "shared" / "report.html").read_text()
    assert all(name in report for name in SITES)
    audit = place.command("audit", "sites/south")
    place.done(audit)
    assert "Checks of the training code that were passed" in place.told(audit)
