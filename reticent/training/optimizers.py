"""Optimisers: how an averaged gradient moves the weights. Weight decay is decoupled in all of them.

All are post-processing of noisy sums, so none of them costs privacy.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from reticent.errors import PrivacyError

Name = Literal["adamw", "sgd", "dp-adam"]
FLOOR = 0.05  # of the noise's variance; the second moment's own error at beta2 = 0.999 is 0.03 of it


def optimizer_for(
    parameters: Iterable[torch.nn.Parameter],
    name: Name,
    *,
    weight_decay: float,
    momentum: float,
    beta1: float,
    beta2: float,
) -> torch.optim.Optimizer:
    """An optimiser whose learning rate, and for dp-adam the noise's variance, are set before each step."""
    if name == "sgd":
        return SGD(parameters, momentum=momentum, weight_decay=weight_decay)
    if name == "dp-adam":
        return DPAdam(parameters, betas=(beta1, beta2), weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=0.0, betas=(beta1, beta2), weight_decay=weight_decay)


class SGD(torch.optim.SGD):
    """torch's SGD with momentum, and weight decay that does not pass through the momentum."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=0.0, momentum=momentum)
        for group in self.param_groups:
            group["decay"] = weight_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Decays, then moves."""
        for group in self.param_groups:
            for parameter in group["params"] if group["decay"] else ():
                parameter.mul_(1 - group["lr"] * group["decay"])
        return super().step(closure)


class DPAdam(torch.optim.Optimizer):
    """DP-AdamBC (Tang, Shpilevskiy and Lécuyer 2024, algorithm 1): Adam without the noise's part of the second moment.

    m and v are Adam's averages of the noisy gradient g and of g^2. E g^2 is the signal's square plus the noise's
    variance, which is known, so its average phi, with v's own weights, is taken off:

        step = lr m' / sqrt(max(v' - phi', FLOOR phi'))        ' is Adam's bias correction

    Before each step, ``param_groups[i]["noise_variance"]`` must be the variance of the noise in each coordinate of the
    gradient; it may change from step to step, as with a tracked clip norm. The paper's floor is a constant to be tuned;
    here it goes with the noise, so that it means the same at every clip norm and batch size.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], *, betas: tuple[float, float], weight_decay: float
    ) -> None:
        defaults = {
            "lr": 0.0,
            "betas": betas,
            "weight_decay": weight_decay,
            "noise_variance": 0.0,
            "steps": 0,
            "phi": 0.0,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on the gradients in place.

        Raises:
            PrivacyError: the noise's variance is not above zero.
        """
        for group in self.param_groups:
            if not group["noise_variance"] > 0:
                raise PrivacyError(
                    f"dp-adam takes the noise's variance off, which must be > 0, got {group['noise_variance']:g}. "
                    "Without noise say train.optimizer: adamw."
                )
            beta1, beta2 = group["betas"]
            group["steps"] += 1
            group["phi"] = beta2 * group["phi"] + (1 - beta2) * group["noise_variance"]
            first, second = 1 - beta1 ** group["steps"], 1 - beta2 ** group["steps"]
            phi = group["phi"] / second
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if not state:
                    state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                m, v = state["m"].lerp_(gradient, 1 - beta1), state["v"]
                v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                scale = v.div(second).sub_(phi).clamp_(min=FLOOR * phi).sqrt_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(m, scale, value=-group["lr"] / first)
