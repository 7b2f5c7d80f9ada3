"""What a recipe asks for, as the libraries take it: plans, settings, the model to train, the units to train on."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reticent.errors import DataError, FederationError, PrivacyError
from reticent.privacy.clipping import Quantile
from reticent.privacy.plan import (
    BandedPlan,
    DPFedAvgPlan,
    NonPrivatePlan,
    Plan,
    banded_plan,
    dpfedavg_plan,
    dpsgd_plan,
    nonprivate_plan,
)
from reticent.progress import Progress
from reticent.recipe import DPMF, DPSGD, Federation, Lora, NonPrivate, Recipe, Train
from reticent.run import ModelName, Run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from reticent.gradients.rows import Unit
    from reticent.models.load import Loaded
    from reticent.training.loop import Settings


def trained_models(recipe: Recipe) -> list[ModelName]:
    """The models that the recipe trains, in order."""
    if not recipe.promises:
        return ["twin"]
    return ["twin", "private"] if recipe.audit.twin else ["private"]


def federated(recipe: Recipe) -> Federation | None:
    """How the recipe trains over sites; None: in one place."""
    asked = recipe.federation
    return None if asked is None or asked.only is not None else asked


def plan_for(recipe: Recipe, name: ModelName, units: int) -> Plan:
    """The plan of one model over ``units`` units; the twin's draws the same kind of batches without a promise.

    In a federation it is that of one site of so many units, over all rounds.
    """
    asked = federated(recipe)
    steps = recipe.train.steps if asked is None else asked.rounds * local_steps(recipe, units)
    return _plan(recipe.privacy, recipe.train, name, units, steps)


def local_steps(recipe: Recipe, units: int) -> int:
    """Steps of one round at a site of ``units`` units."""
    asked = federated(recipe)
    assert asked is not None
    if asked.local == "epoch":
        return max(1, round(units / recipe.train.batch_size))
    return recipe.train.steps // asked.rounds


def site_plans(recipe: Recipe, name: ModelName, sizes: Mapping[str, int]) -> dict[str, Plan]:
    """The plan of each site, by name; ``sizes``: their units.

    Raises:
        PrivacyError: a site cannot keep its promise; it is named.
    """
    plans = {}
    for site, units in sizes.items():
        try:
            plans[site] = plan_for(recipe, name, units)
        except PrivacyError as error:
            raise PrivacyError(f"site {site}: {error}") from None
    return plans


def client_plan(recipe: Recipe, name: ModelName, sites: int) -> DPFedAvgPlan | None:
    """The plan of a promise to each of ``sites`` whole sites; None without one."""
    asked = federated(recipe)
    if asked is None or asked.privacy is None or name == "twin":
        return None
    follow = asked.privacy.clip_quantile
    per_round = min(asked.per_round or sites, sites)
    return dpfedavg_plan(
        sites=sites,
        per_round=per_round,
        rounds=asked.rounds,
        quantile=None if follow is None else Quantile(**follow.model_dump()),
        threshold=threshold(asked, per_round) if asked.privacy.noise == "distributed" else None,
        **asked.privacy.model_dump(
            include={"delta", "clip_norm", "epsilon", "noise_multiplier", "noise", "few_clients"}
        ),
    )


def threshold(asked: Federation, drawn: int) -> int:
    """Fewest sites that a secure sum of ``drawn`` may be of."""
    return asked.threshold or max(drawn // 2 + 1, math.ceil(2 * drawn / 3))


def fewest(recipe: Recipe, sites: int) -> int:
    """How many of ``sites`` must be there for the rounds to begin."""
    asked = federated(recipe)
    assert asked is not None
    drawn = min(asked.per_round or sites, sites)
    return threshold(asked, drawn) if asked.secure_sum else quorum(asked, drawn)


def quorum(asked: Federation, drawn: int) -> int:
    """Fewest answers that make a round of ``drawn`` sites."""
    return min(asked.quorum or math.ceil(drawn / 2), drawn)


def check_sites(recipe: Recipe, plan: DPFedAvgPlan | None, names: Sequence[str]) -> None:
    """Refuses settings that do not fit the sites there are.

    Raises:
        FederationError: it names the setting.
    """
    asked = federated(recipe)
    assert asked is not None
    if strangers := sorted(asked.learning_rates.keys() - set(names)):
        raise FederationError(
            f"federation.learning_rates names {strangers[0]}, which is none of the sites: {', '.join(names)}"
        )
    drawn = min(asked.per_round or len(names), len(names))
    if asked.secure_sum and not drawn / 2 < (needed := secure_threshold(asked, plan, drawn)) <= drawn:
        raise FederationError(
            f"federation.threshold must be more than half of the {drawn} sites that are asked, and at most all of "
            f"them, got {needed}"
        )


def secure_threshold(asked: Federation, plan: DPFedAvgPlan | None, drawn: int) -> int:
    """Fewest sites that a secure sum of ``drawn`` may be of, and whose noise is whole where they add it."""
    return max(threshold(asked, drawn), (plan.threshold if plan is not None else None) or 0)


def strategy_settings(asked: Federation) -> dict[str, float]:
    """What the algorithm is told."""
    match asked.algorithm:
        case "fedprox":
            return {"mu": asked.mu}
        case "fedavgm":
            return {"eta": asked.server_learning_rate or 1.0, "beta1": asked.server_beta1}
        case "fedadagrad" | "fedyogi" | "fedadam":
            told = {"eta": asked.server_learning_rate or 1e-3, "tau": asked.tau, "beta1": asked.server_beta1}
            return told if asked.algorithm == "fedadagrad" else {**told, "beta2": asked.server_beta2}
    return {}


@cache  # because calibrating the noise takes seconds
def _plan(privacy: NonPrivate | DPSGD | DPMF, train: Train, name: ModelName, units: int, steps: int) -> Plan:
    asked: dict[str, Any] = {
        "unit": privacy.unit,
        "units": units,
        "batch_size": train.batch_size,
        "steps": steps,
    }
    if name == "twin" or isinstance(privacy, NonPrivate):
        return nonprivate_plan(**asked)
    asked |= privacy.model_dump(include={"delta", "clip_norm", "clip_style", "epsilon", "noise_multiplier"})
    if isinstance(privacy, DPMF):
        return banded_plan(**asked, bands=privacy.bands)
    follow = privacy.clip_quantile
    return dpsgd_plan(**asked, quantile=None if follow is None else Quantile(**follow.model_dump()))


def public_name(base: str) -> str:
    """The base model as others may know it: of a local folder only its name."""
    return Path(base).name if Path(base).is_absolute() else base


def base_model(recipe: Recipe, device: "torch.device | None" = None) -> "Loaded":
    """The model to train, on ``device`` or the best there is."""
    from reticent.models.load import load

    asked = recipe.model
    return load(asked.base, dtype=asked.dtype, quantize=asked.quantize, device=device)


def prepared(recipe: Recipe, model: "PreTrainedModel") -> Any:
    """``model`` with what the recipe trains."""
    from reticent.models import adapter

    if recipe.train.gradient_checkpointing:
        adapter.recompute_layers(model)
    asked, across = recipe.model.adapter, federated(recipe)
    if not isinstance(asked, Lora):
        return adapter.train_everything(model)
    return adapter.add_lora(
        model,
        rank=asked.rank,
        alpha=asked.alpha,
        dropout=asked.dropout,
        targets=asked.targets,
        seed=recipe.train.seed,
        freeze_a=across is not None and across.lora == "freeze-a",
    )


def settings(recipe: Recipe, micro_batch_tokens: int) -> "Settings":
    """The recipe's train section as the loop takes it."""
    from reticent.training.loop import Settings

    values = {**recipe.train.model_dump(), "micro_batch_tokens": micro_batch_tokens}
    return Settings(**{field: values[field] for field in Settings._fields})


def micro_batch_tokens(
    recipe: Recipe, plan: Plan, units: "Sequence[Unit]", model: Any, progress: Progress, processes: int = 1
) -> int:
    """The recipe's, or the most that fit on the first process's device; the others' is taken to be like it."""
    from reticent.training.fit import fitting

    asked = recipe.train.micro_batch_tokens
    if asked != "auto":
        return asked
    # Bytes a trained number: two moments of the optimiser, the noisy sum, the weights before the first step, the past
    # noise of dp-mf.
    kept = 16 + 4 * (plan.bands if isinstance(plan, BandedPlan) else 0)
    found = fitting(
        model,
        units,
        batch_size=plan.batch_size,
        clipping=None if isinstance(plan, NonPrivatePlan) else plan.clipping,
        loss=recipe.train.loss,
        kept=kept,
        processes=processes,
    )
    progress.say(f"micro-batches of {found} tokens, as many as fit (train.micro_batch_tokens: auto)")
    return found


def units_of(run: Run) -> "list[Unit]":
    """The training records by unit of privacy, as tokens; of one site alone if the recipe says so."""
    asked = run.recipe.federation
    if asked is None or asked.only is None:
        return _units([(unit, tokens) for unit, _, tokens in run.read_tokens()])
    by_site = units_by_site(run)
    if asked.only not in by_site:
        raise _no_such_site(asked.only, by_site)
    return by_site[asked.only]


def _no_such_site(name: str, sites: Iterable[str]) -> DataError:
    return DataError(f"federation.only must be one of the sites {', '.join(sites)}, got {name}")


def only_site(recipe: Recipe, sizes: Mapping[str, int]) -> int | None:
    """The units of the site that alone is trained on; None if the recipe names none.

    Raises:
        DataError: there is no such site.
    """
    if recipe.federation is None or recipe.federation.only is None:
        return None
    if recipe.federation.only not in sizes:
        raise _no_such_site(recipe.federation.only, sizes)
    return sizes[recipe.federation.only]


def units_by_site(run: Run) -> "dict[str, list[Unit]]":
    """The training records of each silo, by its name, by unit of privacy, as tokens.

    Raises:
        DataError: the recipe deals the records to no silos.
    """
    rows: dict[int, list[tuple[str, Any]]] = {}
    for unit, client, tokens in run.read_tokens():
        if client is None:
            raise DataError("federation needs records that are dealt to sites; say data.silos: {clients: 3}")
        rows.setdefault(client, []).append((unit, tokens))
    return {name: _units(rows[number]) for number, name in enumerate(run.silos()) if number in rows}


def _units(rows: "list[tuple[str, Any]]") -> "list[Unit]":
    from reticent.gradients.rows import Unit

    members: dict[str, list[Any]] = {}
    for unit, tokens in rows:
        members.setdefault(unit, []).append(tokens)
    return [Unit(unit, tuple(tokens)) for unit, tokens in members.items()]
