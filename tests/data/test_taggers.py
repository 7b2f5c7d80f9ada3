"""Adapters to other people's taggers: exact offsets, whole texts, and an error for whatever is odd."""

import importlib.metadata
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from reticent.data import private_ai, taggers
from reticent.data.private_ai import PrivateAI
from reticent.data.recognise import build
from reticent.data.spans import Span
from reticent.errors import DataError

TEXT = "Dr. Quillane saw Ada Oakley on 3 May 2024. Call 312-555-0142 or ada@example.org."


# -- Private AI, against a local server that speaks its schema ---------------------------------------------------------


class Service:
    """Answers each request by the next of ``replies``: (status, body), the last one for ever."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, Any]] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                status, reply = service.replies.pop(0) if len(service.replies) > 1 else service.replies[0]
                reply = reply(body) if callable(reply) else reply
                content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                """Nothing: tests are quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()


def _result(text: str, *words: str, label: str = "NAME") -> dict[str, Any]:
    """One result in the container's schema."""
    places = [(text.index(word), word) for word in words]
    return {
        "processed_text": "...",
        "entities": [
            {
                "processed_text": f"{label}_1",
                "text": word,
                "location": {"stt_idx": i, "end_idx": i + len(word), "stt_idx_processed": 0, "end_idx_processed": 8},
                "best_label": label,
                "labels": {label: 0.91},
            }
            for i, word in places
        ],
        "entities_present": bool(places),
        "characters_processed": len(text),
        "languages_detected": {"en": 0.98},
    }


def _ask(service: Service, texts: Sequence[str], pauses: list[float] | None = None) -> list[list[Span]]:
    sleep = [].append if pauses is None else pauses.append
    return PrivateAI(service.url, timeout=5, sleep=sleep).find(texts)


def test_private_ai_marks_what_the_service_found(service: Service) -> None:
    service.replies = [(200, [_result(TEXT, "Quillane", "Ada Oakley"), _result("x")])]
    assert _ask(service, [TEXT, "x"]) == [
        [Span(4, 12, "PERSON", 0.91, "private-ai"), Span(17, 27, "PERSON", 0.91, "private-ai")],
        [],
    ]


def test_private_ai_is_asked_by_its_interface(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(private_ai.KEY, "k-1")
    service.replies = [(200, [_result("a b")])]
    _ask(service, ["a b"])
    [(path, headers, body)] = service.requests
    assert (path, headers["x-api-key"], body["text"], body["link_batch"]) == ("/v3/process/text", "k-1", ["a b"], False)
    assert body["processed_text"]["type"] == "MARKER"


def test_private_ai_gets_texts_in_batches_and_no_empty_one(service: Service) -> None:
    service.replies = [(200, lambda body: [_result(text, text) for text in body["text"]])]
    texts = [f"name{i}" if i % 5 else " " for i in range(80)]
    found = _ask(service, texts)
    assert [len(spans) for spans in found] == [1 if i % 5 else 0 for i in range(80)]
    assert [len(body["text"]) for _, _, body in service.requests] == [32, 32]


def test_private_ai_keeps_a_route_that_is_given(service: Service) -> None:
    service.replies = [(200, [_result("a")])]
    PrivateAI(f"{service.url}/v4/process/text").find(["a"])
    assert service.requests[0][0] == "/v4/process/text"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_private_ai_is_asked_again_after_a_passing_trouble(service: Service, status: int) -> None:
    service.replies = [(status, {}), (status, {}), (200, [_result("Ada", "Ada")])]
    pauses: list[float] = []
    assert len(_ask(service, ["Ada"], pauses)[0]) == 1
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize("status", [429, 500])
def test_private_ai_in_lasting_trouble_is_an_error(service: Service, status: int) -> None:
    service.replies = [(status, {"detail": "zqx"})]
    with pytest.raises(DataError, match=f"no answer after 4 tries .*{status}") as error:
        _ask(service, ["zqx"])
    assert len(service.requests) == 4 and "zqx" not in str(error.value)


def test_private_ai_that_refuses_the_key_is_not_asked_again(service: Service) -> None:
    service.replies = [(401, {})]
    with pytest.raises(DataError, match="key is refused.*PRIVATE_AI_API_KEY"):
        _ask(service, ["a"])
    assert len(service.requests) == 1


def test_private_ai_does_not_follow_a_redirect(service: Service) -> None:
    service.replies = [(302, {})]
    with pytest.raises(DataError, match="HTTP status 302"):
        _ask(service, ["a"])
    assert len(service.requests) == 1


def test_private_ai_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DataError, match="no answer after 4 tries"):
        PrivateAI("http://127.0.0.1:9", timeout=1, sleep=lambda _: None).find(["a"])


def _moved(start: object, end: object) -> list[dict[str, Any]]:
    result = _result("Ada", "Ada")
    result["entities"][0]["location"] |= {"stt_idx": start, "end_idx": end}
    return [result]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"<html>", "no json"),
        ({"detail": "ok"}, "no list of results"),
        ([], "got 0 results"),
        ([_result("Ada"), _result("Ada")], "got 2 results"),
        (["Ada"], "no list of entities"),
        ([{"entities": None}], "no list of entities"),
        ([{"entities": [{"text": "Ada"}]}], "no place or no label"),
        ([{"entities": ["Ada"]}], "no place or no label"),
        (_moved("0", 3), "wrong type"),
        (_moved(0, 4), "0 to 4 of a text of 3"),
        (_moved(-1, 3), "-1 to 3 of a text of 3"),
        (_moved(2, 2), "2 to 2 of a text of 3"),
        (_moved(0, 2), "not what it says is there"),
    ],
)
def test_private_ai_that_answers_otherwise_is_an_error(service: Service, reply: Any, message: str) -> None:
    service.replies = [(200, reply)]
    with pytest.raises(DataError, match=message) as error:
        _ask(service, ["Ada"])
    assert "Ada" not in str(error.value)


@pytest.mark.parametrize("url", ["", "localhost:8080", "file:///etc/passwd", "http://user:word@localhost"])
def test_private_ai_needs_an_http_address_without_a_password(url: str) -> None:
    with pytest.raises(DataError, match="needs the address"):
        build([f"private-ai:{url}"])


# -- Flair and GLiNER, whose packages are replaced by their interface --------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(**modules: dict[str, Any]) -> None:
        for name, members in modules.items():
            module = ModuleType(name.replace("_", "."))
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        real = importlib.metadata.version
        monkeypatch.setattr(taggers, "version_of", lambda name: "0" if name in ("flair", "gliner") else real(name))

    return install


class _Sentence:
    """Of Flair: knows where it starts; its spans count from there."""

    def __init__(self, text: str, start: int) -> None:
        self.text, self.start_position, self.found = text, start, []  # type: ignore[var-annotated]

    def get_spans(self, kind: str) -> list[Any]:
        return self.found


def _flair(wrong: int = 0) -> dict[str, dict[str, Any]]:
    class Splitter:
        def split(self, text: str) -> list[_Sentence]:
            parts = text.split(". ")
            return [_Sentence(part, text.index(part)) for part in parts if part.strip()]

    class Tagger:
        label_type = "ner"

        @classmethod
        def load(cls, path: str) -> "Tagger":
            assert Path(path).name == "pytorch_model.bin"
            return cls()

        def predict(self, sentences: list[_Sentence], mini_batch_size: int) -> None:
            label = SimpleNamespace(value="WORK_OF_ART", score=0.7)
            for sentence in sentences:
                at = sentence.text.find("Ada")
                if at >= 0:
                    sentence.found.append(
                        SimpleNamespace(
                            start_position=at + wrong, end_position=at + 3, text="Ada", get_label=lambda kind: label
                        )
                    )

    return {"flair": {}, "flair_nn": {"Classifier": Tagger}, "flair_splitter": {"SegtokSentenceSplitter": Splitter}}


def test_flair_keeps_its_labels_and_counts_from_the_start_of_the_text(fake: Any, tmp_path: Path) -> None:
    fake(**_flair())
    (tmp_path / "pytorch_model.bin").write_bytes(b"0")
    found = taggers.Flair(str(tmp_path)).find(["Hello. So Ada came", "", "nobody"])
    assert found == [[Span(10, 13, "WORK_OF_ART", 0.7, "flair")], [], []]


def test_flair_that_lost_its_place_is_an_error(fake: Any, tmp_path: Path) -> None:
    fake(**_flair(wrong=1))
    (tmp_path / "pytorch_model.bin").write_bytes(b"0")
    with pytest.raises(DataError, match="not the entity it found"):
        taggers.Flair(str(tmp_path)).find(["Hello. So Ada came"])


def test_gliner_reads_a_long_text_in_windows(fake: Any, tmp_path: Path) -> None:
    class Model:
        @classmethod
        def from_pretrained(cls, path: str, *, local_files_only: bool) -> "Model":
            assert local_files_only
            return cls()

        def inference(self, texts: list[str], labels: list[str], *, threshold: float, batch_size: int) -> list[Any]:
            assert all(len(text.split()) <= 296 for text in texts)  # what it would cut off
            return [
                [{"start": at, "end": at + 3, "text": "Ada", "label": "person", "score": 0.8}]
                if (at := text.find("Ada")) >= 0
                else []
                for text in texts
            ]

    fake(gliner={"GLiNER": Model})
    text = "word " * 700 + "Ada " + "word " * 500
    [spans, empty] = taggers.Gliner(str(tmp_path)).find([text, " "])
    assert {text[s.start : s.end] for s in spans} == {"Ada"} and empty == []


@pytest.mark.parametrize("words", [0, 1, 119, 120, 149, 150, 151, 270, 271, 1000])
def test_windows_overlap_and_leave_no_word_out(words: int) -> None:
    text = "a, " * (words // 2) + "b " * (words % 2)
    places = list(taggers.windows(text))
    covered = {i for start, end in places for i in range(start, end)}
    assert all(i in covered for i, c in enumerate(text) if not c.isspace())
    assert all(b[0] < a[1] for a, b in pairwise(places))


@pytest.mark.parametrize(
    ("name", "command"), [("flair", "pip install flair"), ("gliner:org/model", "pip install gliner")]
)
def test_a_missing_package_is_refused_with_the_command(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name.partition(":")[0], None)
    with pytest.raises(DataError, match=command):
        build([name])


def test_a_model_that_is_not_here_is_refused_and_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="hf download no-such-org/no-such-model"):
        build(["transformers:no-such-org/no-such-model"])


@pytest.mark.parametrize("name", ["transformers", "gliner"])
def test_a_tagger_without_a_usual_model_needs_one(name: str) -> None:
    with pytest.raises(DataError, match="needs a model"):
        build([name])


# -- transformers, with a tiny model made here -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of 16 tokens at a time that calls every token a person."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Ada"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=16, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=5,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=18,
        id2label={0: "O", 1: "B-PER"},
        label2id={"O": 0, "B-PER": 1},
    )
    model = BertForTokenClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([-3.0, 3.0]))
    model.save_pretrained(folder)
    return str(folder)


def test_a_transformer_reads_all_of_a_long_text_with_exact_places(tiny: str) -> None:
    text = " ".join(f"Ada  w{i}," for i in range(60))
    [spans, empty, short] = build([f"transformers:{tiny}"]).find([text, " ", "Ada"])
    covered = {i for s in spans for i in range(s.start, s.end)}
    assert all(i in covered for i, c in enumerate(text) if not c.isspace())
    assert empty == [] and [(s.start, s.end, s.entity) for s in short] == [(0, 3, "PERSON")]


# -- spaCy and Presidio ------------------------------------------------------------------------------------------------


def test_presidio_on_the_shared_pass_finds_what_its_analyzer_finds() -> None:
    pytest.importorskip("presidio_analyzer")
    import spacy

    analyzer = taggers.presidio_analyzer(spacy.load(taggers.SPACY_MODEL))
    results = analyzer.analyze(TEXT, "en", score_threshold=taggers.PRESIDIO_SCORE)
    expected = {(r.start, r.end, taggers.PRESIDIO.get(r.entity_type, r.entity_type), r.score) for r in results}
    ours = taggers.SpacyPass(taggers.SPACY_MODEL, [lambda nlp: taggers.Presidio(nlp, taggers.SPACY_MODEL)]).find(
        [TEXT]
    )[0]
    assert {s[:4] for s in ours} == expected and "EMAIL_ADDRESS" in {s.entity for s in ours}


def test_our_recognisers_work_inside_presidio() -> None:
    pytest.importorskip("presidio_analyzer")
    import spacy

    analyzer = taggers.presidio_analyzer(spacy.load(taggers.SPACY_MODEL))
    analyzer.registry.add_recognizer(taggers.for_presidio(build(["clinical"]), ["MEDICAL_RECORD"]))
    results = analyzer.analyze("MRN 483920 of today", "en", entities=["MEDICAL_RECORD"])
    assert ("MEDICAL_RECORD", 4, 10) in {(r.entity_type, r.start, r.end) for r in results}


def test_a_duration_is_no_date_of_spacy() -> None:
    pytest.importorskip("spacy")
    [spans] = build(["spacy"]).find(["He coughed for three weeks and came on 3 May 2024 to Paris."])
    assert [s.entity for s in spans] == ["DATE", "LOCATION"]
