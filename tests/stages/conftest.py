"""A tiny model folder, a small private source and the real command line on them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from typer.testing import CliRunner

from reticent import cli
from reticent import recipe as recipes
from reticent.run import Run

STEPS = 4
OWNERS = 40


logging.disable_progress_bar()


def make_model(folder: Path) -> None:
    """A random Llama and a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def make_records() -> list[dict[str, str]]:
    """One to three records of each owner, in words that stand nowhere else."""
    rng = np.random.default_rng(1)

    def words(count: int) -> str:
        return " ".join("".join(rng.choice(list("bcdfghjklmnpqrstvwxz"), 9)) for _ in range(count))

    owners = [words(1) for _ in range(OWNERS)]
    return [
        {"prompt": words(2), "completion": words(3), "owner": owner}
        for owner in owners
        for _ in range(int(rng.integers(1, 4)))
    ]


class Workplace:
    """A folder with my.yaml, and the command line in it."""

    steps = STEPS

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.records = make_records()
        self.words = {word for record in self.records for text in record.values() for word in text.split()}
        self.run_folder = folder / "runs" / "my"
        self.write_source("".join(json.dumps(record) + "\n" for record in self.records))
        self.write_recipe()

    def write_source(self, content: str | bytes) -> None:
        (self.folder / "notes.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)

    def write_recipe(self, **changes: Any) -> None:
        """``changes`` replace whole sections."""
        sections: dict[str, Any] = {
            "data": {
                "source": {"path": "notes.jsonl", "prompt": "prompt", "completion": "completion", "owner": "owner"},
                "template": "plain",
                "canaries": {"pairs": 4, "copies": 3, "candidates": 24, "digits": 2},
            },
            "model": {
                "base": str(self.model),
                "adapter": {"kind": "lora", "rank": 8, "alpha": 16},
                "dtype": "float32",
            },
            "train": {"steps": STEPS, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 2},
            "privacy": {"kind": "dp-sgd", "noise_multiplier": 4, "delta": 1e-3},
        }
        (self.folder / "my.yaml").write_text(yaml.safe_dump({**sections, **changes}))

    def call(self, *arguments: str, code: int = 0) -> Result:
        """Run the command line; nothing may look like a crash."""
        done = CliRunner().invoke(cli.app, list(arguments))
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        assert "unexpected error" not in done.output
        return done

    def refused(self, *arguments: str, match: str) -> str:
        """Run the command line; one message, nothing half-written, nothing private. Returns the message."""
        told = self.call(*arguments, code=1).stderr
        errors = [line for line in told.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, told
        assert match in errors[0]
        assert self.half_written() == []
        assert not self.leaked(told)
        return errors[0]

    def half_written(self) -> list[Path]:
        """What a stopped write left behind."""
        return [path for kind in (".writing-*", ".removed-*", "*.new") for path in self.folder.rglob(kind)]

    def leaked(self, text: str) -> set[str]:
        """Words of the records that stand in ``text``."""
        return {word for word in self.words if word in text}

    @property
    def run(self) -> Run:
        return Run.open(self.run_folder)

    def releases(self) -> int:
        """Lines of the ledger, without the plan."""
        return len(self.run.ledger_path("private").read_text().splitlines()) - 1


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RETICENT_TRACEBACK", raising=False)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model; read only."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[[], tuple[Workplace, Result]]:
    """A finished run and what the command line said; read only."""
    place = Workplace(tmp_path_factory.mktemp("finished"), model)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        return place, place.call("run", "my.yaml")


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A new place to work in, the current folder."""
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, model)


@pytest.fixture
def before(place: Workplace, finished: Any) -> Callable[[str], Workplace]:
    """``place`` with a run in which all is done before a stage."""

    def make(stage: str) -> Workplace:
        shutil.copytree(finished[0].run_folder, place.run_folder)
        # The recipe holds the path of its source: let it be this place's, and its digest that of the new text.
        path, provenance = place.run_folder / "recipe.yaml", place.run_folder / "provenance.json"
        path.write_text(path.read_text().replace(str(finished[0].folder), str(place.folder)))
        values = json.loads(provenance.read_text())
        provenance.write_text(json.dumps({**values, "recipe": recipes.digest(recipes.load(path))}))
        place.run.forget(stage)
        return place

    return make
