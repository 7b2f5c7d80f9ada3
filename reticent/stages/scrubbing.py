"""What stands between the sources and all else: benchmarks are kept out, and what identifies people is replaced."""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reticent.data import plant, recognise, scrub, store
from reticent.data.contamination import NGRAM, Benchmark
from reticent.data.corpus import digest
from reticent.data.record import Record
from reticent.errors import DataError
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Benchmarks, Recipe, Scrub
from reticent.stages.reading import Pair, unchanged

MODEL = "scrubber"
"""The ``model`` of measurements of what scrubbing finds, as the report knows it."""


HOPELESS = 100
"""If that many records are dropped before any comes through, the recognisers are at fault and not the records."""


class Scrubbing:
    """Passes records on as the recipe says, and counts. ``folder``: what was found stays there for the next time."""

    def __init__(self, recipe: Recipe, folder: Path, map_path: Path, progress: Progress) -> None:
        self._seed = recipe.data.seed
        self._asked = recipe.data.scrub
        self._folder, self._map_path, self._progress = folder, map_path, progress
        self._counts = scrub.Counts()
        self._sample: list[tuple[int, int, Record]] = []
        self._read = self._hits = 0
        self._benchmarks = recipe.data.benchmarks
        self._benchmark = None if self._benchmarks is None else _benchmark(self._benchmarks)

    def __call__(self, records: Iterable[Record]) -> Iterator[Pair]:
        """The records that may be used, as they were read and as they may be used."""
        clean = iter(records) if self._benchmark is None else self._uncontaminated(records, self._benchmark)
        return unchanged(clean) if self._asked is None else self._scrubbed(clean, self._asked)

    def _uncontaminated(self, records: Iterable[Record], benchmark: Benchmark) -> Iterator[Record]:
        assert self._benchmarks is not None
        for batch in store.batches(records, store.characters):
            hits = benchmark.hits([f"{record.prompt}\n{record.completion}" for record in batch])
            self._hits += int(hits.sum())
            drop = self._benchmarks.action == "drop"
            yield from (record for record, hit in zip(batch, hits, strict=True) if not (hit and drop))

    def _scrubbed(self, records: Iterable[Record], asked: Scrub) -> Iterator[Pair]:
        waiting: deque[Record] = deque()  # read, and not scrubbed yet
        for name in filter(recognise.is_remote, asked.recognisers):
            self._progress.say(f"scrubbing sends the texts to {name}, as data.scrub.recognisers asks")
        with ExitStack() as stack:
            keep = None
            if asked.map_key is not None:
                from reticent.data.scrub_map import write_map

                keep = stack.enter_context(write_map(self._map_path, Path(asked.map_key)))
            found = scrub.scrub(
                self._sampled(records, asked.plants, waiting),
                settings_of(asked),
                cache=self._folder,
                counts=self._counts,
                keep=keep,
                progress=self._progress,
            )
            stack.callback(found.close)  # also if this one is left early: it may hold processes
            for one in found:
                original = waiting.popleft()
                if one.record is not None:
                    yield original, one.record
                elif self._counts.dropped.total() == self._counts.records >= HOPELESS:
                    self._refuse_hopeless()
            self._refuse_hopeless()

    def _refuse_hopeless(self) -> None:
        failed = self._counts.dropped.total()
        if failed and failed == self._counts.records:
            raise DataError(
                f"scrubbing failed at all of the first {failed:,} records ({', '.join(self._counts.dropped)}); see "
                "data.scrub.recognisers"
            )

    def _sampled(self, records: Iterable[Record], count: int, waiting: deque[Record]) -> Iterator[Record]:
        """The records; ``count`` of them, drawn by their ids, are kept aside for plants."""
        for record in records:
            entry = (-digest(f"plants:{self._seed}:{record.id}"), -self._read, record)
            self._read += 1
            if len(self._sample) < count:
                heapq.heappush(self._sample, entry)
            elif count and entry[:2] > self._sample[0][:2]:
                heapq.heapreplace(self._sample, entry)
            waiting.append(record)
            yield record

    def measured(self) -> list[Measurement]:
        """What is found of invented identifiers, planted in copies of records that are then thrown away."""
        if self._asked is None or not self._asked.plants or not self._sample:
            return []
        records = [record for _, _, record in self._sample]
        planted = list(plant.plant(records, count=self._asked.plants, seed=self._seed))
        found = scrub.scrub([one.record for one in planted], settings_of(self._asked), progress=self._progress)
        return [scored.measurement(MODEL) for scored in plant.recall(planted, [one.spans for one in found])]

    def manifest(self) -> dict[str, Any]:
        """What was done, in counts."""
        values: dict[str, Any] = {}
        if self._benchmark is not None and self._benchmarks is not None:
            values["benchmarks"] = {
                "words_in_a_row": NGRAM,
                "runs": len(self._benchmark),
                "records_with_one": self._hits,
                "action": self._benchmarks.action,
            }
        if self._asked is not None:
            values["scrub"] = {
                "recognisers": list(self._asked.recognisers),
                "style": self._asked.style,
                "records": self._counts.records,
                "dropped": dict(self._counts.dropped),
                "masks": dict(self._counts.masks.most_common()),
                "masked_share_of_words": round(self._counts.masked_share, 4),
                "from_cache": self._counts.cached,
            }
        return values


def settings_of(asked: Scrub) -> scrub.Settings:
    """The recipe's section as the scrubber takes it."""
    return scrub.Settings(**asked.model_dump(exclude={"plants", "map_key"}))


def _benchmark(asked: Benchmarks) -> Benchmark:
    from reticent.data.rows import rows

    return Benchmark(" ".join(_texts(row.values)) for file in asked.files for row in rows(Path(file)))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a row, whatever its fields are called."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
