"""Which sampled texts are kept. What is read are the samples alone, never private text: so the promise still holds."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reticent.data.near import Sketches

REPEATED = 0.3
"""Share of a text's word triples that stood in it before; above, it goes round in circles."""
REASONS = ("unfinished", "too short", "repetitive", "equal", "near copies")
"""Why a text is left out, in the order in which it is asked."""
_RUN = 3
_WORD = re.compile(r"\w+")


class Sample(NamedTuple):
    """What a model wrote after a public ``prompt`` (may be empty); ``finished``: it ended by itself."""

    prompt: str
    text: str
    finished: bool


class Chosen(NamedTuple):
    """``numbers`` of the samples that are kept, in order, and the funnel: how many were looked at ("sampled"), left out
    for each of `REASONS`, and "kept"."""

    numbers: list[int]
    funnel: dict[str, int]


def choose(samples: Sequence[Sample], *, most: int, min_words: int, near_duplicates: float | None) -> Chosen:
    """The first ``most`` samples that end, hold ``min_words`` words, do not go round in circles and are no copies.

    A copy is equal to an earlier kept sample (prompt and text, up to case and spaces), or shares ``near_duplicates``
    (Jaccard) of its runs of five words with it; None: that is not asked. More samples never change what was decided on
    earlier ones. Samples behind the last kept one are not counted.

    Raises:
        ValueError: ``most`` or ``min_words`` is under 1.
    """
    if most < 1 or min_words < 1:
        raise ValueError(f"most and min_words must be at least 1, got {most} and {min_words}")
    likely, reasons = _by_itself(samples, min_words)
    copied = _copies([words(f"{samples[i].prompt} {samples[i].text}") for i in likely], near_duplicates)
    for i, copy in zip(likely, copied, strict=True):
        if copy:
            reasons[i] = "near copies"
    numbers = [i for i, reason in enumerate(reasons) if reason is None][:most]
    looked = numbers[-1] + 1 if len(numbers) == most else len(samples)
    counts = {reason: sum(one == reason for one in reasons[:looked]) for reason in REASONS}
    return Chosen(numbers, {"sampled": looked, **counts, "kept": len(numbers)})


def repeated(text: str) -> float:
    """Share of the word triples of ``text`` that stood in it before; 0 for a text without any."""
    said = words(text)
    runs = list(zip(*(said[start:] for start in range(_RUN)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORD.findall(text.casefold())


def _by_itself(samples: Sequence[Sample], min_words: int) -> tuple[list[int], list[str | None]]:
    """Samples without a reason against them but nearness, and the reason against each."""
    seen: set[tuple[str, str]] = set()
    likely: list[int] = []
    reasons: list[str | None] = []
    for number, sample in enumerate(samples):
        key = (" ".join(sample.prompt.casefold().split()), " ".join(sample.text.casefold().split()))
        if not sample.finished:
            reasons.append("unfinished")
        elif len(words(sample.text)) < min_words:
            reasons.append("too short")
        elif repeated(sample.text) > REPEATED:
            reasons.append("repetitive")
        elif key in seen:
            reasons.append("equal")
        else:
            seen.add(key)
            reasons.append(None)
            likely.append(number)
    return likely, reasons


def _copies(texts: Sequence[Sequence[str]], threshold: float | None) -> list[bool]:
    """Whether each text is nearly equal to an earlier one that is none of these itself."""
    copied = [False] * len(texts)
    if threshold is None or not texts:
        return copied
    sketches = Sketches(threshold)
    sketches.add(texts)
    alike: dict[int, set[int]] = {}

    def pair(one: int, other: int) -> None:
        alike.setdefault(max(one, other), set()).add(min(one, other))

    # Every text stays a group of its own, so that every pair is told: chains must not pull unlike texts together.
    sketches.join(pair, lambda items: np.asarray(items))
    for text in sorted(alike):
        copied[text] = any(not copied[earlier] for earlier in alike[text])
    return copied
