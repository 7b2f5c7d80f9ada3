"""Messages between the coordinator and the sites: a kind, plain fields and named arrays, as bytes.

Layout, little-endian: the magic, uint32 version, uint32 bytes of the header, the header, then the arrays. The header is
canonical JSON (sorted keys, no spaces): kind, fields and a table of the arrays: name, type, shape, offset from the
first array. Header and arrays begin at multiples of 64 bytes, with zeros between. So a message has one spelling:
whatever `unpack` accepts, `pack` gives back byte by byte.
"""

import json
import math
import struct
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from reticent.errors import FederationError

assert sys.byteorder == "little", "arrays travel as they lie in memory"

VERSION = 1
HEADER_MOST = 2**22  # bytes; a model of 1,000 tensors needs 2^17

_MAGIC = b"reticent"
_START = struct.Struct("<8sII")
_ALIGN = 64
_DIMENSIONS_MOST = 8
_VALUES_MOST = 2**60
_KIND_MOST = 64
_NAME_MOST = 1024
_TYPES = {
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "float16": torch.float16,
    "float32": torch.float32,
    "int32": torch.int32,
    "int64": torch.int64,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
_TYPE_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class Message(NamedTuple):
    """What one side tells the other. ``fields`` are what JSON can say; ``arrays`` keep their order."""

    kind: str
    fields: dict[str, Any]
    arrays: dict[str, torch.Tensor]


def pack(kind: str, fields: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> bytes:
    """A message as bytes; contiguous arrays on the CPU are copied once. Tuples in ``fields`` arrive as lists.

    Raises:
        FederationError: a field is no plain JSON (NaN, infinity and keys other than strings included), an array has a
            type that does not travel, or a name or the header is over its bound.
    """
    table: list[list[object]] = []
    parts: list[bytes | memoryview] = []
    end = 0
    for name, value in arrays.items():
        if value.dtype not in _TYPE_NAMES:
            raise FederationError(f"Array {_shown(name)} is {value.dtype}; what travels: {', '.join(_TYPES)}.")
        offset = _aligned(end)
        raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        parts += [bytes(offset - end), raw]
        table.append([name, _TYPE_NAMES[value.dtype], list(value.shape), offset])
        end = offset + raw.nbytes
    try:
        _check_keys(fields)
        header = _canonical({"arrays": table, "fields": dict(fields), "kind": kind})
    except (TypeError, ValueError, RecursionError):
        raise FederationError(
            f"The fields of a message {_shown(kind)} are no plain JSON: send finite numbers, text, lists and tables."
        ) from None
    if len(header) > HEADER_MOST:
        raise FederationError(f"A header of {len(header)} bytes is over the bound of {HEADER_MOST}: send arrays.")
    _check_kind(kind)
    for name in arrays:
        _check_name(name)
    space = bytes(_aligned(_START.size + len(header)) - _START.size - len(header))
    return b"".join([_START.pack(_MAGIC, VERSION, len(header)), header, space, *parts])


def unpack(data: bytes | memoryview) -> Message:
    """The message in ``data``. Its arrays are views into ``data``: clone one before writing to it.

    Nothing is executed, and nothing is reserved on the word of a header.

    Raises:
        FederationError: the bytes are not exactly what `pack` writes for some message; it says where.
    """
    view = memoryview(data).cast("B")
    if len(view) < _START.size:
        raise FederationError(f"A message of {len(view)} bytes is cut short: its start alone has {_START.size}.")
    magic, version, length = _START.unpack_from(view)
    if magic != _MAGIC:
        raise FederationError("These bytes are no message of reticent: the magic is missing.")
    if version != VERSION:
        raise FederationError(f"The message has version {version}, this side {VERSION}: install the same reticent.")
    if length > HEADER_MOST:
        raise FederationError(f"The message has a header of {length} bytes, over the bound of {HEADER_MOST}.")
    body = _aligned(_START.size + length)
    if body > len(view):
        raise FederationError(f"A message of {len(view)} bytes is cut short: arrays begin at {body}.")
    kind, fields, table = _parse(bytes(view[_START.size : _START.size + length]))
    _check_zeros(view[_START.size + length : body])
    return Message(kind, fields, _arrays(table, view[body:]))


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _canonical(header: object) -> bytes:
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _shown(name: object) -> str:
    """A name as an error quotes it: never long, never more than one line."""
    return ascii(name[:80] if isinstance(name, str) else type(name).__name__)


def _check_kind(kind: object) -> None:
    if not (isinstance(kind, str) and 0 < len(kind) <= _KIND_MOST):
        raise FederationError(f"The kind of a message must be a word of 1 to {_KIND_MOST} characters.")


def _check_name(name: object) -> None:
    if not (isinstance(name, str) and 0 < len(name) <= _NAME_MOST):
        raise FederationError(f"The name of an array must have 1 to {_NAME_MOST} characters: {_shown(name)}.")


def _check_keys(value: object) -> None:
    """Refuses keys that JSON would turn into text."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise FederationError(f"A key of a message's fields is {type(key).__name__}: make it text.")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            _check_keys(item)


def _check_zeros(space: memoryview) -> None:
    if any(space):
        raise FederationError("The space between the parts of a message is not zero: it was changed on the way.")


def _parse(text: bytes) -> tuple[str, dict[str, Any], list[Any]]:
    """Kind, fields and table of arrays of a header."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        canonical = _canonical(header) == text
    except (ValueError, RecursionError):
        raise FederationError("The header of the message is no JSON of finite numbers.") from None
    if not isinstance(header, dict) or header.keys() != {"arrays", "fields", "kind"}:
        raise FederationError("The header of the message must have exactly arrays, fields and kind.")
    _check_kind(header["kind"])
    if not isinstance(header["fields"], dict):
        raise FederationError("The fields of the message must be a table.")
    if not isinstance(header["arrays"], list):
        raise FederationError("The arrays of the message must be a list.")
    if not canonical:
        raise FederationError("The header of the message is not in its canonical spelling.")
    return header["kind"], header["fields"], header["arrays"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise FederationError("The header of the message has a key twice.")
    return table


def _refuse_constant(name: str) -> None:
    raise FederationError(f"The header of the message has the number {name}: only finite ones travel.")


def _arrays(table: list[Any], body: memoryview) -> dict[str, torch.Tensor]:
    arrays: dict[str, torch.Tensor] = {}
    flat = _tensor(body)
    end = 0
    for row in table:
        name, dtype, shape, offset = _row(row)
        if name in arrays:
            raise FederationError(f"The message has the array {_shown(name)} twice.")
        if offset != _aligned(end):
            fault = "overlaps the array before it" if offset < end else "is not at its place"
            raise FederationError(f"Array {_shown(name)} at {offset} {fault}: {_aligned(end)} is due.")
        size = math.prod(shape) * dtype.itemsize
        if offset + size > len(body):
            raise FederationError(
                f"The message is cut short: array {_shown(name)} ends at byte {offset + size} of {len(body)}."
            )
        _check_zeros(body[end:offset])
        end = offset + size
        raw = flat[offset:end]
        if dtype == torch.bool and (raw > 1).any():
            raise FederationError(f"Array {_shown(name)} of bool has bytes other than 0 and 1.")
        arrays[name] = raw.view(dtype).view(shape)
    if end != len(body):
        raise FederationError(f"The message has {len(body) - end} bytes after its last array.")
    return arrays


def _row(row: object) -> tuple[str, torch.dtype, list[int], int]:
    """One checked row of the table of arrays."""
    if not isinstance(row, list) or len(row) != 4:
        raise FederationError("A row of the table of arrays must be name, type, shape and offset.")
    name, dtype, shape, offset = row
    _check_name(name)
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise FederationError(f"Array {_shown(name)} has the type {_shown(dtype)}; what travels: {', '.join(_TYPES)}.")
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise FederationError(f"Array {_shown(name)} must have a shape of sizes of 0 or more.")
    if len(shape) > _DIMENSIONS_MOST or math.prod(size or 1 for size in shape) > _VALUES_MOST:
        raise FederationError(
            f"Array {_shown(name)} is over the bound of {_DIMENSIONS_MOST} dimensions and {_VALUES_MOST} values."
        )
    if type(offset) is not int or offset < 0:
        raise FederationError(f"Array {_shown(name)} must have an offset of 0 or more.")
    return name, _TYPES[dtype], shape, offset


class _Writable:
    """Shows numpy a buffer as writable, which torch asks for even where nothing writes."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # keeps the memory
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _tensor(body: memoryview) -> torch.Tensor:
    """(n,) uint8 over the memory of ``body``."""
    if not len(body):
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.asarray(_Writable(np.frombuffer(body, dtype=np.uint8))))


def split(arrays: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Arrays named ``PART/NAME`` by part, then by name; parts that have none are absent."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in arrays.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = value
    return parts
