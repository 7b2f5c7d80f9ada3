"""lm-eval's tasks on the models of a run."""

import json
import random
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from reticent import recipe as recipes
from reticent.errors import DataError, RunError
from reticent.models.language_model import CausalModel
from reticent.models.load import load
from reticent.progress import SILENT
from reticent.stages import harness as stage
from reticent.stages.harness import harness, measurements
from reticent.statistics import wilson

pytest.importorskip("lm_eval")


@pytest.fixture
def tasks(place):
    """A folder with two tasks: questions with options, and texts."""
    folder, rng = place.folder / "tasks", random.Random(0)
    folder.mkdir()
    rows = [{"text": f"zim {n} torv", "options": rng.sample(["qua", "blen yost", "mib"], 3)} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "tasks/rows.jsonl"}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
    }
    choice = {
        "task": "invented-choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": 1,
    }
    rolling = {
        "task": "invented-text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    for task in (choice, rolling):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**both, **task}))
    return folder


@pytest.fixture
def ask(place, tasks, monkeypatch):
    """Ask a model of a run; all are the base model here."""
    monkeypatch.setattr(stage, "open_model", lambda run, name: CausalModel(load(run.recipe.model.base).model))
    run = SimpleNamespace(recipe=recipes.load(Path("my.yaml")))

    def call(*names, **changes):
        asked = {"model": "base", "shots": None, "limit": None, "include": tasks, "progress": SILENT, **changes}
        return harness(run, names, **asked)

    return call


def test_every_metric_of_every_task_is_measured_and_nothing_is_said(ask, capfd):
    state, numpy = random.getstate(), np.random.get_state()[1].tolist()
    found = ask("invented-choice", "invented-text", model="private")
    assert [one.name for one in found] == [
        "invented-choice acc",
        "invented-choice acc_norm",
        "invented-text bits_per_byte",
    ]
    assert {(one.model, one.n, one.counted) for one in found} == {("private", 12, "items")}
    right = found[0].value * 12
    assert right == pytest.approx(round(right)) and found[0].interval == wilson(round(right), 12)
    assert found[0].unit == "share" and found[2].unit == "bits_per_byte" and found[2].value > 1
    assert metadata.version("lm-eval") in found[0].method and "0 demonstrations" in found[0].method
    assert capfd.readouterr() == ("", "")
    assert random.getstate() == state and np.random.get_state()[1].tolist() == numpy


def test_limit_and_shots_are_kept_to(ask):
    (first, _) = ask("invented-choice", limit=5, shots=2)
    assert first.n == 5 and "2 demonstrations" in first.method


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"limit": 0}, RunError, "limit must be 1 or more, got 0"),
        ({"shots": -1}, RunError, "shots must be 0 or more, got -1"),
        ({"names": []}, RunError, "name a task"),
        ({"names": ["invented-other"]}, DataError, "no task invented-other"),
        ({"include": Path("nowhere")}, RunError, "nowhere is no folder"),
    ],
)
def test_what_cannot_be_asked_is_refused(ask, monkeypatch, changes, error, match):
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", __file__)  # lm-eval's own tasks: seconds
    names = changes.pop("names", ["invented-choice"])
    with pytest.raises(error, match=match):
        ask(*names, **changes)


def test_data_that_are_not_there_are_said_without_their_text(ask, tasks):
    (tasks / "rows.jsonl").write_text('{"text": "zim secret"\n')
    with pytest.raises(DataError, match="could not do invented-choice") as told:
        ask("invented-choice")
    assert "secret" not in str(told.value) and told.value.__cause__ is None


def test_a_missing_package_is_named(ask, monkeypatch):
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip install 'reticent\[lm-eval\]'"):
        ask("invented-choice")


def test_numbers_of_filters_groups_and_errors_are_read():
    found = {
        "results": {
            "zim": {"alias": "zim", "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1},
            "qua": {"f1,none": 0.4, "f1_stderr,none": 0.05, "bleu,none": 3.0, "bleu_stderr,none": "N/A"},
            "all": {"acc,none": 0.333, "acc_stderr,none": 0.01},
        },
        "n-samples": {"zim": {"effective": 4}, "qua": {"effective": 6}},
        "n-shot": {"zim": 3},
        "group_subtasks": {"all": ["zim", "qua"]},
    }
    strict, f1, bleu, whole = measurements(found, "twin")
    assert (strict.name, strict.n, strict.interval) == ("zim exact_match strict", 4, wilson(2, 4))
    assert f1.interval == pytest.approx((0.4 - 1.96 * 0.05, 0.4 + 1.96 * 0.05), abs=1e-5)
    assert bleu.interval is None and whole.n == 10 and whole.interval[0] == pytest.approx(0.333 - 0.0196, abs=1e-5)
