"""What a federation costs: adding updates up, a round beside plain training, secure sums, many clients, compression.

    python benchmarks/federation.py [--quick] [--only SECTION ...] [--json FILE]

Updates are those of LoRA of rank 16 on all linear layers of a 7B model: 41.9 M float32 values in 448 tensors, 160 MiB.
Contenders take turns in a new order each round; ratios are taken within a round, and shown are their median and
quartiles. Memory is read in a new process (Linux: the high-water mark of resident memory). What is not measured: a
network, and what compression does to a model.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from reticent import recipe as recipes
from reticent.errors import ReticentError
from reticent.federation import compress, messages
from reticent.federation.aggregate import WeightedMean
from reticent.federation.client_privacy import check_update
from reticent.federation.secure_sum import Collector, Participant
from reticent.federation.secure_values import values_of
from reticent.gradients.rows import Unit
from reticent.progress import Progress, Task
from reticent.recipe import Recipe
from reticent.tokens import Tokens

Update = dict[str, torch.Tensor]

SECTIONS = ("aggregation", "secure", "compression", "clients", "rounds")
SITES = ("site-1", "site-2", "site-3")
UPDATES = 100
CLIENTS = (10, 1000)
CLIENTS_QUICK = (10, 200)
BATCH = 8
RANK = 16
MIB = 2**20

# Layers of a 7B model: inputs and outputs of the linear layers in each of 32 blocks.
BLOCKS = 32
LINEAR = {
    "q_proj": (4096, 4096),
    "k_proj": (4096, 1024),
    "v_proj": (4096, 1024),
    "o_proj": (4096, 4096),
    "gate_proj": (4096, 14336),
    "up_proj": (4096, 14336),
    "down_proj": (14336, 4096),
}


class Claim(NamedTuple):
    """One row. ``ratio``: a median, with its quartiles as ``spread``; no ``bound``: a number that nothing asks for."""

    metric: str
    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]
    sense: str
    bound: float | None
    holds: bool | None


@dataclass
class Found:
    """What a section found: rows, every time in seconds by name, and one line of circumstances."""

    about: str
    claims: list[Claim] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)


def claim(
    metric: str, ours: Sequence[float], other: Sequence[float], bound: float | None = None, *, least: bool = False
) -> Claim:
    """The median of ratios of pairs: ours / other against the most it may be, with ``least`` other / ours and least."""
    ratios = [b / a if least else a / b for a, b in zip(ours, other, strict=True)]
    low, ratio, high = (float(value) for value in np.percentile(ratios, [25, 50, 75]))
    holds = None if bound is None else ratio >= bound if least else ratio <= bound
    middles = statistics.median(ours), statistics.median(other)
    return Claim(metric, *middles, ratio, (low, high), "at least" if least else "at most", bound, holds)


# --- Measuring ---


def race(tasks: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each task in each round, after one that is not counted; the order changes."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    order, rng = list(tasks), random.Random(0)
    for number in range(rounds + 1):
        rng.shuffle(order)
        for name in order:
            began = time.perf_counter()
            tasks[name]()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def alone(function: Callable[..., Any], *values: Any) -> Any:
    """The function's result from a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def memory(what: str) -> int:
    """Bytes of resident memory of this process: VmRSS is now, VmHWM the most since `settled`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def settled() -> int:
    """Bytes in use once what was freed is given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def shapes() -> dict[str, tuple[int, int]]:
    """Of the adapters, by PEFT's names."""
    found = {}
    for block in range(BLOCKS):
        for name, (inputs, outputs) in LINEAR.items():
            layer = f"base_model.model.model.layers.{block}.{name}"
            found[f"{layer}.lora_A.default.weight"] = (RANK, inputs)
            found[f"{layer}.lora_B.default.weight"] = (outputs, RANK)
    return found


def update(seed: int = 0) -> Update:
    """Normal values of standard deviation 1e-3."""
    made = torch.Generator().manual_seed(seed)
    return {name: torch.empty(shape).normal_(std=1e-3, generator=made) for name, shape in shapes().items()}


def flat(values: Update) -> np.ndarray:
    """(n,) all values."""
    return np.concatenate([value.reshape(-1).numpy() for value in values.values()])


# --- Aggregation ---


def aggregation(quick: bool) -> Found:
    """Adding one update more, beside numpy's sum of equal flat arrays; and memory of many."""
    one, many = (alone(stream, number) / MIB for number in (1, UPDATES))
    size = 4 * sum(map(math.prod, shapes().values())) / MIB
    updates = [update(seed) for seed in range(3)]  # none is in the cache when its turn comes again
    vectors = [flat(one) for one in updates]
    packed = [messages.pack("update", {}, one) for one in updates]
    mean, server = WeightedMean(), WeightedMean()
    total, wide = np.zeros_like(vectors[0]), np.zeros(len(vectors[0]))
    turn = iter(range(10**9))

    def take(which: list[Any]) -> Any:
        return which[next(turn) % len(which)]

    tasks: dict[str, Callable[[], Any]] = {
        "numpy, float32": lambda: np.add(total, take(vectors), out=total),
        "numpy, into float64": lambda: np.add(wide, take(vectors), out=wide),
        "WeightedMean.add": lambda: mean.add(take(updates), 0.7),
        "received, checked, added": lambda: receive(take(packed), shapes(), server),
    }
    seconds = race(tasks, 10 if quick else 40)
    count = f"{len(total) / 1e6:.1f} M values"
    plain = seconds["numpy, float32"]
    found = Found(f"{count} in {len(updates[0])} tensors; numpy adds one flat array", seconds=seconds)
    found.claims = [
        claim(f"adding an update, {count}: speed, of np.add", seconds["WeightedMean.add"], plain, 0.5, least=True),
        claim(
            "a sum in float64 (np.add): speed, of np.add in float32", seconds["numpy, into float64"], plain, least=True
        ),
        claim(
            "an update unpacked, decoded, checked, added: speed, of np.add",
            seconds["received, checked, added"],
            plain,
            least=True,
        ),
        claim(f"mean of {UPDATES} updates: error / that of rounding to float32", [error_of_mean()], [2.0**-24]),
    ]
    found.claims += [
        claim(f"peak memory of {UPDATES} updates / of one: MiB", [many], [one], 1.1),
        claim(f"peak memory of {UPDATES} updates / size of an update: MiB", [many], [size]),
    ]
    return found


def receive(data: bytes, expected: Mapping[str, tuple[int, ...]], mean: WeightedMean) -> None:
    """What the coordinator does with an answer."""
    arrays = messages.unpack(data).arrays
    mean.add(check_update(compress.decode(arrays, expected), expected, 1e3).update, 0.7)


def error_of_mean() -> float:
    """Largest error of a mean of many updates, relative to the mean size of a value, against a sum in float64."""
    mean, rng = WeightedMean(), np.random.default_rng(0)
    exact, sizes, weights = np.zeros(10**5), np.zeros(10**5), 0.0
    for _ in range(UPDATES):
        values, weight = rng.normal(scale=1e-3, size=len(exact)).astype(np.float32), float(rng.uniform(0.1, 1))
        mean.add({"a": torch.from_numpy(values)}, weight)
        exact += weight * values.astype(np.float64)
        sizes += weight * abs(values.astype(np.float64))
        weights += weight
    return float((abs(mean.result()["a"].numpy() - exact / weights) / (sizes / weights)).max())


def stream(count: int) -> int:
    """Bytes that ``count`` updates take, one after the other as messages, down to their mean; in a new process."""
    torch.set_num_threads(1)
    message, expected = messages.pack("update", {}, update()), shapes()
    mean, start = WeightedMean(), settled()
    for _ in range(count):
        receive(bytes(memoryview(message)), expected, mean)  # a copy: every answer has its own memory
    mean.result()
    return memory("VmHWM") - start


# --- Secure sum ---


class Ready(NamedTuple):
    """A secure sum before its masks, with the sealed shares of each site."""

    sites: dict[str, Participant]
    shared: dict[str, dict[str, bytes]]
    collector: Collector

    def masked(self) -> None:
        """Every site passes the phase with one value: the server's work does not depend on what it adds up."""
        for name, site in self.sites.items():
            site.mask(np.zeros(1, dtype=np.uint64), self.shared[name])

    def receive(self, values: np.ndarray) -> None:
        """The server adds each site's vector, and takes the masks out of the sum."""
        for name in self.sites:
            self.collector.mask(name, values)
        survivors = self.collector.survivors()
        for name, site in self.sites.items():
            self.collector.confirm(name, site.confirm(survivors))
        signed = self.collector.confirmations()
        for name, site in self.sites.items():
            self.collector.unmask(name, site.unmask(survivors, signed))
        self.collector.finish()


def ready(size: int) -> Ready:
    """Three sites that have shared their secrets."""
    keys = {name: Ed25519PrivateKey.generate() for name in SITES}
    roster = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    common: dict[str, Any] = {"context": os.urandom(16), "threshold": 2, "sites": SITES}
    sites = {name: Participant(name, key, roster, **common) for name, key in keys.items()}
    collector = Collector(roster, length=size, **common)
    for name, site in sites.items():
        collector.advertise(name, site.advertise())
    advertised = collector.advertised()
    for name, site in sites.items():
        collector.share(name, site.share(advertised))
    return Ready(sites, collector.shared(), collector)


def secure(quick: bool) -> Found:
    """What a site does for a secure sum of three, beside serialising the update. Everybody's keys and shares count."""
    one, mine = update(), SITES[0]
    kept = values_of(one, 100, vote=True)
    masked = {"masked": torch.from_numpy(kept.view(np.int64))}

    def site() -> None:
        begun = ready(1)
        begun.sites[mine].mask(values_of(one, 100, vote=True), begun.shared[mine])

    def masks() -> None:
        begun = ready(1)
        begun.sites[mine].mask(kept, begun.shared[mine])

    def server() -> None:
        begun = ready(len(kept))
        begun.masked()
        begun.receive(kept)

    tasks: dict[str, Callable[[], Any]] = {
        "site": site,
        "fixed point": lambda: values_of(one, 100, vote=True),
        "masks": masks,
        "server, three sites": server,
        "pack, float32": lambda: messages.pack("update", {}, one),
        "pack, masked": lambda: messages.pack("masked done", {}, masked),
    }
    if flower := flower_bytes():
        tasks["Flower, float32"] = lambda: flower(one)
    seconds = race(tasks, 5 if quick else 15)
    ours, pack = seconds["site"], seconds["pack, float32"]
    count = f"{len(kept) / 1e6:.1f} M values"
    found = Found(f"{count} a site, {len(SITES)} sites, threshold 2", seconds=seconds)
    found.claims = [
        claim(f"secure sum at a site, {count}: time / messages.pack of the update", ours, pack, 3.0),
        claim("the same / messages.pack of the masked vector, which travels", ours, seconds["pack, masked"], 3.0),
    ]
    if flower:
        name = "the same / Flower's serialising of the update (arrays to protobuf)"
        found.claims.append(claim(name, ours, seconds["Flower, float32"], 3.0))
    found.claims += [
        claim("its masks alone / messages.pack of the update", seconds["masks"], pack),
        claim("its fixed point alone / messages.pack of the update", seconds["fixed point"], pack),
        claim("the server, all three sites / messages.pack of the update", seconds["server, three sites"], pack),
    ]
    return found


def flower_bytes() -> Callable[[Update], bytes] | None:
    """Flower's way from arrays to bytes, if it is installed."""
    try:
        from flwr.app import Array, ArrayRecord, RecordDict
        from flwr.common.serde import recorddict_to_proto
    except ImportError:
        return None

    def serialise(one: Update) -> bytes:
        arrays = ArrayRecord({name: Array(value.numpy()) for name, value in one.items()})
        return recorddict_to_proto(RecordDict({"payload": arrays})).SerializeToString()

    return serialise


# --- Compression ---


def compression(quick: bool) -> Found:
    """Bytes and times of each kind. Normal values: byte planes of their fractions cannot be compressed."""
    one, expected = update(), shapes()
    kinds: tuple[compress.Kind, ...] = ("none", "lossless", "bf16", "int8", "top-k")
    seconds: dict[str, list[float]] = {}
    sizes, tasks = {}, {}
    for kind in kinds:
        coder = compress.compressor_for(kind, seed=0)
        arrays = coder.encode(one)
        sizes[kind] = len(messages.pack("update", {}, arrays))
        tasks[f"{kind}: encode"] = partial(coder.encode, one)
        tasks[f"{kind}: decode"] = partial(compress.decode, arrays, expected)
    tasks["pack"] = partial(messages.pack, "update", {}, one)
    seconds = race(tasks, 1 if quick else 5)
    found = Found(f"{sum(v.numel() for v in one.values()) / 1e6:.1f} M normal values; top-k keeps 1 %", seconds=seconds)
    for kind in kinds[1:]:
        found.claims.append(claim(f"{kind}: MiB / float32", [sizes[kind] / MIB], [sizes["none"] / MIB]))
        for way in ("encode", "decode"):
            found.claims.append(claim(f"{kind}: {way} / pack", seconds[f"{kind}: {way}"], seconds["pack"]))
    return found


# --- Many clients ---


class Many(NamedTuple):
    """A simulation: seconds to make the clients, of each round, and bytes above the loaded model at most."""

    made: float
    rounds: list[float]
    peak: int
    update: int


def clients(quick: bool) -> Found:
    """Simulations of few and of many clients, all of them in each of two rounds, each in a new process."""
    counts = CLIENTS_QUICK if quick else CLIENTS
    few, many = (alone(simulate, count, 2) for count in counts)
    grown = (many.peak - few.peak) / (counts[1] - counts[0])
    found = Found(
        f"a random Llama of 2 layers, LoRA of rank 8: updates of {many.update / 1024:.0f} KiB; 4 records and one step "
        "of 2 of them a client and round; all sites in one process, state on disk",
        seconds={f"{count:,} clients, a round": one.rounds for count, one in zip(counts, (few, many), strict=True)},
    )
    per = [[seconds / count for seconds in one.rounds] for count, one in zip(counts, (few, many), strict=True)]
    found.claims = [
        claim(f"seconds a client and round, {counts[1]:,} clients / {counts[0]}", per[1], per[0]),
        claim(f"peak memory of {counts[1]:,} clients / {counts[0]}: MiB", [many.peak / MIB], [few.peak / MIB]),
        claim("memory of one client more / its update: KiB", [grown / 1024], [many.update / 1024]),
    ]
    return found


def simulate(count: int, rounds: int) -> Many:
    """All of it, in a new process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        recipe = recipe_for(str(folder / "model"), rounds=rounds, local_steps=1, batch=2, rank=8)
        rng = np.random.default_rng(0)
        units = {f"site-{number:04d}": random_units(rng, 4) for number in range(count)}
        world = World(recipe, {"warm-up": random_units(rng, 4)}, folder / "warm-up")
        world.train(lambda: None)
        start, began = settled(), time.perf_counter()
        world = World(recipe, units, folder / "sites")
        made = time.perf_counter() - began
        world.train(lambda: None)
        size = sum(value.nbytes for value in world.host.initial.values())
        return Many(made, world.seconds, memory("VmHWM") - start, size)


def make_model(folder: Path) -> None:
    """A random Llama of two layers and a tokenizer whose tokens are bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def random_units(rng: np.random.Generator, count: int) -> list[Unit]:
    """Units of one record of 16 to 32 tokens each."""
    lengths = rng.integers(16, 33, count)
    return [Unit(f"u{i}", (Tokens(rng.integers(0, 256, n), np.arange(n) > 3),)) for i, n in enumerate(lengths)]


# --- Rounds beside plain training ---


def recipe_for(base: str, *, rounds: int, local_steps: int, batch: int, rank: int, **federation: Any) -> Recipe:
    """Without privacy: what a round costs beside its steps is the same, and the steps of both sides are equal."""
    return recipes.from_dict(
        {
            "data": {"source": "bundled/clinic"},
            "model": {"base": base, "dtype": "float32", "adapter": {"kind": "lora", "rank": rank}},
            "train": {"steps": rounds * local_steps, "batch_size": batch, "learning_rate": 1e-4},
            "privacy": {"kind": "none"},
            "federation": {"rounds": rounds, **federation},
        }
    )


class World(Progress):
    """Sites and a coordinator in this process, made of the public parts as `reticent.federation.local` makes them."""

    def __init__(self, recipe: Recipe, units: Mapping[str, Sequence[Unit]], folder: Path) -> None:
        from reticent.federation.channel import Direct
        from reticent.federation.server import Coordinator, Files
        from reticent.federation.site import Host, Identity, Site

        keys = {name: Ed25519PrivateKey.generate() for name in units}
        roster = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        self.host, self.folder = Host(recipe), folder
        self.sites = {
            name: Site(name, self.host, "twin", own, folder / name, identity=Identity(keys[name], roster))
            for name, own in units.items()
        }
        self.coordinator = Coordinator(
            recipe,
            "twin",
            Direct({name: site.answer for name, site in self.sites.items()}),
            list(units),
            Files(folder / "rounds", folder / "rounds.jsonl", folder / "ledger.jsonl"),
            self.host.start(roster),
            run="benchmark",
            progress=self,
        )
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def train(self, between: Callable[[], None]) -> None:
        """All rounds; ``between`` is called before the first and after each, and does not count."""
        self._between = between
        self.coordinator.train()

    def say(self, message: str) -> None:
        """Nothing may go wrong here."""
        raise AssertionError(message)

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """The coordinator's rounds."""
        yield Turns(self)

    def turn(self, rounds: float) -> None:
        """After ``rounds`` rounds."""
        if rounds:
            self.seconds.append(time.perf_counter() - self._began[0])
            self.cpu.append(time.process_time() - self._began[1])
        self._between()
        self._began = time.perf_counter(), time.process_time()


class Turns(Task):
    """Tells the world that a round is over."""

    def __init__(self, world: World) -> None:
        self._world = world

    def advance(self, amount: float = 1, note: str = "") -> None:
        """After each round, and once before the first."""
        self._world.turn(amount)


def rounds(quick: bool, base: str = "bundled/smollm2-135m") -> Found:
    """Rounds of three sites, each between two turns of plain training with the same steps."""
    ways: dict[str, dict[str, Any]] = {
        "freeze-a": {},
        "product": {"lora": "product"},
        "freeze-a, secure sum": {"secure_sum": True},
    }
    found = Found("")
    for way in list(ways)[: 1 if quick else None]:
        measured = alone(beside, base, 3 if quick else 7, 2 if quick else 4, ways[way])
        found.about = measured.about
        found.claims += [claim._replace(metric=f"{way}: {claim.metric}") for claim in measured.claims]
        found.seconds |= {f"{way}: {name}": values for name, values in measured.seconds.items()}
    return found


def beside(base: str, count: int, local_steps: int, federation: dict[str, Any]) -> Found:
    """One way to join, in a new process. The first round, in which all is new, is not counted."""
    from reticent import asked
    from reticent.training.loop import Trainer

    torch.set_num_threads(1)
    recipe = recipe_for(base, rounds=count, local_steps=local_steps, batch=BATCH, rank=RANK, **federation)
    # As many units as a batch has: every step takes all of them, on both sides.
    units = records(base, len(SITES) * BATCH)
    dealt = {name: units[place :: len(SITES)] for place, name in enumerate(SITES)}
    plain: list[float] = []
    plain_cpu: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(recipe, dealt, Path(folder))
        settings = asked.settings(recipe, 2048)
        trainers = [
            Trainer(world.host.model, own, world.sites[name].plan, settings, None) for name, own in dealt.items()
        ]

        def train() -> None:
            began, began_cpu = time.perf_counter(), time.process_time()
            for trainer in trainers:
                made = list(trainer.steps(0, local_steps, lambda step: settings.learning_rate))
                assert all(step.records == BATCH for step in made)
            plain.append(time.perf_counter() - began)
            plain_cpu.append(time.process_time() - began_cpu)

        train()  # a warm-up
        plain.clear()
        plain_cpu.clear()
        world.train(train)
        inside = inside_steps(Path(folder), count, local_steps)
        about, parts = f"{sum(v.numel() for v in world.host.initial.values()) / 1e6:.2f} M values", costs(world, dealt)
    around, around_cpu = ([(before + after) / 2 for before, after in pairwise(turns)] for turns in (plain, plain_cpu))
    federated = world.seconds
    found = Found(
        f"{base}, LoRA of rank {RANK} on all linear layers, {about} travel; {len(SITES)} sites, {local_steps} steps of "
        f"{BATCH} records each a round ({np.mean([len(u.records[0]) for u in units]):.0f} tokens a record)"
    )
    found.seconds = {
        "rounds": federated,
        "plain": plain,
        "inside steps": inside,
        "rounds, CPU": world.cpu,
        "plain, CPU": plain_cpu,
        **parts,
    }
    found.claims = [
        claim("a round / the same steps alone", federated[1:], around[1:], 1.05),
        claim("a round / the same steps alone: CPU seconds", world.cpu[1:], around_cpu[1:], 1.05),
        claim("a round / the steps that it made", federated[1:], inside[1:], 1.05),
    ]
    step = statistics.median(inside[1:]) / (len(SITES) * local_steps)
    found.claims += [claim(f"{name} / a step: seconds", values, [step] * len(values)) for name, values in parts.items()]
    return found


def records(base: str, count: int) -> list[Unit]:
    """Records of bundled/clinic, drawn at random, or random ones for a model that is no real one."""
    if base != "bundled/smollm2-135m":
        return random_units(np.random.default_rng(0), count)
    from reticent.data.clinic import clinic
    from reticent.data.encode import Encoder
    from reticent.models.load import load_tokenizer

    encode = Encoder(load_tokenizer(base), template="plain", train_on_prompt=False, max_tokens=512, long_records="cut")
    notes = clinic(patients=150, questions=600, seed=0)
    notes = [notes[i] for i in np.random.default_rng(0).choice(len(notes), count, replace=False)]
    encoded = encode([(record.prompt, record.completion) for record in notes]).tokens
    return [Unit(str(number), (tokens,)) for number, tokens in enumerate(encoded)]


def inside_steps(folder: Path, count: int, local_steps: int) -> list[float]:
    """Seconds of each round that the sites' own logs count: those of their steps."""
    from reticent.training.loop import read_log

    logs = [read_log(folder / name / "log.jsonl") for name in SITES]
    return [sum(log[(number + 1) * local_steps - 1].seconds for log in logs) for number in range(count)]


def costs(world: World, dealt: Mapping[str, Sequence[Unit]]) -> dict[str, list[float]]:
    """Seconds of the parts of a round, and of what is done once."""
    from reticent.federation.joining import joining_for
    from reticent.federation.site import Host, Site
    from reticent.federation.terms import digest
    from reticent.models.digest import digests
    from reticent.training import checkpoint

    host = world.host
    weights = host.initial
    change = {name: 1e-3 * torch.randn(value.shape) for name, value in weights.items()}
    request = messages.pack("train", {}, {f"w/{name}": value for name, value in weights.items()})

    def once() -> bytes:
        """The first hello of a site: the base model's files are read."""
        digests.cache_clear()
        fresh = Host(host.recipe)
        fresh.model  # noqa: B018  # loading it is no part
        began = time.perf_counter()
        site = Site("site-1", fresh, "twin", dealt["site-1"], world.folder / "fresh")
        site.answer(messages.pack("hello", {"run": "benchmark", "model": "twin"}, {}))
        hellos.append(time.perf_counter() - began)
        return b""

    def join() -> None:
        joining = joining_for(host.mode, weights, {}, seed=1)
        for _ in SITES:
            joining.add(change, 1.0)
        joining.result()

    hellos: list[float] = []
    once()
    hello = messages.pack("hello", {"run": "benchmark", "model": "twin"}, {})
    expected = {name: tuple(value.shape) for name, value in weights.items()}
    tasks: dict[str, Callable[[], Any]] = {
        "a hello": lambda: world.sites["site-1"].answer(hello),
        "packing the weights": lambda: messages.pack("train", {}, weights),
        "unpacking them": lambda: messages.unpack(request),
        "their digest": lambda: digest(weights),
        "setting them": lambda: host.begin(weights, {}),
        "writing a site's state": lambda: checkpoint.write(world.folder / "state", {"made": change}),
        "decoding and checking an update": lambda: check_update(compress.decode(change, expected), expected, 1e9),
        "joining three updates": join,
    }
    return {"a site's first hello": hellos, **race(tasks, 5)}


# --- Words ---


def say(line: str) -> None:
    """Progress, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def table(claims: Sequence[Claim]) -> str:
    """Rows as Markdown."""
    lines = ["| metric | ours | other | ratio [quartiles] | bound | holds |", "|---|---|---|---|---|---|"]
    for row in claims:
        bound = "" if row.bound is None else f"{row.sense} {row.bound:g}"
        holds = {None: "", True: "yes", False: "**no**"}[row.holds]
        spread = f"{row.ratio:.3g} [{row.spread[0]:.3g}, {row.spread[1]:.3g}]"
        lines.append(f"| {row.metric} | {row.ours:.3g} | {row.other:.3g} | {spread} | {bound} | {holds} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where it ran."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": name, "cores": len(os.sched_getaffinity(0)), "threads": 1, "load_before": load()}


def load() -> list[float]:
    """Of the machine, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def versions() -> dict[str, str]:
    """Of what was measured."""
    names = ("reticent", "torch", "numpy", "transformers", "peft", "cryptography", "flwr")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions() if dist.metadata["Name"] in names}
    return {"python": platform.python_version(), **found, "commit": commit.stdout.strip()}


def main(line: Sequence[str] | None = None) -> dict[str, Found]:
    """Runs what the command line asks for; prints the tables, and writes them."""
    parser = argparse.ArgumentParser(description="What a federation costs.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps: under five minutes")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the results go; sections that are not measured stay there"
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    asked = parser.parse_args(line)
    torch.set_num_threads(1)
    sections = {
        "aggregation": aggregation,
        "secure": secure,
        "compression": compression,
        "clients": clients,
        "rounds": rounds,
    }
    found = {}
    for name in asked.only or SECTIONS:
        say(name)
        where = machine()
        found[name] = alone(sections[name], asked.quick)
        if asked.json:
            write(asked.json, name, {"quick": asked.quick, **section(found[name], where)})
        print(f"**{name}**: {found[name].about}.\n\n{table(found[name].claims)}\n", flush=True)
    return found


def section(found: Found, where: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved of one section."""
    return {
        "about": found.about,
        "machine": {**where, "load_after": load()},
        "versions": versions(),
        "rows": [row._asdict() for row in found.claims],
        "seconds": found.seconds,
        "table": table(found.claims),
    }


def write(path: Path, name: str, values: dict[str, Any]) -> None:
    """Puts one section into the file; others stay as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = {**(json.loads(path.read_text())["sections"] if path.exists() else {}), name: values}
    sections = {known: sections[known] for known in SECTIONS if known in sections}
    rows = [row for one in sections.values() for row in one["rows"]]
    path.write_text(json.dumps({"rows": rows, "sections": sections}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ReticentError as error:
        sys.exit(str(error))
