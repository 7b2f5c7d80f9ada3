"""Records from the recipe's sources, grouped into units and split."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reticent.data import sources, store
from reticent.data.corpus import Corpus, digest, uniform
from reticent.data.encode import Encoded, Encoder
from reticent.data.record import Record
from reticent.data.split import PARTS, Split, Units, assign_units, split
from reticent.errors import DataError
from reticent.progress import SILENT, Progress
from reticent.recipe import Data, Recipe, Source

Pair = tuple[Record, Record]


def unchanged(records: Iterable[Record]) -> Iterator[Pair]:
    """Each record as it was read, to be used as it is."""
    return ((record, record) for record in records)


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
    passed: Callable[[Iterable[Record]], Iterable[Pair]] = unchanged,
    encode: Encoder | None = None,
    folder: Path | None = None,
    progress: Progress = SILENT,
) -> Read:
    """Reads, groups and splits.

    ``passed`` stands between the sources and all else: it may drop records, and gives the others as they were read and
    as they are to be used. With ``encode`` they become tokens on the way. ``folder``: where temporary files go.

    Raises:
        DataError: The data are not as the recipe says.
    """
    data = recipe.data
    corpus = Corpus(near_duplicates=data.near_duplicates, folder=folder)
    counts: Counter[str] = Counter()
    with progress.task("reading", total=1) as task:
        found = store.batches(passed(_records(recipe)), lambda pair: store.characters(pair[1]))
        for batch in found if encode is None else _encoded(found, encode, corpus, counts):
            corpus.add([record for _, record in batch], [original for original, _ in batch])
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
    found: Iterable[list[Pair]], encode: Encoder, corpus: Corpus, counts: Counter[str]
) -> Iterator[list[Pair]]:
    """Passes batches on and encodes them meanwhile: the tokenizer works outside of Python."""

    def keep(encoded: Encoded) -> None:
        corpus.add_tokens(encoded.tokens, encoded.pieces)
        counts.update(cut=encoded.cut, split=encoded.split, dropped=encoded.dropped)

    with ThreadPoolExecutor(1) as worker:
        waiting: Future[Encoded] | None = None
        for batch in found:
            future = worker.submit(encode, [(record.prompt, record.completion) for _, record in batch])
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
    found = _opened(source, data)
    if source.share < 1:
        found = (record for record in found if uniform(f"{data.seed}:{record.owner}") < source.share)
    return found if source.per_owner is None else _capped(found, source.per_owner)


def _opened(source: Source, data: Data) -> Iterator[Record]:
    path = None if source.path is None else Path(source.path)
    if source.name is not None:
        from reticent.data import catalog

        options: dict[str, Any] = source.options
        return catalog.read(
            source.name,
            path=path,
            split=source.split,
            template=source.template or ("verbatim" if data.template == "verbatim" else "raw"),
            limit=source.limit,
            **options,
        )
    fields = sources.Fields(**source.model_dump(include=set(sources.Fields.__dataclass_fields__)))
    if path is not None:
        return sources.read_file(path, fields, format=source.format, split=source.split, limit=source.limit)
    assert source.hub is not None
    return sources.read_hub(
        source.hub,
        fields,
        config=source.config,
        split=source.split or "train",
        revision=source.revision,
        format=source.format,
        limit=source.limit,
    )


def _capped(records: Iterable[Record], most: int) -> Iterator[Record]:
    """The first ``most`` records of each owner."""
    seen: Counter[int] = Counter()
    for record in records:
        owner = digest(record.owner)
        seen[owner] += 1
        if seen[owner] <= most:
            yield record
