"""Benchmarks put to models: against one option at a time without sharing, and what is written of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from reticent import recipe as recipes
from reticent.errors import DataError
from reticent.models.generation import greedy
from reticent.models.language_model import CausalModel
from reticent.models.load import load, load_tokenizer
from reticent.run import Run
from reticent.stages.attacking import Findings
from reticent.stages.quiz import Quizzes
from reticent.utility.exam_prompts import Layout, text
from reticent.utility.questions import Question, read

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "lem", "nor"]


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join("".join(rng.choice(SYLLABLES, 2)) for _ in range(count))


def _items(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"{seed}-{i}",
            "question": f"{_words(rng, 4)} {seed} {i}?",
            "options": [f"{_words(rng, int(rng.integers(1, 4)))} {option}" for option in range(3)],
            "answer": int(rng.integers(3)),
            "subject": "xy"[i % 2],
        }
        for i in range(count)
    ]


def _write(path: Path, items: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[..., Run]:
    """A run whose data are prepared, with the benchmarks that are asked for."""
    from reticent.progress import SILENT
    from reticent.stages.prepare import prepare

    folder = tmp_path_factory.mktemp("quiz")
    rng = np.random.default_rng(5)
    rows = [{"text": f"{_words(rng, 12)}\nWhat of {_words(rng, 3)} {i}?\nmore", "owner": f"o{i}"} for i in range(30)]
    _write(folder / "notes.jsonl", rows)

    def with_benchmarks(*asked: dict[str, Any]) -> Run:
        recipe = recipes.from_dict(
            {
                "data": {
                    "source": {"path": str(folder / "notes.jsonl"), "text": "text", "owner": "owner"},
                    "template": "plain",
                    "canaries": None,
                    "held_out": 0.2,
                },
                "model": {"base": str(model), "dtype": "float32"},
                "train": {"batch_size": 8},
                "privacy": {"kind": "none"},
                "evaluate": {"benchmarks": list(asked)},
            }
        )
        return Run(folder / "run", recipe)

    run = with_benchmarks()
    run.folder.mkdir()
    prepare(run, SILENT)
    return with_benchmarks


def _quizzes(run: Run) -> Quizzes:
    from reticent.progress import SILENT

    return Quizzes(run, load_tokenizer(run.recipe.model.base), SILENT)


def _asked(run: Run, **models: CausalModel) -> tuple[Findings, dict[str, list[dict[str, Any]]]]:
    """What was found, and the lines of each file."""
    quizzes = _quizzes(run)
    for name, model in models.items():
        quizzes.ask(name, model)  # type: ignore[arg-type]  # the names of a run's models
    quizzes.write()
    files = {path.stem: path.read_text().splitlines() for path in run.benchmarks_folder.iterdir()}
    return quizzes.findings(), {name: [json.loads(line) for line in lines] for name, lines in files.items()}


def _value(found: Findings, name: str, model: str = "base") -> Any:
    (one,) = [one for one in found.measurements if (one.name, one.model) == (name, model)]
    return one


@pytest.fixture(scope="module")
def base(model: Path) -> CausalModel:
    return CausalModel(load(str(model)).model)


@pytest.fixture(scope="module")
def other(model: Path) -> CausalModel:
    """Another random model."""
    loaded = load(str(model)).model
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        for weight in loaded.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return CausalModel(loaded)


def _log_likelihood(plain: PreTrainedModel, tokenizer: Any, prompt: str, ending: str) -> tuple[float, int]:
    """Of one ending alone, by transformers' own attention; and its tokens, which are bytes."""
    before, behind = tokenizer(prompt)["input_ids"], tokenizer(ending)["input_ids"]
    with torch.no_grad():
        logp = plain(torch.tensor([before + behind])).logits[0].log_softmax(-1)
    return float(sum(logp[len(before) + i - 1, token] for i, token in enumerate(behind))), len(behind)


def _oracle(plain: PreTrainedModel, tokenizer: Any, one: Question, layout: Layout, scorer: str) -> int:
    form: Any = "letter" if scorer == "letter" else "text"
    prompt = text(one, layout, form)
    blank = " " if layout.demonstrations else "\n"
    scores = []
    for option in one.labels if form == "letter" else one.options:
        total, tokens = _log_likelihood(plain, tokenizer, prompt.rstrip(), blank + option)
        divisors = {"options-per-token": tokens, "options-per-byte": len(option.encode())}
        scores.append(total / divisors.get(scorer, 1))
    return int(np.argmax(scores))


SCORERS = ["letter", "options", "options-per-token", "options-per-byte"]


@pytest.mark.parametrize("count", [0, 2])
def test_every_choice_is_that_of_one_option_at_a_time(
    prepared: Callable[..., Run], base: CausalModel, model: Path, tmp_path: Path, count: int
) -> None:
    path = _write(tmp_path / "own.jsonl", _items(12))
    demonstrations = _write(tmp_path / "demos.jsonl", _items(count, seed=1)) if count else None
    run = prepared(
        {
            "name": "own",
            "path": path,
            "scorers": SCORERS,
            "shots": count,
            "demonstrations": demonstrations,
            "system": "S",
        }
    )
    _, files = _asked(run, base=base)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    shown = [] if demonstrations is None else read("own", path=Path(demonstrations)).questions
    order = np.random.default_rng(1234).permutation(count).tolist()
    layout = Layout("S", tuple(shown[i] for i in order))
    questions = read("own", path=Path(path)).questions
    for one, line in zip(questions, files["own"], strict=True):
        expected = {scorer: "ABC"[_oracle(plain, tokenizer, one, layout, scorer)] for scorer in SCORERS}
        assert line["choices"]["base"] == expected
    assert len({tuple(line["choices"]["base"].values()) for line in files["own"]}) > 3  # else it would show nothing


def test_yes_no_and_maybe_are_scored_as_words(
    prepared: Callable[..., Run], base: CausalModel, model: Path, tmp_path: Path
) -> None:
    items = [{**one, "options": ["yes", "no", "maybe"], "context": ["So.", "Well."]} for one in _items(6)]
    path = _write(tmp_path / "own.jsonl", items)
    run = prepared({"name": "own", "path": path, "scorers": ["letter", "options"]})
    _, files = _asked(run, base=base)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for one, line in zip(read("own", path=Path(path)).questions, files["own"], strict=True):
        word = one.options[_oracle(plain, tokenizer, one, Layout(), "letter")]
        assert line["choices"]["base"] == {"letter": word, "options": word}


def test_what_the_model_writes_is_greedy_and_kept(
    prepared: Callable[..., Run], base: CausalModel, tmp_path: Path
) -> None:
    path = _write(tmp_path / "own.jsonl", _items(5))
    run = prepared({"name": "own", "path": path, "scorers": ["generate"]})
    found, files = _asked(run, base=base)
    tokenizer = load_tokenizer(run.recipe.model.base)
    for one, line in zip(read("own", path=Path(path)).questions, files["own"], strict=True):
        prompt = np.array(tokenizer(text(one, Layout(), "letter"))["input_ids"])
        (said,) = greedy(base, [prompt], max_new_tokens=10, end_of_text=tokenizer.eos_token_id)  # " A" and 8 more
        assert line["texts"]["base"] == [tokenizer.decode(said.tolist(), skip_special_tokens=True)]
    assert "at most 10 tokens" in _value(found, "accuracy[own]").method


class _Saying:
    """Stands for generation: what is said to each prompt, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Run, said: list[str]) -> None:
        tokenizer = load_tokenizer(run.recipe.model.base)
        self.settings: dict[str, Any] = {}

        def say(model: Any, prompts: list[np.ndarray], **settings: Any) -> list[np.ndarray]:
            self.settings = settings
            assert len(prompts) == len(said)
            return [np.array(tokenizer(one)["input_ids"], dtype=np.int64) for one in said]

        monkeypatch.setattr("reticent.models.generation.greedy", say)
        monkeypatch.setattr("reticent.models.generation.sample", say)


def test_unparsed_answers_are_counted_and_wrong(
    prepared: Callable[..., Run], base: CausalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{**one, "answer": answer} for one, answer in zip(_items(4), [2, 1, 1, 0], strict=True)]
    run = prepared({"name": "own", "path": _write(tmp_path / "own.jsonl", items), "scorers": ["generate"]})
    _Saying(monkeypatch, run, ["cannot tell", "(B)", "C.", "because it is a"])
    found, files = _asked(run, base=base)
    assert [line["choices"]["base"]["generate"] for line in files["own"]] == [None, "B", "C", None]
    assert _value(found, "accuracy[own]").value == 1 / 4
    assert (_value(found, "unparsed[own]").value, _value(found, "unparsed[own]").n) == (0.5, 4)
    calibrated = _value(found, "calibrated_accuracy[own]")
    assert (calibrated.value, calibrated.n) == (0.5, 2)
    # The source takes the c of "cannot" for an answer, which is right here, and knows no bracket.
    assert _value(found, "compat_accuracy[own]").value == 2 / 4


def test_branches_vote(
    prepared: Callable[..., Run], base: CausalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "own.jsonl", _items(2))
    asked = {"name": "own", "path": path, "scorers": ["generate"], "branches": 3, "chain_of_thought": True}
    run = prepared(asked)
    said = ["so\nThe answer is: C", "hm", "or\nThe answer is: C", "x\nThe answer is B", "A", "well.\nThe answer is A"]
    saying = _Saying(monkeypatch, run, said)
    found, files = _asked(run, base=base)
    assert [line["choices"]["base"]["generate"] for line in files["own"]] == ["C", "A"]
    assert [line["texts"]["base"] for line in files["own"]] == [said[:3], said[3:]]
    assert saying.settings["sampling"].temperature == 0.8
    assert saying.settings["max_new_tokens"] == 256
    assert "chain of thought, majority of 3 branches at T = 0.8" in _value(found, "accuracy[own]").method


def test_branches_are_the_same_for_the_same_recipe(
    prepared: Callable[..., Run], base: CausalModel, tmp_path: Path
) -> None:
    path = _write(tmp_path / "own.jsonl", _items(3))
    run = prepared({"name": "own", "path": path, "scorers": ["generate"], "branches": 2, "max_new_tokens": 6})
    first, second = (_asked(run, base=base)[1]["own"] for _ in range(2))
    assert first == second
    assert first[0]["texts"]["base"][0] != first[0]["texts"]["base"][1]


def test_numbers_follow_from_the_choices(
    prepared: Callable[..., Run], base: CausalModel, other: CausalModel, tmp_path: Path
) -> None:
    items = _items(20)
    path = _write(tmp_path / "own.jsonl", [*items, items[3]])
    found, files = _asked(
        prepared({"name": "own", "path": path, "scorers": ["options", "letter"]}), base=base, private=other
    )
    right = {
        model: np.array([line["choices"][model]["options"] == line["answer"] for line in files["own"]])
        for model in ("base", "private")
    }
    (points,) = found.plots["benchmarks"]
    for model, hits in right.items():
        one = _value(found, "accuracy[own]", model)
        assert (one.value, one.n, one.floor, one.ceiling) == (hits.mean(), 20, pytest.approx(1 / 3), 1)
        assert "zero-shot, 20 of 20 questions" in one.method
        by_subject = {"xy"[i]: {"questions": 10, "share": hits[i::2].mean()} for i in range(2)}
        for subject, values in by_subject.items():
            assert points["subjects"][subject]["questions"] == values["questions"]
            assert points["subjects"][subject]["accuracy"][model] == values["share"]
        assert 0 <= _value(found, "macro_f1[own]", model).value <= 1
    only_base = int((right["base"] & ~right["private"]).sum())
    only_private = int((~right["base"] & right["private"]).sum())
    assert only_base + only_private > 0
    assert points["mcnemar"] == [
        {
            "one": "base",
            "other": "private",
            "only_one": only_base,
            "only_other": only_private,
            "p_value": pytest.approx(stats.binomtest(only_base, only_base + only_private).pvalue),
        }
    ]
    assert (points["questions"], points["duplicates"], points["chance"]) == (20, 1, pytest.approx(1 / 3))
    counts = np.bincount([item["answer"] for item in items])
    assert points["majority"] == _value(found, "majority[own]", "data").value == counts.max() / 20
    assert {one.name for one in found.measurements} == {
        "accuracy[own]",
        "accuracy[own, letter]",
        "macro_f1[own]",
        "majority[own]",
    }


def test_items_in_the_training_data_mark_the_score(
    prepared: Callable[..., Run], base: CausalModel, tmp_path: Path
) -> None:
    items = _items(4)
    run = prepared()
    texts = [record.completion.splitlines() for record, _ in run.read_records("train")[:2]]
    items[1]["question"] = texts[0][1].upper()
    items[2]["context"] = f"{texts[1][0]} {texts[1][1]}"  # 12 words and more
    run = prepared({"name": "own", "path": _write(tmp_path / "own.jsonl", items)})
    found, files = _asked(run, base=base)
    assert [line["contaminated"] for line in files["own"]] == [False, True, True, False]
    assert "2 of 4 items stand in the training data" in _value(found, "accuracy[own]").method
    assert _value(found, "accuracy[own, without contaminated]").n == 2
    assert found.plots["benchmarks"][0]["contaminated"] == 2


def test_items_that_do_not_fit_are_shortened_and_told(
    prepared: Callable[..., Run], base: CausalModel, tmp_path: Path
) -> None:
    items = _items(3)
    items[1]["context"] = "word " * 400  # the model reads 1024 tokens, which are bytes
    run = prepared({"name": "own", "path": _write(tmp_path / "own.jsonl", items)})
    found, files = _asked(run, base=base)
    assert [line["truncated"] for line in files["own"]] == [False, True, False]
    assert found.plots["benchmarks"][0]["truncated"] == 1
    assert "1 shortened" in _value(found, "accuracy[own]").method


def test_a_question_that_does_not_fit_is_refused_before_a_model_is_asked(
    prepared: Callable[..., Run], tmp_path: Path
) -> None:
    items = _items(3)
    items[1]["question"] = "word " * 400
    with pytest.raises(DataError, match="0-1: the question with its options is longer than the 1024 tokens"):
        _quizzes(prepared({"name": "own", "path": _write(tmp_path / "own.jsonl", items)}))


def test_all_benchmarks_are_read_before_a_model_is_asked(prepared: Callable[..., Run], tmp_path: Path) -> None:
    broken = _write(tmp_path / "broken.jsonl", [{**_items(1)[0], "answer": 3}])
    good = {"name": "own", "path": _write(tmp_path / "own.jsonl", _items(2))}
    with pytest.raises(DataError, match=r"broken.jsonl:1: field 'answer' is none of the 3 options"):
        _quizzes(prepared(good, {"name": "broken", "path": broken}))


def test_a_name_is_a_file_name_of_its_own(prepared: Callable[..., Run], base: CausalModel, tmp_path: Path) -> None:
    path = _write(tmp_path / "own.jsonl", _items(2))
    _, files = _asked(prepared({"name": "../own/a", "path": path}), base=base)
    assert list(files) == ["%2E%2E%2Fown%2Fa"]


def test_the_source_systems_text_belongs_to_the_named_sets(
    prepared: Callable[..., Run], base: CausalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And null is none, and any other text is itself."""
    options = {"opa": "a", "opb": "b", "opc": "c", "opd": "d"}
    path = _write(tmp_path / "set.jsonl", [{"question": "Which?", **options, "cop": 0}])
    prompts: list[np.ndarray] = []

    def say(model: Any, given: list[np.ndarray], **_: Any) -> list[np.ndarray]:
        prompts.extend(given)
        return [np.array([1])]

    monkeypatch.setattr("reticent.models.generation.greedy", say)
    for system in ("source", None, "Mine."):
        _asked(prepared({"name": "medmcqa", "path": path, "scorers": ["generate"], "system": system}), base=base)
    tokenizer = load_tokenizer(prepared().recipe.model.base)
    heads = [tokenizer.decode(prompt.tolist()).split("\n")[0] for prompt in prompts]
    assert heads[0].startswith("You are a medical doctor answering realworld")
    assert heads[1:] == ["Question: Which?", "Mine."]
