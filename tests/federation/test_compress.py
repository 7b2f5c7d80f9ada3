"""Every kind loses what it says and no more, error feedback gives it back, and nothing malformed is decoded."""

import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from reticent.errors import FederationError
from reticent.federation import compress
from reticent.federation.compress import compressor_for, decode
from reticent.federation.messages import pack, unpack

KINDS = ["none", "lossless", "bf16", "int8", "top-k"]
LOSSY = ["int8", "top-k"]
SHAPES = {"x.lora_A": (4, 130), "x.lora_B": (300, 7), "bias": (256,), "tail": (257,), "scale": (), "none": (0, 3)}


def _update(seed, shapes=SHAPES, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}


def _shapes(update):
    return {name: tuple(value.shape) for name, value in update.items()}


def _sent(compressor, update):
    """The update as the coordinator gets it, over the bytes of a message."""
    return decode(unpack(pack("update", {}, compressor.encode(update))).arrays, _shapes(update))


def _equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _relative(error, whole):
    return float(sum(value.double().square().sum() for value in error.values()) ** 0.5) / float(
        sum(value.double().square().sum() for value in whole.values()) ** 0.5
    )


def _minus(first, second):
    return {name: first[name].double() - second[name].double() for name in first}


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_arrive_as_float32(kind):
    update = _update(0)
    arrived = _sent(compressor_for(kind, seed=0), update)
    assert _shapes(arrived) == _shapes(update) and list(arrived) == list(update)
    assert all(value.dtype == torch.float32 for value in arrived.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_update_is_not_changed_by_sending_it(kind, dtype):
    update = _update(0, dtype=dtype)
    compressor = compressor_for(kind, seed=0)
    for _ in range(2):
        _sent(compressor, update)
    assert _equal(update, _update(0, dtype=dtype))


@pytest.mark.parametrize("kind", ["none", "lossless", "bf16"])
def test_bf16_updates_arrive_exactly(kind):
    update = _update(0, dtype=torch.bfloat16)
    assert _equal(_sent(compressor_for(kind, seed=0), update), {name: value.float() for name, value in update.items()})


@pytest.mark.parametrize("kind", ["none", "lossless"])
def test_float32_arrives_bit_by_bit(kind):
    update = {"a": torch.tensor([0.0, -0.0, 1e-45, -3.4e38, 1 / 3])}
    arrived = _sent(compressor_for(kind, seed=0), update)
    assert torch.equal(arrived["a"].view(torch.int32), update["a"].view(torch.int32))


def test_transposed_and_trained_tensors_can_be_sent():
    update = {"a": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T, "b": torch.ones(3)}
    update["b"].requires_grad_()
    for kind in KINDS:
        arrived = _sent(compressor_for(kind, top_k=1.0, seed=0), update)
        assert torch.allclose(arrived["a"], update["a"], atol=0.05)
        assert not arrived["b"].requires_grad


def test_bf16_loses_at_most_half_a_unit_in_the_last_place():
    update = _update(1)
    arrived = _sent(compressor_for("bf16", seed=0), update)
    assert all(((arrived[n] - v).abs() <= 2.0**-8 * v.abs()).all() for n, v in update.items())


def test_int8_is_off_by_less_than_a_level():
    update = {"a": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    arrived = _sent(compressor_for("int8", seed=0), update)
    for start in range(0, 1000, 256):
        block, got = update["a"][start : start + 256], arrived["a"][start : start + 256]
        assert (got - block).abs().max() < block.abs().max() / 127 * 1.001


def test_int8_equals_a_slow_oracle():
    values = torch.randn(600, generator=torch.Generator().manual_seed(0)).numpy()
    wire = compressor_for("int8", seed=7).encode({"a": torch.from_numpy(values)})
    uniform = np.random.Generator(np.random.SFC64([7, 0]))
    shift = np.concatenate([uniform.random(512, dtype=np.float32), uniform.random(88, dtype=np.float32)])
    for i in range(600):
        block = values[i // 256 * 256 : i // 256 * 256 + 256]
        scale = np.float32(max(abs(float(value)) for value in block)) / np.float32(127)
        assert wire["a|scale"][i // 256] == scale
        exact = float(values[i]) / float(scale) + float(shift[i])
        assert int(wire["a|int8"][i]) == np.floor(exact) or abs(exact - round(exact)) < 1e-4


def _mean_of_roundings(values, draws, seed=0):
    """Mean over ``draws`` independent roundings, and the scale of the block."""
    arrived = [_sent(compressor_for("int8", seed=seed + i), {"a": values})["a"].double() for i in range(draws)]
    return torch.stack(arrived).mean(0), float(values.abs().max()) / 127


def _unbiased(values, mean, scale, draws):
    """Whether the mean is within 5 standard errors of ``values``; one rounding has at most scale / 2."""
    return bool(((mean - values.double()).abs() <= 5 * scale / 2 / draws**0.5).all())


def test_rounding_to_int8_is_unbiased():
    values = torch.cat([torch.tensor([127.0]), torch.linspace(-3, 3, 255)])
    mean, scale = _mean_of_roundings(values, 2000)
    assert _unbiased(values, mean, scale, 2000)
    total = float((mean - values.double()).sum())
    assert abs(total) < 5 * scale / 2 * (256 / 2000) ** 0.5


def test_rounding_to_the_nearest_level_fails_that_law(monkeypatch):
    class Half:
        def random(self, size, dtype):
            return np.full(size, 0.5, dtype=dtype)

    monkeypatch.setattr(compress.np.random, "Generator", lambda _: Half())
    values = torch.cat([torch.tensor([127.0]), torch.linspace(-3, 3, 255)])
    mean, scale = _mean_of_roundings(values, 20)
    assert not _unbiased(values, mean, scale, 2000)


def test_the_largest_value_of_a_block_never_wraps_around():
    values = torch.full((2**16,), 3.0)
    values[1::2] = -3.0
    for seed in range(20):
        arrived = _sent(compressor_for("int8", seed=seed), {"a": values})["a"]
        assert (arrived - values).abs().max() <= 3.0 / 127 * 1.001


def test_a_block_too_small_for_a_scale_waits_until_it_is_not():
    compressor, tiny = compressor_for("int8", seed=0), {"a": torch.full((256,), 2e-37)}
    assert not _sent(compressor, tiny)["a"].any()
    total = sum(_sent(compressor, tiny)["a"].double() for _ in range(2000))
    assert torch.allclose(total, torch.full((256,), 2001 * 2e-37, dtype=torch.float64), rtol=1e-3)


def test_a_seed_gives_the_same_rounding_and_each_update_another():
    same = [compressor_for("int8", seed=3).encode(_update(0)) for _ in range(2)]
    assert _equal(*same)
    assert not _equal(same[0], compressor_for("int8", seed=4).encode(_update(0)))
    compressor = compressor_for("int8", seed=3)
    first = compressor.encode({"a": torch.linspace(0.1, 1, 256)})["a|int8"]
    compressor.load({**compressor.state(), "a": torch.zeros(256)})
    assert not torch.equal(first, compressor.encode({"a": torch.linspace(0.1, 1, 256)})["a|int8"])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 10, 5000, 200_000])
def test_top_k_sends_the_largest_values(share, count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    wire = compressor_for("top-k", top_k=share, seed=0).encode({"a": values})
    kept = int(np.ceil(share * count))
    expected = np.sort(np.argsort(-values.abs().numpy(), kind="stable")[:kept])
    assert wire["a|index"].tolist() == expected.tolist()
    assert torch.equal(wire["a|value"], values[wire["a|index"].long()])


@pytest.mark.parametrize("values", [torch.zeros(300_000), torch.ones(300_000)], ids=["zeros", "ones"])
def test_top_k_of_equal_values_sends_its_number(values):
    wire = compressor_for("top-k", top_k=0.01, seed=0).encode({"a": values})
    assert len(wire["a|index"].unique()) == 3000


def test_top_k_is_right_where_the_sample_misleads():
    values = torch.zeros(300_000)
    values[:: 300_000 // 2**16] = torch.arange(1.0, 75_001.0)
    wire = compressor_for("top-k", top_k=0.5, seed=0).encode({"a": values})
    assert len(wire["a|index"]) == 150_000 and int((wire["a|value"] > 0).sum()) == 75_000


@pytest.mark.parametrize("kind", LOSSY)
def test_what_arrived_and_what_is_carried_make_up_what_was_given(kind):
    compressor = compressor_for(kind, top_k=0.05, seed=0)
    given = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    arrived = {name: value.clone() for name, value in given.items()}
    for step in range(20):
        update = _update(step)
        for name, value in _sent(compressor, update).items():
            arrived[name] += value
            given[name] += update[name]
    left = compressor.state()
    for name in given:
        assert torch.allclose(arrived[name] + left[name], given[name], atol=1e-4)


@pytest.mark.parametrize(("kind", "bound"), [("int8", 1e-4), ("top-k", 0.03)])
def test_the_sum_of_what_arrives_tends_to_the_sum_of_what_was_given(kind, bound):
    """Of updates about one direction, the relative gap must fall like one over the rounds."""
    compressor, drift = compressor_for(kind, top_k=0.1, seed=0), _update(99, {"a": (40, 50)})
    given, arrived, gaps = torch.zeros(40, 50).double(), torch.zeros(40, 50).double(), {}
    for step in range(1, 401):
        update = {"a": drift["a"] + 0.5 * _update(step, {"a": (40, 50)})["a"]}
        given += update["a"]
        arrived += _sent(compressor, update)["a"]
        gaps[step] = float((given - arrived).norm() / given.norm())
    assert gaps[400] < gaps[100] / 3.5 < gaps[25] / 10
    assert gaps[400] < bound


def test_top_k_without_feedback_fails_that_law():
    drift, arrived = _update(99, {"a": (40, 50)})["a"], torch.zeros(40, 50).double()
    for _ in range(100):
        arrived += _sent(compressor_for("top-k", top_k=0.1, seed=0), {"a": drift})["a"]
    assert (arrived / 100 - drift).norm() / drift.norm() > 0.5


@pytest.mark.parametrize("size", [64, 5000, 200_000])
@pytest.mark.parametrize(
    ("kind", "low", "high", "ratio"),
    [
        ("none", 0, 0, 1),
        ("lossless", 0, 0, 1.1),
        ("bf16", 1e-4, 2e-3, 2),
        ("int8", 2e-3, 1.2e-2, 3.9),
        ("top-k", 0.9, 1.05, 40),
    ],
    ids=KINDS,
)
def test_a_mean_of_ten_updates_is_off_by_what_the_kind_costs(kind, low, high, ratio, size):
    """Normal updates of ten sites, independent; the error is that of one round, before feedback gives it back."""
    updates = [_update(seed, {"a": (size,)}) for seed in range(10)]
    wires = [compressor_for(kind, top_k=0.01, seed=seed).encode(update) for seed, update in enumerate(updates)]
    arrived = [decode(wire, {"a": (size,)}) for wire in wires]
    mean = {"a": sum(update["a"].double() for update in updates) / 10}
    got = {"a": sum(update["a"].double() for update in arrived) / 10}
    assert low <= _relative(_minus(got, mean), mean) <= high
    if size == 200_000:
        assert 4 * size / sum(value.nbytes for value in wires[0].values()) >= ratio


def test_lossless_makes_zeros_and_repeats_small():
    update = {"a": torch.zeros(100_000), "b": torch.ones(100_000)}
    wire = compressor_for("lossless", seed=0).encode(update)
    assert sum(value.nbytes for value in wire.values()) < 8000


def test_a_plane_of_noise_travels_as_it_is():
    noise = torch.randint(0, 256, (4000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(compress._deflated(noise.numpy()), noise)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_compressor_goes_on_identically(kind):
    first = compressor_for(kind, top_k=0.1, seed=5)
    for step in range(3):
        first.encode(_update(step))
    state = unpack(pack("state", {}, first.state())).arrays
    second = compressor_for(kind, top_k=0.1, seed=5)
    second.load(state)
    for step in range(3, 6):
        assert _equal(first.encode(_update(step)), second.encode(_update(step)))


@pytest.mark.parametrize("kind", LOSSY)
def test_a_state_that_was_taken_stays_as_it_was(kind):
    compressor = compressor_for(kind, seed=0)
    compressor.encode(_update(0))
    state = compressor.state()
    compressor.encode(_update(1))
    again = compressor_for(kind, seed=0)
    again.load(state)
    again.encode(_update(1))
    assert _equal(again.state(), compressor.state()) and not _equal(state, compressor.state())


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("none", {"a": torch.zeros(2)}),
        ("int8", {"a": torch.zeros(2)}),
        ("int8", {"|encoded": torch.zeros(1)}),
        ("top-k", {"|encoded": torch.tensor(1)}),
        ("top-k", {"a": torch.tensor([float("nan")])}),
    ],
)
def test_the_state_of_another_compression_is_refused(kind, state):
    with pytest.raises(FederationError):
        compressor_for(kind, seed=0).load(state)


@pytest.mark.parametrize("kind", LOSSY)
def test_an_update_of_other_shapes_is_refused(kind):
    compressor = compressor_for(kind, seed=0)
    compressor.encode({"a": torch.ones(3)})
    for other in [{"a": torch.ones(1, 3)}, {"b": torch.ones(3)}, {"a": torch.ones(3), "b": torch.ones(3)}, {}]:
        with pytest.raises(FederationError, match="names or shapes"):
            compressor.encode(other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_not_sent_nor_carried(kind, bad):
    compressor, update = compressor_for(kind, seed=0), {"a": torch.ones(3), "b": torch.tensor([1.0, bad])}
    with pytest.raises(FederationError, match="'b' has values that are not finite"):
        compressor.encode(update)
    fresh, good = compressor_for(kind, seed=0), {"a": torch.ones(3), "b": torch.ones(2)}
    assert _equal(compressor.encode(good), fresh.encode(good)) or kind == "int8"
    assert all(value.isfinite().all() for value in decode(compressor.encode(good), {"a": (3,), "b": (2,)}).values())


def test_a_value_that_bf16_cannot_say_is_refused():
    with pytest.raises(FederationError, match="not finite"):
        compressor_for("bf16", seed=0).encode({"a": torch.tensor([3.4e38])})


@pytest.mark.parametrize("update", [{"a|b": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.int64)}])
def test_what_has_no_wire_form_is_refused(update):
    with pytest.raises(FederationError, match="Cannot send"):
        compressor_for("none", seed=0).encode(update)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(FederationError, match="none, lossless, bf16, int8, top-k"):
        compressor_for("zip", seed=0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_bounds_is_refused(share):
    with pytest.raises(FederationError, match="top_k"):
        compressor_for("top-k", top_k=share, seed=0)


def _floats(*values):
    return torch.tensor(values, dtype=torch.float32)


def _ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def _planes(*planes):
    return {f"a|plane{i}": torch.tensor(list(plane), dtype=torch.uint8) for i, plane in enumerate(planes)}


BOMB = zlib.compress(bytes(10**7))
REFUSED = {
    "nothing": ({}, "no array for 'a'"),
    "another name": ({"b": _floats(1, 2, 3)}, "no array for 'a'"),
    "an array too many": ({"a": _floats(1, 2, 3), "b\n": _floats(1)}, "1 unknown arrays, first 'b.n'"),
    "two kinds at once": (
        {"a": _floats(1, 2, 3), "a|index": _ints(0), "a|value": _floats(1)},
        "2 unknown arrays, first 'a.index'",
    ),
    "half a kind": ({"a|index": _ints(0)}, "no array for 'a'"),
    "another shape": ({"a": _floats(1, 2)}, r"\(2,\), not torch.float32 \(3,\)"),
    "another arrangement": ({"a": _floats(1, 2, 3)[:, None]}, r"\(3, 1\), not"),
    "another type": ({"a": _ints(1, 2, 3)}, "torch.int32"),
    "NaN": ({"a": _floats(1, float("nan"), 3)}, "not finite"),
    "infinity": ({"a": _floats(1, 2, -float("inf"))}, "not finite"),
    "NaN in bf16": ({"a": _floats(1, float("nan"), 3).bfloat16()}, "not finite"),
    "levels of another type": ({"a|int8": _ints(1, 2, 3), "a|scale": _floats(1)}, "not torch.int8"),
    "too few levels": ({"a|int8": _ints(1, 2, dtype=torch.int8), "a|scale": _floats(1)}, r"not torch.int8 \(3,\)"),
    "too many scales": ({"a|int8": _ints(1, 2, 3, dtype=torch.int8), "a|scale": _floats(1, 1)}, r"\(2,\), not"),
    "a scale of NaN": ({"a|int8": _ints(0, 0, 0, dtype=torch.int8), "a|scale": _floats(float("nan"))}, "scales"),
    "an infinite scale": ({"a|int8": _ints(0, 0, 0, dtype=torch.int8), "a|scale": _floats(float("inf"))}, "scales"),
    "a negative scale": ({"a|int8": _ints(1, 2, 3, dtype=torch.int8), "a|scale": _floats(-1)}, "scales"),
    "a scale that overflows": ({"a|int8": _ints(1, 2, 3, dtype=torch.int8), "a|scale": _floats(3e37)}, "scales"),
    "an index too large": ({"a|index": _ints(0, 3), "a|value": _floats(1, 2)}, "out of range"),
    "a negative index": ({"a|index": _ints(-1, 1), "a|value": _floats(1, 2)}, "out of range"),
    "an index twice": ({"a|index": _ints(1, 1), "a|value": _floats(1, 2)}, "out of order"),
    "indices out of order": ({"a|index": _ints(2, 1), "a|value": _floats(1, 2)}, "out of order"),
    "an index hidden in the middle": ({"a|index": _ints(0, 9, 2), "a|value": _floats(1, 2, 3)}, "out of order"),
    "too many indices": ({"a|index": _ints(0, 1, 2, 3), "a|value": _floats(1, 2, 3, 4)}, "indices"),
    "indices in a square": ({"a|index": _ints(0)[None], "a|value": _floats(1)[None]}, "indices"),
    "indices of another type": ({"a|index": _ints(0, dtype=torch.int64), "a|value": _floats(1)}, "not torch.int32"),
    "more values than indices": ({"a|index": _ints(0), "a|value": _floats(1, 2)}, r"\(2,\), not"),
    "a value of NaN": ({"a|index": _ints(0), "a|value": _floats(float("nan"))}, "not finite"),
    "a plane that zlib cannot read": (_planes(b"abc", b"abc", b"abc", b"abcd"), "zlib"),
    "a plane too long": (_planes(b"abc", b"abc", b"abc", zlib.compress(b"abcd")), "exactly 3"),
    "a plane too short": (_planes(b"abc", b"abc", b"abc", zlib.compress(b"ab")), "exactly 3"),
    "a plane cut short": (_planes(b"abc", b"abc", b"abc", zlib.compress(b"abc")[:-1]), "exactly 3"),
    "bytes after a plane": (_planes(b"abc", b"abc", b"abc", zlib.compress(b"abc") + b"x"), "exactly 3"),
    "a plane that is a bomb": (_planes(b"abc", b"abc", b"abc", BOMB), "exactly 3"),
    "an empty plane": (_planes(b"abc", b"abc", b"abc", b""), "exactly 3"),
    "a plane of floats": ({**_planes(b"abc", b"abc", b"abc"), "a|plane3": _floats(1, 2, 3)}, "not torch.uint8"),
    "planes that are NaN": (_planes(b"\xff" * 3, b"\xff" * 3, b"\xff" * 3, b"\x7f" * 3), "not finite"),
}


def test_a_plane_that_is_a_bomb_takes_no_memory():
    arrays = REFUSED["a plane that is a bomb"][0]
    tracemalloc.start()
    with pytest.raises(FederationError):
        decode(arrays, {"a": (3,)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


@pytest.mark.parametrize("fault", REFUSED)
def test_malformed_updates_are_refused_by_name(fault):
    arrays, reason = REFUSED[fault]
    with pytest.raises(FederationError, match=reason):
        decode(arrays, {"a": (3,)})


def test_what_the_faults_were_made_of_is_itself_accepted():
    whole = {"a": (3,)}
    assert decode({"a": _floats(1, 2, 3)}, whole)["a"].tolist() == [1, 2, 3]
    int8 = {"a|int8": _ints(1, -127, 3, dtype=torch.int8), "a|scale": _floats(2)}
    assert decode(int8, whole)["a"].tolist() == [2, -254, 6]
    assert decode({"a|index": _ints(0, 2), "a|value": _floats(5, 7)}, whole)["a"].tolist() == [5, 0, 7]
    planes = _planes(b"\0\0\0", zlib.compress(b"\0\0\0"), b"\x80\0\x40", b"\x3f\x40\x40")
    assert decode(planes, whole)["a"].tolist() == [1, 2, 3]


def test_an_update_of_nothing_is_nothing():
    assert decode({}, {}) == {} and compressor_for("none", seed=0).encode({}) == {}
