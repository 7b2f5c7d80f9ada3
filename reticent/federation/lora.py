"""LoRA adapters of several sites: the exact mean of their products, and what averaging A and B apart misses.

A layer's weight moves by scale * B A, with B (out, r), A (r, in) and scale = alpha / r. The mean of w_k B_k A_k is not
(mean of B_k) (mean of A_k). It is kept as factors, the w_k B_k side by side over the A_k: no matrix of (out, in) is
made, except by `dense`, which is for merged models. Products here are without the scale unless said.

Every site must send its adapter, not the change of it: products of changes are not changes of products.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from reticent.errors import FederationError
from reticent.federation.aggregate import Update

_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])(\.[^.]+)?\.weight")
_ROUNDING = torch.finfo(torch.float32).eps


class Pair(NamedTuple):
    """The names of a layer's two factors."""

    layer: str
    a: str
    b: str


class Factors(NamedTuple):
    """A matrix (out, in) as b @ a, with ``b`` (out, n) and ``a`` (n, in), float32."""

    b: torch.Tensor
    a: torch.Tensor


Product = dict[str, Factors]  # by layer


class Adapter(NamedTuple):
    """Factors of one rank for all layers, to be saved as one PEFT adapter: alpha / rank is the scale."""

    factors: Product
    rank: int
    alpha: float


def pairs(names: Iterable[str]) -> list[Pair]:
    """The factors among PEFT's names of trained tensors, by layer in alphabetical order.

    Raises:
        FederationError: a name is not a LoRA factor, or its other half is missing.
    """
    halves: dict[str, dict[str, str]] = {}
    for name in names:
        found = _NAME.fullmatch(name)
        if found is None:
            raise FederationError(
                f"{name} is not a factor of a LoRA layer, so it has no product. Train a LoRA adapter alone, or average "
                "tensor by tensor."
            )
        halves.setdefault(found["layer"], {})[found["half"]] = name
    for layer, both in halves.items():
        if len(both) != 2:
            raise FederationError(f"{layer} has only the factor {min(both)}. Both A and B must be there.")
    return [Pair(layer, both["A"], both["B"]) for layer, both in sorted(halves.items())]


def b_names(names: Iterable[str]) -> list[str]:
    """What travels and is trained when every A stays as it began (FFA-LoRA, Sun et al. 2024); in the order given.

    With one A for all sites the mean of B is exact: mean(B_k) A = mean(B_k A).

    Raises:
        FederationError: as for `pairs`.
    """
    names = list(names)
    b = {pair.b for pair in pairs(names)}
    return [name for name in names if name in b]


def factors(update: Mapping[str, torch.Tensor]) -> Product:
    """The product of each layer of an adapter, not copied.

    Raises:
        FederationError: names as for `pairs`, or the two factors of a layer do not fit.
    """
    product = {pair.layer: Factors(update[pair.b], update[pair.a]) for pair in pairs(update)}
    for layer, (b, a) in product.items():
        if b.dim() != 2 or a.dim() != 2 or b.shape[1] != a.shape[0]:
            raise FederationError(
                f"{layer} has B of shape {tuple(b.shape)} and A of shape {tuple(a.shape)}: they need one rank. Train "
                "every site with the same recipe."
            )
    return product


def named(product: Product, names: Iterable[str]) -> Update:
    """``product`` as an adapter whose tensors have these ``names``; the other way round than `factors`."""
    update: Update = {}
    for pair in pairs(names):
        update[pair.b], update[pair.a] = product[pair.layer]
    return update


class ProductMean:
    """The exact mean of products, stacked: every added adapter is kept until the result.

    Memory is that of K adapters, K n (out + in) numbers a layer: 100 of 40 M parameters are 16 GB. ``layers``, if
    given, are the only ones that are kept. `PlainError` measures the error of plain averaging without keeping any.
    """

    def __init__(self, layers: Collection[str] | None = None) -> None:
        self.weight = 0.0
        self._layers = layers
        self._parts: dict[str, list[Factors]] = {}

    def add(self, update: Mapping[str, torch.Tensor], weight: float) -> None:
        """Counts one site's adapter (not its change), float32.

        Raises:
            FederationError: ``weight`` is not positive and finite, or names or shapes differ from the first's.
        """
        _check_weight(weight)
        product = factors(update)
        if self._layers is not None:
            if odd := sorted(set(self._layers) - product.keys()):
                raise FederationError(f"{odd[0]} is not a layer of the adapter. It has, for one, {min(product)}.")
            product = {layer: product[layer] for layer in self._layers}
        if self._parts:
            _check_fit(product, {layer: parts[0] for layer, parts in self._parts.items()})
        for layer, (b, a) in product.items():
            self._parts.setdefault(layer, []).append(Factors(b * weight, a.clone()))
        self.weight += weight

    def result(self) -> Product:
        """The mean, of rank up to the sum of the adapters' ranks; once, for what was kept is let go.

        Raises:
            FederationError: nothing was added.
        """
        if not self._parts:
            raise FederationError("there is no adapter to average. Wait for more sites, or lower the quorum.")
        product = {}
        for layer in sorted(self._parts):
            stacked = _stack(self._parts.pop(layer))
            product[layer] = Factors(stacked.b.div_(self.weight), stacked.a)
        return product


class PlainError:
    """The relative error of averaging A and B apart, estimated while updates stream; memory of about one update.

    Products act on ``probes`` random vectors x: E |M x|^2 is |M|^2 in the Frobenius norm for x ~ N(0, I), with variance
    2 |M'M|^2 / probes (Avron and Toledo 2011). So a norm is off by a share of about 1 / sqrt(2 probes) for one layer of
    rank 1, and by less with more rank and more layers. ``seed``: of the probes.
    """

    def __init__(self, seed: int, probes: int = 16) -> None:
        self._seed, self._probes = seed, probes
        self._weight = 0.0
        self._images: dict[str, torch.Tensor] = {}
        self._vectors: dict[int, torch.Tensor] = {}

    def add(self, update: Mapping[str, torch.Tensor], weight: float) -> None:
        """Counts one site's adapter (not its change), float32 and like the others; it is not kept.

        Raises:
            FederationError: ``weight`` is not positive and finite, or names or shapes are not an adapter's.
        """
        _check_weight(weight)
        for layer, (b, a) in factors(update).items():
            image = b.double() @ (a.double() @ self._probe(a.shape[1]))
            self._images[layer] = image.mul_(weight) + self._images.get(layer, 0.0)
        self._weight += weight

    def result(self, plain: Mapping[str, torch.Tensor]) -> float:
        """Of ``plain``, the mean adapter, against the mean product: |mean(BA) - mean(B) mean(A)| / |mean(BA)|."""
        missed = whole = 0.0
        for layer, (b, a) in factors(plain).items():
            exact = self._images[layer] / self._weight
            missed += float((exact - b.double() @ (a.double() @ self._probe(a.shape[1]))).square().sum())
            whole += float(exact.square().sum())
        return _relative(missed, whole)

    def _probe(self, width: int) -> torch.Tensor:
        """One set of vectors for all layers of a width."""
        if width not in self._vectors:
            generator = torch.Generator().manual_seed(self._seed)
            self._vectors[width] = torch.randn(width, self._probes, dtype=torch.float64, generator=generator)
        return self._vectors[width]


def plain_error(product: Product, plain: Product) -> float:
    """|P - B A| / |P| in the Frobenius norm over all layers of ``product``; never dense, float64.

    ``plain``: `factors` of the mean adapter. 0 if both are zero, infinite if only P is.
    """
    missed = sum(_square(_stack([exact, _minus(plain[layer])])) for layer, exact in product.items())
    return _relative(missed, sum(_square(exact) for exact in product.values()))


def refactor(product: Product, rank: int, spare: Mapping[str, torch.Tensor]) -> tuple[Product, float]:
    """The best approximation of ``rank`` (Eckart and Young 1936), and its relative Frobenius error over all layers.

    Balanced: B = U sqrt(S), A = sqrt(S) V', each column of U with its largest entry positive, so that equal products
    give equal factors. Where a product has no ``rank`` directions, B is zero and A has the rows of ``spare``, A
    (rank, in) by layer: with both zero they could never be trained again.
    """
    found, missed, whole = {}, 0.0, 0.0
    for layer, matrix in product.items():
        u, s, v = _svd(matrix)
        squares = s.square()
        missed, whole = missed + float(squares[rank:].sum()), whole + float(squares.sum())
        kept = min(rank, int((s > _ROUNDING * s[:1].sum()).sum()))
        b, a = torch.zeros(u.shape[0], rank), spare[layer].to(torch.float32, copy=True)
        if a.shape != (rank, v.shape[0]):
            raise FederationError(f"spare A of {layer} must be of shape {(rank, v.shape[0])}, got {tuple(a.shape)}.")
        root = s[:kept].sqrt()
        b[:, :kept], a[:kept] = u[:, :kept] * root, (v[:, :kept] * root).t()
        found[layer] = Factors(b, a)
    return found, _relative(missed, whole)


def residual(product: Product, plain: Product) -> Product:
    """P - B A as factors: what the base needs beside the plain mean adapter, so that nothing is missed.

    Of rank (K - 1) r for K sites of rank r. What is left out is below float32's rounding of P.
    """
    return {
        layer: _compressed(_stack([exact, _minus(plain[layer])]), _ROUNDING * math.sqrt(_square(exact)))
        for layer, exact in product.items()
    }


def recompress(parts: Sequence[Product]) -> Product:
    """The sum of ``parts``, such as the residuals of several rounds, at the rank that it has.

    That rank is at most min(out, in). Singular values below float32's rounding of the largest are left out.
    """
    layers = sorted({layer for part in parts for layer in part})
    return {layer: _compressed(_stack([part[layer] for part in parts if layer in part])) for layer in layers}


def one_adapter(adapter: Product, beside: Product, scale: float) -> Adapter:
    """``adapter`` and the residual ``beside`` it as one, exactly: factors side by side, zeros up to one rank.

    ``scale``: that of both, alpha / rank of the adapter that was trained.
    """
    joined = {layer: _stack([own, beside[layer]]) if layer in beside else own for layer, own in sorted(adapter.items())}
    rank = max(b.shape[1] for b, _ in joined.values())
    padded = {}
    for layer, (b, a) in joined.items():
        room = rank - b.shape[1]
        padded[layer] = Factors(
            torch.cat([b, b.new_zeros(b.shape[0], room)], dim=1), torch.cat([a, a.new_zeros(room, a.shape[1])])
        )
    return Adapter(padded, rank, scale * rank)


def dense(product: Product, scale: float) -> Update:
    """scale * B A of each layer, (out, in): what a site sends when models are merged every round.

    A weight that is stored as (in, out), such as GPT-2's, moves by its transpose.
    """
    return {layer: (b @ a).mul_(scale) for layer, (b, a) in product.items()}


def merge(delta: Mapping[str, torch.Tensor], mean: Update) -> Update:
    """The base's change after one more round: ``delta`` (empty before the first) plus the ``mean`` of `dense` products.

    Sites begin the next round with new adapters on the base so changed.
    """
    return {layer: delta[layer] + value if layer in delta else value.clone() for layer, value in mean.items()}


def _stack(parts: Sequence[Factors]) -> Factors:
    """The sum of ``parts``."""
    return Factors(torch.cat([part.b for part in parts], dim=1), torch.cat([part.a for part in parts]))


def _minus(matrix: Factors) -> Factors:
    return Factors(-matrix.b, matrix.a)


def _square(matrix: Factors) -> float:
    """|b a|^2 in the Frobenius norm, from the two Gram matrices in float64."""
    b, a = matrix.b.double(), matrix.a.double()
    return max(0.0, float(((b.t() @ b) * (a @ a.t())).sum()))


def _relative(missed: float, whole: float) -> float:
    if missed == 0.0:
        return 0.0
    return math.sqrt(missed / whole) if whole else math.inf


def _svd(matrix: Factors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """u (out, m), s (m,), v (in, m) in float64 with b a = u diag(s) v', from a QR of each factor."""
    q_b, r_b = torch.linalg.qr(matrix.b.double())
    q_a, r_a = torch.linalg.qr(matrix.a.double().t())
    u, s, vh = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    u, v = q_b @ u, q_a @ vh.t()
    sign = torch.where(u.gather(0, u.abs().argmax(dim=0, keepdim=True)) < 0, -1.0, 1.0)
    return u * sign, s, v * sign


def _compressed(matrix: Factors, floor: float = 0.0) -> Factors:
    """At its numerical rank: without singular values that are at most ``floor``, or float32's rounding."""
    u, s, v = _svd(matrix)
    kept = s > max(floor, _ROUNDING * float(s[:1].sum()))
    root = s[kept].sqrt()
    return Factors((u[:, kept] * root).float(), (v[:, kept] * root).t().float())


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight > 0):
        raise FederationError(f"an adapter's weight must be positive and finite, got {weight}. Leave the site out.")


def _check_fit(product: Product, first: Product) -> None:
    """The same layers, out and in; ranks may differ."""
    odd = sorted(product.keys() ^ first.keys())
    odd += [
        layer
        for layer in product.keys() & first.keys()
        if (product[layer].b.shape[0], product[layer].a.shape[1]) != (first[layer].b.shape[0], first[layer].a.shape[1])
    ]
    if odd:
        raise FederationError(f"{odd[0]} is not alike in every adapter. Train every site with the same recipe.")
