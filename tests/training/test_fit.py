import copy
import mmap

import numpy as np
import pytest
import torch

from reticent.errors import ModelError
from reticent.gradients.engines import engine_for
from reticent.privacy.clipping import Clipping
from reticent.training import fit

MIB = 2**20


def touched(mebibytes):
    """Fresh memory, not what earlier tests gave back to the allocator."""
    memory = mmap.mmap(-1, max(1, int(mebibytes * MIB)))
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    return memory


def gpu_of(tokens):
    """A try that runs out of memory above ``tokens``."""

    def try_one(size):
        if size > tokens:
            raise torch.OutOfMemoryError("no")

    return try_one


@pytest.mark.parametrize(
    ("holds", "most", "found"),
    [(512, 2**20, 256), (5000, 2**20, 2048), (2**30, 4096, 4096), (4096, 4096, 2048), (64, 32, 32)],
)
def test_half_of_the_last_that_a_gpu_holds(holds, most, found):
    assert fit.largest_on_gpu(gpu_of(holds), most=most) == found


def test_a_gpu_that_holds_nothing_is_told_with_what_to_do():
    with pytest.raises(ModelError, match="even 512 tokens at once do not fit into the GPU's memory. Lower data.max"):
        fit.largest_on_gpu(gpu_of(100), most=4096)


@pytest.mark.parametrize(("free", "found"), [(160, 2048), (10_000, 8192)])
def test_a_cpu_stops_before_the_size_that_would_pass_its_share(free, found):
    # 16 MiB at 512 tokens, so 64 MiB at 2048; 128 MiB would be more than 70% of 160 MiB
    tried = []

    def try_one(size):
        tried.append(size)
        touched(size / 32).close()

    assert fit.largest_on_cpu(try_one, most=8192, free=free * MIB) == found
    assert tried[-1] == found


@pytest.mark.parametrize(("free", "tries"), [(10, 1), (0, 0)])
def test_a_cpu_that_holds_nothing_is_told_with_what_to_do(free, tries):
    tried = []

    def try_one(size):
        tried.append(touched(size / 16))

    with pytest.raises(ModelError, match="even 512 tokens .* 70% of the 0.0 GiB .* train.gradient_checkpointing: true"):
        fit.largest_on_cpu(try_one, most=8192, free=free * MIB)
    assert len(tried) == tries


def test_what_is_available_is_within_the_machine():
    assert 0 < fit.available() < 2**50


@pytest.mark.parametrize("clipping", [None, Clipping(1.0)])
@pytest.mark.parametrize("full", [False, True])
def test_the_search_leaves_the_model_as_it_was(tiny, clipping, full):
    model = tiny.model().requires_grad_(full) if full else tiny.lora(tiny.model())
    before, modes = copy.deepcopy(model.state_dict()), model.training
    units = tiny.units(12)
    found = fit.fitting(model, units, batch_size=4, clipping=clipping, loss="sum", kept=16)
    mean = np.mean([len(record) for unit in units for record in unit.records])
    assert 4 * mean <= found < 8 * mean
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training == modes


def test_the_size_found_sums_the_same(tiny):
    model, units = tiny.lora(tiny.model()), tiny.units(12)
    sums = [
        engine_for(model, clipping=Clipping(0.5), loss="sum", micro_batch_tokens=tokens).unit_sum(units).gradient
        for tokens in (16, fit.fitting(model, units, batch_size=12, clipping=Clipping(0.5), loss="sum"))
    ]
    assert tiny.distance(*sums) < 1e-5 * tiny.norm(sums[0])


def test_rows_are_tried_full_and_made_up(tiny, monkeypatch):
    drawn = []
    monkeypatch.setattr(fit, "engine_for", lambda *_, **__: type("Engine", (), {"unit_sum": drawn.append}))
    fit.trial(tiny.model(), fit.Shapes(longest=30, shortest=5, units=8), clipping=None, loss="sum")(100)
    sizes = [[sum(map(len, unit.records)) for unit in units] for units in drawn]
    assert sizes == [[100], [30, 30, 30, 10], [5] * 8]
    assert all(record.ids.max() < tiny.vocabulary for unit in drawn[0] for record in unit.records)


def test_layers_are_computed_as_in_training(tiny, monkeypatch):
    model, seen = tiny.model().eval(), []
    monkeypatch.setattr(
        fit, "engine_for", lambda *_, **__: type("E", (), {"unit_sum": lambda _: seen.append(model.training)})
    )
    fit.trial(model, fit.Shapes(5, 5, 1), clipping=None, loss="sum")(10)
    assert seen == [True] * 3
    assert not model.training
