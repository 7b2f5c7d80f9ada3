"""Membership scores: orientation, values and refusals."""

import numpy as np
import pytest

from reticent.attacks import scores


def _logp(*records: list[float]) -> list[np.ndarray]:
    return [np.array(record, dtype=np.float32) for record in records]


def test_a_likelier_record_scores_higher() -> None:
    assert scores.loss(_logp([-1, -3], [-4])).tolist() == [-2, -4]


def test_the_difference_takes_out_what_the_base_model_knew() -> None:
    # The first is easy for both, the second was learned.
    result = scores.loss_difference(_logp([-1, -1], [-2, -2]), _logp([-1, -1], [-6, -4]))
    assert result.tolist() == [0, 3]


def test_bad_records_are_named() -> None:
    with pytest.raises(ValueError, match="record 1 has no token"):
        scores.loss(_logp([-1], []))
    with pytest.raises(ValueError, match=r"record 0 .* not finite"):
        scores.loss(_logp([float("nan")]))
    with pytest.raises(ValueError, match="record 1 has shape"):
        scores.loss_difference(_logp([-1], [-1]), _logp([-1], [-1, -2]))
    with pytest.raises(ValueError, match="target holds 1 records, base 0"):
        scores.loss_difference(_logp([-1]), [])
