"""Questions from files in the published schemas and in the plain one; what is wrong in them is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reticent.data.schemas import labelled_splits
from reticent.errors import DataError
from reticent.utility.questions import Question, contaminated, read, shots

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def _item(**changes: Any) -> dict[str, Any]:
    return {"question": "Which is red?", "options": ["sky", "rose"], "answer": 1, **changes}


def _file(folder: Path, *items: dict[str, Any], name: str = "own.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def _one(folder: Path, **changes: Any) -> Question:
    return read("own", path=_file(folder, _item(**changes))).questions[0]


# Any file of questions and options.


@pytest.mark.parametrize("answer", [1, 1.0, "B", "rose", "1"])
def test_an_answer_is_a_letter_an_index_or_a_text(tmp_path: Path, answer: Any) -> None:
    found = _one(tmp_path, answer=answer)
    assert found == Question("own.jsonl:1", "Which is red?", ("sky", "rose"), 1)
    assert found.labels == ("A", "B")


@pytest.mark.parametrize("options", [{"B": "rose", "A": "sky"}, '["sky", "rose"]', '{"A": "sky", "B": "rose"}'])
def test_options_are_a_list_or_by_letter(tmp_path: Path, options: Any) -> None:
    assert _one(tmp_path, options=options).options == ("sky", "rose")


def test_yes_no_and_maybe_are_their_own_labels(tmp_path: Path) -> None:
    found = _one(tmp_path, options=["no", "yes"], answer="yes")
    assert (found.closed, found.labels, found.answer) == (True, ("no", "yes"), 1)


def test_context_subject_reasoning_and_id_are_kept(tmp_path: Path) -> None:
    found = _one(tmp_path, context="Roses.", subject="colours", reasoning="Not the sky.", id=7)
    assert (found.context, found.subject, found.reasoning, found.id) == (("Roses.",), "colours", "Not the sky.", "7")


def test_a_csv_has_options_in_columns(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("question,A,B,C,answer\nWhich is red?,sky,rose,,B\nWhich is blue?,sky,rose,sun,A\n")
    found = read("own", path=path).questions
    assert [one.options for one in found] == [("sky", "rose"), ("sky", "rose", "sun")]


def test_a_parquet_file_fills_missing_letters_in(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    rows = [_item(options={"A": "sky", "B": "rose", "C": None}), _item(options={"A": "x", "B": "y", "C": "z"})]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert [len(one.options) for one in read("own", path=path).questions] == [2, 3]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"options": ["sky", ""]}, "option B is empty"),
        ({"options": ["sky", " "]}, "option B is empty"),
        ({"options": ["sky", None]}, "entry B is missing"),
        ({"options": {"A": "sky", "C": "rose"}}, "without a gap"),
        ({"options": {"A": None, "B": "rose"}}, "entry A is missing"),
        ({"options": ["sky"], "answer": 0}, "needs two options or more, and it has 1"),
        ({"options": []}, "none of the 0 options"),
        ({"options": ["rose", "rose "]}, "options A and B are equal"),
        ({"options": [f"x{i}" for i in range(27)]}, "at most 26"),
        ({"options": "sky or rose"}, "as JSON text"),
        ({"options": 2}, "must be a list of texts"),
        ({"answer": 2}, "none of the 2 options"),
        ({"answer": -1}, "none of the 2 options"),
        ({"answer": "C"}, "none of the 2 options"),
        ({"answer": "tulip"}, "none of the 2 options"),
        ({"answer": None}, "none of the 2 options"),
        ({"answer": True}, "none of the 2 options"),
        ({"options": ["B", "A"], "answer": "A"}, "a letter and another option's text"),
        ({"question": " "}, "the question is empty"),
        ({"question": 3}, "field 'question' must be text"),
    ],
)
def test_a_broken_item_is_named_and_not_quoted(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        read("own", path=_file(tmp_path, _item(question="What is blue?"), _item(**changes)))
    assert "own.jsonl:2: " in str(error.value)
    assert not any(word in str(error.value) for word in ("Which", "sky", "rose", "tulip"))
    assert error.value.__cause__ is None


@pytest.mark.parametrize("field", ["question", "options", "answer"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    item = _item()
    del item[field]
    with pytest.raises(DataError, match=rf"own.jsonl:1: there is no field '{field}'"):
        read("own", path=_file(tmp_path, item))


def test_later_duplicates_are_left_out_and_counted(tmp_path: Path) -> None:
    other = _item(options=["sky", "blood"])
    in_context = _item(context="Roses.")
    found = read("own", path=_file(tmp_path, _item(id=1), other, _item(id=2, question="Which  is red? "), in_context))
    assert [one.id for one in found.questions] == ["1", "own.jsonl:2", "own.jsonl:4"]
    assert (found.duplicates, found.available) == (1, 3)


def test_a_limit_draws_by_seed_and_keeps_the_order(tmp_path: Path) -> None:
    path = _file(tmp_path, *(_item(question=f"{i}?", id=i) for i in range(20)))
    drawn = [[int(one.id) for one in read("own", path=path, limit=5, seed=seed).questions] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] == sorted(drawn[0]) != drawn[2]
    assert read("own", path=path, limit=5).available == 20


def test_a_name_that_is_not_known_needs_a_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no benchmark called 'mmlu'.*mmlu-medical, pubmedqa"):
        read("mmlu", path=None)
    with pytest.raises(DataError, match="no such file"):
        read("own", path=tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no question in it"):
        read("own", path=tmp_path / "empty.jsonl")


# The published sets.


def _medmcqa(label: int, **changes: Any) -> dict[str, Any]:
    options = {"opa": "sky", "opb": "rose", "opc": "sun", "opd": "sea"}
    return {"question": f"Which {label}?", "cop": label, **options, "subject_name": "Red", "exp": "So.", **changes}


@pytest.mark.parametrize("base", [0, 1])
def test_medmcqa_in_both_label_bases(tmp_path: Path, base: int) -> None:
    found = read("medmcqa", path=_file(tmp_path, *(_medmcqa(base + i) for i in (2, 0, 3)))).questions
    assert [one.answer for one in found] == [2, 0, 3]
    assert found[0] == Question("own.jsonl:1", f"Which {base + 2}?", ("sky", "rose", "sun", "sea"), 2, (), "Red", "So.")


def test_equal_options_of_a_published_set_stay_and_are_counted(tmp_path: Path) -> None:
    found = read("medmcqa", path=_file(tmp_path, _medmcqa(0), _medmcqa(1, opd="sky")))
    assert (len(found.questions), found.equal_options) == (2, 1)


def test_medmcqa_labels_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="never 0 nor 4"):
        read("medmcqa", path=_file(tmp_path, _medmcqa(1), _medmcqa(2)))
    with pytest.raises(DataError, match="own.jsonl:2: field 'cop' is none of the four"):
        read("medmcqa", path=_file(tmp_path, _medmcqa(0), _medmcqa(-1)))
    with pytest.raises(DataError, match="own.jsonl:1: there is no field 'cop'"):
        read("medmcqa", path=_file(tmp_path, {"question": "?"}))


def _medqa(letters: str, **changes: Any) -> dict[str, Any]:
    return {
        "question": "Next?",
        "options": {letter: f"drug {letter}" for letter in letters},
        "answer_idx": "D",
        "answer": "drug D",
        **changes,
    }


def test_medqa_has_five_options_and_medqa4_four(tmp_path: Path) -> None:
    assert read("medqa4", path=_file(tmp_path, _medqa("ABCD"))).questions[0].answer == 3
    assert len(read("medqa", path=_file(tmp_path, _medqa("ABCDE"))).questions[0].options) == 5
    with pytest.raises(DataError, match="5 options are expected, and it has 4; that is the benchmark medqa4"):
        read("medqa", path=_file(tmp_path, _medqa("ABCD")))


def test_medqa_with_a_list_of_keys_and_values(tmp_path: Path) -> None:
    listed = [{"key": letter, "value": f"drug {letter}"} for letter in "ABCDE"]
    found = read("medqa", path=_file(tmp_path, _medqa("", options=listed))).questions[0]
    assert (found.options[3], found.answer) == ("drug D", 3)


def test_mmlu_reads_the_nine_subjects_of_one_split(tmp_path: Path) -> None:
    for name in ("anatomy_test", "virology_test", "college_chemistry_test", "anatomy_dev", "virology_val"):
        (tmp_path / f"{name}.csv").write_text(f'"In {name}, what?",a,b,c,d,C\n')
    found = read("mmlu-medical", path=tmp_path).questions
    assert [(one.subject, one.answer) for one in found] == [("anatomy", 2), ("virology", 2)]
    assert [one.question for one in shots("mmlu-medical", 1, path=tmp_path, file=None, questions=found).questions] == [
        "In anatomy_dev, what?"
    ]
    assert len(read("mmlu-medical", path=tmp_path, split="validation").questions) == 1


def _pubmedqa(folder: Path) -> tuple[Path, list[str]]:
    decisions = [("yes", "no", "maybe")[i % 3] for i in range(1000)]
    rows = {
        str(i): {"QUESTION": f"Is {i}?", "CONTEXTS": [f"A {i}.", "B."], "final_decision": decision, "LONG_ANSWER": "L."}
        for i, decision in enumerate(decisions)
    }
    path = folder / "pqal.json"
    path.write_text(json.dumps(rows))
    return path, labelled_splits(decisions)


def test_pubmedqa_is_its_official_test_split(tmp_path: Path) -> None:
    path, parts = _pubmedqa(tmp_path)
    found = read("pubmedqa", path=path).questions
    assert [one.id for one in found] == [str(i) for i, part in enumerate(parts) if part == "test"]
    first = int(found[0].id)
    assert found[0] == Question(
        str(first), f"Is {first}?", ("yes", "no", "maybe"), first % 3, (f"A {first}.", "B."), None, "L."
    )


def test_pubmedqa_in_part_needs_the_split_all(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"1": {"QUESTION": "Is it?", "CONTEXTS": ["A."], "final_decision": "maybe"}}))
    with pytest.raises(DataError, match="take split 'all'"):
        read("pubmedqa", path=path)
    assert read("pubmedqa", path=path, split="all").questions[0].answer == 2


def test_a_folder_gives_the_split_that_the_field_reports_on(tmp_path: Path) -> None:
    _file(tmp_path, _medmcqa(0, question="Train?"), name="set/train.jsonl")
    _file(tmp_path, _medmcqa(0, question="Validate?"), name="set/validation.jsonl")
    assert [one.question for one in read("medmcqa", path=tmp_path / "set").questions] == ["Validate?"]
    with pytest.raises(DataError, match="there is no split 'dev'; it has train, validation, test"):
        read("medmcqa", path=tmp_path / "set", split="dev")
    with pytest.raises(DataError, match="a file holds no splits"):
        read("medmcqa", path=tmp_path / "set/train.jsonl", split="train")


def test_a_packed_file_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(_item()).encode()))
    assert read("own", path=path).questions[0].options == ("sky", "rose")


# Demonstrations.


def test_demonstrations_are_those_that_datasets_shuffles_to_the_front(tmp_path: Path) -> None:
    rows = [_item(question=f"{i}?", id=i) for i in range(30)]
    expected = datasets.Dataset.from_list(rows).shuffle(seed=1234).select(range(4))["id"]
    found = shots("own", 4, path=None, file=_file(tmp_path, *rows), questions=[])
    assert [int(one.id) for one in found.questions] == list(expected)


def test_demonstrations_are_none_of_the_questions(tmp_path: Path) -> None:
    path = _file(tmp_path, *(_item(question=f"{i}?") for i in range(6)))
    questions = read("own", path=path).questions
    found = shots("own", 2, path=None, file=path, questions=questions[:4])
    assert {one.id for one in found.questions} == {"own.jsonl:5", "own.jsonl:6"}
    assert found.skipped <= 4
    with pytest.raises(DataError, match="3 demonstrations are asked for, and there are 2"):
        shots("own", 3, path=None, file=path, questions=questions[:4])


def test_demonstrations_come_from_the_training_split(tmp_path: Path) -> None:
    path, parts = _pubmedqa(tmp_path)
    questions = read("pubmedqa", path=path).questions
    found = shots("pubmedqa", 3, path=path, file=None, questions=questions).questions
    assert {parts[int(one.id)] for one in found} == {"train"}
    own = _file(tmp_path, _item(), name="set/test.jsonl")
    _file(tmp_path, _item(question="Trained?"), name="set/train.jsonl")
    assert read("own", path=own.parent).questions[0].question == "Which is red?"
    assert shots("own", 1, path=own.parent, file=None, questions=[]).questions[0].question == "Trained?"
    for name in ("own", "medmcqa"):
        with pytest.raises(DataError, match="no split 'train' for the demonstrations"):
            shots(name, 1, path=own, file=None, questions=[])


# Contamination.


def _asked(question: str, *context: str) -> Question:
    return Question("1", question, ("a", "b"), 0, context)


@pytest.mark.parametrize(
    ("item", "text", "found"),
    [
        (_asked(f"Of {LONG}?"), f"We saw: {LONG.upper()}!", True),
        (_asked(f"Of {LONG}?"), LONG.replace("seven", "7"), False),
        (_asked("Is it?", f"Then {LONG}."), f"So {LONG}", True),
        (_asked("What is zorpine?"), "MCQ: What is Zorpine\nOptions:\nA. x", True),
        (_asked("What is zorpine?"), "intro\nwhat is zorpine\nmore", True),
        (_asked("What is zorpine?"), "Tell me what is zorpine made of", False),
    ],
)
def test_an_item_stands_in_a_text_by_13_words_or_as_a_line(item: Question, text: str, found: bool) -> None:
    assert contaminated([item, _asked("Other?")], [["nothing"], [text]]).tolist() == [found, False]
