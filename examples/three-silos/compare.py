"""Local, federated and centralised models on the same three data sets: what they remember and what they are good for.

    python examples/three-silos/compare.py --data FOLDER [--runs FOLDER] [--out FOLDER]

FOLDER holds wikidoc_patient_information.json, medmcqa_dev_head2500.jsonl and pubmedqa_ori_pqal.json, each in its
original schema. Six models see every record equally often: one for each institution alone, a federated one, the same
with privacy, and one on all records in one place. Runs that are there already are read and not made again. It writes
three-silos.svg and three-silos.md.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reticent.attacks.exposure import NULL_MEAN
from reticent.measurement import Measurement
from reticent.reports.plots import Compared, comparison
from reticent.run import Run

RECIPE = Path(__file__).parent / "compare.yaml"
FILES = {
    "medical-flashcards": "wikidoc_patient_information.json",
    "medmcqa": "medmcqa_dev_head2500.jsonl",
    "pubmedqa-labelled": "pubmedqa_ori_pqal.json",
}
NO_PRIVACY = ("privacy.kind=none", "privacy.unit=record")


class Result(NamedTuple):
    """One model and its measurements by name. ``private`` is None for the base model."""

    name: str
    private: bool | None
    found: dict[str, Measurement]


def main() -> None:
    """Makes the runs that are not there, and from them the figure and the table."""
    asked = _arguments()
    asked.runs.mkdir(parents=True, exist_ok=True)
    sources = _sources(asked.data, asked.runs)
    federated = _run(asked.runs / "federated", sources)
    sites = federated.silos()
    results = [_result(federated, "base", "base model", None)]
    for site in sites:
        local = _run(asked.runs / f"local-{site}", sources, *NO_PRIVACY, f"federation.only={site}")
        results.append(_result(local, "twin", f"{site} alone", False))
    size = federated.recipe.train.batch_size * len(sites)
    central = _run(asked.runs / "centralised", sources, *NO_PRIVACY, "federation=null", f"train.batch_size={size}")
    results += [
        _result(central, "twin", "centralised", False),
        _result(federated, "twin", "federated", False),
        _result(federated, "private", "federated, epsilon 8", True),
    ]
    first = results[0].found
    figure = comparison(
        [_compared(one) for one in results],
        chance=_chance(first["exposure_bits"].n),
        guessing=first["accuracy"].floor,
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    figure = figure.replace('aria-hidden="true"', 'style="background: white"', 1)  # dark letters on any page
    (asked.out / "three-silos.svg").write_text(figure + "\n", encoding="utf-8")
    table = "\n".join(_table(results)) + "\n"
    (asked.out / "three-silos.md").write_text(table, encoding="utf-8")
    print(table)


def _sources(data: Path, runs: Path) -> str:
    """The sources as a setting. PubMedQA with the conclusion in place of the abstract: a fifth of the text."""
    short = runs / "pubmedqa-conclusions.json"
    if not short.exists():
        rows = json.loads((data / FILES["pubmedqa-labelled"]).read_text(encoding="utf-8"))
        for row in rows.values():
            row["CONTEXTS"] = [row["LONG_ANSWER"]]
        short.write_text(json.dumps(rows), encoding="utf-8")
    paths = {name: data / file for name, file in FILES.items()} | {"pubmedqa-labelled": short}
    told = [{"name": name, "limit": 360, "path": str(path.resolve())} for name, path in paths.items()]
    told[-1]["split"] = "all"
    return f"data.source={json.dumps(told)}"


def _run(folder: Path, *settings: str) -> Run:
    """The finished run in ``folder``; begun or gone on with if it is not."""
    if not folder.exists() or not Run.open(folder).finished("evaluate"):
        told = [part for setting in settings for part in ("-s", setting)]
        target = [str(RECIPE), *told, "--run", str(folder)] if not folder.exists() else [str(folder)]
        subprocess.run([sys.executable, "-m", "reticent", "run", *target], check=True)
    return Run.open(folder)


def _result(run: Run, model: str, name: str, private: bool | None) -> Result:
    return Result(name, private, {one.name: one for one in run.read_measurements() if one.model == model})


def _chance(planted: int) -> tuple[float, float]:
    """Where the mean exposure of ``planted`` secrets lies in 95 of 100 models that never saw them."""
    # A rank drawn at random gives an exponential variable of mean 1/ln 2 bits.
    drawn = np.random.default_rng(0).exponential(NULL_MEAN, size=(20_000, planted)).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _compared(one: Result) -> Compared:
    return Compared(one.name, one.private, _triple(one.found["accuracy"]), _triple(one.found["exposure_bits"]))


def _triple(one: Measurement) -> tuple[float, float, float]:
    low, high = one.interval or (one.value, one.value)
    return one.value, low, high


def _table(results: Sequence[Result]) -> Iterator[str]:
    questions, records = results[0].found["accuracy"].n, results[0].found["perplexity"].n
    useful = f"accuracy, {questions} held-out questions | perplexity, {records} held-out records"
    yield f"| model (95 % interval) | {useful} | exposure of the secrets in its data, bits | of others |"
    yield "|---|---|---|---|---|"
    for one in results:
        secrets = one.found["exposure_bits"]
        cells = [_cell(one.found["accuracy"], 2), _cell(one.found["perplexity"], 1), _cell(secrets, 1)]
        yield f"| {one.name} | {' | '.join(cells)}, {secrets.n} secrets | {secrets.control:.1f} |"


def _cell(one: Measurement, places: int) -> str:
    value, low, high = _triple(one)
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the three files")
    parser.add_argument("--runs", type=Path, default=Path("runs/three-silos"), help="run folders, kept")
    parser.add_argument("--out", type=Path, default=Path("."), help="where figure and table are written")
    return parser.parse_args()


if __name__ == "__main__":
    main()
