"""A message arrives as it was sent, or is refused: no bytes that are not a message pass for one."""

import json
import random
import struct

import numpy as np
import pytest
import torch

from reticent.errors import FederationError
from reticent.federation import messages
from reticent.federation.messages import Message, pack, unpack

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
]
SHAPES = [(), (1,), (0,), (3, 0, 2), (5,), (2, 3), (4, 1, 33)]


def _array(dtype, shape, seed=0):
    """Random bits of ``dtype``."""
    count = torch.Size(shape).numel() * dtype.itemsize
    most = 2 if dtype == torch.bool else 256
    raw = np.random.default_rng(seed).integers(0, most, count).astype(np.uint8)
    return torch.tensor(raw.tolist(), dtype=torch.uint8).view(dtype).view(shape)


def _bits(value):
    return value.dtype, value.shape, value.contiguous().view(-1).view(torch.uint8).tolist()


def _bytes(header, body=b"", *, version=1, magic=b"reticent"):
    """A message with a header of any text, written apart from `pack`."""
    header = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    start = magic + struct.pack("<II", version, len(header)) + header
    return start + bytes(-len(start) % 64) + body


def _with(*rows, body=b""):
    return _bytes({"arrays": list(rows), "fields": {}, "kind": "x"}, body)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_array_arrives_bit_by_bit(dtype, shape):
    array = _array(dtype, shape)
    assert _bits(unpack(pack("x", {}, {"a": array})).arrays["a"]) == _bits(array)


def test_a_message_arrives_as_it_was_sent():
    fields = {"b": [1, 2.5, None, True, "é\n"], "a": {"c": "", "big": 2**80}}
    arrays = {"z": _array(torch.bfloat16, (3,)), "a": _array(torch.int64, (2, 2)), "e": torch.empty(0)}
    message = unpack(pack("round.train", fields, arrays))
    assert message[:2] == ("round.train", fields)
    assert list(message.arrays) == ["z", "a", "e"]
    assert all(_bits(message.arrays[name]) == _bits(value) for name, value in arrays.items())


def test_a_message_without_arrays_arrives():
    assert unpack(pack("x", {"a": 1}, {})) == Message("x", {"a": 1}, {})


def test_arrays_that_are_not_contiguous_arrive():
    array = torch.arange(12.0).view(3, 4)
    message = unpack(pack("x", {}, {"t": array.T, "s": array[:, 1::2]}))
    assert torch.equal(message.arrays["t"], array.T) and torch.equal(message.arrays["s"], array[:, 1::2])


def test_parameters_that_are_trained_can_be_sent():
    assert not unpack(pack("x", {}, {"a": torch.ones(2, requires_grad=True)})).arrays["a"].requires_grad


def test_the_bytes_are_the_documented_ones():
    header = b'{"arrays":[["a","uint8",[2],0],["b","int32",[],64]],"fields":{"n":1},"kind":"x"}'
    assert len(header) == 80
    expected = b"reticent" + b"\x01\0\0\0" + b"\x50\0\0\0" + header + bytes(32)
    expected += b"\x07\x08" + bytes(62) + b"\x05\0\0\0"
    arrays = {"a": torch.tensor([7, 8], dtype=torch.uint8), "b": torch.tensor(5, dtype=torch.int32)}
    assert pack("x", {"n": 1}, arrays) == expected


def test_equal_fields_give_equal_bytes_in_any_order():
    assert pack("x", {"a": 1, "b": {"d": 2, "c": 3}}, {}) == pack("x", {"b": {"c": 3, "d": 2}, "a": 1}, {})


def test_unpacked_arrays_are_views_of_the_message():
    data = bytearray(pack("x", {}, {"a": torch.zeros(3)}))
    array = unpack(data).arrays["a"]
    data[-1] = 64
    assert array[2] == 2.0


def test_arrays_outlive_the_name_of_the_message():
    array = unpack(memoryview(pack("x", {}, {"a": torch.arange(5000)}))).arrays["a"]
    assert torch.equal(array, torch.arange(5000))


@pytest.mark.parametrize("shift", [1, 2, 7])
def test_a_message_in_the_middle_of_other_bytes_is_read(shift):
    array = _array(torch.int64, (5,))
    inside = memoryview(bytes(shift) + pack("x", {}, {"a": array}) + b"...")[shift:-3]
    assert _bits(unpack(inside).arrays["a"]) == _bits(array)


def test_tuples_arrive_as_lists():
    assert unpack(pack("x", {"shape": (1, 2)}, {})).fields == {"shape": [1, 2]}


@pytest.mark.parametrize(
    "field",
    [float("nan"), float("inf"), b"bytes", {1: 2}, [{"a": {None: 1}}], {1, 2}, np.float32(1), torch.ones(1), "\ud800"],
    ids=repr,
)
def test_fields_that_json_cannot_say_are_refused(field):
    with pytest.raises(FederationError, match="fields"):
        pack("x", {"a": field}, {})


def test_fields_without_an_end_are_refused():
    fields = {}
    fields["again"] = fields
    with pytest.raises(FederationError, match="fields"):
        pack("x", fields, {})


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint64, torch.complex64, torch.int16], ids=str)
def test_types_that_do_not_travel_are_refused(dtype):
    with pytest.raises(FederationError, match="what travels: bfloat16"):
        pack("x", {}, {"a": torch.zeros(2, dtype=dtype)})


@pytest.mark.parametrize("kind", ["", "k" * 65, None, 5])
def test_a_kind_that_is_no_word_is_refused(kind):
    with pytest.raises(FederationError, match="kind"):
        pack(kind, {}, {})


@pytest.mark.parametrize("name", ["", "n" * 1025, 5])
def test_an_array_without_a_proper_name_is_refused(name):
    with pytest.raises(FederationError, match="name of an array"):
        pack("x", {}, {name: torch.ones(1)})


def test_a_header_over_the_bound_is_refused_on_both_sides():
    with pytest.raises(FederationError, match="over the bound of 4194304"):
        pack("x", {"a": "a" * 2**22}, {})
    with pytest.raises(FederationError, match="over the bound of 4194304"):
        unpack(struct.pack("<8sII", b"reticent", 1, 2**22 + 1) + bytes(2**22 + 100))


A, B = ["a", "float32", [2], 0], ["b", "uint8", [3], 64]
REFUSED = {
    "nothing": (b"", "cut short"),
    "too short for a start": (b"reticent\x01\0\0", "cut short"),
    "another magic": (_bytes({"arrays": [], "fields": {}, "kind": "x"}, magic=b"pickled!"), "magic"),
    "another version": (_bytes({"arrays": [], "fields": {}, "kind": "x"}, version=2), "version 2, this side 1"),
    "a header longer than the message": (struct.pack("<8sII", b"reticent", 1, 2000) + b"{}", "cut short"),
    "no json": (_bytes(b"{"), "no JSON"),
    "no text": (_bytes(b"\xff\xfe{}"), "no JSON"),
    "utf-16": (_bytes('{"arrays":[],"fields":{},"kind":"x"}'.encode("utf-16")), "no JSON"),
    "deep nesting": (_bytes(b"[" * 100_000), "no JSON"),
    "deep nesting that ends": (_bytes(b"[" * 100_000 + b"]" * 100_000), "no JSON"),
    "a number of many digits": (_bytes(b'{"arrays":[],"fields":{"a":' + b"9" * 5000 + b'},"kind":"x"}'), "no JSON"),
    "half a character": (_bytes(rb'{"arrays":[],"fields":{"a":"\ud800"},"kind":"x"}'), "no JSON"),
    "NaN": (_bytes(b'{"arrays":[],"fields":{"a":NaN},"kind":"x"}'), "number NaN"),
    "infinity": (_bytes(b'{"arrays":[],"fields":{"a":-Infinity},"kind":"x"}'), "number -Infinity"),
    "infinity in digits": (_bytes(b'{"arrays":[],"fields":{"a":1e999},"kind":"x"}'), "finite"),
    "a key twice": (_bytes(b'{"arrays":[],"fields":{"a":1,"a":1},"kind":"x"}'), "key twice"),
    "a list": (_bytes([]), "exactly arrays"),
    "a key too many": (_bytes({"arrays": [], "fields": {}, "kind": "x", "more": 1}), "exactly arrays"),
    "a key too few": (_bytes({"arrays": [], "kind": "x"}), "exactly arrays"),
    "no kind": (_bytes({"arrays": [], "fields": {}, "kind": ""}), "kind"),
    "a number as kind": (_bytes({"arrays": [], "fields": {}, "kind": 1}), "kind"),
    "fields that are no table": (_bytes({"arrays": [], "fields": [], "kind": "x"}), "fields"),
    "arrays that are no list": (_bytes({"arrays": {}, "fields": {}, "kind": "x"}), "must be a list"),
    "spaces": (_bytes(b'{"arrays": [],"fields":{},"kind":"x"}'), "canonical"),
    "keys in another order": (_bytes(b'{"fields":{},"arrays":[],"kind":"x"}'), "canonical"),
    "a number in another spelling": (_bytes(b'{"arrays":[],"fields":{"a":1.50},"kind":"x"}'), "canonical"),
    "a row too short": (_with(["a", "float32", [2]]), "row"),
    "a row that is no list": (_with("abcd"), "row"),
    "no name": (_with(["", "float32", [2], 0], body=bytes(8)), "name of an array"),
    "a type that does not travel": (_with(["a", "float64", [1], 0], body=bytes(8)), "'float64'"),
    "a type that is no text": (_with(["a", [], [1], 0], body=bytes(8)), "type 'list'"),
    "a negative size": (_with(["a", "float32", [-2], 0], body=bytes(8)), "sizes of 0 or more"),
    "two negative sizes": (_with(["a", "float32", [-2, -1], 0], body=bytes(8)), "sizes of 0 or more"),
    "a size that is no whole number": (_with(["a", "float32", [2.0], 0], body=bytes(8)), "sizes of 0 or more"),
    "a size that is true": (_with(["a", "float32", [True], 0], body=bytes(4)), "sizes of 0 or more"),
    "a shape that is no list": (_with(["a", "float32", 2, 0], body=bytes(8)), "sizes of 0 or more"),
    "too many dimensions": (_with(["a", "float32", [1] * 9, 0], body=bytes(4)), "over the bound"),
    "a huge shape": (_with(["a", "float32", [2**40, 2**40], 0], body=bytes(8)), "over the bound"),
    "a huge empty shape": (_with(["a", "float32", [0, 2**62, 2**62], 0]), "over the bound"),
    "more values than bytes": (_with(["a", "float32", [2**40], 0], body=bytes(8)), "cut short"),
    "a negative offset": (_with(["a", "float32", [2], -64], body=bytes(8)), "offset of 0 or more"),
    "an offset that is no whole number": (_with(["a", "float32", [2], 0.0], body=bytes(8)), "offset of 0 or more"),
    "an offset out of range": (_with(["a", "float32", [2], 2**40], body=bytes(8)), "not at its place"),
    "arrays that overlap": (_with(A, ["b", "uint8", [3], 4], body=bytes(67)), "overlaps"),
    "the same bytes twice": (_with(A, ["b", "float32", [2], 0], body=bytes(8)), "overlaps"),
    "a gap between arrays": (_with(A, ["b", "uint8", [3], 128], body=bytes(131)), "not at its place"),
    "a name twice": (_with(A, ["a", "uint8", [3], 64], body=bytes(67)), "'a' twice"),
    "an array cut short": (_with(A, B, body=bytes(66)), "cut short"),
    "bytes after the last array": (_with(A, B, body=bytes(68)), "1 bytes after"),
    "bytes without an array": (_with(body=bytes(5)), "5 bytes after"),
    "something between arrays": (_with(A, B, body=bytes(20) + b"x" + bytes(46)), "not zero"),
    "something after the header": (_bytes({"arrays": [], "fields": {}, "kind": "x"})[:-1] + b"x", "not zero"),
    "a bool of 2": (_with(["a", "bool", [2], 0], body=b"\1\2"), "other than 0 and 1"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_malformed_bytes_are_refused_by_name(fault):
    data, reason = REFUSED[fault]
    with pytest.raises(FederationError, match=reason) as caught:
        unpack(data)
    assert len(str(caught.value)) < 250


def test_what_the_faults_were_made_of_is_itself_accepted():
    assert list(unpack(_with(A, B, body=bytes(67))).arrays) == ["a", "b"]


def _example():
    arrays = {"a": _array(torch.float32, (2, 3)), "flag": _array(torch.bool, (5,)), "e": torch.empty(0, 4)}
    return pack("round", {"n": 3, "text": "é", "loss": 0.25, "names": ["a", "b"]}, arrays)


def test_a_message_cut_anywhere_is_refused():
    data = _example()
    for length in range(len(data)):
        with pytest.raises(FederationError):
            unpack(data[:length])


def test_whatever_is_accepted_is_what_pack_writes():
    """Changed at random, a message is refused, or is another message in its one spelling."""
    draw, data = random.Random(0), _example()
    accepted = 0
    for _ in range(4000):
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(changed))] = draw.choice([draw.randrange(256), *b'0129-",:[]{}'])
        try:
            message = unpack(bytes(changed))
        except FederationError:
            continue
        accepted += 1
        assert pack(*message) == bytes(changed)
    assert 100 < accepted < 3900


def test_a_reader_that_ignores_the_space_between_arrays_fails_that_law(monkeypatch):
    monkeypatch.setattr(messages, "_check_zeros", lambda space: None)
    with pytest.raises(AssertionError):
        test_whatever_is_accepted_is_what_pack_writes()


def test_errors_quote_no_more_than_the_start_of_a_name():
    row = ["secret " * 140, "float32", [9], 0]
    with pytest.raises(FederationError) as caught:
        unpack(_with(row))
    assert len(str(caught.value)) < 200


def test_errors_stay_on_one_line():
    with pytest.raises(FederationError) as caught:
        unpack(_with(["a\nb\x1b[2J", "float32", [9], 0]))
    assert str(caught.value).isprintable()
