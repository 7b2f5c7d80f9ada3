"""The whole path on a tiny model, through the command line."""

import json
import re

import pytest

from reticent.measurement import Measurement
from reticent.privacy.ledger import Ledger


def test_a_run_leaves_a_report_and_says_what_it_promises(finished):
    place, done = finished
    assert all(place.run.finished(stage) for stage in place.run.stages)
    assert (place.run_folder / "report.html").read_text().startswith("<!doctype html>")
    assert "epsilon 0.153 at delta 0.001, per owner, add-or-remove-one" in done.stdout
    assert "report: runs/my/report.html" in done.stdout
    assert place.half_written() == []


def test_the_reported_guarantee_is_the_ledgers(finished):
    place, _ = finished
    guarantee = json.loads((place.run_folder / "report.json").read_text())["guarantee"]
    ledger = Ledger.open(place.run.ledger_path("private"))
    assert len(ledger) == place.releases() == place.steps
    told = ledger.guarantee().to_dict()
    assert {key: guarantee[key] for key in ("epsilon", "delta", "unit", "relation")} == {
        key: told[key] for key in ("epsilon", "delta", "unit", "relation")
    }


def test_what_is_spent_stays_within_the_promise(place):
    place.call("prepare", "my.yaml", "-s", "privacy.noise_multiplier=null", "-s", "privacy.epsilon=0.3")
    place.call("train", "runs/my")
    guarantee = place.run.facts("train")["guarantee"]
    assert 0.29 < guarantee["epsilon"] <= 0.3
    assert guarantee["unit"] == "owner"


def test_every_model_is_measured(finished):
    place, _ = finished
    found = [
        Measurement.from_dict(one) for one in json.loads((place.run_folder / "report.json").read_text())["measurements"]
    ]
    names = {one.name for one in found}
    assert {"exposure_bits", "membership_auc", "epsilon_lower_bound", "perplexity"} <= names
    by_model = {(one.name, one.model) for one in found}
    for name in ("exposure_bits", "membership_auc", "epsilon_lower_bound", "tokens_recited", "perplexity"):
        assert {(name, model) for model in ("base", "twin", "private")} <= by_model
    assert all(one.n > 0 and one.unit for one in found)
    assert all(one.interval[0] <= one.value <= one.interval[1] for one in found if one.interval)


def test_private_text_stays_in_the_data_folder(finished):
    place, done = finished
    data = place.run_folder / "data"
    files = [path for path in place.run_folder.rglob("*") if path.is_file() and data not in path.parents]
    assert {"report.html", "report.json", "log.jsonl", "ledger.jsonl"} <= {path.name for path in files}
    assert [path.name for path in files if place.leaked(path.read_text(errors="replace"))] == []
    assert not place.leaked(done.output)
    assert place.leaked((data / "train" / "data-00000-of-00001.arrow").read_text(errors="replace"))  # the test can see


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_the_report_names_no_path_of_this_machine(finished, name):
    place, _ = finished
    text = (place.run_folder / name).read_text()
    assert str(place.folder) not in text
    assert str(place.model.parent) not in text
    assert "notes.jsonl" in text


def test_owners_never_stand_on_both_sides(finished):
    place, _ = finished
    train, held_out = ({record.owner for record, _ in place.run.read_records(part)} for part in ("train", "held_out"))
    assert held_out
    assert not train & held_out


def test_a_second_run_does_nothing_and_again_does_it_all(before):
    place = before("report")
    place.call("run", "my.yaml")
    stamps = {path: path.stat().st_mtime_ns for path in place.run_folder.rglob("*") if path.is_file()}
    told = place.call("run", "my.yaml").stderr
    assert told.count("already done in runs/my; --again redoes it") == len(place.run.stages)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    place.call("report", "my.yaml", "--again")
    assert (place.run_folder / "report.html").stat().st_mtime_ns > stamps[place.run_folder / "report.html"]


def test_again_trains_from_the_start_with_a_ledger_of_its_own(before):
    place = before("audit")
    old = place.run.ledger_path("private").stat().st_ino
    place.call("train", "runs/my", "--again")
    assert place.run.ledger_path("private").stat().st_ino != old
    assert place.releases() == place.steps


def test_show_tells_a_finished_run(finished, monkeypatch):
    place, _ = finished
    monkeypatch.chdir(place.folder)
    out = place.call("show", "runs/my").stdout
    assert "done       prepare, train, audit, evaluate, report" in out
    assert "guarantee  epsilon 0.153 at delta 0.001" in out
    assert "perplexity" in out


def test_check_prints_the_plan_that_run_follows(place, finished):
    out = place.call("check", "my.yaml").stdout
    units = finished[0].run.facts("train")["guarantee"]["units"]
    assert f"{units} owners to train on" in out
    assert re.search(rf"private: steps +{place.steps} of 8 expected owners", out)
    assert "promise" in out and "epsilon 0.15" in out and "at delta 0.001" in out
    assert "packed rows" in out
    assert not place.run_folder.exists()


def test_the_same_seed_gives_the_same_data_and_twin_but_never_the_same_noise(place, finished):
    first, again = finished[0].run, place
    again.call("prepare", "my.yaml")
    again.call("train", "my.yaml")
    assert again.run.read_manifest() == first.read_manifest()
    assert again.run.read_canaries() == first.read_canaries()
    weights = "adapter_model.safetensors"
    for name, same in (("twin", True), ("private", False)):
        one, other = (run.model_folder(name) / weights for run in (first, again.run))
        assert (one.read_bytes() == other.read_bytes()) is same


def test_without_privacy_nothing_is_promised(place):
    out = place.call("run", "my.yaml", "-s", "privacy.kind=none").stdout
    assert "none: trained without privacy" in out
    values = json.loads((place.run_folder / "report.json").read_text())
    assert values["guarantee"]["epsilon"] is None
    assert {one["model"] for one in values["measurements"]} == {"base", "twin"}
    assert "none: trained without privacy" in place.call("show", "runs/my").stdout
    assert not (place.run_folder / "models" / "private").exists()


def test_the_unit_may_be_the_record(place):
    place.call("run", "my.yaml", "-s", "privacy.unit=record", "-s", "audit.twin=false")
    values = json.loads((place.run_folder / "report.json").read_text())
    assert values["guarantee"]["unit"] == "record"
    train = place.run.read_records("train")
    assert values["guarantee"]["units"] == len({unit for _, unit in train}) > len({r.owner for r, _ in train})
    assert {one["model"] for one in values["measurements"]} == {"base", "private"}


def test_every_weight_may_be_trained(place):
    settings = ["-s", "model.adapter.kind=full", "-s", "train.steps=2", "-s", "data.canaries=null"]
    assert "packed rows" in place.call("check", "my.yaml", *settings).stdout
    place.call("run", "my.yaml", *settings)
    assert place.releases() == 2
    assert (place.run.model_folder("private") / "model.safetensors").is_file()
    names = {one.name for one in place.run.read_measurements()}
    assert {"perplexity", "tokens_recited"} <= names and "exposure_bits" not in names


def test_records_too_long_are_dropped_and_counted(place):
    longer = dict(place.records[0], completion="y" * 300)
    place.write_source("".join(json.dumps(record) + "\n" for record in [*place.records, longer]))
    settings = ["-s", "data.max_tokens=200", "-s", "data.long_records=drop", "-s", "data.canaries=null"]
    place.call("prepare", "my.yaml", *settings)
    assert place.run.read_manifest()["dropped"] == 1
