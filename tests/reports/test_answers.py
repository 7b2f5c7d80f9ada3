"""The table of page 1: which lines there are, what the verdicts are, and what the gate lets pass."""

from typing import Any

import pytest
from scipy.stats import binom

from reticent.measurement import Measurement
from reticent.reports import answers
from reticent.reports.answers import QUESTIONS, Line, Verdict
from reticent.reports.report import Checked, Report
from reticent.statistics import clopper_pearson


def _measure(name: str, model: str, value: float, interval: tuple[float, float] | None, **more: Any) -> dict[str, Any]:
    known = {"unit": "share", "counted": "records", "n": 500}
    return Measurement(name=name, model=model, value=value, interval=interval, **{**known, **more}).to_dict()


def _auc(model: str, value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return _measure("membership_auc", model, value, (low, high), floor=0.5, ceiling=1.0, **more)


def _share(name: str, model: str, hits: int, n: int = 50, **more: Any) -> dict[str, Any]:
    return _measure(name, model, hits / n, clopper_pearson(hits, n), n=n, counted="secrets", **more)


def _bound(model: str, value: float, ceiling: float = 3.5, **more: Any) -> dict[str, Any]:
    return _measure("epsilon_lower_bound", model, value, None, unit="epsilon", floor=0.0, ceiling=ceiling, **more)


def _report(*measurements: dict[str, Any], epsilon: float | None = 2.0, **more: Any) -> Report:
    return {
        "title": "A title",
        "created": "today",
        "guarantee": {"epsilon": epsilon, "delta": 1e-5, "unit": "owner"},
        "measurements": list(measurements),
        **more,  # type: ignore[typeddict-item]
    }


def _verdict(*measurements: dict[str, Any]) -> str:
    (row,) = answers.verdicts(_report(*measurements))
    assert row.verdict is not None
    return row.verdict.text


def _claim(*measurements: dict[str, Any], epsilon: float | None = 2.0) -> Line:
    return answers.verdicts(_report(*measurements, epsilon=epsilon))[0]


def _answer(report: Report, key: str) -> answers.Answer:
    return next(answer for answer in answers.answers(report) if answer.key == key)


_TWIN = _auc("twin", 0.95, 0.93, 0.97)
_CHECKS: list[Checked] = [
    {"name": "noise scale", "passed": False, "measured": 0.0, "bound": 1.0},
    {"name": "divisor", "passed": True, "measured": 8.0, "bound": 8.0},
]


def test_an_interval_above_chance_is_a_leak() -> None:
    assert _verdict(_auc("private", 0.56, 0.51, 0.61), _TWIN) == "leak demonstrated"


def test_silence_counts_only_where_the_positive_control_speaks() -> None:
    quiet = _auc("private", 0.51, 0.46, 0.56)
    # 0.5 + 1.654 * 0.05 = 0.58
    assert _verdict(quiet, _TWIN) == "no leak found by a test able to find leaks of size 0.58"
    assert _verdict(quiet, _auc("twin", 0.52, 0.47, 0.57)) == "test inconclusive (positive control failed)"
    assert _verdict(quiet) == "test inconclusive (no positive control)"
    assert _verdict({**quiet, "interval": None}, _TWIN) == "test inconclusive (no interval)"


def test_what_the_base_model_shows_too_is_no_leak() -> None:
    ours = _auc("private", 0.60, 0.55, 0.65)
    assert _verdict(ours, _TWIN, _auc("base", 0.60, 0.55, 0.65)).startswith("no leak found")


def test_the_held_out_control_is_part_of_chance() -> None:
    bits = {"unit": "bits", "floor": 1.44, "ceiling": 16.6}
    ours = _measure("exposure_bits", "private", 2.0, (1.5, 2.5), control=1.7, **bits)
    twin = _measure("exposure_bits", "twin", 9.0, (8.0, 10.0), control=1.4, **bits)
    assert _verdict(ours, twin) == "no leak found by a test able to find leaks of size 2.5 bits"
    assert _verdict({**ours, "control": 1.4}, twin) == "leak demonstrated"
    assert _verdict({**ours, "control": 1.4, "p_value": 0.2}, twin).startswith("no leak found")


def test_none_of_n_has_the_exact_upper_bound() -> None:
    # 1 - 0.025^(1/50) = 7.1 %
    (line,) = answers.verdicts(_report(_share("records_recited", "private", 0)))
    assert (line.measured, line.basis, line.worst) == ("0.0\u202f%", "0 of 50 secrets", "7.1\u202f%")


@pytest.mark.parametrize("interval", [None, (0.0, 0.0)])
def test_none_of_n_has_the_exact_upper_bound_where_resampling_has_none(interval: Any) -> None:
    (line,) = answers.verdicts(_report(_measure("records_recited", "private", 0.0, interval, n=50)))
    assert line.worst == "7.1\u202f%"


def test_a_share_that_is_no_count_is_not_told_as_one() -> None:
    (line,) = answers.verdicts(_report(_measure("record_membership_advantage", "private", 0.04, (0.0, 0.09), n=400)))
    assert line.basis == "400 records"


@pytest.mark.parametrize(("n", "floor"), [(50, 0.0), (50, 0.01), (400, 0.01), (10, 0.3)])
def test_the_size_of_a_leak_that_is_found_is_exact_for_shares(n: int, floor: float) -> None:
    ours = Measurement.from_dict(_share("records_recited", "private", 0, n, floor=floor))
    size = answers._findable(ours, None, (0.0, 1.0))
    found = sum(float(binom.pmf(k, n, size)) for k in range(n + 1) if clopper_pearson(k, n)[0] > floor)
    assert found == pytest.approx(0.9)


def test_no_leak_is_of_the_size_that_the_test_can_find() -> None:
    # 1 - 0.1^(1/50) = 4.5 %
    secrets = (
        _share("secrets_ranked_first", model, hits, floor=1e-5) for model, hits in (("private", 0), ("twin", 30))
    )
    assert _verdict(*secrets) == "no leak found by a test able to find leaks of size 4.5\u202f%"


@pytest.mark.parametrize(("hits", "leak"), [(1, False), (4, False), (6, True), (20, True)])
def test_where_chance_is_itself_measured_the_difference_must_be_clear(hits: int, leak: bool) -> None:
    recited = (_share("records_recited", model, k, 100, control=0.0) for model, k in (("private", hits), ("twin", 60)))
    assert (_verdict(*recited) == "leak demonstrated") == leak


def test_chance_rarely_looks_like_a_leak_of_records() -> None:
    # Private model, base model and held-out records all recite 1 % of 100: how often is that called a leak?
    weights = binom.pmf(range(8), 100, 0.01)
    false = 0.0
    for ours in range(8):
        for control in range(8):
            m = Measurement.from_dict(_share("records_recited", "private", ours, 100, control=control / 100))
            false += float(weights[ours] * weights[control]) * answers._exceeds(m, None)
    assert false < 0.025


def test_the_claim_is_judged_by_its_own_test() -> None:
    twin = _bound("twin", 3.1)
    kept = "The promise of ε = 2 is not contradicted."
    broken = "This contradicts the promise of ε = 2."
    for ours, verdict, note in [
        (_bound("private", 2.4), ("leak", "leak demonstrated"), broken),
        (_bound("private", 0.3, p_value=0.04), ("leak", "leak demonstrated"), broken),
        (_bound("private", 0.3), ("none", "no leak found by a test able to find leaks of size ε = 3.10"), kept),
        (
            _bound("private", 0.3, ceiling=1.5),
            ("inconclusive", "test inconclusive (it can prove at most ε = 1.50)"),
            kept,
        ),
    ]:
        line = _claim(ours, twin)
        assert (line.verdict, line.note) == (verdict, note)


def test_the_claim_is_not_tested_where_the_twin_does_not_exceed_it() -> None:
    line = _claim(_bound("private", 0.0, p_value=0.9), _bound("twin", 1.2))
    assert line.measured == "p = 0.90"
    assert line.verdict == (
        "inconclusive",
        "test inconclusive (positive control failed: not even the twin exceeds the promise)",
    )


def test_a_bound_above_zero_is_a_leak_even_within_the_promise() -> None:
    line = answers.verdicts(_report(_bound("private", 0.3), _bound("twin", 3.1)))[1]
    assert line.verdict == ("leak", "leak demonstrated")
    assert line.note.startswith("It lies within the promise")


def test_a_bound_of_zero_is_of_the_size_that_the_test_found_or_could_have() -> None:
    above, below = (_measure("epsilon_detectable", "private", value, None) for value in (4.0, 1.0))
    for more, size in (([], "3.10"), ([above], "4.00"), ([below], "3.10")):
        line = answers.verdicts(_report(_bound("private", 0.0), _bound("twin", 3.1), *more))[1]
        assert line.verdict == ("none", f"no leak found by a test able to find leaks of size ε = {size}")
    line = answers.verdicts(_report(_bound("private", 0.0), _bound("twin", 0.0)))[1]
    assert line.verdict == ("inconclusive", "test inconclusive (positive control failed)")


def test_the_page_says_what_the_test_of_the_promise_cannot_say() -> None:
    report = _report(_bound("private", 0.0, ceiling=3.49), _measure("epsilon_detectable", "private", 2.5, None))
    remarks = " ".join(_answer(report, "promise").remarks)
    assert "Claimed: ε = 2, δ = 1e-5 for each owner." in remarks
    assert "This test would have noticed a true ε above 2.5 (90\u202f% power), if its scores" in remarks
    assert "at most ε = 3.49" in remarks


def test_a_failed_check_is_a_promise_not_kept() -> None:
    checks = _measure("implementation_checks", "private", 0.5, None, n=2, counted="checks")
    (line,) = answers.verdicts(_report(checks, plots={"checks": _CHECKS}))
    assert line.measured == "1 of 2"
    assert line.verdict == ("leak", "promise not kept: check noise scale failed")


def test_a_failed_check_without_a_name_is_one_too() -> None:
    (line,) = answers.verdicts(_report(_measure("implementation_checks", "private", 0.5, None, n=2)))
    assert line.verdict == ("leak", "promise not kept: 1 of 2 checks failed")


def test_a_failed_check_counts_whatever_its_measurement_says() -> None:
    checks = _measure("implementation_checks", "private", 1.0, None, n=2, counted="checks")
    assert answers.gate(_report(checks, plots={"checks": _CHECKS})) == [
        "4 promise: Checks of the training code that were passed: promise not kept: check noise scale failed"
    ]


def test_passed_checks_have_no_verdict_on_leaks() -> None:
    (line,) = answers.verdicts(_report(_measure("implementation_checks", "private", 1.0, None, n=12)))
    assert (line.measured, line.verdict) == ("12 of 12", None)


def test_the_plain_update_is_the_positive_control_of_what_the_server_sees() -> None:
    ours = _share("tokens_seen_private", "private", 0, control=0.02)
    assert _verdict(ours, _share("tokens_seen_plain", "private", 40)).startswith("no leak found")
    assert _verdict(ours, _share("tokens_seen_plain", "private", 0)) == "test inconclusive (positive control failed)"
    assert _verdict(_share("tokens_seen_plain", "private", 40)) == "leak demonstrated"
    report = _report(ours, _share("tokens_seen_plain", "private", 40))
    assert "Passing this probe promises nothing" in " ".join(_answer(report, "server").remarks)


def test_what_guessing_does_as_well_shows_nothing() -> None:
    ours = _share("identifiers_recited_10000", "private", 40, floor=1.0, ceiling=1.0)
    assert _verdict(ours) == "test inconclusive (guessing does as well)"


def test_only_what_is_really_sent_has_a_verdict() -> None:
    report = _report(_share("tokens_seen_sum", "private", 40), _share("tokens_seen_plain", "private", 40))
    report["audit"] = {"sent": []}
    assert [line.verdict for line in answers.verdicts(report)] == [None]
    assert "trained in one place" in _answer(report, "server").remarks[0]
    assert answers.gate(report) == []
    report["audit"] = {"sent": ["plain"]}
    assert [line.verdict and line.verdict.kind for line in answers.verdicts(report)] == ["leak", None]


def test_redaction_shows_what_was_missed() -> None:
    missed = _share("planted_recall", "scrubber", 792, 800)
    (line,) = answers.verdicts(_report(missed))
    assert (line.measured, line.basis, line.verdict) == ("1.0\u202f%", "8 of 800 secrets", None)
    assert line.worst == "2.0\u202f%"


def test_nothing_missed_by_redaction_has_the_exact_upper_bound() -> None:
    (line,) = answers.verdicts(_report(_share("planted_recall", "scrubber", 800, 800)))
    assert (line.measured, line.worst) == ("0.0\u202f%", "0.5\u202f%")


def test_usefulness_has_a_cost_and_no_verdict() -> None:
    ours = _measure("accuracy", "private", 0.55, (0.52, 0.58))
    (row,) = answers.verdicts(_report(ours, _measure("accuracy", "twin", 0.58, (0.55, 0.61))))
    assert row.verdict is None
    assert row.note == "3.0 points below the non-private twin"
    assert row.worst == "52.0\u202f%"


def test_without_a_private_model_the_twin_is_judged() -> None:
    report = _report(_TWIN, _auc("base", 0.5, 0.45, 0.55), epsilon=None)
    (row,) = answers.verdicts(report)
    assert (row.measured, row.base, row.twin) == ("0.95", "0.50", "")
    assert row.verdict == ("leak", "leak demonstrated")


def test_page_one_takes_one_false_positive_rate_and_the_first_attack() -> None:
    names = ["membership_tpr_at_10pct", "membership_tpr_at_1pct", "membership_tpr_at_1pct"]
    rows = [_measure(name, "private", value, (0.0, 0.9)) for name, value in zip(names, (0.3, 0.2, 0.1), strict=True)]
    (row,) = answers.verdicts(_report(*rows))
    assert "1\u202f% false alarms" in row.text
    assert row.measured == "20.0\u202f%"


def test_people_flagged_stand_for_the_share_that_is_flagged() -> None:
    share = _measure("record_membership_tpr_at_1pct", "private", 0.0145, (0.01, 0.02))
    people = _measure("flagged_per_1000_at_1pct", "private", 14.5, (10.0, 20.0), unit="per 1000")
    (row,) = answers.verdicts(_report(share, people))
    assert row.measured == "14 of 1,000"


def test_fewer_copies_stand_below_the_most() -> None:
    names = ("identifiers_recited_100", "identifiers_recited_100_10_copies", "identifiers_recited_100_1_copies")
    (line,) = answers.verdicts(_report(*(_share(name, "private", k) for name, k in zip(names, (9, 5, 0), strict=True))))
    assert line.text == "Identifiers of planted secrets said within 100 attempts"
    assert line.note == "Planted 10 times: 10.0\u202f%; planted once: 0.0\u202f%."


def test_a_leak_of_fewer_copies_alone_has_a_line_of_its_own() -> None:
    lines = answers.verdicts(
        _report(
            _share("identifiers_recited_1", "private", 0),
            _share("identifiers_recited_1_1_copies", "private", 9),
        )
    )
    assert [line.text for line in lines] == [
        "Identifiers of planted secrets said within 1 attempt",
        "Identifiers of planted secrets said within 1 attempt, planted once",
    ]
    assert lines[1].verdict == ("leak", "leak demonstrated")


def test_there_are_seven_questions_whatever_was_measured() -> None:
    told = answers.answers(_report())
    assert [answer.number for answer in told] == [1, 2, 3, 4, 5, 6, 7]
    assert not any(answer.lines for answer in told)
    assert all(answer.why for answer in told)


@pytest.mark.parametrize(
    ("unit", "noun"), [("owner", "owner"), ("record", "record"), ("patient", "patient"), ("client", "record")]
)
def test_the_unit_is_called_what_it_was_told_to_be(unit: str, noun: str) -> None:
    report = _report()
    report["guarantee"]["unit"] = unit
    assert f"a given {noun} was" in _answer(report, "membership").question


@pytest.mark.parametrize("place", ["plots", "report"])
@pytest.mark.parametrize("question", ["membership", "record_membership", "record_membership_auc", "record membership"])
def test_a_question_without_a_line_says_why(place: str, question: str) -> None:
    missing = {"unanswered": [{"question": question, "why": "no record was held out."}]}
    report = _report(**({"plots": missing} if place == "plots" else missing))
    assert _answer(report, "membership").why == "no record was held out"


def test_what_was_withheld_stands_beside_what_was_measured() -> None:
    why = "the groups can be told apart without the model"
    report = _report(_TWIN, plots={"unanswered": [{"question": "record_membership", "why": why}]})
    measured, withheld = _answer(report, "membership").lines
    assert measured.verdict == ("leak", "leak demonstrated")
    assert withheld.verdict == Verdict("inconclusive", f"test inconclusive ({why})")
    assert withheld.text == "Real data: telling members apart"


@pytest.mark.parametrize(
    ("question", "key"),
    [
        ("What does the coordinating server see?", "server"),
        ("What does the noise hide from the coordinating server?", "server"),
        ("Can a missing identifier of a real record be filled in?", "fill-in"),
        ("identifiers_recited_100", "recite"),
        ("epsilon_lower_bound", "promise"),
        ("membership_auc", "membership"),
    ],
)
def test_a_reason_finds_its_question(question: str, key: str) -> None:
    report = _report(plots={"unanswered": [{"question": question, "why": "it could not"}]})
    assert [answer.key for answer in answers.answers(report) if answer.why == "it could not"] == [key]
    assert answers.unanswered(report) == []


def test_what_is_missing_of_a_number_that_was_measured_is_a_remark() -> None:
    missing = {"question": "records_recited", "why": "no record has 500 tokens"}
    answer = _answer(_report(_share("records_recited", "private", 0), plots={"unanswered": [missing]}), "recite")
    assert len(answer.lines) == 1
    assert answer.remarks == ["No record has 500 tokens."]


def test_what_belongs_to_no_question_is_not_lost() -> None:
    odd = {"question": "a test from tomorrow", "why": "it is not tomorrow"}
    assert answers.unanswered(_report(plots={"unanswered": [odd]}, unanswered=[odd])) == [odd]


def test_an_exploratory_leak_counts_after_correction_only() -> None:
    name = "record_membership_auc[wbc]"
    for p, leak in ((0.01, True), (0.2, False), (None, False)):
        report = _report(_measure(name, "private", 0.7, (0.65, 0.75), floor=0.5, p_value=p))
        (row,) = answers.explored(report)
        assert row.attack == "wbc"
        assert (row.verdict is not None) == leak
        assert len(answers.gate(report)) == leak
        assert answers.verdicts(report) == []


def test_the_gate_names_question_line_and_verdict() -> None:
    assert answers.gate(_report(_auc("private", 0.6, 0.55, 0.65), _TWIN)) == [
        "2 membership: Planted records: how well they are told apart (0.5 guessing, 1 always): leak demonstrated"
    ]


def test_the_gate_lets_pass_what_found_nothing() -> None:
    assert answers.gate(_report(_auc("private", 0.5, 0.45, 0.55), _TWIN)) == []


def test_the_stricter_gate_stops_what_is_inconclusive_or_not_answered() -> None:
    report = _report(_auc("private", 0.5, 0.45, 0.55))
    assert answers.gate(report) == []
    told = answers.gate(report, "inconclusive")
    assert told[0].startswith("1 recite: not answered")
    assert told[1].endswith("test inconclusive (no positive control)")
    assert told[3] == "4 promise: not answered: it was not tested"
    assert len(told) == 4


def test_without_a_promise_none_has_to_be_tested() -> None:
    told = answers.gate(_report(epsilon=None), "inconclusive")
    assert not any(line.startswith("4") for line in told)
    assert _answer(_report(epsilon=None), "promise").why == "nothing was promised"


def test_the_summary_names_questions() -> None:
    leak = answers.summary(_report(_auc("private", 0.6, 0.55, 0.65), _TWIN))
    assert leak[0] == "There is a demonstrated leak or a failed check in question 2."
    assert leak[-1] == "Without an answer: questions 1, 3, 4, 5, 6 and 7."
    quiet = answers.summary(_report(_auc("private", 0.5, 0.45, 0.55), _TWIN))
    assert quiet[0].startswith("No test demonstrated a leak.")


def test_no_verdict_says_safe() -> None:
    for value in (0.3, 0.5, 0.9):
        for twin in ([], [_TWIN]):
            assert "safe" not in _verdict(_auc("private", value, value - 0.05, value + 0.05), *twin).lower()


def test_verdicts_keep_to_their_vocabulary(full: Report) -> None:
    told = [line.verdict.text for line in answers.verdicts(full) if line.verdict is not None]
    starts = ("leak demonstrated", "no leak found by a test able to find leaks of size ", "test inconclusive (")
    assert all(text.startswith(starts) for text in told)
    assert {text[:4] for text in told} == {"leak", "no l", "test"}


def test_a_full_report_answers_every_question(full: Report) -> None:
    assert all(answer.lines for answer in answers.answers(full))
    assert len(answers.answers(full)) == len(QUESTIONS)
