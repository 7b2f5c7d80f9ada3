"""A federation in one process: every silo of the run is a site, and all share one base model."""

import json
from collections import defaultdict
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from reticent import asked
from reticent import recipe as recipes
from reticent.federation.channel import Direct
from reticent.federation.guarantee import guarantee
from reticent.federation.server import Coordinator, Files, Joint
from reticent.federation.site import Host, Identity, Site
from reticent.privacy.ledger import Ledger
from reticent.progress import Progress
from reticent.run import ModelName, Run
from reticent.training import loop


class Trained(NamedTuple):
    """A federated model; ``facts`` as `Run.write_federation` takes them."""

    model: Any
    facts: dict[str, Any]


def train(run: Run, name: ModelName, progress: Progress) -> Trained:
    """Trains one model over the silos of the run."""
    host = Host(run.recipe, progress)
    units = asked.units_by_site(run)
    keys = {site: Ed25519PrivateKey.generate() for site in units}
    roster = {site: key.public_key().public_bytes_raw() for site, key in keys.items()}
    sites = {
        site: Site(site, host, name, own, run.site_folder(name, site), identity=Identity(keys[site], roster))
        for site, own in units.items()
    }
    coordinator = Coordinator(
        run.recipe,
        name,
        Direct({site: one.answer for site, one in sites.items()}),
        list(sites),
        files(run, name),
        host.start(roster),
        run=recipes.digest(run.recipe)[:16],
        progress=progress,
    )
    joint = coordinator.train()
    write_log(run, name, list(sites))
    return Trained(host.finished(joint.weights, joint.base), facts(run, name, joint, host))


def files(run: Run, name: ModelName) -> Files:
    """Where the coordinator's state is."""
    return Files(run.rounds_folder(name), run.rounds_log_path(name), run.ledger_path(name))


def facts(run: Run, name: ModelName, joint: Joint, host: Host) -> dict[str, Any]:
    """What sites and coordinator promise together, what the rounds were, and what the whole model would weigh."""
    path = run.ledger_path(name)
    clients = Ledger.open(path).guarantee().to_dict() if path.exists() else None
    return {
        "guarantee": guarantee(run.recipe, joint.sites, clients) if name == "private" else None,
        "sites": joint.sites,
        "rounds": [json.loads(line) for line in run.rounds_log_path(name).read_text(encoding="utf-8").splitlines()],
        "bytes_full": 4 * sum(parameter.numel() for parameter in host.model.parameters()),
    }


def write_log(run: Run, name: ModelName, sites: list[str]) -> None:
    """One log of the training: at each local step, the mean over the sites that made it and the worst epsilon."""
    steps: defaultdict[int, list[loop.Step]] = defaultdict(list)
    for site in sites:
        path = run.site_folder(name, site) / "log.jsonl"
        for line in loop.read_log(path) if path.exists() else []:
            steps[line.step].append(line)
    run.log_path(name).write_text(
        "".join(json.dumps(_joint(lines)._asdict()) + "\n" for _, lines in sorted(steps.items()))
    )


def _joint(lines: list[loop.Step]) -> loop.Step:
    records = sum(line.records for line in lines)
    told = [(line.loss, line.records) for line in lines if line.loss is not None]
    loss = sum(loss * count for loss, count in told) / sum(count for _, count in told) if told else None
    spent = [line.epsilon for line in lines if line.epsilon is not None]
    return lines[0]._replace(
        loss=loss,
        records=records,
        dropped=sum(line.dropped for line in lines),
        epsilon=max(spent) if spent else None,
        seconds=sum(line.seconds for line in lines),
    )
