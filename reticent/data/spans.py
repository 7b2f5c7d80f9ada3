"""Stretches of text that identify somebody: found by a recogniser, or marked by an annotator."""

from typing import Literal, NamedTuple

from reticent.errors import DataError


class UnavailableError(DataError):
    """A recogniser that cannot be reached or will not work: the fault of no text, so no text is dropped for it."""


class Span(NamedTuple):
    """``text[start:end]`` is of the kind ``entity`` (PERSON, DATE, ...), found by ``by`` with a ``score`` in [0, 1]."""

    start: int
    end: int
    entity: str
    score: float = 1.0
    by: str = ""


class Mention(NamedTuple):
    """``text[start:end]``, marked by ``annotator`` as one mention of the thing ``id`` (one person, one date, ...).

    ``identifier``: it names a person by itself (direct), together with others (quasi), or not at all (none).
    """

    start: int
    end: int
    entity: str
    id: str
    identifier: Literal["direct", "quasi", "none"]
    annotator: str = ""


class Labelled(NamedTuple):
    """A text with the mentions that its annotators marked."""

    id: str
    text: str
    mentions: tuple[Mention, ...]
