"""Who was in the training data: planted canaries told from held-out ones, real records from held-out records."""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reticent.data import canary
from reticent.data.canary import Canary
from reticent.errors import AuditError
from reticent.measurement import Measurement
from reticent.recipe import Attack, Private
from reticent.stages.attacking import Audited, Findings, Scored, Texts
from reticent.stages.inputs import AnyModel
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from reticent.attacks.blind import Gate
    from reticent.attacks.cache import Cache
    from reticent.attacks.statistics import Membership, TprAtFpr
    from reticent.models.language_model import CausalModel, TokenScores
    from reticent.statistics import Estimate

REFERENCE: tuple[Attack, ...] = ("loss-difference", "loss-ratio", "wbc", "ez")  # compare with the base model
SHOTS, SHOT_TOKENS = 10, 64  # of the prefix that "recall" sets before a record
RATES = (0.1, 0.01, 0.001)


class Caches(NamedTuple):
    """Token scores of one model on the same pieces of text: as they are, in lower case, and after a prefix."""

    plain: "Sequence[TokenScores]"
    lower: "Sequence[TokenScores] | None" = None
    prefixed: "Sequence[TokenScores] | None" = None


class Pieces(NamedTuple):
    """Real records as they are learned: (pieces,) each. ``groups``: "in", "out" or "calibration"."""

    tokens: list[Tokens]
    units: list[str]
    groups: np.ndarray


# ------------------------------------------------------------------------------------------------------- canaries


def canaries(about: Audited, name: AnyModel, model: "CausalModel", base: "Cache | None") -> "tuple[Cache, Findings]":
    """Telling planted records of each family from held-out ones; each was planted by its own coin."""
    notes = about.encode_answers([(one.record.prompt, one.record.completion) for one in about.members])
    target = cached(about, name, "canaries", lambda: model, notes)
    measurements: list[Measurement] = []
    plots: dict[str, Any] = {}
    scored = []
    for number, family in enumerate(dict.fromkeys(one.family for one in about.members)):
        own = [i for i, one in enumerate(about.members) if one.family == family]
        members = [about.members[i] for i in own]
        ours = Caches([target[i] for i in own])
        theirs = None if base is None else Caches([base[i] for i in own])
        texts = [str(about.tokenizer.decode(notes[i].ids[notes[i].trained])) for i in own]
        scores = _score(_possible(about.recipe.audit.primary), name, ours, theirs, texts)
        suffix = "" if number == 0 else "_" + family.replace("-", "_")
        found, drawn = _of_canaries(about, name, members, scores, suffix)
        measurements += found
        if number == 0:
            plots = drawn
        scored.append(
            Scored(
                f"canaries {family}",
                [one.id for one in members],
                ["in" if one.planted else "out" for one in members],
                [one.copies for one in members],
                scores,
            )
        )
    return target, Findings(measurements, plots, scored)


def _possible(attack: Attack) -> Attack:
    """What can be done with canaries, of which only the token scores are there."""
    return "loss-difference" if attack in ("lowercase", "recall", "gradient-norm") else attack


def _of_canaries(
    about: Audited, name: AnyModel, members: Sequence[Canary], scores: np.ndarray, suffix: str
) -> tuple[list[Measurement], dict[str, Any]]:
    from reticent.attacks import statistics as s

    planted = np.array([member.planted for member in members])
    family = members[0].family
    attack = _possible(about.recipe.audit.primary)
    method = f"{family}, {attack}" + ("; of the base model, loss" if attack in REFERENCE else "")
    if family in canary.SELF_AUDIT:
        method += "; only who has the model can make this test"
    privacy = about.recipe.privacy
    # A promise to whole sites says nothing about one record beside others of its site.
    promised = name == "private" and isinstance(privacy, Private)
    claim = about.run.facts("train")["guarantee"]["epsilon"] if promised else None
    delta = privacy.delta if isinstance(privacy, Private) else 0.0
    found = s.membership(scores, planted, delta=delta, claim=claim)
    measured = partial(Measurement, model=name, n=len(members), counted="candidates")
    run = found.one_run
    bound = partial(measured, unit="epsilon", floor=0.0, interval=None)
    measurements = [
        told_apart(measured, f"membership_auc{suffix}", found.auc, f"{method}, DeLong"),
        bound(
            name=f"epsilon_lower_bound{suffix}",
            value=run.epsilon,
            method=f"one run, {run.guesses} fixed guesses ({method})",
            ceiling=run.ceiling,
            p_value=run.p_value,
        ),
        *_rates(measured, "membership", found.at_fpr, int(planted.sum()), method, suffix),
    ]
    plots: dict[str, Any] = {
        "roc": {name: curve(scores[planted], scores[~planted])},
        "scores": {name: {"planted": list(scores[planted]), "held_out": list(scores[~planted])}},
    }
    if delta > 0:
        more, ladder = _bounds(about, bound, scores, planted, found, delta, claim)
        measurements += [one if not suffix else _renamed(one, suffix) for one in more]
        if claim is not None:
            plots["epsilon"] = ladder
    return measurements, plots


def _renamed(measurement: Measurement, suffix: str) -> Measurement:
    return Measurement.from_dict({**measurement.to_dict(), "name": measurement.name + suffix})


def _bounds(
    about: Audited,
    bound: Any,
    scores: np.ndarray,
    planted: np.ndarray,
    found: "Membership",
    delta: float,
    claim: float | None,
) -> tuple[list[Measurement], dict[str, Any]]:
    """What the same scores say by other estimators, and what this test could find at best."""
    from reticent.attacks import statistics as s

    run, count = found.one_run, len(scores)
    k = run.guesses // 2
    split = s.split_epsilon(scores, planted, delta, seed=about.recipe.data.seed)
    gaussian = s.fdp_epsilon(run.correct, run.guesses, run.candidates, delta)
    detectable = s.detectable_epsilon(count, k, delta)
    ideal = None if claim is None or not claim > 0 else s.ideal_epsilon(claim, delta, count, k, rng=about.rng(1))
    measurements = [
        bound(
            name="epsilon_split",
            value=split.epsilon,
            method="Clopper-Pearson at a threshold from the other half, as if candidates were independent",
            ceiling=split.ceiling,
        ),
        bound(name="epsilon_gaussian", value=gaussian.epsilon, method=f"no bound: {gaussian.assumption}"),
    ]
    if detectable is not None:
        measurements.append(
            bound(name="epsilon_detectable", value=detectable, method="found by a perfect attacker with 90 % power")
        )
    if ideal is not None:
        measurements.append(
            bound(
                name="epsilon_ideal", value=ideal, method="median of a perfect attacker, were the claim exactly tight"
            )
        )
    return measurements, {
        "claimed": claim,
        "ideal": ideal,
        "measured": run.epsilon,
        "ceiling": run.ceiling,
        "detectable": detectable,
    }


# --------------------------------------------------------------------------------------------------- real records


def gate(about: Audited) -> Findings:
    """Whether members can be told from others without any model: then no test of the model says anything."""
    found = found_gate(about)
    if isinstance(found, str):
        return Findings([], {"unanswered": [{"question": "record_membership", "why": found}]})
    measured = told_apart(
        partial(Measurement, model="data", n=found.judged, counted="units"),
        "blind_auc",
        found.auc,
        "bag of words and lengths, no model, learned from half of the units; it fails above 0.5",
    )
    if found.passed:
        return Findings([measured], {})
    why = (
        f"members can be told from others without any model (AUC {found.auc.value:.2f}), so the two differ in more "
        "than membership"
    )
    return Findings([measured], {"unanswered": [{"question": "record_membership", "why": why}]})


@lru_cache(maxsize=1)
def found_gate(about: Audited) -> "Gate | str":
    """The gate, or why there is none."""
    from reticent.attacks import blind

    def texts(of: Texts) -> list[str]:
        return [f"{record.prompt} {record.completion}" for record in of.records]

    sides = len(set(about.trained.units)), len(set(about.held_out.units))
    if min(sides) < blind.FEWEST:
        return (
            f"{sides[0]} units that were trained on and {sides[1]} held-out ones cannot show whether they differ; "
            f"{blind.FEWEST} of each are needed: raise data.held_out"
        )
    return blind.gate(
        texts(about.trained),
        texts(about.held_out),
        about.trained.units,
        about.held_out.units,
        seed=about.recipe.data.seed,
    )


def records(
    about: Audited, name: AnyModel, model: "CausalModel", base: Caches | None
) -> tuple[Caches | None, Findings]:
    """Telling units that were trained on from held-out ones, by their own texts."""
    from reticent.attacks.gradient_norm import gradient_norm

    found = found_gate(about)
    if isinstance(found, str) or not found.passed:
        return None, Findings([], {})
    pieces = real_pieces(about)
    asked = about.recipe.audit
    attacks: list[Attack] = list(dict.fromkeys((asked.primary, *asked.attacks)))
    caches = _caches(about, name, model, pieces, attacks)
    texts = [str(about.tokenizer.decode(one.ids[one.trained])) for one in pieces.tokens] if "zlib" in attacks else []
    scores: dict[str, dict[str, np.ndarray]] = {}
    scored = []
    for attack in attacks:
        if attack == "gradient-norm":
            per_piece = gradient_norm(model.model, pieces.tokens, about.progress)
        else:
            per_piece = _score(attack, name, caches, base, texts)
        scores[attack] = by_group(_without_shots(pieces) if attack == "recall" else pieces, per_piece)
        groups = [group for group, values in scores[attack].items() for _ in values]
        # By number: a unit's own name is private text.
        ids = [f"{group} {number}" for group, own in scores[attack].items() for number in range(1, len(own) + 1)]
        values = np.concatenate(list(scores[attack].values()))
        scored.append(Scored(attack, ids, groups, [int(group == "in") for group in groups], values))
    return caches, Findings(*_of_records(about, name, scores), scored)


@lru_cache(maxsize=1)
def real_pieces(about: Audited) -> Pieces:
    """The audited records as they are learned; units of which nothing can be learned are left out."""
    tokens: list[Tokens] = []
    units: list[str] = []
    groups: list[str] = []
    for group, texts in (("in", about.trained), ("out", about.held_out), ("calibration", about.calibration)):
        encoded = about.encode(texts)
        tokens += encoded.tokens
        units += [unit for unit, count in zip(texts.units, encoded.pieces, strict=True) for _ in range(count)]
        groups += [group] * len(encoded.tokens)
    return Pieces(tokens, units, np.array(groups))


def units_of_group(pieces: Pieces, group: str) -> list[str]:
    return list(dict.fromkeys(unit for unit, own in zip(pieces.units, pieces.groups, strict=True) if own == group))


def by_group(pieces: Pieces, per_piece: np.ndarray) -> dict[str, np.ndarray]:
    """The mean score of each unit, (units,) for each group that has any."""
    from reticent.statistics import by_subject

    found = {}
    for group in ("in", "out", "calibration"):
        rows = np.flatnonzero(pieces.groups == group)
        if len(rows):
            found[group] = by_subject(per_piece[rows], [pieces.units[i] for i in rows])[1]
    return found


def _caches(about: Audited, name: AnyModel, model: "CausalModel", pieces: Pieces, attacks: Sequence[Attack]) -> Caches:
    lower = prefixed = None
    if "lowercase" in attacks:
        lower = cached(about, name, "lowercase", lambda: model, [_lowercase(about, one) for one in pieces.tokens])
    if "recall" in attacks:
        prefix = _shots(model, pieces)
        after = [_after(prefix, one) for one in pieces.tokens]
        prefixed = cached(about, name, "recall", lambda: model, after)
    return Caches(cached(about, name, "records", lambda: model, pieces.tokens), lower, prefixed)


def _lowercase(about: Audited, piece: Tokens) -> Tokens:
    """The same text in lower case behind the same prompt."""
    first = int(np.argmax(piece.trained))
    text = str(about.tokenizer.decode(piece.ids[piece.trained], skip_special_tokens=True)).lower()
    own = np.array(about.tokenizer.encode(text, add_special_tokens=False) or [int(piece.ids[first])])
    ids = np.concatenate([piece.ids[:first], own]).astype(piece.ids.dtype)
    return Tokens(ids, np.arange(len(ids)) >= max(first, 1))


def _shot_rows(pieces: Pieces) -> np.ndarray:
    return np.flatnonzero(pieces.groups == "calibration")[:SHOTS]


def _shots(model: "CausalModel", pieces: Pieces) -> np.ndarray:
    """The beginnings of some texts of non-members, as long as the model can read before the longest piece.

    Raises:
        AuditError: nothing fits before it.
    """
    text = np.concatenate([pieces.tokens[i].ids[:SHOT_TOKENS] for i in _shot_rows(pieces)])
    most = getattr(model.model.config, "max_position_embeddings", None)
    longest = max(map(len, pieces.tokens))
    room = len(text) if most is None else min(len(text), most - longest)
    if room < 1:
        raise AuditError(
            f"audit: recall sets other text before a record, and the longest one ({longest:,} tokens) fills what the "
            f"model reads ({most:,}); leave out recall, or lower data.max_tokens"
        )
    return text[:room]


def _without_shots(pieces: Pieces) -> Pieces:
    """Without the units whose texts stand in the prefix: they know it, and would raise the threshold."""
    shown = {pieces.units[i] for i in _shot_rows(pieces)}
    there = np.array([unit in shown for unit in pieces.units]) & (pieces.groups == "calibration")
    return pieces._replace(groups=np.where(there, "prefix", pieces.groups))


def _after(prefix: np.ndarray, piece: Tokens) -> Tokens:
    return Tokens(
        np.concatenate([prefix, piece.ids]), np.concatenate([np.zeros(len(prefix), dtype=bool), piece.trained])
    )


def _of_records(
    about: Audited, name: AnyModel, scores: dict[str, dict[str, np.ndarray]]
) -> tuple[list[Measurement], dict[str, Any]]:
    from reticent.attacks import statistics as s
    from reticent.statistics import auc

    asked = about.recipe.audit
    groups = scores[asked.primary]
    ours, others, calibration = groups["in"], groups["out"], groups.get("calibration")
    measured = partial(Measurement, model=name, n=len(ours) + len(others), counted=f"{about.recipe.privacy.unit}s")
    method = asked.primary + ("; of the base model, loss" if asked.primary in REFERENCE else "")
    area = auc(ours, others)
    better = s.advantage(ours, others, rng=about.rng(2))
    at, told = [], []
    for rate in allowed(asked.false_alarms, len(others)):
        if calibration is None or len(calibration) * rate < 3:
            at.append(s.tpr_at_fpr(ours, others, rate))
            told.append("threshold on the same outsiders")
        else:
            at.append(s.tpr_at_threshold(ours, others, s.threshold_for(calibration, rate), rate))
            told.append("threshold from calibration units")
    measurements = [
        told_apart(measured, "record_membership_auc", area, f"{method}, mean over a unit's texts, DeLong"),
        measured(
            name="record_membership_advantage",
            value=better.value,
            interval=better.interval,
            unit="share",
            method=f"{method}, the largest TPR - FPR; uniform bands, permutations",
            floor=better.floor,
            ceiling=1.0,
            p_value=better.p_value,
        ),
        *(
            rate
            for one, where in zip(at, told, strict=True)
            for rate in _rates(measured, "record_membership", [one], len(ours), f"{method}, {where}", "")
        ),
    ]
    for one in at:
        if one.target == 0.01:
            flagged = s.flagged_per_1000(one)
            measurements.append(
                measured(
                    n=len(ours),
                    name="flagged_per_1000_at_1pct",
                    value=flagged.value,
                    interval=flagged.interval,
                    unit="of 1,000 members",
                    method=f"{method}, Clopper-Pearson",
                    floor=1000 * one.fpr_upper,
                    ceiling=1000.0,
                )
            )
    measurements += _explored(about, measured, scores)
    return measurements, {"record_roc": {name: curve(ours, others)}}


def _explored(about: Audited, measured: Any, scores: dict[str, dict[str, np.ndarray]]) -> list[Measurement]:
    """Every other attack beside the primary one; p-values for the best of all of them."""
    from reticent.attacks import statistics as s
    from reticent.statistics import auc

    stacked = np.stack([np.concatenate([own["in"], own["out"]]) for own in scores.values()])
    first = next(iter(scores.values()))
    labels = np.arange(stacked.shape[1]) < len(first["in"])
    family = s.max_statistic(stacked, labels, rng=about.rng(3))
    found = []
    for number, (attack, own) in enumerate(scores.items()):
        if attack == about.recipe.audit.primary:
            continue
        title, method = f"record_membership_auc[{attack}]", f"exploratory; p-value for the best of {len(scores)}"
        found.append(
            told_apart(
                measured, title, auc(own["in"], own["out"]), f"{method} by permutation", float(family.p_value[number])
            )
        )
    return found


def allowed(asked: tuple[float, ...] | None, others: int) -> list[float]:
    """The shares of false alarms to test at.

    Raises:
        AuditError: one was asked for and there are too few who were not trained on.
    """
    if asked is None:
        return [rate for rate in RATES if others * rate >= 3 - 1e-9]
    for rate in asked:
        if others * rate < 3 - 1e-9:
            raise AuditError(
                f"audit.false_alarms: {rate:g} needs {3 / rate:,.0f} held-out units or more, got {others:,}; "
                "raise data.held_out or audit.records, or ask for a larger share"
            )
    return list(asked)


# ---------------------------------------------------------------------------------------------------- shared parts


def told_apart(
    measured: Callable[..., Measurement], name: str, area: "Estimate", method: str, p_value: float | None = None
) -> Measurement:
    """An area under the ROC curve: 0.5 by chance, 1 at most."""
    return measured(
        name=name,
        value=area.value,
        interval=area.interval,
        unit="probability",
        method=method,
        floor=0.5,
        ceiling=1.0,
        p_value=p_value,
    )


def _rates(
    measured: Any, name: str, found: Sequence["TprAtFpr"], members: int, method: str, suffix: str
) -> list[Measurement]:
    return [
        measured(
            n=members,
            name=f"{name}_tpr_at_{100 * at.target:g}pct{suffix}",
            value=at.tpr,
            interval=at.interval,
            unit="share",
            method=f"{method}, Clopper-Pearson, realised FPR {at.fpr:.3f} (at most {at.fpr_upper:.3f})",
            floor=at.fpr_upper,
            ceiling=1.0,
        )
        for at in found
    ]


def curve(members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """A ROC curve for the report."""
    from reticent.attacks.statistics import roc

    found = roc(members, others)
    return {"fpr": list(found.fpr), "tpr": list(found.tpr), "members": len(members), "others": len(others)}


def cached(
    about: Audited, name: str, kind: str, model: "Callable[[], CausalModel]", tokens: Sequence[Tokens]
) -> "Cache":
    """Token scores on disk; what an audit that was stopped has left there is taken, and ``model`` is not asked."""
    from reticent.attacks.cache import Cache

    digest = hashlib.sha256()
    for one in tokens:
        digest.update(len(one).to_bytes(8) + one.ids.tobytes() + one.trained.tobytes())
    folder = about.run.scores_folder(name, f"{kind}-{digest.hexdigest()[:16]}")
    return Cache.open(folder) if folder.exists() else Cache.write(folder, model(), tokens, about.progress)


def _score(attack: Attack, name: AnyModel, ours: Caches, base: Caches | None, texts: Sequence[str]) -> np.ndarray:
    """(pieces,) scores of one attack; of the base model itself, those that compare with it are its loss."""
    from reticent.attacks import scores as s

    logp = [one.logp for one in ours.plain]
    if name == "base" and attack in REFERENCE:
        return s.loss(logp)
    theirs = [] if base is None else [one.logp for one in base.plain]
    match attack:
        case "loss":
            return s.loss(logp)
        case "loss-difference":
            return s.loss_difference(logp, theirs)
        case "loss-ratio":
            return s.loss_ratio(logp, theirs)
        case "zlib":
            return s.zlib(logp, texts)
        case "lowercase":
            assert ours.lower is not None
            return s.lowercase(logp, [one.logp for one in ours.lower])
        case "min-k":
            return s.min_k(logp)
        case "min-k++":
            return s.min_k_plus(ours.plain)
        case "wbc":
            return s.wbc(logp, theirs)
        case "ez":
            return s.ez(ours.plain, theirs)
        case "recall":
            assert ours.prefixed is not None
            return s.recall(logp, [one.logp for one in ours.prefixed])
        case "window":
            return s.window(logp)
        case "gradient-norm":
            raise AssertionError("needs the model, not its scores")
