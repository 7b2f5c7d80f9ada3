"""Attack the base model, the twin and the private model with the planted canaries."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from reticent.asked import units_of
from reticent.data import canary
from reticent.data.canary import Canary
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Private
from reticent.run import Run
from reticent.stages.inputs import AnyModel, all_models, encode_answer, open_model
from reticent.tokens import Tokens


def audit(run: Run, progress: Progress) -> None:
    """Writes what each attack measured on each model; log-probabilities are computed once per model."""
    from reticent.models.load import load_tokenizer

    recipe = run.recipe
    canaries = _trained_on(run, canary.from_json(run.read_canaries()))
    secrets = _both([c for c in canaries if c.role == "secret"] if recipe.audit.exposure else [])
    members = _both([c for c in canaries if c.role == "member"] if recipe.audit.membership else [])
    measurements: list[Measurement] = []
    plots: dict[str, Any] = {"exposure": {}, "roc": {}}
    if secrets or members:
        tokenizer = load_tokenizer(recipe.model.base)
        fills = [_fills(run, secret, tokenizer) for secret in secrets]
        notes = [encode_answer(recipe, c.record.prompt, c.record.completion, tokenizer) for c in members]
        records = [tokens for fill in fills for tokens in fill] + notes
        base: Sequence[np.ndarray] = []
        for name in all_models(recipe):
            scores = [score.logp for score in open_model(run, name).log_probs(records, progress)]
            cut = len(records) - len(notes)
            if name == "base":
                base = scores[cut:]
            if secrets:
                found, drawn = _exposure(name, secrets, [float(s.sum()) for s in scores[:cut]], recipe.data.seed)
                measurements += found
                plots["exposure"][name] = drawn
            for number, family in enumerate(dict.fromkeys(member.family for member in members)):
                own = [i for i, member in enumerate(members) if member.family == family]
                found, drawn = _membership(
                    run,
                    name,
                    [members[i] for i in own],
                    [scores[cut + i] for i in own],
                    [base[i] for i in own],
                    suffix="" if number == 0 else "_" + family.replace("-", "_"),
                )
                measurements += found
                plots["roc"].setdefault(name, drawn)
    run.write_measurements("audit", measurements)
    run.write_plots("audit", plots)
    run.finish("audit", {"secrets": len(secrets), "members": len(members)})


def _trained_on(run: Run, canaries: Sequence[Canary]) -> list[Canary]:
    """The canaries with the copies that were trained on: at one site alone, what others hold was not."""
    if run.recipe.federation is None or run.recipe.federation.only is None:
        return list(canaries)
    here = {unit.id: len(unit.records) for unit in units_of(run)}
    return [replace(one, copies=here.get(one.id, 0), planted=one.id in here) for one in canaries]


def _both(canaries: list[Canary]) -> list[Canary]:
    """``canaries``, or none where fewer than two were trained on, or were not: there is nothing to compare."""
    planted = sum(one.planted for one in canaries)
    return canaries if min(planted, len(canaries) - planted) >= 2 else []


def _fills(run: Run, secret: Canary, tokenizer: Any) -> list[Tokens]:
    """Every possible completion of a secret, without what ends a text: only the secret itself is ranked."""
    fills = []
    for text in canary.alternatives(secret):
        whole = encode_answer(run.recipe, secret.record.prompt, text, tokenizer)
        first = int(np.argmax(whole.trained))
        end = first + len(tokenizer.encode(text, add_special_tokens=False))
        fills.append(Tokens(whole.ids[:end], whole.trained[:end]))
    return fills


def _exposure(
    name: AnyModel, secrets: Sequence[Canary], scores: Sequence[float], seed: int
) -> tuple[list[Measurement], dict[str, list[float]]]:
    """Exposure of planted secrets beside their held-out twins. ``scores``: those of all fills, secret after secret."""
    from reticent.attacks.exposure import exposure, mean_exposure
    from reticent.statistics import clopper_pearson

    bits: dict[int, list[float]] = {}  # by the number of copies; 0: held out
    firsts: Counter[int] = Counter()
    space = secrets[0].space
    assert space is not None
    for number, secret in enumerate(secrets):
        own = np.array(scores[number * space : (number + 1) * space])
        found = exposure(float(own[canary.alternatives(secret).index(secret.record.completion)]), own)
        bits.setdefault(secret.copies, []).append(found.bits)
        firsts[secret.copies] += found.rank == 1
    held_out = bits.pop(0)
    measurements = []
    for copies in sorted(bits, reverse=True):
        suffix = "" if copies == max(bits) else f"_{copies}_copies"
        mean = mean_exposure(bits[copies], space, rng=np.random.default_rng(seed))
        planted = len(bits[copies])
        about = partial(Measurement, model=name, n=planted, counted="secrets")
        measurements += [
            about(
                name=f"exposure_bits{suffix}",
                value=mean.value,
                interval=mean.interval,
                unit="bits",
                method=f"exact rank among all {space:,} fills, {copies} copies",
                floor=mean.floor,
                ceiling=mean.ceiling,
                control=float(np.mean(held_out)),
                p_value=mean.p_value,
            ),
            about(
                name=f"secrets_ranked_first{suffix}",
                value=firsts[copies] / planted,
                interval=clopper_pearson(firsts[copies], planted),
                unit="share",
                method=f"Clopper-Pearson, {copies} copies",
                floor=1 / space,
            ),
        ]
    return measurements, {"planted": bits[max(bits)], "held_out": held_out}


def _membership(
    run: Run,
    name: AnyModel,
    members: Sequence[Canary],
    target: Sequence[np.ndarray],
    base: Sequence[np.ndarray],
    *,
    suffix: str,
) -> tuple[list[Measurement], dict[str, Any]]:
    """Telling planted records of one family from held-out ones; each was planted by its own coin."""
    from reticent.attacks.scores import loss, loss_difference
    from reticent.attacks.statistics import membership, roc

    planted = np.array([member.planted for member in members])
    scores = loss(target) if name == "base" else loss_difference(target, base)
    family = members[0].family
    method = f"{family}, loss difference to the base model; for that model itself, loss"
    if family in canary.SELF_AUDIT:
        method += "; only who has the model can make this test"
    privacy = run.recipe.privacy
    # A promise to whole sites says nothing about one record beside others of its site.
    claim = run.facts("train")["guarantee"]["epsilon"] if name == "private" and isinstance(privacy, Private) else None
    delta = privacy.delta if isinstance(privacy, Private) else 0.0
    found = membership(scores, planted, delta=delta, claim=claim)
    about = partial(Measurement, model=name, n=len(members), counted="candidates")
    measurements = [
        about(
            name=f"membership_auc{suffix}",
            value=found.auc.value,
            interval=found.auc.interval,
            unit="probability",
            method=f"{method}, DeLong",
            floor=0.5,
            ceiling=1.0,
        ),
        about(
            name=f"epsilon_lower_bound{suffix}",
            value=found.one_run.epsilon,
            interval=None,
            unit="epsilon",
            method=f"one run, {found.one_run.guesses} fixed guesses ({method})",
            floor=0.0,
            ceiling=found.one_run.ceiling,
            p_value=found.one_run.p_value,
        ),
    ]
    measurements += [
        about(
            name=f"membership_tpr_at_{100 * at.target:g}pct{suffix}",
            value=at.tpr,
            interval=at.interval,
            unit="share",
            method=f"{method}, Clopper-Pearson, realised FPR {at.fpr:.3f} (at most {at.fpr_upper:.3f})",
            floor=at.fpr_upper,
            ceiling=1.0,
        )
        for at in found.at_fpr
    ]
    curve = roc(scores[planted], scores[~planted])
    drawn = {
        "fpr": list(curve.fpr),
        "tpr": list(curve.tpr),
        "members": int(planted.sum()),
        "others": int((~planted).sum()),
    }
    return measurements, drawn
