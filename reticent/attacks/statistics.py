"""From membership scores to statements about privacy: ROC, TPR at a low FPR, and epsilon from training runs.

What is covered: the one-run audit of Steinke, Nasr and Jagielski (arXiv:2305.08846) with a guess rule fixed before
looking, and what it can find at best; bounds from rates, their threshold fixed on other scores; estimates that assume
Gaussian laws, which say so in their result; the best of many attacks. What is not: bounds that choose the threshold on
the data they judge. The one-run results hold only where each candidate was planted by its own fair coin flip, one
privacy unit each.
"""

from collections.abc import Callable
from functools import lru_cache
from math import ceil, exp, inf, log, sqrt
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from reticent.statistics import Estimate, auc, clopper_pearson, mid_ranks, permutation_p, share_upper

GAUSSIAN_CURVE = "assumes a Gaussian trade-off curve"
GAUSSIAN_PAIR = "assumes Gaussian cosines; an estimate, not a bound"
_RATES = (0.1, 0.01, 0.001)
_CELLS = 2_000_000  # numbers held while simulating: 16 MB of float64


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


class Assumed(NamedTuple):
    """An epsilon that is true only under ``assumption``: print both or neither."""

    epsilon: float
    assumption: str


class SplitBound(NamedTuple):
    """``epsilon``: lower bound at ``threshold``, fixed on one half. ``tpr`` and ``fpr``: of the other half.

    ``ceiling``: the same had that half been told apart without a mistake.
    """

    epsilon: float
    ceiling: float
    threshold: float
    tpr: float
    fpr: float


class MultiRun(NamedTuple):
    """Lower bound from one trial a training: it called ``found`` of ``members`` members, and ``accused`` of ``others``.

    ``ceiling``: the same without a mistake.
    """

    epsilon: float
    ceiling: float
    found: int
    members: int
    accused: int
    others: int


class ClientCanaries(NamedTuple):
    """``mu`` and ``sigma`` of the inserted clients' cosines, their estimate, and the bound that assumes nothing."""

    mu: float
    sigma: float
    epsilon: Assumed
    one_run: OneRun


class Advantage(NamedTuple):
    """``value`` = max(TPR - FPR) over all thresholds, biased upwards: a model without any leak shows ``floor``.

    ``interval`` covers the true maximum; ``p_value`` is against no leak.
    """

    value: float
    interval: tuple[float, float]
    p_value: float
    floor: float


class Family(NamedTuple):
    """Several attacks on the same records: (attacks,) AUC and p-value, corrected for taking the best of them.

    ``null_best`` is the AUC that the best of them exceeds in 5 % of models without a leak.
    """

    auc: np.ndarray
    p_value: np.ndarray
    null_best: float


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
    _check_rate(fpr, len(others))
    allowed = int(fpr * len(others) + 1e-9)
    # Strictly above it stand `allowed` others, or fewer where they tie.
    return tpr_at_threshold(members, others, float(others[-allowed - 1]), fpr)


def threshold_for(calibration: np.ndarray, fpr: float) -> float:
    """The score that a new non-member exceeds with a chance of ``fpr`` at most, from scores of other non-members.

    The order statistic of split conformal prediction (Vovk et al. 2005): the chance holds on average over calibration
    sets, for any law of the scores. "Member" is a score strictly above it.

    Raises:
        ValueError: if there are fewer than 3 / ``fpr`` scores, or NaN.
    """
    scores = _sorted("calibration", calibration)
    _check_rate(fpr, len(scores))
    return float(scores[ceil((1 - fpr) * (len(scores) + 1) - 1e-9) - 1])


def tpr_at_threshold(members: np.ndarray, others: np.ndarray, threshold: float, fpr: float) -> TprAtFpr:
    """TPR with its exact interval, and what the FPR turned out to be, at a threshold fixed on other scores.

    Args:
        members: (n,) scores, one for each unit of privacy.
        others: (m,) scores.
        threshold: "member" is a score strictly above it (`threshold_for`).
        fpr: the rate that the threshold was made for.

    Raises:
        ValueError: as `tpr_at_fpr`, or if the threshold is NaN.
    """
    members, others = _sorted("members", members), _sorted("others", others)
    _check_rate(fpr, len(others))
    if np.isnan(threshold):
        raise ValueError("the threshold is not a number")
    found, accused = int((members > threshold).sum()), int((others > threshold).sum())
    return TprAtFpr(
        target=fpr,
        tpr=found / len(members),
        interval=clopper_pearson(found, len(members)),
        fpr=accused / len(others),
        fpr_upper=share_upper(accused, len(others)),
    )


def flagged_per_1000(at: TprAtFpr) -> Estimate:
    """Members of every 1,000 that the attack names, at that rate of false alarms, with the exact interval."""
    return Estimate(1000 * at.tpr, (1000 * at.interval[0], 1000 * at.interval[1]))


def advantage(
    members: np.ndarray, others: np.ndarray, *, rng: np.random.Generator, draws: int = 1000, level: float = 0.95
) -> Advantage:
    """Membership advantage max(TPR - FPR) (Yeom et al., arXiv:1709.01604), honest about the maximum.

    The best threshold is chosen on the very scores it judges, so the value is above 0 without any leak. Three things
    make up for it: the interval is of bands that hold at all thresholds at once (Dvoretzky, Kiefer and Wolfowitz with
    Massart's constant 1990), the p-value takes the same maximum under permuted labels, and their mean is the floor.

    Args:
        members: (n,) scores, one for each unit of privacy.
        others: (m,) scores.
        rng: permutes the labels.
        draws: permutations.
        level: of the interval.

    Raises:
        ValueError: if a group is empty or holds NaN, or the level is not between 0 and 1.
    """
    members, others = _sorted("members", members), _sorted("others", others)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    n, m = len(members), len(others)
    pooled = np.concatenate([members, others])
    order = np.argsort(-pooled)
    last = np.append(pooled[order[1:]] != pooled[order[:-1]], True)  # a threshold never parts equal scores
    labels = np.arange(n + m) < n

    def best(labels: np.ndarray) -> np.ndarray:
        # (draws,) in whole numbers, n m times the advantage, so that ties are exact.
        steps = np.where(labels, m, -n).cumsum(axis=-1)
        largest: np.ndarray = np.maximum(steps[..., last].max(axis=-1), 0)
        return largest

    observed = int(best(labels[order]))
    permuted = np.concatenate([best(drawn) for drawn in _permuted(labels, draws, rng)])
    value = observed / (n * m)
    band = sum(sqrt(log(4 / (1 - level)) / (2 * size)) for size in (n, m))
    return Advantage(
        value=value,
        interval=(max(0.0, value - band), min(1.0, value + band)),
        p_value=permutation_p(observed, permuted),
        floor=float(permuted.mean()) / (n * m),
    )


def max_statistic(scores: np.ndarray, members: np.ndarray, *, rng: np.random.Generator, draws: int = 1000) -> Family:
    """AUC of many attacks on the same records, corrected for their number by permuting who is a member.

    The p-value of an attack is the chance that the best of all of them does so well without a leak (Westfall and Young
    1993, single step): exact for correlated attacks, where Bonferroni is too strict.

    Args:
        scores: (attacks, records) higher = more likely a member; one record for each unit of privacy.
        members: (records,) bool.
        rng: permutes the labels.
        draws: permutations.

    Raises:
        ValueError: if a score is NaN, shapes differ, or a group is empty.
    """
    scores, members = np.asarray(scores, dtype=np.float64), np.asarray(members)
    if scores.ndim != 2 or not scores.size or members.shape != scores.shape[1:] or members.dtype != np.bool_:
        raise ValueError(f"scores must be (attacks, records) and members as many booleans, got {scores.shape}")
    n = int(members.sum())
    m = len(members) - n
    if np.isnan(scores).any() or not (n and m):
        raise ValueError(f"scores must be without NaN, of members and of others, got {n} and {m}")
    # (attacks, records): rank sums are halves of whole numbers, so ties are exact.
    ranks = np.stack([mid_ranks(row) for row in scores])
    observed = ranks @ members.astype(np.float64)
    best = np.concatenate([(drawn @ ranks.T).max(axis=1) for drawn in _permuted(members * 1.0, draws, rng)])

    def area(rank_sum: np.ndarray) -> np.ndarray:
        return (rank_sum - n * (n + 1) / 2) / (n * m)

    return Family(
        auc=area(observed),
        p_value=np.array([permutation_p(rank_sum, best) for rank_sum in observed]),
        null_best=float(np.quantile(area(best), 0.95)),
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
    _check_guesses(correct, guesses, candidates)
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

    return _one_run_epsilon(correct, guesses, candidates, delta, significance)


@lru_cache(maxsize=65536)
def _one_run_epsilon(correct: int, guesses: int, candidates: int, delta: float, significance: float) -> float:
    def slack(epsilon: float) -> float:
        return one_run_p_value(correct, guesses, candidates, epsilon, delta) - significance

    return _last_contradicted(slack)


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
        return _gaussian_delta(mu, epsilon) - delta

    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(optimize.brentq(excess, 1e-3 * min(1.0, epsilon), high, xtol=1e-12))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon of a Gaussian mechanism of noise multiplier 1 / mu at ``delta``: inverse of `gaussian_mu`.

    Raises:
        ValueError: unless mu >= 0 and 0 < delta < 1.
    """
    if not (0 <= mu < inf and 0 < delta < 1):
        raise ValueError(f"a Gaussian mechanism needs mu >= 0 and 0 < delta < 1, got {mu} and {delta}")
    return 0.0 if mu == 0 else _root(lambda epsilon: _gaussian_delta(mu, epsilon) - delta)


def fdp_epsilon(correct: int, guesses: int, candidates: int, delta: float, *, significance: float = 0.05) -> Assumed:
    """Epsilon from one run, ASSUMING A GAUSSIAN TRADE-OFF CURVE (Mahloujifar et al., arXiv:2410.22235).

    Finds the least noise multiplier whose f-DP audit does not reject so many right guesses, and converts it to epsilon
    at ``delta``. A mechanism of another shape, such as randomised response, is overstated in most audits: no bound.

    Raises:
        ValueError: as `one_run_p_value`, or unless 0 < significance < 1 and delta > 0.
    """
    _check_guesses(correct, guesses, candidates)
    if not (0 < significance < 1 and 0 < delta < 1):
        raise ValueError(f"significance and delta must be between 0 and 1, got {significance} and {delta}")
    return Assumed(_fdp_epsilon(correct, guesses, candidates, delta, significance), GAUSSIAN_CURVE)


@lru_cache(maxsize=65536)
def _fdp_epsilon(correct: int, guesses: int, candidates: int, delta: float, significance: float) -> float:
    def slack(mu: float) -> float:
        # Positive where the audit does not reject: the cap that the curve sets on r + h reaches the guesses made.
        r = significance * correct / candidates
        h = significance * (guesses - correct) / candidates
        for i in range(correct - 1, -1, -1):
            caught = float(special.ndtr(special.ndtri(r) - mu))
            if caught <= h:
                break  # neither can change any more
            r = min(1.0, r + i / (guesses - i) * (caught - h))
            h = caught
        return guesses / candidates - (r + h)

    return gaussian_epsilon(_last_contradicted(slack), delta)


def clopper_pearson_epsilon(
    found: int, members: int, accused: int, others: int, delta: float, *, significance: float = 0.05
) -> float:
    """Lower bound from rates at a threshold fixed on other scores: ``ln((TPR - delta) / FPR)`` or its mirror, or 0.

    TPR from below and FPR from above are exact bounds at ``significance / 2`` each. They bound TNR and FNR of the
    mirrored guess too, so both directions hold at once. Trials must be independent (arXiv:2006.07709, 2101.04535).

    Args:
        found: members called members.
        members: trials.
        accused: others called members.
        others: trials.
        delta: of the guarantee.
        significance: chance of a bound above the truth.

    Raises:
        ValueError: unless counts are within their trials, 0 < significance < 1 and 0 <= delta < 1.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be from 0 to below 1, got {delta}")
    if not (0 <= found <= members and 0 <= accused <= others and members and others and 0 < significance < 1):
        raise ValueError(
            f"rates need counts within their trials and 0 < significance < 1, got {found} of {members}, {accused} of "
            f"{others} and {significance}"
        )
    return float(_rates_epsilon(np.array([found]), members, np.array([accused]), others, delta, significance)[0])


def _rates_epsilon(
    found: np.ndarray, members: int, accused: np.ndarray, others: int, delta: float, significance: float
) -> np.ndarray:
    """(thresholds,) bounds from (thresholds,) counts."""
    tail = significance / 2
    # The exact ends of 0 of n and n of n are 0 and 1; `maximum` only keeps the unused branch of `where` from NaN.
    tpr = np.where(found == 0, 0.0, special.betaincinv(np.maximum(found, 1), members - found + 1, tail))
    fpr = np.where(accused == others, 1.0, special.betaincinv(accused + 1, np.maximum(others - accused, 1), 1 - tail))
    right = np.maximum(0.0, np.stack([tpr, 1 - fpr]) - delta)
    with np.errstate(divide="ignore"):  # a rate of 0 bounds nothing
        both = np.log(right) - np.log(np.stack([fpr, 1 - tpr]))
    best: np.ndarray = both.max(axis=0, initial=0.0)
    return best


def split_epsilon(
    scores: np.ndarray, planted: np.ndarray, delta: float, *, seed: int, significance: float = 0.05
) -> SplitBound:
    """Lower bound by `clopper_pearson_epsilon`: half of the candidates set the threshold that judges the other half.

    Candidates of one training count as independent trials here, which they are only as far as they do not influence
    each other; the one-run bound does not need that.

    Args:
        scores: (candidates,) higher = more likely planted.
        planted: (candidates,) bool.
        delta: of the guarantee.
        seed: chooses the halves, each with half of the planted ones.
        significance: chance of a bound above the truth.

    Raises:
        ValueError: if fewer than two are planted or held out, a score is NaN, or as `clopper_pearson_epsilon`.
    """
    scores, planted = _candidates(scores, planted)
    groups = scores[planted], scores[~planted]
    if min(map(len, groups)) < 2:
        raise ValueError(f"a split needs two planted and two held out, got {len(groups[0])} and {len(groups[1])}")
    rng = np.random.default_rng(seed)
    (first_in, members), (first_out, others) = (np.array_split(rng.permutation(group), 2) for group in groups)

    def bounds(members: np.ndarray, others: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        found, accused = (len(group) - np.searchsorted(np.sort(group), thresholds) for group in (members, others))
        return _rates_epsilon(found, len(members), accused, len(others), delta, significance)

    thresholds = np.unique(np.concatenate([first_in, first_out]))
    threshold = float(thresholds[int(np.argmax(bounds(first_in, first_out, thresholds)))])
    return SplitBound(
        epsilon=float(bounds(members, others, np.array([threshold]))[0]),
        ceiling=clopper_pearson_epsilon(len(members), len(members), 0, len(others), delta, significance=significance),
        threshold=threshold,
        tpr=float((members >= threshold).mean()),
        fpr=float((others >= threshold).mean()),
    )


def multi_run_epsilon(
    scores: np.ndarray, planted: np.ndarray, delta: float, *, seed: int, significance: float = 0.05
) -> MultiRun:
    """Lower bound from K trainings: one candidate of each is judged, so the K trials are independent.

    The threshold of a training is the one that best parts its other candidates (largest TPR - FPR). With few trainings
    the ceiling is low: 0.5 at 8 + 8, 2.6 at 50 + 50.

    Args:
        scores: (K, candidates) higher = more likely planted.
        planted: (K, candidates) bool, independent fair coin flips for each training.
        delta: of the guarantee.
        seed: chooses the candidate of each training.
        significance: chance of a bound above the truth.

    Raises:
        ValueError: if a score is NaN, shapes differ, or no trial is planted or held out.
    """
    scores, planted = np.asarray(scores, dtype=np.float64), np.asarray(planted)
    if scores.ndim != 2 or scores.shape[1] < 3 or planted.shape != scores.shape or planted.dtype != np.bool_:
        raise ValueError(
            f"scores must be (trainings, 3 or more candidates) and planted as many booleans, got {scores.shape}"
        )
    chosen = np.random.default_rng(seed).integers(scores.shape[1], size=len(scores))
    called, is_in = np.zeros(len(scores), dtype=bool), planted[np.arange(len(scores)), chosen]
    for run, judged in enumerate(chosen):
        others = np.arange(scores.shape[1]) != judged
        called[run] = scores[run, judged] >= _best_threshold(scores[run, others], planted[run, others])
    found, members = int((called & is_in).sum()), int(is_in.sum())
    accused, held_out = int((called & ~is_in).sum()), int((~is_in).sum())
    if not (members and held_out):
        raise ValueError(f"trials must be of both kinds, got {members} planted and {held_out} held out")
    return MultiRun(
        epsilon=clopper_pearson_epsilon(found, members, accused, held_out, delta, significance=significance),
        ceiling=clopper_pearson_epsilon(members, members, 0, held_out, delta, significance=significance),
        found=found,
        members=members,
        accused=accused,
        others=held_out,
    )


def pair_epsilon(mean: float, deviation: float, null_deviation: float, delta: float) -> float:
    """Epsilon at ``delta`` that parts N(mean, deviation^2) from N(0, null_deviation^2), in the worse direction.

    Solves for the hockey-stick divergence, whose region is the solution of a quadratic in the score.

    Raises:
        ValueError: unless the deviations are positive, the mean is finite and 0 < delta < 1.
    """
    if not (abs(mean) < inf and 0 < deviation < inf and 0 < null_deviation < inf and 0 < delta < 1):
        raise ValueError(
            f"a pair of Gaussians needs a finite mean, positive deviations and 0 < delta < 1, got {mean}, {deviation}, "
            f"{null_deviation} and {delta}"
        )
    shift, ratio = mean / null_deviation, deviation / null_deviation

    def excess(epsilon: float) -> float:
        forward = _hockey_stick(shift, ratio, epsilon)
        return max(forward, _hockey_stick(-shift / ratio, 1 / ratio, epsilon)) - delta

    return _root(excess)


def client_epsilon(
    cosines: np.ndarray, planted: np.ndarray, dimensions: int, delta: float, *, claim: float | None = None
) -> ClientCanaries:
    """Epsilon of whole clients in one training, from canary clients that sent random directions (arXiv:2302.03098).

    The cosine of a direction that was never sent and the model's change follows N(0, 1 / dimensions). That of the
    sent ones is fitted by a Gaussian; the pair gives the estimate. The one-run bound on the same cosines assumes
    nothing about their law.

    Args:
        cosines: (clients,) of each client's direction with the model's change.
        planted: (clients,) bool, by independent fair coin flips: who took part.
        dimensions: length of the model's change.
        delta: of the guarantee.
        claim: the promised epsilon of a client; None where nothing is promised.

    Raises:
        ValueError: if fewer than two took part or all cosines of theirs are equal, a cosine is outside -1..1, or delta
            is not between 0 and 1.
    """
    cosines, planted = _candidates(cosines, planted)
    inserted = cosines[planted]
    if len(inserted) < 2 or (np.abs(cosines) > 1 + 1e-6).any() or dimensions < 2:
        raise ValueError(
            f"two or more canary clients must take part, with cosines from -1 to 1, got {len(inserted)} "
            f"in {dimensions} dimensions"
        )
    mu, sigma = float(inserted.mean()), float(inserted.std(ddof=1))
    return ClientCanaries(
        mu=mu,
        sigma=sigma,
        epsilon=Assumed(pair_epsilon(mu, sigma, 1 / sqrt(dimensions), delta), GAUSSIAN_PAIR),
        one_run=_one_run(cosines, planted, guesses_per_side(len(cosines)), delta, claim, 0.05),
    )


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
    bounds = []
    for _ in range(audits):
        planted = rng.random(candidates) < 0.5
        scores = mu * planted + rng.standard_normal(candidates)
        correct = fixed_guesses(scores, planted, k).correct
        bounds.append(one_run_epsilon(correct, 2 * k, candidates, delta, significance=significance))
    return float(np.median(bounds))


def detectable_epsilon(
    candidates: int,
    k: int,
    delta: float,
    *,
    power: float = 0.9,
    claim: float = 0.0,
    significance: float = 0.05,
    seed: int = 0,
) -> float | None:
    """The smallest true epsilon that this audit contradicts ``claim`` with at the chance ``power``; None if none.

    For a Gaussian mechanism and a perfect attacker, so a real attack finds no less. With a claim of 0, "contradicts"
    means that the lower bound is above 0: a leak is found. By simulation, whose error is about 3 %.

    Args:
        candidates: planted or not by fair coin flips.
        k: guesses per side.
        delta: of the guarantee, above 0: a Gaussian mechanism has no finite epsilon at 0.
        power: chance to find it.
        claim: the promised epsilon.
        significance: of the one-run test.
        seed: of the simulation.

    Raises:
        ValueError: unless 1 <= k <= candidates / 2, power, significance and delta are between 0 and 1, and claim >= 0.
    """
    if not 1 <= k <= candidates // 2:
        raise ValueError(f"k must be from 1 to {candidates // 2}, half of the candidates, got {k}")
    if not all(0 < share < 1 for share in (power, significance, delta)):
        raise ValueError(f"power, significance and delta must be between 0 and 1: {power}, {significance}, {delta}")
    return _detectable_epsilon(candidates, k, delta, power, claim, significance, seed)


@lru_cache(maxsize=256)
def _detectable_epsilon(
    candidates: int, k: int, delta: float, power: float, claim: float, significance: float, seed: int
) -> float | None:
    counts = range(2 * k + 1)
    needed = next((v for v in counts if one_run_p_value(v, 2 * k, candidates, claim, delta) <= significance), None)
    if needed is None:
        return None
    rng = np.random.default_rng(seed)
    audits = max(100, min(1000, _CELLS // (2 * candidates)))
    planted = rng.random((audits, candidates)) < 0.5
    noise = rng.standard_normal((audits, candidates))

    def found(mu: float) -> float:
        # Never falls in mu: the planted all rise by as much above the same noise.
        order = np.argpartition(noise + mu * planted, (k - 1, candidates - k), axis=1)
        highest = np.take_along_axis(planted, order[:, -k:], axis=1).sum(axis=1)
        lowest = k - np.take_along_axis(planted, order[:, :k], axis=1).sum(axis=1)
        return float((highest + lowest >= needed).mean())

    low, high = 0.0, 0.5
    while found(high) < power:
        low, high = high, 2 * high
        if high > 100:
            return None  # too few of one kind to fill that side, however large the leak
    while high - low > 2e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return gaussian_epsilon(high, delta)


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
    return Membership(
        auc=auc(members, others),
        at_fpr=tuple(tpr_at_fpr(members, others, rate) for rate in _RATES if _enough(len(others), rate)),
        one_run=_one_run(
            scores, planted, guesses_per_side(len(scores)) if k is None else k, delta, claim, significance
        ),
    )


def _one_run(
    scores: np.ndarray, planted: np.ndarray, k: int, delta: float, claim: float | None, significance: float
) -> OneRun:
    correct, made = fixed_guesses(scores, planted, k)
    total = len(scores)
    return OneRun(
        correct=correct,
        guesses=made,
        candidates=total,
        epsilon=one_run_epsilon(correct, made, total, delta, significance=significance),
        ceiling=one_run_ceiling(made, total, delta, significance=significance),
        p_value=None if claim is None else one_run_p_value(correct, made, total, claim, delta),
    )


def _last_contradicted(slack: Callable[[float], float]) -> float:
    """The largest x >= 0 with ``slack(x) <= 0``, for a slack that rises to above 0; 0 if there is none."""
    if slack(0.0) > 0:
        return 0.0
    low, high = 0.0, 1.0
    while slack(high) <= 0:
        low, high = high, 2 * high
    return float(optimize.brentq(slack, low, high, xtol=1e-10))


def _root(excess: Callable[[float], float]) -> float:
    """Where ``excess`` falls to 0; 0 if it is not above 0 at 0."""
    return _last_contradicted(lambda x: -excess(x))


def _gaussian_delta(mu: float, epsilon: float) -> float:
    second = exp(epsilon + special.log_ndtr(-epsilon / mu - mu / 2))
    return float(special.ndtr(-epsilon / mu + mu / 2)) - second


def _hockey_stick(mean: float, deviation: float, epsilon: float) -> float:
    """sup over events of N(mean, deviation^2) - e^epsilon N(0, 1), at epsilon >= 0."""
    # The event: square x^2 + slope x > level, where the log-ratio of the densities is above epsilon.
    square = (1 - deviation**-2) / 2
    slope = mean / deviation**2
    level = epsilon + log(deviation) + mean**2 / (2 * deviation**2)
    if abs(square) < 1e-9:  # equal deviations: a half-line
        if slope == 0:
            return 0.0
        edge = level / slope
        pieces = [(-inf, edge) if slope < 0 else (edge, inf)]
    else:
        root = slope**2 + 4 * square * level
        if root <= 0:
            return 0.0
        larger = -(slope + (1 if slope >= 0 else -1) * sqrt(root)) / 2  # without cancellation
        low, high = sorted((larger / square, -level / larger))
        pieces = [(low, high)] if square < 0 else [(-inf, low), (high, inf)]
    return sum(
        exp(_log_mass((low - mean) / deviation, (high - mean) / deviation)) - exp(epsilon + _log_mass(low, high))
        for low, high in pieces
    )


def _log_mass(low: float, high: float) -> float:
    """Logarithm of the standard normal's mass between two ends, right in either tail."""
    if low > 0:
        low, high = -high, -low
    above, below = float(special.log_ndtr(high)), float(special.log_ndtr(low))
    return -inf if below >= above else above + float(np.log1p(-exp(below - above)))


def _best_threshold(scores: np.ndarray, planted: np.ndarray) -> float:
    """The threshold with the largest TPR - FPR; infinite where one kind is missing."""
    if planted.all() or not planted.any():
        return inf
    fpr, tpr = roc(scores[planted], scores[~planted])
    best = int(np.argmax(tpr - fpr))
    return float(np.concatenate([[inf], np.unique(scores)[::-1]])[best])


def _permuted(labels: np.ndarray, draws: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled copies of (n,) labels, (at once, n) each: ``draws`` in all."""
    block = max(1, _CELLS // len(labels))
    return [rng.permuted(np.tile(labels, (min(block, draws - i), 1)), axis=1) for i in range(0, draws, block)]


def _check_rate(fpr: float, others: int) -> None:
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must be between 0 and 1, got {fpr}")
    if not _enough(others, fpr):
        raise ValueError(f"a false-positive rate of {fpr} needs {ceil(3 / fpr - 1e-9)} others or more, got {others}")


def _check_guesses(correct: int, guesses: int, candidates: int) -> None:
    if not 0 <= correct <= guesses <= candidates or guesses < 1:
        raise ValueError(
            f"one run needs 0 <= correct <= guesses <= candidates and a guess, got {correct}, {guesses}, {candidates}"
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
