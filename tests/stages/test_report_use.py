"""What the report takes from benchmarks, public questions and synthetic text: never what an unpromised model wrote."""

import json
from pathlib import Path
from typing import Any

import pytest

from reticent import recipe as recipes
from reticent.measurement import Measurement
from reticent.reports.render import render
from reticent.reports.schema import validate
from reticent.run import Run
from reticent.stages.report import contents, findings

_GUARANTEE = {"epsilon": 3.0, "delta": 1e-5, "unit": "owner"}
_EXAM = {"name": "pubmedqa", "questions": 50, "scorer": "letter", "shots": 0, "contaminated": 4}
_MADE = {
    "funnel": {"sampled": 9, "unfinished": 7, "kept": 2},
    "lengths": {"real": [[0, 1.0]], "synthetic": [[0, 1.0]]},
    "samples": ["a written note"],
    "guarantee": _GUARANTEE,
}


def _run(folder: Path, guarantee: dict[str, Any] = _GUARANTEE, failed: bool = False) -> Run:
    """A run whose numbers are invented, with answers of three models."""
    recipe = recipes.from_dict(
        {"data": {"source": "bundled/clinic"}, "privacy": {"kind": "dp-sgd", "epsilon": 3.0, "delta": 1e-5}}
    )
    run = Run.create(folder / "run", recipe)
    run.write_manifest({"canaries": {"commitment": "00"}, "units": {"train": 5}, "sha256": {}})
    for model in ("private", "twin"):
        run.log_path(model).write_text("")
    run.finish("prepare", {})
    run.finish("train", {"guarantee": guarantee})
    check = {"name": "noise scale", "passed": not failed, "measured": 1.0, "bound": 1.0}
    run.write_plots("audit", {"checks": [check]})
    answers = {model: [f"what {model} said"] for model in ("base", "twin", "private")}
    run.write_answers({"questions": ["What is rest?"], "answers": answers, "perplexity": {}})
    run.write_plots("evaluate", {"benchmarks": [{**_EXAM, "unknown": ["what is not for the page"]}]})
    run.write_plots("synthesize", _MADE)
    run.finish("synthesize", {})
    return run


def _told(run: Run) -> str:
    """All that leaves the run's folder."""
    values = contents(run)
    validate(values)
    return render(values) + json.dumps(values)  # type: ignore[arg-type]  # just validated


def test_the_twins_answers_never_leave_the_run(tmp_path: Path) -> None:
    told = _told(_run(tmp_path))
    assert "what twin said" not in told
    assert "what base said" in told
    assert "what private said" in told
    assert "What the non-private twin answered is withheld" in told


def test_without_a_promise_only_the_base_model_is_quoted(tmp_path: Path) -> None:
    told = _told(_run(tmp_path, {"epsilon": None}))
    assert "what private said" not in told
    assert "what base said" in told


def test_a_failed_check_withholds_answers_and_samples(tmp_path: Path) -> None:
    told = _told(_run(tmp_path, failed=True))
    assert "what private said" not in told
    assert "a written note" not in told
    assert "Do not give it away" in told


def test_samples_of_a_private_model_are_shown(tmp_path: Path) -> None:
    assert "a written note" in _told(_run(tmp_path))


def test_what_the_page_has_no_place_for_stays_in_the_run(tmp_path: Path) -> None:
    assert "what is not for the page" not in _told(_run(tmp_path))


def test_page_one_marks_a_contaminated_benchmark(tmp_path: Path) -> None:
    run = _run(tmp_path)
    score = Measurement(
        name="accuracy[pubmedqa]",
        model="private",
        value=0.5,
        interval=(0.4, 0.6),
        n=50,
        unit="share",
        counted="questions",
    )
    run.write_measurements("evaluate", [score])
    (line,) = [line for line in findings(run) if "PubMedQA" in line.text]
    assert line.note.startswith("4 of 50 items stand in the training data; the score is not evidence.")


def test_synthetic_text_that_is_not_finished_is_not_told(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run.forget("synthesize")
    assert "synthetic" not in contents(run)["plots"]


@pytest.mark.parametrize("stage", ["evaluate", "synthesize"])
def test_a_run_without_it_has_no_empty_parts(tmp_path: Path, stage: str) -> None:
    run = _run(tmp_path)
    run.forget(stage)
    page = render(contents(run))  # type: ignore[arg-type]  # plain values
    assert "<h2>Synthetic text</h2>" not in page
    assert ("<h2>Usefulness</h2>" in page) == (stage == "synthesize")
