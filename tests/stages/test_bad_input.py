"""What a user can get wrong: one message, nothing half-written, and the same command works once it is mended."""

import json

import pytest
from torch import nn

from reticent.models import load

LINE = '{"prompt": "a question", "completion": "an answer", "owner": "somebody"}\n'

SETTINGS = {
    "unknown key": (["train.step=1"], "unknown key train.step; did you mean train.steps?"),
    "two promises": (["privacy.epsilon=8"], "exactly one of epsilon and noise_multiplier is needed, got both"),
    "no promise": (
        ["privacy.noise_multiplier=null"],
        "exactly one of epsilon and noise_multiplier is needed, got neither",
    ),
    "delta": (
        ["privacy.delta=0.02"],
        "privacy.delta must be below 1 / units = 0.0182 (55 owners to train on), got 0.02",
    ),
    "batch": (["train.batch_size=56"], "train.batch_size must be at most the number of units, 55"),
    "no file": (["data.source.path=none.jsonl"], "none.jsonl: there is no such file"),
    "no field": (["data.source.completion=answer"], "notes.jsonl:1: there is no field 'answer'"),
    "no chat template": (["data.template=chat"], "no chat template; set data.template: plain"),
    "targets": (["model.adapter.targets=[nonsense]"], "fit no linear layer of LlamaForCausalLM"),
    "no model": (["model.base=nobody/nothing"], "nobody/nothing is neither a local folder nor reachable on the hub"),
    "no model in folder": (["model.base=."], "holds no model that transformers can load"),
    "no data set": (["data.source.path=null", "data.source.hub=nobody/nothing"], "from the Hugging Face hub"),
    "all too long": (
        ["data.max_tokens=8", "data.long_records=drop"],
        "has a token to learn within data.max_tokens = 8",
    ),
}

SOURCES = {
    "malformed line": (LINE + '{"prompt": "bcdfghjkl\n', "notes.jsonl:2: malformed line: not JSON"),
    "not an object": (LINE + '["bcdfghjkl"]\n', "notes.jsonl:2: malformed line: not a JSON object"),
    "missing field": (LINE + '{"prompt": "a", "owner": "b"}\n', "notes.jsonl:2: there is no field 'completion'"),
    "not text": (
        LINE + '{"prompt": "a", "completion": 7, "owner": "b"}\n',
        "notes.jsonl:2: field 'completion' must be text",
    ),
    "empty": ("", "notes.jsonl: an empty data set"),
    "no text": (LINE + '{"prompt": "a", "completion": " ", "owner": "b"}\n', "notes.jsonl:2: a record with no text"),
    "no owner": (LINE + '{"prompt": "a", "completion": "b", "owner": ""}\n', "notes.jsonl:2: field 'owner' is empty"),
    "a single owner": (LINE + LINE.replace("an answer", "another"), "cannot hold out owners"),
    "not UTF-8": (LINE.encode() + b"\xff\xfe\n", "notes.jsonl:2: not UTF-8"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting_is_refused_before_anything_is_trained(place, case):
    settings, match = SETTINGS[case]
    overrides = [part for setting in settings for part in ("-s", setting)]
    place.refused("run", "my.yaml", *overrides, match=match)
    assert not list(place.folder.rglob("adapter_model.safetensors"))


@pytest.mark.parametrize("case", sorted(SETTINGS.keys() - {"no chat template", "all too long"}))  # It encodes no text.
def test_check_refuses_it_too_and_makes_nothing(place, case):
    settings, match = SETTINGS[case]
    place.refused("check", "my.yaml", *[part for setting in settings for part in ("-s", setting)], match=match)
    assert not place.run_folder.exists()


@pytest.mark.parametrize("case", SOURCES)
def test_a_bad_source_is_refused_without_its_text(place, case):
    content, match = SOURCES[case]
    place.write_source(content)
    told = place.refused("run", "my.yaml", match=match)
    assert "bcdfghjkl" not in told
    assert not place.run.finished("prepare")
    assert not (place.run_folder / "data").exists()


def test_an_unreachable_model_says_how_to_use_a_local_folder(place):
    told = place.refused("check", "my.yaml", "-s", "model.base=nobody/nothing", match="model nobody/nothing")
    assert "Set model.base to bundled/smollm2-135m, to a folder with config.json" in told


def test_after_a_mistake_the_mended_recipe_goes_into_the_same_folder(place):
    place.refused("prepare", "my.yaml", "-s", "privacy.delta=0.5", match="privacy.delta")
    place.call("prepare", "my.yaml")
    assert place.run.recipe.privacy.delta == 1e-3


def test_a_run_of_another_recipe_is_left_as_it_is(before):
    place = before("train")
    told = place.refused("run", "my.yaml", "-s", "train.steps=7", match="runs/my is a run of another recipe")
    assert "train.steps: 4 -> 7" in told
    assert place.run.recipe.train.steps == 4
    assert place.run.finished("prepare")


@pytest.mark.parametrize("verb", ["train", "audit", "evaluate", "report"])
def test_a_stage_too_early_names_the_missing_one(place, verb):
    place.refused(verb, "my.yaml", match=f"{verb} needs prepare first: reticent prepare runs/my")


def test_a_layer_without_exact_unit_gradients_stops_before_the_twin_is_trained(before, monkeypatch):
    place, real = before("train"), load.load

    def mixed(base, **options):
        loaded = real(base, **options)
        loaded.model.model.mixer = nn.BatchNorm1d(4)
        return loaded

    monkeypatch.setattr(load, "load", mixed)
    place.refused("train", "runs/my", match="mixer (BatchNorm1d) mixes the records of a batch")
    assert not place.run.finished("train")
    assert not list(place.run_folder.rglob("*.safetensors"))
    assert not list(place.run_folder.rglob("ledger.jsonl"))


def test_damaged_data_say_how_to_redo_them(before):
    place = before("train")
    arrow = place.run_folder / "data" / "tokens" / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:100])
    place.refused(
        "train", "runs/my", match="data/tokens is missing or damaged; redo it with: reticent prepare runs/my --again"
    )


def test_a_damaged_ledger_promises_nothing(before):
    place = before("audit")
    (place.run_folder / "stages" / "train.json").unlink()
    place.run.ledger_path("private").write_text("{}\n")
    place.refused("train", "runs/my", match="ledger.jsonl is not a readable ledger")
    assert not place.run.finished("train")


def test_a_few_candidates_that_all_fell_on_one_side_are_refused_before_training(place):
    settings = ["-s", "data.canaries.candidates=1"]
    place.refused("prepare", "my.yaml", *settings, match="data.canaries.candidates")
    place.call("prepare", "my.yaml", *settings, "-s", "audit.membership=false")


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "my.yaml", "--nonsense"]])
def test_wrong_usage_exits_with_2(place, arguments):
    place.call(*arguments, code=2)


def test_an_owner_may_be_a_number(place):
    rows = [{**record, "owner": number} for number, record in enumerate(place.records)]
    place.write_source("".join(json.dumps(row) + "\n" for row in rows))
    place.call("prepare", "my.yaml")
    counts = place.run.read_manifest()["units"]
    assert counts["train"] - 17 + counts["held_out"] == len(rows)  # 4 secrets and 13 members are planted
