import errno
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from reticent import recipe as recipes
from reticent.data import store
from reticent.data.record import Record
from reticent.errors import RunError
from reticent.measurement import Measurement
from reticent.recipe import DPSGD, Data, Recipe, Source
from reticent.run import STAGES, Run, default_folder

RECIPE = Recipe(data=Data(source="bundled/clinic"), privacy=DPSGD(epsilon=8))


def changed(**settings) -> Recipe:
    """RECIPE with one section replaced."""
    return recipes.from_dict(RECIPE.model_dump(mode="json") | settings)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(tmp_path / "run", RECIPE)


@pytest.fixture
def done(run) -> Run:
    """A run in which every stage left its outputs."""
    write(run, "train")
    run.model_folder("private").mkdir(parents=True)
    run.write_report("<html>", {})
    for stage in STAGES:
        run.write_measurements(stage, [])
        run.write_plots(stage, {"curve": [1]})
        run.finish(stage, {"stage": stage})
    return run


def write(run: Run, part: str, *rows: tuple[Record, str]) -> str:
    """Records with their units; returns the digest."""
    with run.writing(part) as folder:
        for record, unit in rows:
            table = store.to_table([record]).append_column("unit", [[unit]])
            folder.append(table.append_column("client", [[None]]))
    return folder.sha256


def stray(run: Run) -> list[str]:
    return [path.name for path in run.folder.rglob(".*") if path.name != ".lock"]


def test_default_folder_is_named_for_the_recipe():
    assert default_folder(Path("somewhere/my.yaml")) == Path("runs/my")


def test_open_reads_what_create_wrote(run):
    assert Run.open(run.folder).recipe == RECIPE
    assert Run.create(run.folder, RECIPE).recipe == RECIPE
    assert stray(run) == []


def test_another_recipe_is_refused_and_the_difference_named(run):
    run.finish("prepare", {})
    with pytest.raises(RunError, match=r"run of another recipe \(train.steps: 300 -> 7\); .*--run.*--again"):
        Run.create(run.folder, changed(train={"steps": 7}))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"data": {"source": "bundled/clinic", "seed": 1}}, []),
        ({"privacy": {"kind": "none"}}, []),
        ({"train": {"steps": 7}}, ["prepare"]),
        ({"audit": {"twin": False}}, ["prepare"]),
        ({"audit": {"exposure": False}}, ["prepare", "train"]),
        ({"evaluate": {"limit": 3}}, ["prepare", "train", "audit"]),
    ],
)
def test_again_with_another_recipe_forgets_what_the_change_touches(done, settings, kept):
    again = Run.create(done.folder, changed(**settings), again=True)
    assert Run.open(done.folder).recipe == again.recipe
    assert [stage for stage in STAGES if again.finished(stage)] == kept


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files and no run"):
        Run.create(tmp_path, RECIPE)
    with pytest.raises(RunError, match=r"is not a run folder: it has no recipe.yaml"):
        Run.open(tmp_path)


def test_a_recipe_edited_after_the_fact_is_refused(run):
    path = run.folder / "recipe.yaml"
    path.write_text(path.read_text().replace("steps: 300", "steps: 3"))
    with pytest.raises(RunError, match="is not the recipe that the run was made with"):
        Run.open(run.folder)


def test_finish_and_facts(run):
    assert not run.finished("train")
    with pytest.raises(RunError, match=r"train.json is missing; make it with: reticent run"):
        run.facts("train")
    run.finish("train", {"steps": 3})
    assert Run.open(run.folder).finished("train")
    assert run.facts("train") == {"steps": 3}


def test_forget_takes_a_stage_and_all_later_ones(done):
    done.forget("audit")
    assert [stage for stage in STAGES if done.finished(stage)] == ["prepare", "train"]
    assert done.model_folder("private").exists()
    assert not done.report_path.exists()
    assert done.read_plots("train") == {"curve": [1]}
    assert done.read_plots("audit") == {}
    done.forget("prepare")
    left = {path.name for path in done.folder.rglob("*") if path.is_file()}
    assert left == {"recipe.yaml", "provenance.json", ".lock"}


def test_records_come_back_with_their_units(run):
    question = Record(
        id="1", owner="a", prompt="p", completion="c", origin="clinic/coding", options=("b", "c"), answer=1
    )
    plain = Record(id="2", owner="b", prompt="", completion="é\n", origin="notes.jsonl")
    first = write(run, "train", (question, "u1"), (plain, "u2"))
    assert run.read_records("train") == [(question, "u1"), (plain, "u2")]
    assert run.read_records("train", {1}) == [(plain, "u2")]
    assert datasets.load_from_disk(run.folder / "data" / "train")[1]["completion"] == "é\n"
    assert write(run, "train", (plain, "u2")) != first
    assert run.read_records("train") == [(plain, "u2")]
    write(run, "held_out")
    assert run.read_records("held_out") == []
    assert stray(run) == []


def test_damaged_records_are_told_without_their_text(run):
    write(run, "train", (Record(id="1", owner="a", prompt="", completion="secret", origin="x"), "u"))
    next((run.folder / "data" / "train").glob("*.arrow")).write_bytes(b"secret")
    with pytest.raises(RunError, match=r"missing or damaged; redo it with: reticent prepare") as caught:
        run.read_records("train")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_missing_end_is_noticed(run):
    rows = [(Record(id=str(i), owner="a", prompt="", completion="text", origin="x"), "u") for i in range(2)]
    size = []
    for count in (1, 2):
        write(run, "train", *rows[:count])
        data = next((run.folder / "data" / "train").glob("*.arrow"))
        size.append(data.stat().st_size)
    end = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an Arrow stream
    data.write_bytes(data.read_bytes()[: size[0] - len(end)] + end)
    with pytest.raises(RunError, match="missing or damaged"):
        run.read_records("train")


def test_other_artefacts_come_back(run):
    measured = Measurement(
        name="exposure_bits", model="twin", value=6.5, interval=(5.0, 7.0), n=20, unit="bits", counted="secrets"
    )
    run.write_measurements("audit", [measured])
    run.write_canaries('{"é": 1}')
    run.write_manifest({"records": 3})
    run.write_report("<p>é", {"guarantee": None})
    assert run.read_measurements("audit") == run.read_measurements() == [measured]
    assert run.read_measurements("evaluate") == []
    assert run.read_canaries() == '{"é": 1}'
    assert run.read_manifest() == {"records": 3}
    assert (run.report_path.read_text(), run.read_report()) == ("<p>é", {"guarantee": None})


def test_damaged_json_is_told(run):
    run.write_manifest({})
    (run.folder / "data" / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest.json is damaged; redo everything with: reticent run"):
        run.read_manifest()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_and_leaves_the_old_file(run, monkeypatch):
    run.write_manifest({"records": 3})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*manifest.json: No space left on device; make room"):
        run.write_manifest({"records": 4})
    with pytest.raises(RunError, match=r"cannot write .*train: No space left on device"):
        write(run, "train")
    monkeypatch.undo()
    assert run.read_manifest() == {"records": 3}
    assert stray(run) == []


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*run: Not a directory"):
        Run.create(tmp_path / "file" / "run", RECIPE)


def test_replacing_keeps_the_old_folder_when_the_block_fails(run):
    target = run.model_folder("private")
    with run.replacing(target) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), run.replacing(target) as folder:
        (folder / "weights").write_text("new")
        raise KeyboardInterrupt
    assert (target / "weights").read_text() == "old"
    assert stray(run) == []


def test_only_one_process_works_in_a_folder(run):
    other = f"from pathlib import Path; from reticent import Run\nwith Run.open(Path({str(run.folder)!r})).lock(): pass"
    with run.lock():
        told = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True).stderr
        assert "another reticent process is working in" in told
    subprocess.run([sys.executable, "-c", other], check=True)


def test_lock_removes_what_a_killed_process_left(run):
    (run.folder / "models" / ".writing-abc").mkdir(parents=True)
    (run.folder / "models" / ".writing-abc" / "weights").write_text("half")
    with run.lock():
        assert stray(run) == []


def test_provenance_names_no_host_user_or_folder(run):
    told = run.read_provenance()
    assert told["recipe"] == recipes.digest(RECIPE)
    assert told["python"] == platform.python_version()
    assert {"torch", "transformers", "peft"} <= set(told["packages"])
    assert told["hardware"]["cores"] >= 1
    text = json.dumps(told)
    for private in (socket.gethostname(), str(Path.home()), str(run.folder), str(Path.cwd())):
        assert private not in text


def test_recipe_with_a_file_survives_the_folder(tmp_path):
    source = Source(path=str(tmp_path / "notes.jsonl"), text="note")
    asked = Recipe(data=Data(source=source), privacy=DPSGD(noise_multiplier=1))
    Run.create(tmp_path / "run", asked)
    assert Run.open(tmp_path / "run").recipe == asked
