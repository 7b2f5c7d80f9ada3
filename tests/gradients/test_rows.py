"""Packing: nothing lost, nothing twice, units whole."""

import numpy as np
import pytest
import torch

from reticent.gradients.rows import Unit, pack


def _records(row):
    """The token ids of each record of a row."""
    return [row.ids[0, s:e].tolist() for s, e in zip((0, *row.records[:-1]), row.records, strict=True)]


@pytest.mark.parametrize("budget", [1, 17, 50, 10_000])
def test_every_record_is_packed_once(tiny, budget):
    units = tiny.units(30, records=4, seed=budget)
    packed = [ids for group in pack(units, max_tokens=budget, loss="sum") for row in group for ids in _records(row)]
    assert sorted(packed) == sorted(r.ids.tolist() for unit in units for r in unit.records)


@pytest.mark.parametrize("budget", [8, 25, 60])
def test_only_a_single_long_record_exceeds_the_budget(tiny, budget):
    rows = [row for group in pack(tiny.units(30, records=4), max_tokens=budget, loss="sum") for row in group]
    assert all(row.ids.shape[1] <= budget or len(row.records) == 1 for row in rows)


def test_a_unit_is_never_spread_over_two_groups(tiny):
    units = tiny.units(30, records=4)
    groups = list(pack(units, max_tokens=25, loss="sum"))
    assert sum(len(group[0].units) for group in groups) == len(units)
    assert all(len(row.units) == 1 for group in groups if len(group) > 1 for row in group)


def test_units_end_where_a_record_ends_and_positions_restart(tiny):
    for (row,) in pack(tiny.units(10, records=2), max_tokens=60, loss="sum"):
        assert set(row.units) <= set(row.records) and row.units[-1] == row.records[-1] == row.ids.shape[1]
        assert np.flatnonzero(row.positions[0] == 0).tolist() == [0, *row.records[:-1]]


@pytest.mark.parametrize(("loss", "weights"), [("sum", [1, 1]), ("mean", [0.5, 0.5])])
def test_predictions_labels_and_weights_are_the_records_own(tiny, loss, weights):
    ((row,),) = pack([Unit("u", (tiny.record([5, 6, 7, 8], 2),))], max_tokens=100, loss=loss)
    assert row.predict.tolist() == [1, 2] and row.labels.tolist() == [7, 8] and row.weights.tolist() == weights


def test_equal_records_of_a_unit_are_computed_once_and_weighted(tiny):
    twice = Unit("u", (tiny.record([3, 4, 5]), tiny.record([6, 7]), tiny.record([3, 4, 5])))
    ((row,),) = pack([twice], max_tokens=100, loss="sum")
    assert sorted(zip(row.labels.tolist(), row.weights.tolist(), strict=True)) == [(4, 2), (5, 2), (7, 1)]


def test_records_with_equal_tokens_but_other_trained_ones_are_not_equal(tiny):
    unit = Unit("u", (tiny.record([3, 4, 5], 1), tiny.record([3, 4, 5], 2)))
    ((row,),) = pack([unit], max_tokens=100, loss="sum")
    assert len(row.records) == 2


def test_equal_records_of_two_units_stay_two(tiny):
    ((row,),) = pack([Unit(name, (tiny.record([3, 4, 5]),)) for name in "ab"], max_tokens=100, loss="sum")
    assert row.units == (3, 6) and torch.equal(row.weights, torch.ones(4))


def test_no_units_give_no_rows():
    assert list(pack([], max_tokens=10, loss="sum")) == []


def test_rows_are_alike_in_tokens_and_units(tiny):
    """Short units do not end up together: a row's memory grows with its units."""
    rng = np.random.default_rng(0)
    units = [Unit(str(i), (tiny.random_record(rng, int(rng.integers(2, 60))),)) for i in range(200)]
    rows = [row for (row,) in pack(units, max_tokens=300, loss="sum")]
    tokens, members = [row.units[-1] for row in rows], [len(row.units) for row in rows]
    assert max(tokens) <= 300 and max(tokens) - min(tokens) < 60
    assert max(members) <= 1.5 * np.mean(members)
