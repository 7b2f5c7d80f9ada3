"""The coordinator of a real federation: invites the sites, lets them in, and runs the rounds."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from reticent import asked
from reticent.errors import FederationError
from reticent.federation import keys
from reticent.progress import Progress
from reticent.run import ModelName, Run
from reticent.stages.prepare import prepare
from reticent.stages.site import model_of, require_flower

if TYPE_CHECKING:
    from reticent.federation.launch import Outcome
    from reticent.reports.report import Report


def invite(run: Run, cards: Sequence[Path], host: str, port: int, progress: Progress) -> Path:
    """Makes the roster and the certificate, once: the invitation, which every site is to be sent."""
    from reticent.federation.site import Host

    require_flower()
    if asked.federated(run.recipe) is None:
        raise FederationError(
            "the recipe has no federation section; say how sites train together, as federation: {rounds: 5}"
        )
    folder = run.federation_folder()
    roster = folder / "roster.json"
    if not roster.exists():
        if not cards:
            raise FederationError("name the cards of the sites, as --card a.card.json; each site makes its own")
        keys.write_roster(roster, [_text(card) for card in cards])
    elif cards and not all(_is_in(roster, card) for card in cards):
        raise FederationError(
            f"{run.folder} was begun with other cards; name another folder with --run, or leave the cards out"
        )
    sites = keys.read_roster(roster)
    asked.client_plan(run.recipe, model_of(run.recipe), len(sites))  # refuses promises that mean nothing
    if not (folder / "ca.crt").exists():
        keys.make_authority(folder)
        keys.make_certificate(folder, sorted({host, "localhost", "127.0.0.1"}))
    invitation = folder / "invitation.json"
    told = {
        "host": host,
        "port": port,
        "authority": (folder / "ca.crt").read_text(encoding="utf-8"),
        "sites": json.loads(roster.read_text(encoding="utf-8")),
    }
    if not invitation.exists():
        progress.say("loading the model")
        run.write_text(invitation, json.dumps({**told, "terms": Host(run.recipe).terms}, indent=1) + "\n")
    elif {**json.loads(invitation.read_text(encoding="utf-8")), **told} != json.loads(invitation.read_text("utf-8")):
        raise FederationError(f"{invitation} is for another address; name it again, or another folder with --run")
    return invitation


def federate(run: Run, host: str, port: int, bind: str, wait: float, progress: Progress) -> None:
    """Runs the rounds, with the sites that are there within ``wait`` seconds, and keeps what comes out.

    Raises:
        FederationError: the rounds did not come to their end; the message says why.
    """
    from reticent.federation import launch

    name, folder = model_of(run.recipe), run.federation_folder()
    certificate = keys.Certificate(folder / "server.crt", folder / "server.key", folder / "ca.crt")
    fewest = max(2, asked.fewest(run.recipe, len(keys.read_roster(folder / "roster.json"))))
    with _followed(run, progress):
        outcome = launch.federate(run.folder, certificate, bind, port, sites=fewest, deadline=wait)
    _finish(run, name, outcome)


def simulate(run: Run, progress: Progress) -> None:
    """Runs the rounds over the silos of the recipe in Flower's simulation: the same rounds, sites in other processes.

    Raises:
        FederationError: ray is missing, or the rounds did not come to their end.
    """
    require_flower()
    from reticent.federation import launch

    across = asked.federated(run.recipe)
    if across is None or across.secure_sum:
        raise FederationError(
            "Flower's simulation needs a federation without secure_sum, whose sites live through a round; say "
            "federation.secure_sum: false, or train in this process with: reticent run"
        )
    if run.recipe.data.silos is None:
        raise FederationError("a simulation needs records that are dealt to sites; say data.silos: {clients: 3}")
    if not run.finished("prepare"):
        prepare(run, progress)
    name = model_of(run.recipe)
    with _followed(run, progress), launch.Simulation(run.folder) as flower:
        outcome = flower.simulate(run.silos())
    _finish(run, name, outcome)


def _finish(run: Run, name: ModelName, outcome: "Outcome") -> None:
    if outcome.error is not None:
        raise FederationError(f"the rounds did not come to their end: {outcome.error}")
    facts = run.read_federation(name)
    done: dict[str, Any] = {"models": {name: {"rounds": len(facts["rounds"])}}}
    run.finish("train", done if facts["guarantee"] is None else {**done, "guarantee": facts["guarantee"]})


def report(run: Run) -> None:
    """Writes the coordinator's report: who is protected against whom, and what travelled. It measures nothing."""
    from reticent.reports.render import render
    from reticent.stages.report import coordinated

    values = coordinated(run)
    run.write_report(render(cast("Report", values)), values)


@contextmanager
def _followed(run: Run, progress: Progress) -> Iterator[None]:
    """Tells each round as it comes into the log, which another process writes."""
    path, stop = run.rounds_log_path(model_of(run.recipe)), threading.Event()

    def lines() -> list[str]:
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    told = len(lines())

    def tell() -> None:
        nonlocal told
        for line in lines()[told:]:
            found = json.loads(line)
            told += 1
            progress.say(
                f"round {found['round']}: {found['answered']} of {found['asked']} sites, {found['seconds']:.0f} s, "
                f"{(found['up'] + found['down']) / 2**20:.1f} MiB"
            )
            for site, why in found["left_out"].items():
                progress.say(f"round {found['round']}: {site} is left out: {why}")

    def follow() -> None:
        while not stop.wait(1.0):
            tell()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()
        tell()


def _is_in(roster: Path, card: Path) -> bool:
    try:
        return json.loads(_text(card)) in json.loads(_text(roster))
    except ValueError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FederationError(f"cannot read the card {path}: {type(error).__name__}") from None
