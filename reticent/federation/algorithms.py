"""Federated algorithms: what each changes in a site's local steps, and how the server moves by the mean update.

A site corrects the averaged, and under privacy noisy, gradient of each local step before its own optimiser sees it, so
a correction costs no privacy and fits every optimiser. The server gets the mean over sites of (weights after the local
steps - weights received).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, get_args

import torch

from reticent.errors import FederationError
from reticent.federation.aggregate import Update

Algorithm = Literal["fedavg", "fedprox", "scaffold", "fedavgm", "fedadagrad", "fedyogi", "fedadam"]


class Finished(NamedTuple):
    """What a site has at the end of its local steps beside its weights; both None unless the algorithm is SCAFFOLD.

    ``control_delta`` goes to the server; ``own`` stays at the site for the next round in which it takes part.
    """

    control_delta: Update | None
    own: Update | None


class Correction(Protocol):
    """A site's half of an algorithm, for one round."""

    def apply(self, gradients: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        """Corrects a local step's float32 mean gradient in place; ``weights``: before the step."""
        ...

    def finish(self) -> Finished:
        """Ends the round; on the CPU."""
        ...


class Strategy(Protocol):
    """An algorithm: the server keeps one over the rounds, a site makes one for its `correction`.

    ``control``: what the server sends beside the weights; None if nothing.
    """

    name: Algorithm
    control: Update | None

    def correction(self, weights: Update, control: Update | None, own: Update | None) -> Correction:
        """For a round that begins with ``weights`` and the server's ``control``; ``own``: kept from `Finished`."""
        ...

    def step(
        self, weights: Update, mean_delta: Update, *, control_delta: Update | None = None, share: float = 1.0
    ) -> Update:
        """The next weights, new tensors.

        ``control_delta``: the sites' unweighted mean; ``share``: sites that took part / all sites.
        """
        ...

    def state(self) -> Update:
        """What the next rounds depend on, as tensors to be saved."""
        ...

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a saved `state`."""
        ...


def strategy_for(name: Algorithm, **settings: float) -> Strategy:
    """The algorithm with its ``settings``: `DEFAULTS` says which it has.

    Raises:
        FederationError: the name or a setting is unknown, or a value out of its bounds.
    """
    if name not in _CLASSES:
        raise FederationError(f"there is no algorithm {name}. Use one of {', '.join(get_args(Algorithm))}.")
    for key, value in settings.items():
        if key not in DEFAULTS[name]:
            known = ", ".join(DEFAULTS[name]) or "none"
            raise FederationError(f"{name} has no setting {key}. It has: {known}.")
        _check_bounds(key, value)
    return _CLASSES[name](**{**DEFAULTS[name], **settings})


def _check_bounds(key: str, value: float) -> None:
    if key.startswith("beta"):
        if not 0 <= value < 1:
            raise FederationError(f"{key} must be at least 0 and below 1, got {value}.")
    elif not 0 < value < float("inf"):
        raise FederationError(f"{key} must be positive and finite, got {value}.")


class _Unchanged:
    """A round of plain local steps."""

    def apply(self, gradients: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        """Nothing."""

    def finish(self) -> Finished:
        """Nothing beside the weights."""
        return Finished(None, None)


class FedAvg:
    """Adds the mean delta (McMahan et al. 2017, algorithm 1)."""

    name: Algorithm = "fedavg"
    control: Update | None = None

    def correction(self, weights: Update, control: Update | None, own: Update | None) -> Correction:
        """None: local steps as they are."""
        return _Unchanged()

    def step(
        self, weights: Update, mean_delta: Update, *, control_delta: Update | None = None, share: float = 1.0
    ) -> Update:
        """w + delta."""
        _check_names(mean_delta, weights, "mean delta")
        return {name: value + mean_delta[name] for name, value in weights.items()}

    def state(self) -> Update:
        """Empty: rounds do not depend on each other."""
        return {}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Only an empty state fits."""
        _unpack(state, ())


class FedProx(FedAvg):
    """FedAvg whose sites minimise loss + mu/2 |w - w_received|^2 (Li et al. 2020, equation 2)."""

    name: Algorithm = "fedprox"

    def __init__(self, mu: float) -> None:
        self._mu = mu

    def correction(self, weights: Update, control: Update | None, own: Update | None) -> Correction:
        """Adds mu (w - w_received) to every gradient."""
        return _Proximal(weights, self._mu)


class _Proximal(_Unchanged):
    def __init__(self, received: Update, mu: float) -> None:
        # A copy: if these were the weights in training, the term would be zero.
        self._received, self._mu = {name: value.detach().clone() for name, value in received.items()}, mu

    def apply(self, gradients: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        """The proximal term's gradient, in place."""
        _check_names(gradients, self._received, "gradient")
        self._received = _beside(self._received, gradients)
        for name, gradient in gradients.items():
            gradient.add_(weights[name].detach() - self._received[name], alpha=self._mu)


class Scaffold(FedAvg):
    """Control variates: each local gradient is moved by c - c_i (Karimireddy et al. 2020, algorithm 1).

    A site's new control is the mean of its gradients over the local steps, before the correction. For SGD at a constant
    rate that is the paper's option II; being made of gradients, it is right for every local optimiser.
    """

    name: Algorithm = "scaffold"

    def correction(self, weights: Update, control: Update | None, own: Update | None) -> Correction:
        """Adds c - c_i to every gradient; a control that is None is zero."""
        return _Control(weights, control, own)

    def step(
        self, weights: Update, mean_delta: Update, *, control_delta: Update | None = None, share: float = 1.0
    ) -> Update:
        """w + delta, and c + share * mean of the controls' deltas.

        Raises:
            FederationError: no ``control_delta``, or ``share`` not in (0, 1].
        """
        if control_delta is None or not 0 < share <= 1:
            raise FederationError(
                f"scaffold needs the mean of the sites' control deltas and their share in (0, 1], got {share}. Every "
                "site that counts must send its control delta."
            )
        _check_names(control_delta, weights, "control delta")
        moved = super().step(weights, mean_delta)
        before = self.control or _zeros(weights)
        self.control = {name: value.add(control_delta[name], alpha=share) for name, value in before.items()}
        return moved

    def state(self) -> Update:
        """The server's control."""
        return _pack(c=self.control)

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """The server's control."""
        self.control = _unpack(state, ("c",))["c"]


class _Control:
    def __init__(self, weights: Update, control: Update | None, own: Update | None) -> None:
        self._own, control = own or _zeros(weights), control or _zeros(weights)
        _check_names(self._own, weights, "site's own control")
        _check_names(control, weights, "server's control")
        self._shift = {name: value - self._own[name] for name, value in control.items()}
        self._total, self._steps = _zeros(weights), 0

    def apply(self, gradients: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        """Adds c - c_i, in place."""
        _check_names(gradients, self._total, "gradient")
        self._total, self._shift = _beside(self._total, gradients), _beside(self._shift, gradients)
        for name, gradient in gradients.items():
            self._total[name].add_(gradient)
            gradient.add_(self._shift[name])
        self._steps += 1

    def finish(self) -> Finished:
        """The mean gradient, and its distance from the control before. Without a step nothing changes."""
        if not self._steps:
            return Finished(_zeros(self._own), self._own)
        own = {name: total.div(self._steps).cpu() for name, total in self._total.items()}
        return Finished({name: value - self._own[name] for name, value in own.items()}, own)


class FedAvgM(FedAvg):
    """m = beta1 m + delta, w + eta m (Hsu, Qi and Brown 2019, section 2).

    With eta 1 a steady delta moves the weights by 1 / (1 - beta1) of itself a round.
    """

    name: Algorithm = "fedavgm"

    def __init__(self, eta: float, beta1: float) -> None:
        self._eta, self._beta1 = eta, beta1
        self._m: Update | None = None

    def step(
        self, weights: Update, mean_delta: Update, *, control_delta: Update | None = None, share: float = 1.0
    ) -> Update:
        """One step of SGD with momentum along the mean delta."""
        _check_names(mean_delta, weights, "mean delta")
        before = self._m or _zeros(weights)
        self._m = {name: mean_delta[name].add(m, alpha=self._beta1) for name, m in before.items()}
        return {name: value.add(self._m[name], alpha=self._eta) for name, value in weights.items()}

    def state(self) -> Update:
        """The momentum."""
        return _pack(m=self._m)

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """The momentum."""
        self._m = _unpack(state, ("m",))["m"]


class _Adaptive(FedAvg, ABC):
    """m = beta1 m + (1-beta1) delta, w + eta m / (sqrt(v) + tau), v from tau^2 (Reddi et al. 2021, algorithm 2)."""

    def __init__(self, eta: float, tau: float, beta1: float, beta2: float = 0.0) -> None:
        self._eta, self._tau, self._beta1, self._beta2 = eta, tau, beta1, beta2
        self._m: Update | None = None
        self._v: Update | None = None

    def step(
        self, weights: Update, mean_delta: Update, *, control_delta: Update | None = None, share: float = 1.0
    ) -> Update:
        """One adaptive step along the mean delta."""
        _check_names(mean_delta, weights, "mean delta")
        m = self._m or _zeros(weights)
        v = self._v or {name: torch.full_like(value, self._tau**2) for name, value in weights.items()}
        self._m = {name: m[name].lerp(delta, 1 - self._beta1) for name, delta in mean_delta.items()}
        self._v = {name: self._second(v[name], delta.square()) for name, delta in mean_delta.items()}
        return {
            name: value.addcdiv(self._m[name], self._v[name].sqrt().add_(self._tau), value=self._eta)
            for name, value in weights.items()
        }

    @abstractmethod
    def _second(self, v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """The next v; ``square``: delta^2."""

    def state(self) -> Update:
        """The two moments."""
        return _pack(m=self._m, v=self._v)

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """The two moments."""
        both = _unpack(state, ("m", "v"))
        self._m, self._v = both["m"], both["v"]


class FedAdagrad(_Adaptive):
    """v + delta^2; without momentum unless ``beta1`` is set (Reddi et al. 2021, algorithm 2 and section 5)."""

    name: Algorithm = "fedadagrad"

    def _second(self, v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return v + square


class FedYogi(_Adaptive):
    """v - (1-beta2) delta^2 sign(v - delta^2) (Reddi et al. 2021, algorithm 2)."""

    name: Algorithm = "fedyogi"

    def _second(self, v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return v - (1 - self._beta2) * square * torch.sign(v - square)


class FedAdam(_Adaptive):
    """beta2 v + (1-beta2) delta^2 (Reddi et al. 2021, algorithm 2)."""

    name: Algorithm = "fedadam"

    def _second(self, v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return self._beta2 * v + (1 - self._beta2) * square


_CLASSES: dict[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedyogi": FedYogi,
    "fedadam": FedAdam,
}

DEFAULTS: dict[str, dict[str, float]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.01},
    "scaffold": {},
    "fedavgm": {"eta": 1.0, "beta1": 0.9},
    "fedadagrad": {"eta": 1e-3, "tau": 1e-3, "beta1": 0.0},
    "fedyogi": {"eta": 1e-3, "tau": 1e-3, "beta1": 0.9, "beta2": 0.99},
    "fedadam": {"eta": 1e-3, "tau": 1e-3, "beta1": 0.9, "beta2": 0.99},
}


def _zeros(like: Mapping[str, torch.Tensor]) -> Update:
    return {name: torch.zeros_like(value, requires_grad=False) for name, value in like.items()}


def _beside(update: Update, others: Mapping[str, torch.Tensor]) -> Update:
    """On the devices of ``others``; no copy where it is there already."""
    return {name: value.to(others[name].device) for name, value in update.items()}


def _check_names(update: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str) -> None:
    if update.keys() != expected.keys():
        raise FederationError(
            f"the {what} is not of the tensors that are trained: {sorted(update.keys() ^ expected.keys())[0]} is in "
            "one of them only. Start the run again with one recipe."
        )


def _pack(**parts: Update | None) -> Update:
    """One flat dict; a part that is None is left out."""
    return {f"{key}/{name}": value for key, part in parts.items() for name, value in (part or {}).items()}


def _unpack(state: Mapping[str, torch.Tensor], keys: tuple[str, ...]) -> dict[str, Update | None]:
    parts: dict[str, Update] = {key: {} for key in keys}
    for name, value in state.items():
        key, _, rest = name.partition("/")
        if key not in parts:
            raise FederationError(f"the saved state has {name}, which is of another algorithm. Start a new run.")
        parts[key][rest] = value
    return {key: part or None for key, part in parts.items()}
