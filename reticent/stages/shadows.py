"""More trainings, each on a random half of the units, that show what one text's presence changes."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reticent.asked import base_model, plan_for, public_name, units_of
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.run import ModelName, Run
from reticent.stages import membership
from reticent.stages.attacking import Audited, Findings
from reticent.stages.inputs import AnyModel
from reticent.stages.train import Job, fit

if TYPE_CHECKING:
    from reticent.attacks.cache import Cache
    from reticent.models.language_model import CausalModel


class Shadow(NamedTuple):
    """One more training, by the name of its model in the run, and the units that were trained on."""

    name: str
    units: frozenset[str]


def shadows(run: Run, progress: Progress) -> list[Shadow]:
    """Those that the recipe asks for; trained if they are not there yet.

    A coin for each unit, planted canaries among them, decides on its place in each training. Private ones have ledgers
    of their own, and nobody should be given them: together they promise less than one.
    """
    recipe = run.recipe
    asked = recipe.audit.shadows
    if asked is None:
        return []
    units = units_of(run)
    kind: ModelName = "private" if asked.private else "twin"
    found = []
    with progress.task("shadow trainings", total=asked.count) as task:
        for number in range(asked.count):
            coins = np.random.default_rng([recipe.data.seed, 61, number]).random(len(units)) < 0.5
            own = [unit for unit, coin in zip(units, coins, strict=True) if coin]
            shadow = Shadow(f"shadows/{kind}-{number + 1}", frozenset(unit.id for unit in own))
            if not run.model_folder(shadow.name).exists():
                _train(run, shadow, Job(recipe, own, plan_for(recipe, kind, len(own))), progress)
            found.append(shadow)
            task.advance()
    return found


def _train(run: Run, shadow: Shadow, job: Job, progress: Progress) -> None:
    from reticent.models import adapter
    from reticent.training import loop
    from reticent.training.distributed import ALONE

    loaded = base_model(run.recipe)
    name = shadow.name
    files = loop.Files(run.ledger_path(name), run.log_path(name), run.checkpoint_folder(name))
    model = fit(job, loaded.model, files, progress, ALONE)
    with run.replacing(run.model_folder(name)) as folder:
        adapter.save(model, folder, base=public_name(run.recipe.model.base))


def shadowed(about: Audited, name: AnyModel, model: "CausalModel", base: None) -> tuple[None, Findings]:
    """What the further trainings say on the model that they are like; nothing on the others."""
    asked = about.recipe.audit.shadows
    assert asked is not None
    if name != ("private" if asked.private else "twin"):
        return None, Findings([], {})
    found = shadows(about.run, about.progress)
    pieces = membership.real_pieces(about)
    likely = [_likely(about, shadow, pieces) for shadow in found]
    units = membership.units_of_group(pieces, "in")
    trained = np.array([[unit in shadow.units for unit in units] for shadow in found])
    measurements = _counterfactual(about, name, np.stack([one["in"] for one in likely]), trained)
    gate = membership.found_gate(about)
    if not isinstance(gate, str) and gate.passed:
        target = membership.cached(about, name, "records", lambda: model, pieces.tokens)
        measurements += _membership(about, name, membership.by_group(pieces, _loss(target)), likely, trained)
    if not (asked.private and about.members):
        return None, Findings(measurements, {})
    more = _multi_run(about, name, found)
    return None, Findings(measurements + more.measurements, more.plots)


def _likely(about: Audited, shadow: Shadow, pieces: membership.Pieces) -> dict[str, np.ndarray]:
    """Mean log-probability of each unit under one training's model, by group."""
    cache = membership.cached(about, shadow.name, "records", partial(open_shadow, about.run, shadow), pieces.tokens)
    return membership.by_group(pieces, _loss(cache))


def _loss(cache: "Cache") -> np.ndarray:
    from reticent.attacks.scores import loss

    return loss([one.logp for one in cache])


def _counterfactual(about: Audited, name: AnyModel, scores: np.ndarray, trained: np.ndarray) -> list[Measurement]:
    """How much better the models know a unit's texts when they were trained on them."""
    from reticent.attacks.counterfactual import memorisation
    from reticent.statistics import bootstrap_mean, clopper_pearson

    found = memorisation(scores, trained)
    mean = bootstrap_mean(found.value, rng=about.rng(4))
    clear = int((found.corrected <= 0.05).sum())
    measured = partial(Measurement, model=name, n=len(found.value), counted=f"{about.recipe.privacy.unit}s")
    method = f"{len(scores)} trainings on random halves"
    return [
        measured(
            name="counterfactual_memorisation",
            value=mean.value,
            interval=mean.interval,
            unit="nats per token",
            method=f"{method}, bootstrap",
            floor=0.0,
        ),
        measured(
            name="counterfactually_memorised",
            value=clear / len(found.value),
            interval=clopper_pearson(clear, len(found.value)),
            unit="share",
            method=f"{method}, t-tests, false discovery rate 5 %",
            floor=0.0,
        ),
    ]


def _membership(
    about: Audited,
    name: AnyModel,
    target: dict[str, np.ndarray],
    likely: Sequence[dict[str, np.ndarray]],
    trained: np.ndarray,
) -> list[Measurement]:
    """LiRA and RMIA, offline: a unit is compared with the trainings that did not have it."""
    from reticent.attacks.scores import lira_offline, rmia
    from reticent.attacks.statistics import max_statistic
    from reticent.statistics import auc

    twins = np.stack([np.concatenate([one["in"], one["out"]]) for one in likely])
    # Held-out units are compared with as many as members are, by coins of their own: else their number would tell.
    coins = about.rng(6).random((len(likely), len(target["out"]))) < 0.5
    had = np.concatenate([trained, coins], axis=1)
    enough = (~had).sum(axis=0) >= 2
    values = np.concatenate([target["in"], target["out"]])
    labels = np.arange(len(values)) < len(target["in"])
    scores = {"lira": lira_offline(values[enough], twins[:, enough], had[:, enough])}
    if "calibration" in target:
        population = np.stack([one["calibration"] for one in likely])
        scores["rmia"] = rmia(
            values[enough], twins[:, enough], target["calibration"], population, trained=had[:, enough]
        )
    family = max_statistic(np.stack(list(scores.values())), labels[enough], rng=about.rng(5))
    found = []
    for number, (attack, own) in enumerate(scores.items()):
        found.append(
            membership.told_apart(
                partial(Measurement, model=name, n=int(enough.sum()), counted=f"{about.recipe.privacy.unit}s"),
                f"record_membership_auc[{attack}]",
                auc(own[labels[enough]], own[~labels[enough]]),
                f"exploratory, {len(likely)} trainings; p-value for the best of {len(scores)} by permutation",
                float(family.p_value[number]),
            )
        )
    return found


def _multi_run(about: Audited, name: AnyModel, found: Sequence[Shadow]) -> Findings:
    """A lower bound on epsilon from one canary of each training."""
    from reticent.attacks.statistics import multi_run_epsilon
    from reticent.recipe import Private

    privacy = about.recipe.privacy
    assert isinstance(privacy, Private)
    members = [one for one in about.members if one.planted]
    notes = about.encode_answers([(one.record.prompt, one.record.completion) for one in members])
    scores = [
        _loss(membership.cached(about, one.name, "canaries", partial(open_shadow, about.run, one), notes))
        for one in found
    ]
    planted = np.array([[member.id in one.units for member in members] for one in found])
    try:
        bound = multi_run_epsilon(np.stack(scores), planted, privacy.delta, seed=about.recipe.data.seed)
    except ValueError as error:  # by chance all of one kind
        return Findings([], {"unanswered": [{"question": "epsilon_multi_run", "why": str(error)}]})
    measured = [
        Measurement(
            name="epsilon_multi_run",
            model=name,
            value=bound.epsilon,
            interval=None,
            n=len(found),
            unit="epsilon",
            counted="trainings",
            method="Clopper-Pearson, one canary of each training",
            floor=0.0,
            ceiling=bound.ceiling,
        )
    ]
    return Findings(measured, {})


def open_shadow(run: Run, shadow: Shadow) -> "CausalModel":
    """Its model, to be measured."""
    from reticent.models.adapter import load_trained
    from reticent.models.language_model import CausalModel

    return CausalModel(load_trained(run.recipe.model.base, run.model_folder(shadow.name), merge=True).model)
