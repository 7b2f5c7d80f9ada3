"""The card of an exported model: what went wrong first, numbers with their intervals, in the hub's format."""

from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from reticent.measurement import Measurement
from reticent.reports.card import Facts, Finding, card, front_matter

NOTHING = {"epsilon": None, "delta": None, "unit": "owner"}
GUARANTEE = {
    "epsilon": 3.0,
    "delta": 1e-5,
    "unit": "owner",
    "relation": "add-or-remove-one",
    "accountant": "PLD",
    "limits": ["It does not cover this report: keep it.", "Delta is a chance."],
}


def measured(name, model, value, unit="share", **more):
    return Measurement(
        name=name, model=model, value=value, interval=(value - 0.125, value + 0.125), n=40, unit=unit, counted="items",
        **more,
    )  # fmt: skip


FACTS = Facts(
    title="small, fine-tuned privately",
    name="small-private",
    model="private",
    control=False,
    kind="adapter",
    tags=["reticent"],
    base="somebody/small",
    base_id="somebody/small",
    license="apache-2.0",
    datasets=["somebody/cards"],
    guarantee=GUARANTEE,
    leaks=[],
    findings=[Finding("Secrets | said", "0 %", "test inconclusive (too few)")],
    measurements=[
        measured("perplexity", "base", 20.0, "perplexity"),
        measured("perplexity", "private", 12.5, "perplexity"),
        measured("perplexity[silo North]", "private", 11.0, "perplexity"),
        measured("accuracy[exam]", "private", 0.5, floor=0.25),
        measured("macro_f1[exam]", "private", 0.25, "score"),
        measured("accuracy[exam]", "twin", 0.75),
    ],
    data=[("trained on", "9 records")],
    training=[("steps", "4")],
    artefact=[("stored as", "float32")],
    provenance=[("python", "3.11")],
    load="model = 1",
    gguf=None,
)


def test_the_hub_reads_the_front_matter():
    found = ModelCard(card(FACTS)).data
    assert (found.base_model, found.library_name, found.license) == ("somebody/small", "peft", "apache-2.0")
    assert found.get("base_model_relation") == "adapter" and found.datasets == ["somebody/cards"]
    told = {(one.dataset_name, one.metric_type): one.metric_value for one in found.eval_results}
    assert told == {
        ("held-out records, private", "perplexity"): 12.5,
        ("exam", "accuracy"): 0.5,
        ("exam", "f1"): 0.25,
    }
    assert "95% interval" in found.eval_results[0].metric_name


def test_whole_weights_are_a_model_of_transformers():
    values = front_matter(replace(FACTS, kind="merged"))
    assert (values["library_name"], values["base_model_relation"]) == ("transformers", "finetune")


def test_what_is_not_known_is_left_out():
    values = front_matter(replace(FACTS, base_id=None, license=None, datasets=[], measurements=None))
    assert not values.keys() & {"base_model", "base_model_relation", "license", "datasets", "model-index"}


def test_the_evaluation_stands_beside_the_base_with_intervals_and_chance():
    text = card(FACTS)
    assert "| perplexity | 20 [19.9 to 20.1] | 12.5 [12.4 to 12.6] | 40 items |" in text
    assert "| accuracy, exam; chance 25.0 % |  | 50.0 % [37.5 % to 62.5 %] | 40 items |" in text
    assert "75.0" not in text  # the twin's


def test_no_institution_is_named():
    assert "North" not in card(FACTS)


def test_the_promise_and_its_limits_are_those_of_the_guarantee():
    text = card(FACTS)
    assert "**ε = 3 per owner**" in text and "| δ (delta) | 1e-5 |" in text and "| accountant | PLD |" in text
    assert "- Delta is a chance." in text and "this report" not in text


def test_a_promise_to_whole_sites_stands_beside_that_to_owners():
    clients = {**GUARANTEE, "epsilon": 5.0, "unit": "client"}
    text = card(replace(FACTS, guarantee={**GUARANTEE, "clients": clients}))
    assert text.index("ε = 3 per owner") < text.index("ε = 5 per whole site")


def test_leaks_come_first_and_within_a_promise_too():
    body = card(replace(FACTS, leaks=["secrets come out: leak demonstrated"])).split("---\n", 2)[2]
    first = body.index("**A leak was demonstrated.**")
    assert first < body.index("secrets come out") < body.index("A leak within the promise") < body.index("ε = 3 per")


@pytest.mark.parametrize("control", [True, False])
def test_without_a_promise_the_card_warns_before_all_else(control):
    body = card(replace(FACTS, guarantee=NOTHING, model="twin", control=control)).split("---\n", 2)[2]
    assert body.index("**No privacy guarantee.**") < body.index("A LoRA adapter for")
    assert "**None.** ε is unlimited." in body
    assert ("control of an audit" in body) == control


def test_no_audit_and_no_evaluation_are_said():
    text = card(replace(FACTS, findings=None, measurements=None))
    assert "**It was not audited.**" in text and "It was not evaluated." in text


def test_a_cell_cannot_break_the_table_or_become_markup():
    text = card(replace(FACTS, findings=[Finding("a | b\n<script>", "1", "x")]))
    assert "| a \\| b &lt;script> | 1 | x |" in text


def test_the_same_facts_give_the_same_card_and_its_front_matter_is_yaml():
    assert card(FACTS) == card(FACTS)
    assert yaml.safe_load(card(FACTS).split("---\n")[1]) == front_matter(FACTS)


@pytest.mark.parametrize("gguf", ["convert FOLDER", None])
def test_the_command_for_gguf_comes_with_a_warning(gguf):
    text = card(replace(FACTS, kind="merged", gguf=gguf))
    assert ("convert FOLDER" in text) == ("Evaluate and audit what you ship" in text) == (gguf is not None)
