"""A federated recipe on the command line, in one process."""

import json
import math
import signal

import pytest

from reticent import asked
from reticent import recipe as recipes
from reticent.data import canary
from reticent.federation import server, site
from reticent.privacy import accounting, selfcheck
from reticent.privacy import ledger as ledgers
from reticent.privacy.accounting import Spent
from reticent.privacy.ledger import Ledger
from reticent.training import loop

WHOLE_SITES = "{rounds: 2, weights: equal, privacy: {noise_multiplier: 1"
SOURCE = {"path": "notes.jsonl", "prompt": "prompt", "completion": "completion", "owner": "owner"}


def toy(releases, delta, **options):
    """Epsilon is the expected number of releases that a unit is in; the accountant has tests of its own."""
    times = float(sum(times * release.sampling_prob for release, times in releases))
    return Spent(times, times)


def count_releases(patch):
    for module in (accounting, ledgers, site):
        patch.setattr(module, "spent", toy)
    # The doctor would say, rightly, that this accountant is wrong, and the report would take the promise back.
    patch.setattr(selfcheck, "bounds", lambda *_: (0.0, math.inf))


@pytest.fixture(autouse=True)
def _toy_accountant(monkeypatch):
    count_releases(monkeypatch)


def recipe_of(silos=True, sections=None, **federation):
    """The changed sections of a recipe over three silos, two rounds of two steps."""
    canaries = {"pairs": 2, "copies": 2, "candidates": 8, "digits": 2}
    return {
        "data": {
            "source": SOURCE,
            "template": "plain",
            "canaries": canaries,
            "silos": {"clients": 3} if silos else None,
        },
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3},
        "federation": {"rounds": 2, **federation},
        **(sections or {}),
    }


@pytest.fixture
def federated(place):
    """``place`` with such a recipe."""

    def make(**changes):
        place.write_recipe(**recipe_of(**changes))
        return place

    return make


@pytest.fixture(scope="module")
def kept():
    """What `trained` made once."""
    return {}


@pytest.fixture
def trained(kept, place, model, tmp_path_factory):
    """A federated run that is done, and what was said; read only."""
    if not kept:
        own = type(place)(tmp_path_factory.mktemp("federated"), model)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(own.folder)
            count_releases(patch)
            own.write_recipe(**recipe_of())
            kept["run"] = own, own.call("run", "my.yaml")
    return kept["run"]


def rounds(place, name="private"):
    return [json.loads(line) for line in place.run.rounds_log_path(name).read_text().splitlines()]


def sites(place, name="private"):
    return {path.parent.name: path for path in (place.run_folder / "models" / name / "sites").glob("*/ledger.jsonl")}


def test_a_federated_run_leaves_a_report_and_says_what_it_promises(trained):
    place, done = trained
    assert (place.run_folder / "report.html").read_text().startswith("<!doctype html>")
    assert "the worst of 3 sites" in done.output
    assert place.half_written() == []


def test_every_round_of_both_models_is_in_its_log(trained):
    place, _ = trained
    for name in ("twin", "private"):
        assert [(line["round"], line["asked"], line["answered"]) for line in rounds(place, name)] == [
            (1, 3, 3),
            (2, 3, 3),
        ]
    assert all(line["loss"] is None for line in rounds(place))
    assert all(line["loss"] > 0 for line in rounds(place, "twin"))


def test_the_guarantee_is_the_worst_of_the_sites_ledgers(trained):
    place, _ = trained
    found = [Ledger.open(path) for path in sites(place).values()]
    assert {len(ledger) for ledger in found} == {4}
    guarantee = place.run.facts("train")["guarantee"]
    assert len(guarantee["sites"]) == 3
    spent = [ledger.guarantee().epsilon for ledger in found]
    assert min(spent) < guarantee["epsilon"] == max(spent)
    assert not sites(place, "twin")


def test_the_log_of_steps_is_that_of_all_sites(trained):
    place, _ = trained
    assert [line.step for line in loop.read_log(place.run.log_path("private"))] == [1, 2, 3, 4]


def test_no_private_text_leaves_the_data_folder_of_a_federated_run(trained):
    place, done = trained
    data = place.run_folder / "data"
    files = [path for path in place.run_folder.rglob("*") if path.is_file() and data not in path.parents]
    assert {"rounds.jsonl", "federation.json", "ledger.jsonl", "state.pt"} <= {path.name for path in files}
    assert [path.name for path in files if place.leaked(path.read_text(errors="replace"))] == []
    assert not place.leaked(done.output)


def test_check_tells_the_plans_of_sites_and_trains_nothing(federated):
    place = federated()
    told = place.call("check", "my.yaml").output
    assert "3 sites, 3 in each of 2 rounds, fedavg" in told
    assert "2 steps a round of 4 expected owners" in told
    assert not place.run_folder.exists()
    assert not place.leaked(told)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("place_in_round", ["_move", "_save"])
def test_ctrl_c_between_rounds_stops_cleanly_and_the_same_command_goes_on(federated, monkeypatch, place_in_round):
    place = federated(sections={"audit": {"twin": False}})
    place.call("prepare", "my.yaml")
    real, seen = getattr(server.Coordinator, place_in_round), []

    def interrupted(*arguments):
        seen.append(1)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(server.Coordinator, place_in_round, interrupted)
        told = place.call("train", "runs/my", code=1).stderr
    assert "stopped; the same command resumes" in told
    assert not place.leaked(told)
    assert place.half_written() == []
    steps = []
    monkeypatch.setattr(loop, "_apply", lambda *arguments, real=loop._apply: (steps.append(1), real(*arguments)))
    place.call("train", "runs/my")
    assert place.run.finished("train")
    assert steps == []  # both rounds' updates were made before
    assert [line["round"] for line in rounds(place)] == [1, 2]
    assert {len(Ledger.open(path)) for path in sites(place).values()} == {4}


def test_a_promise_to_whole_sites_is_in_the_report(federated):
    place = federated(
        weights="equal",
        privacy={"noise_multiplier": 3, "delta": 1e-2, "few_clients": True},
        sections={"privacy": {"kind": "none"}, "audit": {"twin": False}},
    )
    place.call("prepare", "my.yaml")
    place.call("train", "runs/my")
    guarantee = place.run.facts("train")["guarantee"]
    assert (guarantee["unit"], guarantee["steps"]) == ("client", 2)
    assert place.releases() == 2
    assert all(line["loss"] is None for line in rounds(place))


def test_one_site_alone_is_trained_for_comparison(federated):
    place = federated(only="silo-2", sections={"audit": {"twin": False}})
    place.call("prepare", "my.yaml")
    place.call("train", "runs/my")
    ledger = Ledger.open(place.run.ledger_path("private"))
    assert (len(ledger), ledger.plan.units) == (4, len(asked.units_by_site(place.run)["silo-2"]))
    assert ledger.plan.units < 20


@pytest.mark.parametrize(
    ("command", "override", "match"),
    [
        ("check", "federation={rounds: 2, quorum: 3, per_round: 2}", "quorum must be <= per_round (2), got 3"),
        ("check", "federation={rounds: 2, secure_sum: true, compress: bf16}", "compress must be none, got bf16"),
        ("check", "federation={rounds: 3}", "train.steps must be a multiple of federation.rounds (3), got 4"),
        ("check", f"federation={WHOLE_SITES}, delta: 0.01}}}}", "DP-FedAvg over 3 sites is meaningless, it needs 10"),
        ("run", f"federation={WHOLE_SITES}, delta: 0.01}}}}", "DP-FedAvg over 3 sites is meaningless, it needs 10"),
        (
            "check",
            f"federation={WHOLE_SITES}, few_clients: true, delta: 0.5}}}}",
            "delta must be below 1 / units = 0.333",
        ),
        ("check", "train.batch_size=30", "must be at most the number of units"),
        ("run", "train.batch_size=30", "must be at most the number of units"),
        (
            "run",
            "federation={rounds: 2, secure_sum: true, threshold: 4}",
            "federation.threshold must be more than half",
        ),
        ("run", "federation={rounds: 2, learning_rates: {nobody: 0.1}}", "federation.learning_rates names nobody"),
        ("check", "federation={rounds: 2, learning_rates: {nobody: 0.1}}", "federation.learning_rates names nobody"),
        (
            "check",
            "federation={rounds: 2, secure_sum: true, threshold: 4}",
            "federation.threshold must be more than half",
        ),
        ("run", "federation={rounds: 2, only: nobody}", "federation.only must be one of the sites silo-1, silo-2"),
        ("check", "federation={rounds: 2, only: nobody}", "federation.only must be one of the sites silo-1, silo-2"),
        ("run", "data.silos=null", "say data.silos: {clients: 3}"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_trained(federated, monkeypatch, command, override, match):
    place = federated(sections={"audit": {"twin": False}})
    monkeypatch.setattr(loop, "_apply", lambda *arguments: pytest.fail("a step was made"))
    place.refused(command, "my.yaml", "-s", override, match=match)


def test_a_recipe_with_a_federation_is_read_back_as_it_was(federated):
    place = federated(learning_rates={"silo-1": 0.1}, privacy=None)
    asked = recipes.load(place.folder / "my.yaml")
    (place.folder / "again.yaml").write_text(recipes.dump(asked))
    assert recipes.load(place.folder / "again.yaml") == asked


def test_a_model_of_one_site_is_audited_with_the_secrets_that_lie_there(federated):
    place = federated(only="silo-2")
    for verb in ("prepare", "train", "audit"):
        place.call(verb, "my.yaml")
    run = place.run
    units = {unit for unit, client, _ in run.read_tokens() if client == run.silos().index("silo-2")}
    canaries = [one for one in canary.from_json(run.read_canaries()) if one.role == "secret"]
    here = sum(one.planted and one.id in units for one in canaries)
    assert here < sum(one.planted for one in canaries)
    found = [one for one in run.read_measurements("audit") if one.name == "exposure_bits"]
    assert {one.n for one in found} == ({here} if here else set())


def test_check_shows_the_plan_of_the_one_site(federated):
    place = federated(only="silo-2")
    place.call("prepare", "my.yaml")
    units = len(asked.units_by_site(place.run)["silo-2"])
    assert f"{units} owners to train on" in place.call("check", "my.yaml").stdout
