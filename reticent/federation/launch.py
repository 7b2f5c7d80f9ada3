"""Flower's processes: started, watched and stopped, with nothing left behind.

Two flows: `federate` at the coordinator and `run_site` at a site. Everything that Flower writes lies in ``federation/``
of the run's folder, its own home too; it calls nobody, asks for no update and installs nothing.

Flower trusts more people than we do, so two of its commands are replaced by our own. Its SuperLink lets everybody who
reaches the port start programs on the coordinator: ours lets other machines speak as sites alone. Its SuperNode runs
the program that the coordinator sends: ours runs what is installed at the site, whatever was sent.
"""

import importlib.util
import ipaddress
import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil

from reticent.errors import FederationError
from reticent.federation import daemon, keys
from reticent.federation.channel import Answer

APP = {
    "pyproject.toml": """\
[project]
name = "reticent"
version = "1.0.0"
description = "Rounds of a federation"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.43"]
[tool.flwr.app]
publisher = "reticent"
[tool.flwr.app.components]
serverapp = "app:server_app"
clientapp = "app:client_app"
[tool.flwr.app.config]
""",
    # Flower looks for assignments in the text, and finds no import.
    "app.py": """\
from reticent.federation import flower

client_app = flower.client_app
server_app = flower.server_app
""",
}
_BAD = {  # what OpenSSL's numbers mean
    9: "it is not valid yet",
    10: "it has expired",
    18: "it has signed itself",
    19: "another authority signed it",
    20: "another authority signed it",
    62: "it is for another host",
    64: "it is for another host",
}
_MARK = "RETICENT_FEDERATION_PROCESS"  # in the environment of all that one of Flower's processes starts
_HERE = "coordinator"  # the name of the SuperLink in Flower's settings
_START = 60.0  # seconds that a process may take to come up
_STOP = 10.0  # and to go away before it is killed
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before a site takes up its line again
_LOOK = 0.25  # seconds between two questions of a site whether there is a message
_STATUS = 15.0  # seconds between questions to Flower, each of which costs a second of a core


class Outcome(NamedTuple):
    """How a run ended: ``error`` is None if and only if the rounds came to their end."""

    error: str | None


class SuperLink:
    """The coordinator's side: a SuperLink on ``host:port`` with TLS, which knows the node keys of its sites."""

    def __init__(self, folder: Path, certificate: keys.Certificate, host: str, port: int) -> None:
        self._folder = folder
        self._own = folder / "federation"
        self._certificate = keys.Certificate(*(path.resolve() for path in certificate))
        self._host, self._port = host, port
        self._process: _Process | None = None

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            FederationError: the certificate is not good for this address, the port is in use, or it does not come up.
        """
        local, authority = _local(self._host), self._certificate.authority
        keys.check_certificate(self._certificate, [local], datetime.now(UTC))
        command = ["--enable-supernode-auth", "--ssl-certfile", str(self._certificate.certificate)]
        command += ["--ssl-keyfile", str(self._certificate.key), "--ssl-ca-certfile", str(authority)]
        self._start(command, {"root-certificates": str(authority)}, lambda: check_server(local, self._port, authority))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and all that it started."""
        if self._process is not None:
            self._process.stop()

    def _start(self, arguments: Sequence[str], settings: Mapping[str, Any], is_up: Callable[[], bool]) -> None:
        _check_port(self._host, self._port)
        _prepare(self._own, ["flower-superexec", "flwr-serverapp", "flwr-simulation"], {})
        local = _local(self._host)
        address = f"[{local}]:{self._port}" if ":" in local else f"{local}:{self._port}"
        lines = [f"{name} = {json.dumps(value)}" for name, value in {"address": address, **settings}.items()]
        (self._own / "home" / "config.toml").write_text("\n".join([f"[superlink.{_HERE}]", *lines, ""]))
        command = [*_ours("superlink"), "--host", self._host, "--port", str(self._port), *arguments]
        command.append("--disable-runtime-dependency-installation")
        self._process = _Process(command, self._environment(), self._own / "superlink.log")
        try:
            self._wait_until(is_up, address)
        except BaseException:
            self._process.stop()
            raise

    def register(self, roster: Mapping[str, keys.Member]) -> None:
        """Let these sites in, and nobody else.

        Raises:
            FederationError: Flower refuses a key.
        """
        nodes = {}
        for name, member in roster.items():
            path = self._own / "home" / f"{name}.pub"
            path.write_text(member.node + "\n")
            nodes[str(self._flwr("supernode", "register", str(path), _HERE, "--name", name)["node-id"])] = name
        _write_nodes(self._own, nodes)

    def connected(self) -> list[str]:
        """Names of the sites that are connected now, sorted."""
        names = json.loads((self._own / "nodes.json").read_text())
        nodes = self._flwr("supernode", "list", _HERE)["nodes"]
        return sorted(
            names[node["node-id"]] for node in nodes if node["status"] == "online" and node["node-id"] in names
        )

    def wait_for(self, count: int, deadline: float) -> list[str]:
        """Names of the sites, as soon as ``count`` of them are connected.

        Raises:
            FederationError: fewer are after ``deadline`` seconds.
        """
        end = time.monotonic() + deadline
        while len(sites := self.connected()) < count:
            if time.monotonic() > end:
                there = ", ".join(sites) or "none"
                raise FederationError(f"{len(sites)} of {count} sites connected within {deadline:.0f} s: {there}")
            time.sleep(1.0)
        return sites

    def run(self, app: Path | None = None, *arguments: str) -> Outcome:
        """Run the rounds, or the Flower app in the folder ``app``, to the end; ``arguments`` are those of ``flwr run``.

        Raises:
            FederationError: Flower does not start it.
        """
        outcome = self._own / "outcome.json"
        outcome.unlink(missing_ok=True)
        if app is None:
            app = _write_app(self._own / "app")
        run = str(self._flwr("run", str(app), _HERE, *arguments)["run-id"])
        started = asked = time.monotonic()
        while not outcome.exists():
            if not (self._process and self._process.alive()):
                return self._lost("the SuperLink stopped")
            if time.monotonic() - asked > _STATUS:
                status = self._flwr("list", _HERE, "--run-id", run)["runs"][0]["status"]
                asked = time.monotonic()
                if status.startswith("finished") and not outcome.exists():
                    return self._lost(f"Flower says {status!r}")
                if not status.startswith(("running", "finished")) and asked - started > _START:
                    return self._lost(f"Flower says {status!r} after {_START:.0f} s")
            time.sleep(0.2)
        return Outcome(json.loads(outcome.read_text())["error"])

    def _lost(self, reason: str) -> Outcome:
        return Outcome(f"{reason} before the rounds came to their end; see {self._own / 'superlink.log'}")

    def _environment(self) -> dict[str, str]:
        return _environment(self._own) | {"RETICENT_FEDERATION_FOLDER": str(self._folder.resolve())}

    def _wait_until(self, is_up: Callable[[], bool], address: str) -> None:
        assert self._process is not None
        end = time.monotonic() + _START
        while time.monotonic() < end and self._process.alive():
            if is_up():
                return
            time.sleep(0.2)
        raise FederationError(f"the SuperLink did not come up on {address}; see {self._own / 'superlink.log'}")

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """What a command of Flower's says, as JSON."""
        command = [_script("flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(command, env=self._environment(), capture_output=True, timeout=_START, text=True)
        except subprocess.TimeoutExpired:
            raise FederationError(f"flwr {arguments[0]} did not end within {_START:.0f} s") from None
        with (self._own / "superlink.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        said = _last_json(done.stdout)
        if done.returncode != 0 or not said.get("success"):
            raise FederationError(f"flwr {arguments[0]} failed; see {self._own / 'superlink.log'}")
        return said


class Simulation(SuperLink):
    """Sites in processes of this machine that Flower's simulation makes, by means of ray."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keys.Certificate(folder, folder, folder), "127.0.0.1", _free_port())

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            FederationError: ray is not installed, or the SuperLink does not come up.
        """
        if importlib.util.find_spec("ray") is None:
            raise FederationError("Flower's simulation needs ray; install it with: pip install 'flwr[simulation]'")
        self._start(["--insecure", "--simulation"], {"insecure": True}, lambda: _answers(self._host, self._port))
        return self

    def _environment(self) -> dict[str, str]:
        usual = super()._environment()
        return usual | {"PATH": os.pathsep.join([usual["PATH"], os.defpath])}  # ray calls commands of the system

    def simulate(self, names: Sequence[str], *, cores: int = 1, app: Path | None = None) -> Outcome:
        """Run the rounds with sites of these names, of which each uses ``cores`` while it answers.

        Raises:
            FederationError: Flower does not start them.
        """
        _write_nodes(self._own, list(names))
        sites = f"num-supernodes={len(names)} client-resources-num-cpus={cores} client-resources-num-gpus=0.0"
        return self.run(app, "--federation-config", sites)


class SuperNode:
    """A site's side: a SuperNode that holds the line to the coordinator, and is started again when it dies."""

    def __init__(self, folder: Path, node_key: Path, authority: Path, host: str, port: int, socket_path: Path) -> None:
        self._own = folder / "federation"
        self._key, self._authority = node_key.resolve(), authority.resolve()
        self._host, self._port = host, port
        self._socket = socket_path
        self._process: _Process | None = None

    def start(self) -> None:
        """Start it. It goes on asking for the SuperLink until that is there.

        Raises:
            FederationError: the SuperLink answers with a certificate that is not the coordinator's.
        """
        check_server(self._host, self._port, self._authority)
        clientapp = shlex.join([sys.executable, "-c", _CALL.format("clientapp")])
        _prepare(self._own, ["flower-superexec"], {"flwr-clientapp": f'#!/bin/sh\nexec {clientapp} "$@"\n'})
        command = [*_ours("supernode"), "--superlink", f"{self._host}:{self._port}", "--port", str(_free_port())]
        command += ["--root-certificates", str(self._authority), "--auth-supernode-private-key", str(self._key)]
        command += ["--node-config", f'socket="{self._socket}"']
        self._process = _Process(command, _environment(self._own), self._own / "supernode.log")

    def alive(self) -> bool:
        """Whether it runs. One that runs need not be connected."""
        return self._process is not None and self._process.alive()

    def stop(self) -> None:
        """Stop it and all that it started."""
        if self._process is not None:
            self._process.stop()

    def why(self) -> str:
        """Why one that does not run has ended, as far as that can be told."""
        log = self._own / "supernode.log"
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            end = file.read().decode("utf-8", "replace")
        if "Failed to activate SuperNode" in end:
            return (
                f"the coordinator at {self._host}:{self._port} does not know the node key of this site, or takes it "
                "for connected still; it needs the site's card in its roster, or a minute"
            )
        return f"the line to {self._host}:{self._port} broke; see {log}"


def federate(
    folder: Path, certificate: keys.Certificate, host: str, port: int, *, sites: int, deadline: float
) -> Outcome:
    """Run the rounds of the coordinator's ``folder`` with the sites of its roster, from door to door.

    The rounds begin as soon as ``sites`` of them are connected.

    Raises:
        FederationError: something is wrong with the keys, the certificate or the port, or too few sites connect within
            ``deadline`` seconds.
    """
    roster = keys.read_roster(folder / "federation" / "roster.json")
    with SuperLink(folder, certificate, host, port) as link:
        link.register(roster)
        link.wait_for(sites, deadline)
        return link.run()


def run_site(
    answer: Answer,
    node: Callable[[Path], SuperNode],
    stop: threading.Event,
    tell: Callable[[str], None],
    *,
    linger: float = 5.0,
) -> None:
    """Answer the coordinator until ``stop`` is set, whatever dies and comes back meanwhile.

    ``answer`` is called in this thread. ``node`` makes the SuperNode for a socket. ``tell`` hears why the line broke,
    each time that it is taken up again. After ``stop`` the SuperNode has ``linger`` seconds to bring the last answer
    home.

    Raises:
        FederationError: the socket cannot be made, or the coordinator's certificate is not good.
    """
    with tempfile.TemporaryDirectory(prefix="reticent-") as private:  # short, as the path of a socket must be
        path = Path(private) / "site"
        line = node(path)
        line.start()
        watcher = threading.Thread(target=_keep_alive, args=(line, stop, tell), daemon=True)
        watcher.start()
        try:
            daemon.serve(answer, path, stop)
            time.sleep(linger)
        finally:
            stop.set()
            watcher.join()
            line.stop()


def check_server(host: str, port: int, authority: Path) -> bool:
    """Whether a server answers there, with a certificate for ``host`` that ``authority`` signed.

    Raises:
        FederationError: one answers, and its certificate is expired, another's or signed by somebody else.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError):
        raise FederationError(f"{authority} holds no certificate in PEM") from None
    try:
        with socket.create_connection((host, port), timeout=5.0) as raw, context.wrap_socket(raw, server_hostname=host):
            return True
    except ssl.SSLCertVerificationError as error:
        raise FederationError(
            f"the certificate of {host}:{port} is not good: {_BAD.get(error.verify_code, error.verify_message)} "
            f"(checked by {authority}); nothing was sent"
        ) from None
    except OSError:
        return False


class _Process:
    """A process with all that it starts, whose output goes to a file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._mark = uuid.uuid4().hex
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                env={**environment, _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C on our terminal is ours to handle
            )

    def alive(self) -> bool:
        return self._popen.poll() is None

    def stop(self) -> None:
        """Ask the process to end, and kill what is still there after a while."""
        family = self._family()
        self._popen.terminate()
        try:
            self._popen.wait(_STOP)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        _, left = psutil.wait_procs({*family, *self._family()}, timeout=1.0)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=_STOP)

    def _family(self) -> list[psutil.Process]:
        """Descendants, and what has inherited the mark: those whose parent was killed are no descendants more."""
        try:
            family = list(psutil.Process(self._popen.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            family = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark:
                    family.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return family


def _keep_alive(node: SuperNode, stop: threading.Event, tell: Callable[[str], None]) -> None:
    pause = _PAUSE
    while not stop.wait(pause):
        if node.alive():
            pause = _PAUSE
            continue
        tell(node.why())
        node.stop()  # what it has left behind
        pause = min(2.0 * pause, _LONGEST_PAUSE)
        try:
            node.start()
        except FederationError as error:  # the coordinator's certificate has gone bad meanwhile: it may be mended
            tell(str(error))


# --- what runs in Flower's processes ---

_CALL = "from reticent.federation.launch import in_process; in_process({!r})"


def _ours(name: str) -> list[str]:
    return [sys.executable, "-c", _CALL.format(name)]


def in_process(name: str) -> None:
    """Be one of Flower's commands, with ours in place of what it trusts too much."""
    # Without a farewell the SuperLink takes a SuperNode for connected, and lets no other in, for a minute.
    end_with_parent(grace=0.0 if name == "clientapp" else _STOP)
    {"superlink": _superlink, "supernode": _supernode, "clientapp": _clientapp}[name]()


def _superlink() -> None:
    from flwr.superlink import main
    from flwr.superlink.cli import flower_superlink

    create: Any = main.create_app
    main.create_app = lambda *arguments: SitesOnly(create(*arguments))  # type: ignore[assignment]
    flower_superlink()


def _supernode() -> None:
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.cli import flower_supernode

    patched: Any = loop
    patched.time = _Hasty(patched.time)
    flower_supernode()


class _Hasty:
    """The module ``time`` for Flower's loop, which would sleep three seconds before it looks for a message again."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sleep(self, seconds: float) -> None:
        self._real.sleep(min(seconds, _LOOK))


def _clientapp() -> None:
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp as runtime

    from reticent.federation.flower import client_app

    for name in ("install_from_fab", "get_load_client_app_fn"):
        getattr(runtime, name)  # a Flower that has moved them would run what was sent
    patched: Any = runtime
    patched.install_from_fab = lambda *_, **__: None
    patched.get_load_client_app_fn = lambda **_: lambda *_: client_app
    flwr_clientapp()


class SitesOnly:
    """A SuperLink's web application that lets other machines speak as sites, and nothing else.

    Whoever may start a run there runs a program of his own on the coordinator.
    """

    def __init__(self, application: Callable[..., Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Pass on what is for sites or comes from this machine; answer the rest with 403."""
        if scope["type"] == "lifespan" or _is_for_sites(scope) or _is_from_here(scope):
            await self._application(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})


def _is_for_sites(scope: Mapping[str, Any]) -> bool:
    return scope["type"] == "http" and str(scope["path"]).startswith("/v1/fleet/")


def _is_from_here(scope: Mapping[str, Any]) -> bool:
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or bool(server and client[0] == server[0])


def end_with_parent(grace: float = 0.0) -> None:
    """End when the process that started this one is gone, however it went; ``grace`` seconds are for a tidy way out.

    Rounds whose SuperLink was killed must not go on beside those that took their place.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        if grace:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- places, ports and settings ---


def _prepare(own: Path, commands: Sequence[str], replaced: Mapping[str, str]) -> None:
    """A folder of exactly the commands that Flower may start by name."""
    folder = own / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    (own / "home").mkdir(exist_ok=True, mode=0o700)
    for name in commands:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(_script(name))
    for name, text in replaced.items():
        path = folder / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o700)
        if not os.access(path, os.X_OK):
            raise FederationError(f"{path} cannot be executed; its file system may be mounted with noexec")


def _environment(own: Path) -> dict[str, str]:
    """Flower's own, quiet and private. PATH is one folder: it can start nothing that is not in there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "FORWARDED_ALLOW"))}
    no_proxy = ",".join(filter(None, [kept.get("NO_PROXY") or kept.get("no_proxy"), "127.0.0.1", "localhost"]))
    return kept | {
        "FLWR_HOME": str((own / "home").resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        "PATH": str((own / "bin").resolve()),
        "PYTHONUNBUFFERED": "1",
    }


def _script(name: str) -> str:
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise FederationError(f"{name} is not installed; install Flower with: pip install 'flwr>=1.41,<1.43'")
    return str(path)


def _write_nodes(own: Path, nodes: Mapping[str, str] | list[str]) -> None:
    """Names by node for the rounds; of simulated sites, by their numbers."""
    (own / "nodes.json").write_text(json.dumps(nodes))


def _write_app(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in APP.items():
        (folder / name).write_text(text)
    return folder


def _local(host: str) -> str:
    """The address by which this machine reaches a server that listens on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FederationError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from None


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5.0):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_json(text: str) -> dict[str, Any]:
    """The object at the end of what a command printed; its start may be chatter."""
    for start, character in enumerate(text):
        if character == "{":
            try:
                found = json.loads(text[start:])
            except json.JSONDecodeError:
                continue
            if isinstance(found, dict):
                return found
    return {}
