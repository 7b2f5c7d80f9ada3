"""The audit on a tiny model, through the command line: what it answers, what it refuses, and what it says of that."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from reticent.attacks import blind
from reticent.statistics import Estimate


def unanswered(place):
    return {one["question"]: one["why"] for one in place.run.read_plots("audit")["unanswered"]}


def names(place, model="private"):
    return {one.name for one in place.run.read_measurements("audit") if one.model == model}


def test_without_canaries_it_says_what_cannot_be_answered_and_answers_the_rest(place):
    for verb in ("prepare", "train", "audit"):
        place.call(verb, "my.yaml", "-s", "data.canaries=null")
    assert "fewer than two secrets" in unanswered(place)["exposure_bits"]
    assert "fewer than two invented records" in unanswered(place)["membership_auc"]
    assert not {"exposure_bits", "membership_auc", "epsilon_lower_bound"} & names(place)
    assert "implementation_checks" in names(place)


def test_a_share_of_false_alarms_that_the_data_cannot_show_is_refused_with_the_number_needed(before):
    place = before("evaluate")
    told = place.refused(
        "audit",
        "runs/my",
        "--again",
        "-s",
        "audit.false_alarms=[0.001]",
        match="0.001 needs 3,000 held-out units or more",
    )
    assert "data.held_out" in told
    assert place.run.finished("audit")  # what was there is not redone for it


def test_a_tokenizer_that_is_not_the_base_models_is_refused(before):
    place = before("audit")
    path = place.run.model_folder("private") / "tokenizer.json"
    path.write_text(path.read_text().replace('"a":', '"\u00e9\u00e9":'))
    told = place.refused("audit", "runs/my", match="the private model's tokenizer")
    assert str(place.model) in told


def test_a_model_of_numbers_that_are_none_is_refused(before):
    place = before("audit")
    path = place.run.model_folder("twin") / "adapter_model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(path).items()}, path)
    place.refused("audit", "runs/my", match="not finite")


@pytest.mark.parametrize("change", ["planted", "damaged"])
def test_canaries_that_were_changed_after_they_were_committed_to_are_refused(before, change):
    place = before("audit")
    path = place.run_folder / "data" / "canaries.json"
    canaries = json.loads(path.read_text())
    if change == "planted":
        one = next(one for one in canaries if one["role"] == "member")
        one["planted"], one["copies"] = not one["planted"], 1 - one["copies"]
        path.write_text(json.dumps(canaries, sort_keys=True, separators=(",", ":")))
    else:
        path.write_text(path.read_text()[:-9])
    place.refused(
        "audit", "runs/my", match="was changed after it was committed to" if change == "planted" else "damaged"
    )


def test_members_that_are_told_apart_without_a_model_withhold_the_numbers_on_records(before, monkeypatch):
    place = before("audit")
    failed = blind.Gate(Estimate(0.9, (0.8, 0.95)), 40, passed=False)
    monkeypatch.setattr(blind, "FEWEST", 1)
    monkeypatch.setattr(blind, "gate", lambda *texts, **settings: failed)
    place.call("audit", "runs/my")
    assert "without any model (AUC 0.90)" in unanswered(place)["record_membership"]
    assert not {name for name in names(place) if name.startswith("record_membership")}


def test_a_demonstrated_leak_can_fail_a_pipeline(finished, monkeypatch):
    from reticent.stages import report

    place, _ = finished
    monkeypatch.chdir(place.folder)
    place.call("audit", "runs/my", "--fail-on", "leak")
    told = place.call("audit", "runs/my", "--fail-on", "inconclusive", code=1).stderr
    assert "test inconclusive" in told
    monkeypatch.setattr(report, "failing", lambda run, level: ["1 recite: a secret: leak demonstrated"])
    assert (
        "error: 1 recite: a secret: leak demonstrated"
        in place.call("audit", "runs/my", "--fail-on", "leak", code=1).stderr
    )


def test_a_check_of_the_training_that_fails_takes_the_promise_back(before, monkeypatch):
    from reticent.privacy.selfcheck import Check
    from reticent.stages import doctor
    from reticent.stages.report import contents

    place = before("audit")
    failed = Check("noise: scale", False, float("inf"), 1.0, "how far it is off")
    monkeypatch.setattr(doctor, "implementation_checks", lambda run, progress: [failed])
    told = place.call("audit", "runs/my", "--fail-on", "leak", code=1).stderr
    assert "promise not kept: check noise: scale failed" in told
    place.call("run", "runs/my")
    assert contents(place.run)["guarantee"]["epsilon"] is None
    assert "check noise: scale failed. Nothing is promised" in place.run.report_path.read_text()
    assert "guarantee  none: the training does not keep" in place.call("show", "runs/my").stdout


def test_a_signed_report_is_verified_and_any_change_is_named(before):
    place = before("report")
    place.call("report", "runs/my", "--sign", "officer.key")
    told = place.call("show", "runs/my", "--verify", "--key", "officer.key.pub").stdout
    assert told.startswith("the signature holds")
    path = place.run_folder / "measurements" / "audit.json"
    path.write_text(path.read_text().replace("0", "1", 1))
    place.refused("show", "runs/my", "--verify", match="measurements/audit.json")


def test_what_is_not_signed_cannot_be_verified(before):
    place = before("report")
    place.refused("show", "runs/my", "--verify", match="is not signed; sign it with")


def test_every_score_is_in_one_table_without_a_name_of_anybody(finished):
    place, _ = finished
    table = pq.read_table(place.run_folder / "audit" / "scores" / "scores.parquet")
    assert table.column_names == ["model", "attack", "unit", "group", "copies", "score"]
    assert {"base", "twin", "private"} == set(table["model"].to_pylist())
    assert not place.leaked(" ".join(table["unit"].to_pylist()))


def test_shadow_trainings_say_what_a_texts_presence_changes(before):
    place = before("audit")
    place.call("audit", "runs/my", "--again", "-s", "audit.shadows={count: 4}")
    assert {"counterfactual_memorisation", "counterfactually_memorised"} <= names(place, "twin")
    assert len(list((place.run_folder / "models" / "shadows").iterdir())) == 4


def test_private_shadows_test_the_promise_over_several_trainings(before):
    place = before("audit")
    place.call("audit", "runs/my", "--again", "-s", "audit.shadows={count: 8, private: true}")
    found = {one.name: one for one in place.run.read_measurements("audit") if one.model == "private"}
    bound = found["epsilon_multi_run"]
    assert 0 == bound.floor <= bound.value <= bound.ceiling
    assert bound.n == 8


def test_settings_that_changed_after_training_are_told(before):
    place = before("audit")
    place.call("audit", "runs/my", "--again", "-s", "audit.primary=wbc")
    from reticent.stages.report import contents

    facts = contents(place.run)["audit"]
    assert not facts["pre_registered"]
    assert facts["changed"] == ["audit.primary: loss-difference -> wbc"]


def test_scores_that_are_there_are_not_computed_again(before, monkeypatch):
    place = before("audit")
    place.call("audit", "runs/my")
    (place.run_folder / "stages" / "audit.json").unlink()
    from reticent.attacks import cache

    monkeypatch.setattr(cache.Cache, "write", None)
    place.call("audit", "runs/my")
