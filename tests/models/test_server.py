"""A model behind an address, against a server of canned answers on this machine."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reticent.errors import ModelError
from reticent.models import server
from reticent.models.generation import Decoding
from reticent.models.language_model import Sampling
from reticent.models.server import Answer, Ask, Server, is_local, request_settings


class Standin:
    """Answers each request with what ``reply(path, body)`` gives: (status, body, headers)."""

    def __init__(self, reply):
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer(json.loads(body))

            def do_GET(self):
                self._answer(None)

            def _answer(self, body):
                outer.requests.append((self.path, body, dict(self.headers)))
                status, content, headers = reply(self.path, body)
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                with contextlib.suppress(OSError):  # who asked has gone
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def standin():
    made = []

    def make(reply):
        made.append(Standin(reply))
        return made[-1]

    yield make
    for one in made:
        one.close()


def completion(text, **more):
    return 200, {"choices": [{"text": text, "finish_reason": "stop", **more}]}, {}


def chat(text, **more):
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop", **more}]}, {}


SETTINGS = request_settings(Decoding(8, Sampling(0.7, 5, 0.9)))


def test_a_completion_is_asked_for_with_prompt_settings_and_seed(standin):
    there = standin(lambda path, body: completion(" zorb"))
    answer = Server(there.url, model="quix").answer(Ask("Say", 7), SETTINGS)
    assert answer == Answer(" zorb", "end")
    [(path, body, headers)] = there.requests
    assert path == "/v1/completions"
    assert body == {
        "model": "quix",
        "prompt": "Say",
        "seed": 7,
        "max_tokens": 8,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "n": 1,
        "stream": False,
    }
    assert "Authorization" not in headers


def test_by_chat_the_prompt_is_what_the_user_says(standin):
    there = standin(lambda path, body: chat("zorb"))
    assert Server(there.url, model="quix", chat=True).answer(Ask("Say", 7), SETTINGS).text == "zorb"
    [(path, body, _)] = there.requests
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Say"}]
    assert "prompt" not in body


@pytest.mark.parametrize(
    ("behind", "chat_wanted", "path"),
    [
        ("", False, "/v1/completions"),
        ("/", True, "/v1/chat/completions"),
        ("/v1/", False, "/v1/completions"),
        ("/api/v3", False, "/api/v3/completions"),
        ("/v1/completions", True, "/v1/completions"),
        ("/v1/chat/completions", False, "/v1/chat/completions"),
    ],
)
def test_the_address_may_end_anywhere(standin, behind, chat_wanted, path):
    there = standin(lambda path, body: (chat if path.endswith("chat/completions") else completion)("zorb"))
    Server(there.url + behind, model="quix", chat=chat_wanted).answer(Ask("Say", 0), SETTINGS)
    assert there.requests[0][0] == path


def test_greedy_is_temperature_zero_and_what_few_servers_know_is_sent_only_if_asked():
    assert request_settings(Decoding(3)) == {"max_tokens": 3, "temperature": 0.0, "top_p": 1.0, "n": 1, "stream": False}
    more = request_settings(Decoding(3, None, 2, 1.1, 0.5), ["END"])
    assert {key: more[key] for key in ("min_tokens", "repetition_penalty", "frequency_penalty", "stop")} == {
        "min_tokens": 2,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.5,
        "stop": ["END"],
    }


def test_how_a_text_ended_is_told(standin):
    ends = iter([{"finish_reason": "length"}, {"stop_reason": "END"}, {"stop_reason": None}, {"stop_reason": 2}])
    there = standin(lambda path, body: completion("zorb", **next(ends)))
    asked = Server(there.url, model="quix")
    assert [asked.answer(Ask("Say", 0), SETTINGS).finish for _ in range(4)] == ["length", "stop", "end", "end"]


def test_the_only_model_of_a_server_needs_no_name(standin):
    there = standin(lambda path, body: (200, {"data": [{"id": "quix"}]}, {}))
    assert Server(there.url).model == "quix"
    assert there.requests[0][0] == "/v1/models"


def test_of_several_models_one_must_be_named(standin):
    there = standin(lambda path, body: (200, {"data": [{"id": "quix"}, {"id": "zorb"}]}, {}))
    with pytest.raises(ModelError, match="has 2 models \\(quix, zorb\\); say which one"):
        Server(there.url)


def test_the_key_comes_from_the_environment_alone(standin, monkeypatch):
    monkeypatch.setenv(server.KEY, "hush")
    there = standin(lambda path, body: completion("zorb"))
    Server(there.url, model="quix").answer(Ask("Say", 0), SETTINGS)
    assert there.requests[0][2]["Authorization"] == "Bearer hush"


def test_a_key_of_odd_letters_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv(server.KEY, "hu\nsh")
    with pytest.raises(ModelError, match=server.KEY) as raised:
        Server("http://localhost:1", model="quix")
    assert "sh;" not in str(raised.value)


def test_all_are_answered_several_at_once(standin):
    at_once, most, lock = 0, 0, threading.Lock()

    def reply(path, body):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.03)
        with lock:
            at_once -= 1
        return completion(body["prompt"] + str(body["seed"]))

    asked = Server(standin(reply).url, model="quix")
    found = dict(asked.answers([Ask("Say", seed) for seed in range(12)], SETTINGS, workers=4))
    assert {number: one.text for number, one in found.items()} == {number: f"Say{number}" for number in range(12)}
    assert 2 <= most <= 4


@pytest.mark.parametrize("status", [429, 503])
def test_a_passing_trouble_is_tried_again_after_the_pause_that_the_server_asks_for(standin, status):
    answers = iter([(status, b"", {"Retry-After": "3"}), (status, b"", {}), completion("zorb")])
    there = standin(lambda path, body: next(answers))
    pauses = []
    asked = Server(there.url, model="quix", sleep=pauses.append)
    assert asked.answer(Ask("Say", 0), SETTINGS).text == "zorb"
    assert pauses == [3.0, 2.0]


def test_a_lasting_trouble_is_an_error_after_some_tries(standin):
    there = standin(lambda path, body: (500, b"Say hush", {}))
    asked = Server(there.url, model="quix", sleep=lambda pause: None)
    with pytest.raises(ModelError, match="no answer after 4 tries \\(the last: HTTP status 500\\)"):
        list(asked.answers([Ask("Say", 0)], SETTINGS))
    assert len(there.requests) == server.TRIES


@pytest.mark.parametrize(
    ("status", "told"), [(400, "does not know a setting"), (401, server.KEY), (404, "name of the model"), (302, "302")]
)
def test_what_the_server_refuses_is_told_without_its_words_or_the_key(standin, monkeypatch, status, told):
    monkeypatch.setenv(server.KEY, "hush")
    there = standin(lambda path, body: (status, b"Zorb asked with hush", {"Location": "http://localhost:1/"}))
    asked = Server(there.url, model="quix", sleep=lambda pause: None)
    with pytest.raises(ModelError, match=told) as raised:
        list(asked.answers([Ask("Zorb", 0)] * 3, SETTINGS))
    assert "Zorb" not in str(raised.value)
    assert "hush" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    "content", [b"no json", {}, {"choices": []}, {"choices": [{"text": None}]}, [1], {"choices": 3}]
)
def test_an_odd_answer_is_an_error(standin, content):
    asked = Server(standin(lambda path, body: (200, content, {})).url, model="quix")
    with pytest.raises(ModelError, match="check the address"):
        asked.answer(Ask("Say", 0), SETTINGS)


def test_half_a_letter_in_an_answer_is_replaced(standin):
    asked = Server(standin(lambda path, body: (200, b'{"choices": [{"text": "a\\ud83d"}]}', {})).url, model="quix")
    assert asked.answer(Ask("Say", 0), SETTINGS).text == "a?"


def test_a_server_that_is_not_there_is_named(standin):
    there = standin(lambda path, body: completion("zorb"))
    there.close()
    asked = Server(there.url, model="quix", sleep=lambda pause: None)
    with pytest.raises(ModelError, match=f"{there.url}/v1: no answer .* is the server running"):
        asked.answer(Ask("Say", 0), SETTINGS)


def test_a_slow_server_is_given_up(standin):
    there = standin(lambda path, body: (time.sleep(0.3), completion("zorb"))[1])
    asked = Server(there.url, model="quix", timeout=0.05, sleep=lambda pause: None)
    with pytest.raises(ModelError, match="TimeoutError"):
        asked.answer(Ask("Say", 0), SETTINGS)


def test_no_proxy_stands_before_a_server_on_this_machine(standin, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    there = standin(lambda path, body: completion("zorb"))
    assert Server(there.url, model="quix").answer(Ask("Say", 0), SETTINGS).text == "zorb"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1", True),
        ("http://127.9.9.9:80", True),
        ("http://[::1]:80", True),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("http://10.0.0.5", False),
        ("http://0.0.0.0", False),
        ("https://example.org", False),
    ],
)
def test_only_a_loopback_address_is_this_machine(url, local):
    assert is_local(url) is local


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://localhost", "http://", "http://u:hush@localhost", "http://[::1", "http://h:99999",
     "http://h/?key=hush", "http://h/a b\n", "http://hä.example"],
)  # fmt: skip
def test_what_is_no_address_of_a_server_is_refused_and_not_shown(url):
    with pytest.raises(ModelError, match="looks like") as raised:
        Server(url, model="quix")
    assert "hush" not in str(raised.value)
