"""Distances between collections of texts: MAUVE, words, lengths, variety."""

from math import comb

import numpy as np
import pytest

from reticent.utility.distribution import (
    Texts,
    area,
    curve,
    distinct_share,
    length_distance,
    mauve,
    ngram_distance,
)


def _cloud(rng: np.random.Generator, count: int, centre: int, width: int = 8) -> np.ndarray:
    middle = np.zeros(width)
    middle[centre] = 5
    return rng.normal(size=(count, width)) + middle


def test_equal_histograms_have_the_whole_area() -> None:
    p = np.array([3.0, 1.0, 6.0])
    assert area(curve(p, 2 * p)) == pytest.approx(1)


def test_disjoint_histograms_have_the_area_of_the_closed_form() -> None:
    # The curve is ((1 - a)^5, a^5), and the integral of a^5 over it is 5!^2 / 10!.
    points = curve(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert area(points) == pytest.approx(1 / comb(10, 5), rel=0.01)


def test_the_curve_is_the_formula_by_hand() -> None:
    p, q, a = np.array([0.75, 0.25]), np.array([0.5, 0.5]), 50 / 101
    r = a * p + (1 - a) * q
    x = np.exp(-5 * sum(q[i] * np.log(q[i] / r[i]) for i in range(2)))
    y = np.exp(-5 * sum(p[i] * np.log(p[i] / r[i]) for i in range(2)))
    assert np.isclose(curve(p, q), [x, y]).all(axis=1).any()


def test_the_curve_goes_from_one_axis_to_the_other() -> None:
    points = curve(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    assert points[0].tolist() == [0, 1] and points[-1].tolist() == [1, 0]
    assert (np.diff(points[:, 0]) >= 0).all() and (np.diff(points[:, 1]) <= 0).all()


def test_samples_of_one_source_are_near_one() -> None:
    rng = np.random.default_rng(1)
    found = mauve(_cloud(rng, 200, 0), _cloud(rng, 200, 0), seed=1, clusters=5)
    assert found.value > 0.9
    assert found.interval is not None and found.interval[0] <= found.value <= found.interval[1]


def test_samples_of_different_sources_are_near_zero() -> None:
    rng = np.random.default_rng(2)
    assert mauve(_cloud(rng, 100, 0), _cloud(rng, 100, 1), seed=1).value < 0.02


def test_the_same_texts_have_all_in_common() -> None:
    rows = np.random.default_rng(3).normal(size=(40, 6))
    assert mauve(rows, rows, seed=1).value == pytest.approx(1)


def test_texts_that_are_all_alike_need_no_second_cluster() -> None:
    rows = np.ones((20, 3))
    assert mauve(rows, rows, seed=1).clusters == 1


def test_a_share_of_foreign_texts_lowers_it() -> None:
    rng = np.random.default_rng(4)
    real, foreign = _cloud(rng, 200, 0), _cloud(rng, 100, 1)
    mixed = np.concatenate([_cloud(rng, 100, 0), foreign])
    values = [mauve(side, real, seed=1, clusters=10).value for side in (_cloud(rng, 200, 0), mixed, foreign)]
    assert values == sorted(values, reverse=True)


def test_embeddings_of_two_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="one width"):
        mauve(np.ones((3, 2)), np.ones((3, 3)), seed=1)


def test_word_distance_is_the_divergence_by_hand() -> None:
    ours, theirs = Texts.of(["a a b"]), Texts.of(["a c"])
    # P = (2/3, 1/3, 0), Q = (1/2, 0, 1/2), M = (7/12, 1/6, 1/4).
    bits = (2 / 3 * np.log2(8 / 7) + 1 / 3 * np.log2(2) + 1 / 2 * np.log2(6 / 7) + 1 / 2 * np.log2(2)) / 2
    assert ngram_distance(ours, theirs, size=1, seed=1).value == pytest.approx(bits)


def test_words_in_common_bring_texts_together() -> None:
    same, other = Texts.of(["a b c d"] * 20), Texts.of(["e f g h"] * 20)
    assert ngram_distance(same, same, size=2, seed=1).value == pytest.approx(0)
    assert ngram_distance(same, other, size=2, seed=1).value == pytest.approx(1)


def test_length_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(5)
    first, second = rng.integers(1, 12, 50), rng.integers(4, 15, 70)
    ours, theirs = (Texts.of([" ".join("a" * n) for n in side]) for side in (first, second))
    assert length_distance(ours, theirs, seed=1).value == pytest.approx(ks_2samp(first, second).statistic)


def test_distinct_share_counts_each_run_once() -> None:
    assert distinct_share(Texts.of(["a b a b", "a b"]), size=2, seed=1).value == pytest.approx(2 / 4)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # Two coins a word with different chances: the divergence of the sources is known, and samples are large.
    rng, hits = np.random.default_rng(6), 0
    middle = 0.45
    truth = sum(p * np.log2(p / m) for p, m in ((0.3, middle), (0.7, 1 - middle), (0.6, middle), (0.4, 1 - middle))) / 2
    for _ in range(100):
        sides = [
            Texts.of([" ".join(rng.choice(["a", "b"], 20, p=[chance, 1 - chance])) for _ in range(60)])
            for chance in (0.3, 0.6)
        ]
        interval = ngram_distance(*sides, size=1, seed=1).interval
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    assert 85 <= hits <= 100


def test_texts_of_one_owner_leave_no_interval() -> None:
    one = Texts.of(["a b", "c d", "a c"], owners=["x", "x", "x"])
    assert length_distance(one, Texts.of(["a"] * 5), seed=1).interval is None


def test_texts_are_cut_to_as_many_words() -> None:
    assert len(Texts.of(["a b", "c d", "e f"]).first(4).words) == 2


def test_texts_are_never_shown() -> None:
    assert "ann" not in f"{Texts.of(['ann was here'])} {Texts.of(['ann was here'])!r}"
