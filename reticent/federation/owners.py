"""Owners that two sites share, found without telling who they are.

Sites that agree on a secret exchange keyed hashes of their owners' names. Whoever has the secret can try names; without
it the hashes tell only how many there are and which are equal. What is shared has its promises added up, not one.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Set
from itertools import combinations

from reticent.errors import FederationError

SHORTEST = 16


def hashes(owners: Iterable[str], secret: bytes) -> list[str]:
    """HMAC-SHA256 of each distinct owner, without surrounding space and case, in hexadecimal, sorted.

    Raises:
        FederationError: the secret can be guessed.
    """
    if len(secret) < SHORTEST:
        raise FederationError(
            f"the secret must have {SHORTEST} bytes or more, got {len(secret)}: names could be tried against a short "
            "one. Make one with: head -c 32 /dev/urandom > secret"
        )
    return sorted({hmac.digest(secret, owner.strip().casefold().encode(), hashlib.sha256).hex() for owner in owners})


def shared(sites: Mapping[str, Set[str]]) -> dict[tuple[str, str], int]:
    """How many hashes each two sites have in common, where they have any."""
    counts = {(one, other): len(sites[one] & sites[other]) for one, other in combinations(sorted(sites), 2)}
    return {pair: count for pair, count in counts.items() if count}
