"""The page on synthetic text: its promise, its tables and its verdicts."""

import pytest

from reticent.reports import annex, answers, plots, synthetic
from reticent.reports.render import render
from reticent.reports.report import Report


def _page(report: Report) -> synthetic.Synthetic:
    page = synthetic.page(report)
    assert page is not None
    return page


def _change(report: Report, name: str, **values: object) -> None:
    for one in report["measurements"]:
        if one["name"] == name:
            one.update(values)


def test_the_promise_of_the_model_is_that_of_the_text(used: Report) -> None:
    assert _page(used).promise[0].startswith("The promise of the model, ε = 3 per patient, is that of the text")


def test_a_promise_that_was_taken_back_is_so_for_the_text(listed: Report) -> None:
    listed["guarantee"] = {"epsilon": None, "broken": ["noise scale"]}
    page = render(listed)
    assert "Do not give it away" in page
    assert "Ward note." not in page


def test_what_was_left_out_is_counted_by_reason(used: Report) -> None:
    page = _page(used)
    assert page.made[0].startswith("The private model wrote 1,290 texts; 500 were kept.")
    assert page.funnel[0] == ("did not end in time", 402)
    assert len(page.funnel) == 5


def test_what_is_reached_of_real_text_is_told(used: Report) -> None:
    useful = _page(used).useful
    assert useful is not None
    assert [row[-1] for row in useful.rows] == [
        "91.3\u202f% (89.0\u202f% to 94.0\u202f%)",
        "87.8\u202f%",
    ]  # measured; .36 of .41


def test_likeness_stands_beside_that_of_training_text(used: Report) -> None:
    like = _page(used).like
    assert like is not None
    assert like.rows[0][1:3] == ["0.71 (0.66 to 0.75)", "0.93"]


def test_what_could_not_be_measured_is_told_with_the_reason(listed: Report) -> None:
    assert "task accuracy: synthetic.prompts is null, so no text has a label" in render(listed)


def test_overlap_stands_beside_that_of_held_out_text(used: Report) -> None:
    overlap = _page(used).overlap
    assert overlap is not None
    assert [row[1:] for row in overlap.rows] == [["2.5\u202f% (1.3\u202f% to 4.3\u202f%)", "2.1\u202f%"], ["19", "17"]]


def test_an_audit_without_a_positive_control_is_inconclusive(used: Report) -> None:
    assert {line.verdict and line.verdict.text for line in answers.synthetic(used)} == {
        "test inconclusive (no positive control)"
    }


def test_a_model_that_learned_from_real_text_is_the_positive_control(used: Report) -> None:
    (ours,) = [one for one in used["measurements"] if one["name"] == "synthetic_membership_auc"]
    used["measurements"].append({**ours, "model": "real", "value": 0.8, "interval": (0.75, 0.85)})
    line = answers.synthetic(used)[0]
    assert line.verdict is not None
    assert line.verdict.text == "no leak found by a test able to find leaks of size 0.58"  # .5 + 1.654 x .05
    assert line.twin == "0.80"
    assert '<th scope="col">Real text</th>' in render({**used, "plots": {"synthetic": {}}})


def test_a_leak_through_synthetic_text_is_one_for_the_gate(used: Report) -> None:
    before = answers.gate(used)
    _change(used, "synthetic_membership_auc", value=0.7, interval=(0.65, 0.75))
    assert [one for one in answers.gate(used) if one not in before] == [
        f"synthetic text: {answers.synthetic(used)[0].text}: leak demonstrated"
    ]


def test_a_bound_above_zero_is_a_leak_within_the_promise(used: Report) -> None:
    _change(used, "synthetic_epsilon_lower_bound", value=0.4)
    line = answers.synthetic(used)[-1]
    assert line.verdict is not None
    assert line.verdict.kind == "leak"
    assert "within the promise" in line.note


def test_tests_of_synthetic_text_say_nothing_on_attackers_of_the_model(used: Report) -> None:
    used["measurements"] = [m for m in used["measurements"] if m["name"].startswith("synthetic_")]
    assert [row[2] for row in annex.threats(used).rows] == ["yes", "no", "no", "no", "no"]


def test_samples_and_labels_are_escaped(listed: Report) -> None:
    listed["plots"]["synthetic"]["labels"] = {"<u>x</u>": 3}
    page = render(listed)
    assert "<i>Dr Ott" not in page
    assert "&lt;i&gt;Dr Ott" in page
    assert "&lt;u&gt;x" in page


def test_a_page_with_nothing_but_counts_has_no_empty_tables(full: Report) -> None:
    full["plots"] = {"synthetic": {"funnel": {"sampled": 3, "kept": 3}}}
    page = render(full)
    assert "wrote 3 texts; 3 were kept" in page
    for heading in ("How useful it is", "How like real", "What it shares", "What it gives away", "Samples"):
        assert heading not in page


@pytest.mark.parametrize("bins", [[[0.0, 1.0]], [[0.0, 0.25], [10.0, 0.75]]])
def test_any_number_of_lengths_can_be_drawn(bins: list[list[float]]) -> None:
    assert "synthetic" in plots.lengths({"real": bins, "synthetic": bins})


def test_lengths_of_one_kind_can_be_drawn() -> None:
    assert "real" not in plots.lengths({"real": [], "synthetic": [[0.0, 1.0]]}).replace("real text", "")
