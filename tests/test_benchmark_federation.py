"""The benchmark of federation on tiny updates and a tiny model: what each section measures, and what is written."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers.utils import logging

logging.disable_progress_bar()


@pytest.fixture
def federation(benchmark_script: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with updates of 4,096 values and all in this process."""
    script = benchmark_script("federation")
    monkeypatch.setattr(script, "LINEAR", {"q_proj": (4, 4)})
    monkeypatch.setattr(script, "alone", lambda function, *values: function(*values))
    return script


@pytest.fixture(scope="module")
def model(benchmark_script: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    benchmark_script("federation").make_model(folder)
    return str(folder)


def test_updates_are_those_of_a_7b_model(benchmark_script):
    shapes = benchmark_script("federation").shapes()
    assert sum(rows * columns for rows, columns in shapes.values()) == 41_943_040
    assert len(shapes) == 2 * 7 * 32


def test_a_claim_is_the_median_of_ratios_of_pairs(federation):
    found = federation.claim("m", [1.0, 2.0, 30.0], [1.0, 4.0, 10.0], 0.9)
    assert (found.ratio, found.holds, found.sense) == (1.0, False, "at most")
    speed = federation.claim("m", [2.0, 2.0, 2.0], [1.0, 1.2, 4.0], 0.5, least=True)
    assert (speed.ratio, speed.holds, speed.sense) == (0.6, True, "at least")
    assert federation.claim("m", [1.0], [2.0]).holds is None


def test_a_race_leaves_out_the_warm_up(federation):
    calls: list[str] = []
    seconds = federation.race({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert sorted(calls) == ["a"] * 4 + ["b"] * 4


def test_memory_that_was_taken_and_given_back_is_seen(federation):
    start = federation.settled()
    torch.ones(2**24)
    assert 60 * 2**20 < federation.memory("VmHWM") - start < 80 * 2**20


def test_the_mean_of_many_updates_is_as_exact_as_float32_allows(federation):
    assert federation.error_of_mean() < 8 * 2**-24


def test_a_received_update_is_in_the_mean(federation):
    one, mean = federation.update(), federation.WeightedMean()
    federation.receive(federation.messages.pack("update", {}, one), federation.shapes(), mean)
    assert all(torch.allclose(value, one[name]) for name, value in mean.result().items())


def test_the_secure_sum_that_is_timed_is_one(federation):
    begun, values = federation.ready(4), {name: torch.tensor([0.5, -0.25]) for name in ["a"]}
    whole = federation.values_of(values, None, vote=True)
    for name, site in begun.sites.items():
        begun.collector.mask(name, site.mask(whole.copy(), begun.shared[name]))
    survivors = begun.collector.survivors()
    for name, site in begun.sites.items():
        begun.collector.confirm(name, site.confirm(survivors))
    signed = begun.collector.confirmations()
    for name, site in begun.sites.items():
        begun.collector.unmask(name, site.unmask(survivors, signed))
    assert (begun.collector.finish() == 3 * whole).all()


def test_rounds_run_between_turns_of_plain_training(federation, model):
    found = federation.beside(model, 3, 2, {})
    assert {name: len(found.seconds[name]) for name in ("rounds", "plain", "inside steps")} == {
        "rounds": 3,
        "plain": 4,
        "inside steps": 3,
    }
    assert all(a > b for a, b in zip(found.seconds["rounds"], found.seconds["inside steps"], strict=True))
    assert [row.bound for row in found.claims[:3]] == [1.05, 1.05, 1.05]


def test_a_world_makes_all_rounds_at_all_sites(federation, model, tmp_path):
    recipe = federation.recipe_for(model, rounds=2, local_steps=1, batch=2, rank=4)
    rng = federation.np.random.default_rng(0)
    world = federation.World(recipe, {f"s{i}": federation.random_units(rng, 4) for i in range(4)}, tmp_path)
    turns: list[int] = []
    world.train(lambda: turns.append(len(world.seconds)))
    log = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["answered"] for line in log] == [4, 4]
    assert turns == [0, 1, 2]


def test_a_world_does_not_go_on_without_a_site(federation, model, tmp_path):
    recipe = federation.recipe_for(model, rounds=1, local_steps=1, batch=2, rank=4)
    rng = federation.np.random.default_rng(0)
    world = federation.World(recipe, {name: federation.random_units(rng, 4) for name in ("a", "b")}, tmp_path)

    def broken(steps: Any) -> None:
        raise federation.ReticentError("broken")

    world.sites["a"]._make = broken
    with pytest.raises(AssertionError, match="left out"):
        world.train(lambda: None)


def test_a_run_prints_and_writes_what_it_found(federation, model, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(federation, "CLIENTS_QUICK", (2, 4))
    beside = federation.beside
    monkeypatch.setattr(federation, "beside", lambda base, *values: beside(model, *values))
    path = tmp_path / "results" / "federation.json"
    found = federation.main(["--quick", "--json", str(path)])
    saved, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert list(saved["sections"]) == list(found) == list(federation.SECTIONS)
    rows = [row for section in found.values() for row in section.claims]
    assert [row["metric"] for row in saved["rows"]] == [row.metric for row in rows]
    for section in saved["sections"].values():
        assert section["versions"]["torch"] and section["machine"]["threads"] == 1
        assert section["table"] in shown


def test_a_section_measured_again_leaves_the_others(federation, tmp_path: Path):
    path = tmp_path / "federation.json"
    federation.write(path, "secure", {"rows": [{"metric": "b"}], "about": "old"})
    federation.write(path, "aggregation", {"rows": [{"metric": "a"}]})
    federation.write(path, "secure", {"rows": [{"metric": "c"}]})
    saved = json.loads(path.read_text())
    assert saved["rows"] == [{"metric": "a"}, {"metric": "c"}]
    assert list(saved["sections"]) == ["aggregation", "secure"]
