"""Several processes that train one model together: one draw, one sum, one noise, one ledger.

Each process clips its own share of the drawn units; one sum over all of them is what is released. The first process
draws the units, and has the run folder and the ledger to itself. With ``shard``, every process holds a part of each
weight (FSDP2) and gathers a layer while it computes with it; LoRA adapters stay whole everywhere.

Noise is added before the sum, by the process to which a coordinate belongs: a tensor that all hold whole belongs to the
first process, a part of a sharded one to the process that holds it. So every coordinate of the sum has noise once, and
as no sum is complete without the first process, none is seen before the ledger is on disk.

Not needed: DistributedDataParallel, which would sum gradients that are not clipped. Not covered: processes that do not
trust each other, as they see each other's sums; and sharding of all there is: each process holds its whole clipped sum,
4 bytes a trained parameter, until the sums are added up, and the whole model while it loads.
"""

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from reticent.errors import RunError
from reticent.gradients.engines import Engine, Sums, UnitSum, trained
from reticent.gradients.rows import Unit
from reticent.tokens import Tokens

_PATIENCE = timedelta(days=7)  # for the first process, which prepares the data; a process that ends is noticed at once
_BUCKET = 2**24  # coordinates that one collective call carries
_LOST = ("by peer", "Broken pipe", "Socket closed")
# A row that is read for the sake of the others.
_NOTHING = Unit("", (Tokens(np.zeros(2, dtype=np.int64), np.array([False, True])),))
T = TypeVar("T")


class Team:
    """The processes that train together, as one of them sees them. Without other processes, it does nothing."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device or torch.device("cpu")
        self._sharded: nn.Module | None = None
        self._kept: dict[str, DTensor] = {}  # trained parameters of which each process holds a part
        self._gathered: dict[str, nn.Parameter] = {}
        self._meshes: list[DeviceMesh] = []

    @property
    def first(self) -> bool:
        """Whether this process draws, keeps the ledger and writes files."""
        return self.rank == 0

    # ------------------------------------------------------------------------------------------------- one for all

    def tell(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process, on all of them; it is not called in the others."""
        if self.size == 1:
            return make()
        told = [make() if self.first else None]
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        return cast(T, told[0])

    def share(self, units: Sequence[Unit]) -> list[Unit]:
        """This process's part of a draw: each unit is in one part, and the parts have like numbers of tokens."""
        lengths = [sum(map(len, unit.records)) for unit in units]
        return [units[i] for i in split(lengths, self.size)[self.rank]]

    # ---------------------------------------------------------------------------------------------------- one sum

    def unit_sum(self, engine: Engine, units: Sequence[Unit]) -> UnitSum:
        """What ``engine`` finds in this process's ``units``, its counts summed over all. The gradient is this one's."""
        if self.size == 1:
            return engine.unit_sum(units)
        found = engine.unit_sum(units) if self._sharded is None else self._in_step(engine, units)
        counts = torch.tensor([found.loss, found.records, found.dropped, found.below], dtype=torch.float64)
        dist.all_reduce(counts)
        loss, records, dropped, below = counts.tolist()
        return found._replace(loss=loss, records=int(records), dropped=int(dropped), below=int(below))

    def _in_step(self, engine: Engine, units: Sequence[Unit]) -> UnitSum:
        """Reading a row gathers weights from all processes, so one without rows reads an empty one while others read.

        What it finds there is not used. Each row must be read alike: once forward, then once backward.
        """
        with self._gathering() as model:
            # FSDP gathers in such a hook too; this one comes before.
            hook = model.register_forward_pre_hook(self._say_reading, prepend=True)
            found = engine.unit_sum(units)
            hook.remove()
            while self._anyone_reads(False):
                engine.unit_sum([_NOTHING])
        return found

    def _say_reading(self, *_: object) -> None:
        self._anyone_reads(True)

    def _anyone_reads(self, this: bool) -> bool:
        count = torch.tensor(int(this))
        dist.all_reduce(count)
        return bool(count)

    def own(self, sums: Sums) -> Sums:
        """Views of the coordinates of ``sums`` that belong to this process: here it adds the noise."""
        views = {name: self._part(value, self.rank) if name in self._kept else value for name, value in sums.items()}
        return {name: view for name, view in views.items() if view.numel() and (self.first or name in self._kept)}

    def sum(self, sums: Sums) -> Sums:
        """The sum over all processes; of sharded parameters this process's part. Changes ``sums``."""
        if self.size == 1:
            return sums
        for names in _buckets({name: value.numel() for name, value in sums.items() if name not in self._kept}):
            flat = torch.cat([sums[name].flatten() for name in names])
            dist.all_reduce(flat)
            for name, value in zip(names, flat.split([sums[name].numel() for name in names]), strict=True):
                sums[name].copy_(value.view_as(sums[name]))
        total = dict(sums)
        for names in _buckets({name: value.numel() for name, value in sums.items() if name in self._kept}):
            for name, value in zip(names, self._scattered([sums[name] for name in names]), strict=True):
                total[name] = _like(self._kept[name], value)
        return total

    def _scattered(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """This process's parts of the sums of ``values`` over all processes."""
        by_rank = [torch.cat([self._part(v, rank).flatten() for v in values]) for rank in range(self.size)]
        longest = max(map(len, by_rank))
        out = by_rank[0].new_empty(longest)
        dist.reduce_scatter(out, [nn.functional.pad(flat, (0, longest - len(flat))) for flat in by_rank])
        own = [self._part(value, self.rank) for value in values]
        sizes = [part.numel() for part in own]
        return [found.view_as(part) for found, part in zip(out[: sum(sizes)].split(sizes), own, strict=True)]

    def _part(self, value: torch.Tensor, rank: int) -> torch.Tensor:
        """The rows of ``value`` that FSDP leaves process ``rank``: a view, maybe empty."""
        rows = -(-len(value) // self.size)
        return value[rank * rows : (rank + 1) * rows]

    # ---------------------------------------------------------------------------------------------------- weights

    def spread(self, model: nn.Module, *, shard: bool) -> None:
        """Gives all processes the first one's trained weights, or with ``shard`` each a part of every weight.

        LoRA adapters stay whole. An engine must be made before, because it tries the model.
        """
        self._sharded, self._kept, self._gathered = None, {}, {}
        if self.size == 1:
            return
        if shard:
            self._shard(model)
        for name, parameter in trained(model).items():
            if name not in self._kept:
                dist.broadcast(parameter.data, src=0)

    def _shard(self, model: nn.Module) -> None:
        base, whole = model, set[nn.Parameter]()
        if isinstance(model, PeftModel):
            base, whole = model.get_base_model(), set(trained(model).values())
        for parameter in whole:
            parameter.data = parameter.data.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.size,))
        self._meshes.append(mesh)
        kinds = set(cast(Sequence[str] | None, getattr(base, "_no_split_modules", None)) or ())
        parts = [*(module for module in base.modules() if type(module).__name__ in kinds), base]
        # Also the outermost is let go after each pass: `trained` must see its parts, whichever pass was the last.
        groups = [fully_shard(m, mesh=mesh, ignored_params=whole, reshard_after_forward=True) for m in parts]
        self._sharded = model
        self._kept = {name: p for name, p in trained(model).items() if isinstance(p, DTensor)}
        for group in groups:  # FSDP has one tensor a parameter to gather into, which takes the gradients
            group.set_requires_gradient_sync(False, recurse=False)
            group.unshard()
            self._gathered |= {name: p for name, p in trained(model).items() if not isinstance(p, DTensor)}
            group.reshard()

    @contextmanager
    def _gathering(self) -> Iterator[nn.Module]:
        """Within the block, the model's trained parameters are those that a backward pass gives gradients."""
        model = self._sharded
        assert model is not None
        shown = {name: self._gathered[name] for name in trained(model)}
        model.named_parameters = lambda *_, **__: iter(shown.items())  # type: ignore[method-assign]
        try:
            yield model
        finally:
            del model.named_parameters

    def whole(self, tree: Any) -> Any:
        """``tree`` with every sharded tensor made whole, on the first process's CPU; all processes must call it."""
        return _map(lambda value: self._made_whole(value) if isinstance(value, DTensor) else value, tree)

    def _made_whole(self, value: DTensor) -> torch.Tensor | None:
        gathered = value.full_tensor()
        return gathered.cpu() if self.first else None

    def held(self, parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Of a whole ``value`` for ``parameter`` or its optimiser what this process holds."""
        if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return value
        return _like(parameter, self._part(value, self.rank).to(self.device, copy=True))

    def let_go(self) -> None:
        """Keep nothing that holds the process group, so that destroying it ends gloo's threads.

        Such a thread frees the tensors of its last call a little after that call has returned. If Python is shutting
        down by then, the thread cannot have the GIL and the process aborts. The models of FSDP are freed by the
        collector alone, and the meshes never: torch caches what DTensor did with them.
        """
        self._sharded, self._kept, self._gathered = None, {}, {}
        for mesh in self._meshes:
            vars(mesh).get("_pg_registry", {}).clear()
        self._meshes.clear()
        gc.collect()


ALONE = Team()


@contextmanager
def joined() -> Iterator[Team]:
    """The team of the processes that torchrun or accelerate started; `ALONE` without them.

    Raises:
        RunError: another process ended.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    rank = int(os.environ["RANK"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    with _told(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # nothing changes what models return
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        team = Team(rank, size, device)
        yield team
        team.let_go()
        dist.destroy_process_group()  # only when all is well: others may be gone


@contextmanager
def _told() -> Iterator[None]:
    """Tells of a lost connection in words."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST):
            raise RunError(
                "another process of this training stopped; its own message says why. The same command resumes."
            ) from None
        raise


def split(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of ``lengths`` in ``parts`` lists of nearly equal sums: the longest first, each to the shortest list."""
    filled = [0] * parts
    lists: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        least = filled.index(min(filled))
        lists[least].append(index)
        filled[least] += lengths[index]
    return lists


def _like(parameter: DTensor, part: torch.Tensor) -> DTensor:
    """A tensor of which this process holds ``part``, as it holds that of ``parameter``."""
    assert part.shape == parameter.to_local().shape, (part.shape, parameter.to_local().shape)
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _buckets(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names of consecutive tensors of about `_BUCKET` coordinates together."""
    names: list[str] = []
    for name, size in sizes.items():
        if names and sum(sizes[other] for other in names) + size > _BUCKET:
            yield names
            names = []
        names.append(name)
    if names:
        yield names


def _map(change: Callable[[Any], Any], tree: Any) -> Any:
    """``tree``, of dicts and lists, with every leaf changed."""
    if isinstance(tree, dict):
        return {key: _map(change, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map(change, value) for value in tree]
    return change(tree)
