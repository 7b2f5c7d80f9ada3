"""Engines: the sum over units of each unit's gradient, clipped as a whole.

For units u with records r, and C the clip norm:

    g_u = sum of grad loss_r over the records r of u        loss_r = sum or mean over r's own trained tokens
    S   = sum_u min(1, C / |g_u|) g_u                       0 where g_u is not finite

S and the norms are float32. `Packed` computes many units in one backward pass for models whose trained weights all
belong to plain linear layers (LoRA adapters among them). `OneByOne` is slow and exact for everything else. `Batch` does
not clip: ordinary training. What cannot be exact is refused by `engine_for`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.functional import cross_entropy, grouped_mm, linear
from transformers import PreTrainedModel

from reticent.errors import ModelError, PrivacyError
from reticent.gradients.attention import causal, segments
from reticent.gradients.rows import Loss, Row, Unit, pack
from reticent.privacy.clipping import Clipping

Sums = dict[str, torch.Tensor]


class UnitSum(NamedTuple):
    """What an engine returns for one draw of units.

    ``gradient``: float32 sum per trained parameter. ``loss``: summed over ``records`` records, nats. ``dropped``: units
    whose gradient was not finite; they contributed zero. ``below``: finite units whose gradient's norm is at most the
    clip norm. ``loss``, ``dropped`` and ``below`` are private: never publish them.
    """

    gradient: Sums
    loss: float
    records: int
    dropped: int
    below: int = 0


class Engine(Protocol):
    """The interface between the loop and the engines."""

    def unit_sum(self, units: Sequence[Unit]) -> UnitSum:
        """The sum of the (clipped) gradients of ``units``; zeros for none."""
        ...


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def row_loss(model: nn.Module, row: Row) -> torch.Tensor:
    """Weighted sum of the negative log-likelihoods of a row's predicted tokens, in nats, float32."""
    device = next(model.parameters()).device
    with segments(causal(row.records)):
        logits = model(
            input_ids=row.ids.to(device),
            position_ids=row.positions.to(device),
            logits_to_keep=row.predict.to(device),
            use_cache=False,
        ).logits[0]
    losses = cross_entropy(logits.float(), row.labels.to(device), reduction="none")
    return (losses * row.weights.to(device)).sum()


def _zeros(model: nn.Module) -> Sums:
    return {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trained(model).items()}


class Batch:
    """Ordinary training: the plain sum of all gradients, nothing clipped."""

    def __init__(self, model: PreTrainedModel, *, loss: Loss, micro_batch_tokens: int) -> None:
        self._model, self._loss, self._tokens = model, loss, micro_batch_tokens

    def unit_sum(self, units: Sequence[Unit]) -> UnitSum:
        """The sum of the gradients of ``units``."""
        parameters = trained(self._model)
        total, loss = _zeros(self._model), 0.0
        for group in pack(units, max_tokens=self._tokens, loss=self._loss):
            for row in group:
                with _patched(self._model, row.units, None):
                    value = row_loss(self._model, row)
                loss += float(value.detach())
                for name, part in zip(parameters, _gradients(value, parameters), strict=True):
                    total[name] += part
        return UnitSum(total, loss, sum(len(unit.records) for unit in units), 0)


def _gradients(loss: torch.Tensor, parameters: dict[str, nn.Parameter]) -> list[torch.Tensor]:
    """Float32 gradients; zeros where the loss does not depend on a parameter."""
    parts = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return [
        torch.zeros_like(parameter, dtype=torch.float32) if part is None else part.float()
        for part, parameter in zip(parts, parameters.values(), strict=True)
    ]


class OneByOne:
    """One unit at a time through autograd: the definition itself, and the oracle of every other engine."""

    def __init__(self, model: PreTrainedModel, *, clip_norm: float, loss: Loss, micro_batch_tokens: int) -> None:
        self._model, self._clip, self._loss, self._tokens = model, clip_norm, loss, micro_batch_tokens

    def unit_sum(self, units: Sequence[Unit]) -> UnitSum:
        """The sum of the clipped gradients of ``units``."""
        parameters = trained(self._model)
        total, loss, dropped = _zeros(self._model), 0.0, 0
        for unit in units:
            own = _zeros(self._model)
            for group in pack([unit], max_tokens=self._tokens, loss=self._loss):
                for row in group:
                    value = row_loss(self._model, row)
                    loss += float(value.detach())
                    for name, part in zip(parameters, _gradients(value, parameters), strict=True):
                        own[name] += part
            squares = torch.stack([gradient.square().sum() for gradient in own.values()]).sum()
            factor = clip_factors(squares[None], self._clip)[0]
            dropped += int(factor == 0)
            if factor > 0:  # 0 times infinity is not 0
                for name, gradient in own.items():
                    total[name] += factor * gradient
        return UnitSum(total, loss, sum(len(unit.records) for unit in units), dropped)


class Packed:
    """Many units in one backward pass, for models whose trained weights belong to linear layers only.

    A linear layer y = x W^T has the unit gradient dy_u^T x_u, summed over u's tokens. The layers are given a backward
    that forms these products for all units of a row at once and no gradient of the whole batch.
    """

    def __init__(self, model: PreTrainedModel, *, clip_norm: float, loss: Loss, micro_batch_tokens: int) -> None:
        if (why := why_not_packed(model)) is not None:
            raise ModelError(why)
        self._model, self._clip, self._loss, self._tokens = model, clip_norm, loss, micro_batch_tokens

    def unit_sum(self, units: Sequence[Unit]) -> UnitSum:
        """The sum of the clipped gradients of ``units``."""
        total, loss, dropped = _zeros(self._model), 0.0, 0
        for group in pack(units, max_tokens=self._tokens, loss=self._loss):
            collected: Sums = {}
            for row in group:
                with _patched(self._model, row.units, collected):
                    value = row_loss(self._model, row)
                    value.backward()
                loss += float(value.detach())
            self._refuse_other_paths()
            dropped += _add_clipped(total, collected, self._clip)
        return UnitSum(total, loss, sum(len(unit.records) for unit in units), dropped)

    def _refuse_other_paths(self) -> None:
        for name, parameter in trained(self._model).items():
            if parameter.grad is not None:
                raise PrivacyError(
                    f"{name} is used outside its linear layer, so its gradient cannot be split by unit (DoRA does "
                    "this). Train other layers, or use plain LoRA."
                )


def clip_factors(squared_norms: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """min(1, C / norm) for each unit, (units,) float32; 0 where the norm is not finite."""
    factors = (clip_norm / squared_norms.sqrt()).clamp(max=1.0)  # a zero gradient gives inf, hence 1
    return torch.where(torch.isfinite(squared_norms), factors, torch.zeros_like(factors))


def _add_clipped(total: Sums, collected: Sums, clip_norm: float) -> int:
    """Adds the clipped unit gradients (units, *shape) of one group to ``total``; returns how many were not finite."""
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in collected.values()]).sum(0)
    factors = clip_factors(squares, clip_norm)
    finite = torch.isfinite(squares)
    for name, gradient in collected.items():
        flat = gradient.flatten(1)
        if not finite.all():
            flat = flat[finite]  # 0 times infinity is not 0
        total[name] += (factors[finite] @ flat).view_as(total[name])
    return int((~finite).sum())


class _UnitLinear(torch.autograd.Function):
    """A linear layer whose backward hands the unit gradients of weight and bias to ``collected``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        names: tuple[str, str],
        ends: tuple[int, ...],
        collected: Sums,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.about = (names, ends, collected)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        names, ends, collected = ctx.about
        rows, columns = _flat(dy), _flat(x)
        if weight.requires_grad:
            _accumulate(collected, names[0], _grouped(rows, columns, ends))
        if bias is not None and bias.requires_grad:
            _accumulate(collected, names[1], _grouped(rows, torch.ones_like(columns[:, :1]), ends).squeeze(-1))
        return dy @ weight if ctx.needs_input_grad[0] else None, None, None, None, None, None


class _Lora(torch.autograd.Function):
    """y = x W^T + s (x A^T) B^T in the precision of x, with W frozen.

    With u = x A^T and du = s dy B: dx = dy W + du A, g_A = du^T x, g_B = s dy^T u. If ``collected`` is given it gets
    the last two by unit; otherwise they are ordinary gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: nn.Parameter,
        b: nn.Parameter,
        scale: float,
        names: tuple[str, str],
        ends: tuple[int, ...],
        collected: Sums | None,
    ) -> torch.Tensor:
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        flat = _flat(x)
        u = flat @ low_a.t()
        y = linear(flat, weight, bias).addmm_(u, low_b.t(), alpha=scale)
        ctx.save_for_backward(x, u, weight, low_a, low_b)
        ctx.about = (scale, names, ends, collected)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, u, weight, a, b = ctx.saved_tensors
        scale, names, ends, collected = ctx.about
        rows, columns = _flat(dy), _flat(x)
        du = (rows @ b).mul_(scale)
        dx = (rows @ weight).addmm_(du, a).view_as(x) if ctx.needs_input_grad[0] else None
        if collected is None:
            g_a, g_b = (du.t() @ columns).float(), (rows.t() @ u).float().mul_(scale)
            return dx, None, None, g_a, g_b, None, None, None, None
        _accumulate(collected, names[0], _grouped(du, columns, ends))
        _accumulate(collected, names[1], _grouped(rows, u, ends).mul_(scale))
        return dx, None, None, None, None, None, None, None, None


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _accumulate(collected: Sums, name: str, part: torch.Tensor) -> None:
    collected[name] = collected[name] + part if name in collected else part


def _grouped(dy: torch.Tensor, x: torch.Tensor, ends: tuple[int, ...]) -> torch.Tensor:
    """dy_u^T x_u for every unit u: (units, outputs, inputs), float32."""
    assert len(dy) == len(x) == ends[-1], (len(dy), len(x), ends[-1])
    if dy.shape[1] % 8 == 0 and x.shape[1] % 8 == 0 and dy.dtype in (torch.float32, torch.bfloat16):
        offsets = torch.tensor(ends, dtype=torch.int32, device=dy.device)
        return grouped_mm(dy.t(), x, offs=offsets).float()
    starts = (0, *ends[:-1])
    return torch.stack([(dy[s:e].t() @ x[s:e]).float() for s, e in zip(starts, ends, strict=True)])


@contextmanager
def _patched(model: nn.Module, ends: tuple[int, ...], collected: Sums | None) -> Iterator[None]:
    """Within the block, LoRA layers run as `_Lora`; with ``collected``, trained linear layers run as `_UnitLinear`."""
    changed: list[nn.Module] = []
    try:
        for name, layer in _plain_loras(model):
            key = layer.active_adapters[0]
            a, b, base = layer.lora_A[key].weight, layer.lora_B[key].weight, layer.base_layer
            about = (f"{name}.lora_A.{key}.weight", f"{name}.lora_B.{key}.weight"), ends, collected
            fixed = (base.weight, base.bias, a, b, layer.scaling[key], *about)
            layer.forward = partial(_apply, _Lora, fixed)  # type: ignore[method-assign]
            changed.append(layer)
        for name, linear_layer in _trained_linears(model) if collected is not None else []:
            names = (f"{name}.weight", f"{name}.bias")
            own = (linear_layer.weight, linear_layer.bias, names, ends, collected)
            linear_layer.forward = partial(_apply, _UnitLinear, own)  # type: ignore[method-assign]
            changed.append(linear_layer)
        yield
    finally:
        for module in changed:
            del module.forward  # the instance's own; the class's shows again


def _apply(function: type[torch.autograd.Function], fixed: tuple[Any, ...], x: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, function.apply(x, *fixed))


def _plain_loras(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    """LoRA layers that compute exactly what `_Lora` does; others run layer by layer."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is LoraLinear
        and len(module.active_adapters) == 1
        and not (module.merged or module.disable_adapters or module.lora_variant or module.fan_in_fan_out)
        and type(module.base_layer) is nn.Linear
        and not any(p.requires_grad for p in module.base_layer.parameters())
        and all(part[module.active_adapters[0]].weight.requires_grad for part in (module.lora_A, module.lora_B))
        and isinstance(module.lora_dropout[module.active_adapters[0]], nn.Identity)
        and module.lora_B[module.active_adapters[0]].bias is None
    ]


def _trained_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and any(p.requires_grad for p in module.parameters())
    ]


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Why `Packed` cannot be exact for ``model``, or None if it is."""
    linears = _trained_linears(model)
    if any(parameter.requires_grad for parameter in model.get_output_embeddings().parameters()):
        return "the output head is trained"
    weights = [parameter for _, module in linears for parameter in module.parameters() if parameter.requires_grad]
    if len(set(weights)) < len(weights):
        return "two linear layers share a trained weight"
    covered = {f"{name}.{part}" for name, module in linears for part, _ in module.named_parameters(recurse=False)}
    others = [name for name in trained(model) if name not in covered]
    if others:
        return f"{len(others)} trained parameters are not in plain linear layers, the first is {others[0]}"
    return None


def refuse_inexact(model: PreTrainedModel) -> None:
    """Refuses models in which one record changes the gradient of another.

    Raises:
        ModelError: the layer is named.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and not isinstance(
            module, nn.modules.instancenorm._InstanceNorm
        ):
            raise ModelError(
                f"{name} ({type(module).__name__}) mixes the records of a batch: it has no exact per-unit gradient, so "
                "no privacy promise can be kept. Use a model with LayerNorm or RMSNorm."
            )


def engine_for(model: PreTrainedModel, *, clipping: Clipping | None, loss: Loss, micro_batch_tokens: int) -> Engine:
    """The fastest exact engine for ``model``; no clipping if ``clipping`` is None.

    Raises:
        ModelError: no engine can be exact.
    """
    if clipping is None:
        return Batch(model, loss=loss, micro_batch_tokens=micro_batch_tokens)
    refuse_inexact(model)
    kind = Packed if why_not_packed(model) is None else OneByOne
    return kind(model, clip_norm=clipping.norm, loss=loss, micro_batch_tokens=micro_batch_tokens)
