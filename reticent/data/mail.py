"""The Enron mail, each with its sender as its owner.

Klimt and Yang, "The Enron corpus", ECML 2004. The text of a mail is the whole message, headers and all, as the source
systems train on it. Its owner is who wrote it: one person's mails lie in many folders, and a folder holds many people.
"""

import email.utils
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal

from reticent.data.record import Record
from reticent.data.rows import Row
from reticent.data.sources import text_of
from reticent.errors import DataError

NoSender = Literal["stop", "drop"]

COLUMNS = ("text", "message")  # of LLM-PBE/enron-email, and of the corpus as one csv

FROM = re.compile(r"(?i)From:(.*)")
HEADER = re.compile(r"[A-Za-z][\w-]*:|[ \t]+\S")  # a line of a header, or one that goes on
# A message whose line ends were lost: the header is found by the one that always stands behind it.
FLAT = re.compile(r"(?i)^\s*Message-ID:.{0,2000}?\sFrom:\s*(.{1,300}?)\s(?:To|Subject|Cc|Mime-Version):", re.DOTALL)
ADDRESS = re.compile(r"[^\s<>\"',;:()\[\]@]+@[^\s<>\"',;:()\[\]@]+\.[A-Za-z]{2,}")
DIRECTORY = re.compile(
    r"(?i)/CN=([^/<>\s]+)>?\s*$"
)  # X.500, as Exchange wrote some: </O=ENRON/OU=NA/CN=RECIPIENTS/CN=X>


def sender(message: str) -> str | None:
    """Who wrote a message, as one name: the address of its From: header in lower case; None if there is none.

    Only the message's own header counts, not that of a mail that it quotes.
    """
    head: list[str] = []
    for line in message.lstrip("\r\n").splitlines():
        if not HEADER.match(line):
            break
        if head and line[0] in " \t":
            head[-1] += line
        else:
            head.append(line)
    found = next(filter(None, map(FROM.match, head)), None) or FLAT.match(message)
    if found is None:
        return None
    value = " ".join(found[1].split())
    address = ADDRESS.search(email.utils.parseaddr(value)[1]) or ADDRESS.search(value)
    if address is not None:
        return address[0].lower().strip(".'")
    directory = DIRECTORY.search(value)
    return directory[1].lower() if directory else None


def read_records(
    source: Iterable[Row], *, no_sender: NoSender = "stop", counts: Counter[str] | None = None, limit: int | None = None
) -> Iterator[Record]:
    """Each mail as one text, owned by its sender.

    A mail without a sender ends the reading, or with ``no_sender`` "drop" is left out and counted under "no sender".

    Raises:
        DataError: In the stream: a row has no message, or a message has no sender.
    """
    for row in islice(source, limit):
        text = text_of(row, next((column for column in COLUMNS if column in row.values), COLUMNS[0]))
        owner = sender(text)
        if owner is None:
            if no_sender == "stop":
                raise DataError(
                    f"{row.where}: the message has no sender (From: and an address), so its owner is unknown; remove "
                    "it, or set no_sender to drop such messages and count them"
                )
            if counts is not None:
                counts["no sender"] += 1
            continue
        yield Record(id=row.where, owner=owner, prompt="", completion=text, origin="enron")
