"""Recognisers joined: no overlap, no lost span, no swallowed error, no network."""

import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest

from reticent.data import clinical, recognise
from reticent.data.recognise import Joined, Recogniser, build, is_remote, join
from reticent.data.spans import Span
from reticent.errors import DataError

TEXTS = (
    "Visit note for Ada Quillane:\nSeen 3 May 2024, Dr. Vantor. MRN 483920, phone 312-555-0142.",
    "He told Officer Zelvin Ombar‑Tay that Anna van der Quill and J. Oakley lived at 12 Oak Street.",
    "",
    "The Minister of Justice met Khamzat al-Ruvay; nothing else was said.",
    "Had cough for 12 days; otitis externa. Give amoxicillin 500 mg, review in 3 weeks.",
    "   \n  ",
    "İlhan Şirvan’s e-mail is ilhan@mail.example.org and İlhan is 93 years old.",
)


class Fixed:
    """Answers what it is given."""

    name, version = "fixed", "1"

    def __init__(self, *answers: list[Span]) -> None:
        self.answers = list(answers)

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        return self.answers


@pytest.fixture(scope="module")
def best() -> Recogniser:
    pytest.importorskip("spacy")
    return build(recognise.DEFAULT)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a network call")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield


def test_spans_are_in_the_text_in_order_and_do_not_overlap(best: Recogniser) -> None:
    for text, spans in zip(TEXTS, best.find(TEXTS), strict=True):
        assert all(0 <= s.start < s.end <= len(text) for s in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))


def test_a_batch_is_answered_like_each_text_alone(best: Recogniser) -> None:
    assert best.find(TEXTS) == [best.find([text])[0] for text in TEXTS]


@pytest.mark.parametrize("piece", ["May ", "Ada ", "A. ", "van ", "Minister for "])
def test_a_long_text_of_one_piece_is_read(best: Recogniser, piece: str) -> None:
    assert len(best.find([piece * 3000])) == 1


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "Ada Quillane"),
        (0, "Vantor"),
        (0, "483920"),
        (0, "312-555-0142"),
        (0, "3 May 2024"),
        (1, "Zelvin Ombar‑Tay"),
        (1, "Anna van der Quill"),
        (1, "J. Oakley"),
        (3, "Minister of Justice"),
        (3, "Khamzat al-Ruvay"),
        (6, "İlhan Şirvan"),
        (6, "ilhan@mail.example.org"),
        (6, "93 years old"),
    ],
)
def test_the_best_set_up_marks_every_character_of_an_identifier(best: Recogniser, index: int, name: str) -> None:
    text = TEXTS[index]
    start = text.index(name)
    covered = {i for s in best.find([text])[0] for i in range(s.start, s.end)}
    assert set(range(start, start + len(name))) <= covered


def test_a_note_without_identifiers_is_left_alone(best: Recogniser) -> None:
    assert best.find([TEXTS[4]]) == [[]]


def test_the_best_set_up_and_presidio_make_no_network_call(no_network: None) -> None:
    pytest.importorskip("presidio_analyzer")
    names = (*recognise.DEFAULT, "presidio")
    assert not any(is_remote(name) for name in names)
    [spans] = build(names).find(["Write to ada@mail.example.org or see https://example.org/x, Dr. Quillane."])
    assert "EMAIL_ADDRESS" in {s.entity for s in spans}


def test_a_name_found_once_is_found_everywhere_also_the_surname_alone() -> None:
    text = "Ada Quillane came. Later Quillane left; ADA did not. Ms Quillane's mother: Ada Quillane."
    [spans] = Joined([Fixed([Span(0, 12, "PERSON")])]).find([text])
    assert [text[s.start : s.end] for s in spans] == ["Ada Quillane", "Quillane", "Quillane", "Ada Quillane"]


def test_a_word_of_a_name_that_is_also_written_small_is_not_looked_for_alone() -> None:
    text = "Will Quillane will come. Will he?"
    [spans] = Joined([Fixed([Span(0, 13, "PERSON")])]).find([text])
    assert [text[s.start : s.end] for s in spans] == ["Will Quillane"]


def test_overlapping_spans_become_their_hull_with_the_entity_of_the_surest() -> None:
    spans = [Span(0, 5, "PERSON", 0.6), Span(3, 9, "DATE", 0.9), Span(8, 12, "LOCATION", 0.6), Span(12, 14, "ID", 1.0)]
    assert [(s.start, s.end, s.entity) for s in join("x" * 14, spans)] == [(0, 12, "DATE"), (12, 14, "ID")]


def test_of_equally_sure_spans_the_longest_gives_the_entity() -> None:
    assert [s.entity for s in join("x" * 9, [Span(0, 4, "ID", 0.8), Span(2, 9, "DATE", 0.8)])] == ["DATE"]


def test_joining_covers_exactly_what_the_spans_cover() -> None:
    rng = np.random.default_rng([4, 1])
    for _ in range(200):
        ends = np.sort(rng.integers(0, 40, size=(int(rng.integers(0, 8)), 2)), axis=1)
        spans = [Span(int(a), int(b), "ID", float(rng.random())) for a, b in ends if a < b]
        joined = join("x" * 40, spans)
        assert {i for s in joined for i in range(s.start, s.end)} == {i for s in spans for i in range(s.start, s.end)}
        assert all(a.end <= b.start for a, b in pairwise(joined))


def test_white_space_at_the_ends_of_a_span_is_not_marked() -> None:
    assert [(s.start, s.end) for s in join(" Ada \n", [Span(0, 6, "PERSON"), Span(4, 6, "ID")])] == [(1, 4)]


def test_only_the_wanted_entities_are_answered() -> None:
    recogniser = build(["clinical"], entities=["DATE"])
    assert {s.entity for spans in recogniser.find(TEXTS) for s in spans} == {"DATE"}


def test_every_entity_that_is_found_can_be_asked_for(best: Recogniser) -> None:
    found = {s.entity for spans in best.find(TEXTS) for s in spans}
    build(recognise.DEFAULT, entities=sorted(found | {pattern.entity for pattern in clinical.PATTERNS}))


def test_what_is_asked_for_is_part_of_the_version() -> None:
    assert build(["clinical"], entities=["DATE"]).version != build(["clinical"]).version


def test_an_error_of_a_recogniser_is_raised() -> None:
    class Broken(Fixed):
        def find(self, texts: Sequence[str]) -> list[list[Span]]:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Joined([Fixed([Span(0, 1, "ID")]), Broken()]).find(["x"])


def test_an_answer_for_too_few_texts_is_refused() -> None:
    with pytest.raises(DataError, match="answered for 1 of 2 texts"):
        Joined([Fixed([])]).find(["a", "b"])


@pytest.mark.parametrize("span", [Span(-1, 2, "ID"), Span(0, 4, "ID"), Span(2, 1, "ID")])
def test_a_span_outside_the_text_is_refused_without_the_text(span: Span) -> None:
    with pytest.raises(DataError, match="of a text of 3") as error:
        join("zqx", [span])
    assert "zqx" not in str(error.value)


def test_an_unknown_recogniser_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(DataError, match="'spacey' is unknown; valid are .*spacy.*private-ai"):
        build(["spacey"])


def test_an_entity_that_no_recogniser_marks_is_refused() -> None:
    with pytest.raises(DataError, match="entities: none of clinical marks PERSN; they mark .*PERSON"):
        build(["clinical"], entities=["DATE", "PERSN"])


@pytest.mark.parametrize("names", [[], ["clinical", "clinical"]])
def test_no_recogniser_and_one_twice_are_refused(names: list[str]) -> None:
    with pytest.raises(DataError, match="at least one and none twice"):
        build(names)


def test_another_language_is_refused() -> None:
    with pytest.raises(DataError, match="English"):
        build(["clinical"], language="de")


def test_a_model_that_is_not_installed_is_refused_with_the_command() -> None:
    pytest.importorskip("spacy")
    with pytest.raises(DataError, match="pip install no-such-model"):
        build(["spacy:no_such_model"])


def test_only_the_http_recogniser_is_remote() -> None:
    names = ["clinical", "spacy", "spacy:en_core_web_sm", "flair", "transformers:a/b", "presidio", "proper-nouns"]
    assert [name for name in [*names, "private-ai:http://localhost"] if is_remote(name)] == [
        "private-ai:http://localhost"
    ]
