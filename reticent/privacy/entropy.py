"""Random words for privacy: a ChaCha20 stream under a key from the operating system, never from a seed."""

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20


class Words(Protocol):
    """A stream of uniform 64-bit words."""

    def words(self, count: int) -> np.ndarray:
        """(count,) uint64."""
        ...


class SystemWords:
    """Words nobody can repeat: each instance has a fresh key, which is never stored."""

    def __init__(self) -> None:
        self._stream = Cipher(ChaCha20(os.urandom(32), os.urandom(16)), mode=None).encryptor()

    def words(self, count: int) -> np.ndarray:
        """(count,) uint64."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)


def uniforms(words: np.ndarray) -> np.ndarray:
    """Uniform float64 in (0, 1] with 53 random bits, from uint64 words."""
    return ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53


def normals(source: Words, count: int) -> np.ndarray:
    """(count,) standard normal float32, by the Box-Muller transform in float64."""
    half = (count + 1) // 2
    u = uniforms(source.words(2 * half))
    radius, angle = np.sqrt(-2.0 * np.log(u[:half])), 2.0 * np.pi * u[half:]
    pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return pair[:count].astype(np.float32)
