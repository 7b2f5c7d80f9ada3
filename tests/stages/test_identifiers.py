"""Identifiers in the audit: models that know everything or nothing, and what must not be asked or shown."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reticent import recipe as recipes
from reticent.attacks import pii
from reticent.data import canary
from reticent.data.record import Record
from reticent.measurement import Measurement
from reticent.models import generation
from reticent.models.language_model import TokenScores
from reticent.models.load import load_tokenizer
from reticent.progress import SILENT
from reticent.run import Run
from reticent.stages import identifiers as stage
from reticent.stages.attacking import Audited, Findings, Texts
from reticent.stages.inputs import open_model
from reticent.tokens import Tokens

NAMES = ("Ann", "Bo", "Cy", "Dee", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo")


def _texts(part: str, units: int, seed: int) -> Texts:
    """Two records of each unit, with a phone number and a record number that stand nowhere else."""
    rng = np.random.default_rng(seed)
    records = [
        Record(
            id=f"{part}-{unit}-{i}",
            owner=f"{part}-{unit}",
            prompt=f"Note {part} {unit} {i}?",
            completion=f"{NAMES[unit % 10]} left. MRN: {rng.integers(10**7, 10**8)}. "
            f"Call 202-555-{rng.integers(10**4):04d}.",
            origin="test",
        )
        for unit in range(units)
        for i in range(2)
    ]
    return Texts(records, [record.owner for record in records])


@pytest.fixture
def about(place: Any, request: pytest.FixtureRequest) -> Audited:
    """What the attacks are given, as if a model had been trained on it. Sections of the recipe by parameter."""
    place.write_recipe(**getattr(request, "param", {}))
    run = Run.create(place.run_folder, recipes.load(place.folder / "my.yaml"))
    secrets = canary.make(pairs=8, copies=(5, 1), candidates=0, digits=3, seed=3)
    return Audited(
        run=run,
        tokenizer=load_tokenizer(run.recipe.model.base),
        secrets=secrets,
        members=[],
        trained=_texts("in", 16, 1),
        held_out=_texts("out", 14, 2),
        calibration=Texts([], []),
        progress=SILENT,
    )


class Knowing:
    """Gives log-probability 0 to what begins a text that it knows, and little to all else."""

    def __init__(self, about: Audited, known: Sequence[Record]) -> None:
        self._tokenizer = about.tokenizer
        self._known = [
            one.ids.tolist() for one in about.encode_answers([(one.prompt, one.completion) for one in known])
        ]
        self._rng = np.random.default_rng(5)

    def log_probs(self, records: Sequence[Tokens], progress: Any = SILENT) -> list[TokenScores]:
        return [self._scores(one) for one in records]

    def _scores(self, one: Tokens) -> TokenScores:
        ids, count = one.ids.tolist(), int(one.trained.sum())
        known = any(text[: len(ids)] == ids for text in self._known)
        logp = np.zeros(count) if known else self._rng.uniform(-2, -1, count)
        return TokenScores(logp.astype(np.float32), np.full(count, known))


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models write nothing."""
    monkeypatch.setattr(generation, "sample", lambda model, prompts, **_: [np.zeros(0, np.int64) for _ in prompts])


def _ask(about: Audited, base: Any, target: Any) -> tuple[dict[str, Measurement], Findings, stage.State]:
    """Measurements of ``target`` as the twin, beside those of ``base``; everything, and the last state."""
    state, first = stage.identifiers(about, "base", base, None)
    state, second = stage.identifiers(about, "twin", target, state)
    plots = {key: [value, first.plots.get(key)] for key, value in second.plots.items()}
    both = Findings([*first.measurements, *second.measurements], plots)
    return {one.name: one for one in second.measurements}, both, state


def _planted(about: Audited) -> list[Record]:
    return [secret.record for secret in about.secrets if secret.planted]


# --------------------------------------------------------------------------------------------------- planted codes


def test_a_model_that_knows_the_planted_codes_fills_them_in_and_not_their_twins(about: Audited, silent: None) -> None:
    found, _, _ = _ask(about, Knowing(about, []), Knowing(about, _planted(about)))
    for name in ("identifier_filled_in", "identifier_filled_in_1_copies", "identifier_filled_in_calibrated"):
        one = found[name]
        assert (one.value, one.n, one.counted, one.model) == (1.0, 4, "secrets", "twin")
        assert one.floor == 0.01 and one.control is not None and one.control < 0.5
        assert one.p_value == pytest.approx(0.01**4)
        assert one.interval is not None and one.interval[1] == 1.0 and 0.3 < one.interval[0] < 0.5


def test_the_base_model_has_no_calibrated_number(about: Audited, silent: None) -> None:
    _, both, _ = _ask(about, Knowing(about, []), Knowing(about, []))
    assert not [one for one in both.measurements if one.model == "base" and "calibrated" in one.name]
    assert [one.name for one in both.measurements if one.name == "identifier_filled_in"] == ["identifier_filled_in"] * 2


def test_all_models_choose_among_the_same_candidates(about: Audited, silent: None) -> None:
    state, _ = stage.identifiers(about, "base", Knowing(about, []), None)
    again, _ = stage.identifiers(about, "base", Knowing(about, []), None)
    later, _ = stage.identifiers(about, "twin", Knowing(about, []), state)
    assert state.material.secrets == again.material.secrets == later.material.secrets
    assert [item.candidates for item in state.material.items] == [item.candidates for item in again.material.items]
    for secret, own in zip(about.secrets, state.material.secrets, strict=True):
        assert len(set(own)) == 100 and secret.record.completion in own


# ------------------------------------------------------------------------------------- identifiers of real records


def test_a_model_that_knows_the_records_guesses_their_identifiers_and_no_others(about: Audited, silent: None) -> None:
    found, both, _ = _ask(about, Knowing(about, []), Knowing(about, about.trained.records))
    for name in ("pii_inference", "pii_inference_calibrated"):
        assert (found[name].value, found[name].n, found[name].counted) == (1.0, 16, "identifiers")
        assert found[name].control is not None and found[name].control < 0.4
        assert found[name].p_value is not None and found[name].p_value < 1e-3
    base = next(one for one in both.measurements if one.name == "pii_inference" and one.model == "base")
    assert base.value < 0.4 and base.p_value is None


def test_p_values_of_single_kinds_are_corrected_for_their_number() -> None:
    def one(name: str, p: float | None) -> Measurement:
        return Measurement(
            name=name, model="twin", value=1, interval=None, n=9, unit="share", counted="identifiers", p_value=p
        )

    plain, first, second, none = stage._corrected(
        [one("x", 0.01), one("x[ID]", 0.01), one("x[DATE]", 0.04), one("y[ID]", None)]
    )
    assert [m.p_value for m in (plain, first, second, none)] == [0.01, 0.02, 0.04, None]
    assert "for 2 by Holm" in first.method and "Holm" not in plain.method + none.method


@pytest.mark.parametrize("about", [{"audit": {"identifiers": {"samples": 16, "tokens": 16}}}], indirect=True)
def test_the_same_model_twice_gains_nothing(about: Audited) -> None:
    """The whole path with a real, untrained model: sampling, scoring, ranking."""
    model = open_model(about.run, "base")
    found, both, state = _ask(about, model, model)
    base = {one.name: one for one in both.measurements if one.model == "base"}
    assert found["pii_inference"].value == base["pii_inference"].value
    assert found["pii_inference"].p_value == found["pii_reconstruction"].p_value == 1.0
    assert found["pii_inference_calibrated"].value == 0.0  # all tied, and ties count against the attacker
    assert "pii_extraction_precision" not in found  # what the base model says too is public
    assert len(state.said) == 16


def test_one_item_of_each_unit_and_its_truth_stands_once(about: Audited, silent: None) -> None:
    state, _ = stage.identifiers(about, "base", Knowing(about, []), None)
    items = state.material.items
    assert len({item.record.owner for item in items}) == len(items) == 16
    assert {item.record.owner for item in state.material.controls} == {f"out-{i}" for i in range(14)}
    for item in items:
        assert item.record.completion.count(item.truth) == 1 and item.candidates.count(item.truth) == 1
        assert not any(other in item.record.completion for other in item.candidates if other != item.truth)
        assert item.span.entity in ("MEDICAL_RECORD", "PHONE_NUMBER")


def test_only_what_is_behind_the_candidates_beginning_is_scored_and_the_ranking_is_that_of_the_whole(
    about: Audited,
) -> None:
    model = open_model(about.run, "base")
    texts = [f"Call {number} no" for number in ("12", "123", "19999", "2")]
    whole = about.encode_answers([("Who?", text) for text in texts])
    parts = pii.differing([tokens.ids for tokens in whole])
    one, other = ([float(s.logp.sum()) for s in model.log_probs(tokens)] for tokens in (whole, parts))
    differences = np.array(one) - np.array(other)
    assert np.ptp(differences) == pytest.approx(0, abs=1e-3) and differences[0] < -1
    assert [int(tokens.trained.sum()) for tokens in parts] == [6, 7, 9, 5]  # " no" and the end of text count


def _saying(about: Audited, say: Callable[[str], str]) -> Callable[..., list[np.ndarray]]:
    """A sampler that answers a prompt's text."""

    def sample(model: Any, prompts: Sequence[np.ndarray], **_: Any) -> list[np.ndarray]:
        said = [say(about.tokenizer.decode(prompt.tolist())) for prompt in prompts]
        return [np.array(about.tokenizer.encode(text, add_special_tokens=False), dtype=np.int64) for text in said]

    return sample


def test_what_the_model_proposes_itself_is_reconstructed(about: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    known = about.trained.records

    def say(prompt: str) -> str:
        left = prompt[-16:]
        return next((r.completion.partition(left)[2] for r in known if left in r.completion), " nothing")

    monkeypatch.setattr(generation, "sample", _saying(about, say))
    found, _, _ = _ask(about, Knowing(about, []), Knowing(about, known))
    # Where the last characters stand in one record only, its own number is said; the other items are missed.
    one = found["pii_reconstruction"]
    assert one.n == 16 and 0.4 < one.value <= 1.0 and one.control == 0.0


def test_what_a_model_writes_is_counted_without_what_the_base_model_writes(
    about: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [record.completion for record in about.trained.records[:6]]
    turn = iter(range(10**6))
    public, leak = said[:1], said

    def write(texts: Sequence[str]) -> Callable[..., list[np.ndarray]]:
        return _saying(about, lambda prompt: texts[next(turn) % len(texts)])

    monkeypatch.setattr(generation, "sample", write(public))
    state, _ = stage.identifiers(about, "base", Knowing(about, []), None)
    monkeypatch.setattr(generation, "sample", write(leak))
    state, found = stage.identifiers(about, "twin", Knowing(about, []), state)
    measured = {one.name: one for one in found.measurements}
    assert (measured["pii_extraction_precision"].value, measured["pii_extraction_precision"].n) == (1.0, 10)
    assert measured["pii_extraction_recall"].value == 10 / 64 and measured["pii_extraction_recall"].n == 64
    assert measured["pii_extraction_recall"].control == 0.0
    assert measured["pii_extraction_recall[PHONE_NUMBER]"].value == 5 / 32
    assert found.private == []  # neither addresses nor links


def test_no_text_of_a_record_is_in_what_is_reported(about: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(record.completion for record in about.trained.records * 100)
    monkeypatch.setattr(generation, "sample", _saying(about, lambda prompt: next(said)))
    _, both, _ = _ask(about, Knowing(about, []), Knowing(about, about.trained.records))
    shown = json.dumps([[one.to_dict() for one in both.measurements], both.plots])
    for record in [*about.trained.records, *about.held_out.records]:
        _, _, number, *_ = record.completion.split()
        assert number.strip(".") not in shown and record.completion.split()[-1].strip(".") not in shown


def _mails(part: str, units: int) -> Texts:
    """One mail of each unit, with its sender's name and address, as plain text."""
    first = {"in": "Zed", "out": "Wu"}[part]
    records = [
        Record(
            id=f"{part}-{unit}",
            owner=f"{part}-{unit}",
            prompt="",
            completion=f"Subject: hello\nFrom: {NAMES[unit % 10]}{unit} {first} "
            f"<{part}{unit}@{first}{unit}.example>\n\nSee you.",
            origin="test",
        )
        for unit in range(units)
    ]
    return Texts(records, [record.owner for record in records])


def test_a_model_that_knows_the_mails_says_their_addresses_from_context_and_from_names(
    about: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    mails = replace(about, trained=_mails("in", 12), held_out=_mails("out", 14))
    monkeypatch.setattr(generation, "sample", lambda model, prompts, **_: [np.zeros(0, np.int64) for _ in prompts])
    state, _ = stage.identifiers(mails, "base", Knowing(mails, []), None)

    def say(prompt: str) -> str:
        last = " ".join(prompt.splitlines()[-2:])
        asked = [r.completion for r in mails.trained.records if " ".join(r.completion.split()[3:5]) in last]
        return asked[0].partition("<")[2].partition(">")[0].upper() if asked else "nobody"

    monkeypatch.setattr(generation, "sample", _saying(mails, say))
    _, found = stage.identifiers(mails, "twin", Knowing(mails, []), state)
    measured = {one.name: one for one in found.measurements}
    for name, controls in (("mail_addresses_said[context]", 14), ("mail_addresses_said[names]", 11)):
        kind = name.partition("[")[2].strip("]")
        assert (measured[name].value, measured[name].control, measured[name].n) == (1.0, 0.0, 12)
        assert measured[name].p_value is not None and measured[name].p_value < 1e-3
        assert len(state.material.mails[kind].controls) == controls
    shown = json.dumps([[one.to_dict() for one in found.measurements], found.plots])
    assert "@" not in shown and "Zed" not in shown


def test_what_was_written_is_listed_for_a_private_file(about: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    mails = replace(about, trained=_mails("in", 12), held_out=_mails("out", 14))
    monkeypatch.setattr(
        generation, "sample", _saying(mails, lambda prompt: "I am in3@zed3.example. https://a.example/x")
    )
    _, found = stage.identifiers(mails, "base", Knowing(mails, []), None)
    assert [(one["kind"], one["text"], one["times"], one["in_training"]) for one in found.private] == [
        ("EMAIL_ADDRESS", "in3@zed3.example", 64, 1),
        ("URL", "https://a.example/x", 64, 0),
    ]


# ------------------------------------------------------------------------------------------------- what is not asked


def test_too_few_identifiers_are_no_number_but_told(about: Audited, silent: None) -> None:
    few = Texts(about.trained.records[:6], about.trained.units[:6])
    found, both, _ = _ask(replace(about, trained=few), Knowing(about, []), Knowing(about, []))
    assert "identifier_filled_in" in found
    assert not [name for name in found if name.startswith(("pii_inference", "pii_reconstruction"))]
    later, first = both.plots["unanswered"]
    assert later == [] and len(first) == 1
    assert first[0]["question"].startswith("Can a missing identifier") and "3 units" in first[0]["why"]


def test_scrubbed_text_is_not_attacked_for_its_tags(about: Audited, silent: None) -> None:
    recipe = about.recipe
    scrubbed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"scrub": recipes.Scrub()})})
    run = Run(about.run.folder, scrubbed)
    found, both, _ = _ask(replace(about, run=run), Knowing(about, []), Knowing(about, []))
    assert {name for name in found if not name.startswith("identifier_filled_in")} == set()
    assert "scrubbed" in both.plots["unanswered"][1][0]["why"]


def test_without_records_and_secrets_there_is_no_number(about: Audited, silent: None) -> None:
    none = replace(about, secrets=[], trained=Texts([], []), held_out=Texts([], []))
    found, both, _ = _ask(none, Knowing(about, []), Knowing(about, []))
    assert found == {} and len(both.plots["unanswered"][1]) == 2
