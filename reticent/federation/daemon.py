"""A site's process that stays warm between messages, and how to ask it.

Flower starts a new process for every message. That process hands the request over a Unix socket to this one, which has
the base model loaded, and carries its answer back. A frame is eight bytes of length, big-endian, and the bytes; that of
an answer has one byte more in front, which says whether it is an answer or the name of what went wrong.
"""

import socket
import stat
import struct
import threading
import time
from pathlib import Path

from reticent.errors import FederationError
from reticent.federation.channel import Answer, Failure

_LENGTH = struct.Struct(">Q")
_ANSWER, _FAILURE = b"\x00", b"\x01"
_PIECE = 1 << 20
_LONGEST_PATH = 100  # bytes; the kernel's own limit is 108 or less
_PATIENCE = 60.0  # seconds for a client that neither sends nor reads


class _GoneError(Exception):
    """The other end closed the connection in the middle of a frame."""


def serve(answer: Answer, path: Path, stop: threading.Event | None = None) -> None:
    """Answer the requests that come to the socket ``path``, one at a time, until ``stop`` is set.

    Only the owner of the file can connect. A request that makes ``answer`` raise is answered by the name of the
    exception's type, never by its text; a client that dies is forgotten.

    Raises:
        FederationError: another process serves there, the path is too long, or it is a file of another kind.
    """
    stop = stop or threading.Event()
    with _listen(path) as server:
        try:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    _serve_one(answer, connection)
        finally:
            path.unlink(missing_ok=True)


def ask(path: Path, request: bytes | memoryview, deadline: float) -> bytes | Failure:
    """The answer of the process that serves at ``path``, or why there is none after at most ``deadline`` seconds."""
    end = time.monotonic() + deadline
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(max(deadline, 1e-3))
            connection.connect(str(path))
            _send(connection, b"", request)
            status = bytes(_receive(connection, 1, end))
            content = bytes(_receive_frame(connection, end))
        except TimeoutError:
            return Failure(f"no answer within {deadline:.0f} s")
        except (_GoneError, OSError):
            return Failure("the site's process is not running")
    return content if status == _ANSWER else Failure(content.decode("ascii", "replace"))


def _listen(path: Path) -> socket.socket:
    if len(bytes(path)) > _LONGEST_PATH:
        raise FederationError(f"the path of a socket may have {_LONGEST_PATH} bytes, not {len(bytes(path))}: {path}")
    if path.exists():
        _remove_stale(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(str(path))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)  # before listen(): until then nobody can connect
        server.listen()
        server.settimeout(0.2)  # how soon `stop` is seen
    except OSError as error:
        server.close()
        raise FederationError(f"cannot serve at {path}: {error.strerror}") from None
    return server


def _remove_stale(path: Path) -> None:
    """Unlink a socket that a killed process left behind."""
    if not path.is_socket():
        raise FederationError(f"{path} is there already and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise FederationError(f"another process of this site serves at {path}; stop it first")


def _serve_one(answer: Answer, connection: socket.socket) -> None:
    try:
        connection.settimeout(_PATIENCE)
        request = bytes(_receive_frame(connection, None))
        try:
            status, content = _ANSWER, answer(request)
        except Exception as error:
            status, content = _FAILURE, type(error).__name__.encode("ascii", "replace")
        _send(connection, status, content)
    except (_GoneError, OSError):
        return


def _send(connection: socket.socket, status: bytes, content: bytes | memoryview) -> None:
    connection.sendall(status + _LENGTH.pack(len(content)))
    for start in range(0, len(content), _PIECE):  # so that the timeout is for each piece
        connection.sendall(memoryview(content)[start : start + _PIECE])


def _receive_frame(connection: socket.socket, end: float | None) -> bytearray:
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, end))
    return _receive(connection, length, end)


def _receive(connection: socket.socket, length: int, end: float | None) -> bytearray:
    """``length`` bytes, by the time ``end`` if there is one. Memory grows with what has come, not with ``length``."""
    content = bytearray()
    while len(content) < length:
        if end is not None:
            connection.settimeout(max(end - time.monotonic(), 1e-3))
        piece = connection.recv(min(_PIECE, length - len(content)))
        if not piece:
            raise _GoneError
        content += piece
    return content
