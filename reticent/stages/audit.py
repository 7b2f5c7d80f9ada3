"""Attack the base model, the twin and the private model, as an adversary would, and test the promise."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reticent.asked import units_of
from reticent.data import canary
from reticent.data.canary import Canary
from reticent.errors import DataError, ModelError
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Private, Recipe
from reticent.run import RecordPart, Run
from reticent.stages.attacking import Audited, Findings, Scored, Texts
from reticent.stages.inputs import AnyModel, all_models, open_model
from reticent.stages.membership import allowed

if TYPE_CHECKING:
    import pyarrow as pa

    from reticent.models.language_model import CausalModel

RECORDS_OF_UNIT = 16  # at most, so that no owner's texts outweigh the others'

_Attack = Callable[[Audited, AnyModel, "CausalModel", Any], tuple[Any, Findings]]
"""An attack on one model; the last argument is what it returned first for the base model, which comes first."""


def audit(run: Run, progress: Progress) -> None:
    """Writes what each attack measured on each model."""
    about = audited(run, progress)
    measurements: list[Measurement] = []
    plots: dict[str, Any] = {"unanswered": _impossible(about)}
    scored: list[tuple[str, Scored]] = []
    private: dict[str, list[Any]] = {}

    def keep(found: Findings, name: str = "") -> None:
        measurements.extend(found.measurements)
        _join(plots, found.plots)
        scored.extend((name, one) for one in found.scored)
        if found.private:
            private.setdefault(name, []).extend(found.private)

    for told, once in _once(about).items():
        with progress.task(told, total=1) as task:
            keep(once(about))
            task.advance()
    attacks = _attacks(about)
    base: dict[str, Any] = {}
    for name in all_models(run.recipe):
        model = open_model(run, name)
        with progress.task(f"attacks on the {name} model", total=len(attacks)) as task:
            for told, attack in attacks.items():
                state, found = attack(about, name, model, base.get(told))
                base.setdefault(told, state)
                keep(found, name)
                task.advance(note=told)
        del model  # before the next one is loaded
    run.write_measurements("audit", measurements)
    run.write_plots("audit", plots)
    run.write_scores(_table(scored))
    if private:
        progress.say(f"addresses that the models wrote, with what they stand in: {run.write_said(private)}")
    run.finish("audit", {"secrets": len(about.secrets), "members": len(about.members)})


def _impossible(about: Audited) -> list[dict[str, str]]:
    """What cannot be answered with these data, and why."""
    asked = about.recipe.audit
    found = []
    if (asked.exposure or asked.extraction is not None) and not about.secrets:
        why = "fewer than two secrets were planted, or held out; raise data.canaries.pairs"
        found += [{"question": name, "why": why} for name in ("exposure_bits", "identifiers_recited")]
    if asked.membership and not about.members:
        why = "fewer than two invented records were planted, or held out; raise data.canaries.candidates"
        found += [{"question": name, "why": why} for name in ("membership_auc", "epsilon_lower_bound")]
    return found


def _table(scored: list[tuple[str, Scored]]) -> "pa.Table":
    """A row for each model, attack and unit."""
    import pyarrow as pa

    columns = {
        "model": [name for name, one in scored for _ in one.ids],
        "attack": [one.attack for _, one in scored for _ in one.ids],
        "unit": [unit for _, one in scored for unit in one.ids],
        "group": [group for _, one in scored for group in one.groups],
        "copies": [copies for _, one in scored for copies in one.copies],
        "score": [float(score) for _, one in scored for score in one.scores],
    }
    return pa.table(columns)


def refuse(run: Run, recipe: Recipe) -> None:
    """Refuses what the data of ``run`` cannot answer, before anything that is there is redone for ``recipe``.

    Raises:
        AuditError: a share of false alarms was asked for that so few held-out units cannot show.
    """
    if recipe.audit.membership and recipe.data == run.recipe.data and run.finished("prepare"):
        outsiders = len(set(run.read_units("held_out")))
        allowed(recipe.audit.false_alarms, min(outsiders, recipe.audit.records))


def _join(plots: dict[str, Any], more: dict[str, Any]) -> None:
    """Adds plots by model to those of other models, and lists to lists."""
    for name, values in more.items():
        if isinstance(values, list):
            plots.setdefault(name, []).extend(values)
        elif isinstance(values, dict):
            plots.setdefault(name, {}).update(values)
        else:
            plots[name] = values


def _once(about: Audited) -> dict[str, Callable[[Audited], Findings]]:
    """What is done once, not for each model."""
    from reticent.stages import doctor, membership, server_view

    asked = about.recipe.audit
    wanted: dict[str, tuple[bool, Callable[[Audited], Findings]]] = {
        "checks of the training": (asked.selfcheck and isinstance(about.recipe.privacy, Private), doctor.checks),
        "a look without a model": (asked.membership, membership.gate),
        "what a coordinator reads": (asked.server_view, server_view.server_view),
    }
    return {told: function for told, (here, function) in wanted.items() if here}


def _attacks(about: Audited) -> dict[str, _Attack]:
    from reticent.stages import identifiers, membership, recitation, secrets, shadows

    asked = about.recipe.audit
    wanted: dict[str, tuple[bool, _Attack]] = {
        "exposure": (asked.exposure and bool(about.secrets), secrets.exposure),
        "membership of canaries": (asked.membership and bool(about.members), membership.canaries),
        "membership of records": (asked.membership, membership.records),
        "further trainings": (asked.shadows is not None, shadows.shadowed),
        "recitation": (asked.extraction is not None, recitation.recitation),
        "identifiers": (asked.identifiers is not None, identifiers.identifiers),
    }
    return {told: function for told, (here, function) in wanted.items() if here}


def audited(run: Run, progress: Progress) -> Audited:
    """What the attacks are given.

    Raises:
        DataError: the canaries are not those that were committed to before training.
        AuditError: a share of false alarms was asked for that so few held-out units cannot show.
        ModelError: a trained model has another tokenizer than the base model.
    """
    from reticent.models.load import load_tokenizer

    recipe = run.recipe
    canaries = _committed(run)
    tokenizer = load_tokenizer(recipe.model.base)
    _same_tokenizer(run, tokenizer)
    here = None
    if recipe.federation is not None and recipe.federation.only is not None:
        here = {unit.id: len(unit.records) for unit in units_of(run)}
        canaries = [replace(one, copies=here.get(one.id, 0), planted=one.id in here) for one in canaries]
    planted = {one.id for one in canaries}

    def sample(part: RecordPart, stream: int) -> Texts:
        return _sample(
            run,
            part,
            planted,
            here if part == "train" else None,
            np.random.default_rng([recipe.data.seed, 60, 10 + stream]),
        )

    held_out = sample("held_out", 1)
    if recipe.audit.membership:
        allowed(recipe.audit.false_alarms, len(set(held_out.units)))
    return Audited(
        run=run,
        tokenizer=tokenizer,
        secrets=_both([one for one in canaries if one.role == "secret"]),
        members=_both([one for one in canaries if one.role == "member"]),
        trained=sample("train", 0),
        held_out=held_out,
        calibration=sample("calibration", 2),
        progress=progress,
    )


def _committed(run: Run) -> list[Canary]:
    """The canaries, if they are those whose digest was written before training."""
    path = "data/canaries.json"
    try:
        canaries = canary.from_json(run.read_canaries())
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{run.folder / path} is damaged; the audit of this run cannot be made") from None
    expected, found = run.read_manifest()["canaries"]["commitment"], canary.commitment(canaries)
    if found != expected:
        raise DataError(
            f"{run.folder / path} was changed after it was committed to: its digest is {found[:12]}, that in "
            f"data/manifest.json {expected[:12]}. An audit with other canaries proves nothing; put the file back"
        )
    return canaries


def _same_tokenizer(run: Run, tokenizer: Any) -> None:
    """Refuses to compare models whose tokens differ."""
    from reticent.models.load import load_tokenizer

    for name in all_models(run.recipe):
        if name == "base":
            continue
        own = load_tokenizer(str(run.model_folder(name)))
        if own.get_vocab() != tokenizer.get_vocab() or own.all_special_ids != tokenizer.all_special_ids:
            raise ModelError(
                f"the {name} model's tokenizer ({len(own):,} tokens, in {run.model_folder(name)}) is not that of the "
                f"base model {run.recipe.model.base} ({len(tokenizer):,} tokens); their log-probabilities cannot be "
                "compared. Put the base model's tokenizer there"
            )


def _sample(
    run: Run, part: RecordPart, canaries: set[str], here: "dict[str, int] | None", rng: np.random.Generator
) -> Texts:
    """Records of units drawn at random; at most `RECORDS_OF_UNIT` of each."""
    units = run.read_units(part)
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        if unit not in canaries and (here is None or unit in here):
            rows.setdefault(unit, []).append(row)
    names = list(rows)
    drawn = rng.permutation(len(names))[: run.recipe.audit.records]
    keep = {row for i in drawn for row in rows[names[i]][:RECORDS_OF_UNIT]}
    found = run.read_records(part, keep) if keep else []
    return Texts([record for record, _ in found], [unit for _, unit in found])


def _both(canaries: Sequence[Canary]) -> list[Canary]:
    """``canaries``, or none where fewer than two were trained on, or were not: there is nothing to compare."""
    planted = sum(one.planted for one in canaries)
    return list(canaries) if min(planted, len(canaries) - planted) >= 2 else []
