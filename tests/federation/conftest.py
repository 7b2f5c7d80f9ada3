"""A small federation in one process: sites on a tiny model, a channel that can be made to lie, fail and die."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from reticent import asked
from reticent import recipe as recipes
from reticent.federation import messages
from reticent.federation.channel import Failure
from reticent.federation.server import Coordinator, Files, Joint
from reticent.federation.site import Host, Identity, Site
from reticent.models.load import Loaded
from reticent.privacy import ledger as ledgers
from reticent.privacy.accounting import Spent
from reticent.progress import Progress
from reticent.training import loop

logging.disable_progress_bar()

Fault = Callable[[str, bytes, Callable[[bytes], bytes]], bytes | Failure]
"""What happens instead of an answer: (kind of the request, the request, the site's own answer) -> what arrives."""


class Wire:
    """A channel in which every message is kept, and a site may have a fault."""

    def __init__(self, answers: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self._answers = dict(answers)
        self.faults: dict[str, Fault] = {}
        self.seen: list[tuple[str, messages.Message, messages.Message | Failure]] = []
        self.bytes: list[tuple[str, int, int]] = []

    def sites(self) -> list[str]:
        return sorted(self._answers)

    def ask(self, requests: Mapping[str, bytes], deadline: float) -> Iterator[tuple[str, bytes | Failure]]:
        for site, request in requests.items():
            asked_for, answer = messages.unpack(request), self._answers[site]
            try:
                fault = self.faults.get(site)
                answered = answer(request) if fault is None else fault(asked_for.kind, request, answer)
            except KilledError:
                raise
            except Exception as error:  # as Direct does
                answered = Failure(type(error).__name__)
            try:
                told = answered if isinstance(answered, Failure) else messages.unpack(answered)
            except Exception:  # garbage, for the coordinator to find out
                told = Failure("garbage")
            self.seen.append((site, asked_for, told))
            self.bytes.append((site, len(request), 0 if isinstance(answered, Failure) else len(answered)))
            yield site, answered

    def answers(self, kind: str) -> list[tuple[str, messages.Message]]:
        """Every sound answer of this kind, with its site."""
        return [(site, told) for site, _, told in self.seen if not isinstance(told, Failure) and told.kind == kind]


class KilledError(Exception):
    """The process ends here."""


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


class World:
    """Sites and what a coordinator needs; processes end and begin again with `restart`."""

    def __init__(self, folder: Path, recipe: recipes.Recipe, units: Mapping[str, Any], model: str) -> None:
        self.folder, self.recipe, self.units, self.model = folder, recipe, dict(units), model
        self.said = Said()
        self.host = Host(recipe, self.said)
        self.keys = {name: Ed25519PrivateKey.generate() for name in units}
        self.roster = {name: key.public_key().public_bytes_raw() for name, key in self.keys.items()}
        self.options: dict[str, dict[str, Any]] = {name: {} for name in units}
        self.restart()
        self.start = self.host.start(self.roster)

    def restart(self, *names: str) -> None:
        """Sites begin again from their folders, all if none is named."""
        if not names:
            self.sites: dict[str, Site] = {}
        for name in names or self.units:
            self.sites[name] = Site(
                name,
                self.host,
                self.model,  # type: ignore[arg-type]
                self.units[name],
                self.folder / name,
                **{"identity": Identity(self.keys[name], self.roster), **self.options[name]},
            )
        faults = self.wire.faults if hasattr(self, "wire") else {}
        self.wire = Wire({name: lambda request, name=name: self.sites[name].answer(request) for name in self.units})
        self.wire.faults = faults

    def coordinator(self, **changes: Any) -> Coordinator:
        """A new one that goes on from the folder."""
        return Coordinator(
            changes.pop("recipe", self.recipe),
            self.model,  # type: ignore[arg-type]
            changes.pop("channel", self.wire),
            list(self.units),
            self.files,
            changes.pop("start", self.start),
            run="trial",
            progress=self.said,
        )

    def train(self) -> Joint:
        return self.coordinator().train()

    @property
    def files(self) -> Files:
        return Files(self.folder / "rounds", self.folder / "rounds.jsonl", self.folder / "ledger.jsonl")

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files.log.read_text().splitlines()]

    def releases(self, site: str | None = None) -> int:
        """Lines of the ledger of a site, or of the coordinator, without the plan."""
        path = self.files.ledger if site is None else self.folder / site / "ledger.jsonl"
        return len(path.read_text().splitlines()) - 1

    def request(self, kind: str, fields: Mapping[str, Any] = {}, arrays: Mapping[str, Any] | None = None) -> bytes:
        """What an honest coordinator sends in round 1, with changed ``fields``."""
        own = {
            "run": "trial",
            "model": self.model,
            "round": [1, 1],
            "terms": self.start.terms,
            "clip_norm": None,
        }
        sent = {f"w/{name}": value for name, value in self.start.weights.items()}
        return messages.pack(kind, {**own, **fields}, sent if arrays is None else arrays)

    def ask(self, site: str, kind: str, fields: Mapping[str, Any] = {}, arrays: Any = None) -> messages.Message:
        """One site's answer."""
        return messages.unpack(self.sites[site].answer(self.request(kind, fields, arrays)))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Callable[[str], Path]:
    """The folder of a tiny model of a family; read only."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = made[family] = tmp_path_factory.mktemp("models") / family
            vocabulary = dict(
                zip(sorted(pre_tokenizers.ByteLevel.alphabet())[: tiny.vocabulary], range(64), strict=True)
            )
            bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
            PreTrainedTokenizerFast(tokenizer_object=bare).save_pretrained(folder)
            config = tiny.families[family]()
            config.num_hidden_layers = 1
            tiny.build(config).save_pretrained(folder)
        return made[family]

    return make


@pytest.fixture(scope="session")
def loaded() -> dict[str, Loaded]:
    """Models that were read once."""
    return {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, loaded: dict[str, Loaded]) -> None:
    """Reads a model once, and counts releases for epsilon: both have tests of their own."""
    real = asked.base_model

    def base_model(recipe: recipes.Recipe, device: Any = None) -> Loaded:
        key = f"{recipe.model.base} {recipe.model.dtype}"
        if key not in loaded:
            loaded[key] = real(recipe, device)
        return copy.deepcopy(loaded[key])

    def count(releases: Any, delta: float, **options: Any) -> Spent:
        times = float(sum(times for _, times in releases))
        return Spent(times, times)

    monkeypatch.setattr(asked, "base_model", base_model)
    monkeypatch.setattr(ledgers, "spent", count)
    monkeypatch.setattr("reticent.federation.site.spent", count)


@pytest.fixture
def world(tmp_path: Path, base: Callable[[str], Path], tiny: Any, quick: None) -> Callable[..., World]:
    """A federation of ``sites`` sites with 6, 8, 10, ... units; keywords are of the recipe's federation section."""
    count = 0

    def make(
        sites: int = 3, *, model: str = "private", family: str = "llama", sections: Any = None, **federation: Any
    ) -> World:
        nonlocal count
        count += 1
        values: dict[str, Any] = {
            "data": {"source": "bundled/clinic"},
            "model": {"base": str(base(family)), "dtype": "float32", "adapter": {"kind": "lora", "rank": 2}},
            "train": {"steps": 4, "batch_size": 3, "learning_rate": 1e-2, "optimizer": "sgd"},
            "privacy": {"kind": "none"},
        }
        for section, changes in (sections or {}).items():
            values[section] = {**(values[section] if section != "privacy" else {}), **changes}
        federation = {"rounds": 2, **federation}
        names = [f"site-{i}" for i in range(1, sites + 1)]
        return World(
            tmp_path / f"world-{count}",
            recipes.from_dict({**values, "federation": federation}),
            {name: tiny.units(6 + 2 * i, seed=i, longest=8) for i, name in enumerate(names)},
            model,
        )

    return make


@pytest.fixture
def killed() -> type[KilledError]:
    """What ends a process in a test."""
    return KilledError


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every local step that any site makes, as it is made."""
    made: list[int] = []
    real = loop._apply

    def apply(*arguments: Any) -> None:
        made.append(1)
        real(*arguments)

    monkeypatch.setattr(loop, "_apply", apply)
    return made
