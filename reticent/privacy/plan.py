"""Everything that must agree for a promise to hold, made together: sampler, clipping, noise, divisor, accountant."""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from reticent.errors import PrivacyError
from reticent.privacy.accounting import Release, calibrate
from reticent.privacy.clipping import Clipping, Quantile, Style

SLACK = 1e-12
"""By how much sums of discrete noise may differ from Gaussian ones, as a log-likelihood ratio over all rounds."""

FEWEST_CLIENTS = 10
Noise = Literal["server", "distributed"]


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


class _ToUnits:
    """A promise to the units that were trained on, with Gaussian noise: nothing is added for ``slack``."""

    slack: ClassVar[float] = 0.0
    unit: str

    @property
    def protects(self) -> str:
        """Who is protected, for the guarantee."""
        return f"one {self.unit}"

    @property
    def against(self) -> str:
        """Against whom, for the guarantee."""
        return "everybody who has the trained weights"


@dataclass(frozen=True, kw_only=True)
class DPSGDPlan(_ToUnits):
    """DP-SGD with Poisson sampling (Abadi et al. 2016).

    Each of ``steps`` steps draws every unit with ``sampling_prob``, bounds its gradient by ``clip_norm`` in
    ``clip_style``, adds Gaussian noise of ``noise_multiplier * clip_norm`` once to the sum and divides by
    ``batch_size``, a public constant. With a ``quantile`` the clip norm only begins at ``clip_norm``, and
    ``noise_multiplier`` is that of the sum and the count of a step together. ``units``, the number of units, is treated
    as public.
    """

    kind: ClassVar[str] = "dp-sgd"
    unit: str
    units: int
    batch_size: int
    steps: int
    delta: float
    clip_norm: float
    clip_style: Style
    quantile: Quantile | None
    noise_multiplier: float
    epsilon: float | None

    @property
    def sampling_prob(self) -> float:
        """Chance of a unit to be in a batch."""
        return self.batch_size / self.units

    @property
    def clipping(self) -> Clipping:
        """What bounds a unit in the first step."""
        return Clipping(self.clip_norm, self.clip_style)

    @property
    def sum_noise(self) -> float:
        """Noise of the gradient sum alone, as a multiple of the clip norm in force."""
        return self.noise_multiplier if self.quantile is None else self.quantile.sum_noise(self.noise_multiplier)

    @property
    def release(self) -> Release:
        """What one step releases."""
        return Release(self.sampling_prob, self.noise_multiplier)

    def spent_events(self, steps: int) -> list[tuple[Release, int]]:
        """What ``steps`` steps cost one unit: (release, times)."""
        return [(self.release, steps)]

    @property
    def mechanism(self) -> str:
        """In words, for the guarantee."""
        followed = "" if self.quantile is None else f" at the {self.quantile.target:g} quantile, privately tracked"
        return f"DP-SGD: Poisson sampling, {self.clip_style} clipping{followed}, Gaussian noise"


@dataclass(frozen=True, kw_only=True)
class DPFedAvgPlan(DPSGDPlan):
    """DP-FedAvg: the same with sites for units and their whole updates for gradients (McMahan et al. 2018).

    ``steps`` are rounds, ``units`` the sites on the roster, ``batch_size`` the expected number of them in a round. The
    sum of the clipped updates is divided by ``batch_size`` whoever answers: every site weighs the same, and one that
    drops out adds nothing and changes neither the noise nor the divisor.

    ``noise`` "server": the server sees every update, adds the noise and alone knows whom it drew, so the others are
    promised the sampled Gaussian. That holds only if a round goes on with however few answers: a draw that is given up
    for its size tells who was in it. Ask for a quorum of reachable sites before the draw.

    ``noise`` "distributed": each site adds discrete Gaussian noise, so that any ``threshold`` of them add enough, and
    the server learns a secure sum of at least as many (`reticent.federation.client_privacy`). The server and the drawn
    sites know who was drawn, so nothing is gained by sampling: every round costs each site a Gaussian that is not
    sampled. ``slack`` is what summed discrete noise may cost beyond Gaussian noise.

    ``few`` says that fewer than 10 sites were asked for by name.
    """

    kind: ClassVar[str] = "dp-fedavg"
    noise: Noise
    threshold: int | None
    few: bool

    @property
    def slack(self) -> float:  # type: ignore[override]  # it depends on the noise here
        """Bound on the log-likelihood ratio of all rounds to Gaussian ones."""
        return SLACK if self.noise == "distributed" else 0.0

    @property
    def release(self) -> Release:
        """What one round releases."""
        return Release(_accounted(self.noise, self.sampling_prob), self.noise_multiplier)

    @property
    def mechanism(self) -> str:
        """In words, for the guarantee."""
        followed = "" if self.quantile is None else f" at the {self.quantile.target:g} quantile, privately tracked"
        if self.noise == "server":
            return f"DP-FedAvg: Poisson sampling of sites, updates clipped{followed}, Gaussian noise at the server"
        return (
            f"DP-FedAvg: updates clipped{followed}, discrete Gaussian noise in shares of {self.threshold} sites or "
            "more under a secure sum, no amplification by sampling"
        )

    @property
    def protects(self) -> str:
        """Who is protected, for the guarantee."""
        return "one site with all its data"

    @property
    def against(self) -> str:
        """Against whom, for the guarantee."""
        if self.noise == "server":
            return "the other sites and whoever has the model; not the server"
        return (
            "the other sites, whoever has the model, and also the server, if at least "
            f"{self.threshold} of the sites that answer are honest"
        )


@dataclass(frozen=True, kw_only=True)
class BandedPlan(_ToUnits):
    """DP-SGD with noise that is correlated over ``bands`` steps (Choquette-Choo et al. 2023, banded factorisation).

    The units form ``bands`` groups; each step draws from one group in turn. Step t releases x_t + (C^-1 z)_t, where C
    is lower-triangular with ``bands`` bands and columns of norm at most 1 and z is Gaussian noise of
    ``noise_multiplier * clip_norm``. A unit takes part in every ``bands``-th step at most, and columns of C that far
    apart do not overlap, so each part it takes costs one subsampled Gaussian of ``noise_multiplier`` (theorem 4 there).
    """

    kind: ClassVar[str] = "dp-mf"
    unit: str
    units: int
    batch_size: int
    steps: int
    delta: float
    clip_norm: float
    clip_style: Style
    bands: int
    noise_multiplier: float
    epsilon: float | None

    @property
    def sampling_prob(self) -> float:
        """Chance of a unit to be in the batch of a step of its group."""
        return self.bands * self.batch_size / self.units

    @property
    def clipping(self) -> Clipping:
        """What bounds a unit."""
        return Clipping(self.clip_norm, self.clip_style)

    @property
    def release(self) -> Release:
        """What one step releases about the units of its group."""
        return Release(self.sampling_prob, self.noise_multiplier)

    def spent_events(self, steps: int) -> list[tuple[Release, int]]:
        """What ``steps`` steps cost one unit: (release, times)."""
        return [(self.release, math.ceil(steps / self.bands))]

    @property
    def mechanism(self) -> str:
        """In words, for the guarantee."""
        return (
            f"DP-MF: cyclic Poisson sampling of {self.bands} groups, {self.clip_style} clipping, Gaussian noise "
            f"correlated over {self.bands} steps"
        )


PrivatePlan = DPSGDPlan | BandedPlan
Plan = NonPrivatePlan | PrivatePlan


def to_dict(plan: PrivatePlan) -> dict[str, Any]:
    """Plain values for JSON."""
    return {"kind": plan.kind, **asdict(plan)}


def from_dict(values: dict[str, Any]) -> PrivatePlan:
    """The inverse of `to_dict`.

    Raises:
        KeyError, TypeError: the values are not those of a plan.
    """
    values = dict(values)
    kind = values.pop("kind")
    if kind == BandedPlan.kind:
        return BandedPlan(**values)
    if kind not in (DPSGDPlan.kind, DPFedAvgPlan.kind):
        raise KeyError(kind)
    quantile = values.pop("quantile")
    values["quantile"] = None if quantile is None else Quantile(**quantile)
    return DPSGDPlan(**values) if kind == DPSGDPlan.kind else DPFedAvgPlan(**values)


def _check_batch(batch_size: int, units: int, unit: str) -> None:
    if batch_size > units:
        raise PrivacyError(
            f"train.batch_size must be at most the number of units, {units} ({unit}s to train on), got {batch_size}. "
            "Lower train.batch_size or bring more data."
        )


def _check_delta(delta: float, units: int, unit: str) -> None:
    if delta >= 1 / units:
        raise PrivacyError(
            f"privacy.delta must be below 1 / units = {1 / units:.3g} ({units} {unit}s to train on), got {delta:g}: at "
            f"that delta, giving away one whole {unit} would still count as private. Lower privacy.delta."
        )


def _noise(
    epsilon: float | None, noise_multiplier: float | None, *, delta: float, sampling_prob: float, steps: int
) -> float:
    if epsilon is not None and noise_multiplier is None:
        return calibrate(epsilon=epsilon, delta=delta, sampling_prob=sampling_prob, steps=steps)
    if epsilon is None and noise_multiplier is not None:
        return noise_multiplier
    raise PrivacyError("give exactly one of epsilon and noise_multiplier")


def _check_count(quantile: Quantile | None, noise_multiplier: float) -> None:
    if quantile is not None and quantile.noise <= noise_multiplier / 2:
        raise PrivacyError(
            f"privacy.clip_quantile.noise must be above half the noise multiplier, {noise_multiplier / 2:.4g}, got "
            f"{quantile.noise:g}: the count alone would cost more than the whole step may. Raise it (a twentieth of "
            "the batch size and 2 noise multipliers or more are usual)."
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
    clip_style: Style = "flat",
    quantile: Quantile | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
) -> DPSGDPlan:
    """A plan from a promise (``epsilon``) or from ``noise_multiplier``; exactly one of them.

    Raises:
        PrivacyError: the promise means nothing (delta) or cannot be kept.
    """
    _check_batch(batch_size, units, unit)
    _check_delta(delta, units, unit)
    if quantile is not None and clip_style != "flat":
        raise PrivacyError(f"privacy.clip_quantile needs clip_style: flat, got {clip_style}. Set one of them back.")
    z = _noise(epsilon, noise_multiplier, delta=delta, sampling_prob=batch_size / units, steps=steps)
    _check_count(quantile, z)
    return DPSGDPlan(
        unit=unit,
        units=units,
        batch_size=batch_size,
        steps=steps,
        delta=delta,
        clip_norm=clip_norm,
        clip_style=clip_style,
        quantile=quantile,
        noise_multiplier=z,
        epsilon=epsilon,
    )


def banded_plan(
    *,
    unit: str,
    units: int,
    batch_size: int,
    steps: int,
    delta: float,
    clip_norm: float,
    bands: int,
    clip_style: Style = "flat",
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
) -> BandedPlan:
    """A plan from a promise (``epsilon``) or from ``noise_multiplier``; exactly one of them.

    Raises:
        PrivacyError: the promise means nothing (delta) or cannot be kept, or a group is smaller than a batch.
    """
    _check_batch(batch_size, units, unit)
    _check_delta(delta, units, unit)
    if bands * batch_size > units:
        raise PrivacyError(
            f"privacy.bands * train.batch_size must be at most the number of units, {units} ({unit}s to train on), got "
            f"{bands} * {batch_size} = {bands * batch_size}: each step draws from one of {bands} groups. Lower "
            f"privacy.bands to {units // batch_size} or less, or lower train.batch_size."
        )
    times, prob = math.ceil(steps / bands), bands * batch_size / units
    return BandedPlan(
        unit=unit,
        units=units,
        batch_size=batch_size,
        steps=steps,
        delta=delta,
        clip_norm=clip_norm,
        clip_style=clip_style,
        bands=bands,
        noise_multiplier=_noise(epsilon, noise_multiplier, delta=delta, sampling_prob=prob, steps=times),
        epsilon=epsilon,
    )


def _accounted(noise: Noise, sampling_prob: float) -> float:
    """The sampling probability that hides a site: 1 where those it is to be hidden from know who was drawn."""
    return sampling_prob if noise == "server" else 1.0


def _check_sites(sites: int, per_round: int, few_clients: bool) -> None:
    if sites < FEWEST_CLIENTS and not few_clients:
        raise PrivacyError(
            f"DP-FedAvg over {sites} sites is meaningless, it needs {FEWEST_CLIENTS} or more: the noise that hides one "
            "whole site also drowns the few others. Protect records or owners inside each site instead (privacy: "
            "{kind: dp-sgd}), or say federation.privacy.few_clients: true if it is meant."
        )
    if per_round > sites:
        raise PrivacyError(
            f"the expected number of sites in a round must be at most the number of sites, {sites}, got {per_round}. "
            "Lower it or bring more sites."
        )


def _check_threshold(noise: Noise, threshold: int | None, per_round: int) -> None:
    if (noise == "distributed") != (threshold is not None):
        raise PrivacyError("give a threshold with distributed noise, and only with it")
    if threshold is not None and not 2 <= threshold <= per_round:
        raise PrivacyError(
            "the threshold of distributed noise must be from 2 to the expected number of sites in a round, "
            f"{per_round}, got {threshold}."
        )


def dpfedavg_plan(
    *,
    sites: int,
    per_round: int,
    rounds: int,
    delta: float,
    clip_norm: float,
    quantile: Quantile | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    noise: Noise = "server",
    threshold: int | None = None,
    few_clients: bool = False,
) -> DPFedAvgPlan:
    """A plan for ``sites`` from a promise (``epsilon``) or from ``noise_multiplier``; exactly one of them.

    ``per_round``: the expected number of sites in a round. ``threshold``: how many honest answers make the distributed
    noise whole. ``few_clients`` forces a plan for fewer than 10 sites.

    Raises:
        PrivacyError: the promise means nothing (few sites, delta), cannot be kept, or the threshold does not fit.
    """
    _check_sites(sites, per_round, few_clients)
    _check_delta(delta, sites, "site")
    _check_threshold(noise, threshold, per_round)
    slack = SLACK if noise == "distributed" else 0.0
    z = _noise(
        None if epsilon is None else epsilon - 2 * slack,
        noise_multiplier,
        delta=delta * math.exp(-slack),
        sampling_prob=_accounted(noise, per_round / sites),
        steps=rounds,
    )
    _check_count(quantile, z)
    return DPFedAvgPlan(
        unit="client",
        units=sites,
        batch_size=per_round,
        steps=rounds,
        delta=delta,
        clip_norm=clip_norm,
        clip_style="flat",
        quantile=quantile,
        noise_multiplier=z,
        epsilon=epsilon,
        noise=noise,
        threshold=threshold,
        few=few_clients,
    )
