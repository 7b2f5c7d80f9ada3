"""What the models recite, on a tiny run."""

import dataclasses

import numpy as np
import pytest
import torch

from reticent.data import canary
from reticent.gradients.attention import use_segments
from reticent.models.load import load_tokenizer
from reticent.progress import SILENT
from reticent.recipe import Duplicate, Extraction
from reticent.run import Run
from reticent.stages import recitation
from reticent.stages.attacking import Audited, Texts
from reticent.stages.inputs import open_model

SETTINGS = Extraction(records=12, prefixes=(5, 12, 400), suffix=4, splits=3)


def _texts(run, part):
    planted = {one.id for one in canary.from_json(run.read_canaries())}
    rows = [(record, unit) for record, unit in run.read_records(part) if unit not in planted]
    return Texts([record for record, _ in rows], [unit for _, unit in rows])


def _audited(place, *, extraction=SETTINGS, duplicate=None, **changes):
    run = place.run
    audit = run.recipe.audit.model_copy(update={"extraction": extraction})
    data = run.recipe.data.model_copy(update={"duplicate": duplicate})
    run = Run(run.folder, run.recipe.model_copy(update={"audit": audit, "data": data}))
    canaries = canary.from_json(run.read_canaries())
    about = Audited(
        run=run,
        tokenizer=load_tokenizer(run.recipe.model.base),
        secrets=[one for one in canaries if one.role == "secret"],
        members=[one for one in canaries if one.role == "member"],
        trained=_texts(run, "train"),
        held_out=_texts(run, "held_out"),
        calibration=Texts([], []),
        progress=SILENT,
    )
    return dataclasses.replace(about, **changes)


def _measure(about, name="private", base=None):
    return recitation.recitation(about, name, open_model(about.run, name), base)


@pytest.fixture(scope="module")
def place(finished):
    return finished[0]


@pytest.fixture(scope="module")
def found(place):
    """State and findings of the base model, then of the twin and the private one."""
    about = _audited(place)
    state, base = _measure(about, "base")
    return {"base": base, **{name: _measure(about, name, state)[1] for name in ("twin", "private")}}


def _named(findings):
    return {one.name: one for one in findings.measurements}


def test_every_number_has_its_interval_count_and_control(found):
    for name, findings in found.items():
        assert len({one.name for one in findings.measurements}) == len(findings.measurements) > 10
        for one in findings.measurements:
            assert one.model == name and one.n > 0 and one.control is not None, one.name
            assert one.interval[0] <= one.value <= one.interval[1], one.name


def test_the_agreed_names_are_there(found):
    names = set(_named(found["private"]))
    assert names >= {f"identifiers_recited_{n}" for n in (1, 100, 10_000)}
    assert names >= {"records_recited", "records_recited_5", "records_recited_12", "records_recited_all_before"}
    assert names >= {"records_sampled_1", "records_sampled_100", "records_sampled_10000", "extraction_strength"}
    assert names >= {"tokens_recited", "suffix_bleu", "suffix_rouge_l", "suffix_edit_distance"}
    assert "records_recited_400" not in names
    assert not any(name.startswith("seed_") for name in names)


def test_what_cannot_be_answered_is_said_once(found):
    assert [one["why"] for one in found["base"].plots["unanswered"]] == [
        "no sampled training record is long enough for a prefix of 400 tokens and a suffix of 4 (audit.extraction)"
    ]
    assert "unanswered" not in found["twin"].plots


def test_the_plot_has_a_point_for_each_number_of_copies_and_the_control(found):
    points = found["private"].plots["extraction"]["private"]
    assert [point["copies"] for point in points] == [0, 3]
    assert all(point["low"] <= point["share"] <= point["high"] and point["n"] == 4 for point in points)


def test_two_digits_of_a_random_model_come_out_by_chance_within_many_attempts(found):
    named = _named(found["base"])
    assert named["identifiers_recited_1"].value == 0
    values = [named[f"identifiers_recited_{n}"].value for n in (1, 100, 10_000)]
    assert values == sorted(values)
    assert "needs 69" in named["identifiers_recited_100"].method
    assert [named[f"identifiers_recited_{n}"].floor for n in (1, 100, 10_000)] == [None, 1.0, 1.0]


def test_the_private_model_is_compared_with_the_twin(found):
    assert "McNemar" in _named(found["private"])["identifiers_recited_100"].method
    assert "McNemar" not in _named(found["base"])["identifiers_recited_100"].method


@pytest.fixture(scope="module")
def reciting(place):
    """What is measured on a model that learned some records and the planted secrets by heart."""
    about = _audited(place)
    about = dataclasses.replace(
        about,
        trained=Texts(about.trained.records[:6], about.trained.units[:6]),
        held_out=Texts(about.held_out.records[:6], about.held_out.units[:6]),
    )
    learned = [*about.encode(about.trained).tokens]
    learned += about.encode_answers([(c.record.prompt, c.record.completion) for c in about.secrets if c.planted])
    model = open_model(about.run, "base")
    _learn(model.model, learned)
    return _named(recitation.recitation(about, "twin", model, None)[1])


def _learn(model, records):
    """Trains all weights, without packing."""
    longest = max(map(len, records))
    ids, wanted = torch.zeros(len(records), longest, dtype=torch.long), torch.full((len(records), longest), -100)
    for row, record in enumerate(records):
        ids[row, : len(record)] = torch.from_numpy(record.ids)
        wanted[row, : len(record)] = torch.from_numpy(np.where(record.trained, record.ids, -100))
    model.set_attn_implementation("eager")
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        logits = model(input_ids=ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)
    use_segments(model)


def test_what_was_learned_by_heart_is_found_and_its_control_is_not(reciting):
    for name in ("identifiers_recited_1", "records_recited", "records_recited_all_before"):
        assert reciting[name].value >= 0.8, name
        assert reciting[name].interval[0] > reciting[name].control, name
    assert reciting["suffix_bleu"].value > 0.8 > 0.3 > reciting["suffix_bleu"].control
    assert reciting["suffix_edit_distance"].value < 0.2 < 0.5 < reciting["suffix_edit_distance"].control
    assert reciting["tokens_recited"].value > 0.95 > 0.5 > reciting["tokens_recited"].control


def test_a_number_that_nothing_reached_says_what_it_still_allows(found):
    assert "none of 4: at most 0.527" in _named(found["base"])["identifiers_recited_1"].method


def test_no_text_of_a_record_is_in_what_is_said(place, found):
    assert not place.leaked(repr(list(found.values())))


def test_the_same_run_is_measured_alike_again(place, found):
    assert _measure(_audited(place), "base")[1] == found["base"]


def test_without_secrets_and_held_out_records_this_is_said_and_the_rest_measured(place):
    about = _audited(place, secrets=[], held_out=Texts([], []))
    _, findings = _measure(about)
    told = [one["question"] for one in findings.plots["unanswered"]]
    assert set(told) == {"records_recited"}
    named = _named(findings)
    assert "identifiers_recited_1" not in named
    assert named["records_recited"].control is None and named["tokens_recited"].control is None


def test_without_training_records_only_secrets_are_measured(place):
    _, findings = _measure(_audited(place, trained=Texts([], [])))
    assert {one.counted for one in findings.measurements} == {"secrets"}
    assert findings.plots["unanswered"][0]["why"] == "no training record could be read as tokens"


def test_a_record_with_copies_counts_once(place):
    about = _audited(place)
    twice = Texts(about.trained.records[:4] * 3, about.trained.units[:4] * 3)
    state, _ = _measure(dataclasses.replace(about, trained=twice))
    assert state.trained.copies == [3] * 4 and len(state.trained.tokens) == 4


def _mixed(texts: Texts, short: int) -> Texts:
    """Some records that are shorter than a suffix of 40, and two that are not."""
    records = [
        dataclasses.replace(record, id=str(i), completion="ab" if i < short else record.completion * 3)
        for i, record in enumerate(texts.records[: short + 2])
    ]
    return Texts(records, texts.units[: short + 2])


def test_where_both_sides_have_records_with_a_whole_suffix_only_those_are_tried(place):
    about = _audited(place, extraction=Extraction(records=4, suffix=40))
    about = dataclasses.replace(about, trained=_mixed(about.trained, 9), held_out=_mixed(about.trained, 1))
    state, _ = _measure(about)
    for side in (state.trained, state.held_out):
        assert [int(tokens.trained.sum()) >= 40 for tokens in side.tokens] == [True, True]


def test_where_one_side_has_none_both_are_drawn_whatever_their_length(place):
    about = _audited(place, extraction=Extraction(records=4, suffix=40))
    state, _ = _measure(dataclasses.replace(about, trained=_mixed(about.trained, 9)))
    assert len(state.trained.tokens) == 4
    assert any(tokens.trained.sum() < 40 for tokens in state.trained.tokens)


def test_records_of_one_owner_widen_the_interval(place):
    about = _audited(place)
    hits, controls = np.array([True, True, False, False, False, False]), np.zeros(6, bool)

    case = recitation._Case(about, "twin", None, None)

    def width(units):
        low, high = case.share("records_recited", hits, units, controls, "x").interval
        return high - low

    assert width(["a", "a", "b", "b", "c", "c"]) > 0.5
    none = case.share("records_recited", controls, ["a", "a", "a", "b", "b", "b"], hits, "x")
    assert none.interval[1] > 0.7  # as of two trials, not six


def test_duplicated_data_show_the_published_scores_with_their_warning(place):
    long = Extraction(records=4, prefixes=(3, 5), suffix=4, splits=1)
    about = _audited(place, extraction=long, duplicate=Duplicate())
    records = [dataclasses.replace(one, completion=one.completion * 4) for one in about.trained.records[:3]]
    about = dataclasses.replace(about, trained=Texts(records * 2, about.trained.units[:3] * 2))
    named = _named(_measure(about)[1])
    for name in ("seed_frac_doc_exactly_memorized", "seed_frac_doc_approx_memorized", "seed_bleu_average"):
        assert named[name].value == 0 and "Misleading" in named[name].method


def test_each_sites_secrets_are_counted_by_themselves(place, monkeypatch):
    about = _audited(place)
    planted = [one for one in about.secrets if one.planted]
    rows = [(one.id, number % 2, None) for number, one in enumerate(planted)] + [(planted[0].id, 1, None)]
    monkeypatch.setattr(Run, "silos", lambda self: ["north", "south"])
    monkeypatch.setattr(Run, "read_tokens", lambda self: iter([*rows, ("someone", 0, None)]))
    named = _named(_measure(about)[1])
    assert named["identifiers_recited_100[site north]"].n == 2
    assert named["identifiers_recited_100[site south]"].n == 3
    assert named["identifiers_recited_100[site south]"].control == named["identifiers_recited_100"].control
