"""Three hospitals on one machine: their files, keys and processes, and one that is killed in the middle and comes back.

    python examples/three-hospitals/run.py [FILE.json] [--folder FOLDER] [--port PORT]

Each hospital is a process of its own, which talks to the coordinator by TLS on 127.0.0.1. FILE is a list of
{instruction, input, output}; without it the notes are invented ones. It exits with 0 only if all rounds were made and
every hospital has the joint model.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

HOSPITALS = ("north", "south", "west")
KILLED = "south"
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "three-hospitals.yaml"
Rows = list[dict[str, str]]


def main() -> int:
    """What the last lines of the output say, as an exit code."""
    asked = _arguments()
    asked.folder.mkdir(parents=True)
    rows = _invented(asked.patients) if asked.file is None else _read(asked.file, asked.records)
    began = time.monotonic()
    for name, own in zip(HOSPITALS, _dealt(rows), strict=True):
        path = asked.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
        _reticent(asked, "site", "init", RECIPE, "--name", name, "-s", f"data.source.path={path.name}", *asked.set)
    _say(began, "three hospitals have their data and keys; their cards go to the coordinator")
    code = _rounds(asked, began)
    if code == 0:
        _guarantees(asked.folder)
    _say(began, "all rounds were made" if code == 0 else f"it failed; see the logs in {asked.folder}")
    return code


def _rounds(asked: argparse.Namespace, began: float) -> int:
    """The coordinator's exit code, or that of a hospital which failed."""
    cards = [f"--card=sites/{name}/federation/{name}.card.json" for name in HOSPITALS]
    invitation, log = asked.folder / "runs/three-hospitals/federation/invitation.json", asked.folder / "coordinator.log"
    with ExitStack() as running:

        def begin(name: str, *arguments: object) -> subprocess.Popen[bytes]:
            return running.enter_context(_process(asked, name, *arguments))

        def hospital(name: str) -> subprocess.Popen[bytes]:
            return begin(name, "site", "start", f"sites/{name}", invitation)

        coordinator = begin("coordinator", "federate", RECIPE, *cards, "--port", asked.port, "--wait", 300, *asked.set)
        _until(invitation.exists, coordinator)
        sites = {name: hospital(name) for name in HOSPITALS}
        _until(lambda: "\nround 1:" in log.read_text(encoding="utf-8"), coordinator)
        if coordinator.poll() is None:
            time.sleep(5)  # into the second round
            sites[KILLED].kill()
            sites[KILLED].wait()
            _say(began, f"{KILLED} was killed in the middle of a round, and is started again")
            sites[KILLED] = hospital(KILLED)
        code = coordinator.wait()
        _say(began, f"the coordinator has ended with {code}")
        return code or max(map(_ended, sites.values()))


@contextmanager
def _process(asked: argparse.Namespace, name: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """One of reticent's verbs in a process of its own, ended with this block. Its output is in NAME.log."""
    with (asked.folder / f"{name}.log").open("a") as log:
        process = subprocess.Popen(_command(arguments), cwd=asked.folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it ends what it has started
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _reticent(asked: argparse.Namespace, *arguments: object) -> None:
    subprocess.run(_command(arguments), cwd=asked.folder, check=True)


def _command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "reticent", *map(str, arguments)]


def _ended(site: subprocess.Popen[bytes]) -> int:
    """0 if the hospital has taken the joint model and ended well."""
    try:
        return int(site.wait(timeout=120) != 0)
    except subprocess.TimeoutExpired:
        return 1


def _until(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits for it, or for the end of ``process``."""
    while process.poll() is None and not happened():
        time.sleep(0.2)


def _guarantees(folder: Path) -> None:
    """Prints who is promised what, and where more is told."""
    run = folder / "runs/three-hospitals"
    told = json.loads((run / "report.json").read_text(encoding="utf-8"))
    print("\nhospital  patients and canaries  epsilon   delta  steps")
    for site in told["guarantee"]["sites"]:
        spent = f"{site['epsilon']:7.3f}  {site['delta']:6g}  {site['steps'] or '?':>5}"
        print(f"{site['site']:8}  {site['units']:21}  {spent}")
    for line in told["plots"]["rounds"]["private"]:
        lost = "".join(f"; without {name}: {why}" for name, why in line["left_out"].items())
        print(f"round {line['round']}: {line['answered']} of {line['asked']} hospitals, {line['seconds']:.0f} s{lost}")
    print(f"\nthe coordinator's report: {run / 'report.html'}")
    print(f"attack the joint model at a hospital: reticent run {folder / 'sites' / HOSPITALS[0]}\n")


def _invented(patients: int) -> Rows:
    from reticent.data.clinic import clinic

    return [
        {"prompt": record.prompt, "completion": record.completion, "owner": record.owner}
        for record in clinic(patients=patients, questions=4, seed=0)
        if record.origin == "clinic/note"
    ]


def _read(path: Path, most: int) -> Rows:
    rows = json.loads(path.read_text(encoding="utf-8"))
    kept = [row for row in rows if row["input"].strip() and row["output"].strip()][:most]
    return [
        {"prompt": row["input"], "completion": row["output"], "owner": f"row-{number}"}
        for number, row in enumerate(kept)
    ]


def _dealt(rows: Rows) -> list[Rows]:
    """Each owner's rows go to one hospital."""
    number = {owner: i for i, owner in enumerate(dict.fromkeys(row["owner"] for row in rows))}
    return [[row for row in rows if number[row["owner"]] % len(HOSPITALS) == i] for i in range(len(HOSPITALS))]


def _say(began: float, text: str) -> None:
    print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="a list of {instruction, input, output}")
    parser.add_argument("--folder", type=Path, default=Path("runs/three-hospitals"), help="a new folder to work in")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--patients", type=int, default=180, help="invented ones, in all")
    parser.add_argument("--records", type=int, default=360, help="rows of FILE, in all")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="as of reticent")
    asked = parser.parse_args()
    if asked.folder.exists():
        parser.error(f"{asked.folder} is there already; name another with --folder")
    if asked.file is not None and not asked.file.is_file():
        parser.error(f"{asked.file} is no file")
    asked.folder = asked.folder.resolve()
    asked.set = [part for value in asked.set for part in ("-s", value)]
    return asked


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # four processes share the machine
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the processes
    sys.exit(main())
