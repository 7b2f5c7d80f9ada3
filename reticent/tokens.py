"""One record as a model reads it: the plain value that data, gradients, models and attacks share."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """Token ids of one record and which of them are predicted.

    ``ids``: (tokens,) int64. ``trained``: (tokens,) bool; ``trained[i]`` says that the prediction *of* token i from
    the tokens before it counts. ``trained[0]`` is always False: nothing stands before the first token.
    """

    ids: np.ndarray
    trained: np.ndarray

    def __post_init__(self) -> None:
        assert self.ids.ndim == 1 and self.ids.shape == self.trained.shape, (self.ids.shape, self.trained.shape)
        assert len(self.ids) > 0 and not self.trained[0]

    def __len__(self) -> int:
        return len(self.ids)
