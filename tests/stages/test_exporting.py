"""Trained models leave a run checked and described, or not at all."""

import json
import shutil

import httpx
import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file, save_file

from reticent import asked
from reticent.data import canary
from reticent.errors import ModelError, PrivacyError, RunError
from reticent.models import export as exporting
from reticent.models.adapter import load_trained
from reticent.reports import card as cards
from reticent.run import Run
from reticent.stages import model_card, report, train
from reticent.stages.export import export

SITES = {"silos": {"clients": 3}, "canaries": None}


class Hub:
    """Stands in for the hub's client; remembers what it was asked."""

    def __init__(self, errors=()):
        self.errors, self.calls = dict(errors), []

    def __call__(self):
        return self

    def _told(self, name, *values):
        self.calls.append((name, *values))
        if name in self.errors:
            raise self.errors[name]

    def whoami(self):
        self._told("whoami")

    def create_repo(self, name, *, private, exist_ok):
        self._told("create_repo", name, private)
        return f"hub/{name}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self._told("upload_folder", repo_id, sorted(path.name for path in folder_path.iterdir()))


@pytest.fixture
def hub(monkeypatch):
    def make(**errors):
        made = Hub(errors)
        monkeypatch.setattr(huggingface_hub, "HfApi", made)
        return made

    return make


@pytest.fixture(scope="module")
def done(finished, tmp_path_factory):
    """A finished run, and its private model as an adapter and merged: folders and rows; read only."""
    run = finished[0].run
    folder = tmp_path_factory.mktemp("exported")
    rows = {kind: dict(export(run, folder / kind, kind=kind)) for kind in ("adapter", "merged")}
    return run, folder, rows


@pytest.fixture
def to(tmp_path):
    return tmp_path / "out"


def left(folder):
    """What stands beside the target."""
    return [path.name for path in folder.parent.iterdir() if path.name.startswith((".writing", folder.name))]


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run in a place where it may be changed."""
    shutil.copytree(finished[0].run_folder, tmp_path / "copy")
    return Run.open(tmp_path / "copy")


# ------------------------------------------------------------------------------------------------------ what is written


def test_both_kinds_are_checked_and_told(done):
    _, folder, rows = done
    assert rows["adapter"]["exported"] == f"private model, adapter, to {folder / 'adapter'}"
    assert rows["adapter"]["parameters"].startswith("23,776 ") and rows["adapter"]["trained"].startswith("7,424 in an")
    assert "logits are the same in float32" in rows["adapter"]["loaded again"]
    assert rows["merged"]["stored as"] == "float32" and "convert_hf_to_gguf.py" in rows["merged"]["GGUF"]
    assert "4 held-out texts" in rows["merged"]["perplexity when loaded again"]
    assert "GGUF" not in rows["adapter"]


def test_merged_weights_give_the_run_s_logits(done):
    run, folder, _ = done
    ours, tokenizer = load_trained(run.recipe.model.base, run.model_folder("private"))
    ids = exporting.probes(tokenizer, 258)
    theirs = exporting.reload(folder / "merged", None)
    found = exporting.compare(exporting._read(ours, ids, packed=True), exporting._read(theirs, ids))
    assert found.rms < 1e-6 and found.same == 1


def test_the_kind_is_the_run_s_own_if_none_is_asked_for(done, to):
    assert dict(export(done[0], to))["exported"].startswith("private model, adapter,")
    assert (to / "adapter_config.json").exists()


def test_nothing_private_and_no_place_is_written(done, finished):
    run, folder, _ = done
    records = [one.record for one in canary.from_json(run.read_canaries())]
    for path in [*folder.rglob("*.md"), *folder.rglob("*.json")]:
        text = path.read_text()
        assert not finished[0].leaked(text), path
        assert str(finished[0].folder) not in text and str(finished[0].model) not in text and str(folder) not in text
        assert "notes.jsonl" not in text
        assert not any(record.completion in text for record in records if len(record.completion) > 8)
        assert run.read_manifest()["sha256"]["train"] not in text


def test_files_can_be_read_by_whoever_may_read_the_folder(done):
    modes = {path.stat().st_mode & 0o777 for path in (done[1] / "merged").iterdir()}
    assert len(modes) == 1 and (done[1] / "merged").stat().st_mode & modes.pop()


@pytest.mark.parametrize("tuned, told", [(0.01, "the adapter has all of it"), (0.5, "changed them by 0.5")])
def test_what_rounding_loses_stands_beside_what_fine_tuning_did(tuned, told):
    text = model_card._lost(0.02, tuned)
    assert text.startswith("changes the logits by 0.02 of their size") and text.endswith(told)


# ------------------------------------------------------------------------------------------------------------- the card


def test_the_hub_reads_the_card(done):
    found = ModelCard((done[1] / "merged" / "README.md").read_text()).data
    assert found.library_name == "transformers" and found.pipeline_tag == "text-generation"
    assert found.tags == ["reticent", "differential-privacy", "dp-sgd", "lora"]
    assert found.base_model is None and found.license is None and found.datasets is None  # of a local folder
    told = {result.metric_type: result.metric_value for result in found.eval_results}
    own = [one for one in done[0].read_measurements("evaluate") if one.model == "private"]
    assert "perplexity" in told and told == {one.name: one.value for one in own}
    assert ModelCard((done[1] / "adapter" / "README.md").read_text()).data.library_name == "peft"


def test_the_card_states_the_guarantee_of_the_ledger(done):
    text = (done[1] / "merged" / "README.md").read_text()
    guarantee = done[0].facts("train")["guarantee"]
    assert f"**ε = {guarantee['epsilon']:.3g} per owner**" in text and "| δ (delta) | 0.001 |" in text
    assert "| neighbours | add or remove one |" in text and f"| accountant | {guarantee['accountant']} |" in text
    assert "does not cover the numbers of this card" in text and "this report" not in text
    assert "No privacy guarantee" not in text


def test_the_card_has_every_verdict_of_the_audit(done):
    text = (done[1] / "merged" / "README.md").read_text()
    verdicts = [line for line in report.findings(done[0]) if line.verdict is not None]
    assert len(verdicts) > 5 and all(line.verdict.text in text and line.text in text for line in verdicts)


def test_the_card_counts_and_names_no_source(done):
    run, folder, _ = done
    text, manifest = (folder / "merged" / "README.md").read_text(), run.read_manifest()
    assert f"{manifest['records']['train']:,} records of {manifest['units']['train']:,} owners" in text
    assert "files that are not named here" in text and run.read_provenance()["recipe"] in text


def test_a_demonstrated_leak_is_said_first(done, to, monkeypatch):
    monkeypatch.setattr(report, "failing", lambda run, level: ["1 recite: secrets: leak demonstrated"])
    export(done[0], to, model="private")
    body = (to / "README.md").read_text().split("---\n", 2)[2]
    assert body.index("**A leak was demonstrated.**") < body.index("secrets: leak demonstrated") < body.index("## ")


def test_a_run_without_audit_and_evaluation_says_so(before, to):
    place = before("audit")
    export(place.run, to)
    text = (to / "README.md").read_text()
    assert "**It was not audited.**" in text and "It was not evaluated." in text and "model-index" not in text


def test_the_twin_promises_nothing_and_says_it_loudly(done, to):
    rows = dict(export(done[0], to, model="twin"))
    text = (to / "README.md").read_text()
    body = text.split("---\n", 2)[2]
    assert rows["exported"].startswith("non-private twin")
    assert body.index("**No privacy guarantee.**") < body.index("## ") and "It may recite that text" in body
    assert "differential-privacy" not in text.split("---\n", 2)[1] and "**None.** ε is unlimited." in body


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_run_that_is_not_trained_says_how(before, to):
    with pytest.raises(RunError, match="has no trained model to export; train it first: reticent train"):
        export(before("train").run, to)


def test_a_run_without_a_promise_has_no_private_model(place, to):
    place.write_recipe(privacy={"kind": "none"})
    place.call("prepare", "my.yaml")
    place.call("train", "my.yaml")
    with pytest.raises(RunError, match="it has no private model; --model twin exports"):
        export(place.run, to)
    assert dict(export(place.run, to, model="twin"))["exported"].startswith("model without a promise")
    assert "positive\n> control" not in (to / "README.md").read_text()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_target_in_use_is_refused_and_stays(done, to, what):
    other = to / "other.txt" if what == "folder" else to
    other.parent.mkdir(exist_ok=True)
    other.write_text("mine")
    with pytest.raises(RunError, match="is not empty and is not overwritten"):
        export(done[0], to)
    assert other.read_text() == "mine"


def test_an_empty_target_is_used(done, to):
    to.mkdir()
    export(done[0], to)
    assert (to / "README.md").exists() and left(to) == ["out"]


def test_a_failed_check_of_the_training_keeps_the_private_model_here(copied, to):
    drawn = copied.read_plots("audit")
    drawn["checks"][0]["passed"] = False
    copied.write_plots("audit", drawn)
    with pytest.raises(PrivacyError, match=rf"failed: {drawn['checks'][0]['name']}.*is not exported as private"):
        export(copied, to)
    assert left(to) == []
    assert export(copied, to, model="twin")


def test_an_adapter_of_another_base_is_refused(copied, to):
    path = copied.model_folder("private") / "adapter_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "base_model_name_or_path": "somebody/other-7b"}))
    with pytest.raises(ModelError, match=r"trained on somebody/other-7b, and model.base is .*tiny"):
        export(copied, to)


def scaled(monkeypatch):
    merge = BaseTuner.merge_and_unload

    def twice(self, *arguments, **options):
        for name, one in self.named_parameters():
            if ".lora_" in name:
                one.data.mul_(2)
        return merge(self, *arguments, **options)

    monkeypatch.setattr(BaseTuner, "merge_and_unload", twice)


def dropped(monkeypatch):
    save = exporting._save

    def incomplete(model, folder, name):
        save(model, folder, name)
        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(exporting, "_save", incomplete)


@pytest.mark.parametrize("damage", [scaled, dropped])
def test_a_damaged_export_leaves_nothing_and_is_sent_nowhere(done, to, monkeypatch, hub, damage):
    made = hub()
    damage(monkeypatch)
    with pytest.raises(ModelError, match=r"the exported model is not the run's: .* Nothing was kept"):
        export(done[0], to, kind="merged", push="somebody/model")
    assert left(to) == [] and made.calls == [("whoami",)]


def test_other_perplexity_of_held_out_text_is_a_damaged_export(done, to, monkeypatch):
    monkeypatch.setattr(exporting, "log_probs", lambda model, texts: [one.ids * 0 - 1.0 for one in texts])
    with pytest.raises(ModelError, match=r"its perplexity on held-out text is 2\.718"):
        export(done[0], to)
    assert left(to) == []


@pytest.mark.parametrize("what", ["canary", "place"])
def test_a_card_that_would_give_something_away_is_refused(done, to, monkeypatch, what):
    run = done[0]
    texts = [one.record.completion for one in canary.from_json(run.read_canaries())]
    secret = max(texts, key=len) if what == "canary" else str(run.folder)
    monkeypatch.setattr(cards, "card", lambda facts: f"see {secret}")
    with pytest.raises(PrivacyError, match=r"README.md would .* so nothing was exported") as told:
        export(run, to)
    assert left(to) == [] and secret not in str(told.value)


def test_a_full_disk_is_told_and_leaves_nothing(done, to, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "export", full)
    with pytest.raises(RunError, match=r"No space left on device; make room or name another folder with --to"):
        export(done[0], to)
    assert left(to) == []


# ------------------------------------------------------------------------------------------------------------- the hub


def test_a_checked_model_is_sent_to_a_private_repository(done, to, hub):
    made = hub()
    rows = dict(export(done[0], to, kind="merged", push="somebody/clinic-private"))
    names = sorted(path.name for path in to.iterdir())
    assert made.calls == [
        ("whoami",),
        ("create_repo", "somebody/clinic-private", True),
        ("upload_folder", "somebody/clinic-private", names),
    ]
    assert rows["pushed"] == "hub/somebody/clinic-private"
    assert 'from_pretrained("somebody/clinic-private")' in (to / "README.md").read_text()


def answered(status):
    return HfHubHTTPError("hf_secret", response=httpx.Response(status, request=httpx.Request("GET", "http://hub")))


@pytest.mark.parametrize(
    "error, match",
    [
        (LocalTokenNotFoundError("no"), "nobody is logged in; log in with: hf auth login"),
        (OfflineModeIsEnabled("no"), "HF_HUB_OFFLINE switches the hub off here"),
        (answered(401), "the token is not valid"),
        (httpx.ConnectError("no"), r"the hub cannot be reached \(ConnectError\)"),
    ],
)
def test_who_cannot_reach_the_hub_hears_it_before_anything_long(done, to, hub, monkeypatch, error, match):
    hub(whoami=error)
    monkeypatch.setattr(exporting, "export", None)
    with pytest.raises(ModelError, match=match) as told:
        export(done[0], to, push="somebody/model")
    assert not to.exists() and "hf_secret" not in str(told.value) and told.value.__suppress_context__


def test_a_push_that_fails_keeps_the_checked_folder_and_says_how_to_go_on(done, to, hub):
    hub(upload_folder=answered(403))
    with pytest.raises(ModelError, match=rf"may not write there.* hf upload somebody/model {to}"):
        export(done[0], to, push="somebody/model")
    assert (to / "README.md").exists()


def test_the_twin_is_never_sent(done, to, hub):
    made = hub()
    with pytest.raises(PrivacyError, match="the twin promises nothing and may recite"):
        export(done[0], to, model="twin", push="somebody/model")
    assert made.calls == [] and not to.exists()


@pytest.mark.parametrize("name", ["a/b/c", "no spaces", ""])
def test_a_name_that_is_no_repository_is_refused(done, to, hub, name):
    hub()
    with pytest.raises(ModelError, match="--push must be a repository of the hub, as somebody/name"):
        export(done[0], to, push=name)


# ----------------------------------------------------------------------------------------------------------- federation


@pytest.mark.parametrize("lora, kind", [("merged", "merged"), ("product", "adapter")])
def test_a_federated_model_is_exported_and_no_site_is_named(place, to, lora, kind):
    sections = yaml.safe_load((place.folder / "my.yaml").read_text())
    place.write_recipe(
        data={**sections["data"], **SITES}, privacy={"kind": "none"}, federation={"rounds": 2, "lora": lora}
    )
    place.call("prepare", "my.yaml")
    run = place.run
    train.train(run, train.SILENT)
    assert asked.federated(run.recipe) is not None
    rows = dict(export(run, to, model="twin"))
    text = (to / "README.md").read_text()
    assert f", {kind}, to " in rows["exported"] and "| held by | 3 sites |" in text
    assert f"adapters joined by {lora}" in text and not any(site in text for site in run.silos())
