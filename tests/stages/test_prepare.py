"""What a recipe's data section does to records, through the command line, on real files."""

import json
import re
from collections import Counter

import pytest

from reticent.data import canary
from reticent.stages.reading import read

SOURCE = {"path": "notes.jsonl", "prompt": "prompt", "completion": "completion", "owner": "owner"}
CANARIES = {"pairs": 4, "copies": 3, "candidates": 24, "digits": 2}


@pytest.fixture
def prepared(place):
    """Prepares with changes to the recipe's data section; returns the run."""

    def make(**changes):
        place.write_recipe(data={"source": SOURCE, "template": "plain", "canaries": CANARIES, **changes})
        place.call("prepare", "my.yaml")
        return place.run

    return make


def _texts(run, part="train"):
    return [record.completion for record, _ in run.read_records(part) if not record.origin.startswith("canary")]


def _lines(place, *rows):
    place.write_source("".join(json.dumps(row) + "\n" for row in rows))


def test_tokens_are_those_of_the_training_records(prepared):
    run = prepared(calibration=0.3)
    records, tokens = run.read_records("train"), list(run.read_tokens())
    assert [unit for _, unit in records] == [unit for unit, _, _ in tokens]
    for (record, _), (_, _, one) in zip(records, tokens, strict=True):
        learned = len(record.completion.encode()) + 1  # a token a byte, and the end of text
        assert int(one.trained.sum()) == learned
        assert len(one) == learned + len(record.prompt.encode()) + 1
    manifest = run.read_manifest()
    assert manifest["tokens"] == sum(len(one) for _, _, one in tokens)
    assert manifest["records"]["calibration"] == len(run.read_records("calibration")) > 0


def test_three_parts_share_no_owner(prepared):
    run = prepared(held_out=0.3, calibration=0.3)
    owners = [{record.owner for record, _ in run.read_records(part)} for part in ("train", "held_out", "calibration")]
    assert all(owners) and len(set.union(*owners)) == sum(map(len, owners))


def test_a_mixture_has_all_sources_and_owners_of_one_name_are_one(place, prepared):
    (place.folder / "more.csv").write_text(f"text,who\nsomething else,{place.records[0]['owner']}\nand this,nobody\n")
    more = {"path": "more.csv", "text": "text", "owner": "who"}
    run = prepared(source=[SOURCE, more], held_out=0.1)
    found = [(r.owner, unit) for part in ("train", "held_out") for r, unit in run.read_records(part)]
    assert {"something else", "and this"} <= {*_texts(run), *_texts(run, "held_out")}
    assert len({unit for owner, unit in found if owner == place.records[0]["owner"]}) == 1
    assert sum(owner == place.records[0]["owner"] for owner, _ in found) > 1


def test_sizes_and_caps_of_a_source(place):
    def count(**changes):
        place.write_recipe(data={"source": {**SOURCE, **changes}, "canaries": None})
        from reticent.recipe import load

        found = read(load(place.folder / "my.yaml"))
        ids = [one for _, table in found.corpus.tables() for one in table["id"].to_pylist()]
        owners = [one for _, table in found.corpus.tables() for one in table["owner"].to_pylist()]
        return ids, owners

    everything, _ = count()
    assert count(limit=20)[0] == everything[:20]
    drawn, owners = count(share=0.5)
    assert 8 < len(set(owners)) < 32 and drawn == count(share=0.5)[0]  # of 40: 4 sd
    assert [one for one in everything if one in drawn] == drawn
    assert sum(record["owner"] in owners for record in place.records) == len(drawn)
    _, owners = count(per_owner=1)
    assert max(Counter(owners).values()) == 1 and len(owners) == len({r["owner"] for r in place.records})


@pytest.mark.parametrize("style", ["tag", "mask", "redact", "pseudonym"])
def test_scrubbed_text_is_all_that_is_kept(place, prepared, style):
    rows = [
        {"prompt": "note", "completion": f"call 415-555-01{i:02d} or mail a{i}@example.org now", "owner": f"p{i}"}
        for i in range(60)
    ]
    _lines(place, *rows)
    run = prepared(scrub={"recognisers": ["clinical"], "style": style, "plants": 0})
    stored = b"".join(path.read_bytes() for path in place.run_folder.rglob("*") if path.is_file())
    assert not re.search(rb"a\d+@example" if style == "pseudonym" else rb"415-555-01\d\d|a\d+@example", stored)
    assert not {row["completion"] for row in rows} & set(_texts(run))
    shown = {"tag": "<PHONE_NUMBER>", "mask": "<MASK>", "redact": "call or", "pseudonym": "555-01"}[style]
    assert all(shown in text for text in _texts(run))
    assert run.read_manifest()["scrub"]["masks"] == {"PHONE_NUMBER": 60, "EMAIL_ADDRESS": 60}


def test_what_scrubbing_finds_of_planted_identifiers_is_measured_and_reported(place, prepared):
    run = prepared(scrub={"recognisers": ["clinical"], "plants": 64})
    (whole, *kinds) = run.read_measurements("prepare")
    assert whole.name == "planted_recall" and whole.model == "scrubber" and whole.n == 64
    assert sum(one.n for one in kinds) == 64
    place.call("run", "my.yaml")
    page = run.report_path.read_text()
    assert "What was redacted before training" in page and "iban code" in page
    assert not place.leaked(page)


def test_a_scrub_map_is_kept_only_if_asked_for_and_says_what_stands_for_what(place, prepared):
    from reticent.data.scrub_map import read_map

    rows = [{"prompt": "note", "completion": f"call 415-555-01{i:02d} now", "owner": f"p{i}"} for i in range(40)]
    _lines(place, *rows)
    scrub = {"recognisers": ["clinical"], "style": "pseudonym", "plants": 0}
    run = prepared(scrub=scrub)
    assert not run.scrub_map_path.exists()
    place.write_recipe(
        data={"source": SOURCE, "template": "plain", "canaries": None, "scrub": {**scrub, "map_key": "my.key"}}
    )
    place.call("prepare", "my.yaml", "--again")
    found = {row.original for row in read_map(run.scrub_map_path, place.folder / "my.key")}
    assert found == {f"415-555-01{i:02d}" for i in range(40)}
    assert b"415-555-01" not in run.scrub_map_path.read_bytes()


def test_people_whose_notes_differ_in_what_is_masked_alone_are_not_one_unit(place, prepared):
    rows = [{"prompt": "note", "completion": f"call 415-555-01{i:02d}", "owner": f"p{i}"} for i in range(40)]
    _lines(place, *rows, {"prompt": "note", "completion": "call 415-555-0107", "owner": "another"})
    run = prepared(scrub={"recognisers": ["clinical"], "plants": 0}, canaries=None)
    manifest = run.read_manifest()
    assert manifest["units"]["train"] + manifest["units"]["held_out"] == 40
    assert manifest["exact_duplicates"] == 1


def test_an_unknown_recogniser_is_refused(place):
    settings = ["-s", "data.scrub={recognisers: [nonsense]}"]
    place.refused("prepare", "my.yaml", *settings, match="nonsense")
    assert not place.run.finished("prepare")


@pytest.mark.parametrize(("action", "left"), [("drop", 0), ("count", 1)])
def test_records_that_hold_a_benchmark_are_dropped_or_counted(place, prepared, action, left):
    gold = " ".join(f"word{i}" for i in range(20))
    (place.folder / "tasks.jsonl").write_text(json.dumps({"question": {"text": gold}}) + "\n")
    _lines(place, *place.records, {"prompt": "x", "completion": f"It says: {gold.upper()}.", "owner": "new"})
    run = prepared(benchmarks={"files": ["tasks.jsonl"], "action": action})
    assert sum("WORD3" in text for part in ("train", "held_out") for text in _texts(run, part)) == left
    assert run.read_manifest()["benchmarks"]["records_with_one"] == 1


def test_copies_stay_in_their_unit_and_part(prepared):
    run = prepared(duplicate={"share": 0.3, "copies": 5})
    rows = [row for row in run.read_records("train") if not row[0].origin.startswith("canary")]
    times = Counter(record.completion for record, _ in rows)
    assert set(times.values()) == {1, 5}
    assert abs(sum(one == 5 for one in times.values()) - 0.3 * len(times)) < 4 * (0.21 * len(times)) ** 0.5
    assert len({(record.completion, unit) for record, unit in rows}) == len(times)
    assert not set(times) & set(_texts(run, "held_out"))
    tokens = Counter(unit for unit, _, _ in run.read_tokens())
    assert tokens == Counter(unit for _, unit in run.read_records("train"))


@pytest.mark.parametrize("kind", ["iid", "by-owner", "dirichlet"])
def test_no_owner_is_in_two_silos(place, prepared, kind):
    run = prepared(silos={"kind": kind, "clients": 3, "alpha": 5})
    import datasets

    rows = datasets.load_from_disk(str(place.run_folder / "data" / "train")).to_list()
    clients = {}
    for row in rows:
        clients.setdefault(row["unit"], set()).add(row["client"])
    assert all(len(held) == 1 for held in clients.values())
    assert set.union(*clients.values()) == {0, 1, 2}
    held = run.read_manifest()["silos"]["silos"]
    assert sum(silo["units"] for silo in held.values()) == len({u for u in clients if not u.startswith("canary")})
    assert run.read_plots("prepare")["silos"]["silos"] == held


def test_silos_that_the_records_name(place, prepared):
    homes = {owner: f"house {i % 3}" for i, owner in enumerate(sorted({r["owner"] for r in place.records}))}
    _lines(place, *({**record, "where": homes[record["owner"]]} for record in place.records))
    run = prepared(source={**SOURCE, "silo": "where"}, silos={"kind": "by-key"})
    assert list(run.read_manifest()["silos"]["silos"]) == ["house 0", "house 1", "house 2"]


def test_a_silo_left_empty_is_refused(place):
    settings = ["-s", "data.silos={kind: dirichlet, clients: 30, alpha: 0.01}"]
    place.refused("prepare", "my.yaml", *settings, match="alpha")


def test_levels_of_copies_and_families_of_members(place, prepared):
    families = {"fake-patient": 12, "rare-suffix": 12, "high-temperature": 10, "new-token": 10}
    run = prepared(canaries={"pairs": 6, "copies": [1, 4], "candidates": families, "digits": 2})
    found = canary.from_json(run.read_canaries())
    assert Counter(one.copies for one in found if one.role == "secret" and one.planted) == {1: 3, 4: 3}
    assert Counter(one.family for one in found if one.role == "member") == families
    tokens = {one.record.completion for one in found if one.family == "new-token"}
    assert len(tokens) == 10
    place.call("run", "my.yaml")
    names = {one.name for one in run.read_measurements("audit")}
    assert {"exposure_bits", "exposure_bits_1_copies", "membership_auc", "membership_auc_new_token"} <= names


def test_check_counts_what_prepare_will_make_and_samples_no_model(place, monkeypatch):
    from reticent.models import load

    settings = ["-s", "data.canaries={pairs: 3, candidates: {high-temperature: 8, new-token: 8}}"]
    monkeypatch.setattr(load, "load", None)
    told = place.call("check", "my.yaml", *settings, "-s", "audit.membership=false").stdout
    assert re.search(r"units +\d+ owners to train on", told)


def test_recognisers_that_fail_at_every_record_end_the_run_early(place, monkeypatch):
    from reticent.data import clinical

    asked = []

    def fail(text):
        asked.append(text)
        raise ValueError(text)

    rows = [{"prompt": "p", "completion": f"text {i}", "owner": f"o{i}"} for i in range(2000)]
    _lines(place, *rows)
    monkeypatch.setattr(clinical, "find", fail)
    settings = ["-s", "data.scrub={recognisers: [clinical], plants: 0}"]
    told = place.refused("prepare", "my.yaml", *settings, match="scrubbing failed at all of the first 100 records")
    assert "ValueError" in told and len(asked) < 600
    assert not place.run.scrub_map_path.exists()


def test_what_new_tokens_are_does_not_follow_from_the_data(place, prepared):
    asked = {"pairs": 1, "copies": 1, "candidates": {"new-token": 12}, "digits": 2}

    def tokens():
        run = prepared(canaries=asked, source={**SOURCE, "path": "notes.jsonl"})
        found = canary.from_json(run.read_canaries())
        return [one.record.completion for one in found if one.family == "new-token"]

    first = tokens()
    every = "".join(map(chr, range(33, 127)))
    _lines(place, *place.records, {"prompt": every, "completion": every, "owner": "one more"})
    import shutil

    shutil.rmtree(place.run_folder)
    assert tokens() == first
