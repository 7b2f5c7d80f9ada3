"""Everything that must agree for a promise to hold, made together: sampler, clip norm, noise, divisor, accountant."""

from dataclasses import dataclass

from reticent.errors import PrivacyError
from reticent.privacy.accounting import Release, calibrate


@dataclass(frozen=True, kw_only=True)
class NonPrivatePlan:
    """Poisson batches, no clipping, no noise, no promise."""

    unit: str
    units: int
    batch_size: int
    steps: int

    @property
    def sampling_prob(self) -> float:
        """Chance of a unit to be in a batch."""
        return self.batch_size / self.units


@dataclass(frozen=True, kw_only=True)
class DPSGDPlan:
    """DP-SGD with Poisson sampling (Abadi et al. 2016).

    Each of ``steps`` steps draws every unit with ``sampling_prob``, clips its gradient to ``clip_norm``, adds Gaussian
    noise of ``noise_multiplier * clip_norm`` once to the sum and divides by ``batch_size``, a public constant.
    ``units``, the number of units, is treated as public.
    """

    unit: str
    units: int
    batch_size: int
    steps: int
    delta: float
    clip_norm: float
    noise_multiplier: float
    epsilon: float | None

    @property
    def sampling_prob(self) -> float:
        """Chance of a unit to be in a batch."""
        return self.batch_size / self.units

    @property
    def release(self) -> Release:
        """What one step releases."""
        return Release(self.sampling_prob, self.noise_multiplier)


Plan = NonPrivatePlan | DPSGDPlan


def _check_batch(batch_size: int, units: int, unit: str) -> None:
    if batch_size > units:
        raise PrivacyError(
            f"train.batch_size must be at most the number of units, {units} ({unit}s to train on), got {batch_size}. "
            "Lower train.batch_size or bring more data."
        )


def nonprivate_plan(*, unit: str, units: int, batch_size: int, steps: int) -> NonPrivatePlan:
    """A plan that promises nothing."""
    _check_batch(batch_size, units, unit)
    return NonPrivatePlan(unit=unit, units=units, batch_size=batch_size, steps=steps)


def dpsgd_plan(
    *,
    unit: str,
    units: int,
    batch_size: int,
    steps: int,
    delta: float,
    clip_norm: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
) -> DPSGDPlan:
    """A plan from a promise (``epsilon``) or from ``noise_multiplier``; exactly one of them.

    Raises:
        PrivacyError: the promise means nothing (delta) or cannot be kept.
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise PrivacyError("give exactly one of epsilon and noise_multiplier")
    _check_batch(batch_size, units, unit)
    if delta >= 1 / units:
        raise PrivacyError(
            f"privacy.delta must be below 1 / units = {1 / units:.3g} ({units} {unit}s to train on), got {delta:g}: at "
            "that delta, giving away one whole record would still count as private. Lower privacy.delta."
        )
    if noise_multiplier is None:
        assert epsilon is not None
        noise_multiplier = calibrate(epsilon=epsilon, delta=delta, sampling_prob=batch_size / units, steps=steps)
    return DPSGDPlan(
        unit=unit,
        units=units,
        batch_size=batch_size,
        steps=steps,
        delta=delta,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        epsilon=epsilon,
    )
