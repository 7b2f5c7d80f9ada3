"""The law of the random words and normals."""

import numpy as np
import pytest
from scipy import stats

from reticent.privacy.entropy import SystemWords, add_normals, normals, uniforms

SURE = 1e-6  # a true law fails each test below once in a million runs


def test_two_streams_differ():
    assert not np.intersect1d(SystemWords().words(1000), SystemWords().words(1000)).size


def test_a_stream_does_not_repeat():
    source = SystemWords()
    assert len(np.unique(np.concatenate([source.words(1000), source.words(1000)]))) == 2000


def test_every_bit_is_fair():
    words = SystemWords().words(20_000)
    ones = [int(((words >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)]
    assert all(stats.binomtest(count, 20_000).pvalue > SURE / 64 for count in ones)


def test_uniforms_are_uniform_and_never_zero():
    assert stats.kstest(uniforms(SystemWords().words(50_000)), "uniform").pvalue > SURE
    ends = uniforms(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert ends.tolist() == [2.0**-53, 1.0]


def test_normals_have_mean_variance_and_shape():
    values = normals(SystemWords(), 100_001).astype(np.float64)
    assert values.shape == (100_001,)
    assert abs(values.mean()) * np.sqrt(len(values)) < stats.norm.isf(SURE / 2)
    total = (values**2).sum()
    assert SURE < stats.chi2(len(values)).cdf(total) < 1 - SURE
    assert stats.kstest(values, "norm").pvalue > SURE


def test_the_two_halves_of_box_muller_are_uncorrelated():
    values = normals(SystemWords(), 2**15).astype(np.float64)  # one block
    cosines, sines = values[: 2**14], values[2**14 :]
    for a, b in ((cosines, sines), (cosines**2, sines**2)):
        assert stats.pearsonr(a, b).pvalue > SURE


@pytest.mark.parametrize("beyond", [2.0, 3.0, 4.0])
def test_the_tails_have_the_normal_mass(beyond):
    values, count = normals(SystemWords(), 2_000_000), 2_000_000
    for side in (values > beyond, values < -beyond):
        assert stats.binomtest(int(side.sum()), count, stats.norm.sf(beyond)).pvalue > SURE


def test_the_tail_reaches_beyond_eight():
    class Rare:
        """Words whose radius is the largest and whose angle is zero."""

        def words(self, count):
            return np.zeros(count, dtype=np.uint64)

    assert normals(Rare(), 2).tolist() == pytest.approx([np.sqrt(2 * 53 * np.log(2)), 0.0], rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 2**15 - 1, 2**15 + 1])
def test_every_element_gets_its_own_noise(count):
    values = normals(SystemWords(), count)
    assert len(values) == count and (values != 0).all() and len(np.unique(values)) >= 0.99 * count


def test_scaled_normals_are_added_in_place():
    values = np.full(100_000, 7.0, dtype=np.float32)
    add_normals(values, 0.25, SystemWords())
    assert stats.kstest((values - 7) / 0.25, "norm").pvalue > SURE
