"""Signatures: what was altered, taken away, added or signed by another is found and named."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from reticent.errors import PrivacyError, RunError
from reticent.reports.signature import digests, new_key, sign, verify

_NAMES = ("report.html", "report.json", "recipe.yaml", "ledger.jsonl")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for name in _NAMES:
        (tmp_path / name).write_text(f"content of {name}")
    return {name: tmp_path / name for name in _NAMES}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "officer.pem"
    new_key(path)
    return path


def _public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def _changed(signed: bytes, /, **fields: Any) -> bytes:
    return json.dumps({**json.loads(signed), **fields}).encode()


def test_what_was_signed_is_verified(files: dict[str, Path], key: Path) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    signed = verify(sign(key, digests(files), time=when), digests(files), _public(key))
    assert (signed.time, signed.files, signed.trusted) == (when, tuple(sorted(_NAMES)), True)


def test_without_a_key_of_its_own_the_reader_trusts_nobody(files: dict[str, Path], key: Path) -> None:
    assert not verify(sign(key, digests(files)), digests(files)).trusted


@pytest.mark.parametrize("name", _NAMES)
def test_each_altered_file_is_named(files: dict[str, Path], key: Path, name: str) -> None:
    signature = sign(key, digests(files))
    files[name].write_text("another content")
    with pytest.raises(PrivacyError, match=f"{name} was altered"):
        verify(signature, digests(files), _public(key))


def test_a_missing_file_is_named(files: dict[str, Path], key: Path) -> None:
    signature = sign(key, digests(files))
    files["report.json"].unlink()
    with pytest.raises(RunError, match=r"report\.json is missing"):
        digests(files)
    del files["report.json"]
    with pytest.raises(RunError, match=r"report\.json was signed, but missing"):
        verify(signature, digests(files))


def test_an_added_file_is_named(files: dict[str, Path], key: Path, tmp_path: Path) -> None:
    signature = sign(key, digests(files))
    (tmp_path / "more").write_text("more")
    with pytest.raises(RunError, match="more was not signed"):
        verify(signature, digests({**files, "more": tmp_path / "more"}))


def test_another_key_is_told_from_the_trusted_one(files: dict[str, Path], key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with pytest.raises(PrivacyError, match="signed by another key"):
        verify(sign(key, digests(files)), digests(files), new_key(other))


def test_an_exchanged_public_key_is_found(files: dict[str, Path], key: Path) -> None:
    raw = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    exchanged = _changed(sign(key, digests(files)), public_key=base64.b64encode(raw).decode())
    with pytest.raises(PrivacyError, match="does not hold"):
        verify(exchanged, digests(files))


def test_digests_and_time_cannot_be_exchanged(files: dict[str, Path], key: Path) -> None:
    signature = sign(key, digests(files))
    files["report.json"].write_text("another content")
    for fields in ({"digests": digests(files)}, {"time": "2020-01-01T00:00:00+00:00"}):
        with pytest.raises(PrivacyError, match="does not hold"):
            verify(_changed(signature, **fields), digests(files))


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2},
        {"algorithm": "none"},
        {"digests": {}},
        {"digests": {"report.json": "short"}},
        {"digests": ["report.json"]},
        {"time": "yesterday"},
        {"time": "2020-01-01T00:00:00"},
        {"time": 3},
        {"public_key": "AAAA"},
        {"signature": "not base64"},
        {"signature": None},
        {"more": 1},
    ],
)
def test_a_malformed_signature_is_refused(files: dict[str, Path], key: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="malformed"):
        verify(_changed(sign(key, digests(files)), **fields), digests(files))


@pytest.mark.parametrize("signature", [b"", b"\xff\xfe\x00", b"[]", b"null", b"{}", b"[" * 100_000])
def test_what_is_no_signature_is_refused(files: dict[str, Path], signature: bytes) -> None:
    with pytest.raises(RunError, match="malformed"):
        verify(signature, digests(files))


def test_nothing_is_not_signed(key: Path) -> None:
    with pytest.raises(RunError, match="no file to sign"):
        sign(key, {})


def test_a_new_key_is_for_its_owner_alone_and_never_written_over(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    with pytest.raises(RunError, match="already"):
        new_key(key)
    key.unlink()
    with pytest.raises(RunError, match=r"officer\.pem\.pub is there already"):
        new_key(key)
    assert before.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_key_that_others_can_read_does_not_sign(files: dict[str, Path], key: Path) -> None:
    key.chmod(0o644)
    with pytest.raises(PrivacyError, match="chmod 600"):
        sign(key, digests(files))


def _pem(path: Path, key: Any, encryption: Any = None) -> Path:
    form = serialization.PrivateFormat.PKCS8
    encryption = encryption or serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    path.chmod(0o600)
    return path


def test_keys_of_other_kinds_are_refused_by_name(files: dict[str, Path], tmp_path: Path, key: Path) -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(PrivacyError, match="of the kind EC"):
        sign(_pem(tmp_path / "ec", elliptic), digests(files))
    public = elliptic.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "ec.pub").write_bytes(public)
    with pytest.raises(PrivacyError, match="of the kind EC"):
        verify(sign(key, digests(files)), digests(files), tmp_path / "ec.pub")


def test_keys_with_a_passphrase_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    locked = serialization.BestAvailableEncryption(b"words")
    path = _pem(tmp_path / "locked", ed25519.Ed25519PrivateKey.generate(), locked)
    with pytest.raises(PrivacyError, match="passphrase"):
        sign(path, digests(files))


def test_what_is_no_key_is_refused(files: dict[str, Path], tmp_path: Path, key: Path) -> None:
    (tmp_path / "no").write_text("words")
    (tmp_path / "no").chmod(0o600)
    with pytest.raises(PrivacyError, match="holds no private key"):
        sign(tmp_path / "no", digests(files))
    with pytest.raises(PrivacyError, match="holds no public key"):
        verify(sign(key, digests(files)), digests(files), tmp_path / "no")
    with pytest.raises(RunError, match="cannot be read"):
        sign(tmp_path / "nowhere", digests(files))
