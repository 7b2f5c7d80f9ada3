"""Identifiers: known answers by hand, laws by simulation, and each repaired defect of the source systems."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from reticent.attacks import pii
from reticent.attacks.pii import Identifier
from reticent.data.spans import Span
from reticent.statistics import paired


def _ids(*texts: str, kind: str = "ID") -> list[Identifier]:
    return [Identifier(kind, text) for text in texts]


# ----------------------------------------------------------------------------------------------------- normalising


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("(555) 010-7788", "5550107788"),
        ("555.010.7788", "5550107788"),
        ("Ann  O'Zed", "annozed"),
        ("ann.zed@x.example", "annzedxexample"),
        ("ＡＢ\u00a012", "ab12"),
        ("Straße", "strasse"),
        (" -/ ", ""),
    ],
)
def test_case_white_space_and_punctuation_do_not_count(text: str, form: str) -> None:
    assert pii.normalised(text) == form


def test_mentions_keep_their_kind_and_order_and_leave_out_what_is_only_punctuation() -> None:
    text = "Ann Zed, -- 12-34"
    spans = [Span(0, 7, "PERSON"), Span(9, 11, "ID"), Span(12, 17, "ID")]
    assert pii.mentions(text, spans) == [Identifier("PERSON", "annzed"), Identifier("ID", "1234")]


# ----------------------------------------------------------------------------------------------------- extraction


def test_extraction_by_hand() -> None:
    generated = [_ids("a", "a", "b"), _ids("c"), _ids("p", "d"), []]
    found = pii.extraction(generated, {Identifier("ID", x): n for x, n in (("a", 6), ("b", 1), ("z", 3))}, _ids("p"))
    assert found.found == 4 and found.leaked == 2 and found.sought == 3
    assert found.precision is not None and found.precision.value == 2 / 4
    assert found.recall.value == 2 / 3
    assert found.recall_of_mentions == 7 / 10
    assert found.unseen == 3 / 5  # b, c and d once, of a, a, b, c, d


def test_recall_is_over_different_identifiers_not_over_mentions() -> None:
    """The source system divides different hits by all mentions: with everything said, it would be 2 of 100."""
    found = pii.extraction([_ids("a", "b")], Counter({Identifier("ID", "a"): 99, Identifier("ID", "b"): 1}))
    assert found.recall.value == 1.0 and found.recall_of_mentions == 1.0
    assert found.recall_compatible == 2 / 100


def test_what_the_base_model_says_too_is_no_leak() -> None:
    found = pii.extraction([_ids("a", "b")], {Identifier("ID", "a"): 1}, public=_ids("a", "b"))
    assert found.leaked == found.found == 0
    assert found.precision is None and found.unseen is None


def test_the_same_text_of_another_kind_is_another_identifier() -> None:
    found = pii.extraction([[Identifier("DATE", "1999")]], {Identifier("ID", "1999"): 1})
    assert found.leaked == 0 and found.found == 1


def test_nothing_said_bounds_what_could_have_been() -> None:
    found = pii.extraction([[] for _ in range(100)], {Identifier("ID", str(i)): 1 for i in range(1000)})
    assert found.recall.value == 0.0
    low, high = found.recall.interval or (None, None)
    assert low == 0.0 and high == pytest.approx(100 * (1 - 0.025 ** (1 / 100)) / 1000)


def test_intervals_are_of_the_jackknife_by_leaving_each_text_out() -> None:
    rng = np.random.default_rng(4)
    said = [_ids(*map(str, rng.integers(0, 60, size=4))) for _ in range(12)]
    real = {Identifier("ID", str(i)): 1 for i in range(40)}
    whole = pii.extraction(said, real)
    without = [pii.extraction(said[:i] + said[i + 1 :], real) for i in range(12)]
    for own, others in (
        (whole.recall, [one.recall for one in without]),
        (whole.precision, [one.precision for one in without]),
    ):
        values = np.array([one.value for one in others if one is not None])
        half = 1.959964 * np.sqrt(11 / 12 * ((values - values.mean()) ** 2).sum())
        assert own is not None and own.interval is not None
        assert own.interval == pytest.approx((own.value - half, own.value + half), abs=1e-6)


def _recall_covers(draws: int, texts: int, rates: np.ndarray, real: int, rng: np.random.Generator) -> list[float]:
    """Shares of simulated samplers in which the intervals of recall and precision hold the expected values.

    In each text identifier i is said with probability rates[i], of which the first ``real`` are in the training data.
    """
    names = [Identifier("ID", str(i)) for i in range(len(rates))]
    expected = 1 - (1 - rates) ** texts
    truth = dict.fromkeys(names[:real], 1)
    ratios, recalls, both = [], [], []
    for _ in range(draws):
        said = [[names[i] for i in np.flatnonzero(row)] for row in rng.random((texts, len(rates))) < rates]
        found = pii.extraction(said, truth)
        assert found.precision is not None and found.precision.interval is not None and found.recall.interval
        ratios.append(found.precision.value)
        recalls.append(found.recall.interval[0] <= expected[:real].mean() <= found.recall.interval[1])
        both.append(found.precision.interval)
    centre = float(np.mean(ratios))
    return [float(np.mean(recalls)), float(np.mean([low <= centre <= high for low, high in both]))]


def test_intervals_of_extraction_hold_what_is_expected() -> None:
    """Rare identifiers, each seen about once: the bootstrap over texts would hold it far less often."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, 0.02, 300).clip(0, 0.5)
    recall, precision = _recall_covers(200, 60, rates, 150, rng)
    assert recall >= 0.91 and precision >= 0.91


def test_good_turing_estimates_what_is_not_yet_said() -> None:
    rng = np.random.default_rng(1)
    chances = rng.dirichlet(np.full(200, 0.3))
    errors = []
    for _ in range(200):
        drawn = rng.choice(200, size=100, p=chances)
        found = pii.extraction([_ids(*map(str, drawn))], {Identifier("ID", "x"): 1})
        assert found.unseen is not None
        errors.append(found.unseen - chances[np.setdiff1d(np.arange(200), drawn)].sum())
    assert np.mean(errors) == pytest.approx(0, abs=0.01)


# ------------------------------------------------------------------------------------------------------- inference


def test_the_likeliest_candidate_is_guessed_wherever_it_stands() -> None:
    """A source system takes the first candidate by name, because it takes the minimum over the names."""
    scores = np.array([-9.0, -2.0, -5.0])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        ranked = pii.ranking(scores[order], order.index(2))
        assert ranked.rank == 2 and order[ranked.guess] == 1


def test_ties_count_against_the_attacker() -> None:
    assert pii.ranking(np.zeros(5), 0) == (5, 1)
    assert pii.ranking(np.zeros(5), 3) == (5, 0)
    assert pii.ranking(np.array([-3.0, -1.0, -1.0]), 1) == (2, 2)
    assert not pii.inference([np.zeros(2)] * 10, [0] * 10).correct.any()


def test_a_model_that_knows_is_always_right() -> None:
    scores = [np.where(np.arange(100) == truth, 0.0, -50.0) for truth in range(20)]
    found = pii.inference(scores, range(20))
    assert found.accuracy.value == 1.0 and found.correct.all() and found.guesses.tolist() == list(range(20))
    assert found.p_value == pytest.approx(0.01**20)


def test_a_model_that_knows_nothing_guesses_by_chance_and_its_p_values_are_honest() -> None:
    rng = np.random.default_rng(2)
    items, candidates, repeats = 50, 10, 1000
    found = [
        pii.inference(list(rng.normal(size=(items, candidates))), rng.integers(candidates, size=items).tolist())
        for _ in range(repeats)
    ]
    hits = [int(one.correct.sum()) for one in found]
    assert np.mean(hits) == pytest.approx(5, abs=0.21)  # 3 standard errors
    assert np.var(hits) == pytest.approx(items * 0.1 * 0.9, rel=0.15)
    p_values = np.array([one.p_value for one in found])
    for level in (0.01, 0.05, 0.3):
        assert (p_values <= level).mean() <= level + 3 * np.sqrt(level / repeats)


def test_the_chance_of_so_many_hits_is_exact() -> None:
    scores = [np.array([0.0, -1.0, -1.0, -1.0])] * 12
    found = pii.inference(scores, [0] * 5 + [1] * 7)
    assert found.chance == 0.25
    assert found.p_value == pytest.approx(stats.binomtest(5, 12, 0.25, alternative="greater").pvalue)


def test_items_with_different_numbers_of_candidates_have_their_own_chances() -> None:
    found = pii.inference([np.array([0.0, -1.0]), np.array([0.0, -1.0, -1.0, -1.0])], [0, 0])
    assert found.chance == (1 / 2 + 1 / 4) / 2
    assert found.p_value == pytest.approx(1 / 8)


def test_models_are_compared_on_all_items() -> None:
    """A source system skips items on which the base model guesses the same: here, the half that both get right."""
    right, wrong = np.array([0.0, -1.0, -2.0]), np.array([-1.0, 0.0, -2.0])
    other = np.array([-1.0, -2.0, 0.0])
    target = pii.inference([right] * 4 + [wrong] * 4, [0] * 8)
    base = pii.inference([right] * 4 + [other] * 4, [0] * 8)
    assert target.accuracy.value == base.accuracy.value == 0.5
    assert paired(target.correct, base.correct) == 1.0
    assert pii.accuracy_compatible(target, base) == 0.0
    assert pii.accuracy_compatible(target, target) is None


def test_the_gain_over_the_base_model_finds_what_is_unlikely_in_itself() -> None:
    rng = np.random.default_rng(3)
    base = [rng.normal(scale=20, size=50) for _ in range(40)]
    target = [own + 5 * (np.arange(50) == 7) + rng.normal(scale=0.1, size=50) for own in base]
    plain = pii.inference(target, [7] * 40)
    calibrated = pii.inference([a - b for a, b in zip(target, base, strict=True)], [7] * 40)
    assert plain.accuracy.value < 0.3 and calibrated.accuracy.value == 1.0


# ------------------------------------------------------------------------------------------------------ candidates


def test_candidates_are_different_and_hold_the_truth_once() -> None:
    space = ["Ann Zed", "ann  zed", "Bo Yi", "bo-yi", "Cy Xu", "--", "Dee Wu"]
    drawn = pii.draw_candidates(space, "ANN ZED", 10, np.random.default_rng(0))
    assert sorted(pii.normalised(text) for text in drawn) == ["annzed", "boyi", "cyxu", "deewu"]
    assert "ANN ZED" in drawn


def test_the_truth_stands_anywhere_among_as_many_candidates_as_were_asked_for() -> None:
    space = [f"{i:03d}" for i in range(1000)]
    drawn = [pii.draw_candidates(space, "123", 10, np.random.default_rng(i)) for i in range(500)]
    places = np.bincount([one.index("123") for one in drawn], minlength=10)
    assert all(len(set(one)) == 10 for one in drawn)
    assert stats.chisquare(places).pvalue > 1e-3


def test_the_same_chance_gives_the_same_candidates() -> None:
    space = [str(i) for i in range(100)]
    first, second = (pii.draw_candidates(space, "7", 5, np.random.default_rng(4)) for _ in range(2))
    assert first == second


def test_what_stands_elsewhere_in_the_record_is_no_candidate_and_what_stands_there_twice_is_no_item() -> None:
    rng = np.random.default_rng(5)
    pool = ["1234", "55-55", "6666", "7777"]
    assert sorted(pii.candidates("id 1234, was 5555", Span(3, 7, "ID"), pool, 9, rng, beside="6666?")) == [
        "1234",
        "7777",
    ]
    assert pii.candidates("id 1234, 12-34", Span(3, 7, "ID"), pool, 9, rng) == []
    assert pii.candidates("id 123", Span(3, 6, "ID"), pool, 9, rng) == []


def test_pools_hold_each_identifier_of_a_kind_once() -> None:
    texts = [
        ("Ann 12", [Span(0, 3, "PERSON"), Span(4, 6, "ID")]),
        ("ANN 1-2 Bo", [Span(0, 3, "PERSON"), Span(8, 10, "PERSON")]),
    ]
    assert pii.pools(texts) == {"PERSON": ["Ann", "Bo"], "ID": ["12"]}


def test_proposals_are_new_and_of_the_kind_that_was_masked() -> None:
    texts = ["Call 111 or 222, Bo", "Call 333 then 22-2"]
    spans = [[Span(5, 8, "ID"), Span(12, 15, "ID"), Span(17, 19, "PERSON")], [Span(5, 8, "ID"), Span(14, 18, "ID")]]
    assert pii.proposals(texts, spans, "ID", ("Call", "not 333"), 5) == ["111", "222"]
    assert pii.proposals(texts, spans, "ID", ("Call", "not 333"), 9) == ["222"]


def test_far_behind_a_candidate_nothing_is_read() -> None:
    parts = pii.differing([np.array([7, 7, *middle, *range(50, 90)]) for middle in ([1], [2, 3])])
    assert [tokens.ids.tolist() for tokens in parts] == [[7, 7, 1, *range(50, 54)], [7, 7, 2, 3, *range(50, 54)]]
    assert [int(np.argmax(tokens.trained)) for tokens in parts] == [2, 2]


# -------------------------------------------------------------------------------------------------- reconstruction


def test_reconstruction_by_hand() -> None:
    found = pii.reconstruction(
        [["Bo Yi", "Ann Zed"], ["Cy Xu", "Dee Wu"], ["Cy Xu"], [], ["Ed Vo", "Flo Ut"]],
        [np.array([-5.0, -4.0]), np.array([-1.0, -2.0]), np.zeros(1), np.zeros(0), np.zeros(2)],
        ["ann zed", "Dee Wu", "Cy Xu", "Gus To", "Ed Vo"],
    )
    assert found.correct.tolist() == [True, False, True, False, False]  # the last is tied with a wrong one
    assert found.accuracy.value == 2 / 5
    assert found.proposed == 4 / 5


# -------------------------------------------------------------------------------------------------------- evidence


def test_evidence_says_what_was_written_where_and_who_else_knows_it() -> None:
    texts = ["mail a@x.example or A@X.EXAMPLE", "see http://x.example", "mail a@x.example, Ann Zed"]
    spans = [
        [Span(5, 16, "EMAIL_ADDRESS"), Span(20, 31, "EMAIL_ADDRESS")],
        [Span(4, 20, "URL")],
        [Span(5, 16, "EMAIL_ADDRESS"), Span(18, 25, "PERSON")],
    ]
    mail, url = Identifier("EMAIL_ADDRESS", "axexample"), Identifier("URL", "httpxexample")
    assert pii.evidence(texts, spans, {mail: 4}, {url: 2}) == [
        ("EMAIL_ADDRESS", "a@x.example", 3, (0, 2), 4, 0),
        ("URL", "http://x.example", 1, (1,), 0, 2),
    ]


# --------------------------------------------------------------------------------------------------------- refusals


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="generated texts"):
        pii.extraction([], {Identifier("ID", "a"): 1})
    with pytest.raises(ValueError, match="got 1 and 0"):
        pii.extraction([[]], {})
    with pytest.raises(ValueError, match="finite"):
        pii.ranking(np.array([0.0, np.nan]), 0)
    with pytest.raises(ValueError, match="truth 2"):
        pii.ranking(np.zeros(2), 2)
    with pytest.raises(ValueError, match="got 0 and 0"):
        pii.inference([], [])
    with pytest.raises(ValueError, match="2 candidates"):
        pii.draw_candidates(["a"], "b", 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="same items"):
        pii.accuracy_compatible(pii.inference([np.arange(2.0)], [0]), pii.inference([np.arange(2.0)] * 2, [0, 0]))
    with pytest.raises(ValueError, match="one finite score"):
        pii.reconstruction([["a"]], [np.zeros(2)], ["a"])
    with pytest.raises(ValueError, match="got 0, 0 and 0"):
        pii.reconstruction([], [], [])
