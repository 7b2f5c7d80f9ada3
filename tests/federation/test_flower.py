"""Flower as transport: real processes on loopback, with TLS and node keys."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

sys.path.insert(0, str(Path(__file__).parent))
import flower_sites

from reticent.errors import FederationError
from reticent.federation import flower, keys, launch


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_keys(folder, names, hosts=("127.0.0.1",), days=30):
    keys.make_authority(folder)
    for name in names:
        keys.make_site_keys(folder / name)
    return keys.make_certificate(folder, hosts, days=days)


def processes_of(folder):
    """All that run for this folder: each has Flower's home in its environment, or the folder in its command."""
    found = []
    for process in psutil.process_iter():
        try:
            home, command = process.environ().get("FLWR_HOME", ""), " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if str(folder) in home or f"{folder}/" in command or command.endswith(str(folder)):
            found.append(f"{process.pid} {process.status()} {command[:200]}")
    return found


class Site:
    """A site in its own process, started again when it dies."""

    def __init__(self, folder, name, port):
        self._command = [sys.executable, flower_sites.__file__, str(folder), name, str(port)]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._stopped.is_set():
            process = subprocess.Popen(self._command, start_new_session=True)
            while process.poll() is None and not self._stopped.wait(0.1):
                pass
            if self._stopped.is_set():
                process.terminate()
            process.wait()

    def stop(self):
        self._stopped.set()
        self._thread.join()


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """Rounds over a SuperLink and two sites, with a third that is not on the roster."""
    folder = tmp_path_factory.mktemp("federation")
    certificate = make_keys(folder / "keys", ["a", "b", "stranger"])
    roster = keys.write_roster(folder / "roster.json", [keys.card(name, folder / "keys" / name) for name in "ab"])
    port, seen = free_port(), {}
    sites = []
    try:
        with launch.SuperLink(folder / "c", certificate, "127.0.0.1", port) as link:
            link.register(roster)
            sites = [Site(folder, name, port) for name in ("a", "b", "stranger")]
            seen["connected"] = link.wait_for(2, 60.0)
            seen["remote"] = status_of_remote(folder / "keys" / "ca.crt", port)
            seen["outcome"] = link.run(flower_sites.write_app(folder / "app", flower_sites.rounds))
            seen["still connected"] = link.connected()
    finally:
        for site in sites:
            site.stop()
    seen["left"] = processes_of(folder)
    seen["said"] = (folder / "stranger.said").read_text()
    seen["logs"] = "".join(path.read_text(errors="replace") for path in folder.glob("*/federation/*.log"))
    return seen | json.loads((folder / "c" / "results.json").read_text())


def status_of_remote(authority, port):
    """What a machine elsewhere is told, by the API it asks for."""
    context, told = ssl.create_default_context(cafile=str(authority)), {}
    for api in ("control/list-runs", "control/start-run", "runtime/acquire-task", "fleet/pull-messages"):
        request = urllib.request.Request(f"https://127.0.0.1:{port}/v1/{api}", b"", {"X-Forwarded-For": "203.0.113.9"})
        try:
            told[api] = urllib.request.urlopen(request, context=context).status
        except urllib.error.HTTPError as error:
            told[api] = error.code
            error.close()
    return told


def test_each_site_answers_its_own_request_with_its_own_bytes(federation):
    assert federation["outcome"] == launch.Outcome(None)
    assert federation["sites"] == ["a", "b"]
    assert federation["echo"]["answers"] == {"a": True, "b": True}


def test_a_large_answer_comes_back_equal(federation):
    assert federation["large"]["answers"] == {"a": True}


def test_a_site_that_raises_fails_alone_and_says_no_more_than_the_type(federation):
    assert federation["raise"]["answers"] == {"a": "ValueError", "b": True}


def test_a_site_that_hangs_is_a_failure_at_the_deadline(federation):
    assert federation["hang"]["answers"]["a"] is True
    assert federation["hang"]["answers"]["b"].startswith("no answer within")
    assert federation["hang"]["took"] < 7.0


def test_a_site_that_is_killed_is_a_failure_and_comes_back(federation):
    assert federation["die"]["answers"]["a"] is True
    assert isinstance(federation["die"]["answers"]["b"], str)
    assert federation["again"]["answers"] == {"b": True}


def test_a_key_that_is_not_on_the_roster_is_refused_and_told_so(federation):
    assert federation["connected"] == ["a", "b"] and federation["still connected"] == ["a", "b"]
    assert "does not know the node key of this site" in federation["said"]


def test_no_log_of_flower_holds_the_text_of_an_exception(federation):
    assert "Beispiel" not in federation["logs"] and "query.ask" in federation["logs"]


def test_another_machine_may_speak_as_a_site_and_start_nothing(federation):
    refused = {api for api, status in federation["remote"].items() if status == 403}
    assert refused == {"control/list-runs", "control/start-run", "runtime/acquire-task"}


def test_no_process_is_left(federation):
    assert federation["left"] == []


def test_a_port_in_use_is_refused_by_its_number(tmp_path):
    certificate = make_keys(tmp_path / "keys", [])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(FederationError, match=f"cannot listen on 127.0.0.1:{port}: .*choose another port"):
            launch.SuperLink(tmp_path, certificate, "127.0.0.1", port).__enter__()
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("hosts", "days", "reason"), [(["127.0.0.1"], -1, "expired on"), (["192.0.2.7"], 30, "not for 127.0.0.1")]
)
def test_a_bad_certificate_stops_the_coordinator_before_anything_starts(tmp_path, hosts, days, reason):
    certificate = make_keys(tmp_path / "keys", [], hosts, days)
    with pytest.raises(FederationError, match=reason):
        launch.SuperLink(tmp_path, certificate, "127.0.0.1", free_port()).__enter__()
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("hosts", "days", "authority", "reason"),
    [
        (["127.0.0.1"], -1, "keys", "it has expired"),
        (["192.0.2.7"], 30, "keys", "it is for another host"),
        (["127.0.0.1"], 30, "other", "another authority signed it"),
    ],
)
def test_a_site_refuses_a_coordinator_with_a_bad_certificate(tmp_path, hosts, days, authority, reason):
    certificate = make_keys(tmp_path / "keys", ["a"], hosts, days)
    keys.make_authority(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    def shake_hands():
        try:
            connection, _ = server.accept()
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=shake_hands)
        thread.start()
        port, ca = server.getsockname()[1], tmp_path / authority / "ca.crt"
        node = launch.SuperNode(tmp_path, tmp_path / "keys" / "a" / "node-key", ca, "127.0.0.1", port, Path("none"))
        with pytest.raises(FederationError, match=reason):
            node.start()
        thread.join()
    assert not node.alive()


def test_where_no_coordinator_answers_a_site_goes_on_asking(tmp_path):
    make_keys(tmp_path / "keys", [])
    assert launch.check_server("127.0.0.1", free_port(), tmp_path / "keys" / "ca.crt") is False


@pytest.mark.parametrize(
    ("client", "path", "passes"),
    [
        ("203.0.113.9", "/v1/fleet/pull-messages", True),
        ("203.0.113.9", "/v1/control/start-run", False),
        ("203.0.113.9", "/docs", False),
        ("127.0.0.1", "/v1/control/start-run", True),
        ("::1", "/v1/control/start-run", True),
        ("::ffff:127.0.0.1", "/v1/control/start-run", True),
        ("192.0.2.7", "/v1/control/start-run", True),  # the server's own address
        ("unknown", "/v1/control/start-run", False),
    ],
)
def test_only_this_machine_may_do_more_than_a_site(client, path, passes):
    passed, sent = [], []

    async def application(scope, receive, send):
        passed.append(scope["path"])

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "client": (client, 1), "server": ("192.0.2.7", 2)}
    asyncio.run(launch.SitesOnly(application)(scope, None, send))
    assert passed == ([path] if passes else [])
    assert [message.get("status") for message in sent] == ([] if passes else [403, None])


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    (tmp_path / "federation").mkdir()
    (tmp_path / "federation" / "nodes.json").write_text('{"7": "a"}')
    monkeypatch.setenv("RETICENT_FEDERATION_FOLDER", str(tmp_path))
    return tmp_path


def run_rounds(main):
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    flower.make_server_app(main)(None, context)


def test_rounds_that_come_to_their_end_leave_no_error(run_folder):
    run_rounds(lambda folder, channel: None)
    assert json.loads((run_folder / "federation" / "outcome.json").read_text()) == {"run": 1, "error": None}


def test_rounds_that_raise_are_named_by_the_type_and_the_place_alone(run_folder):
    def fail(folder, channel):
        raise ValueError("Anna " + "Beispiel has a cold")

    with pytest.raises(RuntimeError, match=r"^ValueError$"):
        run_rounds(fail)
    outcome = (run_folder / "federation" / "outcome.json").read_text()
    assert json.loads(outcome)["error"] == "ValueError" and "test_flower.py" in outcome
    assert "Anna" not in outcome


def test_what_a_user_can_mend_is_told_in_full(run_folder):
    def fail(folder, channel):
        raise FederationError("2 of 3 sites have another recipe")

    with pytest.raises(RuntimeError):
        run_rounds(fail)
    assert "2 of 3 sites" in json.loads((run_folder / "federation" / "outcome.json").read_text())["error"]


def test_a_site_that_is_not_on_the_roster_cannot_be_asked():
    with pytest.raises(FederationError, match="no site 'b' on the roster"):
        list(flower.FlowerChannel(None, {7: "a"}).ask({"b": b""}, 1.0))


def ask_app(created, deadline, content=b"request", **node):
    """What the part of the app that runs at a site answers, in this process."""
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    array = Array(dtype="uint8", shape=(len(content),), stype="reticent", data=content)
    record = RecordDict({"payload": ArrayRecord({"bytes": array}), "ask": ConfigRecord({"deadline": deadline})})
    message = Message(record, dst_node_id=7, message_type="query.ask")
    message.metadata.created_at = created
    context = Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={})
    return flower.client_app(message, context).content


def test_a_request_that_comes_after_its_deadline_does_not_reach_the_site(tmp_path):
    reason = ask_app(time.time() - 10.0, 5.0, socket=str(tmp_path / "none"))["failure"]["reason"]
    assert "after its deadline" in reason


def test_a_site_whose_process_is_gone_says_so(tmp_path):
    answer = ask_app(time.time(), 5.0, socket=str(tmp_path / "none"))
    assert answer["failure"]["reason"] == "the site's process is not running"


def test_a_simulation_without_ray_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FederationError, match=r"pip install 'flwr\[simulation\]'"):
        launch.Simulation(tmp_path).__enter__()


@pytest.mark.slow
def test_sites_find_a_coordinator_that_was_killed_and_started_again(tmp_path):
    certificate = make_keys(tmp_path / "keys", ["a", "b"])
    roster = keys.write_roster(tmp_path / "roster.json", [keys.card(name, tmp_path / "keys" / name) for name in "ab"])
    app = flower_sites.write_app(tmp_path / "app", flower_sites.waiting)
    port = free_port()
    sites = [Site(tmp_path, name, port) for name in "ab"]
    try:
        with launch.SuperLink(tmp_path / "c", certificate, "127.0.0.1", port) as link:
            link.register(roster)
            link.wait_for(2, 60.0)
            killer = threading.Thread(target=kill_in_mid_run, args=(tmp_path / "c",))
            killer.start()
            outcome = link.run(app)
            killer.join()
        assert outcome.error is not None and "the SuperLink stopped" in outcome.error
        with launch.SuperLink(tmp_path / "c", certificate, "127.0.0.1", port) as link:
            link.register(roster)
            link.wait_for(2, 120.0)
            assert link.run(app) == launch.Outcome(None)
        assert {path.name: path.read_text() for path in (tmp_path / "c").glob("answer-*")} == {
            "answer-a": "True",
            "answer-b": "True",
        }
    finally:
        for site in sites:
            site.stop()
    assert processes_of(tmp_path) == []


def kill_in_mid_run(folder):
    while not (folder / "once").exists():
        time.sleep(0.1)
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if "in_process('superlink')" in " ".join(command) and str(folder) in process.environ()["FLWR_HOME"]:
                os.kill(process.pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
