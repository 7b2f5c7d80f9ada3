"""Models of several runs side by side, from invented run folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from reticent import recipe as recipes
from reticent.errors import RunError
from reticent.measurement import Measurement
from reticent.reports.comparison import Cell, Comparison, Row, render
from reticent.run import Run
from reticent.stages.compare import compare
from reticent.statistics import mcnemar

_DP = {"kind": "dp-sgd", "noise_multiplier": 1.0}
_NONE = {"kind": "none"}


def _number(name: str, model: str, value: float, **more: Any) -> Measurement:
    told = {"interval": (value - 0.1, value + 0.1), "n": 9, "unit": "share", "counted": "held-out owners", **more}
    return Measurement(name=name, model=model, value=value, **told)


def _run(
    folder: Path,
    values: dict[str, float],
    *,
    epsilon: float | None = None,
    source: dict[str, Any] | None = None,
    answers: dict[str, str] | None = None,
    sha256: str = "a",
    failed: bool = False,
    perplexity: dict[str, Any] | None = None,
    **sections: Any,
) -> Run:
    """A run with perplexities ``values`` by model, and what each answers to one question."""
    data = {"source": {"path": "notes.jsonl", "text": "text", **(source or {})}, **sections.pop("data", {})}
    recipe = recipes.from_dict(
        {"data": data, "privacy": _NONE if epsilon is None else _DP, "model": {"base": "/models/zorp"}, **sections}
    )
    run = Run.create(folder, recipe)
    silos = {f"silo-{i + 1}": {} for i in range(3)} if "federation" in sections else {}
    run.write_manifest(
        {"records": {"train": 4, "held_out": 9}, "canaries": {"commitment": "c"}, "silos": {"silos": silos}}
    )
    run.finish("prepare", {})
    guarantee = {"epsilon": epsilon, "delta": 1e-5, "unit": "owner", "units": 4}
    run.finish("train", {} if epsilon is None else {"guarantee": guarantee})
    run.write_plots("audit", {"checks": [{"name": "noise", "passed": not failed}]})
    secrets = [_number("exposure_bits", model, 2.0, unit="bits", counted="secrets") for model in values]
    run.write_measurements("audit", secrets)
    run.write_measurements(
        "evaluate", [_number("perplexity", model, value, **(perplexity or {})) for model, value in values.items()]
    )
    if answers is not None:
        run.write_answers({"questions": ["Who?"], "answers": {model: [text] for model, text in answers.items()}})
    run.finish("evaluate", {"sha256": sha256})
    return run


def _items(run: Run, right: dict[str, str]) -> None:
    """What the models of a run answered to the benchmark "zorp": a letter for each item, y where it is right."""
    with run.replacing(run.benchmarks_folder) as folder, (folder / "zorp.jsonl").open("w") as file:
        for item in range(len(next(iter(right.values())))):
            choices = {model: {"letter": "A" if told[item] == "y" else None} for model, told in right.items()}
            file.write(json.dumps({"id": f"q{item}", "answer": "A", "choices": choices, "texts": {}}) + "\n")


def _row(found: Comparison, measure: str) -> Row:
    return next(row for row in found["rows"] if row["measure"] == measure)


def _cells(found: Comparison, measure: str) -> list[Cell]:
    return [cell for cell in _row(found, measure)["cells"] if cell is not None]


def test_columns_say_what_each_model_is(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "tenth", {"base": 9, "twin": 8}, source={"share": 0.1}),
        _run(tmp_path / "whole", {"base": 9, "twin": 7}),
        _run(
            tmp_path / "fed",
            {"base": 9, "twin": 7.5, "private": 8.5},
            epsilon=8.0,
            federation={},
            data={"silos": {"clients": 3}},
        ),
        _run(tmp_path / "alone", {"base": 9, "twin": 8}, federation={"only": "silo-2"}, data={"silos": {}}),
        _run(tmp_path / "few", {"base": 9, "twin": 8}, source={"limit": 1200}),
    ]
    columns = compare(runs)["columns"]
    assert [(column["run"], column["model"], column["what"]) for column in columns] == [
        ("tenth", "base", "base"),
        ("tenth", "twin", "centralised, 10 % of the data"),
        ("whole", "twin", "centralised"),
        ("fed", "twin", "federated, 3 sites"),
        ("fed", "private", "federated, 3 sites, private, epsilon 8"),
        ("alone", "twin", "silo-2 alone"),
        ("few", "twin", "centralised, at most 1,200 records"),
    ]
    assert columns[1]["facts"]["data"] == "notes.jsonl"
    assert columns[1]["facts"]["base_model"] == "zorp"


def test_a_row_has_a_cell_for_each_model(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "one", {"base": 9, "twin": 8}),
        _run(tmp_path / "two", {"base": 9, "twin": 7, "private": 8.5}, epsilon=3.0),
    ]
    found = compare(runs)
    assert [cell["value"] for cell in _cells(found, "perplexity")] == [9, 8, 7, 8.5]
    assert _cells(found, "perplexity")[1]["interval"] == pytest.approx([7.9, 8.1])
    assert [cell and cell["value"] for cell in _row(found, "epsilon")["cells"]] == [None, None, None, 3.0]
    assert [row["measure"] for row in found["rows"]] == ["epsilon", "perplexity", "exposure_bits"]


def test_each_base_model_has_its_own_column(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "one", {"base": 9, "twin": 8}),
        _run(tmp_path / "two", {"base": 5, "twin": 4}, model={"base": "/models/blen"}),
    ]
    found = compare(runs)
    assert [column["what"] for column in found["columns"]][:2] == ["base, zorp", "base, blen"]
    assert [cell["other"] for cell in _cells(found, "perplexity")] == ["", "other tokens", "", "other tokens"]


def test_what_rests_on_other_records_is_marked(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "one", {"base": 9, "twin": 8}),
        _run(tmp_path / "two", {"base": 9, "twin": 8}, sha256="b"),
        _run(tmp_path / "three", {"base": 9, "twin": 8}, perplexity={"n": 5}),
        _run(tmp_path / "four", {"base": 9, "twin": 8}),
    ]
    marks = [cell["other"] for cell in _cells(compare(runs), "perplexity")]
    assert marks == ["", "", "other records", "other records", ""]


def test_the_base_model_is_shown_on_the_records_of_the_others(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "one", {"base": 4, "twin": 8}, sha256="b"),
        _run(tmp_path / "two", {"base": 9, "twin": 8}),
        _run(tmp_path / "three", {"base": 9, "twin": 8}),
    ]
    cells = _cells(compare(runs), "perplexity")
    assert (cells[0]["value"], cells[0]["other"], cells[1]["other"]) == (9, "", "other records")


def test_secrets_are_other_secrets(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, {"base": 9, "twin": 8}) for name in ("one", "two")]
    manifest = runs[1].read_manifest()
    runs[1].write_manifest({**manifest, "canaries": {"commitment": "d"}})
    assert [cell["other"] for cell in _cells(compare(runs), "exposure_bits")] == ["", "", "other secrets"]


def test_measures_that_one_run_alone_has_are_left_out(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, {"base": 9, "twin": 8}) for name in ("one", "two")]
    own = [_number("accuracy", "twin", 0.5), _number("seed_bleu", "twin", 0.5)]
    runs[0].write_measurements("evaluate", own)
    assert [row["measure"] for row in compare(runs)["rows"]] == ["exposure_bits"]
    assert [row["measure"] for row in compare(runs[:1])["rows"]] == ["accuracy", "exposure_bits"]


def test_a_broken_promise_is_said_and_no_epsilon_is_shown(tmp_path: Path) -> None:
    run = _run(tmp_path / "one", {"base": 9, "twin": 8, "private": 8.5}, epsilon=3.0, failed=True)
    found = compare([run])
    assert found["columns"][2]["what"] == "centralised, private, promise not kept"
    assert found["columns"][2]["facts"]["promise"] == "broken: check noise failed"
    assert not any(row["measure"] == "epsilon" for row in found["rows"])


def test_answers_of_models_without_a_promise_are_withheld(tmp_path: Path) -> None:
    said = {"base": "b", "twin": "t", "private": "p"}
    runs = [
        _run(tmp_path / "kept", {"base": 9, "twin": 8, "private": 8}, epsilon=3.0, answers=said),
        _run(tmp_path / "broken", {"base": 9, "twin": 8, "private": 8}, epsilon=3.0, failed=True, answers=said),
        _run(tmp_path / "none", {"base": 9, "twin": 8}, answers={"base": "b", "twin": "t"}),
    ]
    assert compare(runs)["answers"] == [{"question": "Who?", "answers": ["b", None, "p", None, None, None]}]
    assert compare(runs, withheld=False)["answers"][0]["answers"] == ["b", "t", "p", "t", "p", "t"]


def test_models_are_paired_on_the_items_that_both_answered(tmp_path: Path) -> None:
    evaluate = {"benchmarks": [{"name": "zorp", "path": "zorp.jsonl"}]}
    runs = [_run(tmp_path / name, {"base": 9, "twin": 8}, evaluate=evaluate) for name in ("one", "two")]
    _items(runs[0], {"base": "nnnnnn", "twin": "yyyyyn"})
    _items(runs[1], {"base": "nnnnn", "twin": "nyyny"})
    pairs = {(pair["one"], pair["other"]): pair for pair in compare(runs)["paired"]}
    assert sorted(pairs) == [(0, 1), (0, 2), (1, 2)]
    assert (pairs[1, 2]["items"], pairs[1, 2]["only_one"], pairs[1, 2]["only_other"]) == (5, 2, 0)
    assert pairs[1, 2]["p_value"] == mcnemar(2, 0)
    assert pairs[0, 1]["only_other"] == 5


def test_accuracy_on_other_items_is_marked(tmp_path: Path) -> None:
    runs = []
    for name, shots in (("one", 0), ("two", 0), ("three", 2)):
        evaluate = {"benchmarks": [{"name": "zorp", "path": "zorp.jsonl", "shots": shots}]}
        runs.append(_run(tmp_path / name, {"base": 9, "twin": 8}, evaluate=evaluate))
        runs[-1].write_measurements("evaluate", [_number("accuracy[zorp]", "twin", 0.5)])
        _items(runs[-1], {"twin": "yyn" if name != "two" else "yynn", "base": "nnnn"})
    marks = [cell["other"] for cell in _cells(compare(runs), "accuracy[zorp]")]
    assert marks == ["", "other questions", "asked otherwise"]


def test_a_run_that_measured_nothing_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path / "one", {"base": 9, "twin": 8})
    run.forget("audit")
    with pytest.raises(RunError, match="one has nothing to compare yet"):
        compare([run])


def test_a_run_named_twice_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path / "one", {"base": 9, "twin": 8})
    with pytest.raises(RunError, match="one is named twice"):
        compare([run, run])


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [_run(tmp_path / parent / "my", {"base": 9, "twin": 8}) for parent in ("a", "b")]
    assert [column["run"] for column in compare(runs)["columns"]] == ["my (1)", "my (1)", "my (2)"]


def test_the_page_shows_what_is_compared_and_withholds_the_twin(tmp_path: Path) -> None:
    said = {"base": "from-base", "twin": "from-twin", "private": "from-private"}
    runs = [
        _run(tmp_path / "one", {"base": 9, "twin": 8, "private": 8}, epsilon=3.0, answers=said),
        _run(tmp_path / "two", {"base": 9, "twin": 8}),
    ]
    page = render(compare(runs))
    assert "private, epsilon 3" in page and "from-private" in page and "from-base" in page
    assert "from-twin" not in page
