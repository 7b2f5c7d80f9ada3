"""Every noisy release, in order, on disk before the weights move: the only source of a printed epsilon.

A ledger is a file of JSON lines: first the plan, then one line a release. Lines are appended and synced, never changed.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reticent.errors import PrivacyError
from reticent.privacy.accounting import COARSE, FINE, RELATION, Spent, spent
from reticent.privacy.plan import DPFedAvgPlan, PrivatePlan, from_dict, to_dict

LIMITS = (
    "The promise covers the trained weights and all that is computed from them alone. It does not cover this report: "
    "its figures and curves are measured on private records, so keep it inside the institution.",
    "The number of units and every setting of the recipe count as public. Settings that were chosen by looking at "
    "results on the same private data are not paid for here.",
    "It hides whether one unit took part. It does not hide what many units have in common, nor anything about a person "
    "that is written in the texts of other owners.",
    "Owners whose texts are equal or nearly equal count as one unit together.",
    "Delta is the chance, per unit, that the epsilon bound does not hold.",
    "Noise is drawn from the operating system's entropy in floating point; an attack on the last bits of the "
    "arithmetic (Mironov 2012) is not excluded.",
)

AT_SITE = "everybody who sees an update of the site, the server included"

CLIENT_LIMITS = (
    "The promise covers the trained weights and all that is computed from them alone. It does not cover the "
    "coordinator's own log and ledger: they tell who took part in which round, so keep them there.",
    "The number of sites and every setting of the recipe count as public. So does whether a site answered in a round: "
    "that must not hang on its data.",
    "It hides whether one site took part with its data. It does not hide what the sites' data have in common, nor "
    "anything about a person whose texts are at several sites.",
    "Delta is the chance, per site, that the epsilon bound does not hold.",
)


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What was spent: (epsilon, delta)-differential privacy for one ``unit`` under ``relation``.

    ``protects`` says who that is, ``against`` from whom. ``clip_norm``: of the first step, where it follows a quantile.
    ``sampling_prob``: the one that is accounted.
    """

    epsilon: float
    delta: float
    unit: str
    relation: str
    epsilon_rdp: float
    accountant: str
    mechanism: str
    noise_multiplier: float
    sampling_prob: float
    clip_norm: float
    steps: int
    units: int
    protects: str = ""
    against: str = ""
    limits: tuple[str, ...] = LIMITS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Ledger:
    """The releases of one trained model.

    A line that was cut off in the middle counts as a release: it may have happened.
    """

    def __init__(self, path: Path, plan: PrivatePlan, releases: int) -> None:
        self._path, self.plan, self._releases = path, plan, releases

    @classmethod
    def create(cls, path: Path, plan: PrivatePlan) -> "Ledger":
        """A new ledger; refuses to replace one that exists."""
        new = path.with_name(path.name + ".new")  # linked into its place once whole: never a ledger without a plan
        try:
            with open(new, "wb") as file:
                file.write(json.dumps({"plan": to_dict(plan), "relation": RELATION}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(new, path)
        finally:
            new.unlink(missing_ok=True)
        return cls(path, plan, 0)

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """Reads a ledger back.

        Raises:
            PrivacyError: the file is not a ledger, or a line records another release than the plan makes.
        """
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            plan = from_dict(json.loads(lines[0])["plan"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise PrivacyError(f"{path.name} is not a readable ledger, so nothing can be said about privacy") from None
        for number, line in enumerate(lines[1:], start=2):
            if not _fits(line, plan):
                raise PrivacyError(
                    f"{path.name}, line {number}: the release recorded there is not one of the ledger's own plan, so "
                    "nothing can be said about privacy"
                )
        return cls(path, plan, len(lines) - 1)

    def record(self, entry: Mapping[str, float]) -> None:
        """Records one release of the plan, with what the mechanism says about it; returns once it is on disk.

        A round of a federation adds to the entry how many sites were ``asked`` and how many ``answered``. With
        distributed noise it must, and it is recorded before the sum is unmasked.

        Raises:
            PrivacyError: it is not a release of the plan, or too few sites answered to make its noise whole.
        """
        wrong = _wrong(entry, self.plan)
        if wrong is not None:
            raise PrivacyError(f"a release that is not one of the ledger's own plan cannot be recorded: {wrong}")
        _append(self._path, json.dumps({"release": self._releases + 1, **entry}))
        self._releases += 1

    def record_failure(self, *, asked: int, answered: int) -> None:
        """Records a round that was given up after updates had left their sites, so that nothing was released.

        It counts as a release: whoever gave it up has seen the answers. So does each attempt at a round that is tried
        again. A round that asked nobody has no line.

        Raises:
            PrivacyError: the plan counts on a hidden draw, and giving up a round for its answers tells who was drawn.
        """
        if self.plan.release.sampling_prob < 1:
            raise PrivacyError(
                f"a round with {answered} of {asked} answers cannot be given up: the plan draws with probability "
                f"{self.plan.release.sampling_prob:.4g}, and whether a round is given up tells who was drawn. Release "
                "it with its noise, and ask for a quorum of reachable sites before the draw."
            )
        failure = {**self.plan.release._asdict(), "asked": asked, "answered": answered, "failed": True}
        _append(self._path, json.dumps({"release": self._releases + 1, **failure}))
        self._releases += 1

    def __len__(self) -> int:
        return self._releases

    def epsilon(self) -> float:
        """What has been spent so far, on a coarse grid: quickly computed, and never below `guarantee`."""
        return self._spent(COARSE).epsilon

    def _spent(self, grid: float) -> Spent:
        """At the plan's delta. With a slack s, P <= e^s P' and P' <= e^s P bring (eps, d) to (eps + 2s, e^s d)."""
        slack = self.plan.slack if self._releases else 0.0
        events = self.plan.spent_events(self._releases)
        total = spent(events, self.plan.delta * math.exp(-slack), grid=grid)
        return Spent(total.epsilon + 2 * slack, total.epsilon_rdp + 2 * slack)

    def guarantee(self, site: str | None = None) -> Guarantee:
        """What all recorded releases together spent; ``site``: where the ledger is, if it is one of a federation."""
        total, plan = self._spent(FINE), self.plan
        return Guarantee(
            epsilon=total.epsilon,
            delta=self.plan.delta,
            unit=self.plan.unit,
            relation=RELATION,
            epsilon_rdp=total.epsilon_rdp,
            accountant="PLD (dp-accounting), RDP as cross-check",
            mechanism=self.plan.mechanism,
            noise_multiplier=self.plan.noise_multiplier,
            sampling_prob=self.plan.release.sampling_prob,
            clip_norm=self.plan.clip_norm,
            steps=self._releases,
            units=self.plan.units,
            protects=plan.protects if site is None else f"{plan.protects} at site {site}",
            against=plan.against if site is None else AT_SITE,
            limits=CLIENT_LIMITS if isinstance(plan, DPFedAvgPlan) else LIMITS,
        )


def _fits(line: str, plan: PrivatePlan) -> bool:
    """Whether a line records a release of ``plan``; a torn one does."""
    try:
        values = json.loads(line)
    except ValueError:
        return True
    return isinstance(values, dict) and (_wrong(values, plan) is None or _failed(values, plan))


def _failed(values: Mapping[str, Any], plan: PrivatePlan) -> bool:
    """Whether a line records a round of ``plan`` that released nothing."""
    return values.get("failed") is True and _wrong({**values, "answered": math.inf}, plan) is None


def _wrong(entry: Mapping[str, Any], plan: PrivatePlan) -> str | None:
    """Why ``entry`` is not a release of ``plan``."""
    for key, value in plan.release._asdict().items():
        if entry.get(key) != value:
            return f"its {key} is {entry.get(key)}, that of the plan is {value}."
    threshold = plan.threshold if isinstance(plan, DPFedAvgPlan) else None
    if threshold is not None and not entry.get("answered", 0) >= threshold:
        return f"{entry.get('answered', 0)} sites answered, and it takes {threshold} to make the noise whole."
    return None


def _append(path: Path, line: str) -> None:
    """One line, on disk when this returns. A torn last line is closed first, so that it stays one line."""
    with open(path, "r+b") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
