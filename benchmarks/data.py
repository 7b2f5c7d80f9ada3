"""Preparing records against tokenising them alone with `datasets.map`, and memory as records become more.

    python benchmarks/data.py [--quick] [--json FILE]

Both read the same .jsonl file of records of about 200 tokens and use all cores that this process may use. `datasets`
gets the better of one process (its tokenizer works in threads) and one process a core. Runs alternate; ratios are of
pairs that follow each other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 200
MODEL = "bundled/smollm2-135m"


def write_records(path: Path, count: int, *, seed: int = 0) -> None:
    """Records of about 200 tokens: titles of the code book in random order; one in fifty is nearly another's copy."""
    import simple_icd_10_cm as icd

    rng = np.random.default_rng(seed)
    words = np.array([word for code in icd.get_all_codes() for word in icd.get_description(code).split()])
    last = ""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chosen = words[rng.integers(len(words), size=138)].tolist()
            text = f"{last} again" if number % 50 == 49 else " ".join(chosen)
            last = text
            file.write(json.dumps({"text": text, "owner": f"p{number // 3}"}) + "\n")


def ours(path: Path, folder: Path, near: float | None) -> None:
    """All of `prepare`: read, group, split, canaries, encode, write."""
    from reticent.progress import SILENT
    from reticent.recipe import from_dict
    from reticent.run import Run
    from reticent.stages.prepare import prepare

    recipe = from_dict(
        {
            "data": {
                "source": {"path": str(path), "text": "text", "owner": "owner"},
                "held_out": 0.01,
                "near_duplicates": near,
                "canaries": {"pairs": 50, "copies": 10, "candidates": 500},
                "max_tokens": 512,
            },
            "model": {"base": MODEL},
            "privacy": {"kind": "none", "unit": "owner"},
        }
    )
    prepare(Run.create(folder, recipe), SILENT)


def theirs(path: Path, folder: Path, processes: int) -> None:
    """The same texts to token ids, and nothing else."""
    import datasets

    from reticent.models.load import load_tokenizer

    tokenizer = load_tokenizer(MODEL)
    datasets.disable_progress_bars()
    data = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder))
    began = time.perf_counter()
    data.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=512),
        batched=True,
        num_proc=None if processes == 1 else processes,
        remove_columns=data.column_names,
        cache_file_name=str(folder / "tokens.arrow"),
    )
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records and rounds: under five minutes")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--only", nargs=4, help=argparse.SUPPRESS)  # one job in a process of its own
    arguments = parser.parse_args()
    if arguments.only:
        job(*arguments.only)
        return
    records, rounds, memory = (50_000, 2, (5_000, 50_000)) if arguments.quick else (100_000, 3, (10_000, 1_000_000))
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), records, rounds, memory)
    for row in rows:
        print(f"{row['metric']:<60} {row['ratio']:6.2f}  bound {row['bound']}  {'holds' if row['holds'] else 'MISSED'}")
    if arguments.json:
        values = {"cores": len(os.sched_getaffinity(0)), "records": records, "rows": rows}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


def job(kind: str, path: str, folder: str, setting: str) -> None:
    """One run; prints its seconds without loading, and the largest memory that the process held."""
    if kind == "theirs":
        theirs(Path(path), Path(folder), int(setting))
        return
    import resource

    from reticent.models.load import load_tokenizer

    load_tokenizer(MODEL)
    began = time.perf_counter()
    ours(Path(path), Path(folder), json.loads(setting))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - began, "mib": peak}), flush=True)


def run(kind: str, path: Path, setting: str) -> dict[str, float]:
    """`job` in a fresh process."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, __file__, "--only", kind, str(path), str(Path(folder) / "run"), setting]
        if kind == "theirs":
            command[-2] = folder
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true" if kind == "ours" or setting == "1" else "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return values


def measure(folder: Path, records: int, rounds: int, memory: tuple[int, int]) -> list[dict[str, Any]]:
    """All rows."""
    path = folder / "records.jsonl"
    write_records(path, records)
    cores = len(os.sched_getaffinity(0))
    best = min(("1", str(cores)), key=lambda processes: run("theirs", path, processes)["seconds"])
    rows = []
    times: dict[str, list[float]] = {"exact": [], "theirs": [], "near": []}
    for _ in range(rounds):
        times["exact"].append(run("ours", path, "null")["seconds"])
        times["theirs"].append(run("theirs", path, best)["seconds"])
        times["near"].append(run("ours", path, "0.8")["seconds"])
    rows = [
        row(f"prepare {records:,} records, equal ones joined: seconds", times["exact"], times["theirs"], 1.3),
        row(f"prepare {records:,} records, near ones joined: seconds", times["near"], times["theirs"], 2.0),
    ]
    peaks = []
    for count in memory:
        write_records(path, count)
        peaks.append(run("ours", path, "0.8")["mib"])
    rows.append(row(f"memory, {memory[1]:,} records against {memory[0]:,}: MiB", peaks[1:], peaks[:1], 1.25))
    return rows


def row(metric: str, mine: list[float], other: list[float], bound: float) -> dict[str, Any]:
    """Medians, and the median ratio of pairs."""
    ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
    return {
        "metric": metric,
        "ours": statistics.median(mine),
        "other": statistics.median(other),
        "ratio": ratio,
        "bound": bound,
        "holds": ratio <= bound,
    }


if __name__ == "__main__":
    main()
