"""A model in another process: any server that speaks OpenAI's completions or chat completions, as vLLM does.

Texts go to the address that it was given and nowhere else: no redirect is followed, and no proxy stands before a server
on this machine. What the server says in an error is never repeated: it may quote the prompt.
"""

import ipaddress
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from reticent.errors import ModelError
from reticent.models.generation import Decoding

KEY = "RETICENT_SERVER_KEY"  # the environment variable with the key, which is in no file
TRIES = 4
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # passing troubles
LONGEST_PAUSE = 30.0  # seconds, whatever the server asks for
_LONGEST_ANSWER = 64 << 20  # bytes
_CHAT, _COMPLETIONS = "/chat/completions", "/completions"
_UNKNOWN = (
    "a prompt is too long, or it does not know a setting; many know no top_k (--top-k 0 leaves it out), no least "
    "length and no repetition penalty"
)
_ADVICE = {
    400: _UNKNOWN,
    401: f"the key is refused; set the variable {KEY}",
    403: f"the key is refused; set the variable {KEY}",
    404: "check the address and the name of the model",
    413: "a prompt is too long",
    422: _UNKNOWN,
}


class Ask(NamedTuple):
    """What to go on from (with chat completions: what the user says), and the seed of the answer."""

    prompt: str
    seed: int


class Answer(NamedTuple):
    """``finish``: the model ended it, it reached its greatest length, or a stop string came."""

    text: str
    finish: Literal["end", "length", "stop"]


def is_local(url: str) -> bool:
    """Whether the host of ``url`` is this machine by its very name: localhost, or a loopback address."""
    host = _parts(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def request_settings(decoding: Decoding, stop: Sequence[str] = ()) -> dict[str, Any]:
    """``decoding`` in the words of a request. What only some servers know is there only if it is asked for."""
    sampling = decoding.sampling
    words: dict[str, Any] = {
        "max_tokens": decoding.max_new_tokens,
        "temperature": 0.0 if sampling is None else sampling.temperature,
        "top_p": 1.0 if sampling is None or sampling.top_p is None else sampling.top_p,
        "n": 1,
        "stream": False,
    }
    if sampling is not None and sampling.top_k is not None:
        words["top_k"] = sampling.top_k
    if decoding.min_new_tokens:
        words["min_tokens"] = decoding.min_new_tokens
    if decoding.repetition_penalty != 1:
        words["repetition_penalty"] = decoding.repetition_penalty
    if decoding.frequency_penalty:
        words["frequency_penalty"] = decoding.frequency_penalty
    if stop:
        words["stop"] = list(stop)
    return words


class Server:
    """Asks the server at ``url``: its address, with or without /v1, or with the whole route.

    ``chat``: by chat completions (the server sets the prompt in the model's chat template), not by completions, where
    ``url`` does not end in one of the two. ``model`` is its name there; None: the only one that the server has. The
    key, if it wants one, is read from the environment variable ``RETICENT_SERVER_KEY``.

    Raises:
        ModelError: ``url`` is no http or https address, or carries a user name or password; the key holds odd letters.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        chat: bool = False,
        timeout: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = _parts(url)
        base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.chat = base.endswith(_CHAT) or (chat and not base.endswith(_COMPLETIONS))
        base = base.removesuffix(_CHAT if base.endswith(_CHAT) else _COMPLETIONS)
        self._base = base if urllib.parse.urlsplit(base).path else f"{base}/v1"
        self._timeout, self._sleep = timeout, sleep
        handlers: list[Any] = [_NoRedirect, *([urllib.request.ProxyHandler({})] if is_local(url) else [])]
        self._open = urllib.request.build_opener(*handlers).open
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise ModelError(f"the variable {KEY} holds letters that no key has; set it again")
            self._headers["Authorization"] = f"Bearer {key}"
        self.model = model if model is not None else self._only_model()

    def answers(
        self, asks: Sequence[Ask], settings: Mapping[str, Any], *, workers: int = 16
    ) -> Iterator[tuple[int, Answer]]:
        """Each number in ``asks`` and its answer, as they come, ``workers`` requests at once.

        Raises:
            ModelError: the server cannot be reached, refuses, or answers what its interface does not allow.
            ValueError: ``workers`` is under 1.
        """
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        left, lock, halt = iter(enumerate(asks)), threading.Lock(), threading.Event()
        done: SimpleQueue[tuple[int, Answer] | Exception] = SimpleQueue()

        def work() -> None:
            while not halt.is_set():
                with lock:
                    number, ask = next(left, (-1, None))
                if ask is None:
                    return
                try:
                    done.put((number, self.answer(ask, settings)))
                except Exception as error:  # told to who waits, whatever it is
                    done.put(error)
                    return

        # Daemons: nobody waits for a slow server after Ctrl-C.
        for _ in range(min(workers, len(asks))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in asks:
                one = done.get()
                if isinstance(one, Exception):
                    raise one
                yield one
        finally:
            halt.set()

    def answer(self, ask: Ask, settings: Mapping[str, Any]) -> Answer:
        """One answer.

        Raises:
            ModelError: as `answers`.
        """
        what: dict[str, Any] = (
            {"messages": [{"role": "user", "content": ask.prompt}]} if self.chat else {"prompt": ask.prompt}
        )
        body = {"model": self.model, **what, **settings, "seed": ask.seed}
        found = self._send(_CHAT if self.chat else _COMPLETIONS, json.dumps(body).encode())
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
            finish, stopped = choice.get("finish_reason"), choice.get("stop_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise ModelError(f"{self._base}: an answer has no text where it should be; check the address and the route")
        text = text.encode("utf-8", "replace").decode()  # JSON can hold half a letter
        if finish == "length":
            return Answer(text, "length")
        return Answer(text, "stop" if isinstance(stopped, str) else "end")

    def _only_model(self) -> str:
        found = self._send("/models", None)
        try:
            names = [str(one["id"]) for one in found["data"]]
        except (KeyError, TypeError):
            names = []
        if len(names) != 1:
            raise ModelError(
                f"{self._base} has {len(names)} models ({', '.join(names[:8])}); say which one"
                if names
                else f"{self._base} does not say which model it has; name it"
            )
        return names[0]

    def _send(self, route: str, body: bytes | None) -> Any:
        for attempt in range(1, TRIES + 1):
            request = urllib.request.Request(self._base + route, body, self._headers)
            pause = float(2 ** (attempt - 1))
            try:
                with self._open(request, timeout=self._timeout) as reply:
                    content = reply.read(_LONGEST_ANSWER + 1)
                break
            except urllib.error.HTTPError as error:
                problem, wanted = f"HTTP status {error.code}", error.headers.get("Retry-After", "")
                error.close()
                if error.code not in AGAIN:
                    advice = _ADVICE.get(error.code, "check the address")
                    raise ModelError(f"{self._base}: the server answers {problem}: {advice}") from None
                pause = float(wanted) if wanted.isdecimal() else pause
            except (OSError, HTTPException) as error:
                problem = _reason(error)
            if attempt == TRIES:
                raise ModelError(
                    f"{self._base}: no answer after {TRIES} tries (the last: {problem}); is the server running?"
                )
            self._sleep(min(pause, LONGEST_PAUSE))
        try:
            if len(content) > _LONGEST_ANSWER:
                raise ValueError
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ModelError(f"{self._base}: the answer is no JSON; check the address") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send texts and key to an address that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    return type(inner if isinstance(inner, Exception) else error).__name__


def _parts(url: str) -> urllib.parse.SplitResult:
    """Raises a ModelError for what is no address of a server."""
    try:
        parts = urllib.parse.urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or "@" in parts.netloc or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        raise ModelError(
            "the address of a server looks like http://localhost:8000/v1, without a user name, a password or anything "
            f"behind the path (a key goes into the environment variable {KEY})"
        )
    return parts
