"""Secret sharing (Shamir 1979): any ``threshold`` shares give back a 256-bit secret, fewer say nothing about it.

A share is the value of a random polynomial of degree ``threshold`` - 1 over a prime field, at the holder's point; the
secret is its value at 0. A secret of 32 bytes gives shares of 33.

What is not covered: a false share is not found here (the secret that comes out is another one), and integers of Python
take a time that depends a little on their value.
"""

import math
import os
from collections.abc import Iterable, Mapping

from reticent.errors import PrivacyError

PRIME = 2**256 + 297  # the smallest prime above 2^256, so every 32 bytes are one element of the field
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, points: Iterable[int]) -> dict[int, bytes]:
    """A share of ``secret``, 32 bytes, for each of at least ``threshold`` different points in [1, PRIME)."""
    holders = sorted(set(points))
    assert len(secret) == SECRET_BYTES and 1 <= threshold <= len(holders), (threshold, len(holders))
    assert holders[0] > 0 and holders[-1] < PRIME, "the value at 0 is the secret"
    polynomial = [int.from_bytes(secret), *(_element() for _ in range(threshold - 1))]
    return {point: _value(polynomial, point).to_bytes(SHARE_BYTES) for point in holders}


def weights(points: Iterable[int]) -> dict[int, int]:
    """Lagrange's factor of each point's share in the value at 0."""
    holders = set(points)
    return {
        i: math.prod(j for j in holders if j != i)
        * pow(math.prod((j - i) % PRIME for j in holders if j != i), -1, PRIME)
        % PRIME
        for i in holders
    }


def recover(shares: Mapping[int, bytes], factors: Mapping[int, int]) -> bytes:
    """The secret from as many shares as the threshold it was split for; ``factors``: `weights` of their points.

    Raises:
        PrivacyError: A share is not an element of the field, or the shares belong to no secret of 32 bytes.
    """
    assert shares.keys() == factors.keys()
    secret = sum(element(share) * factors[point] for point, share in shares.items()) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise PrivacyError("shares give no secret of 32 bytes: at least one of them is false")
    return secret.to_bytes(SECRET_BYTES)


def element(share: bytes) -> int:
    """The field element that ``share`` writes in its one way.

    Raises:
        PrivacyError: It has another length, or is not below the prime.
    """
    value = int.from_bytes(share)
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise PrivacyError(f"a share must be {SHARE_BYTES} bytes that write a number below the prime")
    return value


def _element() -> int:
    """Uniform over the field, from the operating system."""
    while True:  # two turns in the mean
        value = int.from_bytes(os.urandom(SHARE_BYTES)) >> 7  # 257 bits
        if value < PRIME:
            return value


def _value(polynomial: list[int], point: int) -> int:
    """Horner's scheme."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value
