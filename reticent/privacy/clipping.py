"""How a unit's gradient is bounded: every style keeps its norm at most ``norm``."""

from dataclasses import dataclass
from typing import Literal

Style = Literal["flat", "per-layer", "automatic", "normalised"]


@dataclass(frozen=True)
class Clipping:
    """Bounds each unit's gradient g by ``norm`` = C.

    ``flat``: g min(1, C/|g|) (Abadi et al. 2016). ``per-layer``: the same with C/sqrt(L) for each of L layers.
    ``automatic``: g C/(|g| + 0.01) (AUTO-S, Bu et al. 2023); ``normalised``: g C/|g| (AUTO-V, the same).
    """

    norm: float
    style: Style = "flat"
