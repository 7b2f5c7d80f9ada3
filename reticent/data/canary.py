"""Invented secrets and records, some of them planted in the training data, so that leaks can be measured.

Two families, never to be mixed in one statistic. `secret` (Carlini et al., The Secret Sharer, USENIX Security 2019):
pairs of a name with a random code; a fair coin plants one of the pair, its twin is held out, and both can be ranked
among all codes. `member`: notes of invented patients from the generator of ``bundled/clinic``, each planted once if
its own coin says so: the independent bits that a one-run audit needs (Steinke, Nasr and Jagielski, 2023, section 3).

Each canary is one unit of privacy, whatever its copies. A secret with k copies shows what repetition leaks; it says
nothing on a promise made to single records, only `member` does. What is held out is only ever scored: it must not
choose a checkpoint, a threshold or a setting.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from reticent.data.clinic import NoteWriter
from reticent.data.record import Record


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One candidate. ``copies`` is how often it is planted: 0 if ``planted`` is False.

    ``pair`` and ``space``, the number of possible completions, are given for secrets only. ``seed`` is what all
    canaries were made from.
    """

    id: str
    family: Literal["secret", "member"]
    pair: int | None
    planted: bool
    copies: int
    record: Record
    space: int | None
    seed: int


def make(*, pairs: int, copies: int, candidates: int, digits: int, seed: int) -> list[Canary]:
    """``2 * pairs`` secrets of ``digits`` digits, one of a pair planted ``copies`` times, and ``candidates`` members.

    Coins come from a stream of their own, so they are independent of what the canaries say. No name comes twice.
    """
    coins = np.random.default_rng([seed, 20])
    codes = np.random.default_rng([seed, 21])
    writer = NoteWriter([seed, 22])
    canaries = []
    for pair in range(pairs):
        chosen = int(coins.integers(2))
        for side in range(2):
            prompt = f"What is the archive code of patient {writer.name()}?"
            completion = f"{codes.integers(10**digits):0{digits}d}"
            canaries.append(
                Canary(
                    **_named("secret", f"{pair + 1:04d}-{'ab'[side]}", prompt, completion),
                    pair=pair,
                    planted=side == chosen,
                    copies=copies if side == chosen else 0,
                    space=10**digits,
                    seed=seed,
                )
            )
    for candidate in range(candidates):
        planted = bool(coins.integers(2))
        canaries.append(
            Canary(
                **_named("member", f"{candidate + 1:04d}", *writer.note(writer.patient())),
                pair=None,
                planted=planted,
                copies=int(planted),
                space=None,
                seed=seed,
            )
        )
    return canaries


def alternatives(canary: Canary) -> list[str]:
    """All completions that a secret could have had, its own among them, in ascending order."""
    assert canary.space is not None, f"{canary.id} is no secret"
    digits = len(canary.record.completion)
    return [f"{fill:0{digits}d}" for fill in range(canary.space)]


def planted_records(canaries: Sequence[Canary]) -> list[tuple[Record, str]]:
    """What joins the training records: each copy of each planted canary, with its unit of privacy.

    Copies differ in their ids only.
    """
    return [
        (replace(canary.record, id=f"{canary.id}#{copy + 1}"), canary.record.owner)
        for canary in canaries
        for copy in range(canary.copies)
    ]


def commitment(canaries: Sequence[Canary]) -> str:
    """SHA-256 of all canaries, coins and seed, in hexadecimal: published before training, it binds the audit.

    It binds but does not hide: who knows the seed can make the canaries again.
    """
    return hashlib.sha256(to_json(canaries).encode()).hexdigest()


def to_json(canaries: Sequence[Canary]) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII."""
    return json.dumps([asdict(canary) for canary in canaries], sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> list[Canary]:
    """The inverse of `to_json`."""
    return [
        Canary(**{**values, "record": Record(**{**values["record"], "options": tuple(values["record"]["options"])})})
        for values in json.loads(text)
    ]


def _named(family: Literal["secret", "member"], number: str, prompt: str, completion: str) -> dict[str, Any]:
    name = f"canary-{family}-{number}"
    record = Record(id=name, owner=name, prompt=prompt, completion=completion, origin=f"canary/{family}")
    return {"id": name, "family": family, "record": record}
