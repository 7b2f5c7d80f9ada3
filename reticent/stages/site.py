"""A site of a real federation: its keys, its data, and its warm process."""

import hashlib
import json
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reticent import asked
from reticent import recipe as recipes
from reticent.data import canary
from reticent.errors import FederationError, RunError
from reticent.federation import keys, owners
from reticent.progress import Progress
from reticent.recipe import Recipe
from reticent.run import Run
from reticent.stages.prepare import prepare

if TYPE_CHECKING:
    from reticent.federation.launch import SuperNode
    from reticent.federation.site import Site


def own_recipe(path: Path, name: str, sets: Sequence[str]) -> Recipe:
    """The shared recipe as this site follows it: its own seed of the data, so that no two sites plant the same secrets.

    Raises:
        RecipeError: a setting is unknown, missing or out of its bounds.
    """
    shared = recipes.load(path, [*sets, "data.silos=null", "audit.twin=false"])
    if any(one.startswith("data.seed=") for one in sets):
        return shared
    seed = int.from_bytes(hashlib.sha256(f"{shared.data.seed}:{name}".encode()).digest()[:4])
    return shared.model_copy(update={"data": shared.data.model_copy(update={"seed": seed})})


def init(run: Run, name: str, progress: Progress) -> Path:
    """Prepares the site's data and makes its keys: the card, which the coordinator is to be sent."""
    if asked.federated(run.recipe) is None:
        raise RunError("the recipe has no federation section; say how sites train together, as federation: {rounds: 5}")
    keys.check_name(name)
    if not run.finished("prepare"):
        prepare(run, progress)
    folder = run.federation_folder()
    if not (folder / "identity-key").exists():
        keys.make_site_keys(folder)
    about = {"name": name, "data": _digest(run)}
    stored = folder / "site.json"
    if stored.exists() and json.loads(stored.read_text()) != about:
        raise FederationError(
            f"{run.folder} is the site {json.loads(stored.read_text())['name']!r} on other data; name another folder "
            "with --run"
        )
    run.write_text(stored, json.dumps(about))
    card = folder / f"{name}.card.json"
    run.write_text(card, keys.card(name, folder) + "\n")
    return card


def promise(run: Run) -> list[tuple[str, str]]:
    """What the site would promise: (label, value) rows."""
    from reticent.stages.check import promised

    units = run.read_manifest()["units"]["train"]
    plan = asked.site_plans(run.recipe, model_of(run.recipe), {name_of(run): units})[name_of(run)]
    return [("units", f"{units} {run.recipe.privacy.unit}s to train on"), *promised(plan)]


def model_of(recipe: Recipe) -> Any:
    """The model that a real federation trains: there is no twin beside a private one."""
    return asked.trained_models(recipe)[-1]


def name_of(run: Run) -> str:
    """The site's name.

    Raises:
        RunError: the folder is no site.
    """
    stored = run.federation_folder() / "site.json"
    if not stored.exists():
        raise RunError(f"{run.folder} is no site; make it one with: reticent site init RECIPE --name NAME")
    return str(json.loads(stored.read_text())["name"])


def require_flower() -> None:
    """Refuses to begin without the package that carries the messages.

    Raises:
        FederationError: it is not installed.
    """
    if any(find_spec(name) is None for name in ("flwr", "psutil")):
        raise FederationError("a federation between machines needs Flower: pip install 'reticent[federation]'")


def start(run: Run, invitation: Path, progress: Progress) -> None:
    """Answers the coordinator until the rounds are over; then the model is in the site's run folder."""
    require_flower()
    from reticent.federation import launch
    from reticent.federation.site import Host, Identity, Site
    from reticent.federation.terms import differing

    name, model = name_of(run), model_of(run.recipe)
    told = _pinned(run, name, invitation)
    progress.say("loading the model")
    host = Host(run.recipe, progress)
    if wrong := differing(told["terms"], host.terms):
        raise FederationError(
            f"site {name} cannot take part: it differs from the coordinator in {'; '.join(wrong)}. Give all sites the "
            "same recipe, model and versions."
        )
    folder, stop = run.federation_folder(), threading.Event()
    roster = keys.read_roster(folder / "roster.json")
    known = json.loads((folder / "site.json").read_text())["data"]
    identity = Identity(
        keys.read_identity(folder / "identity-key"), {one: member.identity for one, member in roster.items()}
    )

    def finished(weights: dict[str, Any], base: dict[str, Any]) -> None:
        _keep(run, site, host.finished(weights, base))
        stop.set()

    site = Site(
        name,
        host,
        model,
        asked.units_of(run),
        run.site_folder(model, name),
        identity=identity,
        unchanged=lambda: _digest(run) == known,
        finished=finished,
    )
    authority = folder / "authority.crt"
    run.write_text(authority, told["authority"])
    address, port = told["host"], int(told["port"])

    def node(socket: Path) -> "SuperNode":
        return launch.SuperNode(run.folder, folder / "node-key", authority, address, port, socket)

    progress.say(f"site {name} answers {address}:{port}; leave it running until the rounds are over")
    launch.run_site(site.answer, node, stop, progress.say, linger=15.0)


def _pinned(run: Run, name: str, invitation: Path) -> dict[str, Any]:
    """The invitation, which must stay the same: it says whose word counts."""
    try:
        text = invitation.read_text(encoding="utf-8")
        told: dict[str, Any] = json.loads(text)
        sites = {site["name"]: site for site in told["sites"]}
        _ = told["host"], int(told["port"]), told["authority"], told["terms"]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError):
        raise FederationError(f"{invitation} is no invitation; ask the coordinator for its invitation.json") from None
    folder = run.federation_folder()
    if sites.get(name) != json.loads(keys.card(name, folder)):
        raise FederationError(
            f"the invitation {invitation} is not for the keys of site {name}; send the coordinator {name}.card.json"
        )
    pinned = folder / "invitation.json"
    if pinned.exists() and pinned.read_text(encoding="utf-8") != text:
        raise FederationError(
            f"site {name} has joined another federation, or its roster was changed; ask the coordinator, then begin a "
            "new site folder"
        )
    run.write_text(pinned, text)
    run.write_text(folder / "roster.json", json.dumps(told["sites"]))
    return told


def _keep(run: Run, site: "Site", model: Any) -> None:
    """Stores the joint model with what this site promised, so that it can be audited here."""
    from reticent.models import adapter
    from reticent.models.load import load_tokenizer
    from reticent.training import loop

    name = model_of(run.recipe)
    guarantee = site.guarantee()
    run.write_federation(name, {"guarantee": guarantee, "sites": {}, "rounds": [], "bytes_full": 0})
    log = run.site_folder(name, site.name) / "log.jsonl"
    run.write_text(run.log_path(name), log.read_text(encoding="utf-8") if log.exists() else "")
    with run.replacing(run.model_folder(name)) as folder:
        adapter.save(model, folder, base=asked.public_name(run.recipe.model.base))
        load_tokenizer(run.recipe.model.base).save_pretrained(folder)
    steps = loop.read_log(run.log_path(name))
    facts: dict[str, Any] = {"models": {name: {"steps": len(steps)}}}
    run.finish("train", facts if guarantee is None else {**facts, "guarantee": guarantee})


def shared_owners(run: Run, secret: Path) -> list[str]:
    """Keyed hashes of the owners that the site trains on."""
    try:
        key = secret.read_bytes()
    except OSError as error:
        raise FederationError(f"cannot read the secret {secret}: {error.strerror}") from None
    invented = {one.id for one in canary.from_json(run.read_canaries())}
    return owners.hashes((unit for unit, _, _ in run.read_tokens() if unit not in invented), key)


def overlap(files: Sequence[Path]) -> dict[tuple[str, str], int]:
    """How many owners each two sites share; ``files``: what `shared_owners` gave, a hash a line."""
    sites = {}
    for path in files:
        try:
            sites[path.stem] = set(path.read_text(encoding="ascii").split())
        except (OSError, UnicodeDecodeError) as error:
            raise FederationError(f"cannot read the hashes {path}: {type(error).__name__}") from None
    return owners.shared(sites)


def _digest(run: Run) -> str:
    """SHA-256 of the files that are trained on."""
    whole = hashlib.sha256()
    for path in run.token_files():
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
