"""Synthetic text from a tiny private model: what is written, what is refused, what is measured on it."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from reticent import recipe as recipes
from reticent.data import canary
from reticent.data.prompts import Prompt
from reticent.data.record import Record
from reticent.errors import ModelError, PrivacyError, RecipeError
from reticent.measurement import Measurement
from reticent.models import generation
from reticent.models.load import load_tokenizer
from reticent.progress import SILENT, Progress
from reticent.recipe import Synthetic
from reticent.run import Run
from reticent.stages import judging, synthesize, synthetic_audit
from reticent.stages.attacking import Texts
from reticent.stages.synthesize import Corpus

ASKED = {"records": 12, "attempts": 10, "max_new_tokens": 60, "min_words": 1, "judge": False, "audit": False}
STREAM = generation.stream
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
PLAIN = {"prompt": "prompt", "completion": "completion", "owner": "owner"}


_DONE: list[Path] = []


@pytest.fixture
def audited(place: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is trained and audited, made once; read only."""
    if not _DONE:
        place.write_recipe(
            data={
                "source": {"path": "notes.jsonl", **PLAIN},
                "template": "plain",
                "held_out": 0.4,
                "canaries": {"pairs": 4, "copies": 3, "candidates": 24, "digits": 2},
            },
            audit={"twin": False, "selfcheck": False, "extraction": None, "identifiers": None, "server_view": False},
            synthetic=ASKED,
        )
        for verb in ("prepare", "train", "audit"):
            place.call(verb, "my.yaml")
        _DONE.append(shutil.copytree(place.run_folder, tmp_path_factory.mktemp("audited") / "run"))
    return _DONE[0]


@pytest.fixture
def made(audited: Path, tmp_path: Path) -> Callable[..., Run]:
    """A copy of that run whose recipe asks for other synthetic text."""

    def make(**changes: Any) -> Run:
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        shutil.copytree(audited, folder)
        recipe = recipes.load(folder / "recipe.yaml")
        return Run(folder, recipe.model_copy(update={"synthetic": Synthetic(**{**ASKED, **changes})}))

    return make


def _says(model: Any, prompts: Sequence[Any], decoding: Any, *, seeds: Sequence[int], **_: Any) -> Iterator[Any]:
    """Words by the seed, in another order than asked; every fourth text does not end."""
    for number in reversed(range(len(prompts))):
        rng = np.random.default_rng(seeds[number])
        said = " ".join(rng.choice(["ape", "bee", "cat", "dog", "eel", "fox"], int(rng.integers(4, 9))))
        ids = np.array([ALPHABET.index(letter) for letter in said.replace(" ", "\u0120")], dtype=np.int64)
        yield number, generation.Generated(ids, "length" if seeds[number] % 4 == 0 else "end")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students that hardly learn, in no time, and a model that says words."""
    monkeypatch.setattr(judging, "STEPS", (2, 2))
    monkeypatch.setattr(judging, "TOKENS_A_STEP", 128)
    monkeypatch.setattr(generation, "stream", _says)


def _texts(run: Run) -> list[dict[str, Any]]:
    lines = (run.synthetic_folder / "texts.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def _found(measurements: Sequence[Measurement]) -> dict[tuple[str, str], Measurement]:
    return {(one.name, one.model): one for one in measurements}


def _corpus(pairs: Sequence[tuple[str, str]], labels: Sequence[str] = ()) -> Corpus:
    return Corpus([p for p, _ in pairs], list(labels) or [None] * len(pairs), [text for _, text in pairs])


# ------------------------------------------------------------------------------------------------ what is written


def test_texts_and_a_card_are_written_and_no_work_is_left(made: Any) -> None:
    run = made()
    synthesize.synthesize(run, SILENT)
    texts = _texts(run)
    assert len(texts) == 12 and set(texts[0]) == {"id", "prompt", "label", "text"}
    assert len({one["id"] for one in texts}) == 12 and all(one["text"].strip() for one in texts)
    card = json.loads((run.synthetic_folder / "card.json").read_text())
    assert card["guarantee"] == run.facts("train")["guarantee"]
    assert card["recipe"] == recipes.digest(run.recipe) and card["texts"]["kept"] == 12
    assert not run.synthetic_work.exists()
    assert run.facts("synthesize") == {"records": 12, "sampled": card["texts"]["sampled"]}


def test_the_same_recipe_and_model_write_the_same_texts(made: Any) -> None:
    first, second, other = made(), made(), made(seed=1)
    for run in (first, second, other):
        synthesize.synthesize(run, SILENT)
    assert _texts(first) == _texts(second) != _texts(other)


def test_the_card_and_the_plots_hold_no_private_word(made: Any, audited: Path) -> None:
    run = made(judge=True, audit=True)
    synthesize.synthesize(run, SILENT)
    words = {
        word
        for record, _ in [*run.read_records("train"), *run.read_records("held_out")]
        if not record.id.startswith("canary")
        for text in (record.prompt, record.completion, record.owner)
        for word in text.split()
        if len(word) > 6
    }
    drawn = run.read_plots("synthesize")
    drawn.pop("samples")
    told = [(run.synthetic_folder / "card.json").read_text(), json.dumps(drawn)]
    told += [json.dumps(one.to_dict()) for one in run.read_measurements("synthesize")]
    assert words and not [word for word in words if any(word in text for text in told)]


def test_the_card_tells_nothing_that_was_measured_on_private_text(made: Any) -> None:
    cards = []
    for judge in (False, True):
        run = made(judge=judge)
        synthesize.synthesize(run, SILENT)
        cards.append(json.loads((run.synthetic_folder / "card.json").read_text()))
    assert {**cards[0], "recipe": ""} == {**cards[1], "recipe": ""}


def test_the_funnel_adds_up(made: Any) -> None:
    run = made()
    synthesize.synthesize(run, SILENT)
    funnel = run.read_plots("synthesize")["funnel"]
    assert list(funnel) == ["sampled", "unfinished", "too short", "repetitive", "equal", "near copies", "kept"]
    assert funnel.pop("sampled") == sum(funnel.values())


def test_public_prompts_come_with_their_labels(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "of a", "label": "x", "count": 3}\n{"prompt": "of b", "label": "y"}\n')
    run = made(prompts=str(path))
    synthesize.synthesize(run, SILENT)
    assert {(one["prompt"], one["label"]) for one in _texts(run)} == {("of a", "x"), ("of b", "y")}
    labels = run.read_plots("synthesize")["labels"]
    assert sum(labels.values()) == 12 and labels["x"] > labels["y"]


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_prompts_of_one_person_in_the_data_are_pointed_out(made: Any, tmp_path: Path) -> None:
    run, heard = made(), Heard()
    record = next(record for record, _ in run.read_records("train") if not record.id.startswith("canary"))
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": record.prompt}) + '\n{"prompt": "of a"}\n')
    run = made(prompts=str(path))
    synthesize.synthesize(run, heard)
    assert any(line.startswith("1 of 2 prompts are that of one owner") for line in heard.lines)
    assert record.prompt not in "".join(heard.lines)


def test_prompts_are_asked_as_often_as_their_counts_say() -> None:
    order = synthesize._Order([Prompt("a", 3), Prompt("b", 1)], 1)
    for start in range(0, 40, 4):
        assert sorted(order[number].text for number in range(start, start + 4)) == ["a", "a", "a", "b"]


def test_a_real_model_is_sampled(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "stream", STREAM)
    run = made(records=2, attempts=10, max_new_tokens=200)
    synthesize.synthesize(run, SILENT)
    assert len(_texts(run)) == 2


# ----------------------------------------------------------------------------------------------- what is refused


def test_text_of_a_model_without_a_promise_is_refused(made: Any) -> None:
    run = made()
    path = run.folder / "stages" / "train.json"
    values = json.loads(path.read_text())
    del values["facts"]["guarantee"]
    path.write_text(json.dumps(values))
    with pytest.raises(PrivacyError, match="no model with a promise"):
        synthesize.synthesize(run, SILENT)
    assert not run.synthetic_folder.exists() and not run.synthetic_work.exists()


def test_text_of_a_training_that_failed_a_check_is_refused(made: Any) -> None:
    run = made()
    run.write_plots("audit", {"checks": [{"name": "noise", "passed": False, "details": ""}]})
    with pytest.raises(PrivacyError, match="check noise failed"):
        synthesize.synthesize(run, SILENT)
    assert not run.synthetic_folder.exists()


def test_a_text_longer_than_the_model_reads_is_refused(made: Any) -> None:
    with pytest.raises(RecipeError, match="1,024 tokens that the model reads"):
        synthesize.synthesize(made(max_new_tokens=1024), SILENT)


def test_it_is_told_why_nothing_was_kept(made: Any) -> None:
    run = made(min_words=1000, records=2, attempts=2)
    with pytest.raises(ModelError, match=r"none of 4 texts .* synthetic.min_words"):
        synthesize.synthesize(run, SILENT)
    assert not run.synthetic_folder.exists()


# ------------------------------------------------------------------------------------------------------- stopping


def _stopping(after: int, asked: list[int]) -> Callable[..., Iterator[Any]]:
    """The sampler, which is stopped after so many texts; ``asked`` counts prompts."""
    real = generation.stream

    def stream(model: Any, prompts: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        asked.append(len(prompts))
        for number, one in enumerate(real(model, prompts, *arguments, **options)):
            if number == after:
                raise KeyboardInterrupt
            yield one

    return stream


def test_what_was_sampled_before_a_crash_is_used_again(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run, asked = made(), made(), list[int]()
    synthesize.synthesize(whole, SILENT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generation, "stream", _stopping(7, asked))
        synthesize.synthesize(run, SILENT)
    assert not run.synthetic_folder.exists()
    path = run.synthetic_work / "samples.jsonl"
    path.write_text(path.read_text() + '{"number": 99, "te')  # cut off in the middle
    with monkeypatch.context() as patch:
        patch.setattr(generation, "stream", _stopping(10**9, asked))
        synthesize.synthesize(run, SILENT)
    assert asked[:2] == [12, 5]
    assert _texts(run) == _texts(whole)


def test_samples_of_other_weights_are_not_used(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = made(), list[int]()
    monkeypatch.setattr(generation, "stream", _stopping(7, asked))
    with pytest.raises(KeyboardInterrupt):
        synthesize.synthesize(run, SILENT)
    path = run.model_folder("private") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(KeyboardInterrupt):
        synthesize.synthesize(run, SILENT)
    assert asked == [12, 12]


def test_models_that_learned_another_corpus_are_not_gone_on_with(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other, folders = made(judge=True), made(judge=True, min_words=6), list[Path]()

    def judge(run: Run, corpus: Corpus, tokenizer: Any, folder: Path, progress: Any) -> Any:
        folders.append(folder.relative_to(run.folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(judging, "judge", judge)
    for one in (run, run, other):
        with pytest.raises(KeyboardInterrupt):
            synthesize.synthesize(one, SILENT)
    assert folders[0] == folders[1] != folders[2]


# -------------------------------------------------------------------------------------------------------- judging


def _judged(run: Run, corpus: Corpus) -> dict[tuple[str, str], Measurement]:
    tokenizer = load_tokenizer(run.recipe.model.base)
    found = judging.judge(run, corpus, tokenizer, run.synthetic_work, SILENT)
    assert not [why for why in found.plots["unanswered"] if why["question"] != "task_accuracy"]
    return _found(found.measurements)


def test_every_number_of_the_judge_is_there(made: Any, tmp_path: Path) -> None:
    run = made()
    rng = np.random.default_rng(1)
    pairs = [("", " ".join(rng.choice(["ape", "bee", "cat", "dog"], 5))) for _ in range(20)]
    found = _judged(run, _corpus(pairs))
    names = {name for name, _ in found}
    assert names >= {"next_token_accuracy", "mauve", "ngram_distance", "length_distance", "overlap_verbatim"}
    assert names >= {"longest_overlap", "next_token_accuracy_reached"}
    assert {model for name, model in found if name == "next_token_accuracy"} == {"synthetic", "real"}
    for one in found.values():
        assert one.n > 0 and one.method
        assert one.interval is not None or one.name == "longest_overlap"


def test_copied_training_text_is_nearer_to_real_text_than_foreign_text(made: Any) -> None:
    run = made(prompts="unread")
    real = [(record.prompt, record.completion) for record, _ in run.read_records("train") if "canary" not in record.id]
    rng = np.random.default_rng(2)
    foreign = [("", "".join(rng.choice(list("0123456789 "), 30))) for _ in real]
    run = made()
    copied, other = _judged(run, _corpus(real)), _judged(made(), _corpus(foreign))
    assert copied["mauve", "synthetic"].value > 0.5 > 0.1 > other["mauve", "synthetic"].value
    assert copied["longest_overlap", "synthetic"].value > 20 > 5 > other["longest_overlap", "synthetic"].value
    assert copied["longest_overlap", "synthetic"].control < 20  # type: ignore[operator]  # it is there


def test_a_planted_run_of_training_words_is_found_and_nothing_else(made: Any) -> None:
    run = made()
    note = next(record.completion for record, _ in run.read_records("train") if record.id.startswith("canary-fake"))
    rng = np.random.default_rng(3)
    texts = [("", " ".join(rng.choice(["ape", "bee", "cat", "dog"], 20))) for _ in range(19)]
    found = _judged(run, _corpus([*texts, ("", f"bee {note} cat")]))
    assert found["overlap_verbatim", "synthetic"].value == pytest.approx(1 / 20)
    assert _judged(made(), _corpus([*texts, ("", "bee cat")]))["overlap_verbatim", "synthetic"].value == 0


def test_too_few_texts_are_not_judged(made: Any) -> None:
    run = made()
    tokenizer = load_tokenizer(run.recipe.model.base)
    found = judging.judge(run, _corpus([("", "a b")]), tokenizer, run.synthetic_work, SILENT)
    assert not found.measurements
    assert "1 synthetic texts" in found.plots["unanswered"][0]["why"]


def test_students_that_were_stopped_go_on(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, texts = made(), [("", f"ape bee cat {number}") for number in range(20)]
    whole = _judged(made(), _corpus(texts))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(judging, "_likeness", lambda bench: (_ for _ in ()).throw(KeyboardInterrupt))
        judging.judge(run, _corpus(texts), load_tokenizer(run.recipe.model.base), run.synthetic_work, SILENT)
    assert (run.synthetic_work / "student-real").is_dir()
    assert _judged(run, _corpus(texts)) == whole


# -------------------------------------------------------------------------------------------------- classification


def _bench(run: Run, corpus: Corpus, real: Sequence[Record]) -> judging._Bench:
    texts = Texts(list(real), [record.owner for record in real])
    return judging._Bench(run, corpus, load_tokenizer(run.recipe.model.base), texts, texts, run.folder, SILENT)


def _question(number: int, right: str) -> Record:
    options = ("heart", "lung")
    return Record(
        id=f"q{number}",
        owner=f"o{number}",
        prompt=f"where is the {'beat' if right == 'heart' else 'cough'} {number}?",
        completion=right,
        origin="test",
        options=options,
        answer=options.index(right),
    )


def test_answers_are_the_labels_of_questions(made: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("where?\n")
    real = [_question(number, ("heart", "lung")[number % 2]) for number in range(20)]
    told = [(record.prompt, record.completion) for record in real] + [("where is the leg?", "nowhere")]
    bench = _bench(made(prompts=str(tmp_path / "prompts.txt")), _corpus(told), real)
    found = _found(judging._classifiers(bench).measurements)
    assert found["task_accuracy", "synthetic"].value == found["task_accuracy", "real"].value == 1
    assert found["task_accuracy", "synthetic"].floor == 0.5
    assert "20 synthetic ones are one" in found["task_accuracy", "synthetic"].method


def test_wrong_answers_teach_the_wrong_thing(made: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("where?\n")
    real = [_question(number, ("heart", "lung")[number % 2]) for number in range(20)]
    told = [(record.prompt, {"heart": "lung", "lung": "heart"}[record.completion]) for record in real]
    bench = _bench(made(prompts=str(tmp_path / "prompts.txt")), _corpus(told), real)
    found = _found(judging._classifiers(bench).measurements)
    assert found["task_accuracy", "synthetic"].value == 0
    p_value = found["task_accuracy", "synthetic"].p_value
    assert p_value is not None and p_value < 1e-4


def test_a_real_record_has_the_label_of_its_prompt(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "note of a", "label": "a"}\n{"prompt": "note of b", "label": "b"}\n')
    texts = {"a": "beat and pulse", "b": "cough and wheeze"}
    real = [
        Record(
            id=str(n), owner=str(n), prompt=f"note of {'ab'[n % 2]}", completion=f"{texts['ab'[n % 2]]} {n}", origin="t"
        )
        for n in range(24)
    ]
    pairs = [(f"note of {label}", f"{texts[label]} again {n}") for n in range(10) for label in "ab"]
    bench = _bench(made(prompts=str(path)), _corpus(pairs, ["a", "b"] * 10), real)
    found = _found(judging._classifiers(bench).measurements)
    assert found["task_accuracy", "synthetic"].value == 1
    assert found["task_accuracy", "synthetic"].n == 24


def test_without_labels_no_accuracy_is_told(made: Any) -> None:
    found = judging._classifiers(_bench(made(), _harmless(), []))
    assert not found.measurements and found.plots["unanswered"][0]["question"] == "task_accuracy"


# ---------------------------------------------------------------------------------------------------- the audit, A10


def _audited(run: Run, corpus: Corpus) -> dict[str, Measurement]:
    found = synthetic_audit.audit(run, corpus, run.synthetic_work, SILENT)
    return {one.name: one for one in found.measurements}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """An auxiliary model that learns a few texts by heart."""
    monkeypatch.setattr(synthetic_audit, "STEPS", (60, 60))
    monkeypatch.setattr(synthetic_audit, "LEARNING_RATE", 2e-2)


def _recited(run: Run, role: str) -> Corpus:
    """Texts of a model that knows the planted canaries by heart."""
    canaries = canary.from_json(run.read_canaries())
    own = [one.record for one in canaries if one.planted and one.role == role]
    return _corpus([(one.prompt, one.completion) for one in own for _ in range(3)])


def _harmless() -> Corpus:
    rng = np.random.default_rng(4)
    return _corpus([("", " ".join(rng.choice(["ape", "bee", "cat", "dog"], 9))) for _ in range(12)])


@pytest.mark.usefixtures("eager")
def test_planted_records_are_seen_through_the_texts_of_a_model_that_recites_them(made: Any) -> None:
    run = made()
    found = _audited(run, _recited(run, "member"))["synthetic_membership_auc"]
    assert found.value > 0.7 and found.model == "synthetic"
    assert found.interval is not None and found.interval[0] > 0.5


@pytest.mark.usefixtures("eager")
def test_planted_secrets_are_seen_through_the_texts_of_a_model_that_recites_them(made: Any) -> None:
    run = made()
    found = _audited(run, _recited(run, "secret"))["synthetic_exposure_bits"]
    assert found.value > 4
    assert found.p_value is not None and found.p_value < 0.01


@pytest.mark.usefixtures("eager")
def test_nothing_is_seen_through_harmless_texts(made: Any) -> None:
    found = _audited(made(), _harmless())
    area, bits = found["synthetic_membership_auc"], found["synthetic_exposure_bits"]
    assert area.interval is not None and area.interval[0] <= 0.5 <= area.interval[1]
    assert bits.p_value is not None and bits.p_value > 0.01


def test_the_base_model_stands_beside_it(made: Any) -> None:
    run = made()
    base = {one.name: one.value for one in run.read_measurements("audit") if one.model == "base"}
    found = _audited(run, _corpus([("", f"ape bee {number}") for number in range(8)]))
    for name in ("membership_auc", "epsilon_lower_bound", "exposure_bits"):
        assert found[f"synthetic_{name}"].control == base[name]


def test_the_bound_is_held_against_the_promise(made: Any) -> None:
    run = made()
    found = _audited(run, _corpus([("", f"ape bee {number}") for number in range(8)]))
    assert found["synthetic_epsilon_lower_bound"].p_value is not None
