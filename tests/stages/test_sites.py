"""A site's own commands, and the coordinator's before any site is there."""

import json

import pytest
import yaml

from reticent.data import canary
from reticent.federation import launch
from reticent.run import Run

CARD = "sites/{0}/federation/{0}.card.json"


@pytest.fixture
def shared(place):
    """``place`` with a recipe that two sites share."""
    place.write_recipe(federation={"rounds": 2}, audit={"twin": False})
    return place


def init(place, name, *more):
    place.call("site", "init", "my.yaml", "--name", name, *more)
    return Run.open(place.folder / "sites" / name)


def test_two_sites_plant_secrets_of_their_own(shared):
    secrets = [
        {one.record.completion for one in canary.from_json(init(shared, name).read_canaries())}
        for name in ("north", "south")
    ]
    assert not secrets[0] & secrets[1]


def test_a_card_holds_public_keys_alone(shared):
    run = init(shared, "north")
    card = json.loads((shared.folder / CARD.format("north")).read_text())
    assert card.keys() == {"name", "node", "identity"}
    assert not shared.leaked(json.dumps(card))
    for name in ("node-key", "identity-key"):
        assert (run.federation_folder() / name).stat().st_mode & 0o077 == 0


def test_a_site_begun_twice_keeps_its_keys(shared):
    cards = [json.loads((init(shared, "north").federation_folder() / "north.card.json").read_text()) for _ in range(2)]
    assert cards[0] == cards[1]


def test_sites_find_the_owners_that_they_share(shared):
    (shared.folder / "secret").write_bytes(bytes(range(32)))
    for name in ("north", "south"):
        init(shared, name)
        told = shared.call("site", "owners", f"sites/{name}", "--secret", "secret").stdout
        assert not shared.leaked(told)
        (shared.folder / f"{name}.owners").write_text(told)
    units = [
        {unit for unit, _, _ in Run.open(shared.folder / "sites" / name).read_tokens() if not unit.startswith("canary")}
        for name in ("north", "south")
    ]
    found = shared.call("site", "overlap", "north.owners", "south.owners").stdout
    assert found == f"north and south share {len(units[0] & units[1])} owners\n"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["site", "init", "my.yaml", "--name", "North!"], "a site's name is 1 to 63 of a-z, 0-9 and -"),
        (["site", "init", "plain.yaml", "--name", "north"], "the recipe has no federation section"),
        (["site", "start", "runs/my", "invitation.json"], "is not a run folder"),
        (["federate", "my.yaml"], "name the cards of the sites"),
        (["federate", "my.yaml", "--card", "nothing.json"], "cannot read the card nothing.json"),
        (["federate", "my.yaml", "--card", "notes.jsonl"], "is not JSON"),
        (["federate", "my.yaml", "--simulate"], "data.silos: {clients: 3}"),
        (["run", "my.yaml"], "federation needs sites"),
        (["site", "overlap", "nothing.owners"], "cannot read the hashes"),
    ],
)
def test_what_is_missing_is_named(shared, arguments, match):
    values = yaml.safe_load((shared.folder / "my.yaml").read_text())
    (shared.folder / "plain.yaml").write_text(yaml.safe_dump({**values, "federation": None}))
    shared.refused(*arguments, match=match)


def test_a_promise_to_three_whole_sites_is_refused_before_anybody_is_invited(shared):
    cards = []
    for name in ("north", "south"):
        init(shared, name)
        cards += ["--card", CARD.format(name)]
    promise = "federation={rounds: 2, weights: equal, privacy: {noise_multiplier: 1, delta: 0.01}}"
    shared.refused("federate", "my.yaml", *cards, "-s", promise, match="DP-FedAvg over 2 sites is meaningless")
    assert not (shared.folder / "runs" / "my" / "federation" / "invitation.json").exists()


@pytest.fixture
def invited(shared, monkeypatch):
    """Two sites, and an invitation: the coordinator stops where it would begin to listen."""

    def stop(*arguments, **options):
        return launch.Outcome("stopped by the test")

    monkeypatch.setattr(launch, "federate", stop)
    cards = []
    for name in ("north", "south"):
        init(shared, name)
        cards += ["--card", CARD.format(name)]
    told = shared.call("federate", "my.yaml", *cards, "--port", "18000", code=1).stderr
    assert "the rounds did not come to their end: stopped by the test" in told
    return shared, shared.folder / "runs" / "my" / "federation" / "invitation.json"


def test_an_invitation_names_no_secret(invited):
    place, invitation = invited
    assert "PRIVATE" not in invitation.read_text()
    assert not place.leaked(invitation.read_text())


def _changed(invitation, **changes):
    other = invitation.with_name("other.json")
    other.write_text(json.dumps({**json.loads(invitation.read_text()), **changes}))
    return str(other)


def test_a_site_of_another_recipe_is_told_so_before_it_connects(invited):
    place, invitation = invited
    terms = {**json.loads(invitation.read_text())["terms"], "recipe": "another", "torch": "1.0"}
    place.refused(
        "site",
        "start",
        "sites/north",
        _changed(invitation, terms=terms),
        match="site north cannot take part: it differs from the coordinator in recipe (another there, ",
    )


def test_an_invitation_for_other_keys_is_refused(invited):
    place, invitation = invited
    sites = json.loads(invitation.read_text())["sites"]
    wrong = [{**sites[0], "identity": sites[1]["identity"]}, sites[1]]
    place.refused(
        "site", "start", "sites/north", _changed(invitation, sites=wrong), match="is not for the keys of site north"
    )


def test_a_file_that_is_no_invitation_is_refused(invited):
    place, _ = invited
    place.refused("site", "start", "sites/north", "notes.jsonl", match="is no invitation")


def test_a_coordinator_keeps_its_roster_and_address(invited):
    place, _ = invited
    init(place, "west")
    place.refused(
        "federate", "my.yaml", "--card", CARD.format("west"), "--port", "18000", match="begun with other cards"
    )
    place.refused("federate", "my.yaml", "--port", "18001", match="is for another address")
