"""The sum comes out and nothing else does; whoever lies is refused."""

import hashlib
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy import stats

from reticent.errors import PrivacyError
from reticent.federation import secure_sum, shamir
from reticent.federation.secure_sum import Collector, Participant

SURE = 1e-6  # a true law fails each test below once in a million runs
LENGTH = 50


def identity(name):
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(name):
    return identity(name).public_key().public_bytes_raw()


class Round:
    """All ends of one round, phase by phase, and every byte the server sees."""

    def __init__(self, count, threshold=None, *, context=b"run round 1", length=LENGTH, kind=Participant, prefix="s"):
        self.names = [f"{prefix}{place:03d}" for place in range(count)]
        self.roster = {name: public(name) for name in self.names}
        self.settings = {"context": context, "threshold": threshold or count // 2 + 1, "sites": self.names}
        self.collector = Collector(self.roster, length=length, **self.settings)
        self.sites = {name: kind(name, identity(name), self.roster, **self.settings) for name in self.names}
        self.values = {
            name: np.random.default_rng(place).integers(0, 2**64, length, dtype=np.uint64)
            for place, name in enumerate(self.names)
        }
        self.masked, self.opened = {}, {}

    def advertise(self, names=None):
        for name in names or self.names:
            self.collector.advertise(name, self.sites[name].advertise())
        self.advertised = self.collector.advertised()
        return self

    def share(self, names=None):
        self.sealed = {name: self.sites[name].share(self.advertised) for name in names or self.advertised}
        for name, sealed in self.sealed.items():
            self.collector.share(name, sealed)
        self.received = self.collector.shared()
        return self

    def masked_by(self, name):
        return self.sites[name].mask(self.values[name].copy(), self.received[name])

    def mask(self, names=None):
        for name in names or self.received:
            self.masked[name] = self.masked_by(name)
            self.collector.mask(name, self.masked[name])
        self.survivors = self.collector.survivors()
        return self

    def confirm(self, names=None):
        self.signatures = {name: self.sites[name].confirm(self.survivors) for name in names or self.survivors}
        for name, signature in self.signatures.items():
            self.collector.confirm(name, signature)
        self.confirmations = self.collector.confirmations()
        return self

    def unmask(self, names=None):
        for name in names or self.confirmations:
            self.opened[name] = self.sites[name].unmask(self.survivors, self.confirmations)
            self.collector.unmask(name, self.opened[name])
        return self

    def finish(self):
        return self.collector.finish()

    def sum_of(self, names):
        """The slow oracle: integers of Python."""
        columns = zip(*(self.values[name].tolist() for name in names), strict=True)
        return [sum(column) % 2**64 for column in columns]


def strip_pairs(round_, late, holders):
    """What a server can do with a vector that comes after its site was called dropped: takes out the pair masks."""
    members = sorted(round_.received)
    points = {name: round_.names.index(name) + 1 for name in holders}
    at = slice(33 * members.index(late), 33 * members.index(late) + 33)
    shares = {points[name]: round_.opened[name][at] for name in holders}
    key = shamir.recover(shares, shamir.weights(shares))
    vector, transcript = round_.masked_by(late), round_.collector._transcript
    for peer in members:
        if peer != late:
            shared = secure_sum._agree("unmask", secure_sum._private(key), peer, round_.advertised[peer][32:64])
            stream = secure_sum._pair_stream(shared, transcript, late, peer)
            secure_sum._add(vector, [stream._replace(added=not stream.added)])
    return vector


class WithoutOwnMask(Participant):
    """The mutant: only pair masks."""

    def _streams(self):
        return super()._streams()[1:]


# The sum.


@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_the_sum_is_exact(count):
    round_ = Round(count).advertise().share().mask().confirm().unmask()
    assert round_.finish().tolist() == round_.sum_of(round_.names)


@pytest.mark.parametrize("threshold", [3, 4, 5])
def test_every_set_of_sites_may_drop_before_and_after_masking(threshold):
    """Of five: every set of survivors and every set of those that answer to the end, down to the threshold."""
    names = [f"s{place:03d}" for place in range(5)]
    for size in range(threshold, 6):
        for survivors in combinations(names, size):
            for end in combinations(survivors, threshold):
                round_ = Round(5, threshold, length=3).advertise().share().mask(survivors).confirm().unmask(end)
                assert round_.finish().tolist() == round_.sum_of(survivors)


@pytest.mark.parametrize("count", [10, 100])
def test_sites_drop_in_every_phase(count):
    round_, few = Round(count), count // 10
    names = round_.names
    round_.advertise(names[few:]).share(names[2 * few :]).mask(names[3 * few :])
    round_.confirm(names[3 * few : -few]).unmask(names[3 * few : -few])
    assert round_.finish().tolist() == round_.sum_of(names[3 * few :])


def test_the_order_of_arrival_does_not_matter():
    round_ = Round(5)
    back = round_.names[::-1]
    round_.advertise(back).share(back).mask(back[1:]).confirm(back[2:]).unmask(back[2:])
    assert round_.finish().tolist() == round_.sum_of(back[1:])


@pytest.mark.parametrize("length", [0, 1, 2**14 - 1, 2**14, 2 * 2**14 + 3])
def test_vectors_of_every_length_are_summed(length):
    round_ = Round(3, length=length).advertise().share().mask(["s000", "s002"]).confirm().unmask()
    assert round_.finish().tolist() == round_.sum_of(["s000", "s002"])


def test_a_vector_is_masked_in_place():
    round_ = Round(3).advertise().share()
    values = round_.values["s000"]
    assert round_.sites["s000"].mask(values, round_.received["s000"]) is values


def test_a_stream_is_aes_256_in_counter_mode():
    """NIST's AESAVS: the all-zero key and counter block give dc95c078a2408989ad48a21492842087."""
    values = np.zeros(2, dtype=np.uint64)
    secure_sum._add(values, [secure_sum._Stream(bytes(32), added=True)])
    assert values.astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


# Fewer than the threshold.


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "confirm", "unmask"])
def test_the_server_refuses_a_phase_with_fewer_than_the_threshold(phase):
    round_, few = Round(5), ["s000", "s001"]
    with pytest.raises(PrivacyError, match=f"{phase}: 2 sites are left, the threshold is 3"):
        for step in ("advertise", "share", "mask", "confirm", "unmask"):
            getattr(round_, step)(few if step == phase else None)
        round_.finish()


def test_a_site_refuses_to_share_with_fewer_than_the_threshold():
    round_ = Round(5).advertise()
    with pytest.raises(PrivacyError, match="share: 2 sites"):
        round_.sites["s000"].share({name: round_.advertised[name] for name in ("s000", "s004")})


def test_a_site_refuses_to_mask_among_fewer_than_the_threshold():
    round_ = Round(5).advertise().share()
    values = round_.values["s000"].copy()
    with pytest.raises(PrivacyError, match="mask: 2 sites"):
        round_.sites["s000"].mask(values, {"s001": round_.received["s000"]["s001"]})
    assert (values == round_.values["s000"]).all()


def test_a_site_refuses_to_confirm_fewer_than_the_threshold():
    round_ = Round(5).advertise().share().mask()
    with pytest.raises(PrivacyError, match="confirm: 2 sites"):
        round_.sites["s000"].confirm(["s000", "s001"])


def test_a_site_opens_nothing_with_fewer_signatures_than_the_threshold():
    round_ = Round(5).advertise().share().mask().confirm()
    with pytest.raises(PrivacyError, match="unmask: 2 sites"):
        round_.sites["s000"].unmask(round_.survivors, dict(list(round_.confirmations.items())[:2]))


@pytest.mark.parametrize(("count", "threshold"), [(4, 2), (10, 5), (3, 4), (3, 0), (3, 1), (1, 1)])
def test_a_threshold_of_half_the_sites_or_less_or_above_all_is_refused(count, threshold):
    names = [f"s{place}" for place in range(count)]
    roster = {name: public(name) for name in names}
    with pytest.raises(PrivacyError, match="more than half"):
        Collector(roster, context=b"", threshold=threshold, sites=names, length=1)
    with pytest.raises(PrivacyError, match="more than half"):
        Participant("s0", identity("s0"), roster, context=b"", threshold=threshold, sites=names)


# What the server sees.


def test_a_masked_vector_is_uniform():
    """Byte by byte, with equal values at every site: zeros."""
    round_ = Round(3, length=100_000)
    round_.values = {name: np.zeros(100_000, dtype=np.uint64) for name in round_.names}
    round_.advertise().share().mask()
    for vector in round_.masked.values():
        assert stats.chisquare(np.bincount(vector.view(np.uint8), minlength=256)).pvalue > SURE


def test_vectors_without_own_masks_are_uniform_with_the_sum_as_their_one_law():
    """The server learns the survivors' own masks. Without these, n - 1 of n vectors are random and independent."""
    round_ = Round(3, length=100_000, kind=WithoutOwnMask)
    round_.values = {name: np.full(100_000, 7, dtype=np.uint64) for name in round_.names}
    a, b, c = round_.advertise().share().mask().masked.values()
    for vector in (a, b, c, a - b, a + b):
        assert stats.chisquare(np.bincount(vector.view(np.uint8), minlength=256)).pvalue > SURE
    assert set((a + b + c).tolist()) == {21}


def test_all_that_the_server_sees_depends_on_values_by_masked_vectors_only(monkeypatch):
    """With the same randomness, other values move the masked vectors by their difference and nothing else."""

    def transcript(shift):
        generator = np.random.default_rng(5)
        monkeypatch.setattr("os.urandom", generator.bytes)
        round_ = Round(4)
        round_.values["s001"] += np.uint64(shift)
        round_.values["s002"] -= np.uint64(shift)
        round_.advertise().share().mask(["s001", "s002", "s003"]).confirm().unmask()
        seen = [round_.advertised, round_.sealed, round_.signatures, round_.opened, round_.finish().tolist()]
        return seen, round_.masked

    (seen, vectors), (other_seen, other_vectors) = transcript(0), transcript(99)
    assert seen == other_seen  # the sum, too
    moved = {name: set((other_vectors[name] - vectors[name]).tolist()) for name in vectors}
    assert moved == {"s001": {99}, "s002": {2**64 - 99}, "s003": {0}}


def test_no_key_seed_or_mask_repeats():
    rounds = [Round(3).advertise().share().mask() for _ in range(2)]
    messages = [message for round_ in rounds for message in round_.advertised.values()]
    fields = {message[at : at + 32] for message in messages for at in (0, 32, 64)}
    words = {word for round_ in rounds for vector in round_.masked.values() for word in vector.tolist()}
    assert len(fields) == 2 * 3 * 3 and len(words) == 2 * 3 * LENGTH


def test_a_stream_is_of_its_secret_round_and_sites():
    arguments = [(b"s", b"t", "a", "b"), (b"x", b"t", "a", "b"), (b"s", b"x", "a", "b"), (b"s", b"t", "a", "x")]
    keys = [secure_sum._pair_stream(*each).key for each in arguments]
    keys += [secure_sum._seed_key(*each) for each in ((b"s", b"t", "a"), (b"s", b"x", "a"), (b"s", b"t", "x"))]
    assert len(set(keys)) == 7


def test_two_sites_have_one_stream_that_one_adds_and_the_other_subtracts():
    first, second = (secure_sum._pair_stream(b"s", b"t", *names) for names in (("a", "b"), ("b", "a")))
    assert first.key == second.key and (first.added, second.added) == (True, False)


def test_a_late_vector_of_a_dropped_site_stays_closed():
    """Its mask key is open to the server by then; its own mask still covers it."""
    round_ = Round(3).advertise().share().mask(["s000", "s001"]).confirm().unmask()
    vector = strip_pairs(round_, "s002", ["s000", "s001"])
    assert not set(vector.tolist()) & set(round_.values["s002"].tolist())


def test_the_mutant_without_an_own_mask_is_opened_by_its_late_vector():
    round_ = Round(3, kind=WithoutOwnMask).advertise().share().mask(["s000", "s001"]).confirm().unmask()
    assert (strip_pairs(round_, "s002", ["s000", "s001"]) == round_.values["s002"]).all()


def test_fewer_than_threshold_shares_give_no_key():
    round_ = Round(5).advertise().share().mask(["s000", "s001", "s002", "s003"]).confirm().unmask()
    shares = {place + 1: round_.opened[f"s{place:03d}"][-33:] for place in range(2)}
    guess = sum(int.from_bytes(share) * shamir.weights(shares)[point] for point, share in shares.items())
    key = (guess % shamir.PRIME % 2**256).to_bytes(32)
    assert secure_sum._public(secure_sum._private(key)) != round_.advertised["s004"][32:64]


def test_one_kind_of_share_is_opened_for_each_member():
    """The seed of survivors, the mask key of the others; t shares give what that site advertised."""
    round_ = Round(3).advertise().share().mask(["s000", "s002"]).confirm().unmask()
    factors = shamir.weights([1, 3])
    for place, name in enumerate(round_.names):
        at = slice(33 * place, 33 * place + 33)
        shares = {1: round_.opened["s000"][at], 3: round_.opened["s002"][at]}
        secret = shamir.recover(shares, factors)
        is_seed = hashlib.sha256(secret).digest() == round_.advertised[name][64:96]
        is_key = secure_sum._public(secure_sum._private(secret)) == round_.advertised[name][32:64]
        assert (is_seed, is_key) == ((True, False) if name != "s001" else (False, True))


def test_no_secret_shows():
    round_ = Round(3).advertise().share().mask()
    for thing in (*round_.sites.values(), round_.collector):
        assert len(repr(thing)) < 60
    assert repr(round_.sites["s000"]) == "Participant('s000', next='confirm')"


def test_secrets_are_gone_after_the_round():
    round_ = Round(3).advertise().share().mask().confirm().unmask()
    for site in round_.sites.values():
        assert not {"_held", "_seed", "_mask_key", "_seal_key"} & vars(site).keys()


# A server that lies.


def test_a_site_masks_once():
    round_ = Round(3).advertise().share()
    round_.masked_by("s000")
    values = np.zeros(LENGTH, dtype=np.uint64)
    with pytest.raises(PrivacyError, match="mask, site 's000': comes out of turn; next is confirm"):
        round_.sites["s000"].mask(values, round_.received["s000"])
    assert not values.any()


def test_a_site_that_comes_back_cannot_mask_in_the_same_attempt():
    round_ = Round(3).advertise().share()
    back = Participant("s000", identity("s000"), round_.roster, **round_.settings)
    back.advertise()
    with pytest.raises(PrivacyError, match="its own message"):
        back.share(round_.advertised)
    with pytest.raises(PrivacyError, match="an earlier phase failed"):
        back.mask(round_.values["s000"], round_.received["s000"])


def test_what_a_site_that_came_back_shares_is_refused():
    """Its new keys are in no list that the others were told: it cannot be two sites to them, nor sign two lists."""
    round_ = Round(3).advertise().share()
    back = Participant("s000", identity("s000"), round_.roster, **round_.settings)
    shares = back.share({**round_.advertised, "s000": back.advertise()})
    with pytest.raises(PrivacyError, match="mask, site 's000': what it sealed for 's001' in this round does not open"):
        round_.sites["s001"].mask(round_.values["s001"], {**round_.received["s001"], "s000": shares["s001"]})


def test_a_site_confirms_one_list():
    round_ = Round(3).advertise().share().mask()
    round_.sites["s000"].confirm(["s000", "s001", "s002"])
    with pytest.raises(PrivacyError, match="confirm, site 's000': comes out of turn"):
        round_.sites["s000"].confirm(["s000", "s001"])


def test_a_site_opens_one_list_once():
    round_ = Round(3).advertise().share().mask().confirm().unmask()
    for survivors in (round_.survivors, ["s000", "s001"]):
        with pytest.raises(PrivacyError, match="unmask, site 's000': comes out of turn"):
            round_.sites["s000"].unmask(survivors, round_.confirmations)


def test_a_site_opens_no_other_list_than_it_confirmed():
    round_ = Round(3).advertise().share().mask().confirm()
    with pytest.raises(PrivacyError, match="not those it confirmed"):
        round_.sites["s000"].unmask(["s000", "s001"], round_.confirmations)


def test_sites_told_different_survivors_open_nothing():
    """To open both secrets of s002 the server needs one site to call it dropped and another to call it alive."""
    round_ = Round(3).advertise().share().mask()
    lists = {"s000": ["s000", "s001"], "s001": ["s000", "s001", "s002"], "s002": ["s000", "s001", "s002"]}
    signatures = {name: round_.sites[name].confirm(told) for name, told in lists.items()}
    with pytest.raises(PrivacyError, match="unmask, site 's001': its signature"):
        round_.sites["s000"].unmask(lists["s000"], {name: signatures[name] for name in lists["s000"]})
    with pytest.raises(PrivacyError, match="unmask, site 's000': its signature"):
        round_.sites["s001"].unmask(lists["s001"], signatures)


def test_sites_told_different_advertisements_do_not_open_each_others_shares():
    round_ = Round(4, 3).advertise()
    fewer = {name: round_.advertised[name] for name in ("s000", "s001", "s002")}
    received = {name: round_.sites[name].share(round_.advertised)["s000"] for name in ("s001", "s002")}
    round_.sites["s000"].share(fewer)
    with pytest.raises(PrivacyError, match="mask, site 's001': what it sealed for 's000'"):
        round_.sites["s000"].mask(round_.values["s000"], received)


def test_sites_told_different_members_open_nothing():
    """Of four, s003 is told that s002 never shared, the others that it did."""
    round_ = Round(4, 3).advertise().share()
    del round_.received["s003"]["s002"]
    told = ["s000", "s001", "s003"]
    for name in told:
        round_.masked_by(name)
    signatures = {name: round_.sites[name].confirm(told) for name in told}
    for name, other in (("s000", "s003"), ("s003", "s000")):
        with pytest.raises(PrivacyError, match=f"site '{other}': its signature"):
            round_.sites[name].unmask(told, signatures)


def test_a_site_that_masked_does_not_confirm_a_list_without_it():
    round_ = Round(3).advertise().share().mask()
    with pytest.raises(PrivacyError, match="the survivors are without it"):
        round_.sites["s000"].confirm(["s001", "s002"])


@pytest.mark.parametrize("survivors", [["s001", "s000"], ["s000", "s000", "s001"], ["s000", "s001", "x"]])
def test_a_list_of_survivors_has_one_spelling_and_members_only(survivors):
    round_ = Round(3).advertise().share().mask()
    with pytest.raises(PrivacyError, match="sorted and different|not one of the sites"):
        round_.sites["s000"].confirm(survivors)


def test_a_site_that_never_shared_cannot_survive():
    """Nobody masked for it, and its own mask could not be taken out."""
    round_ = Round(5).advertise().share(["s000", "s001", "s002"]).mask()
    with pytest.raises(PrivacyError, match="confirm, site 's003': is not one of the sites that were there before"):
        round_.sites["s000"].confirm(["s000", "s001", "s002", "s003"])


@pytest.mark.parametrize("phase", ["share", "mask", "confirm", "unmask"])
def test_no_phase_can_be_left_out(phase):
    site = Round(3).sites["s000"]
    arguments = {"share": ({},), "mask": (np.zeros(1, np.uint64), {}), "confirm": ([],), "unmask": ([], {})}
    with pytest.raises(PrivacyError, match=f"{phase}, site 's000': comes out of turn; next is advertise"):
        getattr(site, phase)(*arguments[phase])


# Messages that are replayed, forged, swapped or cut.


@pytest.mark.parametrize(
    "changed", [{"context": b"run round 2"}, {"threshold": 3}, {"count": 4, "threshold": 3}], ids=str
)
def test_an_advertisement_of_another_session_is_refused(changed):
    settings = {"count": 3, "threshold": 2, **changed}
    other = Round(settings.pop("count"), **settings).advertise().advertised["s001"]
    round_ = Round(3, 2)
    with pytest.raises(PrivacyError, match="advertise, site 's001': its signature"):
        round_.collector.advertise("s001", other)
    mine = {name: site.advertise() for name, site in round_.sites.items()}
    with pytest.raises(PrivacyError, match="share, site 's001': its signature"):
        round_.sites["s000"].share({**mine, "s001": other})


def test_a_roster_with_another_identity_is_another_session():
    round_ = Round(3).advertise()
    roster = {**round_.roster, "s002": public("another")}
    site = Participant("s000", identity("s000"), roster, **round_.settings)
    with pytest.raises(PrivacyError, match="its signature"):
        site.advertise() and site.share(round_.advertised)


@pytest.mark.parametrize("place", [0, 32, 64, 96, 159])
def test_a_changed_advertisement_is_refused(place):
    round_ = Round(3)
    message = bytearray(round_.sites["s001"].advertise())
    message[place] ^= 1
    with pytest.raises(PrivacyError, match="advertise, site 's001': its signature"):
        round_.collector.advertise("s001", bytes(message))


@pytest.mark.parametrize("length", [0, 159, 161])
def test_an_advertisement_of_another_length_is_refused(length):
    round_ = Round(3)
    message = (round_.sites["s001"].advertise() + b"!")[:length]
    with pytest.raises(PrivacyError, match=f"advertises {length} bytes, not 160"):
        round_.collector.advertise("s001", message)


def test_swapped_names_are_refused():
    round_ = Round(3)
    with pytest.raises(PrivacyError, match="advertise, site 's002': its signature"):
        round_.collector.advertise("s002", round_.sites["s001"].advertise())


def test_a_site_outside_the_roster_is_refused():
    round_ = Round(3).advertise()
    with pytest.raises(PrivacyError, match="share, site 'x': is not one of"):
        round_.sites["s000"].share({**round_.advertised, "x": round_.advertised["s001"]})


def test_an_own_advertisement_of_before_is_refused():
    old = Round(3).advertise().advertised
    round_ = Round(3).advertise()
    with pytest.raises(PrivacyError, match="share, site 's000': its own message"):
        round_.sites["s000"].share(old)


def test_a_public_key_of_low_order_is_refused():
    """It would make the shared secret zero, and known to all."""
    round_ = Round(3)
    messages = {name: site.advertise() for name, site in round_.sites.items()}
    keys = secure_sum._Keys(bytes(32), *(messages["s001"][at : at + 32] for at in (32, 64)))
    statement = round_.collector._session.statement("s001", keys)
    messages["s001"] = b"".join(keys) + identity("s001").sign(statement)
    with pytest.raises(PrivacyError, match="share, site 's001': its public key is not valid"):
        round_.sites["s000"].share(messages)


@pytest.mark.parametrize("change", ["bit", "cut", "peer", "sender", "direction", "round"])
def test_a_sealed_share_opens_for_its_receiver_of_its_sender_in_its_round(change):
    round_ = Round(3).advertise().share()
    received, sealed = dict(round_.received["s000"]), round_.received["s000"]["s001"]
    received["s001"] = {
        "bit": bytes([sealed[0] ^ 1]) + sealed[1:],
        "cut": sealed[:-1],
        "peer": round_.received["s002"]["s001"],
        "sender": received["s002"],
        "direction": round_.received["s001"]["s000"],
        "round": Round(3).advertise().share().received["s000"]["s001"],
    }[change]
    values = round_.values["s000"].copy()
    with pytest.raises(PrivacyError, match="mask, site 's001': what it sealed for 's000' in this round does not open"):
        round_.sites["s000"].mask(values, received)
    assert (values == round_.values["s000"]).all()


def test_a_site_sends_itself_nothing():
    round_ = Round(3).advertise().share()
    received = {**round_.received["s000"], "s000": round_.received["s000"]["s001"]}
    with pytest.raises(PrivacyError, match="does not open"):
        round_.sites["s000"].mask(round_.values["s000"], received)


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: b"\0" * 64, lambda s: s[:-1] + bytes([s[-1] ^ 1])])
def test_a_forged_confirmation_is_refused(change):
    round_ = Round(3).advertise().share().mask()
    signatures = {name: round_.sites[name].confirm(round_.survivors) for name in round_.names}
    signatures["s001"] = change(signatures["s001"])
    with pytest.raises(PrivacyError, match="confirm, site 's001': its signature"):
        round_.collector.confirm("s001", signatures["s001"])
    with pytest.raises(PrivacyError, match="unmask, site 's001': its signature"):
        round_.sites["s000"].unmask(round_.survivors, signatures)


def test_one_signature_is_not_two():
    round_ = Round(3).advertise().share().mask().confirm()
    mine = round_.confirmations["s000"]
    with pytest.raises(PrivacyError, match="unmask, site 's001': its signature"):
        round_.sites["s000"].unmask(round_.survivors, {"s000": mine, "s001": mine})


def test_a_confirmation_of_another_round_is_refused():
    old = Round(3).advertise().share().mask().confirm().confirmations
    round_ = Round(3).advertise().share().mask()
    with pytest.raises(PrivacyError, match="confirm, site 's001': its signature"):
        round_.collector.confirm("s001", old["s001"])


def test_shares_that_do_not_fit_what_was_advertised_are_found():
    round_ = Round(3).advertise().share().mask(["s000", "s001"]).confirm()
    opened = {name: round_.sites[name].unmask(round_.survivors, round_.confirmations) for name in round_.survivors}
    for place, name in enumerate(round_.names):
        false = bytearray(opened["s001"])
        false[33 * place + 32] ^= 1
        server = Round(3).collector
        server.__dict__.update(round_.collector.__dict__, _unmasked={})
        server.unmask("s000", opened["s000"])
        server.unmask("s001", bytes(false))
        with pytest.raises(PrivacyError, match=f"unmask, site '{name}': "):
            server.finish()


# What the server refuses to take.


def test_the_server_takes_each_message_once():
    round_ = Round(3).advertise().share().mask().confirm().unmask(["s000"])
    with pytest.raises(PrivacyError, match="unmask, site 's000': has sent its message before"):
        round_.collector.unmask("s000", round_.opened["s000"])


def test_the_server_adds_a_vector_once():
    round_ = Round(3).advertise().share()
    vector = round_.masked_by("s000")
    round_.collector.mask("s000", vector)
    with pytest.raises(PrivacyError, match="mask, site 's000': has sent its message before"):
        round_.collector.mask("s000", vector)


@pytest.mark.parametrize(
    "vector", [np.zeros(LENGTH + 1, np.uint64), np.zeros(LENGTH, np.int64), np.zeros((1, LENGTH), np.uint64)]
)
def test_a_vector_of_another_shape_or_type_leaves_no_trace(vector):
    round_ = Round(3).advertise().share()
    with pytest.raises(PrivacyError, match="mask, site 's000': sent"):
        round_.collector.mask("s000", vector)
    round_.mask(["s001", "s002"]).confirm().unmask()
    assert round_.finish().tolist() == round_.sum_of(["s001", "s002"])


def test_a_message_out_of_turn_or_of_a_stranger_is_refused():
    round_ = Round(3).advertise()
    with pytest.raises(PrivacyError, match="mask, site 's000': comes out of turn; open is share"):
        round_.collector.mask("s000", round_.values["s000"])
    with pytest.raises(PrivacyError, match="share, site 'x': is not one of"):
        round_.collector.share("x", {})


@pytest.mark.parametrize("shares", [{}, {"s001": bytes(82)}, {"s001": bytes(82), "s002": bytes(81)}])
def test_shares_must_be_for_all_peers_and_of_their_length(shares):
    round_ = Round(3).advertise()
    with pytest.raises(PrivacyError, match="share, site 's000': must send 82 bytes for each of 2 peers"):
        round_.collector.share("s000", shares)


@pytest.mark.parametrize("length", [0, 98, 100])
def test_opened_shares_have_their_length(length):
    round_ = Round(3).advertise().share().mask().confirm()
    with pytest.raises(PrivacyError, match="unmask, site 's000': must send 33 bytes for each of 3"):
        round_.collector.unmask("s000", bytes(length))


def test_one_false_message_does_not_end_the_round():
    round_ = Round(4, 3)
    with pytest.raises(PrivacyError):
        round_.collector.advertise("s000", bytes(160))
    round_.advertise(["s001", "s002", "s003"]).share().mask().confirm().unmask()
    assert round_.finish().tolist() == round_.sum_of(["s001", "s002", "s003"])


# The roster.


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["a", "b", "x"], "'x' is invited and not in the roster"),
        (["b", "a"], "sorted and different"),
        (["a", "a", "b"], "sorted and different"),
        (["a", "b", "twin of a"], "same identity"),
    ],
)
def test_invited_sites_are_in_the_roster_sorted_and_different(sites, message):
    roster = {"a": public("a"), "b": public("b"), "twin of a": public("a")}
    with pytest.raises(PrivacyError, match=message):
        Collector(roster, context=b"", threshold=2, sites=sites, length=1)


@pytest.mark.parametrize(("name", "key"), [("a", "b"), ("c", "c")])
def test_a_site_is_invited_under_its_own_identity(name, key):
    roster = {each: public(each) for each in "abc"}
    with pytest.raises(PrivacyError, match=f"start, site '{name}': is not invited, or the roster pins another"):
        Participant(name, identity(key), roster, context=b"", threshold=2, sites=["a", "b"])


def test_a_key_of_low_order_is_refused_before_others_see_it():
    sites, roster = ["a", "b", "c"], {}
    identities = {name: Ed25519PrivateKey.generate() for name in sites}
    roster = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
    about = {"context": b"run 1", "threshold": 2, "sites": sites}
    session = secure_sum._Session(roster, **about)
    keys = secure_sum._Keys(bytes(32), bytes(32), bytes(32))
    message = b"".join(keys) + identities["a"].sign(session.statement("a", keys))
    collector = Collector(roster, length=1, **about)
    with pytest.raises(PrivacyError, match="a.*public key is not valid"):
        collector.advertise("a", message)
