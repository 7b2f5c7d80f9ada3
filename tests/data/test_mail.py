"""The owner of a mail is its sender, however the header is written."""

from collections import Counter
from pathlib import Path

import pytest

from reticent.data.mail import read_records, sender
from reticent.data.rows import Row, rows
from reticent.errors import DataError

FIXTURE = Path(__file__).parent / "fixtures" / "enron.jsonl"


@pytest.mark.parametrize(
    "header",
    [
        "From: zed.quorl@post.example",
        "from: Zed.Quorl@POST.example",
        'From: "Quorl, Zed" <zed.quorl@post.example>',
        "From: Zed Quorl <zed.quorl@post.example>",
        "From: zed.quorl@post.example (Zed Quorl)",
        "From:\n\tzed.quorl@post.example",
        "From: <'zed.quorl@post.example'>",
        "From: [mailto:zed.quorl@post.example]",
    ],
)
def test_every_spelling_of_a_sender_is_one_owner(header: str) -> None:
    assert sender(f"Message-ID: <1@x.example>\n{header}\nTo: a@b.example\n\nHello.") == "zed.quorl@post.example"


def test_windows_line_ends_make_no_difference() -> None:
    assert sender("Message-ID: <1>\r\nFrom: z@post.example\r\n\r\nFrom: y@post.example") == "z@post.example"


def test_an_exchange_name_is_an_owner() -> None:
    assert sender("From: Quorl, Zed </O=FIRM/OU=NA/CN=RECIPIENTS/CN=ZQUORL>\n\nHello.") == "zquorl"


def test_a_message_on_one_line_has_its_sender() -> None:
    flat = "Message-ID: <1@x.example> Date: Mon, 1 Jan 2001 From: zed@post.example To: ann@post.example Subject: hi"
    assert sender(flat) == "zed@post.example"


@pytest.mark.parametrize(
    "message",
    [
        "Hello.\n\nFrom: z@post.example",
        "Hello.\nFrom: z@post.example",
        "Subject: x\n\n> From: z@post.example",
        "From: nobody\n\nHi.",
        "",
        "Reply-From: a@b.example\n\n",
    ],
)
def test_a_sender_that_is_only_quoted_is_none(message: str) -> None:
    assert sender(message) is None


def test_the_text_is_the_whole_message() -> None:
    source = list(rows(FIXTURE))
    records = list(read_records(source))
    assert [r.completion for r in records] == [row.values["text"] for row in source]
    assert {r.prompt for r in records} == {""}
    assert [r.owner for r in records] == ["zed.quorl@post.example", "ann.veld@post.example", "zed.quorl@post.example"]


def test_the_column_of_the_csv_is_known_too() -> None:
    row = Row("emails.csv", 2, {"file": "quorl-z/sent/1.", "message": "From: zed@post.example\n\nHi."})
    assert [r.owner for r in read_records([row])] == ["zed@post.example"]


ANONYMOUS = [Row("e.csv", 2, {"text": "SECRET"}), Row("e.csv", 3, {"text": "From: zed@post.example\n\nHi."})]


def test_a_mail_without_a_sender_is_refused_by_its_place() -> None:
    with pytest.raises(DataError, match=r"e.csv:2: the message has no sender") as caught:
        list(read_records(ANONYMOUS))
    assert "SECRET" not in str(caught.value)


def test_or_dropped_and_counted() -> None:
    counts: Counter[str] = Counter()
    assert [r.id for r in read_records(ANONYMOUS, no_sender="drop", counts=counts)] == ["e.csv:3"]
    assert counts == {"no sender": 1}
