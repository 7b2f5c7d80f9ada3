"""From membership scores to statements about privacy: ROC, TPR at a low FPR, and epsilon from one training run.

What is covered: the one-run audit of Steinke, Nasr and Jagielski (arXiv:2305.08846) with a guess rule fixed before
looking. What is not: bounds that choose the threshold on the data they judge, or that assume a Gaussian trade-off.
The one-run results hold only where each candidate was planted by its own fair coin flip, one privacy unit each.
"""

from functools import cache
from math import exp, inf
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from reticent.statistics import Estimate, auc, clopper_pearson

_RATES = (0.1, 0.01, 0.001)


class Roc(NamedTuple):
    """(points,) arrays, from (0, 0) to (1, 1), one point per distinct score."""

    fpr: np.ndarray
    tpr: np.ndarray


class TprAtFpr(NamedTuple):
    """Share of members found while at most ``target`` of the others are accused.

    ``fpr`` is the realised share of accused others, ``fpr_upper`` its one-sided 95 % bound; ``interval`` is of ``tpr``.
    """

    target: float
    tpr: float
    interval: tuple[float, float]
    fpr: float
    fpr_upper: float


class Guesses(NamedTuple):
    """``correct`` of ``made`` guesses were right."""

    correct: int
    made: int


class OneRun(NamedTuple):
    """``epsilon`` is a lower bound; ``ceiling`` the same had every guess been right. ``p_value``: against the claim."""

    correct: int
    guesses: int
    candidates: int
    epsilon: float
    ceiling: float
    p_value: float | None


class Membership(NamedTuple):
    """What scores of planted and held-out candidates say. ``at_fpr`` holds the rates that this many others allow."""

    auc: Estimate
    at_fpr: tuple[TprAtFpr, ...]
    one_run: OneRun


def roc(members: np.ndarray, others: np.ndarray) -> Roc:
    """Every (FPR, TPR) that a threshold on the score can give; "member" is a score at or above the threshold.

    Raises:
        ValueError: if a group is empty or holds NaN.
    """
    members, others = _sorted("members", members), _sorted("others", others)
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    fpr = (len(others) - np.searchsorted(others, thresholds, side="left")) / len(others)
    tpr = (len(members) - np.searchsorted(members, thresholds, side="left")) / len(members)
    return Roc(np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr]))


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, fpr: float) -> TprAtFpr:
    """TPR, with its exact interval, at the largest realised FPR that is not above ``fpr``; no interpolation.

    The threshold stands on the others themselves, so read ``fpr_upper`` beside the result.

    Raises:
        ValueError: if there are fewer than 3 / ``fpr`` others (the rule of three: 3,000 for 0.1 %), no members, or NaN.
    """
    members, others = _sorted("members", members), _sorted("others", others)
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must be between 0 and 1, got {fpr}")
    if not _enough(len(others), fpr):
        raise ValueError(f"a false-positive rate of {fpr} needs {3 / fpr:.0f} others or more, got {len(others)}")
    allowed = int(fpr * len(others) + 1e-9)
    threshold = others[-allowed - 1]  # strictly above it stand `allowed` others, or fewer where they tie
    found, accused = int((members > threshold).sum()), int((others > threshold).sum())
    return TprAtFpr(
        target=fpr,
        tpr=found / len(members),
        interval=clopper_pearson(found, len(members)),
        fpr=accused / len(others),
        fpr_upper=clopper_pearson(accused, len(others), level=0.9)[1],
    )


def guesses_per_side(candidates: int) -> int:
    """How many are guessed in, and as many out, fixed before looking: 10 % under 1,000 candidates, else 5 %."""
    return max(1, candidates // (10 if candidates < 1000 else 20))


def fixed_guesses(scores: np.ndarray, planted: np.ndarray, k: int) -> Guesses:
    """Guess the ``k`` highest scores "planted" and the ``k`` lowest "not planted". Ties count against the attacker.

    Args:
        scores: (candidates,) higher = more likely planted.
        planted: (candidates,) bool, the coin flips.
        k: guesses per side, chosen without looking at ``planted`` (`guesses_per_side`).

    Raises:
        ValueError: unless 1 <= k <= candidates / 2, or if a score is NaN or lengths differ.
    """
    scores, planted = _candidates(scores, planted)
    if not 1 <= k <= len(scores) // 2:
        raise ValueError(f"k must be from 1 to {len(scores) // 2}, half of the candidates, got {k}")
    # Among tied scores the wrong guess comes first: never more right guesses than by any other rule for ties.
    highest = np.lexsort((planted, -scores))[:k]
    rest = np.setdiff1d(np.arange(len(scores)), highest)
    lowest = rest[np.lexsort((~planted[rest], scores[rest]))[:k]]
    return Guesses(int(planted[highest].sum() + (~planted[lowest]).sum()), 2 * k)


def one_run_p_value(correct: int, guesses: int, candidates: int, epsilon: float, delta: float) -> float:
    """Bound on the chance of so many right guesses if training were (epsilon, delta)-DP (arXiv:2305.08846).

    ``beta = P[Bin(r, q) >= v]``, ``alpha = max_i P[v > Bin(r, q) >= v - i] / i`` and
    ``p = min(1, beta + 2 m delta alpha)``, with v ``correct`` of r ``guesses`` on m ``candidates`` and
    q = 1 / (1 + e^-epsilon).

    Raises:
        ValueError: unless 0 <= correct <= guesses <= candidates, guesses > 0, epsilon >= 0 and 0 <= delta < 1.
    """
    if not 0 <= correct <= guesses <= candidates or guesses < 1:
        raise ValueError(
            f"one run needs 0 <= correct <= guesses <= candidates and a guess, got {correct}, {guesses}, {candidates}"
        )
    if not (epsilon >= 0 and 0 <= delta < 1):
        raise ValueError(f"one run needs epsilon >= 0 and 0 <= delta < 1, got {epsilon} and {delta}")
    if correct == 0:
        return 1.0
    q = float(special.expit(epsilon))
    beta = float(special.bdtrc(correct - 1, guesses, q))
    if delta == 0:
        return beta
    i = np.arange(1, correct + 1)
    below = special.bdtr(correct - 1, guesses, q)
    under = np.where(i < correct, special.bdtr(np.maximum(correct - i - 1, 0), guesses, q), 0.0)
    alpha = float(((below - under) / i).max())
    return min(1.0, beta + 2 * candidates * delta * alpha)


def one_run_epsilon(correct: int, guesses: int, candidates: int, delta: float, *, significance: float = 0.05) -> float:
    """The largest epsilon that so many right guesses contradict, at 1 - ``significance`` confidence; 0 if none.

    Raises:
        ValueError: as `one_run_p_value`, or unless 0 < significance < 1.
    """
    if not 0 < significance < 1:
        raise ValueError(f"significance must be between 0 and 1, got {significance}")

    def contradicted(epsilon: float) -> bool:
        return one_run_p_value(correct, guesses, candidates, epsilon, delta) <= significance

    if not contradicted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while contradicted(high):  # ends: at a large epsilon all guesses are expected to be right
        low, high = high, 2 * high
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if contradicted(middle) else (low, middle)
    return low


def one_run_ceiling(guesses: int, candidates: int, delta: float, *, significance: float = 0.05) -> float:
    """The most `one_run_epsilon` can show: every guess right. At delta 0, ``-log(significance^(-1/guesses) - 1)``."""
    return one_run_epsilon(guesses, guesses, candidates, delta, significance=significance)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu = 1 / noise multiplier of a Gaussian mechanism that is exactly (epsilon, delta)-DP.

    Solves delta = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2) (Balle and Wang, arXiv:1805.06530).

    Raises:
        ValueError: unless epsilon > 0 and 0 < delta < 1.
    """
    if not (0 < epsilon < inf and 0 < delta < 1):
        raise ValueError(f"a Gaussian mechanism needs epsilon > 0 and 0 < delta < 1, got {epsilon} and {delta}")

    def excess(mu: float) -> float:
        first = special.ndtr(-epsilon / mu + mu / 2)
        return float(first - exp(epsilon + special.log_ndtr(-epsilon / mu - mu / 2))) - delta

    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(optimize.brentq(excess, 1e-3 * min(1.0, epsilon), high, xtol=1e-12))


def ideal_epsilon(
    epsilon: float,
    delta: float,
    candidates: int,
    k: int,
    *,
    rng: np.random.Generator,
    audits: int = 101,
    significance: float = 0.05,
) -> float:
    """Median `one_run_epsilon` of a perfect attacker on an exactly tight claim: what this audit could show at best.

    Simulates ``audits`` audits of a Gaussian mechanism whose every candidate's score is seen directly.

    Raises:
        ValueError: as `gaussian_mu`, `fixed_guesses` and `one_run_epsilon`.
    """
    mu = gaussian_mu(epsilon, delta)

    @cache
    def bound(correct: int) -> float:
        return one_run_epsilon(correct, 2 * k, candidates, delta, significance=significance)

    bounds = []
    for _ in range(audits):
        planted = rng.random(candidates) < 0.5
        scores = mu * planted + rng.standard_normal(candidates)
        bounds.append(bound(fixed_guesses(scores, planted, k).correct))
    return float(np.median(bounds))


def membership(
    scores: np.ndarray,
    planted: np.ndarray,
    *,
    delta: float,
    claim: float | None = None,
    k: int | None = None,
    significance: float = 0.05,
) -> Membership:
    """Everything this module says about planted and held-out candidates.

    Args:
        scores: (candidates,) higher = more likely planted.
        planted: (candidates,) bool, independent fair coin flips.
        delta: of the guarantee, or the one to audit at.
        claim: the promised epsilon, for the p-value; None where nothing is promised.
        k: guesses per side; None: `guesses_per_side`.
        significance: of the lower bound.

    Raises:
        ValueError: as the functions it calls; each group needs two candidates.
    """
    scores, planted = _candidates(scores, planted)
    members, others = scores[planted], scores[~planted]
    total = len(scores)
    correct, made = fixed_guesses(scores, planted, guesses_per_side(total) if k is None else k)
    return Membership(
        auc=auc(members, others),
        at_fpr=tuple(tpr_at_fpr(members, others, rate) for rate in _RATES if _enough(len(others), rate)),
        one_run=OneRun(
            correct=correct,
            guesses=made,
            candidates=total,
            epsilon=one_run_epsilon(correct, made, total, delta, significance=significance),
            ceiling=one_run_ceiling(made, total, delta, significance=significance),
            p_value=None if claim is None else one_run_p_value(correct, made, total, claim, delta),
        ),
    )


def _enough(others: int, fpr: float) -> bool:
    return others * fpr >= 3 - 1e-9


def _sorted(name: str, values: np.ndarray) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or np.isnan(scores).any():
        raise ValueError(f"{name} must hold one or more scores without NaN, got shape {scores.shape}")
    return np.sort(scores)


def _candidates(scores: np.ndarray, planted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, planted = np.asarray(scores, dtype=np.float64), np.asarray(planted)
    if scores.ndim != 1 or planted.shape != scores.shape or planted.dtype != np.bool_ or np.isnan(scores).any():
        raise ValueError(
            f"scores must be without NaN and planted as many booleans, got shapes {scores.shape} and {planted.shape}"
        )
    return scores, planted
