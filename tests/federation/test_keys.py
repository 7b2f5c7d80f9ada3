"""Keys, cards, rosters and certificates: made once, readable by one, and refused when they are not good."""

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from reticent.errors import FederationError
from reticent.federation import keys

NOW = datetime.now(UTC) + timedelta(hours=2)  # of the tests, however long others before them take


@pytest.fixture
def sites(tmp_path):
    for name in ("a", "b"):
        keys.make_site_keys(tmp_path / name)
    return tmp_path


@pytest.fixture
def authority(tmp_path):
    keys.make_authority(tmp_path)
    return tmp_path


def test_the_node_key_is_on_the_curve_and_in_the_form_that_flower_reads(sites):
    private = load_ssh_private_key((sites / "a" / "node-key").read_bytes(), None)
    public = load_ssh_public_key((sites / "a" / "node-key.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_only_the_owner_can_read_a_private_key(sites, authority):
    keys.make_certificate(authority, ["localhost"])
    for path in (
        sites / "a" / "node-key",
        sites / "a" / "identity-key",
        authority / "ca.key",
        authority / "server.key",
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_are_never_written_over(sites, authority):
    before = (sites / "a" / "identity-key").read_bytes()
    with pytest.raises(FederationError, match="never written over"):
        keys.make_site_keys(sites / "a")
    with pytest.raises(FederationError, match="never written over"):
        keys.make_authority(authority)
    assert (sites / "a" / "identity-key").read_bytes() == before


def test_a_roster_gives_back_the_public_keys_of_the_cards(sites):
    made = keys.write_roster(sites / "roster.json", [keys.card(name, sites / name) for name in ("b", "a")])
    assert keys.read_roster(sites / "roster.json") == made
    assert list(made) == ["a", "b"]
    identity = keys.read_identity(sites / "a" / "identity-key")
    assert made["a"].identity == identity.public_key().public_bytes_raw()


def test_a_card_holds_no_private_key(sites):
    card = json.loads(keys.card("a", sites / "a"))
    assert set(card) == {"name", "node", "identity"}
    secret = keys.read_identity(sites / "a" / "identity-key").private_bytes_raw().hex()
    assert secret not in json.dumps(card)


def test_two_sites_may_not_share_a_name_or_a_key(sites):
    a, b = keys.card("a", sites / "a"), keys.card("b", sites / "b")
    renamed = json.dumps(json.loads(a) | {"name": "c"})
    for cards in ([a, a], [a, renamed], [a, json.dumps(json.loads(b) | {"name": "a"})]):
        with pytest.raises(FederationError, match="share a name or a key"):
            keys.write_roster(sites / "roster.json", cards)


def test_the_comment_of_a_node_key_does_not_make_it_another(sites):
    a = json.loads(keys.card("a", sites / "a"))
    b = json.loads(keys.card("b", sites / "b")) | {"node": a["node"] + " somebody"}
    with pytest.raises(FederationError, match="share a name or a key"):
        keys.write_roster(sites / "roster.json", [json.dumps(a), json.dumps(b)])


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../a"},
        {"name": ""},
        {"node": "ssh-ed25519 AAAA"},
        {"node": 1},
        {"identity": "00"},
        {"identity": "no hex"},
        {"more": "1"},
    ],
)
def test_a_malformed_card_is_refused(sites, change):
    card = json.dumps(json.loads(keys.card("a", sites / "a")) | change)
    with pytest.raises(FederationError):
        keys.write_roster(sites / "roster.json", [card])


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense"])
def test_a_malformed_roster_is_refused(tmp_path, text):
    (tmp_path / "roster.json").write_text(text)
    with pytest.raises(FederationError):
        keys.read_roster(tmp_path / "roster.json")


def test_a_good_certificate_passes_for_each_of_its_hosts(authority):
    made = keys.make_certificate(authority, ["localhost", "192.0.2.7", "::1"])
    keys.check_certificate(made, ["localhost", "192.0.2.7", "::1"], NOW)


def test_a_certificate_for_another_host_is_refused_by_name(authority):
    made = keys.make_certificate(authority, ["localhost"])
    with pytest.raises(FederationError, match=r"is for localhost, not for 192\.0\.2\.7"):
        keys.check_certificate(made, ["192.0.2.7"], NOW)


def test_a_certificate_is_refused_after_its_end_and_before_its_beginning(authority):
    made = keys.make_certificate(authority, ["localhost"], days=30)
    keys.check_certificate(made, ["localhost"], NOW + timedelta(days=29))
    with pytest.raises(FederationError, match=r"server\.crt expired on"):
        keys.check_certificate(made, ["localhost"], NOW + timedelta(days=31))
    with pytest.raises(FederationError, match="not valid before"):
        keys.check_certificate(made, ["localhost"], NOW - timedelta(days=1))


def test_a_certificate_of_another_authority_is_refused(authority, tmp_path):
    made = keys.make_certificate(authority, ["localhost"])
    keys.make_authority(tmp_path / "other")
    with pytest.raises(FederationError, match="was not signed by"):
        keys.check_certificate(made._replace(authority=tmp_path / "other" / "ca.crt"), ["localhost"], NOW)


def test_a_key_of_another_certificate_is_refused(authority):
    made = keys.make_certificate(authority, ["localhost"])
    with pytest.raises(FederationError, match="is not the private key of"):
        keys.check_certificate(made._replace(key=authority / "ca.key"), ["localhost"], NOW)


def test_a_file_that_is_no_key_or_certificate_is_refused_by_name(authority):
    made = keys.make_certificate(authority, ["localhost"])
    wrong = authority / "wrong"
    wrong.write_text("nothing")
    for changed in (made._replace(certificate=wrong), made._replace(key=wrong), made._replace(key=Path("none"))):
        with pytest.raises(FederationError, match="wrong|none"):
            keys.check_certificate(changed, ["localhost"], NOW)
    with pytest.raises(FederationError, match="no Ed25519"):
        keys.read_identity(made.key)
