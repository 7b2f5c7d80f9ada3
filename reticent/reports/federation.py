"""The words and numbers of a federated run: who is protected against whom, and what the rounds were."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from reticent.reports.report import Guarantee, Round, SitePromise
from reticent.reports.table import noun, number, share, size, small

MOST_ROWS = 12  # sites; of more, page 1 has the worst few, and the annex has all
_WORST = 5
_MOST_SITES = 6  # named for one reason to be left out
_LONGEST_REASON = 160  # characters

AGAINST = (
    "everybody who sees what the site sends, the coordinator and the other sites included, and whoever has the model"
)


class Row(NamedTuple):
    """One promise. ``source``: what its epsilon is counted from; ``worst``: of all sites."""

    who: str
    epsilon: str
    delta: str
    units: str
    source: str
    known: bool = True
    worst: bool = False


class Group(NamedTuple):
    """Promises of one kind; ``rest`` sums up those that have no row."""

    protects: str
    against: str
    rows: list[Row]
    rest: str


class Protected(NamedTuple):
    """Who is protected against whom: promises, and in sentences how to read them."""

    groups: list[Group]
    meaning: list[str]
    limits: list[str]


class Sent(NamedTuple):
    """What travelled in one attempt at a round: bytes of all sites, and how many were asked and answered."""

    round: int
    attempt: int
    asked: int
    answered: int
    up: int
    down: int


class Table(NamedTuple):
    """Names of columns, and rows of text."""

    head: list[str]
    rows: list[list[str]]


def protected(guarantee: Guarantee, *, shown: bool) -> Protected | None:
    """Each promise of a federation, None where there is none; ``shown``: whether the report shows its rounds."""
    sites = guarantee.get("sites") or []
    clients = guarantee.get("clients") or (guarantee if guarantee.get("unit") == "client" else None)
    groups, meaning = [], []
    if sites:
        unit = guarantee.get("unit", "unit")
        groups.append(_of_sites(sites, unit))
        meaning.append(
            "Each site makes its own promise to those whose text it holds, and the worst of them is the guarantee of "
            "this report. Promises of different sites are never added, because they are about different people. Only "
            "for a person whose text is at several sites do they add up, over those sites."
        )
        unknown = [row["site"] for row in sites if not row["known"]]
        if unknown:
            meaning.append(
                f"{_named(unknown)} could no longer be asked at the end. What counts there is all that the plan allows."
            )
    if clients is not None and clients["epsilon"] is not None:
        groups.append(_of_clients(clients))
        meaning.append(
            "The promise to whole sites hides whether an institution took part with all of its data."
            + (
                " It is another promise than that to those whose text a site holds, and the two are not added."
                if sites
                else " There is no promise of their own to those whose text a site holds."
            )
        )
        if shown and (clients.get("sampling_prob") or 0.0) < 1:
            meaning.append(
                "Who is asked in a round is drawn at random, and the promise to whole sites counts on that draw "
                "staying with the coordinator. This report shows the rounds, so keep it there as well."
            )
    if not groups:
        return None
    meaning.append("Nothing is promised against the site itself: it holds the text.")
    return Protected(groups, meaning, list(clients.get("limits", [])) if sites and clients is not None else [])


def every_site(guarantee: Guarantee) -> Table | None:
    """All sites' promises, where `protected` names only the worst."""
    sites = guarantee.get("sites") or []
    if len(sites) <= MOST_ROWS:
        return None
    rows = [_row(site, guarantee.get("unit", "unit")) for site in _worst_first(sites)]
    steps = ["–" if site["steps"] is None else f"{site['steps']:,}" for site in _worst_first(sites)]
    return Table(
        ["Site", "ε", "δ", "Units", "Steps", "Counted from"],
        [[row.who, row.epsilon, row.delta, row.units, made, row.source] for row, made in zip(rows, steps, strict=True)],
    )


def _of_sites(sites: Sequence[SitePromise], unit: str) -> Group:
    ordered = _worst_first(sites)
    shown = len(ordered) if len(ordered) <= MOST_ROWS else _WORST
    rows = [_row(site, unit) for site in ordered[:shown]]
    rows[0] = rows[0]._replace(worst=len(ordered) > 1)
    return Group(f"One {unit} at any one site", AGAINST, rows, _rest(ordered[shown:], unit))


def _row(site: SitePromise, unit: str) -> Row:
    return Row(
        who=site["site"],
        epsilon=number(site["epsilon"]),
        delta=small(site["delta"]),
        units=_counted(site["units"], unit),
        source="the site's ledger" if site["known"] else "the plan: it could no longer be asked",
        known=site["known"],
    )


def _rest(sites: Sequence[SitePromise], unit: str) -> str:
    if not sites:
        return ""
    epsilons = [site["epsilon"] for site in sites]
    units = sum(site["units"] for site in sites if site["units"] is not None)
    unknown = sum(not site["known"] for site in sites)
    return (
        f"and {len(sites):,} more sites with ε from {number(min(epsilons))} to {number(max(epsilons))}, half of them "
        f"at {number(median(epsilons))} or below; δ at most {small(max(site['delta'] for site in sites))}; "
        f"{_counted(units, unit)}; {f'{unknown:,} counted from their plans' if unknown else 'all from their ledgers'}. "
        "The annex has every one."
    )


def _of_clients(clients: Guarantee) -> Group:
    epsilon, units = clients["epsilon"], clients.get("units")
    assert epsilon is not None
    row = Row(
        who="each site" if units is None else f"each of {units:,} sites",
        epsilon=number(epsilon),
        delta=small(clients.get("delta") or 0.0),
        units=_counted(units, "site"),
        source="the coordinator's ledger",
    )
    protects = clients.get("protects") or "one site with all its data"
    against = clients.get("against") or "the other sites and whoever has the model; not the coordinator"
    return Group(protects[0].upper() + protects[1:], against, [row], "")


def _worst_first(sites: Sequence[SitePromise]) -> list[SitePromise]:
    return sorted(sites, key=lambda site: (-site["epsilon"], site["site"]))


def _counted(units: int | None, unit: str) -> str:
    return "" if units is None else f"{units:,} {noun(unit)}{'' if units == 1 else 's'}"


def _named(names: Sequence[str]) -> str:
    if len(names) > _MOST_SITES:
        return f"{len(names):,} sites"
    return f"Site {names[0]}" if len(names) == 1 else f"Sites {', '.join(names[:-1])} and {names[-1]}"


def sent(rounds: Sequence[Round]) -> list[Sent]:
    """What each attempt added to the bytes of its round."""
    most: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    lines = []
    for one in rounds:
        up, down = most[one["round"]]
        most[one["round"]] = max(up, one["up"]), max(down, one["down"])
        added = (max(one["up"] - up, 0), max(one["down"] - down, 0))
        lines.append(Sent(one["round"], one["attempt"], one["asked"], one["answered"], *added))
    return lines


def travelled(told: Sequence[Round], full: int | None) -> str:
    """The total in a sentence, beside sending a ``full`` model of so many bytes to whoever was asked and back."""
    lines = sent(told)
    total = sum(line.up + line.down for line in lines)
    if not full or not total:
        return f"In all {size(total)} travelled."
    whole = full * sum(line.asked + line.answered for line in lines)
    return (
        f"In all {size(total)} travelled. With the full model, {size(full)} in float32, sent both ways instead, it "
        f"would have been {size(whole)}: {number(whole / total)} times as much."
    )


def rounds(told: Sequence[Round]) -> Table:
    """Every attempt at every round; columns that would say nothing are left out."""
    lines = sent(told)
    columns = {
        "Round": [f"{one['round']:,}" for one in told],
        "Attempt": [str(one["attempt"]) if repeats(told) else "" for one in told],
        "Asked": [f"{one['asked']:,}" for one in told],
        "Answered": [f"{one['answered']:,}" for one in told],
        "Up": [size(line.up) for line in lines],
        "Down": [size(line.down) for line in lines],
        "Seconds": [f"{one['seconds']:.1f}" for one in told],
        "Norm of step": [number(one["norm"]) for one in told],
        "Loss": _given((one["loss"] for one in told), number),
        "Error of averaging A and B apart": _given((one["lora_error"] for one in told), share),
        "Clip norm": _given((one["clip_norm"] for one in told), number),
        "ε spent": _given((one["epsilon"] for one in told), number),
        "Left out": [_left_out(one["left_out"]) for one in told],
    }
    shown = {name: texts for name, texts in columns.items() if any(texts)}
    return Table(list(shown), [[text or "–" for text in row] for row in zip(*shown.values(), strict=True)])


def repeats(told: Sequence[Round]) -> bool:
    """Whether a round took more than one attempt."""
    return any(one["attempt"] > 1 for one in told)


def _given(values: Iterable[float | None], show: Callable[[float], str]) -> list[str]:
    return ["" if value is None else show(value) for value in values]


def _left_out(why: Mapping[str, str]) -> str:
    """Sites by the reason that they were left out for."""
    sites: dict[str, list[str]] = defaultdict(list)
    for site, reason in sorted(why.items()):
        sites[reason].append(site)
    return "; ".join(f"{_some(names)}: {_cut(reason)}" for reason, names in sites.items())


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_SITES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_SITES])} and {more:,} more"


def _cut(reason: str) -> str:
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 1]}…"
