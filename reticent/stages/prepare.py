"""Read the text, scrub it, give every record its owner, split by owner, plant canaries."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from reticent.asked import check_sites, client_plan, federated, only_site, plan_for, site_plans, trained_models
from reticent.data import canary, store
from reticent.data.corpus import uniform
from reticent.data.encode import Encoder
from reticent.data.split import PARTS
from reticent.errors import DataError
from reticent.progress import Progress, Task
from reticent.recipe import Recipe
from reticent.run import Run
from reticent.stages.canaries import canaries_of, material
from reticent.stages.check import public_files
from reticent.stages.inputs import encoder
from reticent.stages.reading import Read, read
from reticent.stages.scrubbing import Scrubbing
from reticent.stages.silos import Dealt, deal, sizes

if TYPE_CHECKING:
    import pyarrow as pa


def prepare(run: Run, progress: Progress) -> None:
    """Writes the records of each part, the training tokens, the canaries and a manifest of counts and digests."""
    from reticent.models.load import load_tokenizer

    recipe = run.recipe
    public_files(recipe)  # What is wrong with them is told now, not after the training.
    tokenizer = load_tokenizer(recipe.model.base)
    encode = encoder(recipe, tokenizer)
    scrubbing = Scrubbing(recipe, run.span_cache(), run.scrub_map_path, progress)
    with run.temporary() as folder:
        found = read(recipe, passed=scrubbing, encode=encode, folder=folder, progress=progress)
    canaries = canaries_of(recipe, material(recipe, tokenizer))
    planted = _Planted(canaries, encode)
    learned = found.units.first[(found.split.part == PARTS.index("train")) & (found.corpus.pieces > 0)]
    units = len(np.unique(learned)) + len(set(planted.learned))
    if not units:
        raise DataError(
            f"none of the training records has a token to learn within data.max_tokens = {recipe.data.max_tokens}. "
            "Raise it, or set data.long_records to split."
        )
    dealt = deal(recipe, found, canaries)
    for name in trained_models(recipe):  # A promise that cannot be kept is refused before anything is trained.
        by_site = None if dealt is None else sizes(dealt, planted.units)
        if federated(recipe) is None or by_site is None:
            plan_for(recipe, name, units if by_site is None else only_site(recipe, by_site) or units)
            continue
        site_plans(recipe, name, by_site)
        check_sites(recipe, client_plan(recipe, name, len(by_site)), list(by_site))
    times = _times(recipe, found)
    with progress.task("writing", total=len(found.corpus)) as task:
        written = _write(run, found, planted, dealt, times, task)
    run.write_measurements("prepare", scrubbing.measured())
    run.write_plots("prepare", {} if dealt is None else {"silos": dealt.summary.manifest()})
    run.write_canaries(canary.to_json(canaries))
    manifest = _manifest(found, canaries, planted, dealt, written) | scrubbing.manifest()
    if recipe.data.duplicate is not None:
        manifest["duplicate"] = {
            "records": int((times > 1).sum()),
            "copies": recipe.data.duplicate.copies,
            "seed": recipe.data.seed,
        }
    run.write_manifest(manifest)
    # The attacks are fixed before anything is trained: a later change is told.
    run.finish("prepare", {"units": manifest["units"]["train"], "audit": recipe.audit.model_dump(mode="json")})


class _Planted:
    """The planted canaries as records and tokens."""

    def __init__(self, canaries: Sequence[canary.Canary], encode: Encoder) -> None:
        planted = canary.planted_records(canaries)
        self.records = [record for record, _ in planted]
        self.units = [unit for _, unit in planted]
        self.encoded = encode([(record.prompt, record.completion) for record in self.records])
        self.learned = np.repeat(self.units, self.encoded.pieces).tolist()


def _times(recipe: Recipe, found: Read) -> np.ndarray:
    """How often each record is trained on. Whether one is repeated follows from its own text alone."""
    corpus, asked = found.corpus, recipe.data.duplicate
    times = np.ones(len(corpus), dtype=np.int64)
    if asked is not None:
        for record in np.flatnonzero(found.split.part == PARTS.index("train")).tolist():
            if uniform(f"copies:{recipe.data.seed}:{corpus.text[record]}") < asked.share:
                times[record] = asked.copies
    return times


def _write(
    run: Run, found: Read, planted: _Planted, dealt: Dealt | None, times: np.ndarray, task: Task
) -> dict[str, store.Folder]:
    """All parts and the training tokens; copies stand beside each other, and canaries come last."""
    corpus, first, part = found.corpus, found.units.first, found.split.part
    name = "owner" if run.recipe.privacy.unit == "owner" else "id"
    client = None if dealt is None else dealt.client

    def labelled(rows: np.ndarray, table: "pa.Table", kept: np.ndarray) -> "pa.Table":
        taken = np.repeat(np.flatnonzero(kept), times[rows[kept]])
        rows = rows[taken]
        return _labelled(table.take(taken), corpus.take(first[rows], name), None if client is None else client[rows])

    with ExitStack() as stack:
        folders = {one: stack.enter_context(run.writing(one)) for one in (*PARTS, "tokens")}
        for start, table in corpus.tables():
            rows = np.arange(start, start + table.num_rows)
            for number, one in enumerate(PARTS):
                folders[one].append(labelled(rows, table, part[rows] == number))
            task.advance(table.num_rows)
        for rows, table in corpus.token_tables():
            folders["tokens"].append(labelled(rows, table, part[rows] == PARTS.index("train")))
        placed = None if dealt is None else dealt.planted
        folders["train"].append(_labelled(store.to_table(planted.records), planted.units, placed))
        placed = None if placed is None else np.repeat(placed, planted.encoded.pieces)
        folders["tokens"].append(_labelled(store.tokens_to_table(planted.encoded.tokens), planted.learned, placed))
    return folders


def _labelled(table: "pa.Table", units: list[str], client: np.ndarray | None) -> "pa.Table":
    import pyarrow as pa

    clients = pa.nulls(len(table), pa.int32()) if client is None else pa.array(client, pa.int32())
    return table.append_column("unit", pa.array(units, pa.string())).append_column("client", clients)


def _manifest(
    found: Read,
    canaries: Sequence[canary.Canary],
    planted: _Planted,
    dealt: Dealt | None,
    written: dict[str, store.Folder],
) -> dict[str, Any]:
    corpus, part = found.corpus, found.split.part
    origins = Counter(record.origin for record in planted.records)
    for code, count in zip(*np.unique(corpus.origin[part == PARTS.index("train")], return_counts=True), strict=True):
        origins[corpus.origins[code]] += int(count)
    counts = found.counts + Counter(
        cut=planted.encoded.cut, split=planted.encoded.split, dropped=planted.encoded.dropped
    )
    secrets = [one for one in canaries if one.role == "secret"]
    members = [one for one in canaries if one.role == "member"]
    units = {one: found.unit_count(one) + (one == "train") * len(set(planted.units)) for one in PARTS}
    return {
        "records": {one: written[one].rows for one in PARTS},
        "units": units,
        "origins": dict(origins),
        "tokens": written["tokens"].size,
        **{name: counts[name] for name in ("cut", "split", "dropped")},
        "exact_duplicates": found.units.exact_duplicates,
        "near_duplicates": found.units.near_duplicates,
        "canaries": {
            "secrets_planted": sum(one.planted for one in secrets),
            "secrets_held_out": sum(not one.planted for one in secrets),
            "members_planted": sum(one.planted for one in members),
            "members_held_out": sum(not one.planted for one in members),
            "members_per_unit": round(canary.member_share(canaries, units["train"]), 4),
            "families": canary.counts(canaries),
            "commitment": canary.commitment(canaries),
            "commitments": canary.commitments(canaries),
        },
        **({} if dealt is None else {"silos": dealt.summary.manifest()}),
        "sha256": {one: written[one].sha256 for one in (*PARTS, "tokens")},
    }
