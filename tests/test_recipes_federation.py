"""The federated recipes and examples of the project: what they ask for, and that they run on something tiny."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from reticent import asked, recipe
from reticent.progress import SILENT
from reticent.recipe import Recipe
from reticent.run import Run
from reticent.stages.prepare import prepare
from reticent.stages.train import train
from reticent.training import loop

ROOT = Path(__file__).parent.parent
COURSE = sorted((ROOT / "recipes" / "course").glob("*.yaml"))
FEDERATED = ("federated", "federated-clipped", "federated-private")


def course(name: str, *overrides: str) -> Recipe:
    return recipe.load(ROOT / "recipes" / "course" / f"{name}.yaml", overrides)


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def without(found: Recipe, *keys: str) -> dict[str, object]:
    return {key: value for key, value in recipe.flatten(found.model_dump()).items() if not key.startswith(keys)}


# The course.


def test_the_five_experiments_of_the_course_are_there():
    assert {path.stem for path in COURSE} == {"centralised-10", "centralised-full", *FEDERATED}


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_a_recipe_opens_with_how_to_run_it(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"# Run it with: reticent run recipes/course/{path.name}" in head


def test_the_centralised_runs_differ_in_the_share_of_the_cards_alone():
    tenth, full = course("centralised-10"), course("centralised-full")
    assert (tenth.data.source.share, full.data.source.share) == (0.1, 1.0)
    assert without(tenth, "data.source") == without(full, "data.source")


@pytest.mark.parametrize("name", FEDERATED)
def test_twenty_clients_of_like_data_of_whom_a_fifth_is_in_a_round(name):
    found = course(name)
    assert (found.data.silos.kind, found.data.silos.clients) == ("iid", 20)
    assert found.federation.per_round / found.data.silos.clients == 0.2


@pytest.mark.parametrize("name", FEDERATED)
def test_the_federated_runs_differ_in_how_updates_are_bounded_alone(name):
    bounds = ("federation.clip_norm", "federation.privacy", "federation.weights")
    assert without(course(name), *bounds) == without(course("federated"), *bounds)


def test_federated_and_centralised_runs_see_as_many_records():
    one, many = course("centralised-full").train, course("federated")
    assert many.train.steps * many.train.batch_size * many.federation.per_round == one.steps * one.batch_size


def test_the_learning_rate_falls_over_the_rounds_and_is_constant_inside():
    found = course("federated")
    assert found.federation.schedule == "rounds"
    settings = asked.settings(found, 0)
    rates = [loop.rate(settings, 10 * number + 1, found.train.steps) for number in range(found.federation.rounds)]
    assert rates[0] == 5e-5
    assert rates == sorted(rates, reverse=True)
    assert 1e-6 < rates[-1] < 2e-6


def test_the_clip_norm_is_the_courses_with_and_without_a_promise():
    assert course("federated-clipped").federation.clip_norm == 0.5
    assert course("federated-clipped").federation.privacy is None
    assert course("federated-private").federation.privacy.clip_norm == 0.5


def test_the_private_run_promises_each_client_what_it_says():
    found = course("federated-private")
    plan = asked.client_plan(found, "private", 20)
    assert plan.protects == "one site with all its data"
    assert plan.sampling_prob == 0.2
    assert plan.epsilon == 8
    assert plan.noise_multiplier > 0.5
    assert not plan.few


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Overrides that make a recipe of the course tiny: cards in the same schema, a random model, two rounds."""
    folder = tmp_path_factory.mktemp("stand-in")
    cards = [
        {"instruction": "Answer.", "input": f"What is q{number * 7919 % 1000:03d}?", "output": f"w{number:03d} x"}
        for number in range(120)
    ]
    (folder / "cards.json").write_text(json.dumps(cards))
    module(ROOT / "tests" / "stages" / "conftest.py").make_model(folder / "model")
    return (
        f"data.source.path={folder / 'cards.json'}",
        "data.canaries={pairs: 2, copies: 2, candidates: 0, digits: 1}",
        f"model.base={folder / 'model'}",
        "model.adapter.rank=2",
        "model.dtype=float32",
        "train.batch_size=2",
        "train.steps=2",
    )


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_a_recipe_of_the_course_trains_to_its_end(path, stand_in, tmp_path):
    settings = list(stand_in)
    if path.stem in FEDERATED:
        settings.append("federation.rounds=2")
    if path.stem == "centralised-10":
        settings[1] = "data.source.share=0.3"  # a tenth of so few could be nothing
    run = Run.create(tmp_path / "run", recipe.load(path, settings))
    prepare(run, SILENT)
    train(run, SILENT)
    assert run.finished("train")


# Silos and hospitals.


def test_the_silos_have_the_learning_rates_of_the_study():
    found = recipe.load(ROOT / "recipes" / "three-silos.yaml")
    names = [source.name for source in found.data.source]
    assert [found.federation.learning_rates[name] for name in names] == [2e-3, 1e-3, 5e-4]
    assert (found.federation.rounds, found.federation.local, found.federation.weights) == (5, "epoch", "units")


def test_the_silos_can_be_joined_as_whole_models():
    path = ROOT / "recipes" / "three-silos.yaml"
    assert recipe.load(path, ["federation.lora=merged", "model.dtype=float32"]).federation.lora == "merged"


def test_hospitals_promise_each_owner_something_and_go_on_without_one_of_three():
    found = recipe.load(ROOT / "recipes" / "three-hospitals.yaml")
    assert (found.privacy.unit, found.privacy.epsilon, found.federation.lora) == ("owner", 8, "freeze-a")
    assert asked.fewest(found, 3) == 2


def test_no_owner_is_at_two_hospitals():
    example = module(ROOT / "examples" / "three-hospitals" / "run.py")
    rows = [{"prompt": "a", "completion": "b", "owner": f"o{number % 7}"} for number in range(40)]
    dealt = example._dealt(rows)
    owners = [{row["owner"] for row in own} for own in dealt]
    assert sum(map(len, dealt)) == len(rows)
    assert all(owners)
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]


def test_models_that_are_compared_see_every_record_as_often():
    found = recipe.load(ROOT / "examples" / "three-silos" / "compare.yaml")
    assert found.federation.local == "steps"  # and the centralised model takes three batches in one
    assert found.train.steps % found.federation.rounds == 0
