"""Exposure: how high a planted secret stands among all it could have been."""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from reticent.data import canary
from reticent.data.canary import Canary
from reticent.measurement import Measurement
from reticent.stages.attacking import Audited, Findings
from reticent.stages.inputs import AnyModel
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from reticent.models.language_model import CausalModel


def exposure(about: Audited, name: AnyModel, model: "CausalModel", base: None) -> tuple[None, Findings]:
    """Exposure of planted secrets beside their held-out twins, by the number of copies."""
    from reticent.attacks import exposure as attack
    from reticent.statistics import clopper_pearson

    secrets = about.secrets
    space = secrets[0].space
    assert space is not None
    scores = model.log_probs([tokens for secret in secrets for tokens in _fills(about, secret)], about.progress)
    totals = [float(score.logp.sum()) for score in scores]
    bits: dict[int, list[float]] = {}  # by the number of copies; 0: held out
    firsts: Counter[int] = Counter()
    for number, secret in enumerate(secrets):
        own = np.array(totals[number * space : (number + 1) * space])
        found = attack.exposure(float(own[canary.alternatives(secret).index(secret.record.completion)]), own)
        bits.setdefault(secret.copies, []).append(found.bits)
        firsts[secret.copies] += found.rank == 1
    held_out = bits.pop(0)
    measurements = []
    for copies in sorted(bits, reverse=True):
        suffix = "" if copies == max(bits) else f"_{copies}_copies"
        mean = attack.mean_exposure(bits[copies], space, rng=np.random.default_rng(about.recipe.data.seed))
        planted = len(bits[copies])
        measured = partial(Measurement, model=name, n=planted, counted="secrets")
        measurements += [
            measured(
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
            measured(
                name=f"secrets_ranked_first{suffix}",
                value=firsts[copies] / planted,
                interval=clopper_pearson(firsts[copies], planted),
                unit="share",
                method=f"Clopper-Pearson, {copies} copies",
                floor=1 / space,
            ),
        ]
    drawn = {"planted": bits[max(bits)], "held_out": held_out}
    return None, Findings(measurements, {"exposure": {name: drawn}})


def _fills(about: Audited, secret: Canary) -> list[Tokens]:
    """Every possible completion of a secret, without what ends a text: only the secret itself is ranked."""
    texts = canary.alternatives(secret)
    encoded = about.encode_answers([(secret.record.prompt, text) for text in texts])
    return [about.without_end(whole, text) for whole, text in zip(encoded, texts, strict=True)]
