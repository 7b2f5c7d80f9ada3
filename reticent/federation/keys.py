"""Who is who between machines: keys of the sites, and the certificate of the coordinator.

A site has two keys. Its *node key* (EC P-384, as Flower asks) opens the coordinator's door: a SuperLink answers none
that is not registered. Its *identity key* (Ed25519) signs what it says to other sites, so that not even the coordinator
can speak in its name. The coordinator gathers the public halves in a *roster*, one *card* a site.

Private files are readable by their owner alone, and nothing here is ever written over.
"""

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from reticent.errors import FederationError

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_CLOCK_SKEW = timedelta(minutes=5)  # between the machine that signs and the one that checks


class Member(NamedTuple):
    """The public keys of one site."""

    node: str  # EC P-384, one line as in an OpenSSH public key file, without a comment
    identity: bytes  # Ed25519, the 32 raw bytes


class Certificate(NamedTuple):
    """Where a server's certificate, its private key and the authority that signed it lie."""

    certificate: Path
    key: Path
    authority: Path


def make_site_keys(folder: Path) -> None:
    """Write ``node-key`` (OpenSSH), ``node-key.pub`` and ``identity-key`` (PEM) to ``folder``.

    Raises:
        FederationError: one of them is there already.
    """
    node = ec.generate_private_key(ec.SECP384R1())
    identity = ed25519.Ed25519PrivateKey.generate()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _must_not_exist(folder / name for name in ("node-key", "node-key.pub", "identity-key"))
    _write(folder / "node-key", _private(node, serialization.PrivateFormat.OpenSSH))
    _write(folder / "node-key.pub", _node_line(node.public_key()).encode() + b"\n")
    _write(folder / "identity-key", _private(identity, serialization.PrivateFormat.PKCS8))


def read_identity(path: Path) -> ed25519.Ed25519PrivateKey:
    """The identity key in ``path``.

    Raises:
        FederationError: the file cannot be read, or holds no Ed25519 key.
    """
    try:
        key = serialization.load_pem_private_key(_read(path, "identity key"), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise FederationError(f"{path} holds no Ed25519 private key in PEM")
    return key


def card(name: str, folder: Path) -> str:
    """What a site sends to the coordinator once, as JSON on one line: its name and its public keys.

    Raises:
        FederationError: the name is not letters, digits and hyphens, or a key is missing.
    """
    check_name(name)
    line = _check_node(_read(folder / "node-key.pub", "public node key").decode("ascii", "replace"), name)
    identity = read_identity(folder / "identity-key").public_key().public_bytes_raw()
    return json.dumps({"name": name, "node": line, "identity": identity.hex()})


def write_roster(path: Path, cards: Iterable[str]) -> dict[str, Member]:
    """The roster of these cards, written to ``path`` and returned, by name.

    Raises:
        FederationError: a card is malformed, two sites share a name or a key, or the file is there already.
    """
    members = _members(_parse(text, "a site's card") for text in cards)
    _must_not_exist([path])
    text = json.dumps([_entry(name, member) for name, member in members.items()], indent=1)
    _write(path, text.encode() + b"\n")
    return members


def read_roster(path: Path) -> dict[str, Member]:
    """The public keys of all sites by name, sorted.

    Raises:
        FederationError: the file cannot be read or is malformed, or two sites share a name or a key.
    """
    entries = _parse(_read(path, "roster").decode("utf-8", "replace"), str(path))
    if not isinstance(entries, list):
        raise FederationError(f"{path} is no roster: expected a list of sites")
    return _members(entries)


def make_authority(folder: Path, *, days: int = 3650) -> None:
    """Write a certificate authority of its own for the federation: ``ca.crt``, for all, and ``ca.key``, for none.

    Raises:
        FederationError: one of them is there already.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reticent federation")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = (
        _builder(name, key.public_key(), name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    folder.mkdir(parents=True, exist_ok=True)
    _must_not_exist([folder / "ca.crt", folder / "ca.key"])
    _write(folder / "ca.key", _private(key, serialization.PrivateFormat.PKCS8))
    _write(folder / "ca.crt", _pem(builder.sign(key, hashes.SHA384())))


def make_certificate(folder: Path, hosts: Sequence[str], *, days: int = 365) -> Certificate:
    """Write ``server.crt`` and ``server.key``, good for ``hosts`` (DNS names and IP addresses), signed by ``ca.key``.

    ``days`` may be negative: a certificate that has expired, for tests.

    Raises:
        FederationError: there is no authority in ``folder``, no host, or one of the files is there already.
    """
    if not hosts:
        raise FederationError("a certificate needs at least one host name or IP address")
    authority = _certificate(folder / "ca.crt")
    ca_key = serialization.load_pem_private_key(_read(folder / "ca.key", "authority's key"), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise FederationError(f"{folder / 'ca.key'} holds no elliptic-curve private key")
    made = Certificate(folder / "server.crt", folder / "server.key", folder / "ca.crt")
    _must_not_exist(made[:2])
    key = ec.generate_private_key(ec.SECP384R1())
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reticent coordinator")])
    builder = (
        _builder(name, key.public_key(), authority.subject, ca_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
    )
    _write(made.key, _private(key, serialization.PrivateFormat.PKCS8))
    _write(made.certificate, _pem(builder.sign(ca_key, hashes.SHA384())))
    return made


def check_certificate(made: Certificate, hosts: Sequence[str], now: datetime) -> None:
    """Refuse what sites would refuse later, one by one and with less to say.

    Raises:
        FederationError: a file cannot be read; the certificate or its authority has expired or is not valid yet; the
            authority did not sign it; the private key is another's; or it does not name one of ``hosts``.
    """
    certificate, authority = _certificate(made.certificate), _certificate(made.authority)
    for path, each in ((made.authority, authority), (made.certificate, certificate)):
        if now < each.not_valid_before_utc:
            raise FederationError(f"{path} is not valid before {each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
        if now > each.not_valid_after_utc:
            raise FederationError(f"{path} expired on {each.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; make a new one")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise FederationError(f"{made.certificate} was not signed by the authority {made.authority}") from None
    _check_own_key(made, certificate)
    named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for host in hosts:
        if _general_name(host) not in named:
            known = ", ".join(str(name.value) for name in named)
            raise FederationError(f"{made.certificate} is for {known}, not for {host}; make one that names it")


def _check_own_key(made: Certificate, certificate: x509.Certificate) -> None:
    try:
        key = serialization.load_pem_private_key(_read(made.key, "server's key"), password=None)
    except (ValueError, TypeError):
        raise FederationError(f"{made.key} holds no private key in PEM") from None
    if key.public_key() != certificate.public_key():
        raise FederationError(f"{made.key} is not the private key of {made.certificate}")


def _builder(
    name: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - _CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(start, start + timedelta(days=2 * days)))
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path, "certificate"))
    except ValueError:
        raise FederationError(f"{path} holds no certificate in PEM") from None


def _private(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _node_line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _check_node(line: str, name: str) -> str:
    """The key without its comment, which would make two equal keys look different."""
    try:
        key = serialization.load_ssh_public_key(line.strip().encode())
    except Exception:  # a malformed key raises several kinds
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise FederationError(f"the node key of site {name!r} is no EC P-384 public key in the OpenSSH format")
    return _node_line(key)


def _check_identity(text: str, name: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
        ed25519.Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise FederationError(f"the identity key of site {name!r} is no Ed25519 public key in hex") from None
    return raw


def check_name(name: str) -> None:
    """Refuses what cannot be a site's name.

    Raises:
        FederationError: it is not 1 to 63 of a-z, 0-9 and inner hyphens.
    """
    if not _NAME.fullmatch(name):
        raise FederationError(f"a site's name is 1 to 63 of a-z, 0-9 and -, not {name!r}")


def _members(entries: Iterable[Any]) -> dict[str, Member]:
    members: dict[str, Member] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or set(entry) != {"name", "node", "identity"}:
            raise FederationError("a site's card needs exactly the fields name, node and identity")
        name, node, identity = (entry[field] for field in ("name", "node", "identity"))
        if not all(isinstance(field, str) for field in (name, node, identity)):
            raise FederationError("the fields of a site's card are strings")
        check_name(name)
        member = Member(_check_node(node, name), _check_identity(identity, name))
        for other, known in members.items():
            if name == other or member.node == known.node or member.identity == known.identity:
                raise FederationError(f"sites {other!r} and {name!r} share a name or a key; each needs its own")
        members[name] = member
    return dict(sorted(members.items()))


def _entry(name: str, member: Member) -> dict[str, str]:
    return {"name": name, "node": member.node, "identity": member.identity.hex()}


def _parse(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise FederationError(f"{what} is not JSON") from None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FederationError(f"cannot read the {what} {path}: {error.strerror}") from None


def _must_not_exist(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise FederationError(f"{path} is there already and is never written over; move it away first")


def _write(path: Path, content: bytes) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise FederationError(f"{path} is there already and is never written over; move it away first") from None
    except OSError as error:
        raise FederationError(f"cannot write {path}: {error.strerror}") from None
