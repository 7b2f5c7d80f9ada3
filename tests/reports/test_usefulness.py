"""Benchmarks, groups and answers on the page: what stands there, and what must not."""

import re

import pytest

from reticent.reports import answers, usefulness
from reticent.reports.render import render
from reticent.reports.report import Examination, Report
from reticent.reports.schema import validate


def _exam(report: Report, title: str) -> usefulness.Exam:
    return next(exam for exam in usefulness.exams(report).exams if exam.title == title)


def _line(report: Report, part: str) -> answers.Line:
    return next(line for line in answers.verdicts(report) if part in line.text)


def test_a_report_with_all_of_it_keeps_to_the_schema(used: Report) -> None:
    validate(used)  # type: ignore[arg-type]  # as plain values


def test_the_page_has_each_id_once_and_sends_nothing(used_page: str) -> None:
    ids = re.findall(r' id="([^"]*)"', used_page)
    assert len(ids) == len(set(ids))
    assert not re.search(
        r"https?://|<script|<link|@import|src=|url\((?!#)", re.sub(r'xmlns(:\w+)?="[^"]*"', "", used_page)
    )


def test_models_stand_from_base_to_private_above_what_guessing_reaches(used: Report) -> None:
    rows = _exam(used, "PubMedQA").rows
    assert [row.who for row in rows] == [
        "Base model",
        "Non-private twin",
        "Private model",
        "Most frequent answer",
        "Guessing",
    ]
    assert rows[2].cells[:2] == ["55.0\u202f%", "50.6\u202f% to 59.3\u202f%"]  # 275 of 500, Wilson
    assert rows[4].cells[0] == "33.3\u202f%"


def test_columns_that_no_benchmark_has_are_left_out(used: Report) -> None:
    assert usefulness.exams(used).head == [
        "Model",
        "Accuracy",
        "95\u202f% interval",
        "Not trained on",
        "Macro F1",
        "Written, not readable",
    ]
    used["measurements"] = [m for m in used["measurements"] if not m["name"].startswith("unparsed")]
    assert usefulness.exams(used).head[-1] == "Macro F1"


def test_contamination_is_marked_on_page_one_in_the_table_and_in_the_figure(used: Report, used_page: str) -> None:
    told = "12 of 500 items stand in the training data; the score is not evidence."
    assert _line(used, "PubMedQA").note.startswith(f"{told} Without them: 54.9\u202f%.")  # 268 of 488
    assert _exam(used, "PubMedQA").contaminated == told
    assert re.search("<text[^>]*>contaminated</text>", used_page)
    assert f"Contaminated: {told}" in used_page


def test_a_clean_benchmark_has_no_mark(used: Report) -> None:
    assert _exam(used, "MedQA (four options)").contaminated == ""
    assert "evidence" not in _line(used, "MedQA (four").note


def test_one_item_stands(used: Report) -> None:
    exam: Examination = {"name": "x", "questions": 9, "scorer": "letter", "shots": 0, "contaminated": 1}
    assert usefulness.contaminated(exam) == "1 of 9 items stands in the training data; the score is not evidence."


def test_pairs_of_models_are_compared_in_words(used: Report) -> None:
    remarks = _exam(used, "PubMedQA").remarks
    assert "Only the base model is right on 24, only the private model on 109, p = 0.0003 (McNemar)." in remarks
    assert "3 questions did not fit and lost their beginning." in remarks


def test_page_one_has_benchmarks_in_place_of_held_out_questions(used: Report) -> None:
    (useful,) = [one for one in answers.answers(used) if one.key == "usefulness"]
    assert [line.text for line in useful.lines] == [
        "Questions of PubMedQA answered correctly",
        "Questions of MedQA (four options) answered correctly",
        "Questions of ward exam answered correctly",
        "Prediction of new text (perplexity, lower is better)",
    ]


def test_page_one_is_as_it_was_without_benchmarks(full: Report) -> None:
    (useful,) = [one for one in answers.answers(full) if one.key == "usefulness"]
    assert [line.text for line in useful.lines] == [
        "Questions answered correctly",
        "Prediction of new text (perplexity, lower is better)",
    ]


def test_a_name_with_a_comma_is_no_other_scorer() -> None:
    first = usefulness.BY_FIRST_SCORER
    assert re.fullmatch(first, "accuracy[ward, part 2]")
    assert not re.fullmatch(first, "accuracy[ward, part 2, letter]")


def test_other_scorers_stand_in_the_annex(used: Report) -> None:
    table = usefulness.other_scorers(used)
    assert table is not None
    assert table.rows[0][:2] == ["PubMedQA", "the likeliest option, per byte"]
    assert usefulness.other_scorers({**used, "measurements": []}) is None


def test_subjects_stand_in_the_annex(used: Report) -> None:
    table = usefulness.subjects(used)
    assert table is not None
    assert table.rows[0] == ["ward exam", "night shift", "60", "20.0\u202f%", "30.0\u202f%", "25.0\u202f%"]


def test_the_source_systems_parsing_stands_among_scores_that_mislead(listed: Report) -> None:
    page = render(listed)
    assert page.index("They mislead.") < page.index("compat accuracy[pubmedqa]")


def test_numbers_on_usefulness_are_no_attacks(used: Report, full: Report) -> None:
    assert answers.explored(used) == answers.explored(full)


def test_who_loses_most_stands_first(used: Report) -> None:
    silos, origins = usefulness.groups(used)
    assert [row[0] for row in silos.table.rows] == ["north", "south", "west"]
    assert "Protection costs north most: +31.0\u202f% against the non-private twin." in silos.meaning
    assert [row[0] for row in origins.table.rows] == ["notes", "q"]


def test_without_a_twin_the_base_model_is_compared_with(used: Report) -> None:
    used["measurements"] = [m for m in used["measurements"] if m["model"] != "twin"]
    silos, _ = usefulness.groups(used)
    assert "north gains least from the training: \u221247.6\u202f% against the base model." in silos.meaning


def test_answers_stand_side_by_side_from_base_to_private(used: Report) -> None:
    first, _ = usefulness.conversations(used["answers"])
    assert [who for who, _ in first.answers] == ["Base model", "Private model"]


def test_answers_that_are_withheld_are_named_with_their_place(listed: Report) -> None:
    page = render(listed)
    assert "What the non-private twin answered is withheld" in page
    assert "data/answers.json" in page
    assert "reticent show RUN" in page


def test_questions_and_answers_are_escaped(listed: Report) -> None:
    listed["answers"]["answers"]["base"][0] = "<script>alert(1)</script>"
    page = render(listed)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;fever" in page


def test_an_empty_answer_is_told(listed: Report) -> None:
    assert '<span class="dash">nothing</span>' in render(listed)


@pytest.mark.parametrize("heading", ["Usefulness", "Synthetic text", "The same questions", "Benchmarks, read"])
def test_a_run_without_any_of_it_has_no_empty_part(undrawn: Report, heading: str) -> None:
    assert f">{heading}" not in render(undrawn)
