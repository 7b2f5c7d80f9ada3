"""A federated run in the report: who is protected against whom, what travelled, and the rounds."""

import re
from typing import Any

import pytest

from reticent.reports import answers, federation, plots, table
from reticent.reports.render import render
from reticent.reports.report import Guarantee, Report, Round, SitePromise


def _site(name: str, epsilon: float, *, known: bool = True) -> SitePromise:
    steps = 10 if known else None
    return {"site": name, "units": 100, "epsilon": epsilon, "delta": 1e-5, "steps": steps, "known": known}


def _sites(count: int) -> list[SitePromise]:
    return [_site(f"site-{i}", 1 + i / 10) for i in range(count)]


_CLIENTS: Guarantee = {
    "epsilon": 2.5,
    "delta": 1e-3,
    "unit": "client",
    "units": 20,
    "sampling_prob": 0.25,
    "protects": "one site with all its data",
    "against": "the other sites; not the server",
    "limits": ["what the sites have in common"],
}


def _guarantee(sites: list[SitePromise], clients: Guarantee | None = None) -> Guarantee:
    worst = max(site["epsilon"] for site in sites)
    return {"epsilon": worst, "delta": 1e-5, "unit": "owner", "sites": sites, "clients": clients}


def _round(number: int, **more: Any) -> Round:
    values: dict[str, Any] = {
        "round": number, "attempt": 1, "asked": 3, "answered": 3, "left_out": {}, "up": 300, "down": 600,
        "seconds": 1.25, "norm": 0.5, "loss": None, "lora_error": None, "clip_norm": None, "epsilon": None,
    }  # fmt: skip
    return {**values, **more}  # type: ignore[typeddict-item]


def _report(guarantee: Guarantee | None = None, **drawn: Any) -> Report:
    return {
        "title": "T",
        "created": "C",
        "guarantee": guarantee or {"epsilon": None},
        "measurements": [],
        "plots": drawn,  # type: ignore[typeddict-item]
    }


def _protected(guarantee: Guarantee, *, shown: bool = False) -> federation.Protected:
    protected = federation.protected(guarantee, shown=shown)
    assert protected is not None
    return protected


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_headline_is_about_one_unit_at_one_site() -> None:
    promise = table.promise(_guarantee(_sites(3)))
    assert promise.headline == "ε = 1.2 per owner at any one site"
    assert ("protects", "each owner at any one site") in promise.facts
    assert "every attacker outside that site" in promise.meaning[0]


def test_a_promise_to_sites_alone_is_not_one_against_everybody() -> None:
    promise = table.promise(_CLIENTS)
    assert promise.headline == "ε = 2.5 per whole site"
    assert "This holds against the other sites; not the server." in promise.meaning[0]
    assert "client" not in " ".join([promise.headline, *promise.meaning, *dict(promise.facts).values()])


def test_each_site_has_a_row_and_the_worst_is_first() -> None:
    (group,) = _protected(_guarantee([_site("a", 1.0), _site("b", 3.0), _site("c", 2.0)])).groups
    assert [(row.who, row.epsilon, row.worst) for row in group.rows] == [
        ("b", "3", True),
        ("c", "2", False),
        ("a", "1", False),
    ]
    assert group.protects == "One owner at any one site"
    assert group.against == federation.AGAINST


@pytest.mark.parametrize("count", [3, 20, 100])
def test_no_epsilon_is_a_sum(count: int) -> None:
    page = render(_report(_guarantee(_sites(count))))
    shown = re.findall(r'data-label="ε"><span class="main">([^<]*)</span>', page)
    assert max(map(float, shown)) == max(site["epsilon"] for site in _sites(count))
    assert "Promises of different sites are never added, because they are about different people." in page


@pytest.mark.parametrize("count", [20, 100])
def test_of_many_sites_the_worst_have_rows_and_the_annex_has_all(count: int) -> None:
    guarantee = _guarantee(_sites(count))
    (group,) = _protected(guarantee).groups
    assert [row.who for row in group.rows] == [f"site-{count - 1 - i}" for i in range(5)]
    assert group.rest.startswith(f"and {count - 5} more sites with ε from 1 to {table.number(1 + (count - 6) / 10)}")
    assert f"{100 * (count - 5):,} owners; all from their ledgers" in group.rest
    every = federation.every_site(guarantee)
    assert every is not None
    assert len(every.rows) == count


def test_few_sites_stand_on_page_one_only() -> None:
    guarantee = _guarantee(_sites(federation.MOST_ROWS))
    assert federation.every_site(guarantee) is None
    assert _protected(guarantee).groups[0].rest == ""


def test_a_site_that_could_not_be_asked_is_marked() -> None:
    protected = _protected(_guarantee([_site("a", 1.0), _site("b", 3.0, known=False)]))
    assert [row.source for row in protected.groups[0].rows] == [
        "the plan: it could no longer be asked",
        "the site's ledger",
    ]
    assert (
        "Site b could no longer be asked at the end. What counts there is all that the plan allows."
        in protected.meaning
    )


def test_sites_without_a_row_that_could_not_be_asked_are_counted() -> None:
    sites = [_site(f"site-{i}", 1.0, known=i > 1) for i in range(20)]
    assert (
        "2 counted from their plans"
        in _protected(_guarantee([*sites, *(_site(f"z{i}", 2.0) for i in range(5))])).groups[0].rest
    )


def test_a_promise_to_whole_sites_stands_beside_that_to_units() -> None:
    protected = _protected(_guarantee(_sites(3), _CLIENTS))
    assert [group.protects for group in protected.groups] == ["One owner at any one site", "One site with all its data"]
    (row,) = protected.groups[1].rows
    assert (row.who, row.epsilon, row.delta, row.source) == (
        "each of 20 sites",
        "2.5",
        "0.001",
        "the coordinator's ledger",
    )
    assert protected.limits == ["what the sites have in common"]


def test_a_promise_to_sites_alone_says_that_single_people_have_none() -> None:
    protected = _protected({**_CLIENTS, "sites": [], "clients": None})
    assert len(protected.groups) == 1
    assert "There is no promise of their own to those whose text a site holds." in protected.meaning[0]
    assert protected.limits == []  # they stand with the headline


@pytest.mark.parametrize(
    ("shown", "sampling_prob", "said"), [(True, 0.25, True), (True, 1.0, False), (False, 0.25, False)]
)
def test_rounds_of_a_hidden_draw_are_to_be_kept(shown: bool, sampling_prob: float, said: bool) -> None:
    protected = _protected({**_CLIENTS, "sampling_prob": sampling_prob}, shown=shown)
    assert any("staying with the coordinator" in sentence for sentence in protected.meaning) == said


@pytest.mark.parametrize("guarantee", [{"epsilon": None}, {"epsilon": 2.0, "delta": 1e-5, "unit": "owner"}])
def test_without_a_federation_there_is_no_such_section(guarantee: Guarantee) -> None:
    assert federation.protected(guarantee, shown=False) is None
    assert "against whom" not in render(_report(guarantee))


def test_an_audit_of_single_units_does_not_test_a_promise_to_sites() -> None:
    report = _report(_CLIENTS)
    report["measurements"] = [
        {
            "name": "epsilon_lower_bound", "model": "private", "value": 3.0, "interval": None, "n": 50,
            "unit": "epsilon", "counted": "candidates",
        }
    ]  # fmt: skip
    (row,) = answers.verdicts(report)
    assert row.worst == "promised to whole sites only"
    assert row.note == "The promise is to whole sites. This test is not about them."


def test_attempts_at_a_round_are_counted_once() -> None:
    told = [_round(1), _round(2, answered=1, up=100), _round(2, attempt=2, up=400, down=1200)]
    assert [(line.up, line.down) for line in federation.sent(told)] == [(300, 600), (100, 600), (300, 600)]


def test_what_travelled_stands_beside_the_full_model() -> None:
    # 2 rounds of 900 B; the full model to 3 sites and back from 3, then from 2: 11 times 9,000 B
    told = [_round(1), _round(2, answered=2, left_out={"a": "late"})]
    text = federation.travelled(told, 9_000)
    assert text.startswith("In all 1.8\u202fkB travelled.")
    assert text.endswith("it would have been 99\u202fkB: 55 times as much.")
    assert federation.travelled(told, None) == "In all 1.8\u202fkB travelled."


def test_the_rounds_are_a_table_without_empty_columns() -> None:
    drawn = federation.rounds([_round(1, lora_error=0.043), _round(2)])
    assert drawn.head == [
        "Round", "Asked", "Answered", "Up", "Down", "Seconds", "Norm of step", "Error of averaging A and B apart",
    ]  # fmt: skip
    assert drawn.rows[0] == ["1", "3", "3", "300\u202fB", "600\u202fB", "1.2", "0.5", "4.3\u202f%"]
    assert drawn.rows[1][-1] == "–"


def test_sites_left_out_stand_together_by_reason() -> None:
    why = {"a": "late", "b": "not finite", "c": "late"}
    assert federation.rounds([_round(1, left_out=why)]).rows[0][-1] == "a, c: late; b: not finite"
    many = {f"s{i}": "late" for i in range(9)}
    assert federation.rounds([_round(1, left_out=many)]).rows[0][-1] == "s0, s1, s2, s3, s4, s5 and 3 more: late"


def test_what_sites_say_is_escaped() -> None:
    page = render(
        _report(_guarantee([_site("<b>a", 1.0)]), rounds={"private": [_round(1, left_out={"<b>a": "<i>no"})]})
    )
    assert "<b>a" not in page
    assert "<i>no" not in page
    assert "&lt;b&gt;a: &lt;i&gt;no" in page


def test_the_page_has_the_rounds_of_every_model_and_one_figure() -> None:
    rounds = {"private": [_round(1)], "twin": [_round(1)]}
    page = render(_report(_guarantee(_sites(3)), rounds=rounds, bytes_full=10_000))
    assert "Rounds: private model" in page
    assert "Rounds: non-private twin" in page
    assert page.count("<svg") == 1


def test_every_number_of_both_promises_is_in_the_annex() -> None:
    page = render(_report(_guarantee(_sites(3), {**_CLIENTS, "noise_multiplier": 1.23})))
    assert "Mechanism and accounting at the site that promises least" in page
    assert "Mechanism and accounting of the promise to whole sites" in page
    assert "<td>1.23</td>" in page


def test_a_run_without_rounds_draws_nothing() -> None:
    assert "<svg" not in render(_report(rounds={"private": []}))


def test_the_figure_names_totals_and_marks_who_was_left_out() -> None:
    told = [
        _round(1),
        _round(2, answered=1, left_out={"a": "late", "b": "late"}),
        _round(2, attempt=2, up=700, down=900),
    ]
    texts = _texts(plots.travelled(federation.sent(told)))
    assert {"from the coordinator, 1.5\u202fkB in all", "to the coordinator, 1\u202fkB in all"} <= set(texts)
    assert {"left out", "−2", "1", "2", "2′"} <= set(texts)
    assert "left out" not in _texts(plots.travelled(federation.sent([_round(1)])))


@pytest.mark.parametrize("count", [1, 24, 25, 1000])
def test_any_number_of_rounds_can_be_drawn(count: int) -> None:
    svg = plots.travelled(federation.sent([_round(i + 1, asked=i % 3, answered=0) for i in range(count)]))
    assert len(svg) < 300_000
    assert svg == plots.travelled(federation.sent([_round(i + 1, asked=i % 3, answered=0) for i in range(count)]))


_COMPARED = [
    plots.Compared("base", None, (0.3, 0.25, 0.35), (1.4, 1.1, 1.8)),
    plots.Compared("federated", False, (0.5, 0.45, 0.55), (8.0, 7.0, 9.0)),
    plots.Compared("federated", True, (0.41, 0.35, 0.45), None),
]


def test_a_comparison_names_each_model_and_says_its_numbers() -> None:
    texts = _texts(plots.comparison(_COMPARED, chance=(1.0, 1.9), guessing=0.25))
    assert texts.count("federated") == 2
    assert {"not trained", "not private", "private", "guessing", "chance"} <= set(texts)
    assert {"30.0\u202f%", "50.0\u202f%", "41.0\u202f%", "1.4", "8.0", "–"} <= set(texts)


def test_a_comparison_of_perplexities_says_which_way_is_better() -> None:
    rows = [plots.Compared("centralised", True, (21.5, 20.0, 23.0), (1.4, 1.1, 1.8))]
    texts = _texts(plots.comparison(rows, chance=(1.0, 1.9), usefulness="perplexity"))
    assert {"perplexity, lower is better", "21.5", "private"} <= set(texts)
    assert not {"not private", "guessing"} & set(texts)


def test_points_stand_where_their_values_are() -> None:
    rows = [plots.Compared(str(i), True, None, (2.0 * i, 2.0 * i, 2.0 * i)) for i in range(1, 4)]
    svg = plots.comparison(rows, chance=(0.5, 1.0))
    *_, first, second, third, _legend = map(float, re.findall(r'<use [^>]*x="([\d.]+)"[^>]*style="fill: #1d5b86', svg))
    assert third - second == pytest.approx(second - first, abs=0.01)
    assert first < second


def test_the_same_comparison_gives_the_same_bytes() -> None:
    assert plots.comparison(_COMPARED, chance=(1.0, 1.9)) == plots.comparison(_COMPARED, chance=(1.0, 1.9))
