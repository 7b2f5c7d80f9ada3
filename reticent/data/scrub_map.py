"""Which original each replacement stands for: an encrypted file, for those who must be able to look back.

Rows are sealed in blocks of AES-256-GCM, as in the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO
2015): the nonce of a block is its number and whether it is the last, so a block that is missing, moved or changed is
noticed, also at the end. The key of a file comes from its salt and from either a passphrase (scrypt, RFC 7914) or a key
file (HKDF-SHA256, RFC 5869). No row is ever written in clear.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from reticent.errors import DataError

MAGIC = b"reticent scrub map 1\n"
SALT = 16  # bytes
KEY = 32
TAG = 16
BLOCK = 2**16  # bytes of rows that are sealed together
SCRYPT = {"n": 2**17, "r": 8, "p": 1}  # what OWASP asks for: 128 MiB and about half a second for each guess


class Row(NamedTuple):
    """What stands where in the texts of an owner."""

    owner: str
    original: str
    replacement: str
    entity: str


class MapWriter:
    """Takes rows; made by `write_map`. Equal rows close to each other are written once."""

    def __init__(self, file: IO[bytes], head: bytes, key: bytes) -> None:
        self._file, self._seal, self._number = file, _Seal(key, head), 0
        self._rows: dict[Row, None] = {}
        self._size = 0

    def add(self, row: Row) -> None:
        """One more replacement."""
        if row not in self._rows:
            self._rows[row] = None
            self._size += sum(map(len, row))
            if self._size >= BLOCK:
                self.flush(last=False)

    def flush(self, *, last: bool) -> None:
        """Seals and writes the rows so far; nothing may follow the ``last``."""
        block = self._seal.lock("\n".join(map(json.dumps, self._rows)).encode(), self._number, last)
        self._file.write(len(block).to_bytes(4, "big") + block)
        self._rows, self._size, self._number = {}, 0, self._number + 1


@contextmanager
def write_map(path: Path, secret: str | Path) -> Iterator[MapWriter]:
    """A map at ``path``, sealed by a passphrase (str) or a key file (Path), which is made if there is none.

    The file takes its name only when it is whole; after an error or a kill an unfinished, sealed ``.part`` is left.

    Raises:
        DataError: The map or the key file cannot be written or may be read by others.
    """
    if isinstance(secret, Path) and not secret.exists():
        make_key(secret)
    salt = os.urandom(SALT)
    head = MAGIC + salt
    key = _key(secret, salt)
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        file = os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")
    except OSError as error:
        raise DataError(f"{part}: the scrub map cannot be written ({error.strerror}); name another path") from None
    with file:
        file.write(head)
        writer = MapWriter(file, head, key)
        yield writer
        writer.flush(last=True)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_map(path: Path, secret: str | Path) -> Iterator[Row]:
    """The rows of a map, in order; each block is verified before its rows come out.

    Raises:
        DataError: The secret is wrong, or the file is none, not whole, or changed.
    """
    from cryptography.exceptions import InvalidTag

    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: the scrub map cannot be read ({error.strerror}); check the path") from None
    with file:
        head = file.read(len(MAGIC) + SALT)
        if not head.startswith(MAGIC) or len(head) != len(MAGIC) + SALT:
            raise DataError(f"{path}: is no scrub map of this version; check the path")
        seal, number, last = _Seal(_key(secret, head[len(MAGIC) :]), head), 0, False
        while not last:
            size = int.from_bytes(file.read(4), "big")
            # The largest block holds BLOCK characters and one more row; a text of 256 MB is none that we wrote.
            block = file.read(size) if TAG <= size < 2**28 else b""
            last = not file.peek(1)
            try:
                rows = seal.open(block, number, last)
            except InvalidTag:
                why = "the passphrase or key is wrong, or the file" if not number else f"the file after block {number}"
                raise DataError(f"{path}: {why} was changed or cut off; nothing more of it is read") from None
            yield from (Row(*json.loads(line)) for line in rows.decode().splitlines())
            number += 1


def make_key(path: Path) -> None:
    """A new key file that only its user may read.

    Raises:
        DataError: It exists, or cannot be written.
    """
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(os.urandom(KEY))
    except OSError as error:
        raise DataError(f"{path}: the key file cannot be made ({error.strerror}); name another path") from None


def _key(secret: str | Path, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    if isinstance(secret, Path):
        return HKDF(SHA256(), KEY, salt, b"reticent scrub map").derive(_read_key(secret))
    if not secret:
        raise DataError("the passphrase of the scrub map is empty; give one, or name a key file")
    return Scrypt(salt, KEY, **SCRYPT).derive(secret.encode())


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise DataError(f"{path}: the key file may be read by others (mode {mode:04o}); run: chmod 600 {path}")
            key = file.read(KEY + 1)
    except OSError as error:
        raise DataError(f"{path}: the key file cannot be read ({error.strerror}); check the path") from None
    if len(key) != KEY:
        raise DataError(f"{path}: a key file has {KEY} bytes, this one has not; check the path")
    return key


class _Seal:
    """Locks and opens numbered blocks."""

    def __init__(self, key: bytes, head: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher, self._head = AESGCM(key), head

    def lock(self, block: bytes, number: int, last: bool) -> bytes:
        return self._cipher.encrypt(self._nonce(number, last), block, self._head)

    def open(self, block: bytes, number: int, last: bool) -> bytes:
        return self._cipher.decrypt(self._nonce(number, last), block, self._head)

    def _nonce(self, number: int, last: bool) -> bytes:
        return number.to_bytes(11, "big") + bytes([last])
