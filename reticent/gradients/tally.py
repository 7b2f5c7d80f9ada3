"""The unit gradients of one row: formed where that is cheap, else their norms and what their clipped sum follows from.

A matrix's unit gradient is g_u = a_u^T b_u, over the unit's tokens. It is formed where it is no larger than a_u and b_u
together (long units, small matrices). Otherwise its norm follows from two Gram matrices, |g_u|^2 = <a_u a_u^T, b_u
b_u^T> (Goodfellow 2015; Li et al. 2022), a and b are kept, and one product (c a)^T b gives the sum of all clipped
unit gradients once every factor c_u is known (book-keeping, Bu et al. 2023): one backward pass in all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from scipy.linalg.blas import ssyrk
from torch.nn.functional import grouped_mm

from reticent.errors import PrivacyError
from reticent.gradients.clip import Groups, clip_factors
from reticent.gradients.rows import Row
from reticent.privacy.clipping import Clipping

Sums = dict[str, torch.Tensor]
_CANCELLATION = 100.0  # a Gram norm that lost more than this factor to cancellation is not trusted


@dataclass
class _Kept:
    """Factors of the unit gradients of units ``first`` and later. ``squares``, ``sizes``: (units - first,) float64."""

    a: torch.Tensor
    b: torch.Tensor
    ends: tuple[int, ...]
    first: int
    squares: torch.Tensor
    sizes: torch.Tensor


@dataclass
class _Rows:
    """Unit gradients of an embedding: ``sums`` (n, d) of its rows ``ids`` (n,), each of the unit ``units`` (n,)."""

    size: int
    ids: torch.Tensor
    units: torch.Tensor
    sums: torch.Tensor


class Tally:
    """Takes the unit gradients of the rows of one group, as layers' backward passes find them.

    A group has several units in one row, or one unit in several rows. ``whole``: names of parameters that several
    layers use, whose unit gradients are formed, because their parts must be added before the norm.
    """

    def __init__(self, whole: frozenset[str] = frozenset()) -> None:
        self._whole = whole
        self._ends: dict[int, tuple[int, ...]] = {}
        self._units = 0
        self._formed: Sums = {}
        self._kept: dict[str, _Kept] = {}
        self._rows: dict[str, _Rows] = {}
        self._last: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    def start(self, row: Row) -> None:
        """``row`` is computed next."""
        assert self._units in (0, 1), "a group of several units is one row"
        self._units = len(row.units)
        self._ends = {row.units[-1]: row.units, len(row.predict): row.predicted}
        self._last = None

    @property
    def tokens(self) -> int:
        """Of the row at hand."""
        return max(self._ends)

    def ends(self, tokens: int) -> tuple[int, ...]:
        """Where each unit ends, for a layer that reads all tokens of the row or the predicted ones.

        Raises:
            PrivacyError: the layer reads something else.
        """
        if tokens not in self._ends:
            raise PrivacyError(
                f"a trained layer reads {tokens} vectors, not one for each of the row's {self.tokens} tokens, so "
                "its gradient cannot be split by unit. Train other layers."
            )
        return self._ends[tokens]

    def formed(self, name: str, gradient: torch.Tensor) -> None:
        """Adds unit gradients (units, *shape), float32."""
        self._refuse_second(name, self._kept, self._rows)
        if name in self._formed:
            self._refuse_second(name, {} if len(self._formed[name]) == len(gradient) == self._units else self._formed)
            self._formed[name] += gradient
        else:
            self._formed[name] = gradient

    def product(self, name: str, a: torch.Tensor, b: torch.Tensor) -> None:
        """Adds the unit gradients a_u^T b_u. ``a``: (tokens, rows of the matrix), ``b``: (tokens, its columns)."""
        a, b = a.detach().float(), b.detach().float()  # detached, or the graph would hold what holds the graph
        ends = self.ends(len(a))
        first = len(ends) if name in self._whole else _first_short(ends, a.shape[1], b.shape[1])
        if first:
            last = ends[first - 1]
            self.formed(name, grouped(a[:last], b[:last], ends[:first]))
        if first < len(ends):
            self._refuse_second(name, self._kept)
            self._kept[name] = _Kept(a, b, ends, first, *self._grams(a, b, ends, first))

    def rows(self, name: str, ids: torch.Tensor, dy: torch.Tensor, size: int) -> None:
        """Adds the unit gradients of an embedding of ``size`` rows. ``ids``: (tokens,), ``dy``: (tokens, d)."""
        ends = self.ends(len(ids))
        if len(ends) == 1 or name in self._whole:
            gradient = dy.new_zeros(len(ends), size, dy.shape[1], dtype=torch.float32)
            gradient.view(-1, dy.shape[1]).index_add_(0, ids + size * self.unit_of(len(ids), ids.device), dy.float())
            self.formed(name, gradient)
            return
        self._refuse_second(name, self._rows)
        keys, inverse = torch.unique(ids + size * self.unit_of(len(ids), ids.device), return_inverse=True)
        sums = dy.new_zeros(len(keys), dy.shape[1], dtype=torch.float32).index_add_(0, inverse, dy.float())
        self._rows[name] = _Rows(size, keys % size, keys // size, sums)

    def vector(self, name: str, per_token: torch.Tensor) -> None:
        """Adds the unit gradients of a vector from those of each token. ``per_token``: (tokens, *shape)."""
        ends = self.ends(len(per_token))
        gradient = per_token.new_zeros(len(ends), *per_token.shape[1:], dtype=torch.float32)
        self.formed(name, gradient.index_add_(0, self.unit_of(len(per_token), per_token.device), per_token.float()))

    def unit_of(self, tokens: int, device: torch.device) -> torch.Tensor:
        """(tokens,) the unit of each token."""
        ends = self.ends(tokens)
        counts = torch.tensor([end - start for start, end in pairwise((0, *ends))])
        return torch.repeat_interleave(torch.arange(len(ends)), counts, output_size=tokens).to(device)

    @torch.no_grad()
    def add_clipped(self, total: Sums, clipping: Clipping, groups: Groups) -> tuple[int, int]:
        """Adds the clipped unit gradients to ``total`` and gives them up.

        Returns how many units were not finite, and how many within the norm.
        """
        self._mistrust()
        squares = self._squares()
        factors, finite, below = clip_factors(squares, clipping, groups)
        # Sums come to be where what they are formed from is given up, one after another: memory does not add up.
        while self._formed:
            name, gradient = self._formed.popitem()
            good, weights = finite[: len(gradient)], factors[name][: len(gradient)]
            if not good.all():  # 0 times infinity is not 0
                gradient, weights = gradient[good], weights[good]
            if len(gradient) == 1:
                _add(total, name, gradient[0].mul_(weights[0]))
            else:
                _add(total, name, (weights @ gradient.flatten(1)).view(gradient.shape[1:]))
        while self._kept:
            name, kept = self._kept.popitem()
            start = kept.ends[kept.first - 1] if kept.first else 0
            unit = self.unit_of(len(kept.a), kept.a.device)[start:]
            a, b = kept.a[start:], kept.b[start:]
            if not finite.all():
                good = finite[unit]
                a, b, unit = a[good], b[good], unit[good]
            weights = factors[name][unit, None]
            a, b = (a * weights, b) if a.shape[1] < b.shape[1] else (a, b * weights)
            if name in total:
                total[name].addmm_(a.t(), b)
            else:
                total[name] = a.t() @ b
        for name, rows in self._rows.items():
            good = finite[rows.units]
            weights = factors[name][rows.units[good], None]
            if name not in total:
                total[name] = rows.sums.new_zeros(rows.size, rows.sums.shape[1])
            total[name].index_add_(0, rows.ids[good], rows.sums[good] * weights)
        return int((~finite).sum()), int(below.sum())

    def _squares(self) -> Sums:
        """For each parameter the squared norms of its unit gradients, (units,) float32."""
        squares: Sums = {}
        for name in {*self._formed, *self._kept, *self._rows}:
            parts = []
            if (formed := self._formed.get(name)) is not None:
                parts.append(_padded(formed.flatten(1).square().sum(1), 0, self._units))
            if (kept := self._kept.get(name)) is not None:
                parts.append(_padded(kept.squares, kept.first, self._units))
            if (rows := self._rows.get(name)) is not None:
                own = rows.sums.square().sum(1)
                parts.append(own.new_zeros(self._units).index_add_(0, rows.units, own))
                if len(parts) > 1:
                    squares[name] = self._tied(
                        name, rows, torch.stack([part.double() for part in parts]).sum(0)
                    ).float()
                    continue
            squares[name] = torch.stack([part.double() for part in parts]).sum(0).clamp(min=0).float()
        return squares

    def _tied(self, name: str, rows: _Rows, apart: torch.Tensor) -> torch.Tensor:
        """|L_u + E_u|^2 = |L_u|^2 + |E_u|^2 + 2 <L_u, E_u> of one matrix as output head and as embedding; (units,).

        ``apart``: the first two terms. Where the three nearly cancel, the sum is formed.
        """
        formed, kept = self._formed.get(name), self._kept.get(name)
        bounds = torch.searchsorted(rows.units, torch.arange(self._units + 1, device=rows.units.device)).tolist()
        found = []
        for unit, (start, end) in enumerate(pairwise(bounds)):
            ids, sums = rows.ids[start:end], rows.sums[start:end]
            if formed is not None and unit < len(formed):
                a, b, both = None, None, (formed[unit][ids] * sums).sum()
            else:
                assert kept is not None
                s, e = (0, *kept.ends)[unit], kept.ends[unit]
                a, b = kept.a[s:e], kept.b[s:e]
                both = (a[:, ids] * (b @ sums.t())).sum()
            square = apart[unit] + 2 * both.double()
            if apart[unit] > _CANCELLATION * square:
                head = formed[unit].clone() if a is None or b is None else a.t() @ b  # type: ignore[index]  # one is there
                square = head.index_add_(0, ids, sums).square().sum(dtype=torch.float64)
            found.append(square)
        return torch.stack(found)

    def _grams(
        self, a: torch.Tensor, b: torch.Tensor, ends: tuple[int, ...], first: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """|a_u^T b_u|^2 of the units from ``first`` on, and the sum of the sizes of its terms; float64."""
        bounds = list(pairwise((0, *ends)))[first:]
        # Layers that read the same vectors (query, key, value) come one after another and share their Gram matrices.
        last = self._last
        if last is None or last[0].data_ptr() != b.data_ptr() or last[0].shape != b.shape or len(last[1]) < len(bounds):
            self._last = last = (b, [_gram(b[s:e]) for s, e in bounds])
        squares, sizes = [], []
        for (s, e), gram in zip(bounds, last[1][len(last[1]) - len(bounds) :], strict=True):
            terms = gram * _gram(a[s:e])
            terms.diagonal().mul_(0.5)  # the others count twice
            squares.append(terms.sum(dtype=torch.float64))
            sizes.append(terms.abs_().sum(dtype=torch.float64))
        return 2 * torch.stack(squares), 2 * torch.stack(sizes)

    def _mistrust(self) -> None:
        """Forms the unit gradients whose Gram norms drown in rounding, because their tokens nearly cancel."""
        bad = {name: kept.sizes > _CANCELLATION * kept.squares for name, kept in self._kept.items()}
        if not bad or not torch.cat(list(bad.values())).any():
            return
        for name, kept in self._kept.items():
            for unit in torch.nonzero(bad[name]).flatten().tolist():
                s, e = (0, *kept.ends)[kept.first + unit], kept.ends[kept.first + unit]
                kept.squares[unit] = (kept.a[s:e].t() @ kept.b[s:e]).square().sum(dtype=torch.float64)

    def _refuse_second(self, name: str, *places: Mapping[str, object]) -> None:
        if any(name in place for place in places):
            raise PrivacyError(
                f"{name} is used more than once in the model's forward pass, which was not so when the engine was "
                "made: the norm of its unit gradients would be wrong. Make the engine after the model is complete."
            )


def _add(total: Sums, name: str, part: torch.Tensor) -> None:
    if name in total:
        total[name].add_(part)
    else:
        total[name] = part


def grouped(a: torch.Tensor, b: torch.Tensor, ends: tuple[int, ...]) -> torch.Tensor:
    """a_u^T b_u for every unit u: (units, columns of a, columns of b), float32."""
    assert len(a) == len(b) == ends[-1], (len(a), len(b), ends[-1])
    if len(ends) == 1:
        return (a.t() @ b).float()[None]
    if a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0 and a.dtype in (torch.float32, torch.bfloat16):
        offsets = torch.tensor(ends, dtype=torch.int32, device=a.device)
        return grouped_mm(a.t(), b, offs=offsets).float()
    return torch.stack([(a[s:e].t() @ b[s:e]).float() for s, e in pairwise((0, *ends))])


def _gram(x: torch.Tensor) -> torch.Tensor:
    """The upper triangle of x x^T, (tokens, tokens)."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.get_num_threads() == 1:
        # Half the work; with several threads, its threads and torch's would wait for each other.
        return torch.from_numpy(ssyrk(1.0, x.numpy().T, trans=1))
    return (x @ x.t()).triu_()


def _first_short(ends: tuple[int, ...], rows: int, columns: int) -> int:
    """The first unit whose a_u and b_u together are smaller than its gradient; units come longest first."""
    if len(ends) == 1:
        return 1
    for unit, (start, end) in enumerate(pairwise((0, *ends))):
        if (end - start) * (rows + columns) < rows * columns:
            return unit
    return len(ends)


def _padded(values: torch.Tensor, first: int, units: int) -> torch.Tensor:
    padded = values.new_zeros(units, dtype=torch.float64)
    padded[first : first + len(values)] = values
    return padded
