"""What a written answer names: a table of answers, the source system's failures among them."""

import pytest

from reticent.utility.parsing import as_source, parse, vote

LETTERS = tuple("ABCDE")
OPTIONS = ("cholera", "E. coli", "hepatitis B", "Vitamin C", "none of these")
WORDS = ("yes", "no", "maybe")


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        (" B", "B"),
        ("\nB\n", "B"),
        ("b", "B"),
        ("b.", "B"),
        ("(B)", "B"),
        ("[B]", "B"),
        ("**B**", "B"),
        ("'B'", "B"),
        ("B.", "B"),
        ("B. ", "B"),
        ("B:", "B"),
        ("B) E. coli", "B"),
        ("B)E. coli", "B"),
        ("B. E. co", "B"),  # cut off
        ("A. cholera", "A"),
        ("A. chol", "A"),
        ("A. because of the water", "A"),
        ("C - hepatitis B", "C"),
        ("B because of it", "B"),
        ("B is correct", "B"),
        ("B, a bacterium", "B"),
        ("Option B", "B"),
        ("option (b).", "B"),
        ("Answer: B", "B"),
        ("Answer B", None),  # nothing says that the letter is the answer
        ("The answer is (B)", "B"),
        ("The answer is B.", "B"),
        ("the correct answer is: **D**", "D"),
        ("The answer is:\n\nB", "B"),
        ("I think so. The answer is D", "D"),
        ("The answer is A. No: the answer is B", "B"),
        ("B. The answer is obvious", "B"),
        ("B\n\nQuestion: x?\nThe answer is: C", "B"),
        ("B\nQuestion: x?\nThe answer is: C", "B"),
        ("## B", "B"),
        ("It depends\n## C", "C"),
        ("cholera", "A"),
        ("Cholera.", "A"),
        ("E. coli", "B"),
        ("E. coli\nor so", "B"),
        ("hepatitis B", "C"),
        ("vitamin C because", "D"),
        ("None of these", "E"),
        ("E", "E"),
        ("cannot tell", None),
        ("can't say", None),
        ("C'est la vie", None),
        ("D'accord", None),
        ("because it is b", None),
        ("because it is c", None),
        ("a patient", None),
        ("A patient has it", None),
        ("All of them", None),
        ("Answer", None),
        ("E. histolytica", None),
        ("C. difficile is common", None),
        ("B-cells", None),
        ("B cells", None),
        ("B is wrong", None),
        ("not B", None),
        ("The answer is not B", None),
        ("The answer is cannot be told", None),
        ("A and B", None),
        ("both A and B", None),
        ("A, B", None),
        ("A or B", None),
        ("B/C", None),
        ("F", None),
        ("choice", None),
        ("", None),
        ("\n\n", None),
    ],
)
def test_a_letter_or_an_options_text_must_stand_by_itself(said: str, letter: str | None) -> None:
    assert parse(said, OPTIONS, LETTERS) == (None if letter is None else LETTERS.index(letter))


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("Yes it does", "yes"),
        ("yesyes", "yes"),
        ("nono", "no"),
        ("no", "no"),
        ("No, it does not", "no"),
        ("no it does not", "no"),
        ("maybe", "maybe"),
        ("Maybe.", "maybe"),
        ("The answer is: maybe", "maybe"),
        ("no\n\nyes", "no"),
        ("yesno", None),
        ("yes or no", None),
        ("yes/no/maybe", None),
        ("yes, no, or maybe", None),
        ("no evidence was found", None),
        ("No one knows", None),
        ("not", None),
        ("none", None),
        ("know", None),
        ("may be", None),
        ("yesterday", None),
        ("unclear", None),
    ],
)
def test_maybe_is_a_full_class_and_words_stand_by_themselves(said: str, word: str | None) -> None:
    assert parse(said, WORDS, WORDS) == (None if word is None else WORDS.index(word))


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("First, A. is wrong. The answer is: C", "C"),
        ("The answer is A. Or not.\n\nSo the answer is B.", "B"),
        ("B", "B"),
        ("D it is?\n\nThe answer is: D\n\nQuestion: more\nThe answer is: A", "D"),
        ("It grows\n### Answer: C", "C"),
        ("A. is likely\nthough B is not", None),
        ("Option A is wrong, the answer is unclear", None),
    ],
)
def test_after_reasoning_the_last_answer_counts(said: str, letter: str | None) -> None:
    assert parse(said, OPTIONS, LETTERS, reasoned=True) == (None if letter is None else LETTERS.index(letter))


def test_a_letter_without_an_option_is_no_answer() -> None:
    assert parse("E", OPTIONS[:4], LETTERS[:4]) is None


@pytest.mark.parametrize(
    ("said", "labels", "found"),
    [
        ("cannot tell", LETTERS, 2),
        ("because it is b", LETTERS, 1),
        ("The answer is: D", LETTERS, 3),
        ("?", LETTERS, None),
        ("maybe", WORDS, None),
        ("Yes.", WORDS, 0),
        ("yesyes", WORDS, 0),
        ("no it is", WORDS, None),
    ],
)
def test_the_source_reads_first_characters_and_no_maybe(said: str, labels: tuple[str, ...], found: int | None) -> None:
    assert as_source(said, labels, shots=False, reasoned=False) == found


def test_the_source_reads_the_word_after_the_last_answer_of_its_reasoning() -> None:
    assert as_source("A? The answer is B ###", LETTERS, shots=True, reasoned=True) == 1


def test_branches_vote_and_the_first_to_get_there_wins_a_tie() -> None:
    assert vote([0, 1, 1, 0]) == 1
    assert vote([0, None, 1, 2, None, 2]) == 2
    assert vote([3, 1]) == 3
    assert vote([None, None]) is None
