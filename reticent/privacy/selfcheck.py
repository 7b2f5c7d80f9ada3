"""Self-check of private training from inside: what runs is held against what is promised.

A real trainer makes real steps on neighbouring draws of a few units, and its inner values are compared (Cebere et al.
2026, arXiv 2602.17454): the clipped sum before noise, the noise that reaches the optimiser, what the optimiser divides
by, the draws of the sampler, the ledger on disk. A test of outputs would need thousands of trainings for the same.

Nine checks are statistical. Each fails a sound trainer with probability `ALARM`, over all its tensors and draws
together, so all of them fail it less than once in 10,000 times. p in [0.001, 0.999] would do so in 1 of 60; the
stricter bound still finds noise that is 1 % too small in 400,000 coordinates.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import dp_accounting
import numpy as np
import torch
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from scipy import stats

from reticent.errors import PrivacyError, ReticentError
from reticent.privacy.accounting import Release
from reticent.privacy.noise import Sums
from reticent.privacy.plan import BandedPlan, DPSGDPlan, PrivatePlan
from reticent.privacy.toeplitz import optimised
from reticent.progress import SILENT, Progress

ALARM = 5e-6
ROUNDING = 1e-4  # of the noise and the divisor in float32
_COORDINATES = 2**16  # of a tensor, evenly spread, whose noise is looked at
_DRAWS = 4_000_000  # coins of the sampler that are looked at
_STEPS = 2  # with noise of the operating system


class Check(NamedTuple):
    """One check. ``measured`` is to be within ``bound``: which of them is the larger, ``detail`` says in words."""

    name: str
    passed: bool
    measured: float
    bound: float
    detail: str


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One step, seen from inside. All sums are float32, by parameter.

    ``clipped``: the sum of the clipped gradients before noise, ``noised``: after it; ``given``: the gradient that the
    optimiser got. ``moved``: every tensor of the model that the step changed, under production noise. ``words``: how
    many random words each request for noise took, where they were recorded. ``entries``: of the ledger on disk when
    the optimiser began.
    """

    clipped: Sums
    noised: Sums
    given: Sums
    moved: frozenset[str]
    words: tuple[int, ...]
    entries: tuple[Mapping[str, float], ...]


class RecordedWords:
    """The same words again after each `rewind`, and how many each request took. For checks alone, never a release."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.rewind()

    def rewind(self) -> None:
        """Begins again."""
        self._rng, self.counts = np.random.default_rng(self._seed), list[int]()

    def words(self, count: int) -> np.ndarray:
        """(count,) uint64."""
        self.counts.append(count)
        return self._rng.integers(0, 2**64, count, dtype=np.uint64)


class Trainee(Protocol):
    """A trainer under test. Units are known by their number.

    ``members``: two or more ordinary units. ``adversaries``: the numbers of others, by what is bad about them.
    ``tolerance``: how far rounding alone may carry a sum of bounded gradients, as a share of the clip norm.
    """

    @property
    def plan(self) -> PrivatePlan:
        """What it promises."""
        ...

    @property
    def trainable(self) -> Collection[str]:
        """The names of the parameters that it trains."""
        ...

    @property
    def members(self) -> Sequence[int]:
        """Ordinary units."""
        ...

    @property
    def adversaries(self) -> Mapping[str, int]:
        """Units that no bound may break on."""
        ...

    @property
    def tolerance(self) -> float:
        """Of rounding."""
        ...

    def steps(self, draws: Sequence[Sequence[int]], words: RecordedWords | None = None) -> Iterator[Observed]:
        """A new trainer's steps on the given draws, each from the same weights and the first clip norm.

        Its noise comes from ``words``, rewound before each step, or as in production.
        """
        ...

    def draws(self, count: int) -> list[np.ndarray]:
        """What a production sampler draws in its first ``count`` steps, as numbers below units; each call a new one."""
        ...

    def counts(self, count: int) -> np.ndarray | None:
        """So many noisy counts of an empty draw, (count,), by which the clip norm follows; None where it is fixed."""
        ...

    def epsilon(self) -> float:
        """What the ledger says has been spent after all steps of the plan."""
        ...


def selfcheck(trainee: Trainee, progress: Progress = SILENT) -> list[Check]:
    """All checks of ``trainee``; a part that it refuses to run is a check that failed."""
    parts: dict[str, Callable[[Trainee], Iterable[Check]]] = {
        "sensitivity": _neighbours,
        "noise": _noise,
        "sampling and accounting": _promise,
    }
    found: list[Check] = []
    with progress.task("checking the private training", total=len(parts)) as task:
        for name, part in parts.items():
            try:
                found += part(trainee)
            except ReticentError as error:
                found.append(Check(f"{name}: runs", False, 1.0, 0.0, f"the trainer stopped: {error}"))
            task.advance()
    return found


# -------------------------------------------------------------------------------------- sensitivity and control flow


def _neighbours(trainee: Trainee) -> Iterator[Check]:
    """Draws with one unit more, one less and one replaced, all with the same noise."""
    plan, base = trainee.plan, list(trainee.members)
    names = list(trainee.adversaries)
    draws = [[], base[:1], base, *([*base, trainee.adversaries[name]] for name in names)]
    words, unmix = RecordedWords(0), _Unmix(plan)
    taken: list[tuple[int, ...]] = []
    divisors: list[float] = []
    late: list[int] = []
    noises: list[Sums] = []
    without: Sums = {}
    first: Sums = {}
    replaced: list[float] = []
    checks: list[Check] = []
    for index, seen in enumerate(trainee.steps(draws, words)):
        taken.append(seen.words)
        divisors.append(_divisor(seen))
        late.append(abs(index + 1 - len(seen.entries)))
        noises.append(unmix(_noise_of(seen, plan)))
        clip_norm = _clip_norm(seen, plan)
        if index == 2:
            without = seen.clipped
        if index > 2:
            more = _distance(seen.clipped, without) / clip_norm
            bound = 1 + trainee.tolerance
            told = "how far one unit more moves the clipped sum, in clip norms"
            checks.append(Check(f"sensitivity: {names[index - 3]}", more <= bound, more, bound, told))
            first = first or seen.clipped
            replaced.append(_distance(seen.clipped, first) / clip_norm)
    yield from checks
    most, bound = _most(replaced), 2 * (1 + trainee.tolerance)
    yield Check(
        "sensitivity: one unit replaced", most <= bound, most, bound, "how far it moves the clipped sum, in clip norms"
    )
    other = float(sum(one != taken[0] for one in taken))
    yield Check(
        "control flow: random draws", other == 0 and bool(taken[0]), other, 0.0,
        f"neighbouring draws that took other numbers of random words than {sum(taken[0])}",
    )  # fmt: skip
    off = _most([_norm(_minus(one, noises[0])) / max(_norm(noises[0]), 1e-30) for one in noises[1:]])
    yield Check(
        "control flow: noise apart from data", off <= ROUNDING * 10, off, ROUNDING * 10,
        "how far the noise of neighbouring draws differs under the same random words, as a share of it",
    )  # fmt: skip
    off = _most([abs(one / plan.batch_size - 1) for one in divisors])
    yield Check(
        "control flow: divisor", off <= ROUNDING, off, ROUNDING,
        f"share by which it was not the expected batch, {plan.batch_size}, on draws of 0 to {len(base) + 1} units",
    )  # fmt: skip
    yield Check(
        "accounting: ledger before weights", not any(late), float(max(late)), 0.0,
        f"releases that were missing in the ledger on disk, or too many, when the weights moved ({len(late)} steps)",
    )  # fmt: skip


def _divisor(seen: Observed) -> float:
    """What the noisy sum was divided by on its way to the optimiser; infinite where that is not all that happened."""
    across = sum(float((value.double() * seen.given[name].double()).sum()) for name, value in seen.noised.items())
    square = _norm(seen.given) ** 2
    if not square > 0:
        return math.inf
    divisor = across / square
    left = _norm({name: value - divisor * seen.given[name] for name, value in seen.noised.items()})
    return divisor if left <= ROUNDING * _norm(seen.noised) else math.inf


def _clip_norm(seen: Observed, plan: PrivatePlan) -> float:
    return seen.entries[-1]["clip_norm"] if seen.entries else plan.clip_norm


# ---------------------------------------------------------------------------------------------------------- noise


class _Unmix:
    """Takes correlated noise apart into the fresh noise of each step: z_t is the sum of c_j y_(t-j)."""

    def __init__(self, plan: PrivatePlan) -> None:
        self.coefficients = optimised(plan.bands, plan.steps) if isinstance(plan, BandedPlan) else np.ones(1)
        self._past: list[Sums] = []  # newest first

    def __call__(self, noise: Sums) -> Sums:
        self._past = [noise, *self._past][: len(self.coefficients)]
        return {
            name: torch.stack(
                [float(c) * past[name] for c, past in zip(self.coefficients, self._past, strict=False)]
            ).sum(0)
            for name in noise
        }


def _noise_of(seen: Observed, plan: PrivatePlan) -> Sums:
    """The noise that the optimiser got, at some coordinates of each tensor: (coordinates,) float64."""
    return {
        name: _some(seen.given[name]) * plan.batch_size - _some(value)
        for name, value in seen.clipped.items()
        if name in seen.given
    }


def _some(value: torch.Tensor) -> torch.Tensor:
    flat = value.detach().flatten()
    return flat[:: max(1, len(flat) // _COORDINATES)].double().cpu()


def _noise(trainee: Trainee) -> Iterator[Check]:
    """Two trainings of one seed with the operating system's noise."""
    plan, trainable = trainee.plan, set(trainee.trainable)
    draws = [list(trainee.members), []]
    seen_of: list[list[Sums]] = []
    moved: set[str] = set()
    still = set(trainable)
    for _ in range(2):
        unmix, fresh = _Unmix(plan), []
        for seen in trainee.steps(draws):
            std = _promised_std(seen, plan)
            fresh.append({name: value / std for name, value in unmix(_noise_of(seen, plan)).items()})
            moved |= seen.moved
            still -= seen.moved
        seen_of.append(fresh)
    a, b = seen_of
    silent = [name for name in trainable if not any(_heard(one.get(name)) for one in (*a, *b))]
    yield _of_tensors("noise: every trained tensor", silent, f"of {len(trainable)} trained tensors, without noise")
    yield _of_tensors("noise: every trained tensor moves", sorted(still), "trained tensors that no step changed")
    yield _of_tensors(
        "noise: no other tensor moves", sorted(moved - trainable), "tensors that a step changed and nobody trains"
    )
    differences = [
        {name: (one[name] - two[name]) / math.sqrt(2) for name in one} for one, two in zip(a, b, strict=True)
    ]
    squares = {name: float(sum((one[name] ** 2).sum() for one in differences)) for name in differences[0]}
    sizes = {name: _STEPS * differences[0][name].numel() for name in squares}
    p, total = (
        _two_sided(sum(squares.values()), sum(sizes.values())),
        math.sqrt(sum(squares.values()) / sum(sizes.values())),
    )
    yield Check(
        "noise: scale", p >= ALARM, p, ALARM,
        f"p of its size, which is {total:.4g} of what the ledger says ({sum(sizes.values())} coordinates)",
    )  # fmt: skip
    worst = min(squares, key=lambda name: _two_sided(squares[name], sizes[name]))
    p = min(1.0, _two_sided(squares[worst], sizes[worst]) * len(squares))
    told = f"{math.sqrt(squares[worst] / sizes[worst]):.4g} of what the ledger says in the least likely, {worst}"
    yield Check("noise: scale of each tensor", p >= ALARM, p, ALARM, f"p of their sizes: {told}")
    p = min(1.0, 2 * min(_unrelated(a[0], a[1]), _unrelated(b[0], b[1])))
    yield Check("noise: new at every step", p >= ALARM, p, ALARM, "p of the correlation between two steps' noise")
    p = min(1.0, _STEPS * min(_unrelated(one, two) for one, two in zip(a, b, strict=True)))
    yield Check(
        "noise: new in every run", p >= ALARM, p, ALARM, "p of the correlation between two runs of the same recipe"
    )
    p = min(1.0, 2 * min(_tensors_unrelated(one) for one in (a[0], b[1])))
    yield Check("noise: new in every tensor", p >= ALARM, p, ALARM, "p of the correlation between neighbouring tensors")
    if isinstance(plan, BandedPlan):
        size = float(np.linalg.norm(_Unmix(plan).coefficients))
        yield Check("noise: factorisation", size <= 1 + 1e-9, size, 1 + 1e-9, "norm of a column of the strategy matrix")
    yield from _count_noise(trainee)


def _promised_std(seen: Observed, plan: PrivatePlan) -> float:
    """Standard deviation of the fresh noise, by the ledger."""
    if not seen.entries:
        return plan.noise_multiplier * plan.clip_norm
    entry = seen.entries[-1]
    return entry.get("sum_noise_multiplier", entry["noise_multiplier"]) * entry["clip_norm"]


def _count_noise(trainee: Trainee) -> Iterator[Check]:
    plan, counts = trainee.plan, trainee.counts(1000)
    if counts is None or not isinstance(plan, DPSGDPlan) or plan.quantile is None:
        return
    scaled = counts / plan.quantile.noise
    p = _two_sided(float(scaled @ scaled), len(scaled))
    yield Check(
        "noise: scale of the count", p >= ALARM, p, ALARM,
        f"p of the size of the noise on the count that moves the clip norm, {float(scaled.std()):.4g} of its promise",
    )  # fmt: skip
    spent = math.hypot(1 / plan.sum_noise, 1 / (2 * plan.quantile.noise)) * plan.noise_multiplier
    yield Check(
        "noise: sum and count together", spent <= 1 + 1e-9, spent, 1 + 1e-9,
        "what one unit moves both releases, in the noise that is accounted",
    )  # fmt: skip


def _heard(noise: torch.Tensor | None) -> bool:
    """Whether there is any noise; in one coordinate alone a fair one is as small once in 10,000 times."""
    return noise is not None and bool((noise.abs() > ROUNDING).any())


def _of_tensors(name: str, wrong: Sequence[str], what: str) -> Check:
    first = f", the first is {min(wrong)}" if wrong else ""
    return Check(name, not wrong, float(len(wrong)), 0.0, f"{what}{first}")


def _two_sided(square: float, count: float) -> float:
    """p of a sum of ``count`` squares of standard normals."""
    law = stats.chi2(count)
    return float(min(1.0, 2 * min(law.cdf(square), law.sf(square))))


def _unrelated(one: Sums, two: Sums) -> float:
    """p of the correlation of independent noise; 0 where there is none to compare."""
    x, y = (torch.cat([value for _, value in sorted(sums.items())]) for sums in (one, two))
    return _correlation_p(x, y)


def _tensors_unrelated(sums: Sums) -> float:
    """The same between each tensor and the next one, for all pairs together."""
    values = [value for _, value in sorted(sums.items()) if len(value) > 1]
    found = [_correlation_p(x[: len(y)], y[: len(x)]) for x, y in pairwise(values)]
    return min(1.0, min(found, default=1.0) * len(found)) if found else 1.0


def _correlation_p(x: torch.Tensor, y: torch.Tensor) -> float:
    """p of the mean product of two independent standard normal series, in their own scales."""
    scale = float(x.norm() * y.norm())
    if not 0 < scale < math.inf:
        return 0.0
    cosine = min(1.0, abs(float(x @ y)) / scale)
    # The cosine of independent directions in n dimensions: cosine^2 is Beta(1/2, (n - 1)/2).
    return float(stats.beta(0.5, (len(x) - 1) / 2).sf(cosine**2)) if len(x) > 1 else 1.0


# ------------------------------------------------------------------------------------------------------- sampling


def _promise(trainee: Trainee) -> Iterator[Check]:
    (seen,) = trainee.steps([[]])
    if not seen.entries:
        raise PrivacyError("the first step left no entry in the ledger")
    yield from _sampling(trainee, seen.entries[-1])
    yield from _accounting(trainee, seen.entries[-1])


def _sampling(trainee: Trainee, entry: Mapping[str, float]) -> Iterator[Check]:
    """The production sampler against the law that is accounted; ``bands`` steps, one of each group, are one draw."""
    plan = trainee.plan
    bands, units = plan.bands if isinstance(plan, BandedPlan) else 1, plan.units
    prob = entry["sampling_prob"]
    count = int(np.clip(_DRAWS // units, 60, 400))
    steps, again = trainee.draws(count * bands), trainee.draws(count * bands)
    sizes = np.array([sum(len(draw) for draw in steps[i : i + bands]) for i in range(0, len(steps), bands)])
    p = float(stats.binomtest(int(sizes.sum()), count * units, prob).pvalue) if 0 <= prob <= 1 else 0.0
    yield Check(
        "sampling: rate", p >= ALARM, p, ALARM,
        f"p of {sizes.sum() / (count * units):.4g} drawn where the ledger says {prob:.4g} ({count * units} chances)",
    )  # fmt: skip
    p = _spread_p(sizes, units, prob)
    ratio = float(sizes.var() / max(units * prob * (1 - prob), 1e-30)) if 0 < prob < 1 else 1.0
    yield Check(
        "sampling: sizes vary", p >= ALARM, p, ALARM,
        f"p of the variance of {count} batch sizes, {ratio:.3g} of a Poisson sample's",
    )  # fmt: skip
    taken = np.bincount(np.concatenate(steps).astype(np.int64), minlength=units)
    p = _spread_p(taken, count, prob)
    yield Check("sampling: units alike", p >= ALARM, p, ALARM, "p of the spread of how often each unit was drawn")
    same = all(np.array_equal(one, two) for one, two in zip(steps, again, strict=True))
    yield Check(
        "sampling: new in every run", not same or prob == 1, float(same), 0.0, "whether two runs drew the same batches"
    )
    closest = _closest(steps, units)
    yield Check(
        "sampling: parts apart", closest >= bands, closest, float(bands), "fewest steps between two draws of one unit"
    )


def _spread_p(counts: np.ndarray, trials: int, prob: float) -> float:
    """p of the spread of independent Binomial(trials, prob) ``counts`` around their mean.

    The sum of squared deviations, by the scaled chi-square of the same mean and variance.
    """
    variance = trials * prob * (1 - prob)
    if not 0 < prob < 1:
        return float(np.all(counts == trials * prob)) if prob in (0, 1) else 0.0
    kurtosis = (1 - 6 * prob * (1 - prob)) / variance  # excess
    scale = 1 + kurtosis / 2
    square = float(((counts - trials * prob) ** 2).sum() / variance)
    return _two_sided(square / scale, len(counts) / scale)


def _closest(steps: Sequence[np.ndarray], units: int) -> float:
    last = np.full(units, -np.inf)
    closest = math.inf
    for step, draw in enumerate(steps):
        if len(draw):
            closest = min(
                closest, float((step - last[draw]).min()), 0.0 if len(set(draw.tolist())) < len(draw) else math.inf
            )
        last[draw] = step
    return closest


# ----------------------------------------------------------------------------------------------------- accounting


def _accounting(trainee: Trainee, entry: Mapping[str, float]) -> Iterator[Check]:
    plan = trainee.plan
    off = max(abs(entry[key] / value - 1) for key, value in plan.release._asdict().items())
    yield Check(
        "accounting: entry", off <= 1e-12, off, 1e-12, "share by which the ledger's noise or rate is not the plan's"
    )
    parts = math.ceil(plan.steps / (plan.bands if isinstance(plan, BandedPlan) else 1))
    claimed = trainee.epsilon()
    least, most = bounds(Release(entry["sampling_prob"], entry["noise_multiplier"]), parts, plan.delta)
    yield Check(
        "accounting: epsilon not too low", claimed >= least, claimed, least,
        f"epsilon after {plan.steps} steps by the ledger, against a lower bound computed apart from it (PLD)",
    )  # fmt: skip
    most = 1.01 * most + 0.01  # as much as the PLD's grid may add
    yield Check(
        "accounting: epsilon not too high", claimed <= most, claimed, most,
        "epsilon by the ledger, against an upper bound by another accountant (RDP)",
    )  # fmt: skip
    if plan.epsilon is not None:
        yield Check(
            "accounting: promise kept", claimed <= plan.epsilon, claimed, plan.epsilon,
            f"epsilon of all {plan.steps} steps, against what was asked for",
        )  # fmt: skip


def bounds(release: Release, times: int, delta: float) -> tuple[float, float]:
    """Lower and upper bound on epsilon of ``times`` subsampled Gaussians: optimistic PLD, Rényi DP.

    The PLD is rounded down, on a grid of its own, where the ledger's is rounded up.
    """
    loss = privacy_loss_distribution.from_gaussian_mechanism(
        release.noise_multiplier,
        pessimistic_estimate=False,
        value_discretization_interval=1e-4,
        sampling_prob=release.sampling_prob,
        use_connect_dots=False,
    )
    least = float(loss.self_compose(times).get_epsilon_for_delta(delta))
    # Of whole orders alone: there the moments are finite sums.
    rdp = RdpAccountant(range(2, 257), dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    gaussian = dp_accounting.GaussianDpEvent(release.noise_multiplier)
    rdp.compose(dp_accounting.PoissonSampledDpEvent(release.sampling_prob, gaussian), times)
    return least, float(rdp.get_epsilon(delta))


# -------------------------------------------------------------------------------------------------------- numbers


def _most(values: Sequence[float]) -> float:
    """The largest; infinite if one is not a number."""
    return max((math.inf if math.isnan(value) else value for value in values), default=0.0)


def _norm(sums: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in sums.values()))


def _minus(one: Sums, two: Sums) -> Sums:
    return {name: value - two[name] for name, value in one.items()}


def _distance(one: Sums, two: Sums) -> float:
    """Of two sums of gradients; infinite if it is not a number."""
    found = math.sqrt(sum(float((value.double() - two[name].double()).square().sum()) for name, value in one.items()))
    return math.inf if math.isnan(found) else found
