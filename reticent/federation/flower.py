"""The two apps that Flower runs. They carry bytes and know nothing of what is in them.

A payload travels as one array of bytes in a message of type ``query.ask``. At a site `client_app` hands it to the warm
process of `reticent.federation.daemon`; at the coordinator `server_app` gives the rounds a `FlowerChannel`.
"""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from reticent.errors import FederationError, ReticentError
from reticent.federation.channel import Channel, Failure
from reticent.federation.daemon import ask
from reticent.federation.launch import end_with_parent

FOLDER = "RETICENT_FEDERATION_FOLDER"  # where the run lies: never in a message, the path is nobody else's business
_POLL = 0.2  # seconds
_WHO = 120.0  # seconds in which simulated sites come up
_SKEW = 10.0  # seconds that a site's clock may be ahead: Flower's own limit is 5, and300 behind

client_app = ClientApp()


@client_app.query("ask")
def _answer(message: Message, context: Context) -> Message:
    """The site's answer, or in its place why there is none."""
    deadline = float(message.content.config_records["ask"]["deadline"])  # type: ignore[arg-type]
    left = min(deadline, message.metadata.created_at + deadline - time.time())
    if left > 0.0:
        answer = _ask_site(message.content, context, left)
    else:  # a site that comes back must not train for a past round
        answer = Failure("the request came after its deadline; is the site's clock right?")
    if isinstance(answer, Failure):
        return Message(RecordDict({"failure": ConfigRecord({"reason": answer.reason})}), reply_to=message)
    return Message(RecordDict({"payload": _payload(answer)}), reply_to=message)


@client_app.query("who")
def _number(message: Message, context: Context) -> Message:
    """The number of a simulated site."""
    number = ConfigRecord({"number": int(context.node_config["partition-id"])})
    return Message(RecordDict({"who": number}), reply_to=message)


def _ask_site(content: RecordDict, context: Context, left: float) -> bytes | Failure:
    try:
        request, path = _bytes(content), context.node_config.get("socket")
        if path is not None:
            return ask(Path(str(path)), request, left)
        from reticent.federation.site import simulated  # heavy, and only Flower's simulation has the site in here

        return simulated(_folder(), int(context.node_config["partition-id"]))(request)
    except Exception as error:
        return Failure(type(error).__name__)


class FlowerChannel:
    """Sites behind a SuperLink, which has checked the key of each before it let it in."""

    def __init__(self, grid: Grid, names: Mapping[int, str]) -> None:
        self._grid = grid
        self._names = dict(names)

    def sites(self) -> list[str]:
        """Names of the sites that are connected now, sorted. One that died counts for up to a minute more."""
        return sorted(self._names[node] for node in self._grid.get_node_ids() if node in self._names)

    def ask(self, requests: Mapping[str, bytes], deadline: float) -> Iterator[tuple[str, bytes | Failure]]:
        """Each site's answer in the order of the requests, or its failure, at the latest after ``deadline`` seconds.

        In order, because sums depend on it in their last bits; what comes early waits at the SuperLink.

        Raises:
            FederationError: a name is not on the roster.
        """
        end = time.monotonic() + deadline
        waiting: dict[str, str] = {}
        for name, request in requests.items():  # one by one: all of them at once would be in memory twice
            sent = self._push(name, request, deadline)
            if sent is None:
                yield name, Failure("the site is not connected")
            else:
                waiting[sent] = name
        for sent, name in waiting.items():
            reply = self._pull(sent, end)
            yield name, Failure(f"no answer within {deadline:.0f} s") if reply is None else _read(reply)

    def _pull(self, sent: str, end: float) -> Message | None:
        """The reply to a message, asked for until the time ``end``, and once in any case."""
        while True:
            for reply in self._grid.pull_messages([sent]):
                return reply
            if time.monotonic() >= end:
                return None
            time.sleep(min(_POLL, max(0.0, end - time.monotonic())))

    def _push(self, name: str, request: bytes, deadline: float) -> str | None:
        node = next((node for node, known in self._names.items() if known == name), None)
        if node is None:
            raise FederationError(f"there is no site {name!r} on the roster")
        content = RecordDict({"payload": _payload(request), "ask": ConfigRecord({"deadline": deadline})})
        # Flower throws the message away when its time is over.
        message = Message(content, dst_node_id=node, message_type="query.ask", ttl=deadline + _SKEW)
        (sent,) = self._grid.push_messages([message])
        return sent or None


def make_server_app(serve: Callable[[Path, Channel], None]) -> ServerApp:
    """An app that lets ``serve`` run the rounds, and leaves a word on how they ended in ``federation/outcome.json``."""
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        end_with_parent()
        folder = _folder()
        outcome: dict[str, str | int | None] = {"run": context.run_id, "error": None}
        try:
            nodes = json.loads((folder / "federation" / "nodes.json").read_text())
            names = _simulated(grid, nodes) if isinstance(nodes, list) else {int(node): nodes[node] for node in nodes}
            serve(folder, FlowerChannel(grid, names))
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)  # where, and none of the exception's own text
            outcome["trace"] = "\n".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
            outcome["error"] = str(error) if isinstance(error, ReticentError) else type(error).__name__
            raise RuntimeError(type(error).__name__) from None
        finally:
            _write(folder / "federation" / "outcome.json", json.dumps(outcome))

    return app


def _simulated(grid: Grid, names: list[str]) -> dict[int, str]:
    """Names by node of simulated sites, whose nodes only they can tell apart."""
    end = time.monotonic() + _WHO
    while len(nodes := list(grid.get_node_ids())) < len(names) and time.monotonic() < end:
        time.sleep(_POLL)
    asked = [Message(RecordDict(), dst_node_id=node, message_type="query.who") for node in nodes]
    found = {}
    for reply in grid.send_and_receive(asked, timeout=_WHO):
        if not reply.has_error():
            found[reply.metadata.src_node_id] = names[int(reply.content.config_records["who"]["number"])]  # type: ignore[arg-type]
    if len(found) < len(names):
        raise FederationError(f"{len(found)} of {len(names)} simulated sites came up within {_WHO:.0f} s")
    return found


def _serve(folder: Path, channel: Channel) -> None:
    from reticent.federation.server import serve  # heavy, and no site needs it

    serve(folder, channel)


server_app = make_server_app(_serve)


def _read(reply: Message) -> bytes | Failure:
    if reply.has_error():
        return Failure(f"Flower gave up on the message (its error {reply.error.code})")  # its text may be a site's
    failure = reply.content.config_records.get("failure")
    if failure is not None:
        return Failure(str(failure.get("reason"))[:200])
    try:
        return _bytes(reply.content)
    except FederationError as error:
        return Failure(str(error))


def _payload(content: bytes) -> ArrayRecord:
    return ArrayRecord({"bytes": Array(dtype="uint8", shape=(len(content),), stype="reticent", data=content)})


def _bytes(content: RecordDict) -> bytes:
    payload = content.array_records.get("payload")
    if payload is None or list(payload) != ["bytes"]:
        raise FederationError("a message holds no payload")
    return payload["bytes"].data


def _folder() -> Path:
    return Path(os.environ[FOLDER])


def _write(path: Path, text: str) -> None:
    """All of it or nothing: another process waits for the file."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
