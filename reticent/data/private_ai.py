"""A recogniser over HTTP: the container of Private AI (now Limina), https://docs.private-ai.com.

The only recogniser that sends texts away, to the address in its name and nowhere else. Whatever is odd about the answer
is an error, so that no text passes for clean because a service was down, overloaded or of another version.
"""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from typing import Any

from reticent.data.spans import Span, UnavailableError
from reticent.errors import DataError

KEY = "PRIVATE_AI_API_KEY"  # the environment variable with the key, which is in no recipe
ROUTE = "/v3/process/text"
BATCH = 32  # texts in one request
TRIES = 4
AGAIN = frozenset({408, 429, 500, 502, 503, 504})  # passing troubles
OF_TEXTS = frozenset({400, 413, 422, 500})  # what the service may say for the sake of one text
LONGEST_PAUSE = 30.0  # seconds, whatever the service asks for

# https://docs.private-ai.com/entities: its kinds and ours; every other one is kept as it is.
KINDS = {
    "NAME": "PERSON",
    "NAME_GIVEN": "PERSON",
    "NAME_FAMILY": "PERSON",
    "NAME_MEDICAL_PROFESSIONAL": "PERSON",
    "DOB": "DATE",
    "DATE_INTERVAL": "DATE",
    "LOCATION_ADDRESS": "ADDRESS",
    "LOCATION_ADDRESS_STREET": "ADDRESS",
    "LOCATION_ZIP": "ADDRESS",
    "LOCATION_CITY": "LOCATION",
    "LOCATION_COUNTRY": "LOCATION",
    "LOCATION_STATE": "LOCATION",
    "ORGANIZATION_MEDICAL_FACILITY": "ORGANIZATION",
    "SSN": "US_SSN",
    "VEHICLE_ID": "LICENSE_PLATE",
    "HEALTHCARE_NUMBER": "MEDICAL_RECORD",
    "ACCOUNT_NUMBER": "ID",
    "NUMERICAL_PII": "ID",
    "OCCUPATION": "PROFESSION",
}


class PrivateAI:
    """Asks the service at ``url`` (with or without the route) and checks all that it answers.

    The key, if the service wants one, is read from the environment variable ``PRIVATE_AI_API_KEY``.

    Raises:
        DataError: ``url`` is no http or https address, or carries a user name or password.
    """

    def __init__(self, url: str, *, timeout: float = 60.0, sleep: Callable[[float], None] = time.sleep) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise DataError(
                "private-ai: needs the address of the service, as in private-ai:http://localhost:8080, without a user "
                f"name or password in it (a key goes into the environment variable {KEY})"
            )
        base = url.rstrip("/")
        self._url = base if base.endswith("/process/text") else base + ROUTE
        self._timeout, self._sleep = timeout, sleep
        self._open = urllib.request.build_opener(_NoRedirect).open
        self.name = f"private-ai:{url}"
        self.version = f"private-ai {urllib.parse.urlsplit(self._url).path}"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order.

        Raises:
            UnavailableError: the service cannot be reached or refuses.
            DataError: it fails at these texts, or answers what its interface does not allow.
        """
        filled = [text for text in texts if text.strip()]
        answers = iter(
            [spans for start in range(0, len(filled), BATCH) for spans in self._ask(filled[start : start + BATCH])]
        )
        return [next(answers) if text.strip() else [] for text in texts]

    def _ask(self, texts: Sequence[str]) -> list[list[Span]]:
        body = {
            "text": list(texts),
            "link_batch": False,
            "entity_detection": {"return_entity": True},
            "processed_text": {"type": "MARKER", "pattern": "[UNIQUE_NUMBERED_ENTITY_TYPE]"},
        }
        answer = self._post(json.dumps(body).encode())
        if not isinstance(answer, list) or len(answer) != len(texts):
            got = f"{len(answer)} results" if isinstance(answer, list) else "no list of results"
            raise DataError(f"private-ai: asked about {len(texts)} texts, got {got}; check the version of the service")
        return [list(_spans(text, result)) for text, result in zip(texts, answer, strict=True)]

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["X-API-KEY"] = key
        for attempt in range(1, TRIES + 1):
            request = urllib.request.Request(self._url, body, headers, method="POST")
            pause = float(2 ** (attempt - 1))
            try:
                with self._open(request, timeout=self._timeout) as reply:
                    content = reply.read()
                break
            except urllib.error.HTTPError as error:
                problem = f"HTTP status {error.code}"
                wanted = error.headers.get("Retry-After", "")
                error.close()
                if error.code in (401, 403):
                    raise UnavailableError(
                        f"private-ai: the key is refused ({problem}); set the variable {KEY}"
                    ) from None
                kind = DataError if error.code in OF_TEXTS else UnavailableError
                if error.code not in AGAIN:
                    raise kind(f"private-ai: {problem}; check the address and the version of the service") from None
                pause = float(wanted) if wanted.isdecimal() else pause
            except (OSError, HTTPException) as error:
                problem, kind = type(error).__name__, UnavailableError
            if attempt == TRIES:
                raise kind(f"private-ai: no answer after {TRIES} tries (the last: {problem}); is it running?")
            self._sleep(min(pause, LONGEST_PAUSE))
        try:
            return json.loads(content)
        except ValueError:
            raise DataError(
                "private-ai: the answer is no json; check the address and the version of the service"
            ) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send texts and key to an address that the recipe does not name."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _spans(text: str, result: Any) -> Iterator[Span]:
    entities = result.get("entities") if isinstance(result, dict) else None
    if not isinstance(entities, list):
        raise DataError("private-ai: a result has no list of entities; check the version of the service")
    for entity in entities:
        try:
            start, end = entity["location"]["stt_idx"], entity["location"]["end_idx"]
            kind = entity["best_label"]
            score = float(entity.get("labels", {}).get(kind, 1.0))
            found = entity.get("text")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError(
                "private-ai: an entity has no place or no label; check the version of the service"
            ) from None
        if type(start) is not int or type(end) is not int or not isinstance(kind, str):
            raise DataError(
                "private-ai: an entity's place or label is of the wrong type; check the version of the service"
            )
        if not 0 <= start < end <= len(text) or (found is not None and text[start:end] != found):
            raise DataError(
                f"private-ai: marked characters {start} to {end} of a text of {len(text)}, not what it says is there"
            )
        yield Span(start, end, KINDS.get(kind, kind), min(1.0, max(0.0, score)), "private-ai")
