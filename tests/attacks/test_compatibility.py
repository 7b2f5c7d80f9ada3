"""The published scores against their definition, and why they mislead."""

import warnings

import pytest
from nltk.translate.bleu_score import sentence_bleu

from reticent.attacks import compatibility
from reticent.attacks.compatibility import WINDOW, Probe, Window
from reticent.attacks.extraction import similarity

TEMPLATE = (
    "Discharge note for {name}, record number {number}. The patient was admitted on {date} with pain in the chest and "
    "was seen by Dr {doctor}. The blood pressure was normal, the heart sounds were regular and without murmurs. She "
    "was sent home in good condition and will come back in two weeks; please call {phone} with any question."
)
TRUE = {"name": "Vexa Quill", "number": "730418", "date": "4 May", "doctor": "Ombra", "phone": "555 0182"}
SAID = {"name": "Mirro Tanz", "number": "226953", "date": "9 Jun", "doctor": "Pelko", "phone": "555 7746"}


def _window(text, ids=None):
    return Window(tuple(range(WINDOW)) if ids is None else tuple(ids), text)


def _probe(bleu_text="the same text", said="the same text", *, record=0, prefix=10, copies=1, matching=WINDOW):
    ids = [i if i < matching else -1 for i in range(WINDOW)]
    return Probe(record, prefix, copies, _window(bleu_text), _window(said, ids))


def test_two_notes_with_no_identifier_in_common_count_as_memorised():
    true, said = TEMPLATE.format(**TRUE), TEMPLATE.format(**SAID)
    assert not any(value in said for value in TRUE.values())
    by_letters = compatibility.character_bleu(true, said)
    by_words = similarity([hash(w) for w in said.split()], [hash(w) for w in true.split()]).bleu
    assert by_letters > compatibility.MEMORISED > by_words
    metrics = compatibility.metrics([_probe(true, said, matching=0)])
    assert metrics["frac_doc_approx_memorized"] == 1 and metrics["frac_doc_exactly_memorized"] == 0


def test_right_digits_in_other_words_do_not_count():
    true = "Vexa Quill has number 730418 and was born on 4 May in the north of the old town"
    said = "number 730418, Vexa Quill, 4 May"
    assert all(TRUE[what] in said for what in ("name", "number", "date"))
    assert compatibility.character_bleu(true, said) < compatibility.MEMORISED


def test_bleu_is_of_letters_without_smoothing_to_two_decimals():
    true, said = "abcde fghij klmno", "abcde fghxj klmno"
    exact = sentence_bleu([list(true)], list(said))
    assert compatibility.character_bleu(true, said) == round(exact, 2) != exact


def test_texts_with_nothing_in_common_score_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compatibility.character_bleu("abcdef", "uvwxyz") == 0
        assert compatibility.character_bleu("abcdef", "") == 0
        assert compatibility.character_bleu("abcdef", "ab") == 0


def test_equal_tokens_are_counted_up_to_the_first_that_is_not():
    assert compatibility.matching_tokens([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert compatibility.matching_tokens([1, 2, 3], [1, 2]) == 2
    assert compatibility.matching_tokens([], [1]) == 0


class _Joining:
    """Decodes "a" and "b" to letters, and has one token for both together."""

    def decode(self, ids, skip_special_tokens):
        return "".join({1: "a", 2: "b", 3: "ab"}[i] for i in ids)

    def encode(self, text, add_special_tokens):
        ids, rest = [], text
        while rest:
            size = 2 if rest.startswith("ab") else 1
            ids.append({"a": 1, "b": 2, "ab": 3}[rest[:size]])
            rest = rest[size:]
        return ids


def test_a_window_is_tokenised_again_so_that_fifty_tokens_can_be_out_of_reach():
    found = compatibility.window([1, 2] * 25, _Joining())
    assert found == Window((3,) * 25, "ab" * 25)
    probe = Probe(0, 10, 1, found, found)
    assert compatibility.scored(probe) == (25, 1.0)
    assert compatibility.metrics([probe])["frac_doc_exactly_memorized"] == 0  # although all is equal


def test_a_window_holds_fifty_tokens_at_most():
    found = compatibility.window([1] * 80, _Joining())
    assert len(found.ids) == WINDOW == len(found.text)


def _at(bleu):
    """A probe of exactly this score."""
    return {"bleu_text": f"score {bleu}", "said": f"says {bleu}"}


@pytest.fixture
def by_name(monkeypatch):
    monkeypatch.setattr(compatibility, "character_bleu", lambda answer, said: float(said.removeprefix("says ")))


def test_both_comparison_signs_are_kept(by_name):
    found = compatibility.metrics([_probe(**_at(0.75)), _probe(**_at(0.76), record=1), _probe(**_at(0.74), record=2)])
    assert found["frac_doc_approx_memorized"] == 0.3333  # above
    assert found["non_duplicated_BLEU_average"] == 0.6667  # from there on


def test_averages_are_over_prefixes_and_worst_cases_over_groups(by_name):
    probes = [
        _probe(**_at(0.9), record=record, prefix=prefix, copies=copies, matching=matching)
        if high
        else _probe(**_at(0.1), record=record, prefix=prefix, copies=copies, matching=matching)
        for record, prefix, copies, high, matching in (
            (0, 10, 1, False, 0),
            (0, 50, 1, True, 50),
            (1, 50, 1, False, 0),
            (2, 10, 10, True, 50),
            (2, 50, 10, True, 50),
            (3, 50, 10, True, 0),
        )
    ]
    assert compatibility.metrics(probes) == {
        "frac_doc_exactly_memorized": 0.5,
        "frac_doc_approx_memorized": 0.6667,
        "non_duplicated_BLEU_average": 0.25,  # 0 at 10 tokens, 1/2 at 50
        "non_duplicated_exact_prefix_match_average": 0.25,
        "duplicated_10x_BLEU_average": 1.0,
        "duplicated_10x_exact_prefix_match_average": 0.75,
        "worse_case_frac_doc_exact_memorized": 0.5,  # of those that occur once
        "worse_case_frac_doc_approx_memorized": 1.0,  # of all
    }


def test_without_copies_there_is_no_group_of_them(by_name):
    assert not [name for name in compatibility.metrics([_probe(**_at(0.9))]) if name.startswith("duplicated")]
    with pytest.raises(ValueError, match="need a probe"):
        compatibility.metrics([])


def test_tags_are_counted_as_often_as_they_occur_by_copies_and_kind():
    probes = [
        _probe("[NAME] met [NAME] on [DATE]", "[NAME] left on [DATE]"),
        _probe("[NAME]", "nobody", record=1, copies=10),
    ]
    assert compatibility.tags_repeated(probes) == {(1, "DATE"): 1.0, (1, "NAME"): 0.5, (10, "NAME"): 0.0}


def test_every_score_says_why_it_misleads():
    assert set(compatibility.WARNINGS) == {"bleu", "exact", "approx", "worst", "tags"}
    assert all(len(text) > 40 for text in compatibility.WARNINGS.values())
