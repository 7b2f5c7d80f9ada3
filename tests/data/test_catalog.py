"""Every named data set gives exactly the text of the system it comes from, from a file in its own schema."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from reticent.data import catalog, schemas
from reticent.data.record import Record
from reticent.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[3] / "shared/data"
ALPACA_HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


def _read(name: str, file: str, **options: Any) -> list[Record]:
    return list(catalog.read(name, path=FIXTURES / file, **options))


def _texts(name: str, file: str, **options: Any) -> list[str]:
    return [record.prompt + record.completion for record in _read(name, file, **options)]


def _rows(file: str) -> Any:
    text = (FIXTURES / file).read_text()
    return json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.splitlines()]


# The definitions, written out once more.


def test_flashcards() -> None:
    assert _texts("medical-flashcards", "flashcards.json") == [
        "Open Question: What does the zorp gland make?\nThe answer is: The zorp gland makes zorpine {a hormone}.\n",
        "Open Question: Which nerve lifts the brow in quells?\nThe answer is: The quell nerve.\n",
    ]


def test_flashcards_of_the_course() -> None:
    assert _texts("medical-flashcards", "flashcards.json", template="course") == [
        f"{ALPACA_HEAD}\n### Instruction:\n{row['input']}\n### Response: {row['output']}"
        for row in _rows("flashcards.json")[:2]
    ]


def test_flashcards_of_openfedllm() -> None:
    assert _texts("medical-flashcards", "flashcards.json", template="alpaca") == [
        f"{ALPACA_HEAD}\n\n### Instruction:\n{row['input']} \n\n### Response: {row['output']}"
        for row in _rows("flashcards.json")[:2]
    ]
    vicuna = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    assert _texts("medical-flashcards", "flashcards.json", template="vicuna") == [
        f"{vicuna} USER: {row['input']} ASSISTANT: {row['output']}" for row in _rows("flashcards.json")[:2]
    ]


def test_the_completion_is_what_is_learned_with_the_blank_before_it() -> None:
    for template in ("verbatim", "course", "alpaca", "vicuna"):
        (record, *_) = _read("medical-flashcards", "flashcards.json", template=template)
        assert record.completion.rstrip("\n") == " The zorp gland makes zorpine {a hormone}."


@pytest.mark.parametrize("file", ["medmcqa_hub.jsonl", "medmcqa_original.jsonl"])
def test_medmcqa_in_both_label_bases(file: str) -> None:
    options = "Options:\nA. One\nB. Two\nC. Three\nD. Four\nThe answer is: "
    assert _texts("medmcqa", file) == [
        f"MCQ: How many zorps has a quell?\n{options}B\n",
        f"MCQ: How many quells has a zorp?\n{options}A\n",
        f"MCQ: All of these are zorps except:\n{options}D\n",
        f"MCQ: Choose one -\n{options}C\n",
    ]


def test_a_medmcqa_record_has_its_options_as_completions() -> None:
    record = _read("medmcqa", "medmcqa_hub.jsonl")[0]
    assert record.options == (" A\n", " B\n", " C\n", " D\n")
    assert (record.answer, record.completion, record.id) == (1, " B\n", "0000-0")


def test_medmcqa_raw_is_the_question_as_it_is() -> None:
    record = _read("medmcqa", "medmcqa_hub.jsonl", template="raw")[0]
    assert record.prompt == "How many zorps has a quell\nA. One\nB. Two\nC. Three\nD. Four"
    assert (record.completion, record.options) == ("B", ("A", "B", "C", "D"))


def test_question_marks_that_were_added_are_counted() -> None:
    counts: Counter[str] = Counter()
    _read("medmcqa", "medmcqa_hub.jsonl", counts=counts)
    assert counts["question marks added"] == 1


@pytest.mark.parametrize("file", ["ori_pqal.json", "pubmedqa_hub.jsonl"])
def test_pubmedqa_in_both_schemas(file: str) -> None:
    assert _texts("pubmedqa-labelled", file, split="all") == [
        "Closed Question: Quells have eyes.\nWe watched 12 quells.\nDo quells sleep?\nThe answer is: yes\n",
        "Closed Question: We gave it to 9 zorps.\nIs zorpine safe?\nThe answer is: no\n",
        "Closed Question: It rained.\nOr not.\nDoes rain help?\nThe answer is: maybe\n",
    ]
    records = _read("pubmedqa-artificial", file, split="all")
    assert [(r.id, r.owner, r.answer) for r in records] == [("91", "91", 0), ("92", "92", 1), ("93", "93", 2)]
    assert records[0].options == (" yes\n", " no\n", " maybe\n")


def test_what_a_membership_test_shows() -> None:
    assert _texts("medical-flashcards", "flashcards.json", template="question", limit=1) == [
        "What does the zorp gland make?"
    ]
    (record,) = _read("pubmedqa-labelled", "ori_pqal.json", split="all", template="question", limit=1)
    assert (record.prompt, record.completion, record.options) == ("", "Quells have eyes.", ())


def test_medqa() -> None:
    assert _texts("medqa", "medqa.jsonl") == [
        "Question: A quell of 3 years has a cough.\nWhat now?\nOptions:\nA. Tea\nB. Rest\nC. Both\nD. None\n"
        "The answer is: A",
        "Question: Which gland is red?\nOptions:\nA. Zorp\nB. Quell\nC. Marn\nD. Tas\nThe answer is: B",
    ]


def test_mmlu_from_csv_and_from_the_hub() -> None:
    first = "Question: Which, of these, is a zorp?\nOptions:\nA. Zorp\nB. Quell\nC. Marn\nD. Tas\nThe answer is: A"
    assert _texts("mmlu-medical", "mmlu") == [
        first,
        "Question: How many?\nOptions:\nA. 1\nB. 2\nC. 3\nD. 4\nThe answer is: D",
    ]
    assert _texts("mmlu-medical", "mmlu_hub.jsonl") == [first]


def test_other_subjects_of_mmlu_are_left_out_and_counted(tmp_path: Path) -> None:
    for subject in ("anatomy", "astronomy"):
        (tmp_path / f"{subject}_test.csv").write_text(f"{subject}?,a,b,c,d,A\n")
    counts: Counter[str] = Counter()
    (record,) = catalog.read("mmlu-medical", path=tmp_path, template="raw", counts=counts)
    assert record.prompt.startswith("anatomy?")
    assert counts == {"other subject": 1}


def test_i2b2() -> None:
    records = _read("i2b2-2014", "i2b2")
    assert records[2].completion == "Medical Note: 102-01\nRecord date: 2071-01-02\nOdo Marn came for his shot.\n"
    assert [r.owner for r in records] == ["101", "101", "102"]
    assert _texts("i2b2-2014", "PHI_dataset.json") == [
        "Medical Note: 101-01\nRecord date: 2070-03-04\nZenna Quorl rests. Zenna Quorl sleeps.\n"
    ]


def test_echr_has_a_record_a_fact_owned_by_its_case() -> None:
    counts: Counter[str] = Counter()
    assert [(r.owner, r.completion) for r in _read("echr", "echr.jsonl", counts=counts)] == [
        ("echr.jsonl:1", "1.  Mr Quorl was born in 2040."),
        ("echr.jsonl:1", "2.  He lives in Veld."),
        ("echr.jsonl:2", "1.  Ms Veld asked for rain."),
    ]
    assert counts == {"empty fact": 1}


def test_enron() -> None:
    records = _read("enron", "enron.jsonl")
    assert [r.completion for r in records] == [row["text"] for row in _rows("enron.jsonl")]
    assert records[0].owner == records[2].owner == "zed.quorl@post.example"


def test_pubmed_abstracts_have_two_blanks_as_in_the_source() -> None:
    # The instruction "Abstract: " ends in a blank, and the text is joined by another.
    assert _texts("pubmed-abstracts", "pubmed_abstracts.jsonl") == [
        "Abstract:  We studied quells.",
        "Abstract:  Zorps are few.",
    ]
    assert _read("pubmed-abstracts", "pubmed_abstracts.jsonl")[0].prompt == "Abstract: "


def test_pubmed_abstracts_from_a_saved_data_set(tmp_path: Path) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "validation", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    read = [list(catalog.read("pubmed-abstracts", path=tmp_path / "saved", split=s)) for s in (None, "test", "all")]
    assert [[r.completion.strip() for r in records] for records in read] == [
        ["train"],
        ["test"],
        ["train", "validation", "test"],
    ]


def test_instruction_json() -> None:
    records = _read("instruction-json", "instructions.json")
    assert [(r.prompt, r.completion) for r in records] == [("Name a colour.", " Red."), ("", " It rains today.")]


def test_medical_meadow_in_the_template_of_medalpaca() -> None:
    head = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request."
    )
    assert _texts("meadow-wikidoc", "meadow.json") == [
        f"{head}\n\n### Instruction:\n{row['instruction']}\n\n### Input:\n{row['input']}\n\n### Response:\n"
        + row["output"]
        for row in _rows("meadow.json")
    ]


def test_alpaca_sets_join_instruction_and_input_by_a_blank() -> None:
    assert _texts("alpaca-gpt4", "alpaca.json") == [
        f"{ALPACA_HEAD}\n\n### Instruction:\nAdd. 1 and 1 \n\n### Response: 2",
        f"{ALPACA_HEAD}\n\n### Instruction:\nGreet. \n\n### Response: Hello.",
    ]


def test_math_instruct_keeps_the_first_of_each_instruction() -> None:
    counts: Counter[str] = Counter()
    records = _read("math-instruct", "math_instruct.jsonl", template="raw", counts=counts)
    assert [(r.prompt, r.completion) for r in records] == [("1+1?", "2"), ("2+2?", "4")]
    assert counts == {"repeated instruction": 1}


FILES = {
    "medical-flashcards": "flashcards.json",
    "medical-flashcards-10000": "flashcards.json",
    "medmcqa": "medmcqa_hub.jsonl",
    "medqa": "medqa.jsonl",
    "mmlu-medical": "mmlu",
    "i2b2-2014": "i2b2",
    "echr": "echr.jsonl",
    "enron": "enron.jsonl",
    "pubmed-abstracts": "pubmed_abstracts.jsonl",
    "instruction-json": "instructions.json",
    "wizardlm": "wizardlm.jsonl",
    "math-instruct": "math_instruct.jsonl",
    "math": "math.jsonl",
    "gsm8k": "gsm8k.jsonl",
    "pubmedqa-labelled": "ori_pqal.json",
    "pubmedqa-artificial": "ori_pqal.json",
}


@pytest.mark.parametrize("name", [name for name in catalog.names() if name != "pubmedqa"])
def test_every_set_reads_its_schema_in_every_template(name: str) -> None:
    file = FILES.get(name, "meadow.json" if name.startswith("meadow-") else "alpaca.json")
    split = "all" if name.startswith("pubmedqa") else None
    raw = _read(name, file, template="raw", split=split)
    for template in catalog.get(name).templates:
        records = _read(name, file, template=template, split=split)
        assert [r.owner for r in records] == [r.owner for r in raw]
        assert len({r.id for r in records}) == len(records)
        assert all(r.completion.strip() and "{answer}" not in r.completion for r in records)
        assert all(not r.options or r.options[r.answer or 0] == r.completion for r in records)


# Splits, limits and filters.


def test_the_splits_of_pubmedqa_are_halves_and_a_tenth_of_each_decision() -> None:
    decisions = ["yes"] * 552 + ["no"] * 338 + ["maybe"] * 110
    parts = schemas.labelled_splits(decisions)
    assert Counter(parts) == {"test": 500, "train": 450, "validation": 50}
    for decision, count in Counter(decisions).items():
        assert sum(p == "test" and d == decision for p, d in zip(parts, decisions, strict=True)) == count // 2
    # The same code gives the authors' published list of test questions on their file.
    assert hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16] == "e00b321bd9b7e3bc"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published files")
def test_the_drawn_test_split_is_the_published_one() -> None:
    published = json.loads((SHARED / "pubmedqa_test_ground_truth.json").read_text())
    drawn = catalog.read("pubmedqa-labelled", path=SHARED / "pubmedqa_ori_pqal.json", split="test", template="raw")
    assert {record.id: record.completion for record in drawn} == published


def test_the_official_split_of_a_part_of_the_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"all 1,000 labelled rows, and here are 3; take split 'all'"):
        _read("pubmedqa-labelled", "ori_pqal.json")
    with pytest.raises(DataError, match=r"all 211,269 artificial rows, and here are 3; take split 'all'"):
        _read("pubmedqa-artificial", "ori_pqal.json")


def test_labelled_rows_are_parted_without_overlap(tmp_path: Path) -> None:
    rows = {
        str(i): {"QUESTION": f"q{i}", "CONTEXTS": ["c"], "final_decision": ("yes", "no", "maybe", "yes")[i % 4]}
        for i in range(1000)
    }
    path = tmp_path / "ori_pqal.json"
    path.write_text(json.dumps(rows))
    ids = {s: {r.id for r in catalog.read("pubmedqa-labelled", path=path, split=s)} for s in ("train", "test", "all")}
    default = {r.id for r in catalog.read("pubmedqa-labelled", path=path)}
    assert (len(ids["train"]), len(ids["test"]), len(default)) == (450, 500, 500)
    assert default | ids["test"] == ids["all"]


def test_artificial_rows_are_parted_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "ARTIFICIAL", 3)
    monkeypatch.setattr(schemas, "ARTIFICIAL_TRAIN", 2)
    train, validation = (
        {r.id for r in _read("pubmedqa-artificial", "ori_pqal.json", split=split)} for split in ("train", "validation")
    )
    assert len(train) == 2
    assert train | validation == {"91", "92", "93"}


def test_no_case_of_echr_is_parted_and_the_shares_are_right() -> None:
    parts = Counter(schemas.case_split(f"echr/train:{i}", 42) for i in range(10_000))
    assert all(abs(parts[name] / 10_000 - share) < 0.02 for name, share in (("train", 0.45), ("test", 0.1)))
    whole = {(r.owner, r.id) for r in _read("echr", "echr.jsonl")}
    split = [{(r.owner, r.id) for r in _found("echr", "echr.jsonl", s)} for s in ("train", "test", "validation")]
    assert set().union(*split) == whole
    assert sum(len({owner for owner, _ in part}) for part in split) == 2


def _found(name: str, file: str, split: str) -> list[Record]:
    try:
        return _read(name, file, split=split)
    except DataError:  # with two cases some split is empty
        return []


def test_a_split_of_a_folder_is_its_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps([{"input": split, "output": "x"}]))
    assert [r.prompt for r in catalog.read("medical-flashcards", path=tmp_path, template="raw")] == ["train"]


def test_the_variant_takes_the_first_10_000_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "q", "output": "a"}\n' * 10_001)
    assert sum(1 for _ in catalog.read("medical-flashcards-10000", path=path)) == 10_000
    assert sum(1 for _ in catalog.read("medical-flashcards", path=path)) == 10_001


@pytest.mark.parametrize(
    ("name", "file", "most", "left"),
    [
        ("medical-flashcards", "flashcards.json", 60, 1),  # question and answer
        ("medmcqa", "medmcqa_hub.jsonl", 26, 2),  # the question alone
        ("echr", "echr.jsonl", 22, 1),
        ("enron", "enron.jsonl", 150, 1),
    ],
)
def test_rows_beyond_the_length_are_left_out_and_counted(name: str, file: str, most: int, left: int) -> None:
    counts: Counter[str] = Counter()
    whole = len(_read(name, file))
    assert len(_read(name, file, length=len, max_length=most, counts=counts)) == left
    assert counts["too long"] + counts["no answer"] >= whole - left > 0


def test_an_empty_answer_is_left_out_and_counted() -> None:
    counts: Counter[str] = Counter()
    assert len(_read("medical-flashcards", "flashcards.json", counts=counts)) == 2
    assert counts == {"no answer": 1}


# The hub.


@pytest.mark.parametrize(
    ("name", "file", "asked"),
    [
        (
            "medical-flashcards",
            "flashcards.json",
            [("medalpaca/medical_meadow_medical_flashcards", None, "train", None)],
        ),
        ("medmcqa", "medmcqa_hub.jsonl", [("openlifescienceai/medmcqa", None, "train", None)]),
        (
            "echr",
            "echr.jsonl",
            [
                ("AUEB-NLP/ecthr_cases", None, split, "alleged-violation-prediction")
                for split in ("train", "test", "validation")
            ],
        ),
        ("enron", "enron.jsonl", [("LLM-PBE/enron-email", None, "train", None)]),
        ("gsm8k", "gsm8k.jsonl", [("openai/gsm8k", "main", "train", None)]),
        ("mmlu-medical", "mmlu_hub.jsonl", [("cais/mmlu", s, "test", None) for s in schemas.MMLU_SUBJECTS]),
    ],
)
def test_the_hub_is_asked_for_the_right_set(
    name: str, file: str, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    calls = []

    def load(hub: str, config: str | None, *, split: str, data_dir: str | None, **options: Any) -> Any:
        calls.append((hub, config, split, data_dir))
        return iter(_rows(file))

    monkeypatch.setattr(datasets, "load_dataset", load)
    records = list(catalog.read(name))
    assert calls == asked
    assert len({r.id for r in records}) == len(records)


def test_pubmedqa_is_both_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load(hub: str, config: str | None, *, split: str, **options: Any) -> Any:
        calls.append((hub, config, split))
        rows = _rows("pubmedqa_hub.jsonl")
        return iter({**rows[i % 3], "pubid": i} for i in range(1000 if config == "pqa_labeled" else 3))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(schemas, "ARTIFICIAL", 3)
    monkeypatch.setattr(schemas, "ARTIFICIAL_TRAIN", 2)
    records = list(catalog.read("pubmedqa"))
    assert calls == [("qiaojin/PubMedQA", "pqa_labeled", "train"), ("qiaojin/PubMedQA", "pqa_artificial", "train")]
    assert Counter(r.origin for r in records) == {"pubmedqa-labelled": 500, "pubmedqa-artificial": 2}


# What is refused.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("medqca", {}, r"no data set called 'medqca'; did you mean medqa or medmcqa"),
        ("???", {}, r"no data set called '\?\?\?'; `reticent data list` shows them"),
        ("medmcqa", {"split": "dev"}, r"no split 'dev'; it has train, validation, test"),
        ("medmcqa", {"template": "chatml"}, r"no template 'chatml'; it has verbatim, raw, alpaca, vicuna, course"),
        ("medmcqa", {"seed": 1}, r"unknown option 'seed'; its options: label_base"),
        (
            "i2b2-2014",
            {},
            r"needs a signed agreement: ask the n2c2 portal of Harvard.*then give its file or folder as path",
        ),
        ("pubmed-abstracts", {}, r"a local file: .*then give its file or folder as path"),
        ("enron", {"path": Path("gone.jsonl")}, r"gone.jsonl: there is no such file"),
    ],
)
def test_a_wrong_question_is_refused_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        catalog.read(name, **options)


QUESTION = {"question": "SECRET", "opa": "a", "opb": "b", "opc": "c", "opd": "d"}
CLOSED = {"pubid": 1, "question": "SECRET", "context": {"contexts": ["c"]}, "final_decision": "yes"}


@pytest.mark.parametrize(
    ("name", "row", "options", "message"),
    [
        (
            "medmcqa",
            QUESTION | {"cop": 4},
            {"label_base": 0},
            r"a.jsonl:1: field 'cop' is not in 0..3; check label_base",
        ),
        ("medmcqa", QUESTION | {"cop": 0}, {"label_base": 1}, r"field 'cop' is not in 1..4; check label_base"),
        ("medmcqa", QUESTION | {"cop": -1}, {"label_base": 0}, r"the test split has no answers"),
        ("medmcqa", QUESTION | {"cop": True}, {"label_base": 0}, r"field 'cop' is not in 0..3"),
        ("medmcqa", QUESTION | {"cop": 2}, {}, r"never 0 nor 4 in 1 rows.*set label_base"),
        ("medmcqa", QUESTION | {"cop": 2}, {"label_base": 2}, r"label_base is 0 .* or 1 .*, got 2"),
        ("medmcqa", QUESTION | {"cop": 0, "opd": None}, {}, r"a.jsonl:1: field 'opd' must be text, got NoneType"),
        ("pubmedqa-labelled", CLOSED | {"final_decision": "SECRET"}, {"split": "all"}, r"must be yes, no or maybe"),
        ("pubmedqa-labelled", CLOSED | {"context": "SECRET"}, {"split": "all"}, r"contexts must be a list of texts"),
        ("medqa", {"question": "SECRET", "options": ["x"]}, {}, r"field 'options' must be an object"),
        (
            "medqa",
            {"question": "SECRET", "options": {"A": "x"}, "answer_idx": "E"},
            {},
            r"none of the options' letters",
        ),
        ("mmlu-medical", {"question": "SECRET", "choices": ["x"], "answer": 0}, {}, r"must be a list of four texts"),
        ("mmlu-medical", {"question": "SECRET", "choices": ["x"] * 4, "answer": 9}, {}, r"must be a letter of A to D"),
        ("echr", {"facts": "SECRET"}, {}, r"a.jsonl:1: field 'facts' must be a list of texts"),
        ("enron", {"text": "SECRET"}, {}, r"a.jsonl:1: the message has no sender"),
        ("enron", {"text": "SECRET"}, {"no_sender": "drop"}, r"enron: no record is left"),
        ("enron", {"text": "SECRET"}, {"no_sender": "keep"}, r"no_sender is stop or drop, got 'keep'"),
        ("medical-flashcards", {"input": "SECRET"}, {}, r"a.jsonl:1: there is no field 'output'"),
        ("medical-flashcards", {"input": "SECRET", "output": " "}, {}, r"no record is left"),
        ("medical-flashcards", {"input": "SECRET", "output": "x"}, {"split": "train"}, r"a file holds no splits"),
        ("pubmedqa", {}, {}, r"give each its path or split"),
    ],
)
def test_a_row_that_is_not_of_the_schema_is_refused(
    tmp_path: Path, name: str, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message) as caught:
        list(catalog.read(name, path=tmp_path / "a.jsonl", **options))
    assert "SECRET" not in str(caught.value)


def test_both_label_bases_in_one_file_are_refused(tmp_path: Path) -> None:
    rows = [QUESTION | {"cop": 0}, QUESTION | {"cop": 4}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"a.jsonl:2: field 'cop' is not in 0..3"):
        list(catalog.read("medmcqa", path=tmp_path / "a.jsonl"))


# Listings.


def test_a_listing_has_every_set_once() -> None:
    assert [row[0] for row in catalog.table()] == catalog.names()
    assert ("i2b2-2014", "needs a signed agreement") in [(row[0], row[3]) for row in catalog.table()]
    rows = {row[0]: row[2] for row in catalog.table()}
    assert (rows["medical-flashcards-10000"], rows["medmcqa"], rows["echr"]) == ("10,000", "182,822", "11,000")


@pytest.mark.parametrize("name", catalog.names())
def test_a_description_says_where_it_is_and_who_owns_it(name: str) -> None:
    shown = dict(catalog.describe(name))
    assert {"name", "title", "columns", "owner", "licence", "access", "template verbatim"} <= set(shown)
    assert "hub" in shown or shown["access"] != "open"


def test_a_template_is_shown_to_the_character() -> None:
    assert dict(catalog.describe("medical-flashcards"))["template verbatim"] == (
        r"'Open Question: {question}\nThe answer is:' + ' {answer}\n'"
    )
