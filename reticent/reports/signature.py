"""A detached signature (Ed25519, RFC 8032) over the digests of a report and of the run that it is about.

The signature file is JSON: version, algorithm, time, public key, the SHA-256 of each file by its name, and the
signature over all of these in canonical form (keys sorted, no spaces, ASCII). It shows that no file was changed after
whoever has the key signed it. Whose key that is, only a public key got by another way can tell.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from reticent.errors import PrivacyError, RunError

_VERSION = 1
_ALGORITHM = "Ed25519"
_CONTEXT = b"reticent: a report and its run\n"  # no other message of this key can be taken for one of these
_FIELDS = {"version", "algorithm", "time", "public_key", "digests", "signature"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_NAMED = 3  # files in one message


class Signed(NamedTuple):
    """A signature that holds.

    ``key``: SHA-256 of the raw public key. ``time``: by the signer's clock. ``trusted``: whether the key is the one
    that the reader gave; if not, anybody may have made the signature.
    """

    key: str
    time: datetime
    files: tuple[str, ...]
    trusted: bool


def new_key(path: Path) -> Path:
    """Write a new private key to ``path`` (PEM, readable by its owner alone), and its public half beside it.

    Returns:
        The file of the public key, ``path`` with ``.pub`` at its end: for whoever is to check signatures.

    Raises:
        RunError: one of the files is there already, or cannot be written.
    """
    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists() or file.is_symlink():
            raise RunError(f"{file} is there already, and keys are never written over; name another file")
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, private, 0o600)
    _write(
        public,
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        0o644,
    )
    return public


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each file, in hexadecimal, by the name that the signature has for it.

    Raises:
        RunError: a file is missing or cannot be read.
    """
    return {name: _digest(name, path) for name, path in sorted(files.items())}


def sign(key_file: Path, digests: Mapping[str, str], *, time: datetime | None = None) -> bytes:
    """The signature over ``digests``, as JSON.

    Args:
        key_file: Ed25519 private key, PEM without passphrase, readable by its owner alone; see `new_key`.
        digests: see `digests`.
        time: None: now.

    Raises:
        PrivacyError: the key is of another kind, has a passphrase, or others can read it.
        RunError: there is nothing to sign, or the key file cannot be read.
    """
    if not digests:
        raise RunError("there is no file to sign; make the report first")
    key = _private_key(key_file)
    moment = (time or datetime.now(UTC)).astimezone(UTC)
    body = {
        "version": _VERSION,
        "algorithm": _ALGORITHM,
        "time": moment.isoformat(timespec="seconds"),
        "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        "digests": dict(sorted(digests.items())),
    }
    signature = base64.b64encode(key.sign(_canonical(body))).decode()
    return (json.dumps({**body, "signature": signature}, indent=1) + "\n").encode()


def verify(signature: bytes, digests: Mapping[str, str], public_key: Path | None = None) -> Signed:
    """Check ``signature`` against the files as they are now.

    Args:
        signature: what `sign` gave.
        digests: see `digests`.
        public_key: PEM file of the one key that is trusted; None: the one in the signature, which anybody can replace.

    Raises:
        RunError: the signature is malformed, or files are missing or were added.
        PrivacyError: a file was altered, the key is not the trusted one, or the signature does not hold.
    """
    body, raw = _parse(signature)
    key_bytes: bytes = base64.b64decode(body["public_key"])
    if public_key is not None and _public_key(public_key).public_bytes_raw() != key_bytes:
        raise PrivacyError(
            f"the report is signed by another key ({_fingerprint(key_bytes)[:16]}...) than that in {public_key}; do "
            "not rely on it before you know whose key that is"
        )
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key_bytes).verify(raw, _canonical(body))
    except InvalidSignature:
        raise PrivacyError(
            "the signature does not hold: the signature file itself was altered, or made by another key"
        ) from None
    _compare(body["digests"], digests)
    return Signed(
        key=_fingerprint(key_bytes),
        time=datetime.fromisoformat(body["time"]),
        files=tuple(sorted(body["digests"])),
        trusted=public_key is not None,
    )


def _compare(signed: Mapping[str, str], now: Mapping[str, str]) -> None:
    missing, added = sorted(signed.keys() - now.keys()), sorted(now.keys() - signed.keys())
    if missing:
        raise RunError(f"{_named(missing)} signed, but missing; put the files back")
    if added:
        raise RunError(f"{_named(added)} not signed; sign again with: reticent audit RUN --sign KEY")
    altered = sorted(name for name in signed if signed[name] != now[name])
    if altered:
        raise PrivacyError(
            f"{_named(altered)} altered after the report was signed; put back what was signed, or audit and sign again"
        )


def _named(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    told = ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{told} {'was' if len(names) == 1 else 'were'}"


def _parse(signature: bytes) -> tuple[dict[str, Any], bytes]:
    """All fields but the signature, and the signature's bytes."""
    wrong = "the signature file is malformed: {}; get it again from whoever signed"
    try:
        values = json.loads(signature)
    except ValueError:  # also of bytes that are no text
        raise RunError(wrong.format("it is no JSON")) from None
    except RecursionError:
        raise RunError(wrong.format("it is nested")) from None
    if not isinstance(values, dict) or values.keys() != _FIELDS:
        raise RunError(wrong.format(f"it must hold {', '.join(sorted(_FIELDS))} and nothing else"))
    if values["version"] != _VERSION or values["algorithm"] != _ALGORITHM:
        raise RunError(wrong.format(f"it must be of version {_VERSION} and algorithm {_ALGORITHM}"))
    told = values["digests"]
    if not isinstance(told, dict) or not told or not all(_is_digest(digest) for digest in told.values()):
        raise RunError(wrong.format("its digests must be SHA-256 in hexadecimal, one a file"))
    try:
        when = datetime.fromisoformat(values["time"])
    except (TypeError, ValueError):
        when = None
    if when is None or when.tzinfo is None:
        raise RunError(wrong.format("its time must be a date and time with a time zone"))
    raw = values.pop("signature")
    sizes = {"public_key": (values["public_key"], 32), "signature": (raw, 64)}
    for name, (text, size) in sizes.items():
        if _decoded(text, size) is None:
            raise RunError(wrong.format(f"its {name} must be {size} bytes in base64"))
    return values, base64.b64decode(raw)


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def _decoded(text: Any, size: int) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        return None
    return raw if len(raw) == size else None


def _canonical(body: Mapping[str, Any]) -> bytes:
    return _CONTEXT + json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _digest(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise RunError(f"{name} is missing: there is no {path}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None


def _private_key(path: Path) -> ed25519.Ed25519PrivateKey:
    text = _read(path)
    if path.stat().st_mode & 0o077:
        raise PrivacyError(f"{path} can be read by others; keep it to yourself with: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except TypeError:
        raise PrivacyError(f"{path} has a passphrase; sign with an Ed25519 key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise PrivacyError(f"{path} holds no private key in PEM; sign with an Ed25519 key") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise PrivacyError(f"{path} holds a key of the kind {_kind(key)}; sign with an Ed25519 key")
    return key


def _public_key(path: Path) -> ed25519.Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise PrivacyError(f"{path} holds no public key in PEM; give the signer's .pub file") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise PrivacyError(f"{path} holds a key of the kind {_kind(key)}; give the signer's Ed25519 public key")
    return key


def _kind(key: object) -> str:
    """``RSAPrivateKey`` as "RSA"."""
    return re.sub(r"(Private|Public)Key$", "", type(key).__name__)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"the key {path} cannot be read: {error.strerror}") from None


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None
