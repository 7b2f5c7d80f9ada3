"""A run: one folder with all that a recipe made, and the only code that knows its file names::

    recipe.yaml                  what was asked
    provenance.json              with which versions, on what hardware (no host, no user, no paths)
    data/train, data/held_out, data/calibration, data/tokens
                                 records and their units of privacy, and what is trained on as tokens, as datasets
    scrub-map                    what scrubbing replaced by what, if asked for, encrypted
    spans/                       what scrubbing found, by digests: a second time is fast
    data/canaries.json           planted secrets and their twins
    data/manifest.json           counts and digests
    data/said.json               addresses and links that the models wrote in the audit: private text
    data/answers.json            what each model answered to public questions: may hold private text
    data/benchmarks/NAME.jsonl   what each model answered to each item of a benchmark: the same
    data/generated/              where `reticent generate` writes if nothing else is said: the same
    data/synthetic/              work that `reticent synthesize` goes on with; gone when it is done
    synthetic/                   text to give away, from the private model: texts.jsonl, card.json
    models/NAME/                 model/, ledger.jsonl, log.jsonl, checkpoint/ of "private" and "twin"; of a federation
                                 rounds/, rounds.jsonl, federation.json, sites/SITE/ (ledger.jsonl, log.jsonl, state/)
    models/shadows/NAME/         more trainings, each on half of the units: model/, ledger.jsonl, log.jsonl, checkpoint/
    federation/                  of a site or a coordinator: keys, invitation, Flower's own files
    audit/MODEL/KIND/            log-probabilities of the tokens of records, computed once
    audit/scores/scores.parquet  every score of every attack: whose record, in or out
    measurements/STAGE.json      what was measured
    plots/STAGE.json             points to draw
    report.html, report.json, report.signature
    stages/STAGE.json            written last: the stage is done, and these are its facts

Files are written beside their place and renamed into it, so a file is whole or absent. What this does not cover: files
inside a model's folder that training writes by itself (ledger, log, checkpoint), which are atomic there; and those in
federation/, which `reticent.stages.site`, `reticent.stages.federate` and `reticent.federation` name themselves.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

from reticent import recipe as recipes
from reticent.data import store
from reticent.data.record import Record
from reticent.errors import RunError
from reticent.measurement import Measurement
from reticent.recipe import Recipe
from reticent.tokens import Tokens

if TYPE_CHECKING:
    import pyarrow as pa

STAGES: Final = ("prepare", "train", "audit", "evaluate", "synthesize", "report")
"""In the order in which they are done; `Run.stages` leaves out what its recipe does not ask for."""

RecordPart = Literal["train", "held_out", "calibration"]
Part = Literal[RecordPart, "tokens"]
ModelName = Literal["private", "twin"]

_TEMPORARY = ".writing-"
_REMOVED = ".removed-"
_PACKAGES = (
    "reticent",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "dp-accounting",
    "scipy",
    "numpy",
    "cryptography",
    "pydantic",
)


def default_folder(recipe_file: Path) -> Path:
    """Where a recipe's run goes when nothing else is said: ``runs/NAME`` under the current folder."""
    return Path("runs") / recipe_file.stem


class Run:
    """One run folder. Make it with `create` or `open`."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder: Final = folder
        self.recipe: Final = recipe

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    # ------------------------------------------------------------------------------------------------- the folder

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, *, again: bool = False, since: str = STAGES[0]) -> "Run":
        """A new run, or the one that is already in ``folder`` for the same recipe.

        With ``again``, or while no stage is done, a run of another recipe becomes one of this recipe: the stages that
        the change touches, and all later ones, are forgotten; none before ``since``.

        Raises:
            RunError: The folder holds something else, the change touches a stage before ``since``, another process
                works in the folder, or it cannot be written.
        """
        run = cls(folder, recipe)
        if not is_run(folder):
            with _told(folder):
                if folder.is_dir() and any(entry.name != ".lock" for entry in folder.iterdir()):
                    raise RunError(f"{folder} holds other files and no run; name another folder with --run")
                folder.mkdir(parents=True, exist_ok=True)
            with run.lock():
                run._write_recipe()
            return run
        old = cls.open(folder)
        if recipes.digest(old.recipe) == recipes.digest(recipe):
            return run
        changes = _differences(old.recipe, recipe)
        if not again and old.finished(STAGES[0]):
            told = "; ".join(f"{key}: {before!r} -> {after!r}" for key, before, after in changes[:3])
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise RunError(
                f"{folder} is a run of another recipe ({told}{more}); "
                "name another folder with --run, or redo what the change touches with --again"
            )
        first = _first_stage([key for key, _, _ in changes])
        if STAGES.index(first) < STAGES.index(since) and old.finished(first):
            key, before, after = next(change for change in changes if _first_stage([change[0]]) == first)
            raise RunError(
                f"{key} differs from that of {folder} ({before!r} -> {after!r}), which takes {first} and all later "
                f"stages, not only {since}; redo them with reticent {first} ... --again, name another folder with "
                "--run, or leave the setting as it was"
            )
        with run.lock():
            old.forget(first)
            run._write_recipe()
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run in ``folder``.

        Raises:
            RunError: There is none, or its recipe was edited after the fact.
        """
        if not is_run(folder):
            raise RunError(f"{folder} is not a run folder: it has no recipe.yaml; make one with: reticent run RECIPE")
        run = cls(folder, recipes.load(folder / "recipe.yaml"))
        provenance = folder / "provenance.json"
        if provenance.exists() and run.read_provenance().get("recipe") != recipes.digest(run.recipe):
            raise RunError(
                f"{folder / 'recipe.yaml'} is not the recipe that the run was made with: it was edited, or another "
                "version of reticent reads it; put it back, or name another folder with --run"
            )
        return run

    def _write_recipe(self) -> None:
        self._remove(self.folder / "provenance.json")  # It vouches for recipe.yaml, so it goes first and comes last.
        self._write(self.folder / "recipe.yaml", recipes.dump(self.recipe))
        self._write_json(self.folder / "provenance.json", self.provenance())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder while the block runs; ends with the process, however it ends.

        Raises:
            RunError: Another process is working in the folder.
        """
        with _told(self.folder):
            # Open for writing: file systems over a network refuse the lock otherwise.
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another reticent process is working in {self.folder}; wait for it, or name another folder "
                    "with --run"
                ) from None
            self._sweep()
            yield
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        """Remove what a killed process left half-written. Only under the lock."""
        with _told(self.folder):
            for prefix in (_TEMPORARY, _REMOVED):
                for path in list(self.folder.rglob(f"{prefix}*")):
                    _delete(path)

    # ----------------------------------------------------------------------------------------------------- stages

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the recipe asks for, in order."""
        return tuple(stage for stage in STAGES if stage != "synthesize" or self.recipe.synthetic is not None)

    def finished(self, stage: str) -> bool:
        """Whether ``stage`` is done. `create` and `open` see to it that it was done for this recipe."""
        return self._marker(stage).exists()

    def finish(self, stage: str, facts: dict[str, Any]) -> None:
        """Mark ``stage`` as done. The last thing that a stage does; ``facts`` are plain values for later stages."""
        provenance = self.provenance()
        self._write_json(self.folder / "provenance.json", provenance)
        self._write_json(self._marker(stage), {"facts": facts, "provenance": provenance})

    def facts(self, stage: str) -> dict[str, Any]:
        """What `finish` was told.

        Raises:
            RunError: The stage is not done.
        """
        facts: dict[str, Any] = self._read_json(self._marker(stage))["facts"]
        return facts

    def forget(self, stage: str) -> None:
        """Remove what ``stage`` and all later stages wrote.

        The models go too, with their ledgers: a new training is a new release of the same data, and a model that was
        given away before keeps its own cost.
        """
        gone = STAGES[STAGES.index(stage) :]
        for later in reversed(gone):  # Whenever this is cut off, no marker and no model outlives what it came from.
            for path in (self._marker(later), *self._outputs(later)):
                self._remove(path)

    def _marker(self, stage: str) -> Path:
        assert stage in STAGES, stage
        return self.folder / "stages" / f"{stage}.json"

    def _outputs(self, stage: str) -> list[Path]:
        own = {
            "prepare": [self.folder / "data", self.scrub_map_path],
            "train": [self.folder / "models"],
            "audit": [self.folder / "audit", self.folder / "data" / "said.json"],
            "evaluate": [self._answers, self.benchmarks_folder],
            "synthesize": [self.synthetic_folder],
            "report": [self.folder / "report.html", self.folder / "report.json", self.signature_path],
        }
        return [*own.get(stage, []), self._measurements(stage), self._plots(stage)]

    # ------------------------------------------------------------------------------------------------------- data

    def span_cache(self) -> Path:
        """Where scrubbing remembers what it found; it stays when the stage is forgotten."""
        return self.folder / "spans"

    @property
    def scrub_map_path(self) -> Path:
        """What was replaced by what, encrypted."""
        return self.folder / "scrub-map"

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """Where temporary files without names go.

        Raises:
            RunError: The disk is full.
        """
        with _told(self.folder):
            yield self.folder

    @contextmanager
    def writing(self, part: Part) -> Iterator[store.Folder]:
        """Rows of records or tokens, which are there when the block ends well.

        Records have columns ``unit``, their unit of privacy, and ``client``, the institution that trains on them; so
        do tokens.
        """
        with self.replacing(self.folder / "data" / part) as folder:
            writer = store.Folder(folder, store.kept(part))
            yield writer
            writer.close()

    def read_records(self, part: RecordPart, keep: Collection[int] | None = None) -> list[tuple[Record, str]]:
        """Records and the unit of privacy of each, in the order in which they were written; ``keep``: only these."""
        found: list[tuple[Record, str]] = []
        start = 0
        for table in self._tables(part):
            if keep is not None:
                size = table.num_rows
                table = table.filter([start + row in keep for row in range(size)])
                start += size
            found += zip(store.to_records(table), table["unit"].to_pylist(), strict=True)
        return found

    def read_units(self, part: RecordPart) -> list[str]:
        """The unit of privacy of each record, in the order in which they were written."""
        return [unit for table in self._tables(part) for unit in table["unit"].to_pylist()]

    def read_tokens(self) -> Iterator[tuple[str, int | None, Tokens]]:
        """The training records as tokens, each with its unit of privacy and the number of its silo, if it has one."""
        for table in self._tables("tokens"):
            units, clients = table["unit"].to_pylist(), table["client"].to_pylist()
            yield from zip(units, clients, store.to_tokens(table), strict=True)

    def token_files(self) -> list[Path]:
        """The files of what is trained on, in order."""
        return sorted((self.folder / "data" / "tokens").glob("*.arrow"))

    def silos(self) -> list[str]:
        """The names of the silos that the records were dealt to, in order of their numbers."""
        return list(self.read_manifest().get("silos", {}).get("silos", {}))

    def _tables(self, part: Part) -> Iterator["pa.Table"]:
        folder = self.folder / "data" / part
        try:
            yield from store.read_tables(folder)
        except Exception:  # Of many libraries; their text may hold that of records.
            raise RunError(
                f"{folder} is missing or damaged; redo it with: reticent prepare {self.folder} --again"
            ) from None

    def write_canaries(self, text: str) -> None:
        """Store the canaries, as JSON text."""
        self._write(self.folder / "data" / "canaries.json", text)

    def read_canaries(self) -> str:
        """The canaries, as JSON text."""
        return self._read(self.folder / "data" / "canaries.json")

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Store counts and digests of the data."""
        self._write_json(self.folder / "data" / "manifest.json", manifest)

    def read_manifest(self) -> dict[str, Any]:
        """Counts and digests of the data."""
        return self._read_json(self.folder / "data" / "manifest.json")

    # ----------------------------------------------------------------------------------------------------- models

    def model_folder(self, name: str) -> Path:
        """The trained adapter or weights. Write it inside `replacing`."""
        return self._model(name) / "model"

    def checkpoint_folder(self, name: str) -> Path:
        """Where training keeps what it resumes from."""
        return self._model(name) / "checkpoint"

    def ledger_path(self, name: str) -> Path:
        """Every noisy release of this model's training."""
        return self._model(name) / "ledger.jsonl"

    def log_path(self, name: str) -> Path:
        """Loss and speed, step by step."""
        return self._model(name) / "log.jsonl"

    def federation_folder(self) -> Path:
        """Keys, invitation and logs of a real federation; it stays when stages are forgotten."""
        folder = self.folder / "federation"
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def is_site(self) -> bool:
        """Whether the folder belongs to a site of a real federation."""
        return (self.folder / "federation" / "site.json").exists()

    def write_federation(self, name: ModelName, facts: dict[str, Any]) -> None:
        """Store what sites and coordinator promise together, and what the rounds were."""
        self._write_json(self._model(name) / "federation.json", facts)

    def read_federation(self, name: ModelName) -> dict[str, Any]:
        """What `write_federation` stored."""
        return self._read_json(self._model(name) / "federation.json")

    def rounds_folder(self, name: ModelName) -> Path:
        """Where the coordinator of a federation keeps what it resumes from."""
        return self._model(name) / "rounds"

    def rounds_log_path(self, name: ModelName) -> Path:
        """A line for each round of a federation."""
        return self._model(name) / "rounds.jsonl"

    def site_folder(self, name: ModelName, site: str) -> Path:
        """Where a site keeps its own ledger, log and state."""
        return self._model(name) / "sites" / quote(site, safe=" ").replace(".", "%2E")

    def _model(self, name: str) -> Path:
        folder = self.folder / "models" / name
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    # ---------------------------------------------------------------------------------------- measurements, report

    def write_measurements(self, stage: str, measurements: Sequence[Measurement]) -> None:
        """Store what a stage measured."""
        values = {"measurements": [measurement.to_dict() for measurement in measurements]}
        self._write_json(self._measurements(stage), values)

    def read_measurements(self, stage: str | None = None) -> list[Measurement]:
        """What one stage measured, or all of them in order; nothing for a stage that measured nothing."""
        paths = [self._measurements(one) for one in ([stage] if stage else STAGES)]
        files = [self._read_json(path) for path in paths if path.exists()]
        return [Measurement.from_dict(values) for file in files for values in file["measurements"]]

    def write_plots(self, stage: str, plots: dict[str, Any]) -> None:
        """Store points to draw: plain values by the plot's name."""
        self._write_json(self._plots(stage), plots)

    def read_plots(self, stage: str) -> dict[str, Any]:
        """Points to draw; empty for a stage that has none."""
        path = self._plots(stage)
        return self._read_json(path) if path.exists() else {}

    def scores_folder(self, model: str, kind: str) -> Path:
        """Log-probabilities of one model on one kind of text. Write it inside `replacing`."""
        return self.folder / "audit" / model / kind

    def write_said(self, values: dict[str, Any]) -> Path:
        """Store what the models wrote that may be private, beside the data; where."""
        path = self.folder / "data" / "said.json"
        self._write_json(path, values)
        return path

    @property
    def _answers(self) -> Path:
        return self.folder / "data" / "answers.json"

    def write_answers(self, answers: dict[str, Any]) -> None:
        """Store what each model answered to public questions; may hold private text."""
        self._write_json(self._answers, answers)

    def read_answers(self) -> dict[str, Any]:
        """What `write_answers` stored; empty without it."""
        return self._read_json(self._answers) if self._answers.exists() else {}

    @property
    def benchmarks_folder(self) -> Path:
        """What each model answered to each item of the benchmarks. Write it inside `replacing`."""
        return self.folder / "data" / "benchmarks"

    @property
    def generated_folder(self) -> Path:
        """Where generated text goes if nothing else is said; it may hold private text."""
        return self.folder / "data" / "generated"

    @property
    def synthetic_folder(self) -> Path:
        """Text to give away. Write it inside `replacing`."""
        return self.folder / "synthetic"

    @property
    def synthetic_work(self) -> Path:
        """What making it goes on with after it was stopped; it goes when the stage is done."""
        return self.folder / "data" / "synthetic"

    def write_scores(self, table: "pa.Table") -> None:
        """Store every score of the audit."""
        import pyarrow.parquet as pq

        with self.replacing(self.folder / "audit" / "scores") as folder:
            pq.write_table(table, folder / "scores.parquet")

    @property
    def signature_path(self) -> Path:
        """The detached signature over the report and what it was made from."""
        return self.folder / "report.signature"

    def signed_files(self) -> dict[str, Path]:
        """What a signature covers, by name: the report, and all that its numbers came from."""
        found = [
            self.folder / "report.html",
            self.folder / "report.json",
            self.folder / "recipe.yaml",
            self.folder / "data" / "manifest.json",
            self.folder / "data" / "canaries.json",
            *sorted((self.folder / "measurements").glob("*.json")),
            *sorted((self.folder / "plots").glob("*.json")),
            *sorted(path for path in (self.folder / "stages").glob("*.json") if path.stem != "report"),
            *sorted((self.folder / "models").glob("*/ledger.jsonl")),
            *sorted((self.folder / "models").glob("*/model/*")),
        ]
        return {path.relative_to(self.folder).as_posix(): path for path in found if path.is_file()}

    def write_signature(self, signature: bytes) -> None:
        """Store the signature."""
        self._write(self.signature_path, signature.decode())

    def write_report(self, html: str, values: dict[str, Any]) -> None:
        """Store the report for people and the one for programs."""
        self._write_json(self.folder / "report.json", values)
        self._write(self.report_path, html)

    def read_report(self) -> dict[str, Any]:
        """The report for programs."""
        return self._read_json(self.folder / "report.json")

    @property
    def report_path(self) -> Path:
        """The report for people."""
        return self.folder / "report.html"

    def _measurements(self, stage: str) -> Path:
        return self.folder / "measurements" / f"{stage}.json"

    def _plots(self, stage: str) -> Path:
        return self.folder / "plots" / f"{stage}.json"

    # ------------------------------------------------------------------------------------------------- provenance

    def provenance(self) -> dict[str, Any]:
        """What this was made with, now. Names no host, no user and no folder."""
        return {
            "recipe": recipes.digest(self.recipe),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "packages": _versions(),
            "commit": _commit(),
            "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
            "hardware": _hardware(),
        }

    def read_provenance(self) -> dict[str, Any]:
        """What the stage that finished last was made with."""
        return self._read_json(self.folder / "provenance.json")

    # ------------------------------------------------------------------------------------------- reading, writing

    @contextmanager
    def replacing(self, target: Path) -> Iterator[Path]:
        """An empty folder that takes the place of the folder ``target`` when the block ends well, and goes otherwise.

        Raises:
            RunError: The disk is full or the folder cannot be written.
        """
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
            try:
                yield folder
                folder.chmod(0o777 & ~_umask())  # mkdtemp's own is for the user alone.
                for path in folder.rglob("*"):
                    if path.is_file():
                        _sync(path)
                self._remove(target)
                folder.replace(target)
                _sync(target.parent)
            finally:
                _delete(folder)

    def write_text(self, path: Path, text: str) -> None:
        """A whole file in the folder, or none."""
        self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{path.name}"
            try:
                temporary.write_text(text, encoding="utf-8")
                _sync(temporary)
                temporary.replace(path)
                _sync(path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def _write_json(self, path: Path, values: dict[str, Any]) -> None:
        self._write(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RunError(f"{path} is missing; make it with: reticent run {self.folder}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"cannot read {path}: {type(error).__name__}") from None

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads(self._read(path))
            return values
        except json.JSONDecodeError:
            raise RunError(f"{path} is damaged; redo everything with: reticent run {self.folder} --again") from None

    def _remove(self, path: Path) -> None:
        """Take a file or folder away in one move, then delete it: a half-deleted checkpoint is never seen."""
        with _told(path):
            if path.exists():
                away = path.parent / f"{_REMOVED}{os.getpid()}-{path.name}"
                path.replace(away)
                _delete(away)


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is a run folder."""
    return (folder / "recipe.yaml").is_file()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(f"cannot write {path}: {reason}; make room or name another folder with --run") from None
    except Exception as error:
        # safetensors reports a full disk by an error of its own.
        if type(error).__name__ != "SafetensorError" or "I/O error" not in str(error):
            raise
        raise RunError(f"cannot write {path}: is the disk full? Make room or name another folder with --run") from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _differences(old: Recipe, new: Recipe) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values; None where a recipe has no such key."""
    before = recipes.flatten(old.model_dump(mode="json"))
    after = recipes.flatten(new.model_dump(mode="json"))
    return [(key, before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)]


def _first_stage(keys: Sequence[str]) -> str:
    """The first stage whose result a change of these settings touches."""

    def of(key: str) -> str:
        section = key.split(".")[0]
        if section in ("data", "model", "privacy"):
            return "prepare"  # Units, canaries and the counts of tokens follow from all three.
        if section in ("train", "federation") or key == "audit.twin":
            return "train"
        return "synthesize" if section == "synthetic" else section

    return min(map(of, keys), key=STAGES.index)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The commit of the project, if this package lies in a checkout of it, and whether files differ from it."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line for line in information.read_text(errors="replace").splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    hardware = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    torch = sys.modules.get("torch")  # Never loaded for this alone.
    if torch is not None and torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return hardware
