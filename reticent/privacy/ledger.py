"""Every noisy release, in order, on disk before the weights move: the only source of a printed epsilon.

A ledger is a file of JSON lines: first the plan, then one line a release. Lines are appended and synced, never changed.
"""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reticent.errors import PrivacyError
from reticent.privacy.accounting import COARSE, RELATION, Release, spent
from reticent.privacy.plan import DPSGDPlan

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
    """What was spent: (epsilon, delta)-differential privacy for one ``unit`` under ``relation``."""

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

    def __init__(self, path: Path, plan: DPSGDPlan, releases: list[Release]) -> None:
        self._path, self.plan, self._releases = path, plan, releases

    @classmethod
    def create(cls, path: Path, plan: DPSGDPlan) -> "Ledger":
        """A new ledger; refuses to replace one that exists."""
        new = path.with_name(path.name + ".new")  # linked into its place once whole: never a ledger without a plan
        try:
            with open(new, "wb") as file:
                file.write(json.dumps({"plan": asdict(plan), "relation": RELATION}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(new, path)
        finally:
            new.unlink(missing_ok=True)
        return cls(path, plan, [])

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """Reads a ledger back.

        Raises:
            PrivacyError: the file is not a ledger.
        """
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            plan = DPSGDPlan(**json.loads(lines[0])["plan"])
        except (IndexError, KeyError, TypeError, ValueError):
            raise PrivacyError(f"{path.name} is not a readable ledger, so nothing can be said about privacy") from None
        return cls(path, plan, [_release(line, plan) for line in lines[1:]])

    def record(self) -> None:
        """Records one release of the plan; returns once it is on disk."""
        release = self.plan.release
        _append(self._path, json.dumps({"release": len(self._releases) + 1, **release._asdict()}))
        self._releases.append(release)

    def __len__(self) -> int:
        return len(self._releases)

    def epsilon(self) -> float:
        """What has been spent so far, on a coarse grid: quickly computed, and never below `guarantee`."""
        return spent(Counter(self._releases).items(), self.plan.delta, grid=COARSE).epsilon

    def guarantee(self) -> Guarantee:
        """What all recorded releases together spent."""
        total = spent(Counter(self._releases).items(), self.plan.delta)
        return Guarantee(
            epsilon=total.epsilon,
            delta=self.plan.delta,
            unit=self.plan.unit,
            relation=RELATION,
            epsilon_rdp=total.epsilon_rdp,
            accountant="PLD (dp-accounting), RDP as cross-check",
            mechanism="DP-SGD: Poisson sampling, flat clipping, Gaussian noise",
            noise_multiplier=self.plan.noise_multiplier,
            sampling_prob=self.plan.sampling_prob,
            clip_norm=self.plan.clip_norm,
            steps=len(self._releases),
            units=self.plan.units,
        )


def _release(line: str, plan: DPSGDPlan) -> Release:
    try:
        values = json.loads(line)
        return Release(values["sampling_prob"], values["noise_multiplier"])
    except (KeyError, TypeError, ValueError):
        return plan.release


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
