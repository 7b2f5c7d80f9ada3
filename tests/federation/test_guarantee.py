"""Which epsilon protects whom: each site's, the worst, the one to whole sites; never a sum."""

import pytest

from reticent import recipe as recipes
from reticent.federation.guarantee import guarantee
from reticent.privacy.accounting import RELATION
from reticent.privacy.ledger import LIMITS


def recipe(**privacy):
    return recipes.from_dict(
        {
            "data": {"source": "bundled/clinic"},
            "train": {"steps": 10},
            "privacy": privacy or {"kind": "dp-sgd", "epsilon": 8},
            "federation": {"rounds": 5},
        }
    )


def site(epsilon, promise=8.0, units=10, delta=1e-5):
    spent = {"epsilon": epsilon, "delta": delta, "steps": 10, "noise_multiplier": (epsilon or 0) + 100, "unit": "owner"}
    return {
        "units": units,
        "promise": {"epsilon": promise, "delta": delta},
        "guarantee": None if epsilon is None else spent,
    }


CLIENTS = {"epsilon": 5.0, "delta": 1e-3, "unit": "client", "steps": 5}


def test_the_worst_site_is_what_holds_for_everybody():
    found = guarantee(recipe(), {"a": site(1.0), "b": site(3.0, delta=1e-4), "c": site(2.0)}, None)
    assert (found["epsilon"], found["delta"]) == (3.0, 1e-4)
    assert found["noise_multiplier"] == 103.0
    assert [(row["site"], row["epsilon"]) for row in found["sites"]] == [("a", 1.0), ("b", 3.0), ("c", 2.0)]


def test_epsilons_of_sites_are_never_added():
    found = guarantee(recipe(), {name: site(1.0) for name in "abcdefgh"}, None)
    assert found["epsilon"] == 1.0


def test_a_site_that_cannot_be_asked_has_spent_its_whole_promise():
    found = guarantee(recipe(), {"a": site(1.0), "b": site(None, promise=6.0)}, None)
    assert found["epsilon"] == 6.0
    row = found["sites"][1]
    assert (row["epsilon"], row["steps"], row["known"]) == (6.0, None, False)


def test_no_site_can_be_asked():
    found = guarantee(recipe(), {"a": site(None), "b": site(None, promise=6.0)}, None)
    assert (found["epsilon"], found["relation"]) == (8.0, RELATION)
    assert not any(row["known"] for row in found["sites"])


def test_the_limits_say_what_sites_add_to_them():
    limits = guarantee(recipe(), {"a": site(1.0)}, None)["limits"]
    assert set(LIMITS) < set(limits)
    assert any("at several sites" in one for one in limits)
    assert any("not verified" in one for one in limits)


def test_the_promise_to_whole_sites_stands_beside_the_others():
    found = guarantee(recipe(), {"a": site(1.0)}, CLIENTS)
    assert found["epsilon"] == 1.0
    assert found["clients"] == CLIENTS


def test_the_promise_to_whole_sites_may_be_the_only_one():
    found = guarantee(recipe(kind="none"), {"a": site(None)}, CLIENTS)
    assert (found["epsilon"], found["unit"]) == (5.0, "client")
    assert found["sites"] == []


def test_without_a_promise_there_is_no_guarantee():
    assert guarantee(recipe(kind="none"), {"a": site(None)}, None) is None


@pytest.mark.parametrize("unit", ["owner", "record"])
def test_the_unit_is_the_recipes(unit):
    found = guarantee(recipe(kind="dp-sgd", epsilon=8, unit=unit), {"a": site(None)}, None)
    assert found["unit"] == unit
