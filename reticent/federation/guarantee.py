"""Which epsilon protects whom against whom, in a federation.

Each site's promise is about its own units and comes from its own ledger. Promises of different sites are about
different people, so they are never added; the worst of them is what holds for everybody. A promise to whole sites comes
from the coordinator's ledger.
"""

from collections.abc import Mapping
from typing import Any

from reticent.privacy.accounting import RELATION
from reticent.privacy.ledger import LIMITS
from reticent.recipe import Private, Recipe

SITE_LIMITS = (
    "Each site's promise is about the text that it holds itself. Somebody whose text is at several sites is protected "
    "by each of them for that part; for all of it together the costs add up.",
    "Each site keeps its own ledger, and what it says about it is not verified. The coordinator learns which sites "
    "took part, how many units each has, and when each answered.",
)


def guarantee(
    recipe: Recipe, sites: Mapping[str, Mapping[str, Any]], clients: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The guarantee for a report: the worst of the sites' with ``sites``, each one's, and ``clients``, that to sites.

    Args:
        sites: By name its ``units``, ``promise`` and ``guarantee`` (None if it could no longer be asked).
        clients: The guarantee of the coordinator's ledger.
    """
    rows = [_row(name, told) for name, told in sites.items()] if isinstance(recipe.privacy, Private) else []
    if not rows:
        return None if clients is None else {**clients, "clients": None, "sites": []}
    worst = max(rows, key=lambda row: row["epsilon"])
    told = [site["guarantee"] for site in sites.values() if site["guarantee"]]
    # The mechanism is everywhere the same; sampling and noise are those of the site that promises least.
    first: dict[str, Any] = dict(max(told, key=lambda one: one["epsilon"])) if told else {}
    return {
        "relation": RELATION,
        **first,
        "epsilon": worst["epsilon"],
        "delta": max(row["delta"] for row in rows),
        "unit": recipe.privacy.unit,
        "limits": [*LIMITS, *SITE_LIMITS],
        "sites": rows,
        "clients": clients,
    }


def _row(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """What one site has spent, or all that it may spend, if nobody knows."""
    spent = told["guarantee"]
    source = spent or told["promise"]
    return {
        "site": name,
        "units": told["units"],
        "epsilon": source["epsilon"],
        "delta": source["delta"],
        "steps": spent["steps"] if spent else None,
        "known": spent is not None,
    }
