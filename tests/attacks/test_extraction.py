"""Extraction against generated text, simulated sampling, closed forms and slow definitions."""

import itertools
import math

import numpy as np
import pytest
import torch

from reticent.attacks import extraction
from reticent.gradients.attention import use_segments
from reticent.models.generation import greedy, sample
from reticent.models.language_model import CausalModel, Sampling
from reticent.tokens import Tokens

COPIES = (0, 1, 10, 100)
SUFFIX = 6


@pytest.fixture(scope="module")
def overfit(tiny):
    """A tiny model trained on random records 1, 10 or 100 times, and all records by copies; none is seen at 0."""
    rng = np.random.default_rng(0)
    records = {copies: [rng.integers(2, 60, 16) for _ in range(8)] for copies in COPIES}
    model = tiny.build(tiny.families["llama"](), seed=1)
    model.set_attn_implementation("eager")
    model.requires_grad_(True)
    pool = torch.from_numpy(np.stack([ids for copies in COPIES for ids in records[copies] * copies]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(200):
        batch = pool[torch.from_numpy(rng.integers(0, len(pool), 64))]
        logits = model(input_ids=batch).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)
    use_segments(model)
    return CausalModel(model.eval()), {copies: [tiny.record(ids) for ids in own] for copies, own in records.items()}


def _rates(overfit, p=None):
    """Share recited by copies: greedily, or within 100 attempts with probability p."""
    model, records = overfit
    out = {}
    for copies, own in records.items():
        scores = model.log_probs(
            [extraction.cut(r, 10, prefix=10, suffix=SUFFIX) for r in own], sampling=Sampling(1.0, 40, None)
        )
        if p is None:
            hits = [extraction.recited(score.hit) for score in scores]
        else:
            hits = [extraction.attempts(extraction.log_probability(s.sampled), p) <= 100 for s in scores]
        out[copies] = extraction.rate(hits).share
    return out


# ------------------------------------------------------------------------------------------------ places and cuts


def test_every_place_has_room_before_and_behind_and_only_learned_tokens_are_asked():
    rng = np.random.default_rng(0)
    for _ in range(200):
        length, first = int(rng.integers(2, 40)), int(rng.integers(1, 20))
        record = Tokens(np.arange(length), np.arange(length) >= first)
        prefix, suffix = int(rng.integers(1, 12)), int(rng.integers(1, 12))
        admissible = [at for at in range(length) if at >= max(prefix, first) and at + suffix <= length]
        found = extraction.places(record, prefix=prefix, suffix=suffix, count=4, rng=rng)
        assert set(found) <= set(admissible) and len(set(found)) == len(found) == min(4, len(admissible))


def test_places_are_drawn_one_from_each_part_and_reach_all():
    record, rng = Tokens(np.arange(25), np.arange(25) >= 1), np.random.default_rng(1)
    drawn = np.array([extraction.places(record, prefix=1, suffix=5, count=4, rng=rng) for _ in range(500)])
    assert [sorted(set(column)) for column in drawn.T] == [list(range(1 + 5 * i, 6 + 5 * i)) for i in range(4)]


def test_a_cut_holds_the_tokens_before_and_asks_for_those_behind():
    found = extraction.cut(Tokens(np.arange(20), np.arange(20) >= 1), 12, prefix=3, suffix=2)
    assert found.ids.tolist() == [9, 10, 11, 12, 13]
    assert found.trained.tolist() == [False, False, False, True, True]


def test_a_cut_that_does_not_fit_is_refused():
    record = Tokens(np.arange(20), np.arange(20) >= 1)
    for at, prefix, suffix in ((3, 4, 1), (18, 2, 3), (5, 0, 2), (5, 2, 0)):
        with pytest.raises(ValueError, match="do not fit in 20 tokens"):
            extraction.cut(record, at, prefix=prefix, suffix=suffix)


def test_the_goldfish_test_asks_for_the_end_given_all_before():
    found = extraction.all_but_last(Tokens(np.arange(60), np.arange(60) >= 1))
    assert found.ids.tolist() == list(range(60)) and found.trained.tolist() == [False] * 10 + [True] * 50


# ---------------------------------------------------------------------------------------------------- identifiers


class _Words:
    """Tokens are words; each but the first begins with its space."""

    def __call__(self, text, **options):
        offsets = []
        start = 0
        for word in text.split(" "):
            offsets.append((max(start - 1, 0), start + len(word)))
            start += len(word) + 1
        return {"input_ids": list(range(100, 100 + len(offsets))), "offset_mapping": offsets}


def test_an_identifier_is_asked_given_all_text_to_its_left():
    text = "seen by Zed Quux on 7 May today"
    spans = [(8, 16), (20, 25)]
    name, date = extraction.identifiers([1, 2], text, spans, _Words())
    assert (name.ids.tolist(), name.trained.tolist()) == ([1, 2, 100, 101, 102, 103], [False] * 4 + [True] * 2)
    assert date.ids.tolist()[-2:] == [105, 106] and date.trained.sum() == 2 and len(date) == 9


def test_a_token_that_touches_an_identifier_belongs_to_it():
    (found,) = extraction.identifiers([9], "code:123-45 end", [(5, 8)], _Words())
    assert found.trained.tolist() == [False, True]


@pytest.mark.parametrize(("span", "told"), [((0, 4), "starts the text"), ((4, 4), "in a text of 8"), ((4, 9), "of 8")])
def test_a_span_that_cannot_be_asked_for_is_refused(span, told):
    with pytest.raises(ValueError, match=told) as caught:
        extraction.identifiers([], "Zed Quux", [span], _Words())
    assert "Quux" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- greedy


def test_hits_say_what_greedy_decoding_says_in_every_cell_and_both_happen(overfit):
    model, records = overfit
    cells = [
        extraction.cut(record, at, prefix=prefix, suffix=suffix)
        for own in records.values()
        for record in own
        for at, prefix, suffix in ((3, 2, 5), (8, 8, 3), (10, 4, 6), (13, 6, 1), (14, 12, 2))
    ]
    found = [extraction.recited(score.hit) for score in model.log_probs(cells)]
    prompts = [cell.ids[~cell.trained] for cell in cells]
    said = greedy(model, prompts, max_new_tokens=6, end_of_text=None, batch=64)
    assert found == [
        text[: cell.trained.sum()].tolist() == cell.ids[cell.trained].tolist()
        for text, cell in zip(said, cells, strict=True)
    ]
    assert len(cells) == 160 and 20 < sum(found) < 140


def test_more_copies_are_recited_more_and_none_without_any(overfit):
    found = _rates(overfit)
    assert found[0] == 0
    assert list(found.values()) == sorted(found.values())
    assert found[100] == 1


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_sampling_finds_more_with_more_copies_and_nothing_without_any(overfit, p):
    found = _rates(overfit, p)
    assert found[0] == 0
    assert list(found.values()) == sorted(found.values())
    assert found[100] == 1


def test_sampling_can_find_what_greedy_decoding_never_says(overfit):
    model, records = overfit
    cells = [extraction.cut(r, at, prefix=2, suffix=2) for own in records.values() for r in own for at in range(2, 14)]
    scores = model.log_probs(cells, sampling=Sampling(1.0, 40, None))
    needed = extraction.attempts(np.array([extraction.log_probability(s.sampled) for s in scores]), 0.5)
    greedy_hit = np.array([extraction.recited(s.hit) for s in scores])
    assert (~greedy_hit & (needed <= 100)).any()
    assert needed[greedy_hit].max() > 1  # and greedy decoding says what one sample mostly does not


# ------------------------------------------------------------------------------------------------------- sampling


def test_attempts_agree_with_simulated_sampling(overfit):
    model, records = overfit
    sampling, draws = Sampling(1.3, 8, None), 3000
    cells = [extraction.cut(r, at, prefix=3, suffix=2) for own in records.values() for r in own for at in (4, 9)]
    logs = [extraction.log_probability(s.sampled) for s in model.log_probs(cells, sampling=sampling)]
    chosen = [i for i, log in enumerate(logs) if math.log(0.02) < log < math.log(0.9)][:4]
    assert len(chosen) == 4
    for i in chosen:
        prompt, truth = cells[i].ids[~cells[i].trained], cells[i].ids[cells[i].trained]
        said = sample(
            model, [prompt] * draws, sampling=sampling, max_new_tokens=2, seed=i, end_of_text=None, batch=1000
        )
        hits = np.array([text.tolist() == truth.tolist() for text in said])
        n = int(extraction.attempts(logs[i], 0.5))
        p_z = math.exp(logs[i])
        assert abs(hits.mean() - p_z) < 5 * math.sqrt(p_z * (1 - p_z) / draws)
        runs = hits[: draws // n * n].reshape(-1, n).any(1)
        exact = 1 - (1 - p_z) ** n
        assert exact >= 0.5 > 1 - (1 - p_z) ** (n - 1)
        assert abs(runs.mean() - exact) < 5 * math.sqrt(exact * (1 - exact) / len(runs)) + 1e-9


def test_attempts_follow_the_definition_for_every_ordinary_probability():
    for p_z, p in itertools.product((1e-6, 0.003, 0.02, 0.3, 0.75, 0.999), (0.1, 0.5, 0.9)):
        n = int(extraction.attempts(math.log(p_z), p))
        assert 1 - (1 - p_z) ** n >= p - 1e-12
        assert n == 1 or 1 - (1 - p_z) ** (n - 1) < p + 1e-12


@pytest.mark.parametrize(
    ("p_z", "p", "n"), [(0.5, 0.5, 1), (0.5, 0.75, 2), (0.1, 0.5, 7), (0.01, 0.9, 230), (0.9, 0.9, 1)]
)
def test_attempts_equal_known_answers(p_z, p, n):
    assert extraction.attempts(math.log(p_z), p) == n


def test_a_certain_text_needs_one_attempt_and_an_impossible_one_never_comes():
    assert extraction.attempts(np.array([0.0, -np.inf]), 0.9).tolist() == [1.0, np.inf]


def test_attempts_do_not_underflow():
    logs = np.array([-29.9, -30.1, -100.0, -599.9, -600.1, -700.0])
    found = np.log(extraction.attempts(logs, 0.5))
    np.testing.assert_allclose(found, math.log(math.log(2)) - logs, rtol=1e-9)
    assert extraction.log_probability(np.full(500, -20, np.float32)) == -10_000


def test_a_token_that_the_sampler_never_says_makes_the_text_impossible():
    assert extraction.log_probability(np.array([-0.1, -np.inf, -0.2], np.float32)) == -np.inf


def test_rounding_never_makes_a_text_more_than_certain():
    assert extraction.log_probability(np.array([1e-7, 2e-7], np.float32)) == 0


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1])
def test_a_chance_outside_of_its_bounds_is_refused(p):
    with pytest.raises(ValueError, match="p must be between 0 and 1"):
        extraction.attempts(-1.0, p)


def test_a_positive_log_probability_is_refused():
    with pytest.raises(ValueError, match="at most 0"):
        extraction.attempts(np.array([-1.0, 0.1]), 0.5)
    with pytest.raises(ValueError, match="at most 0"):
        extraction.attempts(np.nan, 0.5)


def test_a_table_of_probabilities_gives_closed_forms():
    table = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])  # row: token before
    text = [0, 0, 1, 1, 2]
    steps = list(itertools.pairwise(text))
    hits = np.array([table[a].argmax() == b for a, b in steps])
    assert not extraction.recited(hits) and extraction.exact_match(hits) == 0.5
    kept = {a: np.where(table[a] >= np.sort(table[a])[-2], table[a], 0) for a in range(3)}  # top-k 2
    logs = np.log([kept[a][b] / kept[a].sum() for a, b in steps])
    p_z = (5 / 8) * (3 / 8) * (6 / 9) * (3 / 9)
    assert extraction.log_probability(logs) == pytest.approx(math.log(p_z))
    assert extraction.attempts(extraction.log_probability(logs), 0.9) == math.ceil(math.log(0.1) / math.log(1 - p_z))


def test_who_guesses_needs_as_many_attempts_as_there_are_fills():
    assert extraction.guesser_attempts(2, 0.5) == 1
    assert extraction.guesser_attempts(10_000, 0.5) == 6932
    assert extraction.guesser_attempts(1, 0.5) == 1


# --------------------------------------------------------------------------------------------------- other shares


def test_windows_are_all_suffixes_given_all_before(overfit):
    model, records = overfit
    record = records[10][0]
    (whole,) = model.log_probs([record])
    found = [extraction.recited(hits) for hits in extraction.windows(whole.hit, 3)]
    cells = [extraction.cut(record, at, prefix=at, suffix=3) for at in range(1, len(record) - 2)]
    assert found == [extraction.recited(score.hit) for score in model.log_probs(cells)]


def test_too_few_tokens_have_no_window():
    assert extraction.windows(np.ones(4), 5).shape == (0, 5)
    with pytest.raises(ValueError, match="suffix must be"):
        extraction.windows(np.ones(4), 0)


@pytest.mark.parametrize(
    ("hits", "strength"),
    [([1, 1, 1, 1], 1.0), ([0, 1, 1, 1], 0.75), ([1, 1, 0, 1], 0.25), ([1, 1, 1, 0], 0.0), ([0, 0, 0, 0], 0.0)],
)
def test_extraction_strength_is_the_share_said_from_the_end(hits, strength):
    assert extraction.extraction_strength(np.array(hits, bool)) == strength


def test_extraction_strength_equals_its_definition_by_generation(overfit):
    model, records = overfit
    own = [record for group in records.values() for record in group[:3]]
    for record, score in zip(own, model.log_probs(own), strict=True):
        truth = record.ids[1:].tolist()
        prompts = [record.ids[: 1 + k] for k in range(len(truth))]
        said = greedy(model, prompts, max_new_tokens=len(truth), end_of_text=None, batch=64)
        least = min((k for k, text in enumerate(said) if text.tolist()[: len(truth) - k] == truth[k:]), default=15)
        assert extraction.extraction_strength(score.hit) == pytest.approx(1 - least / len(truth))


# ----------------------------------------------------------------------------------------------------- similarity


def test_the_same_tokens_are_as_similar_as_can_be():
    assert extraction.similarity([4, 5, 6, 7, 8], [4, 5, 6, 7, 8]) == (1.0, 1.0, 0.0, 5, True)


def test_nothing_said_is_not_similar():
    assert extraction.similarity([], [4, 5, 6]) == (0.0, 0.0, 1.0, 0, False)
    with pytest.raises(ValueError, match="needs a token"):
        extraction.similarity([4], [])


def test_similarity_equals_the_formulas():
    said, truth = [1, 2, 3, 4, 9, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]
    found = extraction.similarity(said, truth)
    # n-gram precisions 7/8, 5/7, 3/6, 1/5; no brevity penalty. One substitution; 7 tokens in the same order.
    assert found.bleu == pytest.approx((7 / 8 * 5 / 7 * 3 / 6 * 1 / 5) ** 0.25)
    assert found.rouge_l == pytest.approx(7 / 8)
    assert found.edit_distance == pytest.approx(1 / 8)
    assert found.longest_run == 4


def test_a_short_text_pays_for_its_brevity():
    found = extraction.similarity([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8])
    assert found.bleu == pytest.approx(math.exp(1 - 8 / 4))
    assert found.rouge_l == pytest.approx(2 * 4 / 12)


def test_the_longest_run_equals_that_of_all_pairs_of_pieces():
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = (rng.integers(0, 3, int(rng.integers(1, 9))).tolist() for _ in range(2))
        pieces = {tuple(b[i:j]) for i in range(len(b)) for j in range(i, len(b) + 1)}
        slow = max(j - i for i in range(len(a)) for j in range(i, len(a) + 1) if tuple(a[i:j]) in pieces)
        assert extraction.longest_run(a, b) == slow


# ---------------------------------------------------------------------------------------------------------- rates


def test_rates_are_grouped_by_copies_in_ascending_order():
    found = extraction.rates_by_copies([True, False, True, False], [10, 0, 1, 1])
    assert list(found) == [0, 1, 10]
    assert [(rate.hits, rate.n) for rate in found.values()] == [(0, 1), (1, 2), (1, 1)]


@pytest.mark.parametrize(("n", "upper"), [(30, 0.095), (100, 0.0295), (300, 0.01), (1000, 0.003)])
def test_none_of_n_still_allows_a_known_share(n, upper):
    found = extraction.rate([False] * n)
    assert found.upper == pytest.approx(1 - 0.05 ** (1 / n)) == pytest.approx(upper, rel=0.02)
    assert found.share == 0 and found.interval[0] == 0


def test_no_trial_is_refused():
    with pytest.raises(ValueError, match="n > 0"):
        extraction.rate([])


def test_a_share_that_rises_with_the_copies_is_told_from_one_that_does_not():
    def p_value(hits):
        rates = extraction.rates_by_copies(
            [i < hit for hit in hits for i in range(20)], [copies for copies in COPIES for _ in range(20)]
        )
        return extraction.rising(rates, rng=np.random.default_rng(0))

    assert p_value([0, 1, 6, 15]) < 1e-3
    assert p_value([3, 3, 3, 3]) > 0.3
    assert p_value([15, 6, 1, 0]) > 0.9
