"""Poisson sampling of units: what the accountant assumes is what runs."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np

from reticent.privacy.entropy import SystemWords, Words


class Sampler(Protocol):
    """Draws the units of each step."""

    def draw(self, step: int) -> np.ndarray:
        """Indices of the drawn units, possibly none. ``step`` is 1-based."""
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


class CyclicPoissonSampler:
    """Cyclic Poisson sampling (Choquette-Choo et al. 2023, algorithm 2): step t draws from group t mod ``bands`` only.

    Each unit of that group is drawn with probability ``sampling_prob``, independently, so it takes part at most once in
    any ``bands`` consecutive steps. The order goes on by the number of the step, also after a resume.
    """

    def __init__(self, contents: Sequence[bytes], bands: int, sampling_prob: float) -> None:
        groups = np.array([group_of(content, bands) for content in contents])
        self._groups = [np.flatnonzero(groups == group) for group in range(bands)]
        self._samplers = [PoissonSampler(len(members), sampling_prob) for members in self._groups]

    def draw(self, step: int) -> np.ndarray:
        """Indices of the drawn units, possibly none."""
        group = step % len(self._groups)
        return np.asarray(self._groups[group][self._samplers[group].draw(step)])


def group_of(content: bytes, groups: int) -> int:
    """The group of a unit, from its own content alone: one unit more moves no other to another group."""
    return int.from_bytes(blake2b(content, digest_size=16).digest()) % groups


class SeededPoissonSampler:
    """The same law as `PoissonSampler` from a seed, for training without a promise: step k's draw can be repeated."""

    def __init__(self, units: int, sampling_prob: float, seed: int) -> None:
        self._units, self._probability, self._seed = units, sampling_prob, seed

    def draw(self, step: int) -> np.ndarray:
        """Indices of the drawn units, possibly none."""
        rng = np.random.default_rng([self._seed, step])
        return np.flatnonzero(rng.random(self._units) < self._probability)
