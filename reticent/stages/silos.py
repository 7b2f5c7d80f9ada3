"""Training records dealt to institutions."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from reticent.data import canary, partition
from reticent.data.corpus import Corpus
from reticent.data.split import PARTS
from reticent.errors import DataError
from reticent.recipe import Recipe, Silos
from reticent.stages.reading import Read


class Dealt(NamedTuple):
    """``client``: of each record its institution, -1 for those not trained on; ``planted``: of each planted canary."""

    client: np.ndarray
    planted: np.ndarray
    summary: partition.Silos


def deal(recipe: Recipe, found: Read, canaries: list[canary.Canary]) -> Dealt | None:
    """Everything of one owner and one unit goes to one institution; None: the recipe asks for none.

    Raises:
        DataError: An institution would be empty, or the data do not say what the recipe deals by.
    """
    asked = recipe.data.silos
    if asked is None:
        return None
    corpus, seed = found.corpus, recipe.data.seed
    train = np.flatnonzero(found.split.part == PARTS.index("train"))
    _, first, group = np.unique(found.split.group[train], return_index=True, return_inverse=True)
    sizes = np.bincount(group, weights=corpus.size[train]).astype(np.int64)
    origins = [corpus.origins[code] for code in corpus.origin[train[first]]]
    sensitive = np.isin(origins, asked.sensitive)
    if asked.sensitive and not sensitive.any():
        raise DataError(
            f"data.silos.sensitive names {', '.join(asked.sensitive)}, and no training record comes from there; its "
            f"origins are {', '.join(sorted(set(origins)))}"
        )
    rest = np.flatnonzero(~sensitive)
    dealt = _partition(asked, corpus, train, group, first, origins, rest, seed)
    title = f"Each of {len(dealt.names)} sources is a silo"
    if asked.kind != "by-origin":
        title = partition.title_of(asked.kind, len(dealt.names), alpha=asked.alpha)
    if sensitive.any():
        dealt = partition.inject(sensitive, sizes, dealt, seed=seed)
        title = partition.title_of("proportional", len(dealt.names))
    client = np.full(len(corpus), -1, dtype=np.int64)
    client[train] = dealt.client[group]
    empty = [name for number, name in enumerate(dealt.names) if not (dealt.client == number).any()]
    if empty:
        raise DataError(f"silo {empty[0]} is empty; ask for fewer than {len(dealt.names)} in data.silos.clients")
    placed = partition.place(canaries, len(dealt.names), asked.canaries, seed=seed)
    return Dealt(
        client,
        placed,
        partition.summary(
            dealt.names,
            client[train],
            found.units.first[train],
            corpus.size[train],
            [corpus.origins[code] for code in corpus.origin[train]],
            title=title,
        ),
    )


def sizes(dealt: Dealt, planted_units: list[str]) -> dict[str, int]:
    """Units of each silo, planted canaries included; ``planted_units``: the unit of each."""
    planted = set(zip(dealt.planted.tolist(), planted_units, strict=True))
    counts = Counter(client for client, _ in planted)
    return {name: silo.units + counts[number] for number, (name, silo) in enumerate(dealt.summary.silos.items())}


def _partition(
    asked: Silos,
    corpus: Corpus,
    train: np.ndarray,
    group: np.ndarray,
    first: np.ndarray,
    origins: list[str],
    rest: np.ndarray,
    seed: int,
) -> partition.Partition:
    """The groups ``rest`` dealt."""
    match asked.kind:
        case "iid":
            return partition.iid(len(rest), asked.clients, seed=seed)
        case "by-owner":
            return partition.by_owner([str(one) for one in rest], asked.clients, seed=seed)
        case "dirichlet":
            labels = [origins[one] for one in rest]
            return partition.dirichlet(labels, asked.clients, alpha=asked.alpha, seed=seed)
        case "by-origin":
            return partition.by_key([origins[one] for one in rest])
    names = [None if code < 0 else corpus.silos[code] for code in corpus.silo[train]]
    keys = partition.only_of(group, names, what="silo")
    return partition.by_key([keys[one] for one in rest])
