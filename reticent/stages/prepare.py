"""Read the text, give every record its owner, split by owner, plant canaries."""

from collections import Counter
from pathlib import Path
from typing import Any

from reticent.data import canary, sources
from reticent.data.record import Record
from reticent.data.split import Units, assign_units, split
from reticent.errors import DataError, RecipeError
from reticent.progress import Progress
from reticent.recipe import Recipe, Source
from reticent.run import Run
from reticent.stages.inputs import encode_all, plan_for, trained_models


def read(recipe: Recipe) -> list[Record]:
    """The records of the recipe's source."""
    data = recipe.data
    if not isinstance(data.source, Source):
        from reticent.data.clinic import clinic

        return clinic(patients=data.patients, questions=data.questions, seed=data.seed)
    source = data.source
    fields = sources.Fields(
        prompt=source.prompt, completion=source.completion, text=source.text, owner=source.owner, id=source.id
    )
    if source.path is not None:
        return sources.read_file(Path(source.path), fields, limit=source.limit)
    assert source.hub is not None
    return sources.read_hub(source.hub, fields, split=source.split, limit=source.limit)


def units_of(recipe: Recipe, records: list[Record]) -> Units:
    """The unit of privacy of each record."""
    return assign_units(records, unit=recipe.privacy.unit, near_duplicates=recipe.data.near_duplicates)


def canaries_of(recipe: Recipe) -> list[canary.Canary]:
    """The recipe's canaries, planted or held out.

    Raises:
        RecipeError: Too few candidates for the membership test.
    """
    asked = recipe.data.canaries
    if asked is None:
        return []
    made = canary.make(
        pairs=asked.pairs,
        copies=asked.copies,
        candidates=asked.candidates,
        digits=asked.digits,
        seed=recipe.data.seed,
    )
    coins = [one.planted for one in made if one.family == "member"]
    if recipe.audit.membership and coins and min(sum(coins), len(coins) - sum(coins)) < 2:
        raise RecipeError(
            f"data.canaries.candidates = {len(coins)} gave {sum(coins)} planted and {len(coins) - sum(coins)} held-out "
            "records; membership needs 2 of each. Raise it, or set audit.membership: false."
        )
    return made


def prepare(run: Run, progress: Progress) -> None:
    """Writes the training and held-out records, the canaries and a manifest of counts and digests."""
    from reticent.models.load import load_tokenizer

    recipe = run.recipe
    with progress.task("preparing", total=4) as task:
        records = read(recipe)
        task.advance(1, note=f"{len(records)} records")
        units = units_of(recipe, records)
        parts = split(records, units.unit, held_out=recipe.data.held_out, seed=recipe.data.seed)
        task.advance(1, note=f"{len(set(units.unit))} units")
        canaries = canaries_of(recipe)
        train = [(records[i], units.unit[i]) for i in parts.train] + canary.planted_records(canaries)
        held_out = [(records[i], units.unit[i]) for i in parts.held_out]
        encoded = encode_all(recipe, [record for record, _ in train], load_tokenizer(recipe.model.base))
        if not encoded.tokens:
            raise DataError(
                f"none of the {len(train)} training records has a token to learn within data.max_tokens = "
                f"{recipe.data.max_tokens}. Raise it, or set data.long_records to split."
            )
        for name in trained_models(recipe):  # A promise that cannot be kept is refused before anything is trained.
            plan_for(recipe, name, len({train[i][1] for i in encoded.record}))
        task.advance(1, note=f"{sum(map(len, encoded.tokens))} tokens")
        manifest: dict[str, Any] = {
            "records": {"train": len(train), "held_out": len(held_out)},
            "units": {"train": len({unit for _, unit in train}), "held_out": len({unit for _, unit in held_out})},
            "origins": dict(Counter(record.origin for record, _ in train)),
            "tokens": sum(map(len, encoded.tokens)),
            "cut": encoded.cut,
            "split": encoded.split,
            "dropped": encoded.dropped,
            "exact_duplicates": units.exact_duplicates,
            "near_duplicates": units.near_duplicates,
            "canaries": {
                "secrets_planted": sum(c.planted for c in canaries if c.family == "secret"),
                "secrets_held_out": sum(not c.planted for c in canaries if c.family == "secret"),
                "members_planted": sum(c.planted for c in canaries if c.family == "member"),
                "members_held_out": sum(not c.planted for c in canaries if c.family == "member"),
                "commitment": canary.commitment(canaries),
            },
            "sha256": {
                "train": run.write_records("train", [r for r, _ in train], [u for _, u in train]),
                "held_out": run.write_records("held_out", [r for r, _ in held_out], [u for _, u in held_out]),
            },
        }
        run.write_canaries(canary.to_json(canaries))
        run.write_manifest(manifest)
        task.advance(1, note=f"{manifest['units']['train']} units to train on")
    run.finish("prepare", {"units": manifest["units"]["train"]})
