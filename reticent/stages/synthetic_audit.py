"""What synthetic text betrays: a model that learns it alone, and what that knows of planted records.

The audit of released text of Mitchell et al. 2026 (arXiv:2606.10481): whoever has the text fine-tunes the public base
model on it and looks for the canaries there.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reticent.asked import base_model, prepared, public_name
from reticent.data import canary
from reticent.data.canary import Canary
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Lora, Private, Recipe
from reticent.run import Run
from reticent.stages import membership
from reticent.stages.attacking import Audited, Findings
from reticent.stages.audit import audited
from reticent.stages.inputs import encoder, open_model

if TYPE_CHECKING:
    from reticent.models.language_model import CausalModel, TokenScores
    from reticent.stages.synthesize import Corpus

# Of the auxiliary model: constants, so that nothing private sets them.
PASSES, BATCH, STEPS = 3, 8, (20, 500)
LEARNING_RATE = 1e-3
TOKENS = 1024  # of a micro-batch


def audit(run: Run, corpus: "Corpus", folder: Path, progress: Progress) -> Findings:
    """Scores of the run's canaries by a model that learned ``corpus``. ``folder``: where it lies meanwhile."""
    about = audited(run, progress)
    if not about.members and not about.secrets:
        why = "fewer than two invented records were planted, or held out; raise data.canaries.candidates"
        return Findings([], {"unanswered": [{"question": "synthetic_membership_auc", "why": why}]})
    model = _auxiliary(about, corpus, folder)
    measured = partial(Measurement, model="synthetic")
    found = [*_membership(about, model, len(corpus.texts), measured)] if about.members else []
    found += _exposure(about, model, measured) if about.secrets else []
    return Findings(found, {})


def _auxiliary(about: Audited, corpus: "Corpus", folder: Path) -> "CausalModel":
    """The base model, fine-tuned on the corpus as the recipe's own was on records, without noise."""
    from reticent.models import adapter
    from reticent.models.language_model import CausalModel

    run, where = about.run, folder / "auxiliary"
    base = run.recipe.model.base
    if not where.exists():
        recipe = _with_adapter(run.recipe)
        model = prepared(recipe, base_model(recipe).model)
        _train(about, model, corpus, folder / "auxiliary-training")
        with run.replacing(where) as made:
            adapter.save(model, made, base=public_name(base))
        del model
    return CausalModel(adapter.load_trained(base, where, merge=True).model)


def _with_adapter(recipe: Recipe) -> Recipe:
    """With the recipe's adapter, or the default one where it trains every weight."""
    if isinstance(recipe.model.adapter, Lora):
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"adapter": Lora()})})


def _train(about: Audited, model: Any, corpus: "Corpus", folder: Path) -> None:
    from reticent.gradients.rows import Unit
    from reticent.privacy.plan import nonprivate_plan
    from reticent.training import loop
    from reticent.utility.student import steps_for

    asked = about.recipe.synthetic
    assert asked is not None
    texts = encoder(about.recipe, about.tokenizer)(corpus.pairs()).tokens
    steps = steps_for(len(texts), passes=PASSES, tokens_a_step=BATCH, least=STEPS[0], most=STEPS[1])
    with about.run.temporary():
        folder.mkdir(parents=True, exist_ok=True)
        loop.train(
            model,
            [Unit(str(number), (one,)) for number, one in enumerate(texts)],
            nonprivate_plan(unit="text", units=len(texts), batch_size=min(BATCH, len(texts)), steps=steps),
            loop.Settings(
                learning_rate=LEARNING_RATE,
                min_learning_rate=0.0,
                optimizer="adamw",
                momentum=0.0,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                schedule="linear",
                warmup=0,
                loss="sum",
                micro_batch_tokens=max(TOKENS, max(map(len, texts))),
                checkpoint_every=50,
                shard=False,
                seed=asked.seed,
            ),
            loop.Files(folder / "ledger.jsonl", folder / "log.jsonl", folder / "checkpoint"),
            about.progress,
        )


# -------------------------------------------------------------------------------------------------------- membership


def _membership(about: Audited, model: "CausalModel", texts: int, measured: Any) -> list[Measurement]:
    """Planted records told from held-out ones by how much likelier they became; each was planted by its own coin."""
    notes = about.encode_answers([(one.record.prompt, one.record.completion) for one in about.members])
    base = membership.cached(about, "base", "canaries", lambda: open_model(about.run, "base"), notes)
    target = model.log_probs(notes, about.progress)
    found = []
    for number, family in enumerate(dict.fromkeys(one.family for one in about.members)):
        own = [i for i, one in enumerate(about.members) if one.family == family]
        scores = _likelier([target[i] for i in own], [base[i] for i in own])
        suffix = "" if number == 0 else "_" + family.replace("-", "_")
        found += _of_family(about, [about.members[i] for i in own], scores, suffix, texts, measured)
    return found


def _likelier(ours: "Sequence[TokenScores]", theirs: "Sequence[TokenScores]") -> np.ndarray:
    from reticent.attacks.scores import loss_difference

    return loss_difference([one.logp for one in ours], [one.logp for one in theirs])


def _of_family(
    about: Audited, members: Sequence[Canary], scores: np.ndarray, suffix: str, texts: int, measured: Any
) -> list[Measurement]:
    from reticent.attacks import statistics as s

    privacy = about.recipe.privacy
    # A promise to whole sites says nothing about one record beside others of its site.
    promised = isinstance(privacy, Private)
    found = s.membership(
        scores,
        np.array([one.planted for one in members]),
        delta=privacy.delta if isinstance(privacy, Private) else 0.0,
        claim=about.run.facts("train")["guarantee"]["epsilon"] if promised else None,
    )
    family = members[0].family
    method = f"{family}, loss-difference, base model fine-tuned on {texts:,} synthetic texts"
    if family in canary.SELF_AUDIT:
        method += "; only who has the model can make this test"
    own = partial(measured, n=len(members), counted="candidates")
    area = membership.told_apart(own, f"synthetic_membership_auc{suffix}", found.auc, f"{method}, DeLong")
    return [
        _beside(about, area, f"membership_auc{suffix}"),
        _beside(
            about,
            own(
                name=f"synthetic_epsilon_lower_bound{suffix}",
                value=found.one_run.epsilon,
                interval=None,
                unit="epsilon",
                method=f"one run, {found.one_run.guesses} fixed guesses ({method})",
                floor=0.0,
                ceiling=found.one_run.ceiling,
                p_value=found.one_run.p_value,
            ),
            f"epsilon_lower_bound{suffix}",
        ),
    ]


# ---------------------------------------------------------------------------------------------------------- exposure


def _exposure(about: Audited, model: "CausalModel", measured: Any) -> list[Measurement]:
    """How high the secrets that were planted most often stand among all they could have been."""
    from reticent.attacks import exposure as attack

    copies = max(one.copies for one in about.secrets)
    secrets = [one for one in about.secrets if one.copies == copies]
    space = secrets[0].space
    assert space is not None
    scores = model.log_probs([fill for one in secrets for fill in _fills(about, one)], about.progress)
    totals = np.array([float(score.logp.sum()) for score in scores]).reshape(len(secrets), space)
    bits = [
        attack.exposure(float(own[canary.alternatives(one).index(one.record.completion)]), own).bits
        for one, own in zip(secrets, totals, strict=True)
    ]
    mean = attack.mean_exposure(bits, space, rng=about.rng(70))
    return [
        _beside(
            about,
            measured(
                name="synthetic_exposure_bits",
                value=mean.value,
                interval=mean.interval,
                n=len(secrets),
                unit="bits",
                counted="secrets",
                method=f"exact rank among all {space:,} fills, {copies} copies in the training text",
                floor=mean.floor,
                ceiling=mean.ceiling,
                p_value=mean.p_value,
            ),
            "exposure_bits",
        )
    ]


def _fills(about: Audited, secret: Canary) -> list[Any]:
    """Every possible completion of a secret, without what ends a text."""
    texts = canary.alternatives(secret)
    encoded = about.encode_answers([(secret.record.prompt, text) for text in texts])
    return [about.without_end(whole, text) for whole, text in zip(encoded, texts, strict=True)]


def _beside(about: Audited, measurement: Measurement, name: str) -> Measurement:
    """With what the audit measured on the base model, which never saw the text, as control."""
    base = next((one for one in about.run.read_measurements("audit") if (one.name, one.model) == (name, "base")), None)
    return Measurement.from_dict({**measurement.to_dict(), "control": None if base is None else base.value})
