"""How a unit's gradient is bounded: every style keeps its norm at most ``norm``."""

import math
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


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """A clip norm that follows the ``target`` quantile of the drawn units' norms (Andrew et al. 2021, section 2).

    A step also releases the sum over the drawn units of (1 where the norm is at most C, else 0) - 1/2, with Gaussian
    noise of standard deviation ``noise``. One unit more moves it by 1/2. ``rate``: of the geometric update.
    """

    target: float
    rate: float
    noise: float

    def sum_noise(self, noise_multiplier: float) -> float:
        """The gradient sum's multiplier z_sum, so that both releases together cost one of ``noise_multiplier`` z.

        Both scaled by their noise, a unit moves the pair by at most sqrt(z_sum^-2 + (2 noise)^-2) = 1/z (Andrew et al.
        2021, theorem 1). ``noise`` must be above z/2.
        """
        return 1 / math.sqrt(noise_multiplier**-2 - (2 * self.noise) ** -2)

    def next_norm(self, norm: float, noisy_count: float, batch_size: int) -> float:
        """The clip norm of the next step; ``batch_size`` is the public, expected one."""
        below = noisy_count / batch_size + 0.5
        return norm * math.exp(-self.rate * (below - self.target))
