"""One text with its owner, the unit of privacy."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Record:
    """One text to learn from.

    ``owner`` is whose text it is (patient, author, case). ``prompt`` is what the model is given and ``completion`` what
    it learns to say; a plain text has an empty prompt. ``origin`` says where the record comes from ("notes.jsonl",
    "clinic/coding", ...). A multiple-choice question also has ``options`` (full completions) and the index of the
    right one, ``answer``; then ``completion == options[answer]``. ``silo`` is the institution that holds it, where the
    source names one.
    """

    id: str
    owner: str
    prompt: str = field(repr=False)
    completion: str = field(repr=False)
    origin: str
    options: tuple[str, ...] = ()
    answer: int | None = None
    silo: str | None = None
