"""The largest micro-batch that fits into memory, found by trying: before any budget is spent, on made-up tokens.

Sizes double from 512 tokens to the tokens of an expected draw; more would be of no use. The result never depends on
the size, so the search tells nothing that a slower run would not.

On a GPU a size that does not fit raises an error, and half of the last that fitted is taken. On a CPU running out kills
the process, so each next size is foreseen from the memory that the last ones took, and the search stops where that
would pass `SHARE` of what is available. Not foreseen: other programs that take memory later, and units far longer than
the trained ones (there are none).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from reticent.errors import ModelError
from reticent.gradients.engines import engine_for, trained
from reticent.gradients.rows import Loss, Unit
from reticent.privacy.clipping import Clipping
from reticent.tokens import Tokens

FIRST = 512
"""Tokens of the first try."""
SHARE = 0.7
"""Of the available memory of a CPU, what may be used."""
_FIRST_GROWTH = 4  # of memory when tokens double, if attention were all: what the first try must leave room for


def fitting(
    model: PreTrainedModel,
    units: Sequence[Unit],
    *,
    batch_size: int,
    clipping: Clipping | None,
    loss: Loss,
    kept: int = 0,
    processes: int = 1,
) -> int:
    """Tokens of the largest micro-batch of ``units`` that ``model`` can be trained with here; it stays as it was.

    Of ``units`` only lengths are used. ``batch_size``: expected units of a draw. ``kept``: bytes that training keeps
    beside the model, for each trained number. ``processes`` share a CPU's memory.

    Raises:
        ModelError: none fits, or it cannot be measured here.
    """
    lengths = [len(record) for unit in units for record in unit.records]
    shapes = Shapes(max(lengths), min(lengths), 2 * batch_size)
    bytes_kept = kept * sum(parameter.numel() for parameter in trained(model).values())
    most = 2 ** int(np.ceil(np.log2(max(16, batch_size * sum(lengths) / len(units)))))
    if model.device.type == "cuda":
        return largest_on_gpu(trial(model, shapes, clipping=clipping, loss=loss, kept=bytes_kept), most=most)
    free = available() // processes - bytes_kept
    return largest_on_cpu(trial(model, shapes, clipping=clipping, loss=loss), most=most, free=free)


# -------------------------------------------------------------------------------------------------------- one try


class Shapes(NamedTuple):
    """Tokens of the longest and the shortest record, and the most units that a row can be expected to hold."""

    longest: int
    shortest: int
    units: int


def trial(
    model: PreTrainedModel, shapes: Shapes, *, clipping: Clipping | None, loss: Loss, kept: int = 0
) -> Callable[[int], None]:
    """A function that sums gradients over rows of the given tokens, with ``kept`` bytes set aside on the device."""

    def try_one(tokens: int) -> None:
        aside = torch.empty(kept, dtype=torch.uint8, device=model.device)
        training = model.training
        try:
            engine = engine_for(model, clipping=clipping, loss=loss, micro_batch_tokens=max(tokens, shapes.longest))
            model.train()  # layers are only computed again on the way back, and dropout drawn, in training
            for units in _draws(shapes, tokens, model.config.get_text_config().vocab_size):
                engine.unit_sum(units)
        finally:
            model.zero_grad(set_to_none=True)
            model.train(training)
        del aside

    return try_one


def _draws(shapes: Shapes, tokens: int, vocabulary: int) -> Iterator[list[Unit]]:
    """The rows that may take most: long records of one unit, of many, and many short ones."""
    rng = np.random.default_rng(0)

    def record(length: int) -> Tokens:
        length = max(2, length)
        return Tokens(rng.integers(0, vocabulary, length), np.arange(length) > 0)

    left = tokens % shapes.longest
    lengths = [shapes.longest] * max(1, tokens // shapes.longest)
    long = [record(length) for length in lengths + [left] * (tokens > shapes.longest and left > 1)]
    short = [record(shapes.shortest) for _ in range(min(shapes.units, max(1, tokens // max(2, shapes.shortest))))]
    yield [Unit("0", tuple(long))]
    for records in (long, short):
        yield [Unit(str(i), (own,)) for i, own in enumerate(records)]


# --------------------------------------------------------------------------------------------------------- search


def largest_on_gpu(try_one: Callable[[int], None], *, most: int) -> int:
    """Half of the largest size that ``try_one`` gets through without running out of memory, at most ``most``.

    Raises:
        ModelError: not even the first does.
    """
    size = first = min(FIRST, most)
    while size <= 2 * most and _fits(try_one, size):
        size *= 2
    if size == first:
        raise _too_small(first, "the GPU's memory")
    return size // 4


def _fits(try_one: Callable[[int], None], size: int) -> bool:
    try:
        try_one(size)
    except torch.OutOfMemoryError:
        fits = False  # the error holds the tensors until this block ends
    else:
        fits = True
    torch.cuda.empty_cache()
    return fits


def largest_on_cpu(try_one: Callable[[int], None], *, most: int, free: int) -> int:
    """The largest size, at most ``most``, at which ``try_one`` stays within `SHARE` of ``free`` bytes.

    Raises:
        ModelError: not even the first does.
    """
    size, before, start = min(FIRST, most), 0, _status("VmRSS")
    while free > 0:
        _forget_peak()
        try_one(size)
        taken = max(1, _status("VmHWM") - start)
        if taken > SHARE * free:
            break
        growth = max(2.0, taken / before) if before else _FIRST_GROWTH
        if size >= most or growth * taken > SHARE * free:
            return size
        size, before = 2 * size, taken
    if before:  # More than was foreseen, but it went through.
        return size // 2
    raise _too_small(size, f"{SHARE:.0%} of the {max(0, free) / 2**30:.1f} GiB of memory that training may use")


def _too_small(size: int, where: str) -> ModelError:
    return ModelError(
        f"train.micro_batch_tokens: even {size} tokens at once do not fit into {where}. Lower data.max_tokens, set "
        "train.gradient_checkpointing: true, or take a smaller model."
    )


# --------------------------------------------------------------------------------------------------------- memory


def available() -> int:
    """Bytes of memory that this process can still take, also within a container's limit.

    Raises:
        ModelError: this is no Linux.
    """
    if sys.platform != "linux":
        raise ModelError(
            "train.micro_batch_tokens: auto measures memory as Linux tells it, and this is no Linux. Set a number, as "
            "2048."
        )
    free = _kibibytes(Path("/proc/meminfo"), "MemAvailable")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        path = Path("/sys/fs/cgroup") / limit
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            free = min(free, int(text) - _status("VmRSS"))
    return free


def _status(field: str) -> int:
    """Bytes of memory of this process: VmRSS now, VmHWM at most."""
    return _kibibytes(Path("/proc/self/status"), field)


def _kibibytes(path: Path, field: str) -> int:
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def _forget_peak() -> None:
    """Lets VmHWM begin anew. Where that is not allowed it stays too high, and the search stops earlier."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
