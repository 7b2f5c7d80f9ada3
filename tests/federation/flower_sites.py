"""Sites and rounds for the tests of Flower's transport, which run in processes of their own.

As a program, ``python flower_sites.py FOLDER NAME PORT`` is a site that does as the first word of a request says.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from reticent.federation import flower, launch
from reticent.federation.channel import Failure

PIECE = os.urandom(1 << 16)  # of what is large: another in each process, as it need not be known to the other


def answer(request):
    """``echo`` gives the request back; the others are what goes wrong at sites."""
    if request.startswith(b"raise"):
        raise ValueError("Anna Beispiel has a cold")
    if request.startswith(b"hang"):
        time.sleep(7)
    if request.startswith(b"die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return request


def rounds(folder, channel):
    """What `test_flower` reads, in ``results.json``."""

    def ask(requests, deadline=25.0):
        began = time.monotonic()
        answers = dict(channel.ask(requests, deadline))
        took = time.monotonic() - began
        equal = {
            name: got.reason if isinstance(got, Failure) else got == requests[name] for name, got in answers.items()
        }
        return {"answers": equal, "took": took}

    sites = channel.sites()
    results = {"sites": sites, "echo": ask({name: b"echo" + name.encode() for name in sites})}
    results["large"] = ask({"a": PIECE * (1 << 10)})
    results["raise"] = ask({"a": b"raise", "b": b"echo"})
    results["hang"] = ask({"a": b"echo", "b": b"hang"}, deadline=5.0)
    results["die"] = ask({"a": b"echo", "b": b"die"}, deadline=10.0)
    end = time.monotonic() + 60.0
    while True:
        results["again"] = ask({"b": b"echo again"}, deadline=8.0)
        if results["again"]["answers"]["b"] is True or time.monotonic() > end:
            break
    (folder / "results.json").write_text(json.dumps(results))


def waiting(folder, channel):
    """Rounds that are still going on when the SuperLink dies, the first time."""
    if (folder / "once").exists():
        for name, got in channel.ask(dict.fromkeys(channel.sites(), b"echo"), 30.0):
            (folder / f"answer-{name}").write_text(str(got == b"echo"))
    else:
        (folder / "once").touch()
        time.sleep(60)


def write_app(folder, main):
    """A Flower app whose rounds are ``main`` of this module, and whose part for sites is hostile."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(launch.APP["pyproject.toml"])
    (folder / "app.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import flower_sites\n"
        "from reticent.federation import flower\n"
        f"server_app = flower.make_server_app(flower_sites.{main.__name__})\n"
        "client_app = flower_sites.hostile()\n"
    )
    return folder


def hostile():
    """A program for sites that answers nothing: no site may run what a coordinator sends."""
    from flwr.clientapp import ClientApp

    return ClientApp()


def site(folder, name, port):
    """A `reticent.federation.launch.SuperNode` for a socket."""
    own = folder / name
    own.mkdir(exist_ok=True)
    key, authority = folder / "keys" / name / "node-key", folder / "keys" / "ca.crt"
    return lambda path: launch.SuperNode(own, key, authority, "127.0.0.1", port, path)


if __name__ == "__main__":
    assert flower  # importable at a site
    at, called, where = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    said = (at / f"{called}.said").open("a", buffering=1)
    launch.run_site(answer, site(at, called, where), stopped, lambda text: print(text, file=said), linger=0.0)
