"""Units dealt to silos: who holds what in a federation.

All works on arrays with one entry per unit. What must stay together, everything of one owner and of one unit of
privacy, is first joined by `split.joined`; such a group is what is called a unit here. Copies of a text and records
of a person are therefore never divided between silos. Every function places every unit in exactly one silo, leaves
no silo empty, and follows from its arguments and seed alone.

What a simulated deal does not give: one person more or less can move others to another silo. A promise about a
simulated federation is made for the silos as they were dealt. Silos that really exist (`by_key`) have no such limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reticent.data.canary import Canary
from reticent.errors import DataError

Indices = NDArray[np.int64]


Kind = Literal["iid", "by-owner", "by-key", "dirichlet", "proportional"]


class Partition(NamedTuple):
    """``client[i]`` is the silo of unit i: an index into ``names``."""

    client: Indices
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Silo:
    """What one silo holds; ``origins`` counts its units by the origin of their first record there."""

    units: int
    records: int
    bytes: int
    origins: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Silos:
    """What every silo holds, by name. ``title`` says how they were dealt."""

    title: str
    silos: dict[str, Silo]

    def manifest(self) -> dict[str, Any]:
        """Plain values, for manifests and plots."""
        return {"title": self.title, "silos": {name: dict(vars(silo)) for name, silo in self.silos.items()}}


def only_of(group: Indices, labels: Sequence[str | None], *, what: str) -> list[str | None]:
    """The label that all records of a group share: for `by_key`, where two labels are two silos.

    Raises:
        DataError: A group has two of them, so a unit of privacy would be in two silos at once.
    """
    _, first = np.unique(group, return_index=True)
    codes = _codes(labels)
    mixed = len(np.unique(group[codes != codes[first][group]]))
    if mixed:
        raise DataError(
            f"{mixed} of {len(first)} groups (one owner, or owners that share texts) have records of more than one "
            f"{what}, so they would be in two silos at once; drop the records that are repeated elsewhere, give owners "
            "of different silos different names, or partition by owner"
        )
    return [labels[int(i)] for i in first]


def iid(units: int, clients: int, *, seed: int) -> Partition:
    """Shuffled and cut into parts that differ by at most one unit.

    Raises:
        DataError: Fewer units than clients.
    """
    _enough(units, clients, "units")
    client = np.empty(units, np.int64)
    client[np.random.default_rng([seed, 30]).permutation(units)] = np.arange(units) * clients // max(units, 1)
    return Partition(client, _numbered(clients))


def by_owner(owners: Sequence[str], clients: int, *, seed: int) -> Partition:
    """Owners shuffled and dealt like cards, so numbers of owners differ by at most one; their order does not matter.

    Raises:
        DataError: Fewer owners than clients.
    """
    names, index = np.unique(np.asarray(owners, dtype=str), return_inverse=True)
    _enough(len(names), clients, "owners")
    dealt = np.random.default_rng([seed, 31]).permutation(len(names)) % clients
    return Partition(dealt[index].astype(np.int64), _numbered(clients))


def by_key(keys: Sequence[str | None], *, names: Sequence[str] | None = None) -> Partition:
    """One silo for each key: `Record.silo`, or the origin of the records for one silo a data set.

    Args:
        keys: the key of each unit.
        names: the silos and their order; by default the keys that occur, sorted.

    Raises:
        DataError: A unit has no key, or ``names`` are not just the keys that occur.
    """
    missing = sum(not key for key in keys)
    if missing:
        raise DataError(
            f"{missing} of {len(keys)} units name no silo; map the field that holds it (data.source.silo), or choose "
            "another partition"
        )
    found = {key for key in keys if key}
    order = tuple(sorted(found)) if names is None else tuple(names)
    if len(set(order)) != len(order) or set(order) != found:
        raise DataError(
            f"the silos named are {', '.join(order)}, but the records are of {', '.join(sorted(found)) or 'none'}; "
            "name each of these once"
        )
    index = {name: i for i, name in enumerate(order)}
    return Partition(np.fromiter((index[key] for key in keys if key), np.int64, len(keys)), order)


def dirichlet(
    labels: Sequence[str], clients: int, *, alpha: float, seed: int, min_units: int = 1, draws: int = 10
) -> Partition:
    """Each label's units are divided over the clients in proportions drawn from a symmetric Dirichlet distribution.

    Per label over clients, as Yurochkin et al. 2019 (arXiv:1905.12022, section 4), so the silos differ in their
    labels and in size. Hsu et al. 2019 (arXiv:1909.06335) draw per client over labels instead and keep sizes equal.
    A client gets its share of each label to within one unit. A draw in which a client has less than ``min_units``
    units is thrown away and repeated, at most ``draws`` times in all: the proportions are those of a distribution
    conditioned on that.

    Raises:
        DataError: No draw gave every client ``min_units`` units.
    """
    if not 0 < alpha <= 1e9:
        raise DataError(f"alpha of the Dirichlet partition must be above 0 and at most 1e9, got {alpha:g}")
    assert min_units >= 1 and draws >= 1, (min_units, draws)
    _enough(len(labels) // min_units, clients, "units" if min_units == 1 else f"times {min_units} units")
    codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1]
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    fewest = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, 32, draw])
        client = np.empty(len(labels), np.int64)
        for units in members:
            client[rng.permutation(units)] = _in_proportion(len(units), rng.dirichlet(np.full(clients, alpha)), rng)
        fewest.append(int(np.bincount(client, minlength=clients).min()))
        if fewest[-1] >= min_units:
            return Partition(client, _numbered(clients))
    raise DataError(
        f"the Dirichlet partition with alpha = {alpha:g} of {len(labels)} units over {clients} clients left a silo "
        f"with at most {max(fewest)} units in each of {draws} draws, and at least {min_units} are needed; raise alpha, "
        "take fewer clients, or change the seed"
    )


def inject(sensitive: NDArray[np.bool_], sizes: Indices, rest: Partition, *, seed: int) -> Partition:
    """Adds sensitive units to silos in proportion to the bytes that each has without them.

    The units are shuffled and cut; each client gets its share rounded down, the last client also what is left over.

    Args:
        sensitive: which units are to be injected.
        sizes: bytes of each unit.
        rest: the partition of the units that are not sensitive, in their order.

    Raises:
        DataError: The silos hold no bytes to be in proportion to.
    """
    held = [int(sizes[~sensitive][rest.client == k].sum()) for k in range(len(rest.names))]
    if not sum(held):
        raise DataError(
            f"the sensitive records cannot be divided in proportion to bytes: the {len(held)} silos are empty without "
            "them; give each silo other records, or choose another partition"
        )
    count = int(sensitive.sum())
    shares = [count * size // sum(held) for size in held]
    shares[-1] += count - sum(shares)
    client = np.empty(len(sensitive), np.int64)
    client[~sensitive] = rest.client
    shuffled = np.random.default_rng([seed, 33]).permutation(np.flatnonzero(sensitive))
    client[shuffled] = np.repeat(np.arange(len(held)), shares)
    return Partition(client, rest.names)


def place(canaries: Sequence[Canary], clients: int, mode: Literal["same-client", "spread"], *, seed: int) -> Indices:
    """The client of each record of `canary.planted_records`, in its order; what is held out is at no client.

    ``same-client``: all copies of a canary at one client, drawn uniformly. ``spread``: its copies dealt over the
    clients in a random order, as evenly as they go. A member has one copy, so it is at one uniformly random client
    either way. A secret that is spread is one unit in several silos: it shows what repetition over silos leaks, and no
    promise of a single silo covers it.
    """
    assert clients >= 1, clients
    rng = np.random.default_rng([seed, 34])
    placed = [np.zeros(0, np.int64)]
    for canary in canaries:
        order = rng.permutation(clients)  # for all canaries, so that no coin moves another canary
        placed.append(order[np.arange(canary.copies) % (clients if mode == "spread" else 1)])
    return np.concatenate(placed)


def summary(
    names: Sequence[str], client: Indices, unit: Indices, sizes: Indices, origins: Sequence[str], *, title: str
) -> Silos:
    """Counts for the manifest and the plot. The arrays have one entry per record: its silo, unit, bytes and origin."""
    clients = len(names)
    records = np.bincount(client, minlength=clients)
    held = np.zeros(clients, np.int64)
    np.add.at(held, client, sizes)
    of = {origin: i for i, origin in enumerate(dict.fromkeys(sorted(set(origins))))}
    origin = np.fromiter((of[name] for name in origins), np.int64, len(origins))
    _, first = np.unique(client * (int(unit.max(initial=0)) + 1) + unit, return_index=True)
    counts = np.zeros((clients, len(of)), np.int64)
    np.add.at(counts, (client[first], origin[first]), 1)
    return Silos(
        title=title,
        silos={
            name: Silo(
                units=int(counts[k].sum()),
                records=int(records[k]),
                bytes=int(held[k]),
                origins={name: int(counts[k, i]) for name, i in of.items() if counts[k, i]},
            )
            for k, name in enumerate(names)
        },
    )


def title_of(kind: Kind, clients: int, *, alpha: float | None = None) -> str:
    """What the plot of a partition is called."""
    return {
        "iid": f"IID partitioning into {clients} partitions",
        "by-owner": f"Owners dealt evenly to {clients} silos",
        "by-key": f"The {clients} silos that the records name",
        "dirichlet": f"Dirichlet partitioning into {clients} partitions, alpha = {alpha}",
        "proportional": f"Sensitive records divided over {clients} silos in proportion to bytes",
    }[kind]


def _in_proportion(count: int, shares: NDArray[np.float64], rng: np.random.Generator) -> Indices:
    """``count`` clients in ascending order, each as often as its share says to within one, and so on average exactly.

    Systematic sampling: rounding down instead would always favour the last client, most of all for rare labels.
    """
    at = (np.arange(count) + rng.random()) / count
    return np.minimum(np.searchsorted(np.cumsum(shares), at, side="right"), len(shares) - 1).astype(np.int64)


def _enough(have: int, clients: int, what: str) -> None:
    assert clients >= 1, clients
    if have < clients:
        raise DataError(f"{have} {what} cannot fill {clients} silos; lower the number of clients, or give more records")


def _numbered(clients: int) -> tuple[str, ...]:
    return tuple(f"silo-{k + 1}" for k in range(clients))


def _codes(keys: Sequence[Any]) -> Indices:
    """Keys as numbers, in the order of their first appearance."""
    seen: dict[Any, int] = {}
    return np.fromiter((seen.setdefault(key, len(seen)) for key in keys), np.int64, len(keys))
