"""Exposure: known ranks, and its law in a model that never saw the secret (G7)."""

from math import log2

import numpy as np
import pytest
from scipy import special, stats

from reticent.attacks.exposure import (
    NULL_MEAN,
    exposure,
    exposure_by_copies,
    extrapolated_exposure,
    joint_exposure,
    mean_exposure,
    sampled_exposure,
)


def test_ranks() -> None:
    space = np.array([-9.0, -1.0, -5.0, -7.0])
    assert exposure(-1.0, space) == (2.0, 1, 4)
    assert exposure(-9.0, space) == (0.0, 4, 4)
    assert exposure(-1.0, np.random.default_rng(0).permutation(space)) == (2.0, 1, 4)


def test_ties_count_against_the_secret() -> None:
    assert exposure(-3.0, np.full(1000, -3.0)) == (0.0, 1000, 1000)


def test_the_law_without_a_leak() -> None:
    rng = np.random.default_rng(0)
    spaces = rng.normal(size=(4000, 1000))
    bits = np.array([exposure(space[0], space).bits for space in spaces])
    assert bits.mean() == pytest.approx(NULL_MEAN, abs=0.07)  # 3 standard errors
    for x in (1, 2, 4):
        assert (bits >= x).mean() == pytest.approx(2.0**-x, abs=0.025)


def test_false_alarms_are_at_most_nominal() -> None:
    rng = np.random.default_rng(1)
    bits = log2(1000) - np.log2(rng.integers(1, 1001, size=(1000, 20)))
    p_values = np.array([mean_exposure(row, 1000, rng=rng).p_value for row in bits[:300]])
    assert (p_values <= 0.05).mean() < 0.09
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.1)


def test_a_leak_is_seen() -> None:
    result = mean_exposure([10.0, 3.0, 16.6, 12.0], 100_000, rng=np.random.default_rng(0))
    assert result.value == pytest.approx(10.4)
    assert result.p_value < 1e-5 and result.interval is not None and result.interval[0] > result.floor
    assert result.ceiling == pytest.approx(16.61, abs=0.01)


def test_sampled_ranks() -> None:
    references = np.array([-9.0, -5.0, -7.0])
    assert sampled_exposure(-1.0, references) == (2.0, 1, 3, 0.25)
    assert sampled_exposure(-10.0, references) == (0.0, 4, 3, 1.0)
    assert sampled_exposure(-5.0, references) == (1.0, 2, 3, 0.5)  # a tie counts against the secret
    assert sampled_exposure(-3.0, np.full(1023, -3.0)).bits == 0


def test_sampled_exposure_equals_enumeration_of_the_same_fills() -> None:
    space = np.random.default_rng(2).normal(size=1024)
    for secret in (0, 500, int(space.argmax())):
        assert sampled_exposure(space[secret], np.delete(space, secret))[:2] == exposure(space[secret], space)[:2]


def test_sampled_p_values_are_exact_without_a_leak() -> None:
    rng = np.random.default_rng(3)
    found = [sampled_exposure(row[0], row[1:]) for row in rng.normal(size=(2000, 256))]
    assert stats.kstest([one.p_value for one in found], "uniform").pvalue > 0.01
    assert np.mean([one.bits for one in found]) == pytest.approx(NULL_MEAN, abs=0.1)  # 3 standard errors
    assert all(one.p_value == pytest.approx(2**-one.bits) for one in found)


def test_joint_test_of_shared_references_is_uniform_without_a_leak() -> None:
    rng = np.random.default_rng(4)
    drawn = rng.normal(size=(300, 30))
    p_values = [joint_exposure(row[:10], row[10:], rng=rng, draws=499).p_value for row in drawn]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_secrets_that_share_references_are_not_independent() -> None:
    # What the joint test is for: 60 references decide all 200 ranks.
    rng, p_values = np.random.default_rng(14), []
    for _ in range(300):
        references = rng.normal(size=60)
        bits = [sampled_exposure(secret, references).bits for secret in rng.normal(size=200)]
        p_values.append(special.gammaincc(200, np.sum(bits) * np.log(2)))  # as in `mean_exposure`
    assert np.mean(np.array(p_values) <= 0.05) > 0.08


def test_joint_test_equals_relabelling_by_hand() -> None:
    rng = np.random.default_rng(5)
    pooled = np.append(rng.normal(size=30), [2.0, 1.5, 1.0])

    def mean(chosen: np.ndarray) -> float:
        rest = np.delete(pooled, chosen)
        return float(np.mean([sampled_exposure(x, rest).bits for x in pooled[chosen]]))

    observed = mean(np.array([30, 31, 32]))
    slow = np.array([mean(rng.permutation(33)[:3]) for _ in range(4000)])
    found = joint_exposure(pooled[30:], pooled[:30], rng=rng)
    assert found.value == pytest.approx(observed)
    assert found.p_value == pytest.approx((slow >= observed - 1e-9).mean(), abs=0.012)
    assert found.floor == pytest.approx(slow.mean(), abs=0.05)


def test_joint_test_sees_a_leak_and_says_its_floor_and_ceiling() -> None:
    rng = np.random.default_rng(6)
    found = joint_exposure(rng.normal(2, 1, 20), rng.normal(size=1023), rng=rng)
    assert found.p_value == pytest.approx(1 / 10_001) and found.ceiling == 10
    assert found.floor == pytest.approx(NULL_MEAN, abs=0.05)
    assert found.interval is not None and found.interval[0] > found.floor


def test_ties_make_the_joint_test_conservative() -> None:
    found = joint_exposure(np.zeros(5), np.zeros(100), rng=np.random.default_rng(7))
    assert (found.value, found.p_value) == (0, 1)


def test_groups_by_copies_are_corrected_for_their_number() -> None:
    rng = np.random.default_rng(8)
    references = rng.normal(size=1023)
    groups = {copies: rng.normal(shift, 1, 20) for copies, shift in ((1, 0), (10, 0.3), (100, 3))}
    found = exposure_by_copies(groups, references, rng=rng)
    assert [found[copies].value for copies in (1, 10, 100)] == sorted(one.value for one in found.values())
    assert found[100].p_value == pytest.approx(3 / 10_001) and found[1].p_value > 0.05


def test_extrapolation_is_right_for_the_law_it_assumes() -> None:
    rng = np.random.default_rng(10)
    secrets, law = np.array([0.0, 2.0, 5.0, 7.0]), stats.skewnorm(2, loc=-1, scale=1.5)
    found = extrapolated_exposure(secrets, law.rvs(4000, random_state=rng))
    assert found is not None and found == pytest.approx(-law.logsf(secrets) / np.log(2), rel=0.15)


def test_extrapolation_of_an_enormous_leak_is_finite() -> None:
    found = extrapolated_exposure([1000.0], np.random.default_rng(11).normal(size=1023))
    assert found is not None and found.tolist() == [1022]


@pytest.mark.parametrize("law", ["t3", "bimodal"])
def test_laws_that_do_not_fit_are_refused(law: str) -> None:
    # A test that forgot that the law was fitted to these data would let 40 % of t3 pass.
    rng, refused = np.random.default_rng(12), 0
    for _ in range(30):
        references = rng.standard_t(3, 255) if law == "t3" else rng.normal(size=255) + rng.choice([-2, 2], 255)
        refused += extrapolated_exposure([9.0], references) is None
    assert refused >= 26


@pytest.mark.parametrize("shape", [0.0, 3.0, -3.0])
def test_a_law_that_fits_is_seldom_refused(shape: float) -> None:
    rng = np.random.default_rng(13)
    drawn = stats.skewnorm.rvs(shape, loc=-40, scale=5, size=(60, 255), random_state=rng)
    refused = [extrapolated_exposure([0.0], row) is None for row in drawn]
    assert np.mean(refused) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_bad_references_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="references must be one or more finite"):
        sampled_exposure(0.0, np.array([]))
    with pytest.raises(ValueError, match="secrets must be one or more finite"):
        joint_exposure([float("nan")], np.zeros(3), rng=rng)
    with pytest.raises(ValueError, match="50 or more references that differ, got 60"):
        extrapolated_exposure([0.0], np.zeros(60))


def test_bad_values_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one of the alternatives"):
        exposure(-1.0, np.array([-2.0]))
    with pytest.raises(ValueError, match="finite"):
        exposure(float("nan"), np.array([float("nan")]))
    with pytest.raises(ValueError, match=r"log2\(8\) = 3.00"):
        mean_exposure([3.5], 8, rng=rng)
