"""Random words for privacy: a ChaCha20 stream under a key from the operating system, never from a seed."""

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

_BLOCK = 2**14  # pairs of normals made at once: what they need stays in the cache


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


def add_normals(values: np.ndarray, scale: float, source: Words) -> None:
    """Adds independent N(0, scale^2) to every element of ``values``, (count,) float32, in place.

    Box and Muller 1958. The radius comes from 53 bits in float64, so that normals up to 8.5 occur, the angle from 32
    bits in float32.
    """
    assert values.ndim == 1 and values.dtype == np.float32, (values.shape, values.dtype)
    for start in range(0, len(values), 2 * _BLOCK):
        part = values[start : start + 2 * _BLOCK]
        half = (len(part) + 1) // 2
        words = source.words(half + (half + 1) // 2)
        radius = np.log(uniforms(words[:half])).astype(np.float32)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        radius *= np.float32(scale)
        angle = (words[half:].view(np.int32)[:half] * (np.pi * 2.0**-31)).astype(np.float32)
        part[:half] += radius * np.cos(angle)
        part[half:] += (radius * np.sin(angle))[: len(part) - half]


def normals(source: Words, count: int) -> np.ndarray:
    """(count,) standard normal float32."""
    values = np.zeros(count, dtype=np.float32)
    add_normals(values, 1.0, source)
    return values
