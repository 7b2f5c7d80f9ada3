"""How what the sites send becomes the next joint weights: one object a round for each way to join adapters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from reticent.federation import lora
from reticent.federation.aggregate import WeightedMean

if TYPE_CHECKING:
    from reticent.federation.lora import Product

Update = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


class Joined(NamedTuple):
    """The result of a round: the mean change of the weights, or the next weights and what the base's layers hold
    beyond the base. ``control``: the mean of SCAFFOLD's. ``error``: relative, that of averaging A and B apart, where it
    can be measured.
    """

    change: Update | None = None
    control: Update | None = None
    weights: Update | None = None
    base: Update | None = None
    error: float | None = None


class Joining(Protocol):
    """Takes the updates of one round as they come."""

    def add(self, update: Update, weight: float) -> None:
        """One site's update; it is not kept longer than it must be."""
        ...

    def result(self) -> Joined:
        """What they are together."""
        ...


def shapes_of(mode: str, weights: Mapping[str, torch.Tensor]) -> Shapes:
    """The shapes of what a site sends."""
    if mode != "merged":
        return {name: tuple(value.shape) for name, value in weights.items()}
    return {layer: (b.shape[0], a.shape[1]) for layer, (b, a) in lora.factors(weights).items()}


def joining_for(mode: str, weights: Update, base: Update, *, seed: int) -> Joining:
    """``weights``: joint ones, ``base``: what the base's layers hold beyond the base, ``seed``: of this round."""
    match mode:
        case "product":
            return _Products(weights)
        case "residual":
            return _Residuals(weights, base)
        case "merged":
            return _Merged(weights, base, seed)
    return _Means(weights if mode == "average" else {}, seed)


class _Means:
    """The mean change, tensor by tensor. ``weights``: of adapters whose two halves are averaged apart."""

    def __init__(self, weights: Update, seed: int) -> None:
        self._weights, self._mean = weights, WeightedMean()
        self._error = lora.PlainError(seed)

    def add(self, update: Update, weight: float) -> None:
        self._mean.add(update, weight)
        if self._weights:
            self._error.add(_sum(self._weights, update), weight)

    def result(self) -> Joined:
        change = self._mean.result()
        error = self._error.result(_sum(self._weights, change)) if self._weights else None
        return Joined(change=change, error=error)


class _Products:
    """The mean of B A, brought back to the rank of the adapters."""

    def __init__(self, weights: Update) -> None:
        self._weights, self._mean, self._exact = weights, WeightedMean(), lora.ProductMean()

    def add(self, update: Update, weight: float) -> None:
        full = _sum(self._weights, update)
        self._mean.add(full, weight)
        self._exact.add(full, weight)

    def result(self) -> Joined:
        exact, before = self._exact.result(), lora.factors(self._weights)
        error = lora.plain_error(exact, lora.factors(self._mean.result()))
        rank = next(iter(before.values())).a.shape[0]
        found, _ = lora.refactor(exact, rank, {layer: a for layer, (_, a) in before.items()})
        return Joined(weights=lora.named(found, self._weights), error=error)


class _Residuals:
    """A and B averaged apart; what that misses of the mean of B A is added to the base, as factors."""

    def __init__(self, weights: Update, base: Update) -> None:
        self._weights, self._base = weights, base
        self._mean, self._exact = WeightedMean(), lora.ProductMean()

    def add(self, update: Update, weight: float) -> None:
        full = _sum(self._weights, update)
        self._mean.add(full, weight)
        self._exact.add(full, weight)

    def result(self) -> Joined:
        exact, mean = self._exact.result(), self._mean.result()
        plain = lora.factors(mean)
        missed = lora.residual(exact, plain)
        kept = [factored(self._base)] if self._base else []
        base = {
            f"{layer}/{half}": value
            for layer, both in lora.recompress([*kept, missed]).items()
            for half, value in both._asdict().items()
        }
        return Joined(weights=mean, base=base, error=lora.plain_error(exact, plain))


class _Merged:
    """The mean of the scaled products, dense, is added to the base; adapters begin anew."""

    def __init__(self, weights: Update, base: Update, seed: int) -> None:
        self._weights, self._base, self._seed, self._mean = weights, base, seed, WeightedMean()

    def add(self, update: Update, weight: float) -> None:
        self._mean.add(update, weight)

    def result(self) -> Joined:
        fresh = torch.Generator().manual_seed(self._seed)
        weights: Update = {}
        for pair in lora.pairs(self._weights):
            a, b = self._weights[pair.a], self._weights[pair.b]
            bound = a.shape[1] ** -0.5  # as PEFT begins
            weights[pair.a] = torch.empty(a.shape).uniform_(-bound, bound, generator=fresh)
            weights[pair.b] = torch.zeros(b.shape)
        return Joined(weights=weights, base=lora.merge(self._base, self._mean.result()))


def factored(base: Mapping[str, torch.Tensor]) -> "Product":
    """What is added to the base as factors, by layer."""
    layers = sorted({name[:-2] for name in base if name.endswith("/a")})
    return {layer: lora.Factors(base[f"{layer}/b"], base[f"{layer}/a"]) for layer in layers}


def added(base: Mapping[str, torch.Tensor], scale: float) -> Update:
    """What is added to the base's weights, dense, by layer."""
    factors = factored(base)
    return lora.dense(factors, scale) if factors else dict(base)


def _sum(weights: Mapping[str, torch.Tensor], change: Mapping[str, torch.Tensor]) -> Update:
    return {name: value + change[name] for name, value in weights.items()}
