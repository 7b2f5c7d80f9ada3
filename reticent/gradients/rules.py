"""How each kind of layer hands over the unit gradients of its parameters, instead of the gradient of the whole row.

A covered layer gets a forward of its own for the time of a step. Its outputs are those of the layer; its backward gives
the unit gradients to a `Tally`. What no rule covers is named by `coverage`; `OneByOne` is exact for it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reticent.errors import PrivacyError
from reticent.gradients.head import HeadLoss
from reticent.gradients.tally import Tally, grouped


class Rule(NamedTuple):
    """A layer, the forward that it gets, and the names of its trained parameters by their name in the layer."""

    layer: nn.Module
    forward: Callable[..., torch.Tensor]
    names: dict[str, str]


class Coverage(NamedTuple):
    """``rules`` of the covered layers, ``whole``: parameters of several layers, ``missing``: what no rule covers."""

    rules: tuple[Rule, ...]
    whole: frozenset[str]
    missing: tuple[str, ...]


class Head(NamedTuple):
    """What the output head predicts in this row: it returns the loss instead of scores."""

    labels: torch.Tensor
    weights: torch.Tensor


class Step:
    """What the layers' forwards need of the row at hand; without a tally, layers have ordinary gradients."""

    def __init__(self) -> None:
        self.tally: Tally | None = None
        self.head: Head | None = None
        self.axes: dict[str, int] = {}  # which axis of a norm's input counts tokens


def coverage(model: nn.Module) -> Coverage:
    """Which rules make the unit gradients of ``model`` exact, and what they leave out."""
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
    rules: list[Rule] = []
    missing: list[str] = []
    inside_lora: set[nn.Module] = set()
    for layer in model.modules():
        if layer in inside_lora:
            continue
        own = {key: names[p] for key, p in layer.named_parameters(recurse=False) if p in names}
        if (rule := _lora_rule(layer, names)) is not None:
            rules.append(rule)
            inside_lora.update(layer.modules())
        elif own and (forward := _forward(layer, own)) is not None:
            rules.append(Rule(layer, forward, own))
        else:
            missing += own.values()
    # A parameter is used by every layer that holds it, in every place that holds the layer.
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    uses: Counter[str] = Counter()
    for layer, count in places.items():
        for parameter in layer.parameters(recurse=False):
            if parameter in names:
                uses[names[parameter]] += count
    head = output_head(model)
    embeddings = [rule for rule in rules if isinstance(rule.layer, nn.Embedding)]
    tied = {rule.names["weight"] for rule in embeddings if head is not None and head.weight is rule.layer.weight}
    whole = {name for name, count in uses.items() if count > (2 if name in tied else 1)}
    missing += [rule.names["weight"] for rule in embeddings if rule.names["weight"] in whole]
    return Coverage(tuple(rules), frozenset(whole), tuple(dict.fromkeys(missing)))


def output_head(model: nn.Module) -> nn.Linear | None:
    """The output head if it is a plain linear layer."""
    head = cast(PreTrainedModel, model).get_output_embeddings()
    return head if type(head) is nn.Linear else None


@contextmanager
def patched(rules: tuple[Rule, ...], head: nn.Linear | None, step: Step) -> Iterator[None]:
    """Within the block, layers run by their rules, and ``head``, if given, returns the loss."""
    changed = []
    try:
        for rule in rules:
            if rule.layer is not head:
                rule.layer.forward = partial(rule.forward, rule.layer, rule.names, step)
                changed.append(rule.layer)
        if head is not None:
            names = next((rule.names for rule in rules if rule.layer is head), {})
            head.forward = partial(_head, head, names, step)  # type: ignore[method-assign]  # for a step; see below
            changed.append(head)
        yield
    finally:
        for layer in changed:
            del layer.forward  # the instance's own; the class's shows again


def lora_rules(model: nn.Module) -> tuple[Rule, ...]:
    """The rules of plain LoRA layers: they are faster than the layers themselves without a tally, too."""
    return tuple(rule for rule in coverage(model).rules if isinstance(rule.layer, LoraLinear))


# ------------------------------------------------------------------------------------------------------ which rule


def _forward(layer: nn.Module, own: dict[str, str]) -> Callable[..., torch.Tensor] | None:
    """The forward that a layer with the trained parameters ``own`` gets, if there is one."""
    if type(layer) is nn.Linear:
        return _linear
    if type(layer) is Conv1D:
        return _conv1d
    if type(layer) is nn.Embedding or (isinstance(layer, nn.Embedding) and "Scaled" in type(layer).__name__):
        return _embedding if layer.max_norm is None and not (layer.scale_grad_by_freq or layer.sparse) else None
    if type(layer) is nn.LayerNorm:
        return _layer_norm if len(layer.normalized_shape) == 1 else None
    if "RMSNorm" in type(layer).__name__:
        return _scale if own.keys() == {"weight"} and cast(torch.Tensor, layer.weight).ndim == 1 else None
    return None


def _lora_rule(layer: nn.Module, names: Mapping[torch.Tensor, str]) -> Rule | None:
    """The rule of a LoRA layer that computes exactly what `_Lora` does."""
    if type(layer) is not LoraLinear or len(layer.active_adapters) != 1:
        return None
    key = layer.active_adapters[0]
    a, b = cast(nn.Linear, layer.lora_A[key]), cast(nn.Linear, layer.lora_B[key])
    plain = (
        not (layer.merged or layer.disable_adapters or layer.lora_variant or layer.fan_in_fan_out)
        and type(layer.base_layer) is nn.Linear
        and not any(p.requires_grad for p in layer.base_layer.parameters())
        and b.weight in names
        and (a.weight in names or not a.weight.requires_grad)
        and isinstance(layer.lora_dropout[key], nn.Identity)
        and b.bias is None
    )
    if not plain:
        return None
    frozen = a.weight not in names
    return Rule(layer, _lora, {"b": names[b.weight]} if frozen else {"a": names[a.weight], "b": names[b.weight]})


# -------------------------------------------------------------------------------------------------------- forwards


def _head(layer: nn.Linear, names: dict[str, str], step: Step, x: torch.Tensor) -> torch.Tensor:
    assert step.head is not None
    both = names.get("weight", ""), names.get("bias", "")
    return _apply(HeadLoss, _flat(x), layer.weight, layer.bias, *step.head, both, step.tally).view(1, 1, 1)


def _linear(layer: nn.Linear, names: dict[str, str], step: Step, x: torch.Tensor) -> torch.Tensor:
    if step.tally is None:
        return linear(x, layer.weight, layer.bias)
    return _apply(_Linear, x, layer.weight, layer.bias, names, step.tally, False)


def _conv1d(layer: Conv1D, names: dict[str, str], step: Step, x: torch.Tensor) -> torch.Tensor:
    if step.tally is None:
        return cast(torch.Tensor, Conv1D.forward(layer, x))
    return _apply(_Linear, x, layer.weight, layer.bias, names, step.tally, True)


def _lora(layer: LoraLinear, names: dict[str, str], step: Step, x: torch.Tensor) -> torch.Tensor:
    key = layer.active_adapters[0]
    base, a, b = layer.base_layer, layer.lora_A[key].weight, layer.lora_B[key].weight
    return _apply(_Lora, x, base.weight, base.bias, a, b, layer.scaling[key], (names.get("a"), names["b"]), step.tally)


def _embedding(layer: nn.Embedding, names: dict[str, str], step: Step, ids: torch.Tensor) -> torch.Tensor:
    if step.tally is None:
        return type(layer).forward(layer, ids)
    y = _apply(_Embedding, ids, layer.weight, layer.padding_idx, names["weight"], step.tally)
    scale = getattr(layer, "embed_scale", None)  # as Gemma's embeddings have
    return y if scale is None else y * scale.to(y.dtype)


def _scale(layer: nn.Module, names: dict[str, str], step: Step, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    """A norm's own forward, its weight repeated for each token: its gradient then is that of each token."""
    if step.tally is None:
        return cast(torch.Tensor, type(layer).forward(layer, x, *rest))
    kept = layer._parameters
    weight = _per_token(cast(torch.Tensor, kept["weight"]), x, names["weight"], step)
    layer._parameters = {**kept, "weight": weight}  # type: ignore[dict-item]  # a view of the parameter
    try:
        return cast(torch.Tensor, type(layer).forward(layer, x, *rest))
    finally:
        layer._parameters = kept


def _layer_norm(layer: nn.LayerNorm, names: dict[str, str], step: Step, x: torch.Tensor) -> torch.Tensor:
    if step.tally is None:
        return nn.LayerNorm.forward(layer, x)
    y = nn.functional.layer_norm(x, layer.normalized_shape, None, None, layer.eps)
    for key, join in (("weight", torch.mul), ("bias", torch.add)):
        value = getattr(layer, key)
        if value is not None:
            y = join(y, _per_token(value, x, names[key], step) if key in names else value)
    return y


def _per_token(vector: torch.Tensor, x: torch.Tensor, name: str, step: Step) -> torch.Tensor:
    """``vector`` (d,) as if each token of ``x`` had its own; ``x``: (1, tokens, d), or with heads in between."""
    assert step.tally is not None
    tokens = step.tally.tokens
    axes = [axis for axis in range(1, x.ndim - 1) if x.shape[axis] == tokens]
    if len(axes) > 1 and step.axes.get(name) in axes:
        axes = [step.axes[name]]
    if len(axes) != 1:
        raise PrivacyError(
            f"{name} is used on a tensor of shape {tuple(x.shape)}, in which the row's {tokens} tokens cannot be "
            "told, so its gradient cannot be split by unit. Train other layers."
        )
    step.axes[name] = axes[0]
    wide = [1] * x.ndim
    wide[axes[0]], wide[-1] = tokens, x.shape[-1]
    return _apply(_PerToken, vector, wide, axes[0], name, step.tally)


# ------------------------------------------------------------------------------------------------ autograd functions


class _Linear(torch.autograd.Function):
    """y = x W^T + bias; y = x W + bias if ``transposed``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        names: dict[str, str],
        tally: Tally,
        transposed: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.about = names, tally, transposed
        return linear(x, weight.t() if transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        names, tally, transposed = ctx.about
        columns, rows = _flat(x), _flat(dy)
        if "weight" in names:
            tally.product(names["weight"], *((columns, rows) if transposed else (rows, columns)))
        if "bias" in names:
            tally.vector(names["bias"], rows)
        dx = dy @ (weight.t() if transposed else weight) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None, None


class _Lora(torch.autograd.Function):
    """y = x W^T + s (x A^T) B^T in the precision of x, with W frozen.

    With u = x A^T and du = s dy B: dx = dy W + du A, g_A = du^T x, g_B = s dy^T u. The tally gets the last two by unit;
    without one they are ordinary gradients. ``names``: of A, None where it is frozen, and of B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        names: tuple[str | None, str],
        tally: Tally | None,
    ) -> torch.Tensor:
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        flat = _flat(x)
        u = flat @ low_a.t()
        y = linear(flat, weight, bias).addmm_(u, low_b.t(), alpha=scale)
        ctx.save_for_backward(x, u, weight, low_a, low_b)
        ctx.about = scale, names, tally
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, u, weight, a, b = ctx.saved_tensors
        scale, names, tally = ctx.about
        rows, columns = _flat(dy), _flat(x)
        du = (rows @ b).mul_(scale)
        dx = (rows @ weight).addmm_(du, a).view_as(x) if ctx.needs_input_grad[0] else None
        if tally is None:
            g_a = None if names[0] is None else (du.t() @ columns).float()
            g_b = (rows.t() @ u).float().mul_(scale)
            return dx, None, None, g_a, g_b, None, None, None
        ends = tally.ends(len(rows))
        if names[0] is not None:
            tally.formed(names[0], grouped(du, columns, ends))
        tally.formed(names[1], grouped(rows, u, ends).mul_(scale))
        return dx, None, None, None, None, None, None, None


class _Embedding(torch.autograd.Function):
    """Rows of ``weight`` (size, d) by ``ids`` (1, tokens)."""

    @staticmethod
    def forward(
        ctx: Any, ids: torch.Tensor, weight: torch.Tensor, padding: int | None, name: str, tally: Tally
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.about = padding, name, tally, len(weight)
        return embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[None, ...]:
        (ids,) = ctx.saved_tensors
        padding, name, tally, size = ctx.about
        rows, flat = _flat(dy), ids.reshape(-1)
        if padding is not None:  # this row of the matrix has no gradient
            rows = rows.masked_fill((flat == padding)[:, None], 0)
        tally.rows(name, flat, rows, size)
        return None, None, None, None, None


class _PerToken(torch.autograd.Function):
    """A view of ``vector`` (d,) in the shape ``wide``, whose ``axis`` counts tokens."""

    @staticmethod
    def forward(ctx: Any, vector: torch.Tensor, wide: list[int], axis: int, name: str, tally: Tally) -> torch.Tensor:
        ctx.about = axis, name, tally
        return vector.expand(wide)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[None, ...]:
        axis, name, tally = ctx.about
        tally.vector(name, dy.movedim(axis, 0).reshape(dy.shape[axis], -1))
        return None, None, None, None, None


def _apply(function: type[torch.autograd.Function], *values: Any) -> torch.Tensor:
    return cast(torch.Tensor, function.apply(*values))


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])
