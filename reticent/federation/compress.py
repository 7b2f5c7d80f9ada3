"""Smaller updates for the way from a site to the coordinator.

What is lost by ``int8`` and ``top-k`` is added to the site's next update (error feedback: Seide et al. 2014;
Karimireddy et al. 2019, algorithm 2), so the sum over the rounds of what arrives stays near the sum of what was given.

A tensor ``x`` travels as ``x`` (none, bf16), as ``x|int8`` and ``x|scale``, as ``x|index`` and ``x|value`` (top-k), or
as ``x|plane0`` to ``x|plane3`` (lossless); so `decode` needs no word about the kind.

Error feedback changes the norm of what travels: whoever relies on a clip norm must clip what was decoded.
"""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np
import torch

from reticent.errors import FederationError

Kind = Literal["none", "lossless", "bf16", "int8", "top-k"]
Update = dict[str, torch.Tensor]

_BLOCK = 256  # values that share a scale of int8
_CHUNK = 2**16  # values coded at once: what they need stays in the cache
_SAMPLE = 2**16
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_LIMITS = torch.finfo(torch.float32)


class Compressor(Protocol):
    """The site's end. It goes on identically from a saved ``state``."""

    def encode(self, update: Update) -> Update:
        """The arrays that travel for ``update`` of float32, bfloat16 or float16, which stays as it is.

        They may be the tensors of ``update`` themselves.

        Raises:
            FederationError: a value is not finite, or the names or shapes are not those of the update before.
        """
        ...

    def state(self) -> Update:
        """A copy of what is carried to the next update."""
        ...

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        ...


def compressor_for(kind: Kind, *, top_k: float = 0.01, seed: int) -> Compressor:
    """A new compressor. ``top_k``: the share of a tensor's values that travel; ``seed``: of the rounding of int8.

    Each site needs a seed of its own: then the errors of rounding are independent, and a mean evens them out.

    Raises:
        FederationError: the kind is unknown, or ``top_k`` is not in (0, 1].
    """
    if kind == "int8":
        return _Int8(seed)
    if kind == "top-k":
        if not 0 < top_k <= 1:
            raise FederationError(f"top_k must be above 0 and at most 1: {top_k}.")
        return _TopK(top_k)
    if kind not in _STATELESS:
        known = ", ".join([*_STATELESS, "int8", "top-k"])
        raise FederationError(f"Unknown compression {kind!r}: choose one of {known}.")
    return _Stateless(_STATELESS[kind])


def decode(arrays: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Update:
    """The float32 update of ``shapes`` that ``arrays`` hold; it may share their memory.

    The memory it takes is bound by ``shapes``, whatever the arrays say.

    Raises:
        FederationError: an array is missing, unknown, of a wrong type or shape, or holds an index out of range or
            out of order, or a value that is not finite.
    """
    update: Update = {}
    known: set[str] = set()
    for name, shape in shapes.items():
        suffixes, decoder = _layout(name, arrays)
        parts = [arrays[name + suffix] for suffix in suffixes]
        known.update(name + suffix for suffix in suffixes)
        update[name] = decoder(name, parts, torch.Size(shape))
        _check_finite(name, update[name])
    unknown = sorted(arrays.keys() - known)
    if unknown:
        raise FederationError(f"The update has {len(unknown)} unknown arrays, first {unknown[0][:80]!a}.")
    return update


def _layout(name: str, arrays: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], "_Decoder"]:
    for suffixes, decoder in _DECODERS.items():
        if all(name + suffix in arrays for suffix in suffixes):
            return suffixes, decoder
    raise FederationError(f"The update has no array for {name!r}.")


def _check_finite(name: str, values: torch.Tensor) -> None:
    if values.numel() and not all(map(torch.isfinite, torch.aminmax(values))):
        raise FederationError(f"The update of {name!r} has values that are not finite.")


def _checked(update: Update) -> Update:
    """The update without its graph, if it can be encoded."""
    for name, value in update.items():
        if "|" in name or value.dtype not in _FLOATS:
            raise FederationError(f"Cannot send {name!r} of {value.dtype}: a name without | and floats are needed.")
        if value.numel() > np.iinfo(np.int32).max:
            raise FederationError(f"Cannot send {name!r}: {value.numel()} values are over the bound of 2^31 - 1.")
        _check_finite(name, value)
    return {name: value.detach() for name, value in update.items()}


def _expect(name: str, part: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...] | torch.Size) -> None:
    if part.dtype != dtype or part.shape != torch.Size(shape):
        raise FederationError(
            f"The update of {name!r} has an array of {part.dtype} {tuple(part.shape)}, not {dtype} {tuple(shape)}."
        )


class _Stateless:
    """Every update for itself, tensor by tensor."""

    def __init__(self, code: Callable[[str, torch.Tensor], Update]) -> None:
        self._code = code

    def encode(self, update: Update) -> Update:
        coded: Update = {}
        for name, value in _checked(update).items():
            coded.update(self._code(name, value))
        return coded

    def state(self) -> Update:
        return {}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        if state:
            raise FederationError("This compression carries nothing: the saved state is another's.")


class _Feedback(ABC):
    """Error feedback: subclasses code the due values and leave in them what was lost."""

    def __init__(self) -> None:
        self._due: Update = {}

    def encode(self, update: Update) -> Update:
        given = _checked(update)
        shapes = {name: value.shape for name, value in given.items()}
        if not self._due:
            self._due = {name: torch.zeros(shape) for name, shape in shapes.items()}
        if shapes != {name: value.shape for name, value in self._due.items()}:
            raise FederationError("The names or shapes of the update are not those of the one before.")
        coded: Update = {}
        for name, value in given.items():
            due = self._due[name].add_(value)
            _check_finite(name, due)
            coded.update(self._code(name, due.view(-1)))
        return coded

    @abstractmethod
    def _code(self, name: str, due: torch.Tensor) -> Update:
        """The arrays for ``due`` (n,), which is left with what they do not say."""

    def state(self) -> Update:
        return {name: value.clone() for name, value in self._due.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, value in state.items():
            _expect(name, value, torch.float32, value.shape)
            _check_finite(name, value)
        self._due = {name: value.clone() for name, value in state.items()}


class _Int8(_Feedback):
    """Levels of -127 to 127 times a scale per block, rounded at random without bias (QSGD, Alistarh et al. 2017)."""

    _COUNT = "|encoded"  # no tensor has such a name

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._encoded = 0

    def encode(self, update: Update) -> Update:
        self._source = np.random.Generator(np.random.SFC64([self._seed, self._encoded]))
        coded = super().encode(update)
        self._encoded += 1
        return coded

    def _code(self, name: str, due: torch.Tensor) -> Update:
        levels = torch.empty(len(due), dtype=torch.int8)
        scales = torch.empty(-(-len(due) // _BLOCK))
        whole = len(due) // _BLOCK * _BLOCK
        pieces = [slice(start, min(start + _CHUNK, whole)) for start in range(0, whole, _CHUNK)]
        if whole < len(due):
            pieces.append(slice(whole, len(due)))
        for piece in pieces:
            width = min(_BLOCK, piece.stop - piece.start)
            shift = torch.from_numpy(self._source.random(piece.stop - piece.start, dtype=np.float32))
            part_scales = scales[piece.start // _BLOCK : -(-piece.stop // _BLOCK)]
            _round_blocks(due[piece].view(-1, width), shift.view(-1, width), levels[piece].view(-1, width), part_scales)
        return {f"{name}|int8": levels, f"{name}|scale": scales}

    def state(self) -> Update:
        return {**super().state(), self._COUNT: torch.tensor(self._encoded)}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        if self._COUNT not in state:
            raise FederationError("The saved state of int8 lacks its count: it is another compression's.")
        _expect(self._COUNT, state[self._COUNT], torch.int64, ())
        super().load({name: value for name, value in state.items() if name != self._COUNT})
        self._encoded = int(state[self._COUNT])


def _round_blocks(due: torch.Tensor, shift: torch.Tensor, levels: torch.Tensor, scales: torch.Tensor) -> None:
    """Codes ``due`` (blocks, width) into int8 ``levels`` and ``scales`` (blocks,), and subtracts what they say.

    floor(x / scale + u) with uniform u has the mean x / scale. A block below 127 times the smallest normal number has
    the scale 0 and waits.
    """
    low, high = torch.aminmax(due, dim=1)
    torch.div(torch.maximum(high, -low), 127, out=scales)
    scales[scales < _LIMITS.tiny] = 0
    inverse = torch.where(scales > 0, 1 / scales, 0)
    rounded = torch.addcmul(shift, due, inverse[:, None]).floor_().clamp_(-127, 127)
    levels.copy_(rounded)
    due.sub_(rounded.mul_(scales[:, None]))


class _TopK(_Feedback):
    """The values of largest magnitude of each tensor, at least one (Stich et al. 2018)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def _code(self, name: str, due: torch.Tensor) -> Update:
        index = _largest(due, math.ceil(self._share * len(due)))
        values = due[index]
        due[index] = 0
        return {f"{name}|index": index.to(torch.int32), f"{name}|value": values}


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Sorted indices of the ``count`` values of largest magnitude, int64.

    A sample gives a bound that about 1.2 ``count`` values pass; if fewer than ``count`` do, all are compared.
    """
    sizes = values.abs()
    sample = sizes[:: max(1, len(sizes) // _SAMPLE)]
    rank = min(len(sample), int(1.2 * count * len(sample) / max(1, len(sizes))) + 100)
    passed = (sizes >= sample.topk(rank).values[-1]).nonzero().view(-1) if rank else sizes.nonzero().view(-1)
    if len(passed) < count:
        passed = torch.arange(len(sizes))
    chosen = passed[sizes[passed].topk(count, sorted=False).indices]
    return chosen.sort().values


def _code_plain(name: str, value: torch.Tensor) -> Update:
    return {name: value}


def _code_bf16(name: str, value: torch.Tensor) -> Update:
    rounded = value.to(torch.bfloat16)
    _check_finite(name, rounded)
    return {name: rounded}


def _code_lossless(name: str, value: torch.Tensor) -> Update:
    """The four byte planes of the float32 values, each by zlib where that is smaller."""
    planes = value.float().contiguous().view(-1).view(torch.uint8).view(-1, 4).numpy()
    return {f"{name}|plane{i}": _deflated(np.ascontiguousarray(planes[:, i])) for i in range(4)}


def _deflated(plane: np.ndarray) -> torch.Tensor:
    """The plane (n,) uint8 by zlib, or as it is: the length tells which."""
    sample = plane[len(plane) // 2 :][:_SAMPLE]
    if len(_zlib(sample)) < 0.99 * len(sample):  # spares the time for planes of noise
        packed = _zlib(plane)
        if len(packed) < len(plane):
            return torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    return torch.from_numpy(plane)


def _zlib(plane: np.ndarray) -> bytes:
    # Runs and frequencies are all that a byte plane has to give: no search for matches, several times the speed.
    coder = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    return coder.compress(plane.data) + coder.flush()


_STATELESS = {"none": _code_plain, "lossless": _code_lossless, "bf16": _code_bf16}


def _decode_plain(name: str, parts: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    (values,) = parts
    _expect(name, values, values.dtype if values.dtype in _FLOATS else torch.float32, shape)
    return values.float()


def _decode_int8(name: str, parts: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    levels, scales = parts
    count = shape.numel()
    _expect(name, levels, torch.int8, (count,))
    _expect(name, scales, torch.float32, (-(-count // _BLOCK),))
    if not ((scales >= 0) & (scales <= _LIMITS.max / 128)).all():
        raise FederationError(f"The update of {name!r} has scales that are negative or not finite.")
    values = levels.float()
    whole = count // _BLOCK * _BLOCK
    values[:whole].view(-1, _BLOCK).mul_(scales[: whole // _BLOCK, None])
    values[whole:].mul_(scales[whole // _BLOCK :])
    return values.view(shape)


def _decode_top_k(name: str, parts: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    index, values = parts
    count = shape.numel()
    if index.ndim != 1 or len(index) > count:
        raise FederationError(f"The update of {name!r} has indices {tuple(index.shape)} into {count} values.")
    _expect(name, index, torch.int32, index.shape)
    _expect(name, values, torch.float32, index.shape)
    if len(index) and (index[0] < 0 or index[-1] >= count or (index[1:] <= index[:-1]).any()):
        raise FederationError(f"The update of {name!r} has indices out of range or out of order.")
    dense = torch.zeros(count)
    dense[index.long()] = values
    return dense.view(shape)


def _decode_lossless(name: str, parts: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    planes = np.empty((shape.numel(), 4), dtype=np.uint8)
    for i, part in enumerate(parts):
        _expect(name, part, torch.uint8, (part.numel(),))
        planes[:, i] = _inflated(name, part.numpy(), len(planes))
    return torch.from_numpy(planes).view(-1).view(torch.float32).view(shape)


def _inflated(name: str, packed: np.ndarray, count: int) -> np.ndarray:
    """(count,) uint8; never takes more memory than that."""
    if len(packed) == count:
        return packed
    coder = zlib.decompressobj()
    try:
        plane = coder.decompress(packed.tobytes(), count + 1)
    except zlib.error:
        raise FederationError(f"The update of {name!r} has bytes that zlib cannot read.") from None
    if len(plane) != count or not coder.eof or coder.unused_data:
        raise FederationError(f"The update of {name!r} does not hold exactly {count} values.")
    return np.frombuffer(plane, dtype=np.uint8)


_Decoder = Callable[[str, list[torch.Tensor], torch.Size], torch.Tensor]
_DECODERS: dict[tuple[str, ...], _Decoder] = {
    ("",): _decode_plain,
    ("|int8", "|scale"): _decode_int8,
    ("|index", "|value"): _decode_top_k,
    tuple(f"|plane{i}" for i in range(4)): _decode_lossless,
}
