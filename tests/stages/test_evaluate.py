"""Evaluation by the real command line: what is counted, groups, and that text stays beside the data."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from reticent import recipe as recipes
from reticent.data.record import Record
from reticent.errors import DataError
from reticent.measurement import Measurement
from reticent.models.language_model import CausalModel
from reticent.models.load import load_tokenizer
from reticent.progress import SILENT
from reticent.run import Run
from reticent.stages.evaluate import evaluate, silo_of
from reticent.stages.inputs import AnyModel, encoder, held_out, open_model
from reticent.stages.questions import PublicQuestions
from reticent.stages.report import report
from reticent.tokens import Tokens

_DATA = {
    "source": {"path": "notes.jsonl", "prompt": "prompt", "completion": "completion", "owner": "owner"},
    "template": "plain",
    "canaries": None,
}


def _own_source(place: Any, silos: Sequence[str]) -> dict[str, Any]:
    """The source of ``place`` with a silo for each owner, in turn."""
    owners = list(dict.fromkeys(record["owner"] for record in place.records))
    rows = [{**one, "silo": silos[owners.index(one["owner"]) % len(silos)]} for one in place.records]
    place.write_source("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": "notes.jsonl", "prompt": "prompt", "completion": "completion", "owner": "owner", "silo": "silo"}


def _prepared(place: Any, *, evaluate: dict[str, Any] | None = None, **data: Any) -> Run:
    """A run of a recipe without promise, with ``data``, and an adapter that was never trained much."""
    place.write_recipe(
        data={**_DATA, "held_out": 0.4, **data},
        privacy={"kind": "none"},
        train={"steps": 1, "batch_size": 8},
        evaluate=evaluate or {},
    )
    place.call("prepare", "my.yaml")
    place.call("train", "my.yaml")
    run: Run = place.run
    return run


def _evaluated(run: Run) -> dict[tuple[str, str], Measurement]:
    evaluate(run, SILENT)
    return {(one.model, one.name): one for one in run.read_measurements("evaluate")}


def _losses(run: Run, records: Sequence[Record]) -> list[np.ndarray]:
    encode = encoder(run.recipe, load_tokenizer(run.recipe.model.base))
    tokens = encode([(record.prompt, record.completion) for record in records]).tokens
    return [-score.logp.astype(np.float64) for score in open_model(run, "base").log_probs(tokens)]


def test_numbers_of_each_silo_are_those_of_its_records_alone(place: Any) -> None:
    run = _prepared(place, source=_own_source(place, ["north", "south"]))
    found = _evaluated(run)
    for silo in ("north", "south"):
        own = [record for record in held_out(run).records if record.silo == silo]
        losses = _losses(run, own)
        size = sum(len(record.completion.encode()) for record in own)
        assert found["base", f"perplexity[silo {silo}]"].value == pytest.approx(np.exp(np.concatenate(losses).mean()))
        bits = sum(float(one.sum()) for one in losses) / np.log(2)
        assert found["base", f"bits_per_byte[silo {silo}]"].value == pytest.approx(bits / size)
        assert found["base", f"perplexity[silo {silo}]"].n == len({record.owner for record in own})
    assert not any("[origin" in name for _, name in found)  # there is one origin


def test_all_numbers_are_those_of_the_definition(place: Any) -> None:
    run = _prepared(place, source=_own_source(place, ["north"]))
    found, records = _evaluated(run), held_out(run).records
    losses = _losses(run, records)
    assert found["base", "perplexity"].value == pytest.approx(np.exp(np.concatenate(losses).mean()))
    by_text = np.exp(np.mean([one.mean() for one in losses]))
    assert found["base", "perplexity_by_text"].value == pytest.approx(by_text)
    size = sum(len(record.completion.encode()) for record in records)
    bits = sum(float(one.sum()) for one in losses) / np.log(2)
    assert found["base", "bits_per_byte"].value == pytest.approx(bits / size)
    assert f"{size:,} bytes of UTF-8" in found["base", "bits_per_byte"].method
    assert not any("[" in name for _, name in found)  # one silo, one origin


def test_each_origin_has_numbers_of_its_own(place: Any) -> None:
    source = _own_source(place, ["north"])
    (place.folder / "more.jsonl").write_bytes((place.folder / "notes.jsonl").read_bytes().replace(b"b", b"y"))
    run = _prepared(
        place, source=[source, {**source, "path": "more.jsonl"}], silos={"kind": "by-origin"}, near_duplicates=None
    )
    found = _evaluated(run)
    for kind in ("silo", "origin"):
        names = [f"perplexity[{kind} {origin}]" for origin in ("more.jsonl", "notes.jsonl")]
        assert all(("twin", name) in found for name in names)
    assert "left_out" not in run.facts("evaluate")


def test_silos_that_are_drawn_have_no_held_out_records(place: Any) -> None:
    run = _prepared(place, source=_own_source(place, ["north", "south"]), silos={"kind": "by-owner", "clients": 2})
    assert not any("[silo" in name for _, name in _evaluated(run))
    assert "by-owner draws who goes where" in run.facts("evaluate")["left_out"][0]


def test_a_sensitive_origin_is_dealt_and_so_of_no_silo(place: Any) -> None:
    run = _prepared(place, source=_own_source(place, ["north", "south"]))
    silos = {"kind": "by-key", "sensitive": ["notes.jsonl"]}
    recipe = run.recipe.model_validate(
        {**run.recipe.model_dump(), "data": {**run.recipe.model_dump()["data"], "silos": silos}}
    )
    record = held_out(run).records[0]
    assert silo_of(record, run.recipe) in ("north", "south")
    assert silo_of(record, recipe) is None


def test_a_group_of_one_owner_shows_no_interval(place: Any) -> None:
    source = _own_source(place, ["north"])
    alone = held_out(_prepared(place, source=source)).owners[0]
    rows = [{**one, "silo": "alone" if one["owner"] == alone else "north"} for one in place.records]
    place.write_source("".join(json.dumps(row) + "\n" for row in rows))
    place.run.forget("prepare")
    found = _evaluated(_prepared(place, source=source))
    assert found["base", "perplexity[silo alone]"].interval is None
    assert found["base", "bits_per_byte[silo alone]"].interval is None
    assert found["base", "perplexity[silo north]"].interval is not None


def _asked(place: Any, lines: str, **questions: Any) -> dict[str, Any]:
    """The evaluation that asks only these questions."""
    (place.folder / "public.txt").write_text(lines)
    return {"perplexity": False, "choices": False, "questions": {"path": "public.txt", **questions}}


def test_a_public_question_is_set_as_the_records_of_a_named_set(place: Any) -> None:
    (place.folder / "cards.json").write_text(json.dumps([{"instruction": "", "input": "What?", "output": "Zorp."}] * 9))
    source = {"name": "medical-flashcards", "path": "cards.json", "template": "course"}
    place.write_recipe(data={"source": source, "template": "verbatim"}, evaluate=_asked(place, "Is zorp blen?"))
    run = Run.create(place.run_folder, recipes.load(place.folder / "my.yaml"))
    tokenizer = load_tokenizer(run.recipe.model.base)
    [prompt] = PublicQuestions(run, tokenizer, SILENT)._prompts
    assert tokenizer.decode(prompt).endswith("### Instruction:\nIs zorp blen?\n### Response:")


def test_every_model_answers_the_public_questions_greedily(place: Any) -> None:
    asked = _asked(place, "What is zorp?\nWhere is blen?\nWho asks?\n", limit=2, max_new_tokens=6)
    run = _prepared(place, evaluate=asked, template="verbatim")
    evaluate(run, SILENT)
    found = run.read_answers()
    assert all(found["answers"]["base"])
    assert found["questions"] == ["What is zorp?", "Where is blen?"]
    assert list(found["answers"]) == ["base", "twin"]
    tokenizer, model = load_tokenizer(run.recipe.model.base), LlamaForCausalLM.from_pretrained(place.model)
    for question, answer in zip(found["questions"], found["answers"]["base"], strict=True):
        said = ids = tokenizer.encode(question, add_special_tokens=True)
        for _ in range(6):
            with torch.no_grad():
                said = [*said, int(model(torch.tensor([said])).logits[0, -1].argmax())]
        assert answer == tokenizer.decode(said[len(ids) :], skip_special_tokens=True).strip()


def test_perplexity_is_told_with_and_without_the_echo_of_the_prompt(place: Any) -> None:
    run = _prepared(place, evaluate=_asked(place, "What is zorp?\n", max_new_tokens=5))
    evaluate(run, SILENT)
    tokenizer, model = load_tokenizer(run.recipe.model.base), open_model(run, "base")
    ids = np.array(tokenizer.encode("What is zorp?\n", add_special_tokens=True))
    loss = -model.log_probs([Tokens(ids, np.arange(len(ids)) > 0)])[0].logp
    echo = run.read_answers()["perplexity"]["base"][0]
    measured = next(one for one in run.read_measurements("evaluate") if one.model == "base")
    assert (measured.name, measured.value) == ("question_perplexity", pytest.approx(echo["prompt"]))
    assert echo["prompt"] == pytest.approx(np.exp(loss.mean()), rel=1e-4)
    together = (len(loss) * np.log(echo["prompt"]) + 5 * np.log(echo["answer"])) / (len(loss) + 5)
    assert echo["both"] == pytest.approx(np.exp(together), rel=1e-4)


def test_what_models_answer_stays_beside_the_data(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _prepared(place, evaluate=_asked(place, "What is zorp?\n"))
    tokenizer = load_tokenizer(str(place.model))
    said = iter([[np.array(tokenizer.encode(text))] for text in ("nothing", "zorp-lives-in-blen")])
    monkeypatch.setattr("reticent.models.generation.greedy", lambda *_, **__: next(said))
    evaluate(run, SILENT)
    report(run, SILENT)
    assert run.read_answers()["answers"] == {"base": ["nothing"], "twin": ["zorp-lives-in-blen"]}
    files = [path for path in place.folder.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"lives-in-blen" in path.read_bytes()] == ["answers.json"]


def test_a_question_without_text_is_named(place: Any) -> None:
    (place.folder / "public.jsonl").write_text('{"prompt": "What?"}\n{"prompt": " "}\n')
    run = _prepared(place, evaluate={"questions": {"path": "public.jsonl"}})
    with pytest.raises(DataError, match="question 2 has no text"):
        evaluate(run, SILENT)


def test_a_question_longer_than_the_context_is_named(place: Any) -> None:
    run = _prepared(place, evaluate=_asked(place, f"What?\n{'zorp ' * 250}\n"))
    with pytest.raises(DataError, match=r"question 2 and its answer may take 13\d\d tokens, and the model reads 1024"):
        evaluate(run, SILENT)


def _exam(place: Any, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    (place.folder / "exam.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [{"name": "letters", "path": "exam.jsonl"}]


def test_a_bad_examination_is_told_when_the_run_is_prepared(place: Any) -> None:
    exam = _exam(place, {"question": "Which?", "options": ["zorp", "blen"], "answer": 7})
    place.write_recipe(evaluate={"benchmarks": exam})
    told = place.call("prepare", "my.yaml", code=1).output
    assert "exam.jsonl:1: field 'answer'" in told
    assert not place.run_folder.joinpath("data").exists()


def _loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are loaded from now on."""
    loaded: list[str] = []

    def load(run: Run, name: AnyModel) -> CausalModel:
        loaded.append(name)
        return open_model(run, name)

    monkeypatch.setattr("reticent.stages.evaluate.open_model", load)
    return loaded


def test_all_is_asked_of_a_model_that_is_loaded_once(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [{"question": f"Which is {name}?", "options": ["zorp", "blen"], "answer": 0} for name in ("one", "two")]
    asked = _asked(place, "What is zorp?\n", max_new_tokens=2)
    run = _prepared(place, evaluate={**asked, "perplexity": True, "benchmarks": _exam(place, *questions)})
    loaded = _loads(monkeypatch)
    found = _evaluated(run)
    assert loaded == ["base", "twin"]
    names = {name for model, name in found if model == "twin"}
    assert {"perplexity", "bits_per_byte", "accuracy[letters]", "question_perplexity"} <= names
    assert run.read_plots("evaluate")["benchmarks"][0]["questions"] == 2
    assert list(run.benchmarks_folder.iterdir()) and run.read_answers()["answers"]["twin"]


def test_a_bad_examination_is_told_before_a_model_is_loaded(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    item = {"question": "Which?", "options": ["zorp", "blen"], "answer": 0}
    run = _prepared(place, evaluate={"benchmarks": _exam(place, item)})
    _exam(place, {**item, "answer": 7})  # worse than when it was prepared
    loaded = _loads(monkeypatch)
    with pytest.raises(DataError):
        evaluate(run, SILENT)
    assert loaded == []
