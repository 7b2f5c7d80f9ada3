"""What a coordinator reads of updates: of real rounds, and of those that the audit makes of a run."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from reticent import recipe as recipes
from reticent.attacks import server_probe
from reticent.attacks.server_probe import overlap, probe
from reticent.federation import compress, messages
from reticent.federation.channel import Direct
from reticent.federation.joining import shapes_of
from reticent.federation.server import Coordinator, Files
from reticent.federation.site import Host, Identity, Site
from reticent.gradients.rows import Unit
from reticent.models.load import load_tokenizer
from reticent.progress import SILENT
from reticent.stages.attacking import Audited, Texts
from reticent.stages.server_view import server_view
from reticent.statistics import clopper_pearson
from reticent.tokens import Tokens

TOKENS = 6  # of each site


class Federation:
    """One round of one SGD step of three sites, with every answer that the coordinator gets."""

    def __init__(self, folder, model, **asked_for):
        self.recipe = recipes.from_dict(
            {
                "data": {"source": "bundled/clinic"},
                "model": {"base": str(model), "dtype": "float32", "adapter": {"kind": "lora", "rank": 24}},
                "train": {"steps": 1, "batch_size": 1, "learning_rate": 0.1, "optimizer": "sgd"},
                "privacy": {"kind": "none"},
                "federation": {"rounds": 1, **asked_for},
            }
        )
        self.host = Host(self.recipe)
        names = ["north", "south", "west"]
        keys = {name: Ed25519PrivateKey.generate() for name in names}
        roster = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        self.there, self.answers, sites = {}, [], {}
        for i, name in enumerate(names):
            ids = np.random.default_rng(i).permutation(250)[:TOKENS]
            self.there[name] = ids[:-1]  # nothing is predicted from the last one
            unit = Unit(name, (Tokens(ids, np.arange(TOKENS) > 0),))
            sites[name] = Site(name, self.host, "twin", [unit], folder / name, identity=Identity(keys[name], roster))
        self.start = self.host.start(roster)
        self.layer = server_probe.first_layer(self.host.model)
        answers = {name: self.keeping(site.answer) for name, site in sites.items()}
        files = Files(folder / "rounds", folder / "rounds.jsonl", folder / "ledger.jsonl")
        coordinator = Coordinator(
            self.recipe, "twin", Direct(answers), names, files, self.start, run="trial", progress=SILENT
        )
        self.joint = coordinator.train()

    def keeping(self, answer):
        def answered(request):
            told = answer(request)
            self.answers.append(told)
            return told

        return answered

    def updates(self):
        """The site's names with what the coordinator has of them."""
        shapes = shapes_of(self.host.mode, self.start.weights)
        for answer in self.answers:
            message = messages.unpack(answer)
            if message.kind == "update":
                update = compress.decode(messages.split(message.arrays).get("u", {}), dict(shapes))
                yield message.fields["site"], update

    def read(self):
        """Overlap of each site's tokens with what its update shows, and how it was read."""
        for site, update in self.updates():
            reading = probe(update, self.layer, told=TOKENS)
            yield reading.how, overlap(reading.tokens, self.there[site])

    @property
    def union(self):
        return np.unique(np.concatenate(list(self.there.values())))


@pytest.fixture
def federation(tmp_path, model):
    return lambda **asked_for: Federation(tmp_path / "federation", model, **asked_for)


@pytest.mark.parametrize("asked_for", [{"lora": "freeze-a"}, {"lora": "average"}, {"compress": "lossless"}])
def test_a_coordinator_reads_the_tokens_of_a_real_update(federation, asked_for):
    found = list(federation(**asked_for).read())
    assert len(found) == 3
    for how, one in found:
        assert how == "projected span"
        assert (one.recall, one.precision) == (1.0, 1.0)


@pytest.mark.parametrize("asked_for", [{"compress": "int8"}, {"compress": "bf16"}, {"compress": "top-k", "top_k": 0.2}])
def test_compression_hides_little(federation, asked_for):
    found = [one for _, one in federation(**asked_for).read()]
    assert sum(one.found for one in found) > 0.5 * sum(one.there for one in found)


def test_under_a_secure_sum_no_answer_holds_an_update(federation):
    trial = federation(secure_sum=True)
    assert list(trial.updates()) == []
    assert any(messages.unpack(answer).kind == "masked done" for answer in trial.answers)


def test_a_secure_sum_shows_the_union_of_the_sites_tokens(federation):
    trial = federation(secure_sum=True)
    change = {name: value - trial.start.weights[name] for name, value in trial.joint.weights.items()}
    reading = probe(change, trial.layer, told=len(trial.union))
    found = overlap(reading.tokens, trial.union)
    assert found.recall > 0.9
    for own in trial.there.values():
        assert overlap(reading.tokens, own).precision < 0.5


# Of a run.


def audited(run):
    def texts(part):
        rows = run.read_records(part)
        return Texts([record for record, _ in rows], [unit for _, unit in rows])

    tokenizer = load_tokenizer(run.recipe.model.base)
    return Audited(run, tokenizer, [], [], texts("train"), texts("held_out"), Texts([], []), SILENT)


@pytest.fixture(scope="module")
def view(finished):
    return server_view(audited(finished[0].run))


def points(findings, setting, tokens=None):
    return [p for p in findings.plots["server"] if p["setting"] == setting and tokens in (None, p["tokens"])]


def test_every_setting_is_measured_at_every_size(view):
    sizes = [point["tokens"] for point in points(view, "plain")]
    assert sizes[:3] == [8, 32, 128]
    for setting in ("clipped", "private", "sum of 3"):
        assert [point["tokens"] for point in points(view, setting)] == sizes


def test_a_small_plain_update_shows_its_tokens_and_clipping_hides_none(view):
    (plain,), (clipped,) = points(view, "plain", 8), points(view, "clipped", 8)
    assert plain["recall"] > 0.7
    assert plain["precision"] > 0.9
    assert clipped["recall"] == plain["recall"]


def test_the_noise_of_the_promise_leaves_what_guessing_finds(view):
    (private,) = points(view, "private", 8)
    assert private["recall"] < 0.4


def test_the_measurements_are_those_of_the_smallest_updates(view):
    found = {one.name: one for one in view.measurements}
    assert set(found) == {f"tokens_{kind}_{s}" for kind in ("seen", "precision") for s in ("plain", "private", "sum")}
    plain = points(view, "plain")[0]
    one = found["tokens_seen_plain"]
    assert (one.value, one.model, one.counted) == (plain["recall"], "private", "distinct tokens")
    assert one.interval == clopper_pearson(round(one.value * one.n), one.n)
    assert 0 < one.floor < 1
    assert one.control is not None
    assert found["tokens_precision_plain"].value == plain["precision"]


def test_a_run_in_one_place_says_so_and_nothing_is_called_safe(view):
    for one in view.measurements:
        assert "this run trained in one place: this is what a coordinator would have read" in one.method
        assert "not a safety statement" in one.method


def test_an_audit_leaves_ledger_and_models_alone(finished):
    place = finished[0]
    before = {p: p.read_bytes() for p in place.run_folder.rglob("*") if p.is_file()}
    server_view(audited(place.run))
    assert {p: p.read_bytes() for p in place.run_folder.rglob("*") if p.is_file()} == before


def test_the_same_run_reads_the_same_plain_updates_again(finished, view):
    again = server_view(audited(finished[0].run))
    assert points(again, "plain") == points(view, "plain")


@pytest.fixture
def across(place):
    """The findings of a run over four silos that promises nothing to units, with these federation settings."""

    def make(**asked_for):
        source = {"path": "notes.jsonl", "prompt": "prompt", "completion": "completion", "owner": "owner"}
        data = {"source": source, "template": "plain", "canaries": None, "silos": {"clients": 4}}
        place.write_recipe(data=data, privacy={"kind": "none"}, federation={"rounds": 2, **asked_for})
        place.call("prepare", "my.yaml")
        return server_view(audited(place.run))

    return make


WHOLE = {"kind": "dp-fedavg", "noise_multiplier": 1, "delta": 1e-2, "few_clients": True}


def test_a_federated_run_without_a_promise_reads_the_updates_of_its_sites(across):
    found = across()
    assert {point["setting"] for point in found.plots["server"]} == {"plain", "clipped", "sum of 4"}
    assert all("this run is federated" in one.method for one in found.measurements)
    assert points(found, "plain", 8)[0]["precision"] > 0.8


def test_noise_of_the_coordinator_hides_nothing_from_it(across):
    found = across(weights="equal", privacy=WHOLE)
    assert points(found, "private") == []
    assert "adds the noise itself" in found.plots["unanswered"][0]["why"]


def test_noise_of_the_sites_hides_their_sum(across):
    found = across(weights="equal", secure_sum=True, privacy={**WHOLE, "noise": "distributed"})
    (together,) = points(found, "sum of 4", 8)
    assert together["recall"] < 0.4
    assert points(found, "private") == []
    assert "unanswered" not in found.plots


def test_an_adapter_that_reads_no_tokens_is_told(place):
    adapter = {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["down_proj"]}
    place.write_recipe(model={"base": str(place.model), "adapter": adapter, "dtype": "float32"})
    place.call("prepare", "my.yaml")
    place.call("train", "my.yaml")
    found = server_view(audited(place.run))
    assert found.measurements == []
    assert "reads tokens directly" in found.plots["unanswered"][0]["why"]
