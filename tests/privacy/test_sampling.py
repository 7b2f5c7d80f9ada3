"""Draws follow the law that the accountant assumes."""

import numpy as np
import pytest
from scipy import stats

from reticent.privacy.sampling import CyclicPoissonSampler, PoissonSampler, SeededPoissonSampler, group_of

SURE = 1e-6
N, P, DRAWS = 40, 0.15, 4000


def _system(units=N, prob=P):
    return PoissonSampler(units, prob)


def _seeded(units=N, prob=P):
    return SeededPoissonSampler(units, prob, seed=3)


@pytest.mark.parametrize("make", [_system, _seeded])
def test_draw_sizes_are_binomial(make):
    sampler = make()
    sizes = [len(sampler.draw(step)) for step in range(1, DRAWS + 1)]
    law = stats.binom(N, P)
    low, high = int(law.ppf(0.01)), int(law.ppf(0.99))  # the tails are one cell each
    seen = np.bincount(np.clip(sizes, low, high), minlength=high + 1)[low:]
    mass = law.pmf(np.arange(low, high + 1))
    mass[0], mass[-1] = law.cdf(low), law.sf(high - 1)
    assert stats.chisquare(seen, mass * DRAWS).pvalue > SURE


@pytest.mark.parametrize("make", [_system, _seeded])
def test_every_unit_is_drawn_as_often_and_pairs_are_independent(make):
    sampler, drawn = make(), np.zeros((DRAWS, N))
    for step in range(DRAWS):
        drawn[step, sampler.draw(step + 1)] = 1
    z = (drawn.sum(0) - DRAWS * P) / np.sqrt(DRAWS * P * (1 - P))
    assert SURE < stats.chi2(N).cdf((z**2).sum()) < 1 - SURE
    pairs = np.corrcoef(drawn.T)[np.triu_indices(N, 1)] * np.sqrt(DRAWS)
    assert np.abs(pairs).max() < stats.norm.isf(SURE / len(pairs))


@pytest.mark.parametrize("make", [_system, _seeded])
def test_empty_draws_happen(make):
    sampler = make(units=5, prob=0.1)
    assert any(len(sampler.draw(step)) == 0 for step in range(200))


@pytest.mark.parametrize("make", [_system, _seeded])
def test_probability_one_draws_everything(make):
    assert make(units=1000, prob=1.0).draw(1).tolist() == list(range(1000))


def test_a_seeded_draw_can_be_repeated_and_a_private_one_cannot():
    assert _seeded(units=1000).draw(7).tolist() == _seeded(units=1000).draw(7).tolist()
    assert _system(units=1000).draw(7).tolist() != _system(units=1000).draw(7).tolist()
    sampler = _system(units=1000)
    assert sampler.draw(7).tolist() != sampler.draw(7).tolist()


def test_the_probability_is_never_above_the_one_accounted():
    class Edge:
        """Words just at the boundary of 1/4."""

        def words(self, count):
            return np.array([0, 2**62 - 1, 2**62, 2**64 - 1], dtype=np.uint64)[:count]

    assert PoissonSampler(4, 0.25, Edge()).draw(1).tolist() == [0, 1]


# Cyclic sampling.

CONTENTS = [bytes([i, i // 3]) for i in range(N)]


def test_a_unit_is_drawn_at_most_once_in_any_round():
    sampler, last = CyclicPoissonSampler(CONTENTS, 5, 0.9), {}
    for step in range(1, 200):
        for unit in sampler.draw(step).tolist():
            assert step - last.get(unit, -5) >= 5
            last[unit] = step
    assert len(last) == N


def test_within_its_turn_a_unit_is_drawn_as_often_as_accounted():
    sampler, rounds = CyclicPoissonSampler(CONTENTS, 4, P), 3000
    counts = np.bincount(np.concatenate([sampler.draw(step) for step in range(4 * rounds)]), minlength=N)
    z = (counts - rounds * P) / np.sqrt(rounds * P * (1 - P))
    assert SURE < stats.chi2(N).cdf((z**2).sum()) < 1 - SURE


def test_a_step_draws_from_the_group_of_its_number_also_after_a_resume():
    for step in (1, 6, 11):
        drawn = CyclicPoissonSampler(CONTENTS, 5, 1.0).draw(step)
        assert drawn.tolist() == [i for i, content in enumerate(CONTENTS) if group_of(content, 5) == 1]


def test_groups_are_of_like_size():
    sizes = np.bincount([group_of(i.to_bytes(4), 8) for i in range(40_000)])
    assert stats.chisquare(sizes).pvalue > SURE


def test_one_band_draws_like_plain_poisson():
    assert CyclicPoissonSampler(CONTENTS, 1, 1.0).draw(3).tolist() == list(range(N))
