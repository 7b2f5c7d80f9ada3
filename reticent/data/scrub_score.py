"""How much of what identifies people a scrubber masks, and how much else, against labelled text.

Two numbers sum it up: ``leak_through``, the share of documents in which a direct identifier survives, and
``false_masks``, the share of all other words that are masked. The rest are the scores of three benchmarks, so that they
can be compared with published ones:

- ``tab``: the Text Anonymization Benchmark (Pilan et al. 2022, arXiv 2202.00443). An entity counts as masked only if
  all its mentions are. Several annotators are averaged by their counts.
- ``i2b2``: the de-identification track of i2b2 2014 (Stubbs et al. 2015): the same type, start and end; "relaxed": the
  end may differ by 2 characters; "hipaa": only the types that its script takes for HIPAA's; "blind": of any type.
- ``overlap``: spans of any type whose intersection over union with a mention is at least 0.9 (presidio-research).

Every number is a ratio of two sums over documents. Only such sums are kept, so any number of documents can be scored.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple, get_args

import numpy as np

from reticent.data.recognise import Joined, Recogniser, join
from reticent.data.spans import Labelled, Mention, Span
from reticent.errors import DataError
from reticent.measurement import Measurement
from reticent.statistics import bootstrap_mean, clopper_pearson

Family = Literal["tab", "i2b2", "overlap"]
Exempt = Callable[[str], Iterable[tuple[int, int]]]  # a text -> the stretches of it that need no mask

LEVEL = 0.95  # of every interval
OVERLAP = 0.9  # least intersection over union
BETA = 2.0  # of the overlap's F: a missed identifier weighs more than a false mask

# Which types of i2b2 2014 one of our entities (or of OntoNotes) may stand for; the first where no mention decides.
I2B2_TYPES: dict[str, tuple[str, ...]] = {
    "PERSON": ("PATIENT", "DOCTOR", "USERNAME"),
    "DATE": ("DATE",),
    "DATE_TIME": ("DATE",),
    "AGE": ("AGE",),
    "PHONE_NUMBER": ("PHONE", "FAX"),
    "EMAIL_ADDRESS": ("EMAIL",),
    "URL": ("URL",),
    "IP_ADDRESS": ("IPADDR", "IPADDRESS"),
    "US_SSN": ("SSN",),
    "MEDICAL_RECORD": ("MEDICALRECORD", "IDNUM"),
    "LICENSE_PLATE": ("VEHICLE", "LICENSE"),
    "US_DRIVER_LICENSE": ("LICENSE",),
    "IBAN_CODE": ("ACCOUNT",),
    "CREDIT_CARD": ("ACCOUNT",),
    "ID": ("IDNUM", "MEDICALRECORD", "HEALTHPLAN", "ACCOUNT", "LICENSE", "VEHICLE", "DEVICE", "BIOID", "USERNAME"),
    "ADDRESS": ("STREET", "CITY", "STATE", "ZIP", "COUNTRY"),
    "LOCATION": ("CITY", "STATE", "COUNTRY", "STREET", "ZIP", "HOSPITAL", "LOCATION-OTHER"),
    "GPE": ("CITY", "STATE", "COUNTRY"),
    "LOC": ("LOCATION-OTHER", "CITY", "STATE", "COUNTRY"),
    "FAC": ("HOSPITAL", "STREET", "LOCATION-OTHER"),
    "ORGANIZATION": ("HOSPITAL", "ORGANIZATION", "DEPARTMENT"),
    "ORG": ("HOSPITAL", "ORGANIZATION", "DEPARTMENT"),
}

# As in the track's script: without DOCTOR, HOSPITAL and STATE, and without IDNUM, which it misses by a typing error.
I2B2_HIPAA = frozenset(
    {"PATIENT", "CITY", "STREET", "ZIP", "ORGANIZATION", "DATE", "PHONE", "FAX", "EMAIL", "SSN", "MEDICALRECORD"}
    | {"HEALTHPLAN", "ACCOUNT", "LICENSE", "VEHICLE", "DEVICE", "BIOID", "AGE"}
)

_IGNORED_CHARACTERS = frozenset(" ,.-;:/&()[]–'\"’“”")
_IGNORED_WORDS = re.compile(r"\b(?:mr|mrs|ms|no|nr|about)\b", re.IGNORECASE)
_IGNORED_PARTS_OF_SPEECH = frozenset({"ADP", "PART", "CCONJ", "DET"})
_WORD = re.compile(r"\w+")

_BATCH = 64  # texts that a recogniser gets at once
_GROUPS = 4096  # documents beyond are added to earlier ones: the intervals stay right and the memory small


class Scored(NamedTuple):
    """A share with its two-sided 95 % interval over ``n`` of what is ``counted``; None where the data gives none."""

    name: str
    value: float
    interval: tuple[float, float] | None
    n: int
    counted: str
    method: str

    def measurement(self, model: str) -> Measurement:
        """The same for reports; ``model``: the scrubber's name."""
        return Measurement(**self._asdict(), model=model, unit="share", level=LEVEL)


class Ratio(NamedTuple):
    """What one document adds to a share: ``hits`` of ``total``. ``trials``: it counts things, each hit or missed."""

    hits: float
    total: float
    counted: str
    trials: bool = True


def score(
    labelled: Iterable[Labelled],
    recogniser: Recogniser,
    *,
    families: Sequence[Family] = ("tab",),
    exempt: Exempt | None = None,
    seed: int = 0,
) -> list[Scored]:
    """All scores of one recogniser, reading the texts once.

    ``leak_through`` and ``false_masks`` come first, then those of ``families``. A share of nothing is left out.

    Args:
        labelled: the texts with what their annotators marked.
        recogniser: what the scrubber masks.
        families: the benchmarks, see the module.
        exempt: finds what needs no mask even in an identifier, see `function_words`.
        seed: of the bootstrap.

    Raises:
        DataError: There is no text, a family is unknown, or the recogniser fails or answers beyond the text.
    """
    (scores,) = compare(labelled, {"": recogniser}, families=families, exempt=exempt, seed=seed).values()
    return scores


def compare(
    labelled: Iterable[Labelled],
    recognisers: Mapping[str, Recogniser],
    *,
    combinations: Iterable[Sequence[str]] = (),
    families: Sequence[Family] = ("tab",),
    exempt: Exempt | None = None,
    seed: int = 0,
) -> dict[str, list[Scored]]:
    """The scores of each recogniser, and of each of the ``combinations`` as "a+b", joined as `recognise.build` does.

    The texts are read once and each recogniser sees each of them once.

    Raises:
        DataError: As `score`, or a combination names a recogniser that is not there.
    """
    setups = {"+".join(names): tuple(names) for names in [*((name,) for name in recognisers), *combinations]}
    unknown = {name for names in setups.values() for name in names} - set(recognisers)
    if unknown:
        raise DataError(f"no recogniser {min(unknown)!r} to combine; there are {', '.join(recognisers)}")
    tallies = {setup: Tally(families=families, exempt=exempt, seed=seed) for setup in setups}
    documents = iter(labelled)
    while batch := list(islice(documents, _BATCH)):
        texts = [document.text for document in batch]
        found = {name: recogniser.find(texts) for name, recogniser in recognisers.items()}
        for setup, names in setups.items():
            parts = [_Answered(name, found[name]) for name in names]
            answers = Joined(parts).find(texts) if len(parts) > 1 else found[names[0]]
            for document, spans in zip(batch, answers, strict=True):
                tallies[setup].add(document, spans)
    return {setup: tally.scores() for setup, tally in tallies.items()}


class _Answered:
    """A recogniser that has answered."""

    version = ""

    def __init__(self, name: str, answers: list[list[Span]]) -> None:
        self.name, self._answers = name, answers

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        return self._answers


class Tally:
    """Adds up documents, each with the spans that a scrubber found in it; `scores` may be asked for at any time."""

    def __init__(self, *, families: Sequence[Family] = ("tab",), exempt: Exempt | None = None, seed: int = 0) -> None:
        for family in families:
            if family not in get_args(Family):
                raise DataError(f"{family!r} is no family of scores; take some of {', '.join(get_args(Family))}")
        self._families, self._exempt, self._seed = tuple(families), exempt, seed
        self._shares: dict[str, _Share] = {}
        self._documents = 0

    def add(self, document: Labelled, spans: Sequence[Span]) -> None:
        """One more document; spans that overlap count as one.

        Raises:
            DataError: A span is not inside the text.
        """
        counts = count(document, spans, families=self._families, exempt=self._exempt)
        for name, ratio in counts.items():
            if ratio.total > 0:
                self._shares.setdefault(name, _Share(ratio.counted, ratio.trials)).add(self._documents, ratio)
        self._documents += 1

    def scores(self) -> list[Scored]:
        """All shares of at least one thing.

        Raises:
            DataError: No document was added.
        """
        if not self._documents:
            raise DataError("there is no labelled text to score; check the file")
        order = {name: place for place, name in enumerate(("leak_through", "false_masks"))}
        shares = sorted(self._shares.items(), key=lambda item: order.get(item[0], len(order)))
        scores = []
        for name, share in shares:
            scores.append(share.scored(name, self._seed))
            if name.startswith("i2b2_") and "_macro_" in name:
                scores.append(share.deviation(f"{name}_sd"))
        return scores + _macro_f1({scored.name: scored for scored in scores})


class _Share:
    """The sums of one share, by document until there are `_GROUPS` of them."""

    def __init__(self, counted: str, trials: bool) -> None:
        self._counted, self._trials = counted, trials
        self._sums: dict[int, list[float]] = {}  # hits, total
        self._documents = 0
        self._squares = 0.0
        self._most = 0.0

    def add(self, document: int, ratio: Ratio) -> None:
        sums = self._sums.setdefault(document % _GROUPS, [0.0, 0.0])
        sums[0] += ratio.hits
        sums[1] += ratio.total
        self._documents += 1
        self._squares += ratio.hits**2
        self._most = max(self._most, ratio.total)

    def scored(self, name: str, seed: int) -> Scored:
        hits, totals = np.array(list(self._sums.values())).T
        n = round(float(totals.sum())) if self._trials else self._documents
        if self._trials and self._most <= 1:
            interval = clopper_pearson(float(hits.sum()), n, level=LEVEL)
            return Scored(name, float(hits.sum()) / n, interval, n, self._counted, "Clopper-Pearson")
        rng = np.random.default_rng([seed, 8])
        value, ends = bootstrap_mean(hits / totals, weights=totals, rng=rng, level=LEVEL)
        method = "BCa bootstrap over documents"
        if ends is not None and ends[1] - ends[0] < 1e-12:
            # The same share in each document has no spread to resample; a document is then one trial.
            ends = clopper_pearson(min(1.0, value) * self._documents, self._documents, level=LEVEL)
            method = "Clopper-Pearson over documents"
        return Scored(name, value, ends, n, self._counted, method)

    def deviation(self, name: str) -> Scored:
        """The standard deviation of a mean over documents."""
        mean = sum(hits for hits, _ in self._sums.values()) / self._documents
        value = max(0.0, self._squares / self._documents - mean**2) ** 0.5
        return Scored(name, value, None, self._documents, self._counted, "standard deviation over documents")


def count(
    document: Labelled,
    spans: Sequence[Span],
    *,
    families: Sequence[Family] = ("tab",),
    exempt: Exempt | None = None,
) -> dict[str, Ratio]:
    """What one document adds to each share.

    Raises:
        DataError: A span is not inside the text.
    """
    found = join(document.text, spans)
    masks = Masks(document.text, found, exempt)
    counts = {"leak_through": _leak_through(document, masks), "false_masks": _false_masks(document, masks)}
    if "tab" in families:
        counts |= _tab(document, found, masks)
    if "i2b2" in families:
        counts |= _i2b2(document, found)
    if "overlap" in families:
        counts |= _overlap(document, found)
    return counts


class Masks:
    """Which characters of a text are masked; ``exempt`` finds more that need no mask."""

    def __init__(self, text: str, spans: Iterable[Span], exempt: Exempt | None = None) -> None:
        self._text, self._exempt = text, exempt
        self._covered = _cover(len(text), spans)
        self._exempted: bytearray | None = None

    def hide(self, start: int, end: int) -> bool:
        """Whether ``text[start:end]`` is masked: each character, but for punctuation, spaces, titles and exemptions.

        The rule of TAB's evaluation; its later versions list the function words instead of tagging them. A stretch of
        nothing but these counts as masked.
        """
        if 0 not in self._covered[start:end]:
            return True
        free = bytearray(character in _IGNORED_CHARACTERS for character in self._text[start:end])
        for word in _IGNORED_WORDS.finditer(self._text[start:end]):
            free[word.start() : word.end()] = b"\1" * len(word.group())
        if self._exempt is not None:
            if self._exempted is None:
                stretches = (Span(*stretch, "") for stretch in self._exempt(self._text))
                self._exempted = _cover(len(self._text), stretches)
            free = bytearray(a | b for a, b in zip(free, self._exempted[start:end], strict=True))
        return all(a or b for a, b in zip(free, self._covered[start:end], strict=True))

    def touch(self, start: int, end: int) -> bool:
        """Whether any character of ``text[start:end]`` is masked."""
        return 1 in self._covered[start:end]


def function_words(tagger: Callable[[str], Iterable[tuple[str, int, int]]]) -> Exempt:
    """TAB exempts prepositions, particles, conjunctions and determiners ("the Bank *of* Nowhere").

    ``tagger``: a text -> (universal part of speech, start, end) of its tokens. With a spaCy model ``nlp``:
    ``lambda text: ((t.pos_, t.idx, t.idx + len(t)) for t in nlp(text))``.
    """
    return lambda text: [(start, end) for part, start, end in tagger(text) if part in _IGNORED_PARTS_OF_SPEECH]


def _cover(length: int, spans: Iterable[Span] | Iterable[Mention]) -> bytearray:
    """(length,) 1 for each character that lies in one of ``spans``."""
    covered = bytearray(length)
    for span in spans:
        covered[span.start : span.end] = b"\1" * (span.end - span.start)
    return covered


def _leak_through(document: Labelled, masks: Masks) -> Ratio:
    """One trial for each document that has a direct identifier: any annotator's counts."""
    direct = [mention for mention in document.mentions if mention.identifier == "direct"]
    leaks = any(not masks.hide(mention.start, mention.end) for mention in direct)
    return Ratio(float(leaks), float(bool(direct)), "documents")


def _false_masks(document: Labelled, masks: Masks) -> Ratio:
    """Words (``\\w+``) that no annotator marked, any part of which is masked."""
    marked = _cover(len(document.text), _identifying(document.mentions))
    words = [word.span() for word in _WORD.finditer(document.text) if 1 not in marked[word.start() : word.end()]]
    return Ratio(float(sum(masks.touch(*word) for word in words)), float(len(words)), "words")


def _tab(document: Labelled, found: list[Span], masks: Masks) -> dict[str, Ratio]:
    """As ``evaluation.py`` of TAB counts, except that spans which overlap are joined before precision.

    An entity is direct or quasi as its first mention, and quasi if that needs no mask but a later one does. A mention
    that needs no mask cannot make its entity count as missed, though it counts in the recall of mentions.
    """
    counts: dict[str, Ratio] = {}
    entities: dict[tuple[str, str], list[Mention]] = {}
    for mention in document.mentions:
        entities.setdefault((mention.annotator, mention.id), []).append(mention)
    for kind in ("direct", "quasi"):
        wanted = [
            mentions
            for mentions in entities.values()
            if any(_identifying(mentions)) and (mentions[0].identifier == "direct") == (kind == "direct")
        ]
        stretches = [(mention.start, mention.end) for mentions in wanted for mention in mentions]
        tokens = [token for stretch in stretches for token in _words(document.text, *stretch)]
        hidden = sum(all(masks.hide(m.start, m.end) for m in _identifying(mentions)) for mentions in wanted)
        counts[f"{kind}_entity_recall"] = Ratio(float(hidden), float(len(wanted)), "entities")
        for name, things in (("mention", stretches), ("token", tokens)):
            hidden = sum(masks.hide(*thing) for thing in things)
            counts[f"{kind}_{name}_recall"] = Ratio(float(hidden), float(len(things)), f"{name}s")

    annotators = sorted({mention.annotator for mention in document.mentions})
    hits = total = 0
    needed = {name: [m for m in _identifying(document.mentions) if m.annotator == name] for name in annotators}
    for span in found:
        for start, end in _words(document.text, span.start, span.end):
            total += len(annotators)
            hits += sum(any(m.start <= start and end <= m.end for m in mentions) for mentions in needed.values())
    counts["token_precision"] = Ratio(float(hits), float(total), "masked tokens, by annotator")
    return counts


def _i2b2(document: Labelled, found: list[Span]) -> dict[str, Ratio]:
    """Micro-averages, and what macro-averages are made of. As in its script, no gold (no span) is a recall of 0.

    A span of ours takes the type of the mention with its start that its entity may stand for, else the first type in
    `I2B2_TYPES`.
    """
    counts: dict[str, Ratio] = {}
    for mentions in _by_annotator(document):
        gold = {(m.entity.upper(), m.start, m.end) for m in mentions}
        typed = {(_type_of(span, gold), span.start, span.end) for span in found}
        for scope in ("", "hipaa_", "blind_"):
            if scope == "hipaa_":
                wanted, answered = ({t for t in tags if t[0] in I2B2_HIPAA} for tags in (gold, typed))
            elif scope == "blind_":
                wanted, answered = ({("", start, end) for _, start, end in tags} for tags in (gold, typed))
            else:
                wanted, answered = gold, typed
            for match, slack in (("strict", 0), ("relaxed", 2)):
                hits = sum(_has(answered, tag, slack) for tag in wanted)
                missed, false = len(wanted) - hits, sum(not _has(wanted, tag, slack) for tag in answered)
                _add(counts, _precision_recall(f"i2b2_{scope}{match}", hits, missed, false, beta=1.0))
                recall, precision = (hits / max(1, hits + wrong) for wrong in (missed, false))
                _add(
                    counts,
                    {
                        f"i2b2_{scope}{match}_macro_recall": Ratio(recall, 1.0, "documents", trials=False),
                        f"i2b2_{scope}{match}_macro_precision": Ratio(precision, 1.0, "documents", trials=False),
                    },
                )
    return counts


def _type_of(span: Span, gold: set[tuple[str, int, int]]) -> str:
    types = I2B2_TYPES.get(span.entity.upper(), (span.entity.upper(),))
    here = {(kind, abs(end - span.end)) for kind, start, end in gold if start == span.start and kind in types}
    return min(here, key=lambda tag: (tag[1], tag[0]))[0] if here else types[0]


def _has(tags: set[tuple[str, int, int]], tag: tuple[str, int, int], slack: int) -> bool:
    kind, start, end = tag
    return any((kind, start, end + shift) in tags for shift in range(-slack, slack + 1))


def _overlap(document: Labelled, found: list[Span]) -> dict[str, Ratio]:
    """Above one half, intersection over union pairs a span with at most one of the mentions, which do not overlap."""
    counts: dict[str, Ratio] = {}
    for mentions in _by_annotator(document):
        gold = join(document.text, [Span(m.start, m.end, m.entity) for m in mentions])
        hits = sum(any(_iou(span, mention) >= OVERLAP for span in found) for mention in gold)
        _add(counts, _precision_recall("overlap", hits, len(gold) - hits, len(found) - hits, beta=BETA))
    return counts


def _iou(a: Span, b: Span) -> float:
    shared = min(a.end, b.end) - max(a.start, b.start)
    return max(0, shared) / (a.end - a.start + b.end - b.start - shared)


def _precision_recall(name: str, hits: int, missed: int, false: int, *, beta: float) -> dict[str, Ratio]:
    weight = beta**2
    return {
        f"{name}_recall": Ratio(float(hits), float(hits + missed), "mentions"),
        f"{name}_precision": Ratio(float(hits), float(hits + false), "masks"),
        f"{name}_f{beta:g}": Ratio(
            (1 + weight) * hits, (1 + weight) * hits + weight * missed + false, "documents", False
        ),
    }


def _macro_f1(scores: Mapping[str, Scored]) -> list[Scored]:
    """F1 of the macro-averages, as the script of i2b2 has it; without an interval, for it is no mean."""
    means = []
    for name, recall in scores.items():
        precision = scores.get(name.replace("_recall", "_precision"))
        if name.endswith("_macro_recall") and precision is not None:
            both = recall.value + precision.value
            value = 2 * recall.value * precision.value / both if both else 0.0
            means.append(Scored(name.replace("_recall", "_f1"), value, None, recall.n, "documents", "of the means"))
    return means


def _add(counts: dict[str, Ratio], more: Mapping[str, Ratio]) -> None:
    """Another annotator of the same document."""
    for name, (hits, total, counted, trials) in more.items():
        before = counts.get(name, Ratio(0.0, 0.0, counted, trials))
        counts[name] = Ratio(before.hits + hits, before.total + total, counted, trials)


def _by_annotator(document: Labelled) -> Iterator[list[Mention]]:
    """What each annotator marked as identifying; of a document that nobody marked, one empty list."""
    for name in sorted({mention.annotator for mention in document.mentions}) or [""]:
        yield [mention for mention in _identifying(document.mentions) if mention.annotator == name]


def _identifying(mentions: Iterable[Mention]) -> list[Mention]:
    return [mention for mention in mentions if mention.identifier != "none"]


def _words(text: str, start: int, end: int) -> list[tuple[int, int]]:
    return [(start + word.start(), start + word.end()) for word in _WORD.finditer(text[start:end])]
