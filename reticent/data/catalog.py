"""Named data sets, as the systems that reticent follows use them: their places, columns, splits and exact texts.

Each loads from the Hugging Face hub, or from local files in the same schema (``path``). A text is a prompt and a
completion; the two joined are the source system's text to the character, and the cut lies before the blank that opens
the answer, so that the completion is just what is learned. The systems:

- "Mitigating Unintended Memorization with LoRA in Federated Learning for LLMs", arXiv 2502.05087;
- OpenFedLLM, arXiv 2402.06954, and the course on federated fine-tuning by Flower and DeepLearning.AI;
- the differentially private fine-tuning of github.com/dayu11/dp_finetuning_of_llms;
- LLM-PBE, arXiv 2408.12787, and its fine-tuning code LLM-PFT;
- MedAlpaca, arXiv 2304.08247.

No licence stands here that its page does not state; read the page before you publish a model.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from reticent.data import schemas
from reticent.data.record import Record
from reticent.data.schemas import SEE_PAGE, DataSet, Query, items
from reticent.errors import DataError

Template = Literal["verbatim", "raw", "alpaca", "vicuna", "course", "question"]

ITSELF = "none: no person stands behind a row, so each is a unit of its own"

ASKED = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
# Templates for any set that has a question and an answer. OpenFedLLM's, and the course's without its blank lines.
SHARED = {
    "raw": ("{question}", "{answer}"),
    "alpaca": (ASKED + "\n\n### Instruction:\n{question} \n\n### Response:", " {answer}"),
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: {question} ASSISTANT:",
        " {answer}",
    ),
    "course": (ASKED + "\n### Instruction:\n{question}\n### Response:", " {answer}"),
}
MEDALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n",
    "{answer}",
)


def names() -> list[str]:
    """All names, in order."""
    return sorted(_SETS)


def get(name: str) -> DataSet:
    """The data set called ``name``.

    Raises:
        DataError: There is none.
    """
    if name not in _SETS:
        near = difflib.get_close_matches(name, _SETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`reticent data list` shows them"
        raise DataError(f"there is no data set called {name!r}; {hint}")
    return _SETS[name]


def read(
    name: str,
    *,
    path: Path | None = None,
    split: str | None = None,
    template: Template = "verbatim",
    limit: int | None = None,
    length: Callable[[str], int] | None = None,
    max_length: int = 1024,
    counts: Counter[str] | None = None,
    **options: Any,
) -> Iterator[Record]:
    """The records of the data set called ``name``, in a stream.

    ``path`` is a local file, archive or folder in the same schema; a split is then a file or folder of that name.
    ``template``: "verbatim" is the source system's text, "raw" the bare question and answer for a chat template;
    `DataSet.templates` has them all. ``limit`` counts rows of the source, before any is left out. With ``length`` (a
    tokenizer's count, say) rows beyond ``max_length`` are left out, as the source does. ``counts`` is told, by reason,
    how many rows were left out or changed. ``options``: see `DataSet.options`.

    Raises:
        DataError: At once: an unknown name, split, template or option, or a set that must be given as ``path``. In the
            stream: it cannot be reached, or a row is not of its schema.
    """
    data = get(name)
    if template not in data.templates:
        raise DataError(f"{name}: there is no template {template!r}; it has {', '.join(data.templates)}")
    if unknown := sorted(set(options) - set(data.options)):
        known = ", ".join(data.options) or "none"
        raise DataError(f"{name}: unknown option {unknown[0]!r}; its options: {known}")
    if split is not None and not _has_split(data, split):
        raise DataError(f"{name}: there is no split {split!r}; it has {', '.join(data.splits) or 'only one'}")
    if path is None and data.hub is None:
        raise DataError(f"{name}: {data.access}; then give its file or folder as path")
    if path is not None and not path.exists():
        raise DataError(f"{path}: there is no such file; check the path (it is relative to the recipe)")
    asked = Query(
        data=data,
        path=path,
        split=split,
        template=template,
        limit=data.default_limit if limit is None else limit,
        length=length,
        max_length=max_length,
        counts=Counter() if counts is None else counts,
        options=options,
    )
    return _non_empty(data.read(asked), name)


def _has_split(data: DataSet, split: str) -> bool:
    return split == "all" or all(part in data.splits for part in split.split("+"))


def _non_empty(records: Iterator[Record], name: str) -> Iterator[Record]:
    first = next(records, None)
    if first is None:
        raise DataError(f"{name}: no record is left; check split, limit and max_length")
    yield from chain([first], records)


def table() -> list[tuple[str, str, str, str]]:
    """Name, title, rows and access of every data set, for a listing."""
    return [(name, data.title, _row_count(data), data.access.split(":")[0]) for name, data in sorted(_SETS.items())]


def _row_count(data: DataSet) -> str:
    """How many rows are read unless more or less is asked for, where that is known."""
    parts = list(data.splits) if data.default_split == "all" else data.default_split.split("+")
    counts = [data.splits.get(part) for part in parts]
    known = [count for count in counts if count is not None]
    if not known or len(known) < len(counts):
        return ""
    return f"{min(sum(known), data.default_limit or sum(known)):,}"


def describe(name: str) -> list[tuple[str, str]]:
    """What is known of a data set: label and value, to be shown.

    Raises:
        DataError: There is no such data set.
    """
    data = get(name)
    split = ", ".join(part if count is None else f"{part} ({count:,})" for part, count in data.splits.items())
    shown = [
        ("name", data.name),
        ("title", data.title),
        ("source", data.source),
        ("hub", " ".join(filter(None, (data.hub, data.config, data.folder)))),
        ("splits", split),
        ("default split", data.default_split if data.splits else ""),
        ("default limit", f"{data.default_limit:,} rows" if data.default_limit else ""),
        ("columns", ", ".join(f"{column}: {kind}" for column, kind in data.columns.items())),
        ("owner", data.owner),
        ("filters", data.filters),
        ("licence", data.licence),
        ("access", data.access),
        *((f"option {option}", meaning) for option, meaning in data.options.items()),
        *((f"template {label}", f"{prompt!r} + {rest!r}") for label, (prompt, rest) in data.templates.items()),
    ]
    return [(label, value) for label, value in shown if value]


def _pubmedqa(asked: Query) -> Iterator[Record]:
    """Both parts, each with its own defaults."""
    if asked.path is not None or asked.split is not None:
        raise DataError(
            f"{asked.data.name}: is made of pubmedqa-labelled and pubmedqa-artificial; give each its path or split"
        )
    for part in ("pubmedqa-labelled", "pubmedqa-artificial"):
        data = _SETS[part]
        limit = data.default_limit if asked.limit is None else asked.limit
        yield from data.read(replace(asked, data=data, limit=limit))


# The sets.

TEXT = {"verbatim": ("", "{text}"), "raw": ("", "{text}")}
MCQ = ("MCQ: {question}\nOptions:\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nThe answer is:", " {answer}\n")
CLOSED = ("Closed Question: {contexts}\n{question}\nThe answer is:", " {answer}\n")
BLOCK = ("Question: {block}\nThe answer is:", " {answer}")
ASKED_ONLY = {"question": ("", "{asked}")}
TOO_LONG = "with `length`: {} longer than max_length are left out"
INSTRUCTED = {"instruction": "text", "input": "text", "output": "text"}
PUBMEDQA = {
    "QUESTION": "text",
    "CONTEXTS": "list of text",
    "final_decision": "yes, no or maybe",
    "LABELS, MESHES, YEAR, LONG_ANSWER, ...": "not read",
}


def _flashcards(name: str, title: str, limit: int | None) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        hub="medalpaca/medical_meadow_medical_flashcards",
        splits={"train": 33_955},
        default_limit=limit,
        columns=INSTRUCTED,
        templates={
            "verbatim": ("Open Question: {question}\nThe answer is:", " {answer}\n"),
            **SHARED,
            **ASKED_ONLY,
        },
        owner=ITSELF,
        licence="CC (the hub page does not say which)",
        filters=TOO_LONG.format("rows whose question and answer are"),
        read=items(schemas.flashcard),
    )


def _meadow_set(part: str, title: str, count: int | None) -> DataSet:
    return DataSet(
        name="meadow-" + part.replace("_", "-"),
        title=f"Medical Meadow: {title}",
        hub=f"medalpaca/medical_meadow_{part}",
        splits={"train": count},
        columns=INSTRUCTED,
        templates={"verbatim": MEDALPACA, **SHARED},
        owner=ITSELF,
        read=items(schemas.meadow),
    )


def _instructions(
    name: str,
    title: str,
    hub: str,
    read_set: Callable[[Query], Iterator[Record]],
    columns: Mapping[str, str] = INSTRUCTED,
    *,
    config: str | None = None,
    count: int | None = None,
    licence: str = SEE_PAGE,
    filters: str = "none",
) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        hub=hub,
        config=config,
        splits={"train": count},
        columns=columns,
        templates={"verbatim": SHARED["alpaca"], **SHARED},
        owner=ITSELF,
        licence=licence,
        filters=filters,
        read=read_set,
    )


def _pubmedqa_set(name: str, title: str, **settings: Any) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        hub="qiaojin/PubMedQA",
        hub_splits=("train",),
        columns=PUBMEDQA,
        templates={"verbatim": CLOSED, **SHARED, **ASKED_ONLY},
        owner="the article: its number (PMID); no person stands behind it",
        licence="MIT",
        filters=TOO_LONG.format("rows whose contexts and question are"),
        **settings,
    )


_SETS: dict[str, DataSet] = {
    data.name: data
    for data in (
        _flashcards("medical-flashcards", "Medical flashcards (Medical Meadow)", None),
        _flashcards("medical-flashcards-10000", "Medical flashcards, the first 10,000", 10_000),
        DataSet(
            name="medmcqa",
            title="MedMCQA: Indian medical entrance examinations",
            hub="openlifescienceai/medmcqa",
            splits={"train": 182_822, "validation": 4_183, "test": 6_150},
            columns={
                "id": "text",
                "question": "text",
                "opa, opb, opc, opd": "text",
                "cop": "0..3 on the hub, 1..4 in the original files",
                "exp, subject_name, topic_name, choice_type": "not read",
            },
            templates={"verbatim": MCQ, **SHARED},
            owner=ITSELF,
            licence="Apache 2.0",
            filters="a question that ends in none of ? . : - gets a ? (verbatim); "
            + TOO_LONG.format("rows whose question is"),
            options={"label_base": "0 or 1: what `cop` counts from; found out if left out"},
            read=schemas.medmcqa,
        ),
        _pubmedqa_set(
            "pubmedqa",
            "PubMedQA: 500 labelled and 50,000 artificial questions",
            source="bigbio/pubmed_qa, both of the following sets",
            read=_pubmedqa,
        ),
        _pubmedqa_set(
            "pubmedqa-labelled",
            "PubMedQA, labelled by experts (PQA-L), fold 0",
            config="pqa_labeled",
            source="bigbio/pubmed_qa pubmed_qa_labeled_fold0_source, of which `datasets` no longer runs the script",
            splits={"train": 450, "validation": 50, "test": 500},
            default_split="train+validation",
            read=schemas.pubmedqa_labelled,
        ),
        _pubmedqa_set(
            "pubmedqa-artificial",
            "PubMedQA, made from titles (PQA-A)",
            config="pqa_artificial",
            source="bigbio/pubmed_qa pubmed_qa_artificial_source, of which `datasets` no longer runs the script",
            splits={"train": schemas.ARTIFICIAL_TRAIN, "validation": schemas.ARTIFICIAL - schemas.ARTIFICIAL_TRAIN},
            default_limit=50_000,
            read=schemas.pubmedqa_artificial,
        ),
        DataSet(
            name="medqa",
            title="MedQA: US medical licensing examination, four options",
            hub="GBaker/MedQA-USMLE-4-options",
            splits={"train": None, "test": None},
            columns={
                "question": "text",
                "options": "object of A..D",
                "answer_idx": "letter",
                "answer, meta_info, metamap_phrases": "not read",
            },
            templates={"verbatim": BLOCK, **SHARED},
            owner=ITSELF,
            read=items(schemas.medqa),
        ),
        DataSet(
            name="mmlu-medical",
            title="MMLU: nine medical and biological subjects",
            hub="cais/mmlu",
            config=f"each of {', '.join(schemas.MMLU_SUBJECTS)}",
            splits={"test": None, "validation": None, "dev": None},
            default_split="test",
            columns={
                "question": "text",
                "choices": "list of four (hub), or four columns A to D (the original csv, no header)",
                "answer": "0..3 (hub) or letter (csv)",
            },
            templates={"verbatim": BLOCK, **SHARED},
            owner=ITSELF,
            licence="MIT",
            read=schemas.mmlu,
        ),
        DataSet(
            name="i2b2-2014",
            title="i2b2/UTHealth 2014: 1,304 clinical notes of 296 patients, identifiers marked",
            columns={"XML": "as distributed: TEXT, TAGS; or PHI_dataset.json: id, text, tags"},
            templates={
                "verbatim": ("", "Medical Note: {id}\n{note}\n"),
                "raw": ("", "Medical Note: {id}\n{note}\n"),
            },
            owner="the patient: the first three digits of xxx-yy; a patient's notes share what identifies",
            licence="data use agreement",
            access="needs a signed agreement: ask the n2c2 portal of Harvard's Department of Biomedical Informatics, "
            "https://portal.dbmi.hms.harvard.edu/projects/n2c2-nlp/",
            filters="with `length`: a note longer than max_length is cut where it fits",
            read=schemas.i2b2_notes,
        ),
        DataSet(
            name="echr",
            title="European Court of Human Rights: the facts of 11,000 cases",
            hub="AUEB-NLP/ecthr_cases",
            folder="alleged-violation-prediction",
            revision="refs/convert/parquet",
            source="ecthr_cases, all its splits joined; of the page `datasets` reads the parquet branch",
            splits={"train": 9_000, "test": 1_000, "validation": 1_000},
            default_split="all",
            columns={"facts": "list of text", "labels, silver_rationales, gold_rationales": "not read"},
            templates={"verbatim": ("", "{fact}"), "raw": ("", "{fact}")},
            owner="the case: its facts tell of the same people, so no split may part them",
            licence="CC BY-NC-SA 4.0",
            filters="empty facts are left out; " + TOO_LONG.format("facts"),
            options={"seed": "draws the splits (train 45 %, test 10 %, validation 45 % of the cases); 42"},
            read=schemas.echr,
        ),
        DataSet(
            name="enron",
            title="Enron mail (LLM-PBE)",
            hub="LLM-PBE/enron-email",
            splits={"train": None},
            columns={"text": "a whole message, with its headers (or `message`, of the corpus as csv)"},
            templates=TEXT,
            owner="the sender: the address of the From: header in lower case",
            licence="Apache 2.0 (the hub's copy)",
            filters=TOO_LONG.format("messages"),
            options={"no_sender": "stop, or drop (counted): a message without a sender"},
            read=schemas.enron,
        ),
        DataSet(
            name="pubmed-abstracts",
            title="PubMed abstracts of 2023-08-01 to 2023-08-07",
            access="a local file: the folder pubmed_dataset_0801_0807 of dayu11/dp_finetuning_of_llms, or your own",
            splits={"train": 75_316, "validation": 14_423, "test": 4_453},
            columns={"text": "text"},
            # The instruction ends in a blank and another one is put before the answer.
            templates={"verbatim": ("Abstract: ", " {answer}"), "raw": ("", "{answer}")},
            owner=ITSELF,
            read=items(schemas.abstract),
        ),
        DataSet(
            name="instruction-json",
            title="Your own instructions: an object of two lists, instruction and answer",
            access='a local file: {"instruction": [...], "answer": [...]}, or rows of these two fields',
            columns={"instruction": "text, may be empty", "answer": "text"},
            templates={**SHARED, "verbatim": ("{question}", " {answer}")},
            owner=ITSELF,
            licence="yours",
            read=items(schemas.asking("instruction", "answer")),
        ),
        _meadow_set("wikidoc", "WikiDoc's living textbook", None),
        _meadow_set("wikidoc_patient_information", "WikiDoc's patient information", 5_942),
        _meadow_set("medqa", "MedQA", 10_178),
        _meadow_set("mediqa", "MEDIQA", 2_208),
        _meadow_set("cord19", "CORD-19", 821_007),
        _meadow_set("mmmlu", "medical MMLU", 3_787),
        _meadow_set("pubmed_causal", "causal statements in PubMed", 2_446),
        _meadow_set("health_advice", "health advice", 8_676),
        _instructions(
            "alpaca",
            "Alpaca",
            "tatsu-lab/alpaca",
            items(schemas.alpaca),
            licence="CC BY-NC 4.0",
        ),
        _instructions("alpaca-cleaned", "Alpaca, cleaned", "yahma/alpaca-cleaned", items(schemas.alpaca)),
        _instructions(
            "alpaca-gpt4",
            "Alpaca, answered by GPT-4",
            "vicgalle/alpaca-gpt4",
            items(schemas.alpaca),
            licence="CC BY-NC 4.0",
        ),
        _instructions("code-alpaca", "CodeAlpaca", "lucasmccabe-lmi/CodeAlpaca-20k", items(schemas.alpaca)),
        _instructions("finance-alpaca", "Alpaca for finance", "gbharti/finance-alpaca", items(schemas.alpaca)),
        _instructions(
            "fingpt-sentiment",
            "FinGPT: sentiment of financial news",
            "FinGPT/fingpt-sentiment-train",
            items(schemas.alpaca),
        ),
        _instructions(
            "wizardlm",
            "WizardLM: evolved instructions",
            "WizardLM/WizardLM_evol_instruct_70k",
            items(schemas.asking("instruction", "output")),
            {"instruction": "text", "output": "text"},
        ),
        _instructions(
            "math-instruct",
            "MathInstruct",
            "TIGER-Lab/MathInstruct",
            schemas.first_of_each_instruction,
            {"instruction": "text", "output": "text", "source": "not read"},
            filters="of rows with the same instruction the first is kept",
        ),
        _instructions(
            "math",
            "MATH: competition problems",
            "lighteval/MATH",
            items(schemas.asking("problem", "solution")),
            {"problem": "text", "solution": "text", "level, type": "not read"},
            config="all",
        ),
        _instructions(
            "gsm8k",
            "GSM8K: school mathematics",
            "openai/gsm8k",
            items(schemas.asking("question", "answer")),
            {"question": "text", "answer": "text"},
            config="main",
        ),
    )
}
