"""Engines: the sum over units of each unit's gradient, clipped as a whole.

For units u with records r, and C the clip norm:

    g_u = sum of grad loss_r over the records r of u        loss_r = sum or mean over r's own trained tokens
    S   = sum_u c_u g_u          c_u = min(1, C / |g_u|) or as `Clipping` says, 0 where g_u is not finite

S and the norms are float32. `Packed` computes many units in one backward pass where rules cover every trained
parameter. `OneByOne` is slow and exact for everything else. `Batch` does not clip: ordinary training. What cannot be
exact is refused by `engine_for`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from reticent.errors import ModelError, PrivacyError
from reticent.gradients.attention import causal, segments
from reticent.gradients.clip import clip_factors, layers
from reticent.gradients.exact import refuse_inexact
from reticent.gradients.rows import Loss, Row, Unit, pack
from reticent.gradients.rules import Head, Rule, Step, coverage, lora_rules, output_head, patched
from reticent.gradients.tally import Sums as Sums  # part of the interface
from reticent.gradients.tally import Tally
from reticent.privacy.clipping import Clipping
from reticent.tokens import Tokens


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
    """The interface between the loop and the engines. An engine that clips has ``clipping``, which may change."""

    def unit_sum(self, units: Sequence[Unit]) -> UnitSum:
        """The sum of the (clipped) gradients of ``units``; zeros for none."""
        ...


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class _Reader:
    """Reads the rows of a draw; what all engines share."""

    def __init__(
        self,
        model: PreTrainedModel,
        rules: tuple[Rule, ...],
        *,
        loss: Loss,
        micro_batch_tokens: int,
    ) -> None:
        if loss not in ("sum", "mean"):
            raise PrivacyError(
                f"loss must be sum or mean, over a record's own tokens, got {loss!r}: a loss of another kind can "
                "couple the records of a batch, and then no unit's share of the gradient is bounded."
            )
        self.model, self._rules = model, rules
        self._loss, self._tokens = loss, micro_batch_tokens
        self._step = Step()
        head = output_head(model)
        self._head = head if head is not None and _ends_in(model, head) else None

    def complete(self, total: Sums) -> Sums:
        """``total`` in the order of the trained parameters, float32 zeros for those that are not in it."""
        return {
            n: total[n] if n in total else torch.zeros(p.shape, dtype=torch.float32, device=p.device)
            for n, p in trained(self.model).items()
        }

    def groups(self, units: Sequence[Unit]) -> Iterator[list[Row]]:
        """The rows of a draw, in groups that complete their units."""
        return pack(units, max_tokens=self._tokens, loss=self._loss)

    def backward(self, row: Row, tally: Tally | None = None) -> float:
        """The loss of ``row``. Its gradients go to ``tally``; without one, to the parameters."""
        if tally is not None:
            tally.start(row)
        device = self.model.device
        labels, weights = row.labels.to(device), row.weights.to(device)
        self._step.tally, self._step.head = tally, Head(labels, weights)
        # The backward pass stands in the block too: gradient checkpointing reads the row again there.
        with patched(self._rules, self._head, self._step), segments(causal(row.records)):
            out = self.model(
                input_ids=row.ids.to(device),
                position_ids=row.positions.to(device),
                logits_to_keep=row.predict.to(device),
                use_cache=False,
            ).logits
            if self._head is None:
                if out.shape[1] != len(labels):  # not every model knows logits_to_keep
                    out = out[:, row.predict.to(device)]
                out = (cross_entropy(out[0].float(), labels, reduction="none") * weights).sum()
            out.sum().backward()
        self._step.tally = None  # it holds what the row leaves behind
        return float(out.detach())

    def take(self) -> Sums:
        """The gradients that the parameters hold, float32; they hold none afterwards."""
        found = {n: p.grad.float() for n, p in trained(self.model).items() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return found


def _records(units: Sequence[Unit]) -> int:
    return sum(len(unit.records) for unit in units)


class Batch:
    """Ordinary training: the plain sum of all gradients, nothing clipped."""

    def __init__(self, model: PreTrainedModel, *, loss: Loss, micro_batch_tokens: int) -> None:
        self._reader = _Reader(model, lora_rules(model), loss=loss, micro_batch_tokens=micro_batch_tokens)

    def unit_sum(self, units: Sequence[Unit]) -> UnitSum:
        """The sum of the gradients of ``units``."""
        self._reader.take()
        loss = sum(self._reader.backward(row) for group in self._reader.groups(units) for row in group)
        return UnitSum(self._reader.complete(self._reader.take()), loss, _records(units), 0)


class OneByOne:
    """One unit at a time through autograd: the definition itself, and the oracle of every other engine."""

    def __init__(self, model: PreTrainedModel, *, clipping: Clipping, loss: Loss, micro_batch_tokens: int) -> None:
        self.clipping = clipping
        self._reader = _Reader(model, (), loss=loss, micro_batch_tokens=micro_batch_tokens)
        self._layers = layers(trained(model))

    def unit_sum(self, units: Sequence[Unit]) -> UnitSum:
        """The sum of the clipped gradients of ``units``."""
        total: Sums = {}
        return self._add(total, units)._replace(gradient=self._reader.complete(total))

    def _add(self, total: Sums, units: Sequence[Unit], times: float = 1.0) -> UnitSum:
        """Adds the sum of the clipped gradients of ``units``, so many times, to ``total``."""
        self._reader.take()
        loss, dropped, below = 0.0, 0, 0
        for unit in units:
            loss += sum(self._reader.backward(row) for group in self._reader.groups([unit]) for row in group)
            own = self._reader.take()
            squares = {name: gradient.square().sum()[None] for name, gradient in own.items()}
            factors, finite, within = clip_factors(squares, self.clipping, self._layers)
            if finite:  # 0 times infinity is not 0
                for name, gradient in own.items():
                    gradient.mul_(times * factors[name])
                    total[name] = total[name].add_(gradient) if name in total else gradient
            dropped, below = dropped + int(~finite), below + int(within)
        return UnitSum(total, loss, _records(units), dropped, below)


class Packed:
    """Many units in one backward pass, for models whose trained parameters all have a rule.

    Raises:
        ModelError: a trained parameter has none.
    """

    def __init__(self, model: PreTrainedModel, *, clipping: Clipping, loss: Loss, micro_batch_tokens: int) -> None:
        covered = coverage(model)
        if covered.missing:
            raise ModelError(why_not_packed(model) or "")
        self.clipping = clipping
        self._reader = _Reader(model, covered.rules, loss=loss, micro_batch_tokens=micro_batch_tokens)
        self._whole, self._layers = covered.whole, layers(trained(model))

    def unit_sum(self, units: Sequence[Unit]) -> UnitSum:
        """The sum of the clipped gradients of ``units``."""
        self._reader.take()
        total: Sums = {}
        loss, dropped, below = 0.0, 0, 0
        for group in self._reader.groups(units):
            tally = Tally(self._whole)
            loss += sum(self._reader.backward(row, tally) for row in group)
            self._refuse_other_paths()
            left_out, within = tally.add_clipped(total, self.clipping, self._layers)
            dropped, below = dropped + left_out, below + within
        return UnitSum(self._reader.complete(total), loss, _records(units), dropped, below)

    def _refuse_other_paths(self) -> None:
        for name in self._reader.take():
            raise PrivacyError(
                f"{name} is used outside its layer's forward, so its gradient cannot be split by unit. Train other "
                "layers, or use plain LoRA."
            )


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Which trained parameters have no rule, or None if all have."""
    missing = coverage(model).missing
    if not missing:
        return None
    return (
        f"{len(missing)} of {len(trained(model))} trained parameters have no fast rule, the first is {missing[0]}, so "
        "every unit is read by itself"
    )


def engine_for(
    model: PreTrainedModel,
    *,
    clipping: Clipping | None,
    loss: Loss,
    micro_batch_tokens: int,
) -> Engine:
    """The fastest exact engine for ``model``; no clipping if ``clipping`` is None.

    `Packed` is tried on a few tokens of this very model, and taken only if its unit gradients are those of `OneByOne`.

    Raises:
        ModelError: no engine can be exact.
    """
    if clipping is None:
        return Batch(model, loss=loss, micro_batch_tokens=micro_batch_tokens)
    refuse_inexact(model)
    one_by_one = OneByOne(model, clipping=clipping, loss=loss, micro_batch_tokens=micro_batch_tokens)
    if coverage(model).missing:
        return one_by_one
    packed = Packed(model, clipping=clipping, loss=loss, micro_batch_tokens=micro_batch_tokens)
    return packed if _agree_on(model, packed, one_by_one) else one_by_one


def _agree_on(model: PreTrainedModel, packed: Packed, one_by_one: OneByOne) -> bool:
    """Whether the two engines find the same, parameter by parameter, on units scaled to norm 1."""
    close = 1e-3 if model.dtype == torch.float32 else 0.2  # a wrong rule is off by more than low precision
    clipping, scaled = packed.clipping, Clipping(1.0, "normalised")
    packed.clipping = one_by_one.clipping = scaled
    try:
        with evaluating(model):  # dropout would draw different masks
            rest = packed.unit_sum(_trial(model)).gradient
            sizes = {name: value.norm() for name, value in rest.items()}
            one_by_one._add(rest, _trial(model), times=-1.0)  # in place: no third copy of a large model
    except PrivacyError:
        return False
    finally:
        packed.clipping = one_by_one.clipping = clipping
    size = torch.stack(list(sizes.values())).norm()
    return all(bool(value.norm() <= close * (sizes[name] + 1e-3 * size)) for name, value in rest.items())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block, the model is in evaluation mode; each of its modules returns to its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _trial(model: PreTrainedModel) -> list[Unit]:
    """Three units of 17 tokens together: a number that is no model's number of heads."""
    ids = np.arange(17) % model.config.get_text_config().vocab_size
    parts = np.split(ids, [6, 10, 13])
    records = [Tokens(part, np.arange(len(part)) > 0) for part in parts]
    return [Unit("0", (records[0],)), Unit("1", (records[1], records[2])), Unit("2", (records[3],))]


def _ends_in(model: PreTrainedModel, head: nn.Linear) -> bool:
    """Whether the model's scores are what its head returns, unchanged."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        (row,), *_ = pack(_trial(model), max_tokens=100, loss="sum")
        with evaluating(model), torch.no_grad(), segments(causal(row.records)):
            scores = model(
                input_ids=row.ids.to(model.device),
                position_ids=row.positions.to(model.device),
                logits_to_keep=row.predict.to(model.device),
                use_cache=False,
            ).logits
    finally:
        hook.remove()
    return len(seen) == 1 and scores.shape[1] == len(row.predict) and torch.equal(seen[0], scores)
