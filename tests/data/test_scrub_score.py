"""The scores of TAB, i2b2 and overlap against slow oracles, and known answers for planted misses."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from reticent.data import gold
from reticent.data.recognise import Joined, join
from reticent.data.scrub_score import (
    I2B2_HIPAA,
    I2B2_TYPES,
    Masks,
    Scored,
    Tally,
    compare,
    count,
    function_words,
    score,
)
from reticent.data.spans import Labelled, Mention, Span
from reticent.errors import DataError
from reticent.statistics import bootstrap_mean, clopper_pearson

FIXTURES = Path(__file__).parent / "gold"


class Finder:
    """Finds given words, each where it stands first."""

    version = "1"

    def __init__(self, *words: str, entity: str = "PERSON") -> None:
        self.name, self._words, self._entity = "finder", words, entity
        self.seen: list[str] = []

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        self.seen += texts
        return [
            [Span(text.index(w), text.index(w) + len(w), self._entity) for w in self._words if w in text]
            for text in texts
        ]


def _spans(text: str, *parts: str, entity: str = "PERSON") -> list[Span]:
    """Each part where it comes next."""
    spans, at = [], 0
    for part in parts:
        at = text.index(part, at)
        spans.append(Span(at, at + len(part), entity))
        at += len(part)
    return spans


def _document(text: str, *marked: tuple[str, str, str], annotator: str = "a", name: str = "d") -> Labelled:
    """``marked``: (part, entity id, identifier), each where it comes next."""
    mentions, at = [], 0
    for part, entity, identifier in marked:
        at = text.index(part, at)
        mentions.append(Mention(at, at + len(part), "PERSON", entity, identifier, annotator))  # type: ignore[arg-type]
        at += len(part)
    return Labelled(name, text, tuple(mentions))


def _values(document: Labelled, spans: list[Span], families: Sequence[str] = ("tab",)) -> dict[str, float]:
    counts = count(document, spans, families=families)  # type: ignore[arg-type]
    return {name: ratio.hits / ratio.total for name, ratio in counts.items() if ratio.total}


# Masked or not: TAB's rule.


def test_a_mention_of_which_one_letter_shows_is_not_masked() -> None:
    assert not Masks("Ada Quill", [Span(0, 8, "PERSON")]).hide(0, 9)


def test_punctuation_spaces_and_titles_need_no_mask() -> None:
    text = "Mr. A.-B. (Quill)"
    assert Masks(text, _spans(text, "A", "B", "Quill")).hide(0, len(text))


def test_a_title_inside_a_word_needs_a_mask() -> None:
    for text, masked in [("Mrok Quill", "ok Quill"), ("Almr Quill", "Al")]:
        assert not Masks(text, [*_spans(text, masked), *_spans(text, "Quill")]).hide(0, len(text))


def test_a_new_line_needs_a_mask() -> None:
    assert not Masks("Ada\nQuill", _spans("Ada\nQuill", "Ada", "Quill")).hide(0, 9)


def test_function_words_need_no_mask_if_a_tagger_says_so() -> None:
    text = "the Bank of Norby"
    tags = [("DET", 0, 3), ("PROPN", 4, 8), ("ADP", 9, 11), ("PROPN", 12, 17)]
    spans = _spans(text, "Bank", "Norby")
    assert not Masks(text, spans).hide(0, len(text))
    assert Masks(text, spans, function_words(lambda text: tags)).hide(0, len(text))


# TAB, known answers (G15).

TEXT = "Ada Quill met Bo Ferre in Norby. Quill left."
MARKED = (("Ada Quill", "ada", "direct"), ("Bo Ferre", "bo", "direct"), ("Norby", "place", "quasi"))


def test_an_entity_whose_second_mention_is_missed_is_missed() -> None:
    document = _document(TEXT, *MARKED, ("Quill", "ada", "direct"))
    values = _values(document, _spans(TEXT, "Ada Quill", "Bo Ferre", "Norby"))
    assert values["direct_entity_recall"] == 1 / 2
    assert values["direct_mention_recall"] == 2 / 3
    assert values["direct_token_recall"] == 4 / 5
    assert values["quasi_entity_recall"] == 1
    assert values["leak_through"] == 1


def test_a_partly_masked_mention_is_missed_but_its_masked_tokens_count() -> None:
    document = _document(TEXT, *MARKED)
    values = _values(document, _spans(TEXT, "Quill", "Bo Ferre"))
    assert values["direct_entity_recall"] == values["direct_mention_recall"] == 1 / 2
    assert values["direct_token_recall"] == 3 / 4
    assert values["quasi_entity_recall"] == 0


def test_the_same_entity_id_of_two_annotators_is_two_entities() -> None:
    one, two = _document(TEXT, MARKED[0], annotator="a"), _document(TEXT, MARKED[1], annotator="b")
    two = two._replace(mentions=(two.mentions[0]._replace(id="ada"),))
    document = Labelled("d", TEXT, one.mentions + two.mentions)
    assert _values(document, _spans(TEXT, "Ada Quill"))["direct_entity_recall"] == 1 / 2


def test_annotators_that_disagree_are_averaged_by_their_counts() -> None:
    one = _document(TEXT, *MARKED, annotator="a")
    two = _document(TEXT, MARKED[0], annotator="b")
    document = Labelled("d", TEXT, one.mentions + two.mentions)
    values = _values(document, _spans(TEXT, "Ada Quill", "Norby", "left"))
    assert values["direct_entity_recall"] == 2 / 3
    assert values["token_precision"] == (2 + 2 + 1 + 0) / (4 * 2)


def test_one_annotators_direct_identifier_is_enough_for_a_leak() -> None:
    one = _document(TEXT, ("Ada Quill", "ada", "direct"), ("Bo Ferre", "bo", "quasi"), annotator="a")
    two = _document(TEXT, ("Bo Ferre", "bo", "direct"), annotator="b")
    document = Labelled("d", TEXT, one.mentions + two.mentions)
    assert _values(document, _spans(TEXT, "Ada Quill"))["leak_through"] == 1
    assert _values(document, _spans(TEXT, "Ada Quill", "Bo Ferre"))["leak_through"] == 0


def test_a_mention_that_needs_no_mask_does_not_make_its_entity_missed() -> None:
    document = _document(TEXT, ("Ada Quill", "ada", "direct"), ("Quill", "ada", "none"))
    values = _values(document, _spans(TEXT, "Ada Quill"))
    assert values["direct_entity_recall"] == 1
    assert values["direct_mention_recall"] == 1 / 2


def test_a_document_without_direct_identifiers_is_no_trial_of_leak_through() -> None:
    assert "leak_through" not in _values(_document(TEXT, ("Norby", "place", "quasi")), [])


def test_false_masks_are_words_that_nobody_marked_of_all_such_words() -> None:
    document = _document(TEXT, *MARKED, ("Quill", "ada", "direct"))
    # met, in and left are not marked; "in Norby" and a part of "left" are masked.
    assert _values(document, _spans(TEXT, "in Norby", "lef"))["false_masks"] == 2 / 3


def test_a_mention_that_needs_no_mask_can_be_masked_falsely() -> None:
    document = _document("Ada left Norby", ("Ada", "ada", "direct"), ("Norby", "place", "none"))
    assert _values(document, _spans(document.text, "Norby"))["false_masks"] == 1 / 2


def test_the_fixture_in_tabs_format_has_the_scores_counted_by_hand() -> None:
    scores = {s.name: s for s in score(gold.read(FIXTURES / "tab.json"), Finder("Ada Quill", "3 May 2001", "Bo Ferre"))}
    assert scores["direct_entity_recall"].value == 1 / 3  # the later "Quill" is missed for both annotators
    assert scores["quasi_entity_recall"].value == 2 / 3  # 3 May 2001 twice; Norby only for the first
    assert scores["direct_mention_recall"].value == 3 / 5
    assert scores["token_precision"].value == 1
    assert scores["leak_through"].value == 1 / 2


# TAB, slow oracle.

PIECES = ["Mr", "no", "of", "Ada", "Quill-Ferre", "about", "nowhere", "7", "(Norby)", "’s", "x.y", "–", "\n"]


def _random_spans(length: int, most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Disjoint stretches that do not touch."""
    cuts = sorted(rng.choice(length, size=2 * int(rng.integers(0, most)), replace=False).tolist())
    stretches = list(zip(cuts[::2], cuts[1::2], strict=True))
    return [s for i, s in enumerate(stretches) if i == 0 or stretches[i - 1][1] < s[0]]


def _random_document(rng: np.random.Generator) -> tuple[Labelled, list[Span]]:
    text = " ".join(PIECES[i] for i in rng.integers(len(PIECES), size=25))
    mentions = [
        Mention(start, end, "PERSON", f"e{rng.integers(3)}", ("direct", "quasi", "none")[rng.integers(3)], annotator)
        for annotator in ("a", "b", "c")[: rng.integers(1, 4)]
        for start, end in _random_spans(len(text), 8, rng)
    ]
    spans = [Span(start, end, "PERSON") for start, end in _random_spans(len(text), 8, rng)]
    edges = [edge for mention in mentions for edge in mention[:2]]
    if edges and rng.random() < 0.5:  # masks that fit or nearly fit
        spans = [Span(m.start, max(m.start + 1, m.end - int(rng.integers(2))), "PERSON") for m in mentions[::2]]
    return Labelled("d", text, tuple(mentions)), spans


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _tokens(text: str, start: int, end: int) -> list[range]:
    """Runs of word characters between start and end, letter by letter."""
    runs: list[range] = []
    for i in range(start, end):
        if _is_word(text[i]):
            if runs and runs[-1].stop == i:
                runs[-1] = range(runs[-1].start, i + 1)
            else:
                runs.append(range(i, i + 1))
    return runs


def _hidden(text: str, start: int, end: int, masked: set[int]) -> bool:
    exempt = {i for token in _tokens(text, start, end) for i in token if _word(text, token) in TITLES}
    exempt |= {i for i in range(start, end) if text[i] in " ,.-;:/&()[]–'\"’“”"}
    return set(range(start, end)) - masked <= exempt


TITLES = {"mr", "mrs", "ms", "no", "nr", "about"}


def _word(text: str, token: range) -> str:
    return "".join(text[i] for i in token).lower()


def _tab_oracle(document: Labelled, spans: list[Span]) -> dict[str, tuple[int, int]]:
    text, spans = document.text, join(document.text, spans)
    masked = {i for span in spans for i in range(span.start, span.end)}
    counts: dict[str, list[int]] = {}

    def add(name: str, hit: bool) -> None:
        counts.setdefault(name, [0, 0])
        counts[name][0] += hit
        counts[name][1] += 1

    annotators = {m.annotator for m in document.mentions}
    for annotator, entity in {(m.annotator, m.id) for m in document.mentions}:
        mentions = [m for m in document.mentions if (m.annotator, m.id) == (annotator, entity)]
        if all(m.identifier == "none" for m in mentions):
            continue
        kind = "direct" if mentions[0].identifier == "direct" else "quasi"
        missed = [m for m in mentions if m.identifier != "none" and not _hidden(text, m.start, m.end, masked)]
        add(f"{kind}_entity_recall", not missed)
        for m in mentions:
            add(f"{kind}_mention_recall", _hidden(text, m.start, m.end, masked))
            for token in _tokens(text, m.start, m.end):
                add(f"{kind}_token_recall", _hidden(text, token.start, token.stop, masked))
    for span in spans:
        for token in _tokens(text, span.start, span.end):
            for annotator in annotators:
                own = [m for m in document.mentions if m.annotator == annotator and m.identifier != "none"]
                add("token_precision", any(set(token) <= set(range(m.start, m.end)) for m in own))
    direct = [m for m in document.mentions if m.identifier == "direct"]
    if direct:
        add("leak_through", not all(_hidden(text, m.start, m.end, masked) for m in direct))
    marked = {i for m in document.mentions if m.identifier != "none" for i in range(m.start, m.end)}
    for token in _tokens(text, 0, len(text)):
        if not marked & set(token):
            add("false_masks", bool(masked & set(token)))
    return {name: (hits, total) for name, (hits, total) in counts.items()}


@pytest.mark.parametrize("seed", range(60))
def test_tab_counts_are_those_of_a_slow_oracle(seed: int) -> None:
    document, spans = _random_document(np.random.default_rng([seed, 1]))
    counts = {name: (r.hits, r.total) for name, r in count(document, spans).items() if r.total}
    assert counts == _tab_oracle(document, spans)


# i2b2.

NOTE = "Ada Quill saw Dr. Bo Ferre on 3 May 2001 in Norby."


def _tags(**types: str) -> Labelled:
    mentions = []
    for kind, part in types.items():
        start = NOTE.index(part)
        mentions.append(Mention(start, start + len(part), kind, part, "direct"))
    return Labelled("n", NOTE, tuple(mentions))


GOLD = {"PATIENT": "Ada Quill", "DOCTOR": "Bo Ferre", "DATE": "3 May 2001"}


def test_a_person_may_be_a_patient_or_a_doctor() -> None:
    spans = [*_spans(NOTE, "Ada Quill", "Bo Ferre"), *_spans(NOTE, "3 May 2001", entity="DATE")]
    values = _values(_tags(**GOLD), spans, ["i2b2"])
    assert values["i2b2_strict_recall"] == values["i2b2_strict_precision"] == values["i2b2_strict_f1"] == 1


def test_the_wrong_type_counts_only_for_the_blind_score() -> None:
    spans = _spans(NOTE, "Ada Quill", "Bo Ferre", "3 May 2001")
    values = _values(_tags(**GOLD), spans, ["i2b2"])
    assert values["i2b2_strict_recall"] == 2 / 3
    assert values["i2b2_strict_precision"] == 2 / 3
    assert values["i2b2_blind_strict_recall"] == values["i2b2_blind_strict_precision"] == 1


def test_relaxed_forgives_two_characters_at_the_end_and_none_at_the_start() -> None:
    for part, strict, relaxed in [
        ("Ada Quill s", 0, 1),
        ("Ada Qui", 0, 1),
        ("Ada Qu", 0, 0),
        ("da Quill", 0, 0),
        ("Ada Quill", 1, 1),
    ]:
        values = _values(_tags(PATIENT="Ada Quill"), _spans(NOTE, part), ["i2b2"])
        assert values["i2b2_strict_recall"] == strict, part
        assert values["i2b2_relaxed_recall"] == relaxed, part


def test_hipaa_leaves_the_doctor_out_of_gold_and_answers() -> None:
    values = _values(_tags(**GOLD), _spans(NOTE, "Bo Ferre"), ["i2b2"])
    assert values["i2b2_strict_recall"] == 1 / 3
    assert values["i2b2_hipaa_strict_recall"] == 0
    assert "i2b2_hipaa_strict_precision" not in values


def test_f1_is_the_harmonic_mean() -> None:
    values = _values(_tags(**GOLD), _spans(NOTE, "Ada", "Bo Ferre"), ["i2b2"])
    recall, precision = values["i2b2_strict_recall"], values["i2b2_strict_precision"]
    assert (recall, precision) == (1 / 3, 1 / 2)
    assert values["i2b2_strict_f1"] == pytest.approx(2 * recall * precision / (recall + precision))


def test_macro_averages_documents_and_micro_averages_mentions() -> None:
    tally = Tally(families=["i2b2"])
    tally.add(_tags(**GOLD), _spans(NOTE, "Ada Quill"))
    tally.add(_tags(PATIENT="Ada Quill"), _spans(NOTE, "Ada Quill"))
    tally.add(_tags(PATIENT="Ada Quill"), [])
    scores = {s.name: s.value for s in tally.scores()}
    each = [1 / 3, 1, 0]
    assert scores["i2b2_strict_recall"] == 2 / 5
    assert scores["i2b2_strict_macro_recall"] == pytest.approx(np.mean(each))
    assert scores["i2b2_strict_macro_recall_sd"] == pytest.approx(np.std(each))
    assert scores["i2b2_strict_macro_precision"] == pytest.approx(2 / 3)  # no answer is a precision of 0
    assert scores["i2b2_strict_macro_f1"] == pytest.approx(2 * (4 / 9) * (2 / 3) / (4 / 9 + 2 / 3))


def _i2b2_oracle(document: Labelled, spans: list[Span], *, slack: int, types: set[str] | None) -> tuple[int, int, int]:
    """Hits, missed and false, each mention against each answer."""
    gold_tags = [(m.entity, m.start, m.end) for m in document.mentions]
    answers = []
    for span in spans:
        allowed = list(I2B2_TYPES[span.entity])
        near = sorted((abs(e - span.end), k) for k, s, e in gold_tags if s == span.start and k in allowed)
        answers.append((near[0][1] if near else allowed[0], span.start, span.end))

    def same(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
        return a[:2] == b[:2] and abs(a[2] - b[2]) <= slack

    if types is not None:
        gold_tags, answers = ([t for t in tags if t[0] in types] for tags in (gold_tags, answers))
    hits = sum(any(same(tag, answer) for answer in answers) for tag in gold_tags)
    false = sum(not any(same(tag, answer) for tag in gold_tags) for answer in answers)
    return hits, len(gold_tags) - hits, false


@pytest.mark.parametrize("seed", range(30))
def test_i2b2_counts_are_those_of_a_slow_oracle(seed: int) -> None:
    rng = np.random.default_rng([seed, 2])
    text = "x" * 120
    kinds = ["PATIENT", "DOCTOR", "DATE", "CITY", "HOSPITAL", "IDNUM"]
    mentions = [Mention(a, b, kinds[rng.integers(6)], "e", "direct") for a, b in _random_spans(120, 12, rng)]
    ends = [(m.start, m.end + int(rng.integers(-3, 4))) for m in mentions if rng.random() < 0.8]
    entities = ["PERSON", "DATE", "LOCATION", "ID", "ORGANIZATION"]
    spans = [Span(a, b, entities[rng.integers(5)]) for a, b in ends if a < b <= 120]
    spans = [s for s, after in pairwise([*spans, Span(121, 122, "")]) if s.end <= after.start]
    document = Labelled("d", text, tuple(mentions))
    counts = count(document, spans, families=["i2b2"])
    for scope, types in (("", None), ("hipaa_", set(I2B2_HIPAA))):
        for match, slack in (("strict", 0), ("relaxed", 2)):
            hits, missed, false = _i2b2_oracle(document, spans, slack=slack, types=types)
            name = f"i2b2_{scope}{match}"
            assert counts[f"{name}_recall"][:2] == (hits, hits + missed)
            assert counts[f"{name}_precision"][:2] == (hits, hits + false)
            assert counts[f"{name}_f1"][:2] == (2 * hits, 2 * hits + missed + false)


def test_every_entity_stands_for_types_of_i2b2() -> None:
    assert {kind for types in I2B2_TYPES.values() for kind in types} >= I2B2_HIPAA - {
        "HEALTHPLAN",
        "DEVICE",
        "BIOID",
    }
    assert all(types for types in I2B2_TYPES.values())


# Overlap.


def test_overlap_asks_for_nine_tenths_of_the_union() -> None:
    text = "0123456789abcdefghij"
    document = Labelled("d", text, (Mention(0, 10, "PERSON", "e", "direct"),))
    for span, recall in [(Span(0, 9, "X"), 1), (Span(0, 11, "X"), 1), (Span(0, 8, "X"), 0), (Span(1, 11, "X"), 0)]:
        values = _values(document, [span], ["overlap"])
        assert values["overlap_recall"] == values["overlap_precision"] == recall


def test_f2_weighs_recall_four_times() -> None:
    document = _document(TEXT, *MARKED)
    values = _values(document, _spans(TEXT, "Ada Quill", "met"), ["overlap"])
    precision, recall = 1 / 2, 1 / 3
    assert values["overlap_f2"] == pytest.approx(5 * precision * recall / (4 * precision + recall))


# Joining, adding up, intervals.


def test_a_span_beyond_the_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"marked characters 40 to 45 of a text of 44"):
        count(_document(TEXT), [Span(40, 45, "PERSON")])


def test_masks_that_overlap_count_once() -> None:
    document = _document(TEXT, *MARKED)
    spans = [*_spans(TEXT, "Ada Quill met"), *_spans(TEXT, "met Bo")]
    assert count(document, spans)["token_precision"][:2] == (3, 4)


def test_one_identifier_a_document_has_the_exact_interval() -> None:
    tally = Tally()
    for index in range(20):
        tally.add(_document(TEXT, MARKED[0]), _spans(TEXT, "Ada Quill") if index else [])
    scores = {s.name: s for s in tally.scores()}
    assert scores["direct_entity_recall"] == Scored(
        "direct_entity_recall", 19 / 20, clopper_pearson(19, 20), 20, "entities", "Clopper-Pearson"
    )
    assert scores["leak_through"][1:4] == (1 / 20, clopper_pearson(1, 20), 20)


def test_several_identifiers_a_document_are_resampled_by_document() -> None:
    rng = np.random.default_rng(4)
    tally, hits, totals = Tally(seed=7), [], []
    for _ in range(30):
        document, spans = _random_document(rng)
        tally.add(document, spans)
        found, total = _tab_oracle(document, spans).get("false_masks", (0, 0))
        if total:
            hits.append(found)
            totals.append(total)
    (scored,) = (s for s in tally.scores() if s.name == "false_masks")
    shares = np.array(hits) / totals
    oracle = bootstrap_mean(shares, weights=totals, rng=np.random.default_rng([7, 8]))
    assert scored.value == pytest.approx(sum(hits) / sum(totals))
    assert scored.interval == oracle.interval
    assert scored.n == sum(totals)


def test_two_identifiers_of_a_document_are_no_independent_trials() -> None:
    tally = Tally()
    for index in range(10):
        tally.add(_document(TEXT, *MARKED[:2]), _spans(TEXT, *(["Ada Quill", "Bo Ferre"] if index else [])))
    (scored,) = (s for s in tally.scores() if s.name == "direct_entity_recall")
    assert (scored.value, scored.n, scored.method) == (18 / 20, 20, "BCa bootstrap over documents")


def test_no_false_mask_at_all_still_has_an_interval_with_width() -> None:
    tally = Tally()
    for _ in range(10):
        tally.add(_document(TEXT, *MARKED), [])
    (scored,) = (s for s in tally.scores() if s.name == "false_masks")
    assert (scored.value, scored.interval) == (0, clopper_pearson(0, 10))


def test_many_documents_keep_the_memory_and_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reticent.data.scrub_score._GROUPS", 16)
    rng, small, exact = np.random.default_rng(5), Tally(), [0, 0]
    for _ in range(200):
        document, spans = _random_document(rng)
        small.add(document, spans)
        found, total = _tab_oracle(document, spans).get("false_masks", (0, 0))
        exact = [exact[0] + found, exact[1] + total]
    (scored,) = (s for s in small.scores() if s.name == "false_masks")
    assert scored.value == pytest.approx(exact[0] / exact[1])
    assert len(small._shares["false_masks"]._sums) <= 16


def test_a_score_becomes_a_measurement() -> None:
    scored = Scored("leak_through", 0.1, (0.0, 0.3), 10, "documents", "Clopper-Pearson")
    measurement = scored.measurement("clinical+spacy")
    assert (measurement.model, measurement.unit, measurement.level) == ("clinical+spacy", "share", 0.95)
    assert (measurement.name, measurement.value, measurement.n) == ("leak_through", 0.1, 10)


# One pass over several recognisers.


def test_a_combination_masks_what_any_of_its_parts_masks() -> None:
    documents = [_document(TEXT, *MARKED)]
    ada, bo = Finder("Ada Quill"), Finder("Bo Ferre")
    rows = compare(documents, {"ada": ada, "bo": bo}, combinations=[("ada", "bo")])
    assert list(rows) == ["ada", "bo", "ada+bo"]
    assert rows["ada+bo"] == score(documents, Joined([ada, bo]))
    assert {s.name: s.value for s in rows["ada"]}["direct_entity_recall"] == 1 / 2


def test_each_recogniser_sees_each_text_once() -> None:
    documents = [_document(f"{i} {TEXT}", name=str(i)) for i in range(150)]
    one, two = Finder("Ada"), Finder("Bo")
    compare(iter(documents), {"one": one, "two": two}, combinations=[("one", "two")])
    assert one.seen == two.seen == [document.text for document in documents]


def test_a_combination_of_a_recogniser_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="no recogniser 'three' to combine; there are one"):
        compare([], {"one": Finder("Ada")}, combinations=[("one", "three")])


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(DataError, match="there is no labelled text to score"):
        score([], Finder("Ada"))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(DataError, match="'bleu' is no family of scores; take some of tab, i2b2, overlap"):
        Tally(families=["bleu"])  # type: ignore[list-item]
