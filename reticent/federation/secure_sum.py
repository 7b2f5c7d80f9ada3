"""Secure sum: a server learns the sum of the sites' vectors mod 2^64, and no vector of a site.

Bonawitz et al. 2017 ("Practical secure aggregation for privacy-preserving machine learning"), figure 4, with its
signatures against a server that lies. n sites are invited, t is the threshold. A site is a `Participant`, the server a
`Collector`. A round has five phases, each once:

1. advertise: a site makes two X25519 keys and a mask seed for this round. It signs the public keys and the seed's hash.
2. share: it splits its mask key and its seed into n shares each, t of which are enough, and seals one for each peer.
   Training may come between this phase and the next.
3. mask: it adds to its vector a stream from its seed, and for each peer a stream from the key they share: added by the
   first of the two in the order of names, subtracted by the other. All streams are AES-256 in counter mode.
4. confirm: it signs the list of the sites whose masked vector the server says it has, the survivors.
5. unmask: with t signatures of one list it gives its shares of the survivors' seeds and of the other sites' mask keys.
   The server rebuilds these streams, takes them out of the sum and is left with the sum of the survivors' values.

Every signature, mask and seal is bound to the session: a hash of ``context``, the threshold, and the invited sites with
their identities. From phase 2 on they are bound to all advertisements, too: sites which were told different ones refuse
each other. ``context`` must never come twice: run, round, attempt. It should hold the digest of the weights that the
round starts from, as each site computes it: a server that gives one site other weights than the rest can make the sum
tell that site's own values (Pasquini et al. 2022), and cannot if the sites then refuse each other. A site takes the
threshold from its own recipe, never from the server.

What is promised. The server, and every coalition below, learns the sum over the honest survivors and nothing else:

* the server keeps to the protocol and is curious, with up to t - 1 sites on its side; sites without the server learn
  nothing at all while it keeps the sum;
* the server lies as it likes, also about who survived, with up to 2t - n - 1 sites on its side (none if 2t = n + 1,
  n - 1 if t = n). Two lists of survivors need t signatures each, and honest sites sign one. So for no site do t shares
  of both the seed and the mask key come out. 2t > n is asked for everywhere: else a server alone could split the sites;
* at least t sites are in the sum, so at least t - k honest ones if k of them collude. With k = t - 1 this can be a
  single one, which no protocol can help.

A site goes away at any time; the round goes on while t are there. A site that comes back in the same attempt has lost
its keys, is out, and cannot mask again. A refusal ends the attempt at that site: begin the next with a new context.
A site must not mask the same values in two attempts, even if the first seems to have failed: two sums over different
sites differ by the values of single ones. What is masked again has new noise and is a release of its own.

What is not promised: that a site's values are true, or within a bound (a site that lies about them changes the sum);
that the sum is right if the server lies; help against a server that invents sites beyond the pinned roster, which is
whoever pinned it; that a round ends (each site and the server can stop it). What the sum itself tells about a site is
for differential privacy to bound. Who took part is no secret.
"""

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from reticent.errors import PrivacyError
from reticent.federation import shamir

Vector = npt.NDArray[np.uint64]

_PROTOCOL = b"reticent secure sum 1"
_PUBLIC, _HASH, _SIGNATURE, _TAG = 32, 32, 64, 16  # bytes
_SEALED = 2 * shamir.SHARE_BYTES + _TAG
_BLOCK = 2**14  # words masked at once: they stay in the cache while every stream is added
_ONCE = bytes(12)  # the nonce of a key that seals one message


class _Stream(NamedTuple):
    """One mask: the key of its stream, and whether the site adds or subtracts it."""

    key: bytes
    added: bool


class _Keys(NamedTuple):
    """What a site advertises: public keys to seal shares for it and to agree on masks, and its seed's hash."""

    seal: bytes
    mask: bytes
    commitment: bytes


class Participant:
    """One site in one attempt at one round. Its methods are the phases, in order, each once.

    Args:
        name: Of the site, in ``sites``.
        identity: The key whose public half the roster pins for ``name``.
        roster: Raw Ed25519 public key of every site, 32 bytes.
        context: Run, round, attempt, and the digest of the weights sent; never used twice.
        threshold: Sites without which there is no sum; more than half of ``sites``.
        sites: All invited, sorted.

    Raises:
        PrivacyError: From every method: what came is not what it must be, or the phase is out of turn.
    """

    def __init__(
        self,
        name: str,
        identity: Ed25519PrivateKey,
        roster: Mapping[str, bytes],
        *,
        context: bytes,
        threshold: int,
        sites: Sequence[str],
    ) -> None:
        self._name, self._identity = name, identity
        self._session = _Session(roster, context, threshold, sites)
        if name not in sites or roster[name] != identity.public_key().public_bytes_raw():
            raise _refusal("start", name, "is not invited, or the roster pins another identity for it")
        self._next = "advertise"
        self._seal_key, self._mask_key = (X25519PrivateKey.from_private_bytes(os.urandom(32)) for _ in range(2))
        self._seed = os.urandom(shamir.SECRET_BYTES)
        self._keys: dict[str, _Keys] = {}
        self._transcript = b""
        self._held: dict[str, tuple[bytes, bytes]] = {}  # shares of each member's seed and mask key
        self._signed: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Participant({self._name!r}, next={self._next!r})"

    def advertise(self) -> bytes:
        """Public keys and the seed's hash, signed; 160 bytes."""
        with self._phase("advertise", then="share"):
            self._keys[self._name] = keys = _Keys(
                _public(self._seal_key), _public(self._mask_key), hashlib.sha256(self._seed).digest()
            )
            return b"".join(keys) + self._identity.sign(self._session.statement(self._name, keys))

    def share(self, advertised: Mapping[str, bytes]) -> dict[str, bytes]:
        """A sealed share of both secrets for each peer of ``advertised``, which holds this site's message, too."""
        with self._phase("share", then="mask"):
            keys = self._session.keys("share", advertised)
            if keys.get(self._name) != self._keys[self._name]:
                raise _refusal("share", self._name, "its own message is not among those it was sent")
            self._keys, self._transcript = keys, self._session.transcript(keys)
            points = {name: self._session.points[name] for name in keys}
            both = [
                shamir.split(secret, self._session.threshold, points.values())
                for secret in (self._seed, self._mask_key.private_bytes_raw())
            ]
            shares = {name: (both[0][point], both[1][point]) for name, point in points.items()}
            self._held[self._name] = shares.pop(self._name)
            return {
                peer: self._sealer("share", peer, sender=self._name).encrypt(_ONCE, b"".join(pair), self._transcript)
                for peer, pair in shares.items()
            }

    def mask(self, values: Vector, received: Mapping[str, bytes]) -> Vector:
        """``values``, (length,) uint64, masked in place. ``received``: what each peer that shared sealed for this site.

        Nothing is masked unless every seal opens.
        """
        assert values.ndim == 1 and values.dtype == np.uint64, (values.shape, values.dtype)
        with self._phase("mask", then="confirm"):
            self._session.check("mask", sorted({*received, self._name}), among=self._keys)
            for peer, sealed in received.items():
                self._held[peer] = self._open(peer, sealed)
            _add(values, self._streams())
            return values

    def confirm(self, survivors: Sequence[str]) -> bytes:
        """This site's signature of the list of survivors, which it must be in; 64 bytes."""
        with self._phase("confirm", then="unmask"):
            self._session.check("confirm", survivors, among=self._held)
            if self._name not in survivors:
                raise _refusal("confirm", self._name, "masked its values, and the survivors are without it")
            self._signed = tuple(survivors)
            return self._identity.sign(self._confirmation())

    def unmask(self, survivors: Sequence[str], confirmations: Mapping[str, bytes]) -> bytes:
        """For each member, sorted by name: this site's share of the seed if it survived, else of the mask key.

        ``survivors`` must be the list that was confirmed here and, by their signatures, at a threshold of sites. 33
        bytes a member. No secret is left here afterwards.
        """
        with self._phase("unmask", then="nothing: the round is over"):
            if tuple(survivors) != self._signed:
                raise _refusal("unmask", self._name, "the survivors are not those it confirmed")
            self._session.check("unmask", sorted(confirmations), among=survivors)
            statement = self._confirmation()
            for peer, signature in confirmations.items():
                self._session.verify("unmask", peer, signature, statement)
            shares = b"".join(self._held[member][member not in survivors] for member in sorted(self._held))
            del self._held, self._seed, self._mask_key, self._seal_key
            return shares

    @contextmanager
    def _phase(self, phase: str, *, then: str) -> Iterator[None]:
        """Refuses a phase out of turn, and every phase after one that failed."""
        if phase != self._next:
            raise _refusal(phase, self._name, f"comes out of turn; next is {self._next}")
        self._next = "nothing: an earlier phase failed"
        yield
        self._next = then

    def _streams(self) -> list[_Stream]:
        """The masks of this site: its own, and one with every other member."""
        own = _Stream(_seed_key(self._seed, self._transcript, self._name), added=True)
        return [own, *(self._pair(peer) for peer in self._held if peer != self._name)]

    def _pair(self, peer: str) -> _Stream:
        shared = _agree("mask", self._mask_key, peer, self._keys[peer].mask)
        return _pair_stream(shared, self._transcript, self._name, peer)

    def _sealer(self, phase: str, peer: str, *, sender: str) -> ChaCha20Poly1305:
        """Seals what goes from ``sender`` to the other of this site and ``peer``: a key for one message."""
        shared = _agree(phase, self._seal_key, peer, self._keys[peer].seal)
        receiver = peer if sender == self._name else self._name
        return ChaCha20Poly1305(_derive(shared, b"seal", sender.encode(), receiver.encode()))

    def _open(self, peer: str, sealed: bytes) -> tuple[bytes, bytes]:
        """The shares of ``peer``'s seed and mask key."""
        try:
            pair = self._sealer("mask", peer, sender=peer).decrypt(_ONCE, sealed, self._transcript)
            shares = pair[: shamir.SHARE_BYTES], pair[shamir.SHARE_BYTES :]
            for share in shares:
                shamir.element(share)
        except (InvalidTag, PrivacyError):
            raise _refusal("mask", peer, f"what it sealed for {self._name!r} in this round does not open") from None
        return shares

    def _confirmation(self) -> bytes:
        return _confirmation(self._transcript, self._held, self._signed)


class Collector:
    """The server in one attempt at one round. Each phase takes the sites' messages one by one, then is closed.

    A message that is not what it must be is refused and leaves no trace, so that the caller can leave its site out.
    Closing a phase refuses if fewer than the threshold are in it. Memory is one vector beyond the one being added.

    Args:
        length: Of the vectors.
        roster, context, threshold, sites: As for `Participant`.

    Raises:
        PrivacyError: From every method.
    """

    def __init__(
        self, roster: Mapping[str, bytes], *, context: bytes, threshold: int, sites: Sequence[str], length: int
    ) -> None:
        self._session = _Session(roster, context, threshold, sites)
        self._advertised: dict[str, bytes] = {}
        self._shares: dict[str, dict[str, bytes]] = {}
        self._survivors: set[str] = set()
        self._confirmed: dict[str, bytes] = {}
        self._unmasked: dict[str, bytes] = {}
        self._keys: dict[str, _Keys] = {}
        self._transcript = b""
        self._total: Vector = np.zeros(length, dtype=np.uint64)
        self._open = "advertise"

    def __repr__(self) -> str:
        return f"Collector(phase={self._open!r}, survivors={len(self._survivors)})"

    def advertise(self, name: str, message: bytes) -> None:
        """Takes what a site advertises."""
        self._take("advertise", name, among=self._session.points, taken=self._advertised)
        found = self._session.key(name, message, phase="advertise")
        for public in (found.seal, found.mask):  # one that every honest site would refuse later is refused now
            _agree("advertise", X25519PrivateKey.generate(), name, public)
        self._keys[name] = found
        self._advertised[name] = message

    def advertised(self) -> dict[str, bytes]:
        """Closes the phase: what goes to each site in it."""
        self._close("advertise", self._advertised, then="share")
        self._transcript = self._session.transcript(self._keys)
        return dict(self._advertised)

    def share(self, name: str, shares: Mapping[str, bytes]) -> None:
        """Takes what a site sealed for its peers, which nobody else can open."""
        self._take("share", name, among=self._keys, taken=self._shares)
        if shares.keys() != self._keys.keys() - {name} or any(len(sealed) != _SEALED for sealed in shares.values()):
            raise _refusal("share", name, f"must send {_SEALED} bytes for each of {len(self._keys) - 1} peers")
        self._shares[name] = dict(shares)

    def shared(self) -> dict[str, dict[str, bytes]]:
        """Closes the phase: for each member, the sites that shared, what the others sealed for it."""
        self._close("share", self._shares, then="mask")
        members = sorted(self._shares)
        return {to: {of: self._shares[of][to] for of in members if of != to} for to in members}

    def mask(self, name: str, values: Vector) -> None:
        """Adds a masked vector, (length,) uint64, to the sum."""
        self._take("mask", name, among=self._shares, taken=self._survivors)
        if values.dtype != np.uint64 or values.shape != self._total.shape:
            raise _refusal(
                "mask", name, f"sent {values.dtype} of shape {values.shape}, not uint64 of {self._total.shape}"
            )
        np.add(self._total, values, out=self._total)
        self._survivors.add(name)

    def survivors(self) -> list[str]:
        """Closes the phase: the sites in the sum, to be confirmed by them."""
        self._close("mask", self._survivors, then="confirm")
        return sorted(self._survivors)

    def confirm(self, name: str, signature: bytes) -> None:
        """Takes a survivor's signature of the list of survivors."""
        self._take("confirm", name, among=self._survivors, taken=self._confirmed)
        statement = _confirmation(self._transcript, self._shares, sorted(self._survivors))
        self._session.verify("confirm", name, signature, statement)
        self._confirmed[name] = signature

    def confirmations(self) -> dict[str, bytes]:
        """Closes the phase: what goes to each site that confirmed."""
        self._close("confirm", self._confirmed, then="unmask")
        return dict(self._confirmed)

    def unmask(self, name: str, message: bytes) -> None:
        """Takes the shares that a site gives."""
        self._take("unmask", name, among=self._confirmed, taken=self._unmasked)
        if len(message) != shamir.SHARE_BYTES * len(self._shares):
            raise _refusal("unmask", name, f"must send {shamir.SHARE_BYTES} bytes for each of {len(self._shares)}")
        self._unmasked[name] = message

    def finish(self) -> Vector:
        """Closes the round: the sum of the survivors' values mod 2^64, (length,) uint64."""
        self._close("unmask", self._unmasked, then="nothing: the round is over")
        secrets = self._secrets()
        streams = []
        for member, secret in secrets.items():
            if member in self._survivors:
                streams.append(_Stream(_seed_key(secret, self._transcript, member), added=False))
                continue
            key = _private(secret)
            for peer in self._survivors:  # what the member would have added is the opposite of what the peer did
                shared = _agree("unmask", key, peer, self._keys[peer].mask)
                streams.append(_pair_stream(shared, self._transcript, member, peer))
        _add(self._total, streams)
        return self._total

    def _secrets(self) -> dict[str, bytes]:
        """The seed of each survivor and the mask key of each other member, checked against what it advertised."""
        holders = sorted(self._unmasked)[: self._session.threshold]
        points = {name: self._session.points[name] for name in holders}
        factors = shamir.weights(points.values())
        secrets = {}
        for place, member in enumerate(sorted(self._shares)):
            at = slice(place * shamir.SHARE_BYTES, (place + 1) * shamir.SHARE_BYTES)
            try:
                secret = shamir.recover({point: self._unmasked[name][at] for name, point in points.items()}, factors)
            except PrivacyError as error:
                raise _refusal("unmask", member, str(error)) from None
            survived, keys = member in self._survivors, self._keys[member]
            shown = hashlib.sha256(secret).digest() if survived else _public(_private(secret))
            if shown != (keys.commitment if survived else keys.mask):
                raise _refusal("unmask", member, "the shares of its secret do not fit what it advertised")
            secrets[member] = secret
        return secrets

    def _take(self, phase: str, name: str, *, among: Collection[str], taken: Collection[str]) -> None:
        """Refuses a message of the wrong phase or site, or a second one."""
        if phase != self._open:
            raise _refusal(phase, name, f"comes out of turn; open is {self._open}")
        if name not in among:
            raise _refusal(phase, name, "is not one of the sites of this phase")
        if name in taken:
            raise _refusal(phase, name, "has sent its message before")

    def _close(self, phase: str, names: Collection[str], *, then: str) -> None:
        if phase != self._open:
            raise PrivacyError(f"secure sum: {phase} cannot be closed; open is {self._open}")
        self._session.check(phase, sorted(names), among=self._session.points)
        self._open = then


class _Session:
    """What all must agree on before the first phase, and the checks that both ends make."""

    def __init__(self, roster: Mapping[str, bytes], context: bytes, threshold: int, sites: Sequence[str]) -> None:
        unknown = [name for name in sites if name not in roster]
        if unknown:
            raise PrivacyError(f"secure sum: site {unknown[0]!r} is invited and not in the roster: add its identity")
        if any(a >= b for a, b in pairwise(sites)):
            raise PrivacyError("secure sum: the invited sites must be sorted and different")
        self._identities = {name: roster[name] for name in sites}
        if len(set(self._identities.values())) < len(sites):
            raise PrivacyError("secure sum: two invited sites have the same identity in the roster")
        if not len(sites) / 2 < threshold <= len(sites) or threshold < 2:
            raise PrivacyError(
                f"secure sum: threshold must be more than half of {len(sites)} sites, at most all and at least 2, "
                f"got {threshold}: else a server could have two groups open each other's masks"
            )
        self.threshold = threshold
        self.points = {name: place for place, name in enumerate(sites, start=1)}  # where each one's shares lie
        identities = (_pack(name.encode(), key) for name, key in self._identities.items())
        self.digest = _hash(b"session", context, threshold.to_bytes(8), *identities)

    def statement(self, name: str, keys: _Keys) -> bytes:
        """What a site signs to advertise."""
        return _hash(b"advertise", self.digest, name.encode(), *keys)

    def key(self, name: str, message: bytes, *, phase: str) -> _Keys:
        """The keys of one advertisement, if its site signed it for this session."""
        if len(message) != 2 * _PUBLIC + _HASH + _SIGNATURE:
            raise _refusal(phase, name, f"advertises {len(message)} bytes, not {2 * _PUBLIC + _HASH + _SIGNATURE}")
        keys = _Keys(message[:32], message[32:64], message[64:96])
        self.verify(phase, name, message[96:], self.statement(name, keys))
        return keys

    def keys(self, phase: str, advertised: Mapping[str, bytes]) -> dict[str, _Keys]:
        """The keys of all, by sorted name. One that copies another's gains nothing: all is bound to names, too."""
        self.check(phase, sorted(advertised), among=self.points)
        return {name: self.key(name, advertised[name], phase=phase) for name in sorted(advertised)}

    def transcript(self, keys: Mapping[str, _Keys]) -> bytes:
        """What all advertised, as one hash."""
        return _hash(b"transcript", self.digest, *(_pack(name.encode(), *keys[name]) for name in sorted(keys)))

    def check(self, phase: str, names: Sequence[str], *, among: Collection[str]) -> None:
        """Refuses names that are not of ``among``, come twice or unsorted, or are fewer than the threshold."""
        for name in names:
            if name not in among:
                raise _refusal(phase, name, "is not one of the sites that were there before")
        if list(names) != sorted(set(names)):
            raise PrivacyError(f"secure sum, {phase}: the sites must be sorted and different")
        if len(names) < self.threshold:
            raise PrivacyError(
                f"secure sum, {phase}: {len(names)} sites are left, the threshold is {self.threshold}: "
                f"begin again with a new attempt"
            )

    def verify(self, phase: str, name: str, signature: bytes, statement: bytes) -> None:
        """Refuses a signature that ``name`` did not make of ``statement``."""
        try:
            Ed25519PublicKey.from_public_bytes(self._identities[name]).verify(signature, statement)
        except (InvalidSignature, ValueError):
            raise _refusal(phase, name, "its signature is not of its identity, this round and this list") from None


def _refusal(phase: str, name: str, why: str) -> PrivacyError:
    return PrivacyError(f"secure sum, {phase}, site {name!r}: {why}")


def _pack(*fields: bytes) -> bytes:
    """One string of bytes for a list of them, different for different lists."""
    return b"".join(len(field).to_bytes(8) + field for field in fields)


def _hash(*fields: bytes) -> bytes:
    return hashlib.sha256(_pack(_PROTOCOL, *fields)).digest()


def _derive(secret: bytes, *purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose (RFC 5869)."""
    return HKDF(SHA256(), 32, salt=None, info=_pack(_PROTOCOL, *purpose)).derive(secret)


def _private(secret: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret)


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _agree(phase: str, key: X25519PrivateKey, peer: str, public: bytes) -> bytes:
    """The secret that both ends of two keys have (RFC 7748)."""
    try:
        return key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of low order: the secret would be known to all
        raise _refusal(phase, peer, "its public key is not valid") from None


def _seed_key(seed: bytes, transcript: bytes, name: str) -> bytes:
    return _derive(seed, b"own mask", transcript, name.encode())


def _pair_stream(shared: bytes, transcript: bytes, name: str, peer: str) -> _Stream:
    """The mask of ``name`` with ``peer``: the first of the two adds what the other subtracts."""
    first, second = sorted((name, peer))
    return _Stream(_derive(shared, b"pair mask", transcript, first.encode(), second.encode()), added=name == first)


def _confirmation(transcript: bytes, members: Collection[str], survivors: Sequence[str]) -> bytes:
    """What a site signs to confirm: also whom it masked for, so that sites told different members refuse each other."""
    of_members, of_survivors = ([name.encode() for name in sorted(names)] for names in (members, survivors))
    return _hash(b"confirm", transcript, _pack(*of_members), _pack(*of_survivors))


def _add(values: Vector, streams: Sequence[_Stream]) -> None:
    """Adds all streams to ``values``, (length,), in place, a block at a time."""
    zeros, buffer = bytes(8 * _BLOCK), bytearray(8 * _BLOCK + 15)  # room that the cipher asks for
    words = np.frombuffer(buffer, dtype="<u8", count=_BLOCK)
    # Every key is for one stream, so the counter begins at 0.
    ciphers = [Cipher(AES256(stream.key), CTR(bytes(16))).encryptor() for stream in streams]
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        for cipher, stream in zip(ciphers, streams, strict=True):
            cipher.update_into(memoryview(zeros)[: 8 * len(part)], buffer)
            operation = np.add if stream.added else np.subtract
            operation(part, words[: len(part)], out=part)
