"""The doctor on recipes and runs: what it checks, what it refuses, what it notices on disk."""

import json
import shutil

import pytest

from reticent import recipe as recipes
from reticent.errors import PrivacyError
from reticent.progress import SILENT
from reticent.run import Run
from reticent.stages.doctor import doctor, implementation_checks
from reticent.stages.prepare import prepare
from reticent.stages.train import train

LORA = {"kind": "lora", "rank": 8, "alpha": 16}


def _recipe(place, **changes):
    place.write_recipe(**changes)
    return recipes.load(place.folder / "my.yaml")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """Where a trained run is kept once there is one; read only."""
    return tmp_path_factory.mktemp("trained") / "my"


@pytest.fixture
def run(place, trained_once):
    """A run that is trained and not yet audited."""
    if not trained_once.exists():
        made = Run.create(place.run_folder, recipes.load(place.folder / "my.yaml"))
        prepare(made, SILENT)
        train(made, SILENT)
        place.run_folder.rename(trained_once)
    shutil.copytree(trained_once, place.run_folder)
    return place.run


def _failed(checks):
    return [check for check in checks if not check.passed]


@pytest.mark.parametrize(
    "privacy",
    [
        {"kind": "dp-sgd", "noise_multiplier": 4, "delta": 1e-3},
        {"kind": "dp-sgd", "epsilon": 1, "delta": 1e-3, "clip_style": "per-layer"},
        {
            "kind": "dp-sgd",
            "noise_multiplier": 4,
            "delta": 1e-3,
            "clip_quantile": {"target": 0.5, "rate": 0.2, "noise": 6},
        },
        {"kind": "dp-mf", "noise_multiplier": 4, "delta": 1e-3, "bands": 2},
    ],
    ids=["noise", "epsilon", "quantile", "dp-mf"],
)
def test_a_recipe_passes_without_a_run(place, privacy):
    checks = doctor(_recipe(place, privacy=privacy), SILENT)
    assert _failed(checks) == [] and len(checks) > 20
    assert not place.run_folder.exists()


def test_a_recipe_that_trains_every_weight_in_bfloat16_passes(place):
    model = {"base": str(place.model), "adapter": {"kind": "full"}, "dtype": "bfloat16"}
    assert _failed(doctor(_recipe(place, model=model), SILENT)) == []


def test_an_adapter_on_bfloat16_passes(place):
    model = {"base": str(place.model), "adapter": LORA, "dtype": "bfloat16"}
    assert _failed(doctor(_recipe(place, model=model), SILENT)) == []


def test_the_promise_asked_for_is_checked_where_there_is_one(place):
    private = {"kind": "dp-sgd", "delta": 1e-3}
    names = [
        {check.name for check in doctor(_recipe(place, privacy={**private, **asked}), SILENT)}
        for asked in ({"epsilon": 1}, {"noise_multiplier": 4})
    ]
    assert names[0] - names[1] == {"accounting: promise kept"}


def test_without_a_promise_there_is_nothing_to_check(place):
    with pytest.raises(PrivacyError, match="nothing is promised"):
        doctor(_recipe(place, privacy={"kind": "none"}), SILENT)


def test_a_finished_run_passes_and_says_more(run):
    checks = implementation_checks(run, SILENT)
    assert _failed(checks) == []
    assert {"run: ledger", "run: releases", "run: epsilon shown", "run: every trained tensor moved"} <= {
        check.name for check in checks
    }


def _spoiled(run, monkeypatch, spoil):
    """The checks of the run's files alone, after ``spoil(run)``."""
    monkeypatch.setattr("reticent.stages.doctor.selfcheck", lambda *args: [])
    spoil(run)
    return {check.name for check in _failed(implementation_checks(run, SILENT))}


def test_a_ledger_without_its_last_line_is_noticed(run, monkeypatch):
    def spoil(run):
        path = run.ledger_path("private")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))

    assert _spoiled(run, monkeypatch, spoil) == {"run: releases"}


def test_a_ledger_of_another_plan_is_noticed(run, monkeypatch):
    def spoil(run):
        path = run.ledger_path("private")
        first, *rest = path.read_text().splitlines()
        values = json.loads(first)
        values["plan"]["delta"] = 1e-2
        path.write_text("\n".join([json.dumps(values), *rest]) + "\n")

    assert "run: ledger" in _spoiled(run, monkeypatch, spoil)


def test_a_ledger_that_is_gone_is_noticed(run, monkeypatch):
    assert "run: ledger" in _spoiled(run, monkeypatch, lambda run: run.ledger_path("private").unlink())


def test_an_adapter_that_never_moved_is_noticed(run, monkeypatch):
    from safetensors.torch import load_file, save_file

    def spoil(run):
        path = run.model_folder("private") / "adapter_model.safetensors"
        save_file({name: value * ("lora_A" in name) for name, value in load_file(path).items()}, path)

    assert _spoiled(run, monkeypatch, spoil) == {"run: every trained tensor moved"}


def test_no_check_says_a_word_of_the_records(place, run):
    told = " ".join(f"{check.name} {check.detail}" for check in implementation_checks(run, SILENT))
    assert not place.leaked(told)


def test_a_federation_is_checked_site_by_site(place):
    data = {
        "source": {"path": "notes.jsonl", "prompt": "prompt", "completion": "completion", "owner": "owner"},
        "template": "plain",
        "silos": {"clients": 2},
    }
    recipe = _recipe(
        place, data=data, train={"steps": 4, "batch_size": 4, "learning_rate": 1e-3}, federation={"rounds": 2}
    )
    assert _failed(doctor(recipe, SILENT)) == []
