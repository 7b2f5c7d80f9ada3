"""Read the text, scrub it, give every record its owner, split by owner, plant canaries."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reticent.data import canary, sources, store
from reticent.data.corpus import Corpus, digest
from reticent.data.encode import Encoded, Encoder
from reticent.data.record import Record
from reticent.data.split import PARTS, Split, Units, assign_units, split
from reticent.errors import DataError, RecipeError
from reticent.progress import SILENT, Progress, Task
from reticent.recipe import Data, Recipe, Source
from reticent.run import Run
from reticent.stages.inputs import encoder, plan_for, trained_models

if TYPE_CHECKING:
    import pyarrow as pa


class Read(NamedTuple):
    """The records that the recipe asks for, their units and parts, and what was counted on the way."""

    corpus: Corpus
    units: Units
    split: Split
    counts: Counter[str]

    def unit_count(self, part: str) -> int:
        """Units of privacy in a part."""
        return len(np.unique(self.units.first[self.split.part == PARTS.index(part)]))


def read(
    recipe: Recipe,
    *,
    passed: Callable[[Iterable[Record]], Iterable[Record]] = lambda records: records,
    encode: Encoder | None = None,
    folder: Path | None = None,
    progress: Progress = SILENT,
) -> Read:
    """Reads, groups and splits.

    ``passed`` stands between the sources and all else, and may change or drop records. With ``encode`` they become
    tokens on the way. ``folder``: where temporary files go.

    Raises:
        DataError: The data are not as the recipe says.
    """
    data = recipe.data
    corpus = Corpus(near_duplicates=data.near_duplicates, folder=folder)
    counts: Counter[str] = Counter()
    with progress.task("reading", total=1) as task:
        found = store.batches(passed(_records(recipe)), store.characters)
        for batch in found if encode is None else _encoded(found, encode, corpus, counts):
            corpus.add(batch)
            task.advance(0, note=f"{len(corpus):,} records")
        if not len(corpus):
            raise DataError("no record is left to train on; see data.scrub and data.benchmarks for what drops records")
        task.advance(1, note=f"{len(corpus):,} records")
    with progress.task("grouping", total=1) as task:
        units = assign_units(corpus, unit=recipe.privacy.unit)
        parts = split(corpus, units.first, held_out=data.held_out, calibration=data.calibration, seed=data.seed)
        task.advance(1, note=f"{len(np.unique(units.first)):,} units")
    return Read(corpus, units, parts, counts)


def _encoded(
    found: Iterable[list[Record]], encode: Encoder, corpus: Corpus, counts: Counter[str]
) -> Iterator[list[Record]]:
    """Passes batches on and encodes them meanwhile: the tokenizer works outside of Python."""

    def keep(encoded: Encoded) -> None:
        corpus.add_tokens(encoded.tokens, encoded.pieces)
        counts.update(cut=encoded.cut, split=encoded.split, dropped=encoded.dropped)

    with ThreadPoolExecutor(1) as worker:
        waiting: Future[Encoded] | None = None
        for batch in found:
            future = worker.submit(encode, [(record.prompt, record.completion) for record in batch])
            yield batch
            if waiting is not None:
                keep(waiting.result())
            waiting = future
        if waiting is not None:
            keep(waiting.result())


def _records(recipe: Recipe) -> Iterator[Record]:
    """The records of all sources, one source after the other."""
    data = recipe.data
    if isinstance(data.source, str):
        from reticent.data.clinic import clinic

        return iter(clinic(patients=data.patients, questions=data.questions, seed=data.seed))
    if isinstance(data.source, Source):
        return _source(data.source, data)
    return (
        # Ids may be the same in two sources; owners of one name are one owner.
        replace(record, id=f"{number}/{record.id}")
        for number, source in enumerate(data.source, start=1)
        for record in _source(source, data)
    )


def _source(source: Source, data: Data) -> Iterator[Record]:
    """The records that one source gives."""

    def read() -> Iterator[Record]:
        found = _opened(source, data)
        return found if source.per_owner is None else _capped(found, source.per_owner)

    return read() if source.sample is None else _sampled(read, source.sample, data.seed)


def _opened(source: Source, data: Data) -> Iterator[Record]:
    path = None if source.path is None else Path(source.path)
    if source.name is not None:
        from reticent.data import catalog

        template = "verbatim" if data.template == "verbatim" else "raw"
        return catalog.read(source.name, path=path, split=source.split, template=template, limit=source.limit)
    fields = sources.Fields(**source.model_dump(include=set(sources.Fields.__dataclass_fields__)))
    if path is not None:
        return sources.read_file(path, fields, format=source.format, split=source.split, limit=source.limit)
    assert source.hub is not None
    return sources.read_hub(source.hub, fields, split=source.split or "train", format=source.format, limit=source.limit)


def _capped(records: Iterable[Record], most: int) -> Iterator[Record]:
    """The first ``most`` records of each owner."""
    seen: Counter[int] = Counter()
    for record in records:
        owner = digest(record.owner)
        seen[owner] += 1
        if seen[owner] <= most:
            yield record


def _sampled(read: Callable[[], Iterator[Record]], count: int, seed: int) -> Iterator[Record]:
    """``count`` of the records, in their order: those whose ids have the smallest digests with ``seed``."""
    drawn = np.fromiter((digest(f"{seed}:{record.id}") for record in read()), np.uint64)
    chosen = np.zeros(len(drawn), dtype=bool)
    chosen[np.argsort(drawn, kind="stable")[:count]] = True
    return compress(read(), chosen)


def canaries_of(recipe: Recipe) -> list[canary.Canary]:
    """The recipe's canaries, planted or held out.

    Raises:
        RecipeError: Too few candidates for the membership test.
    """
    asked = recipe.data.canaries
    if asked is None:
        return []
    made = canary.make(
        pairs=asked.pairs,
        copies=asked.copies,
        candidates=asked.candidates,
        digits=asked.digits,
        seed=recipe.data.seed,
    )
    coins = [one.planted for one in made if one.family == "member"]
    if recipe.audit.membership and coins and min(sum(coins), len(coins) - sum(coins)) < 2:
        raise RecipeError(
            f"data.canaries.candidates = {len(coins)} gave {sum(coins)} planted and {len(coins) - sum(coins)} held-out "
            "records; membership needs 2 of each. Raise it, or set audit.membership: false."
        )
    return made


def prepare(run: Run, progress: Progress) -> None:
    """Writes the records of each part, the training tokens, the canaries and a manifest of counts and digests."""
    from reticent.models.load import load_tokenizer

    recipe = run.recipe
    encode = encoder(recipe, load_tokenizer(recipe.model.base))
    with run.temporary() as folder:
        found = read(recipe, encode=encode, folder=folder, progress=progress)
    canaries = canaries_of(recipe)
    planted = _Planted(canary.planted_records(canaries), encode)
    learned = found.units.first[(found.split.part == PARTS.index("train")) & (found.corpus.pieces > 0)]
    units = len(np.unique(learned)) + len(set(planted.learned))
    if not units:
        raise DataError(
            f"none of the training records has a token to learn within data.max_tokens = {recipe.data.max_tokens}. "
            "Raise it, or set data.long_records to split."
        )
    for name in trained_models(recipe):  # A promise that cannot be kept is refused before anything is trained.
        plan_for(recipe, name, units)
    with progress.task("writing", total=len(found.corpus)) as task:
        written = _write(run, found, planted, task)
    run.write_canaries(canary.to_json(canaries))
    manifest = _manifest(found, canaries, planted, written)
    run.write_manifest(manifest)
    run.finish("prepare", {"units": manifest["units"]["train"]})


class _Planted:
    """The planted canaries as records and tokens."""

    def __init__(self, planted: Sequence[tuple[Record, str]], encode: Encoder) -> None:
        self.records = [record for record, _ in planted]
        self.units = [unit for _, unit in planted]
        self.encoded = encode([(record.prompt, record.completion) for record in self.records])
        self.learned = [
            unit for unit, pieces in zip(self.units, self.encoded.pieces, strict=True) for _ in range(pieces)
        ]


def _write(run: Run, found: Read, planted: _Planted, task: Task) -> dict[str, store.Folder]:
    """All parts and the training tokens; canaries come last."""
    corpus, first, part = found.corpus, found.units.first, found.split.part
    name = "owner" if run.recipe.privacy.unit == "owner" else "id"
    with ExitStack() as stack:
        folders = {one: stack.enter_context(run.writing(one)) for one in (*PARTS, "tokens")}
        for start, table in corpus.tables():
            rows = slice(start, start + table.num_rows)
            table = _with_units(table, corpus.take(first[rows], name))
            for number, one in enumerate(PARTS):
                folders[one].append(table.filter(part[rows] == number))
            task.advance(table.num_rows)
        for record, table in corpus.token_tables():
            table = _with_units(table, corpus.take(first[record], name))
            folders["tokens"].append(table.filter(part[record] == PARTS.index("train")))
        folders["train"].append(_with_units(store.to_table(planted.records), planted.units))
        folders["tokens"].append(_with_units(store.tokens_to_table(planted.encoded.tokens), planted.learned))
    return folders


def _with_units(table: "pa.Table", units: list[str]) -> "pa.Table":
    import pyarrow as pa

    table = table.append_column("unit", pa.array(units, pa.string()))
    return table.append_column("client", pa.nulls(len(table), pa.int32()))


def _manifest(
    found: Read, canaries: Sequence[canary.Canary], planted: _Planted, written: dict[str, store.Folder]
) -> dict[str, Any]:
    corpus, part = found.corpus, found.split.part
    origins = Counter(record.origin for record in planted.records)
    for code, count in zip(*np.unique(corpus.origin[part == PARTS.index("train")], return_counts=True), strict=True):
        origins[corpus.origins[code]] += int(count)
    counts = found.counts + Counter(
        cut=planted.encoded.cut, split=planted.encoded.split, dropped=planted.encoded.dropped
    )
    return {
        "records": {one: written[one].rows for one in PARTS},
        "units": {one: found.unit_count(one) + (one == "train") * len(set(planted.units)) for one in PARTS},
        "origins": dict(origins),
        "tokens": written["tokens"].size,
        **{name: counts[name] for name in ("cut", "split", "dropped")},
        "exact_duplicates": found.units.exact_duplicates,
        "near_duplicates": found.units.near_duplicates,
        "canaries": {
            "secrets_planted": sum(c.planted for c in canaries if c.family == "secret"),
            "secrets_held_out": sum(not c.planted for c in canaries if c.family == "secret"),
            "members_planted": sum(c.planted for c in canaries if c.family == "member"),
            "members_held_out": sum(not c.planted for c in canaries if c.family == "member"),
            "commitment": canary.commitment(canaries),
        },
        "sha256": {one: written[one].sha256 for one in (*PARTS, "tokens")},
    }
