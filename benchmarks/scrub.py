"""Scrubbing against bare Presidio: the same recognisers and the same spaCy model on the same texts.

    python benchmarks/scrub.py [--quick] [--json FILE]

Bare Presidio takes one text after the other through `AnalyzerEngine.analyze` and `AnonymizerEngine.anonymize`, as its
documentation shows. Ours is `reticent.data.scrub.scrub`, in as many processes as there are cores to use, in one, and
from a cache. Texts are visit notes of invented patients, joined to about 200 tokens, and new ones each round. Loading
the model and starting processes count on neither side. Runs alternate; shown are medians, over rounds, of the ratio of
the two times, and how much of what Presidio masked ours masked too. To race on two cores:

    taskset -c 0,1 python benchmarks/scrub.py --json benchmarks/results/NAME.json
"""

import argparse
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import spacy
from presidio_anonymizer import AnonymizerEngine

from reticent.data.clinic import NoteWriter
from reticent.data.record import Record
from reticent.data.scrub import Scrubbed, Settings, scrub
from reticent.data.taggers import PRESIDIO_SCORE, SPACY_MODEL, presidio_analyzer

TOKENS = 200
RECOGNISERS = ("presidio",)


class Claim(NamedTuple):
    """Texts a second of both; ``ratio`` is the median over rounds, ``bound`` the least it may be."""

    metric: str
    ours: float
    other: float
    ratio: float
    bound: float | None
    holds: bool | None


def notes(count: int, seed: int) -> list[Record]:
    """Records of about 200 tokens: the visits of one invented patient each."""
    writer = NoteWriter([seed])
    records = []
    for number in range(count):
        patient, text = writer.patient(), ""
        while len(re.findall(r"\w+|[^\w\s]", text)) < TOKENS:
            prompt, note = writer.note(patient)
            text += f"{prompt} {note}\n"
        records.append(Record(id=f"{number}", owner=f"p{number}", prompt="", completion=text, origin="clinic/note"))
    return records


def ours(records: list[Record], processes: int, cache: Path | None = None) -> tuple[float, list[Scrubbed]]:
    """Seconds from the first record asked for to the last one done, and what came out."""
    began = 0.0

    def timed() -> Iterator[Record]:
        nonlocal began
        began = time.perf_counter()
        yield from records

    done = list(scrub(timed(), Settings(recognisers=RECOGNISERS, processes=processes), cache=cache))
    return time.perf_counter() - began, done


def bare() -> Callable[[list[Record]], tuple[float, list[set[int]]]]:
    """Presidio; it returns the seconds, and which characters of each text it masked."""
    analyzer, anonymizer = presidio_analyzer(spacy.load(SPACY_MODEL)), AnonymizerEngine()

    def run(records: list[Record]) -> tuple[float, list[set[int]]]:
        masked = []
        began = time.perf_counter()
        for record in records:
            results = analyzer.analyze(record.completion, "en", score_threshold=PRESIDIO_SCORE)
            anonymizer.anonymize(record.completion, results)
            masked.append({place for found in results for place in range(found.start, found.end)})
        return time.perf_counter() - began, masked

    return run


def race(rounds: int, texts: int, processes: int) -> tuple[list[Claim], float, dict[str, list[float]]]:
    """The claims, the share of Presidio's masked characters that ours masked too, and all times."""
    other = bare()
    other(notes(5, 10**6))
    times: dict[str, list[float]] = {
        "bare Presidio": [],
        "ours": [],
        "ours, one process": [],
        "ours, from the cache": [],
    }
    both = all_masked = 0
    for number in range(rounds):
        records = notes(texts, number)
        with tempfile.TemporaryDirectory() as folder:
            ours(records, 1, Path(folder))
            tasks: dict[str, Callable[[], tuple[float, Any]]] = {
                "bare Presidio": lambda r=records: other(r),
                "ours": lambda r=records: ours(r, processes),
                "ours, one process": lambda r=records: ours(r, 1),
                "ours, from the cache": lambda r=records, f=folder: ours(r, 1, Path(f)),
            }
            results = {}
            for name in list(tasks) if number % 2 else reversed(tasks):
                seconds, results[name] = tasks[name]()
                times[name].append(seconds)
        for masked, done in zip(results["bare Presidio"], results["ours"], strict=True):
            mine = {place for span in done.spans[1] for place in range(span.start, span.end)}
            both, all_masked = both + len(masked & mine), all_masked + len(masked)

    def claim(metric: str, name: str, bound: float | None) -> Claim:
        ratio = statistics.median(b / a for a, b in zip(times[name], times["bare Presidio"], strict=True))
        rates = [texts / statistics.median(times[which]) for which in (name, "bare Presidio")]
        return Claim(metric, round(rates[0], 1), round(rates[1], 1), round(ratio, 2), bound, bound and ratio >= bound)

    claims = [
        claim(f"scrubbed texts a second, {processes} processes", "ours", 1.5),
        claim("scrubbed texts a second, one process", "ours, one process", None),
        claim("scrubbed texts a second, from the cache", "ours, from the cache", 10),
    ]
    return claims, both / all_masked, times


def main() -> None:
    parser = argparse.ArgumentParser(description="Scrubbing beside bare Presidio.")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 128 texts, instead of 7 of 400")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    asked = parser.parse_args()
    processes = len(os.sched_getaffinity(0))
    claims, agreement, times = race(*((3, 128) if asked.quick else (7, 400)), processes)
    names = ("reticent", "presidio_analyzer", "presidio_anonymizer", "spacy", SPACY_MODEL)
    found = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": processes, "load": os.getloadavg()},
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in names}},
        "rows": [claim._asdict() for claim in claims],
        "masked_by_both": round(agreement, 4),
        "seconds": times,
    }
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    print("| metric | ours | bare Presidio | ratio | bound | holds |\n|---|---|---|---|---|---|")
    for row in claims:
        print("|", " | ".join("" if value is None else str(value) for value in row), "|")
    print(f"\nOf the characters that Presidio masked, ours masked {agreement:.2%}.")


if __name__ == "__main__":
    main()
