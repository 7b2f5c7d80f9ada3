"""Every unit in exactly one silo, no silo empty, and the laws of each deal."""

import json
from collections import Counter

import numpy as np
import pytest

from reticent.data.canary import make, planted_records
from reticent.data.partition import (
    Partition,
    by_key,
    by_owner,
    dirichlet,
    iid,
    inject,
    only_of,
    place,
    summary,
    title_of,
)
from reticent.errors import DataError

LABELS = ["cards"] * 400 + ["exams"] * 100 + ["papers"] * 7


def _counts(partition: Partition) -> list[int]:
    return np.bincount(partition.client, minlength=len(partition.names)).tolist()


PARTITIONS = {
    "iid": lambda seed: iid(507, 5, seed=seed),
    "by_owner": lambda seed: by_owner([f"p{i // 3}" for i in range(507)], 5, seed=seed),
    "by_key": lambda seed: by_key(LABELS),
    "dirichlet": lambda seed: dirichlet(LABELS, 5, alpha=0.5, seed=seed),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_every_unit_is_in_one_named_silo_and_no_silo_is_empty(name: str) -> None:
    partition = PARTITIONS[name](0)
    assert partition.client.shape == (507,)
    assert set(partition.client.tolist()) == set(range(len(partition.names)))


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_partition_follows_from_its_seed(name: str) -> None:
    assert PARTITIONS[name](3).client.tolist() == PARTITIONS[name](3).client.tolist()


@pytest.mark.parametrize("name", ["iid", "by_owner", "dirichlet"])
def test_another_seed_deals_otherwise(name: str) -> None:
    assert PARTITIONS[name](3).client.tolist() != PARTITIONS[name](4).client.tolist()


@pytest.mark.parametrize(("units", "clients"), [(10, 3), (9, 3), (7, 7), (100, 1)])
def test_iid_sizes_differ_by_one_at_most(units: int, clients: int) -> None:
    assert set(_counts(iid(units, clients, seed=1))) <= {units // clients, -(-units // clients)}


def test_iid_puts_each_unit_anywhere_with_equal_chance() -> None:
    found = np.array([iid(6, 3, seed=seed).client for seed in range(900)])
    shares = np.array([(found == k).mean(axis=0) for k in range(3)])
    assert np.abs(shares - 1 / 3).max() < 4.5 * np.sqrt(2 / 9 / 900)


def test_all_of_an_owner_is_together_and_owners_are_dealt_evenly() -> None:
    owners = ["a", "b", "a", "c", "d", "b", "e", "a"]
    client = by_owner(owners, 2, seed=0).client
    homes = {owner: {int(k) for o, k in zip(owners, client, strict=True) if o == owner} for owner in owners}
    assert all(len(home) == 1 for home in homes.values())
    assert sorted(Counter(home.pop() for home in homes.values()).values()) == [2, 3]


def test_the_order_of_owners_does_not_matter() -> None:
    owners = [f"p{i}" for i in range(20)]
    forth, back = by_owner(owners, 3, seed=0).client, by_owner(owners[::-1], 3, seed=0).client
    assert forth.tolist() == back.tolist()[::-1]


@pytest.mark.parametrize(
    "deal", [lambda: iid(2, 3, seed=0), lambda: by_owner(["a", "b", "b", "b"], 3, seed=0)], ids=["iid", "by_owner"]
)
def test_too_few_to_fill_the_silos_are_refused(deal: object) -> None:
    with pytest.raises(DataError, match="2 (units|owners) cannot fill 3 silos"):
        deal()  # type: ignore[operator]


def test_silos_without_an_order_are_sorted() -> None:
    assert by_key(["d", "b", "e", "a", "c"]).names == ("a", "b", "c", "d", "e")


def test_a_key_is_a_silo() -> None:
    assert by_key(["north", "south", "north"]) == (pytest.approx([0, 1, 0]), ("north", "south"))


def test_named_silos_keep_their_order() -> None:
    partition = by_key(["exams", "cards"], names=("exams", "cards"))
    assert partition.names == ("exams", "cards")
    assert partition.client.tolist() == [0, 1]


@pytest.mark.parametrize("names", [("north",), ("north", "south", "west"), ("north", "south", "south")])
def test_named_silos_must_be_those_of_the_records(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="the records are of north, south"):
        by_key(["north", "south"], names=names)


@pytest.mark.parametrize("missing", [None, ""])
def test_a_unit_without_a_silo_is_refused(missing: str | None) -> None:
    with pytest.raises(DataError, match="1 of 2 units name no silo"):
        by_key(["north", missing])


def test_dirichlet_shares_are_even_on_average() -> None:
    counts = np.array([_counts(dirichlet(LABELS, 4, alpha=1.0, seed=s, draws=1000)) for s in range(400)])
    spread = counts.std(axis=0) / np.sqrt(400)
    assert (np.abs(counts.mean(axis=0) - len(LABELS) / 4) < 4.5 * spread).all()


def test_dirichlet_shares_have_the_variance_of_the_distribution() -> None:
    alpha, clients = 2.0, 4
    shares = np.array([_counts(dirichlet(["one"] * 1000, clients, alpha=alpha, seed=s)) for s in range(600)]) / 1000
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert shares.var() == pytest.approx(expected, rel=0.15)


def test_a_large_alpha_is_iid_label_by_label() -> None:
    client = dirichlet(LABELS, 5, alpha=1e9, seed=0).client
    for label in set(LABELS):
        counts = np.bincount(client[np.array(LABELS) == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_which_units_of_a_label_a_client_gets_is_drawn() -> None:
    first = [dirichlet(["one"] * 100, 2, alpha=1e9, seed=s).client[0] for s in range(200)]
    assert 60 < sum(first) < 140


def test_rare_labels_go_to_all_clients_alike() -> None:
    labels = ["common"] * 40 + ["rare"]
    homes = np.bincount([dirichlet(labels, 4, alpha=1e6, seed=s).client[-1] for s in range(800)], minlength=4)
    assert np.abs(homes / 800 - 1 / 4).max() < 4.5 * np.sqrt(3 / 16 / 800)


def test_a_small_alpha_gives_each_label_to_about_one_client() -> None:
    partition = dirichlet(["a"] * 50 + ["b"] * 50, 2, alpha=1e-3, seed=0, draws=50)
    assert sorted(_counts(partition)) == [50, 50]
    assert len(set(partition.client[:50].tolist())) == 1


def test_an_empty_silo_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(
        DataError, match=r"alpha = 0.001 of 507 units over 20 clients .* 0 units in each of 10 draws"
    ) as e:
        dirichlet(LABELS, 20, alpha=1e-3, seed=0)
    assert "raise alpha" in str(e.value)


def test_a_draw_is_repeated_until_every_silo_has_its_least() -> None:
    settings = {"alpha": 0.5, "seed": 0, "min_units": 40}
    with pytest.raises(DataError):
        dirichlet(LABELS, 5, **settings, draws=1)
    assert min(_counts(dirichlet(LABELS, 5, **settings, draws=500))) >= 40


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_has_bounds(alpha: float) -> None:
    with pytest.raises(DataError, match="alpha of the Dirichlet partition"):
        dirichlet(LABELS, 2, alpha=alpha, seed=0)


def test_the_least_extreme_alphas_work() -> None:
    assert set(dirichlet(["a", "b"] * 20, 2, alpha=1e-300, seed=1, draws=99).client.tolist()) == {0, 1}


def test_sensitive_units_follow_bytes_and_the_last_client_takes_what_is_left() -> None:
    sensitive = np.array([False, True] * 3 + [True] * 7)
    sizes = np.where(sensitive, 999, [50, 0, 30, 0, 20, 0] + [0] * 7)
    rest = Partition(np.array([0, 1, 2]), ("a", "b", "c"))
    partition = inject(sensitive, sizes, rest, seed=0)
    assert partition.client[~sensitive].tolist() == [0, 1, 2]
    assert np.bincount(partition.client[sensitive]).tolist() == [5, 3, 2]
    more = inject(np.append(sensitive, [True] * 3), np.append(sizes, [9] * 3), rest, seed=0)
    assert np.bincount(more.client).tolist() == [1 + 6, 1 + 3, 1 + 4]  # floor(6.5), floor(3.9), the rest


def test_sensitive_units_are_shuffled_before_they_are_cut() -> None:
    sensitive = np.array([False] * 2 + [True] * 10)
    sizes = np.full(12, 7)
    homes = [inject(sensitive, sizes, Partition(np.arange(2), ("a", "b")), seed=s).client[2] for s in range(200)]
    assert 60 < sum(homes) < 140


def test_proportions_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="in proportion to bytes"):
        inject(np.array([False, True]), np.array([0, 5]), Partition(np.array([0]), ("a",)), seed=0)


def test_a_group_in_two_silos_is_refused() -> None:
    assert only_of(np.array([0, 1, 0]), ["x", None, "x"], what="silo") == ["x", None]
    with pytest.raises(DataError, match="1 of 2 groups .* more than one silo"):
        only_of(np.array([0, 1, 0, 0]), ["x", "y", "z", "z"], what="silo")


@pytest.fixture(scope="module")
def canaries() -> list:  # type: ignore[type-arg]
    return make(pairs=30, copies=12, candidates=300, digits=4, seed=0)


def test_all_copies_are_at_one_client(canaries: list) -> None:  # type: ignore[type-arg]
    units = [unit for _, unit in planted_records(canaries)]
    client = place(canaries, 5, "same-client", seed=0)
    homes = {unit: {int(k) for u, k in zip(units, client, strict=True) if u == unit} for unit in units}
    assert all(len(home) == 1 for home in homes.values())


def test_spread_copies_are_at_all_clients_as_evenly_as_they_go(canaries: list) -> None:  # type: ignore[type-arg]
    units = np.array([unit for _, unit in planted_records(canaries)])
    client = place(canaries, 5, "spread", seed=0)
    for canary in canaries:
        if canary.copies == 12:
            assert sorted(np.bincount(client[units == canary.id], minlength=5)) == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("mode", ["same-client", "spread"])
def test_a_planted_member_is_at_one_client_drawn_uniformly(canaries: list, mode: str) -> None:  # type: ignore[type-arg]
    members = [canary for canary in canaries if canary.role == "member"]
    client = np.concatenate([place(members, 4, mode, seed=s) for s in range(10)])  # type: ignore[arg-type]
    assert len(client) == 10 * sum(member.planted for member in members)
    assert np.abs(np.bincount(client, minlength=4) / len(client) - 1 / 4).max() < 4.5 * np.sqrt(3 / 16 / len(client))


def test_what_is_held_out_is_at_no_client(canaries: list) -> None:  # type: ignore[type-arg]
    assert place([c for c in canaries if not c.planted], 5, "spread", seed=0).tolist() == []


def test_the_summary_counts_what_each_silo_holds() -> None:
    silos = summary(
        ["north", "south"],
        np.array([0, 0, 0, 1, 1]),
        np.array([0, 0, 1, 2, 0]),  # unit 0, a canary that is spread, is in both
        np.array([10, 20, 30, 40, 50]),
        ["notes", "exams", "notes", "exams", "notes"],
        title="T",
    )
    north, south = silos.silos["north"], silos.silos["south"]
    assert (north.units, north.records, north.bytes, north.origins) == (2, 3, 60, {"notes": 2})
    assert (south.units, south.records, south.bytes, south.origins) == (2, 2, 90, {"exams": 1, "notes": 1})
    assert json.loads(json.dumps(silos.manifest()))["silos"]["south"]["origins"] == {"exams": 1, "notes": 1}


def test_the_counts_of_a_summary_add_up() -> None:
    partition = dirichlet(LABELS, 6, alpha=1.0, seed=0)
    sizes = np.arange(len(LABELS))
    silos = summary(partition.names, partition.client, np.arange(len(LABELS)), sizes, LABELS, title="T").silos.values()
    assert sum((Counter(silo.origins) for silo in silos), Counter()) == Counter(LABELS)
    assert sum(silo.units for silo in silos) == sum(silo.records for silo in silos) == len(LABELS)
    assert sum(silo.bytes for silo in silos) == sizes.sum()


def test_an_iid_partition_is_called_as_in_the_course() -> None:
    assert title_of("iid", 10) == "IID partitioning into 10 partitions"
    assert title_of("dirichlet", 10, alpha=0.5).endswith("alpha = 0.5")
