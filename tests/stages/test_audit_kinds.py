"""What holds for the audit and the report of every kind of run: promises, federations, templates, families, attacks."""

import html
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from reticent.reports import schema

LORA = {"kind": "lora", "rank": 8, "alpha": 16}
FULL = {"kind": "full"}
NONE = {"kind": "none"}
PROMISE = {"kind": "dp-sgd", "noise_multiplier": 4, "delta": 1e-3}
SITES = {"data": {"silos": {"clients": 3}}, "train": {"batch_size": 4}}
WHOLE_SITES = {"kind": "dp-fedavg", "noise_multiplier": 4, "few_clients": True}
ATTACKS = ["loss", "loss-ratio", "zlib", "lowercase", "min-k", "min-k++", "wbc", "ez", "recall", "window"]
_ONLY_EXPOSURE = [
    part
    for name in ("selfcheck=false", "server_view=false", "extraction=null", "identifiers=null")
    for part in ("-s", f"audit.{name}")
] + ["--again"]
QUICK = {"selfcheck": False, "server_view": False}

KINDS: dict[str, dict[str, Any]] = {
    "records, a clip norm that follows": {
        "privacy": {**PROMISE, "unit": "record", "clip_quantile": {"target": 0.5}},
        "audit": {"server_view": False},
    },
    "correlated noise": {"privacy": {**PROMISE, "kind": "dp-mf", "bands": 2}, "audit": {"twin": False}},
    "all weights, layer by layer": {
        "privacy": {**PROMISE, "clip_style": "per-layer"},
        "model": {"adapter": FULL},
        "audit": {"selfcheck": False},
    },
    "no promise, every family": {
        "privacy": NONE,
        "data": {
            "canaries": {
                "pairs": 12,
                "copies": [0, 1, 10],
                "candidates": {"fake-patient": 12, "rare-suffix": 12, "high-temperature": 12, "new-token": 12},
            }
        },
    },
    "chat, cut": {
        "data": {"template": "chat", "train_on_prompt": True, "max_tokens": 64, "long_records": "cut"},
        "audit": QUICK,
    },
    "text without canaries": {
        "data": {"source": {"text": "completion", "prompt": None, "completion": None, "owner": None}, "canaries": None},
        "audit": {**QUICK, "extraction": {"prefixes": [1], "suffix": 5}},
    },
    "nothing asked": {
        "audit": {**QUICK, "exposure": False, "membership": False, "extraction": None, "identifiers": None},
        "evaluate": {"perplexity": False, "choices": False},
    },
    "sites under a secure sum": {**SITES, "federation": {"rounds": 2, "secure_sum": True}},
    "a promise to whole sites": {
        **SITES,
        "privacy": NONE,
        "federation": {"rounds": 2, "weights": "equal", "privacy": WHOLE_SITES},
    },
    "one site alone": {**SITES, "federation": {"rounds": 2, "only": "silo-1"}, "audit": QUICK},
    "many owners, every attack": {
        "data": {"calibration": 0.2, "held_out": 0.2},
        "audit": {
            **QUICK,
            "primary": "gradient-norm",
            "attacks": ATTACKS,
            "false_alarms": [0.1],
            "extraction": None,
            "identifiers": None,
        },
    },
}


class Audited(NamedTuple):
    """A finished run of one kind, and all that the command line said."""

    kind: str
    place: Any
    told: str

    @property
    def measurements(self) -> list[Any]:
        return self.place.run.read_measurements()

    @property
    def report(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.place.run_folder / "report.json").read_text())
        return values

    @property
    def page(self) -> str:
        """The text of the page, without the recipe at its end, which is YAML."""
        bare = re.sub(
            r"<(style|script|svg)\b.*?</\1>|<pre\b.*?</pre>", " ", self.place.run.report_path.read_text(), flags=re.S
        )
        return html.unescape(re.sub(r"<[^>]+>", " ", bare))


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in changes.items():
        section = isinstance(value, dict) and isinstance(found.get(key), dict) and "kind" not in value
        found[key] = _merged(found[key], value) if section else value
    return found


def _many(records: list[dict[str, str]]) -> list[dict[str, str]]:
    """Records of four times as many owners, each in words of its own."""
    rng = np.random.default_rng(2)
    letters = [
        str.maketrans("bcdfghjklmnpqrstvwxz", "".join(rng.permutation(list("bcdfghjklmnpqrstvwxz")))) for _ in "123"
    ]
    return records + [
        {key: text.translate(table) for key, text in record.items()} for table in letters for record in records
    ]


def _chatting(model: Path, folder: Path) -> Path:
    """The tiny model with a chat template."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = (
        "{% for one in messages %}[{{ one['role'] }}] {{ one['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def audited(request: Any, finished: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    """A run of each kind; read only."""
    kind = request.param
    folder = tmp_path_factory.mktemp("kind")
    place = type(finished[0])(folder, _chatting(model, folder / "chatting") if kind == "chat, cut" else model)
    if kind.startswith("many"):
        place.records = _many(place.records)
        place.words = {word for record in place.records for text in record.values() for word in text.split()}
        place.write_source("".join(json.dumps(record) + "\n" for record in place.records))
    recipe = folder / "my.yaml"
    changes = KINDS[kind]
    recipe.write_text(yaml.safe_dump(_merged(yaml.safe_load(recipe.read_text()), changes) | _whole(changes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield Audited(kind, place, place.call("run", "my.yaml").output)


def _whole(changes: dict[str, Any]) -> dict[str, Any]:
    return {"privacy": changes["privacy"]} if "privacy" in changes else {}


def test_every_number_lies_where_it_can(audited):
    for one in audited.measurements:
        assert math.isfinite(one.value), one
        assert one.n > 0 and one.unit and one.counted, one
        assert one.ceiling is None or one.value <= one.ceiling + 1e-9, one
        assert one.interval is None or one.interval[0] - 1e-9 <= one.value <= one.interval[1] + 1e-9, one
        assert one.p_value is None or 0 <= one.p_value <= 1, one
        if one.unit in ("share", "probability"):
            low, high = one.interval or (one.value, one.value)
            assert 0 <= low <= high <= 1, one


def test_no_text_of_a_record_stands_outside_the_data(audited):
    place = audited.place
    assert not place.leaked(audited.told)
    for path in place.run_folder.rglob("*"):
        if path.is_file() and "data" not in path.relative_to(place.run_folder).parts:
            assert not place.leaked(path.read_bytes().decode(errors="ignore")), path


def test_the_report_is_as_its_schema_says(audited):
    schema.validate(audited.report)


def test_the_page_is_written_for_people(audited):
    for pattern in (
        r"\bnan\b",
        r"\binf\b",
        r"\bTrue\b",
        r"\bFalse\b",
        r"\[\]",
        r"\{\}",
        r"\d\.[1-9]\d{5,}",
        r"\barray\(",
    ):
        assert not re.search(pattern, audited.page), (audited.kind, pattern)


def test_nothing_is_left_half_written(audited):
    assert audited.place.half_written() == []


def test_a_promise_is_only_told_where_there_is_one(audited):
    promised = audited.place.run.recipe.promises
    assert (audited.report["guarantee"]["epsilon"] is not None) == promised
    assert ("No guarantee" in audited.page) == (not promised)
    if not promised:
        assert not {one.name for one in audited.measurements} & {"implementation_checks", "epsilon_ideal"}


def test_what_was_not_asked_is_not_measured(audited):
    asked, names = audited.place.run.recipe.audit, {one.name for one in audited.measurements}
    for wanted, name in (
        (asked.exposure, "exposure_bits"),
        (asked.membership, "membership_auc"),
        (asked.extraction is not None, "records_recited|identifiers_recited"),
        (asked.identifiers is not None, "identifier_filled_in"),
        (asked.server_view, "tokens_seen"),
        (asked.selfcheck, "implementation_checks"),
    ):
        assert wanted or not [one for one in names if re.match(name, one)], name


def test_every_model_has_the_same_numbers(audited):
    """But the base model, with which the others are compared."""
    own = {
        model: {one.name for one in audited.measurements if one.model == model} for model in ("base", "twin", "private")
    }
    if own["twin"] and own["private"]:
        extra = ("implementation_checks", "epsilon_ideal", "tokens_seen", "tokens_precision")
        assert own["twin"] == {name for name in own["private"] if not name.startswith(extra)}
    assert own["base"] <= own["twin"] | own["private"]


# ------------------------------------------------------------------------------------------------ one kind at a time


@pytest.mark.parametrize("audited", ["many owners, every attack"], indirect=True)
def test_every_attack_that_was_asked_for_is_told_with_a_corrected_p_value(audited):
    found = {one.name: one for one in audited.measurements if one.model == "private"}
    assert {f"record_membership_auc[{attack}]" for attack in ATTACKS} <= found.keys()
    assert all(found[f"record_membership_auc[{attack}]"].p_value is not None for attack in ATTACKS)
    assert "record_membership_tpr_at_10pct" in found


@pytest.mark.parametrize("audited", ["no promise, every family"], indirect=True)
def test_every_family_and_number_of_copies_has_numbers_of_its_own(audited):
    names = {one.name for one in audited.measurements}
    assert {
        "membership_auc",
        *(f"membership_auc_{one}" for one in ("rare_suffix", "high_temperature", "new_token")),
    } <= names
    assert {"exposure_bits", "exposure_bits_1_copies", "identifier_filled_in_1_copies"} <= names


@pytest.mark.parametrize("audited", ["no promise, every family", "text without canaries"], indirect=True)
def test_attacks_that_no_record_was_tried_on_are_not_told_as_run(audited):
    assert not [one for one in audited.measurements if one.name.startswith("record_membership")]
    told = audited.report["audit"]
    assert set(told["attacks"]) <= {told["primary"]}
    assert told["family"] == ""
    assert "membership by wbc" in [one["attack"] for one in told["not_run"]]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"federation": {"rounds": 2}, **SITES, "audit": {"shadows": {"count": 4}}}, "audit.shadows"),
        ({"privacy": NONE, "audit": {"shadows": {"count": 4, "private": True}}}, "audit.shadows"),
        ({"audit": {"twin": False, "shadows": {"count": 4}}}, "audit.shadows"),
    ],
    ids=["federated", "no promise", "no twin"],
)
def test_further_trainings_that_no_model_is_like_are_refused_before_anything_is_trained(place, changes, match):
    recipe = place.folder / "my.yaml"
    recipe.write_text(yaml.safe_dump(_merged(yaml.safe_load(recipe.read_text()), changes)))
    place.refused("prepare", "my.yaml", match=match)


# --------------------------------------------------------------------------------------------- what was damaged since


@pytest.mark.parametrize("damage", ["shorter", "other numbers", "missing"])
def test_scores_that_were_damaged_are_named_and_not_used(before, damage):
    place = before("audit")
    place.call("audit", "runs/my", *_ONLY_EXPOSURE)
    path = next((place.run_folder / "audit" / "base").rglob("logp"))
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size - (4 if damage == "shorter" else 0)))
    (place.run_folder / "stages" / "audit.json").unlink()
    place.refused("audit", "runs/my", match=str(path.parent.relative_to(place.run_folder)))


def test_a_key_that_cannot_sign_is_refused(before):
    place = before("report")
    key = place.folder / "other.key"
    key.write_text("no key")
    key.chmod(0o600)
    place.refused("report", "runs/my", "--sign", "other.key", match="other.key")
    assert not place.run.signature_path.exists()


def test_a_report_that_was_edited_after_it_was_signed_is_named(before):
    place = before("report")
    place.call("report", "runs/my", "--sign", "officer.key")
    path = place.run_folder / "report.json"
    path.write_text(path.read_text().replace('"delta": 0.001', '"delta": 0.00001'))
    place.refused("show", "runs/my", "--verify", match="report.json was altered")
