"""reticent data: what is known by name, and the score of scrubbing."""

import json

import pytest

from reticent.data import catalog


def test_list_names_every_data_set(place):
    told = place.call("data", "list").stdout
    assert [line.split()[0] for line in told.splitlines()] == catalog.names()


@pytest.mark.parametrize("name", ["medical-flashcards", "i2b2-2014"])
def test_show_tells_where_a_data_set_is_and_whose_text_it_is(place, name):
    told = place.call("data", "show", name).stdout
    assert all(f"\n{label}" in f"\n{told}" for label in ("licence", "access", "owner", "template verbatim"))


def test_show_names_what_may_have_been_meant(place):
    place.refused("data", "show", "medmqa", match="there is no data set called 'medmqa'; did you mean medmcqa")


def test_a_set_that_needs_an_agreement_says_where_to_ask(place):
    place.refused("check", "my.yaml", "-s", "data.source={name: i2b2-2014}", match="agreement")


def test_a_named_set_is_read_from_a_local_copy(place):
    rows = [{"instruction": "Answer.", "input": f"What is {i}?", "output": f"It is number {i}."} for i in range(60)]
    (place.folder / "cards.json").write_text(json.dumps(rows))
    source = "data.source={name: medical-flashcards, path: cards.json}"
    place.call("prepare", "my.yaml", "-s", source, "-s", "data.template=verbatim", "-s", "privacy.unit=record")
    texts = {f"{record.prompt}{record.completion}" for record, _ in place.run.read_records("train")}
    assert "Open Question: What is 3?\nThe answer is: It is number 3.\n" in texts


def test_scrub_score_tells_what_is_found_and_what_is_missed(place):
    rows = [{"id": str(i), "text": f"Call 415-555-01{i:02d} or ask bcdf.", "spans": []} for i in range(20)]
    for i, row in enumerate(rows):
        row["spans"] = [{"start": 5, "end": 17, "entity": "PHONE_NUMBER", "identifier": "direct"}]
        if i % 2:
            row["spans"].append({"start": 25, "end": 29, "entity": "PERSON", "identifier": "direct"})
    (place.folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = place.call("data", "scrub-score", "gold.jsonl", "--recognisers", "clinical").stdout
    lines = {line.split()[1]: line for line in told.splitlines() if line.strip().startswith("clinical")}
    assert " 50.00%" in lines["leak_through"] and "20 documents" in lines["leak_through"]
    assert " 66.67%" in lines["direct_entity_recall"] and "30 entities" in lines["direct_entity_recall"]


def test_scrub_score_of_a_wrong_file_or_recogniser_is_refused(place):
    place.refused("data", "scrub-score", "notes.jsonl", match="notes.jsonl: not a form of labelled text")
    (place.folder / "gold.jsonl").write_text('{"prompt": "a ", "target": "b"}\n')
    place.refused("data", "scrub-score", "gold.jsonl", "--recognisers", "nonsense", match="nonsense")
    place.refused("data", "scrub-score", "nowhere.jsonl", match="nowhere.jsonl")


def test_scrub_score_knows_generated_notes(place, monkeypatch):
    from reticent.stages import scrub_score

    monkeypatch.setattr(scrub_score, "NOTES", 60)
    told = place.call("data", "scrub-score", "bundled/clinic", "--recognisers", "clinical").stdout
    assert "60 documents" in told
