"""Finding what identifies somebody: recognisers by name, and their answers joined.

A recogniser reads texts and marks stretches of them. All of them are local but ``private-ai``, which sends the texts to
the address in its name. Whatever goes wrong is raised: a text that no recogniser has read must not pass for clean.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from reticent.data import taggers
from reticent.data.clinical import PATTERNS, Clinical
from reticent.data.names import repeated
from reticent.data.private_ai import PrivateAI
from reticent.data.spans import Span
from reticent.errors import DataError

if TYPE_CHECKING:
    from spacy.language import Language

DEFAULT: tuple[str, ...] = ("clinical", "spacy", "proper-nouns")
"""The best set-up that needs no network and no model beyond spaCy's small English one."""


class Recogniser(Protocol):
    """Marks what identifies somebody.

    ``version`` names all that the answers depend on (packages, model, our own rules): part of every cache key.
    """

    name: str
    version: str

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order. Any failure is raised."""


class Joined:
    """Several recognisers as one: the union of their spans, none overlapping, in order.

    A name that one of them found is also marked at its other places in the text.
    """

    def __init__(self, parts: Sequence[Recogniser], *, entities: Sequence[str] | None = None) -> None:
        self._parts = tuple(parts)
        self._entities = None if entities is None else frozenset(entities)
        self.name = "+".join(part.name for part in parts)
        kinds = "all" if entities is None else ",".join(sorted(entities))
        self.version = "; ".join([*(part.version for part in parts), kinds, f"joined {JOINING}"])

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order, without overlaps.

        Raises:
            DataError: a recogniser did not answer for every text, or marked what is not in the text.
        """
        found: list[list[Span]] = [[] for _ in texts]
        for part in self._parts:
            answers = part.find(texts)
            if len(answers) != len(texts):
                raise DataError(f"recogniser {part.name}: answered for {len(answers)} of {len(texts)} texts")
            for spans, more in zip(found, answers, strict=True):
                spans.extend(more)
        return [self._joined(text, spans) for text, spans in zip(texts, found, strict=True)]

    def _joined(self, text: str, spans: list[Span]) -> list[Span]:
        spans = [*spans, *repeated(text, spans)]
        if self._entities is not None:
            spans = [span for span in spans if span.entity in self._entities]
        return join(text, spans)


JOINING = "1"  # raise it with every change of how answers are joined


def join(text: str, spans: Sequence[Span]) -> list[Span]:
    """``spans`` in order, with white space trimmed and those that overlap merged to their hull.

    A hull takes the entity of its most certain span, and among equally certain ones of the longest.

    Raises:
        DataError: a span is not inside the text.
    """
    merged: list[Span] = []
    best: list[Span] = []  # the span that gave each hull its entity
    for span in sorted(_trimmed(text, span) for span in spans):
        if span.start == span.end:
            continue
        if not merged or span.start >= merged[-1].end:
            merged.append(span)
            best.append(span)
            continue
        if (span.score, span.end - span.start) > (best[-1].score, best[-1].end - best[-1].start):
            best[-1] = span
        merged[-1] = best[-1]._replace(start=merged[-1].start, end=max(merged[-1].end, span.end))
    return merged


def _trimmed(text: str, span: Span) -> Span:
    if not 0 <= span.start <= span.end <= len(text):
        raise DataError(
            f"recogniser {span.by or '?'}: marked characters {span.start} to {span.end} of a text of {len(text)}"
        )
    found = text[span.start : span.end]
    left = len(found) - len(found.lstrip())
    return span._replace(start=span.start + left, end=span.start + max(left, len(found.rstrip())))


def is_remote(name: str) -> bool:
    """Whether the recogniser of that name sends texts over a network."""
    return name.partition(":")[0] in REMOTE


REMOTE = frozenset({"private-ai"})


def build(names: Sequence[str], *, entities: Sequence[str] | None = None, language: str = "en") -> Recogniser:
    """The recognisers of these names, joined; spans of other kinds than ``entities`` are left out.

    Raises:
        DataError: a name is unknown or twice, a package or model is missing, no recogniser of these marks one of the
            ``entities``, or the language has no recogniser.
    """
    _check(names, language)
    _check_entities(names, entities)
    parts: list[Recogniser] = []
    readers: dict[str, list[Callable[[Language], taggers.Reader]]] = {}  # of each spaCy model
    for name in names:
        kind, _, model = name.partition(":")
        if kind in READERS:
            model = model or taggers.SPACY_MODEL
            readers.setdefault(model, []).append(READERS[kind](model))
        else:
            parts.append(MODELS[kind](model))
    parts += [taggers.SpacyPass(model, makers) for model, makers in readers.items()]
    return Joined(parts, entities=entities)


READERS: dict[str, Callable[[str], "Callable[[Language], taggers.Reader]"]] = {
    "spacy": lambda model: lambda nlp: taggers.SpacyEntities(model),
    "presidio": lambda model: lambda nlp: taggers.Presidio(nlp, model),
    "proper-nouns": lambda model: lambda nlp: taggers.ProperNouns(),
}
MODELS: dict[str, Callable[[str], Recogniser]] = {
    "clinical": lambda model: Clinical(),
    "flair": taggers.Flair,
    "transformers": taggers.Transformer,
    "gliner": taggers.Gliner,
    "private-ai": PrivateAI,
}


def _check(names: Sequence[str], language: str) -> None:
    if language != "en":
        raise DataError(f"language: recognisers know English (en), got {language!r}")
    known = [*READERS, *MODELS]
    for name in names:
        if name.partition(":")[0] not in known:
            raise DataError(f"recognisers: {name!r} is unknown; valid are {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise DataError(f"recognisers: name at least one and none twice, got {', '.join(names) or 'none'}")


# What each kind can mark; a kind that is not here has its labels from a model or a service.
MARKS = {
    "clinical": frozenset(pattern.entity for pattern in PATTERNS) | {"PERSON"},
    "spacy": frozenset(taggers.ONTONOTES.values()),
    "proper-nouns": frozenset({"PERSON", "PROFESSION"}),
    "flair": frozenset(taggers.FLAIR_LABELS),
    "gliner": frozenset(taggers.ASKED.values()),
}


def _check_entities(names: Sequence[str], entities: Sequence[str] | None) -> None:
    kinds = {name.partition(":")[0] for name in names}
    if entities is None or not kinds <= MARKS.keys():
        return
    marked = frozenset().union(*(MARKS[kind] for kind in kinds))
    if unknown := sorted(set(entities) - marked):
        raise DataError(
            f"entities: none of {', '.join(names)} marks {', '.join(unknown)}; they mark {', '.join(sorted(marked))}"
        )
