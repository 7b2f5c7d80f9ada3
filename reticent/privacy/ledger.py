"""Every noisy release, in order, on disk before the weights move: the only source of a printed epsilon.

A ledger is a file of JSON lines: first the plan, then one line a release. Lines are appended and synced, never changed.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reticent.errors import PrivacyError
from reticent.privacy.accounting import COARSE, RELATION, spent
from reticent.privacy.plan import PrivatePlan, from_dict, to_dict

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


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What was spent: (epsilon, delta)-differential privacy for one ``unit`` under ``relation``.

    ``clip_norm``: of the first step, where it follows a quantile.
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
        """Records one release of the plan, with what the mechanism says about it; returns once it is on disk."""
        assert all(entry[key] == value for key, value in self.plan.release._asdict().items()), entry
        _append(self._path, json.dumps({"release": self._releases + 1, **entry}))
        self._releases += 1

    def __len__(self) -> int:
        return self._releases

    def epsilon(self) -> float:
        """What has been spent so far, on a coarse grid: quickly computed, and never below `guarantee`."""
        return spent(self.plan.spent_events(self._releases), self.plan.delta, grid=COARSE).epsilon

    def guarantee(self) -> Guarantee:
        """What all recorded releases together spent."""
        total = spent(self.plan.spent_events(self._releases), self.plan.delta)
        return Guarantee(
            epsilon=total.epsilon,
            delta=self.plan.delta,
            unit=self.plan.unit,
            relation=RELATION,
            epsilon_rdp=total.epsilon_rdp,
            accountant="PLD (dp-accounting), RDP as cross-check",
            mechanism=self.plan.mechanism,
            noise_multiplier=self.plan.noise_multiplier,
            sampling_prob=self.plan.sampling_prob,
            clip_norm=self.plan.clip_norm,
            steps=self._releases,
            units=self.plan.units,
        )


def _fits(line: str, plan: PrivatePlan) -> bool:
    """Whether a line records a release of ``plan``; a torn one does."""
    try:
        values = json.loads(line)
    except ValueError:
        return True
    return isinstance(values, dict) and plan.release._asdict().items() <= values.items()


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
