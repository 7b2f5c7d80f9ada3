"""Poisson sampling of units: what the accountant assumes is what runs."""

from typing import Protocol

import numpy as np

from reticent.privacy.entropy import SystemWords, Words


class Sampler(Protocol):
    """Draws the units of each step."""

    def draw(self, step: int) -> np.ndarray:
        """Indices of the drawn units, possibly none."""
        ...


class PoissonSampler:
    """Every unit is in every draw with probability ``sampling_prob``, independently; empty draws are allowed.

    Draws come from the operating system, so a repeated step is a fresh draw and there is no position to store.
    """

    def __init__(self, units: int, sampling_prob: float, source: Words | None = None) -> None:
        self._units, self._source = units, source or SystemWords()
        # Rounded down to a multiple of 2^-64: never more often than the accountant is told.
        self._below = int(sampling_prob * 2.0**64)

    def draw(self, step: int) -> np.ndarray:
        """Indices of the drawn units, possibly none."""
        words = self._source.words(self._units)
        if self._below >= 2**64:
            return np.arange(self._units)
        return np.flatnonzero(words < np.uint64(self._below))


class SeededPoissonSampler:
    """The same law from a seed, for training without a promise: step k's draw can be repeated."""

    def __init__(self, units: int, sampling_prob: float, seed: int) -> None:
        self._units, self._probability, self._seed = units, sampling_prob, seed

    def draw(self, step: int) -> np.ndarray:
        """Indices of the drawn units, possibly none."""
        rng = np.random.default_rng([self._seed, step])
        return np.flatnonzero(rng.random(self._units) < self._probability)
