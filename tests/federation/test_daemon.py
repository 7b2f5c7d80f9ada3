"""The warm process of a site: whole frames over a private socket, whoever dies at the other end."""

import os
import socket
import stat
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from reticent.errors import FederationError
from reticent.federation import daemon
from reticent.federation.channel import Failure


@pytest.fixture
def path():
    with TemporaryDirectory(prefix="r") as folder:  # pytest's own are too long for a socket
        yield Path(folder) / "s"


@contextmanager
def serving(answer, path):
    stop = threading.Event()
    thread = threading.Thread(target=daemon.serve, args=(answer, path, stop))
    thread.start()
    while not path.exists():
        time.sleep(0.01)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def raw(path):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    return connection


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 25) + 1])
def test_an_answer_comes_back_as_it_was_sent(path, size):
    request = os.urandom(size)
    with serving(lambda asked: asked[::-1], path):
        assert daemon.ask(path, request, 20.0) == request[::-1]


def test_only_the_owner_can_connect(path):
    with serving(bytes, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_exception_is_named_by_its_type_alone(path):
    def answer(request):
        raise ValueError("Anna Beispiel has a cold")

    with serving(answer, path):
        assert daemon.ask(path, b"", 5.0) == Failure("ValueError")
        assert daemon.ask(path, b"", 5.0) == Failure("ValueError")


def test_a_late_answer_is_a_failure_and_the_next_request_is_answered(path):
    def answer(request):
        time.sleep(float(request))
        return b"done"

    with serving(answer, path):
        assert daemon.ask(path, b"1", 0.2) == Failure("no answer within 0 s")
        assert daemon.ask(path, b"0", 5.0) == b"done"


def test_it_survives_clients_that_die_in_the_middle(path):
    with serving(lambda asked: asked, path):
        raw(path).close()
        with raw(path) as connection:
            connection.sendall(struct.pack(">Q", 1 << 40) + b"the beginning of a terabyte")
        with raw(path) as connection:
            connection.sendall(struct.pack(">Q", 1 << 22) + bytes(1 << 22))  # and reads no answer
        assert daemon.ask(path, b"still there", 5.0) == b"still there"


def test_requests_are_answered_one_at_a_time(path):
    now, most = [], []

    def answer(request):
        now.append(request)
        most.append(len(now))
        time.sleep(0.05)
        now.remove(request)
        return request

    with serving(answer, path):
        threads = [threading.Thread(target=daemon.ask, args=(path, bytes([n]), 5.0)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1, 1, 1, 1]


def test_where_nobody_serves_there_is_a_failure(path):
    assert daemon.ask(path, b"", 1.0) == Failure("the site's process is not running")


def test_a_second_process_of_one_site_is_refused(path):
    with serving(bytes, path), pytest.raises(FederationError, match="another process of this site"):
        daemon.serve(bytes, path)


def test_a_socket_that_a_killed_process_left_is_taken_over(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    with serving(lambda asked: asked, path):
        while isinstance(answer := daemon.ask(path, b"x", 1.0), Failure):
            time.sleep(0.01)
        assert answer == b"x"


def test_a_file_of_another_kind_is_left_alone(path):
    path.write_text("mine")
    with pytest.raises(FederationError, match="no socket"):
        daemon.serve(bytes, path)
    assert path.read_text() == "mine"


def test_a_path_that_is_too_long_is_refused_by_its_length(path):
    with pytest.raises(FederationError, match="may have 100 bytes, not"):
        daemon.serve(bytes, path.parent / ("n" * 100))
