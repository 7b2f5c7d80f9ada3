"""The plan of a recipe, before anything is computed."""

from pathlib import Path
from typing import Any

import numpy as np

from reticent.asked import (
    check_sites,
    client_plan,
    federated,
    only_site,
    plan_for,
    prepared,
    site_plans,
    trained_models,
)
from reticent.data import canary
from reticent.data.split import PARTS
from reticent.privacy.plan import BandedPlan, NonPrivatePlan, Plan
from reticent.recipe import Federation, Recipe
from reticent.stages.canaries import canaries_of, stand_in
from reticent.stages.reading import read
from reticent.stages.silos import deal, sizes


def check(recipe: Recipe) -> list[tuple[str, str]]:
    """What would be trained, on what, with which promise: (label, value) rows. Reads the data, trains nothing."""
    found = read(recipe)
    records = dict(zip(PARTS, np.bincount(found.split.part, minlength=len(PARTS)).tolist(), strict=True))
    canaries = canaries_of(recipe, stand_in())
    planted = canary.planted_records(canaries)
    count = found.unit_count("train") + len({unit for _, unit in planted})
    before = " (before scrubbing and benchmarks drop any)" if recipe.data.scrub or recipe.data.benchmarks else ""
    asked, dealt = federated(recipe), deal(recipe, found, canaries)
    by_site = None if dealt is None else sizes(dealt, [unit for _, unit in planted])
    count = (only_site(recipe, by_site) if by_site is not None else None) or count
    rows = [
        ("records", f"{records['train']} to train on, {records['held_out']} held out, {len(planted)} canaries{before}"),
        ("units", f"{count} {recipe.privacy.unit}s to train on"),
    ]
    if asked is not None and by_site is not None:
        return rows + _over_sites(recipe, asked, by_site) + _model(recipe) + public_files(recipe)
    if asked is not None:
        rows.append(("federation", "between machines; what follows is the plan of a site with these records"))
    for name in trained_models(recipe):
        plan = plan_for(recipe, name, count)
        rows.append((f"{name}: steps", f"{plan.steps} of {plan.batch_size} expected {plan.unit}s"))
        rows.append((f"{name}: sampling", _sampling(plan)))
        rows += promised(plan, name)
    return rows + _model(recipe) + public_files(recipe)


def public_files(recipe: Recipe) -> list[tuple[str, str]]:
    """What else the recipe reads: benchmarks, public questions, prompts of synthetic text. (label, value) rows.

    Raises:
        DataError: one of them cannot be read, or is not as it must be.
    """
    from reticent.data.prompts import read_prompts
    from reticent.stages.quiz import read_benchmark

    rows = []
    for exam in recipe.evaluate.benchmarks:
        found, _ = read_benchmark(exam, recipe.data.seed)
        left_out = f", {found.duplicates} left out as duplicates" if found.duplicates else ""
        rows.append((f"benchmark {exam.name}", f"{len(found.questions)} of {found.available} questions{left_out}"))
    for label, path in (
        ("public questions", recipe.evaluate.questions and recipe.evaluate.questions.path),
        ("synthetic prompts", recipe.synthetic and recipe.synthetic.prompts),
    ):
        if path:
            rows.append((label, f"{len(read_prompts(Path(path)))} read"))
    return rows


def _over_sites(recipe: Recipe, asked: Federation, units: dict[str, int]) -> list[tuple[str, str]]:
    """The plans of a federation: of the sites with the fewest and the most units, and of the promise to whole sites."""
    drawn = min(asked.per_round or len(units), len(units))
    rows = [("federation", f"{len(units)} sites, {drawn} in each of {asked.rounds} rounds, {asked.algorithm}")]
    for name in trained_models(recipe):
        plans = site_plans(recipe, name, units)
        for site in dict.fromkeys((min(units, key=units.__getitem__), max(units, key=units.__getitem__))):
            plan, label = plans[site], f"{name} at {site}"
            steps = f"{plan.steps // asked.rounds} steps a round of {plan.batch_size} expected {plan.unit}s"
            rows += [(label, f"{units[site]} units, {steps}"), *promised(plan, label)]
        clients = client_plan(recipe, name, len(units))
        check_sites(recipe, clients, list(units))
        rows += [] if clients is None else promised(clients, f"{name}, whole sites")
    return rows


def _sampling(plan: Plan) -> str:
    if isinstance(plan, BandedPlan):
        return f"Poisson, {plan.sampling_prob:.4g} a step of one of {plan.bands} groups in turn"
    return f"Poisson, {plan.sampling_prob:.4g} a step"


def promised(plan: Plan, name: str = "private") -> list[tuple[str, str]]:
    """What a plan promises: (label, value) rows."""
    if isinstance(plan, NonPrivatePlan):
        return [(f"{name}: promise", "none")]
    from reticent.privacy.accounting import RELATION, spent

    total = spent(plan.spent_events(plan.steps), plan.delta)
    return [
        (f"{name}: mechanism", plan.mechanism),
        (f"{name}: clip norm", f"{plan.clip_norm:g}"),
        (f"{name}: noise multiplier", f"{plan.noise_multiplier:.4g}"),
        (
            f"{name}: promise",
            f"epsilon {total.epsilon:.4g} at delta {plan.delta:g}, per {plan.unit}, {RELATION} "
            f"(by RDP {total.epsilon_rdp:.4g})",
        ),
    ]


def _model(recipe: Recipe) -> list[tuple[str, str]]:
    """Size, engine and memory, from the model's shape alone."""
    from reticent.gradients.engines import why_not_packed
    from reticent.gradients.exact import refuse_inexact
    from reticent.models.load import skeleton

    model, weight_bytes = skeleton(recipe.model.base, dtype=recipe.model.dtype)
    model = prepared(recipe, model)
    if "private" in trained_models(recipe):
        refuse_inexact(model)
    why = why_not_packed(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    tokens = recipe.train.micro_batch_tokens
    memory = _memory(recipe, model, trainable, weight_bytes, 512 if tokens == "auto" else tokens) / 2**30
    return [
        ("trainable parameters", f"{trainable:,} of {total:,} ({trainable / total:.2%})"),
        *_traffic(recipe, trainable, total),
        ("engine", "packed rows" if why is None else f"one unit at a time, several times as slow on a GPU: {why}"),
        ("micro-batch", "searched for before training" if tokens == "auto" else f"{tokens} tokens"),
        ("memory", f"{'from' if tokens == 'auto' else 'about'} {memory:.1f} GiB"),
    ]


def _traffic(recipe: Recipe, trainable: int, total: int) -> list[tuple[str, str]]:
    """What a federation sends, at 4 bytes a number before compression, and how long it takes at 20 Mbit/s."""
    from reticent.federation.traffic import projected_seconds

    across = federated(recipe)
    if across is None:
        return []
    size = 4 * trainable
    told = (
        f"{size / 2**20:.1f} MiB each way for a site in a round, {projected_seconds(size, 20):.0f} s at 20 Mbit/s; the "
        f"whole model is {total / trainable:.1f} times as large"
    )
    if across.lora in ("residual", "merged"):
        told += f"; lora: {across.lora} sends more"
    return [("traffic", told)]


def _memory(recipe: Recipe, model: Any, trainable: int, weight_bytes: int, tokens: int) -> float:
    """Bytes: the library, weights, optimiser and sums, one row's activations, logits and unit gradients.

    Activations are counted as 40 numbers of the hidden size a token and layer, the logits of half of the row's tokens
    three times, unit gradients as of rows full of records of 32 tokens: on the safe side for short records.
    """
    config = model.config.get_text_config()
    held = {None: weight_bytes, "8bit": 1.1, "4bit": 0.6}[recipe.model.quantize]
    weights: float = sum(p.numel() for p in model.parameters()) * held
    activations: int = tokens * config.num_hidden_layers * config.hidden_size * 40 * weight_bytes
    logits: float = 3 * tokens / 2 * config.vocab_size * 4
    unit_gradients = trainable * 4 * (tokens / 32 if recipe.privacy.kind != "none" else 0)
    if recipe.model.adapter.kind == "full":
        unit_gradients = trainable * 4
    return 0.6 * 2**30 + weights + 24 * trainable + activations + logits + unit_gradients
