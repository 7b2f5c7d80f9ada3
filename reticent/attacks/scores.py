"""Membership scores, one per record. A higher score always means "more likely a member".

Most take the token log-probabilities of each record, ``logp``: one (tokens,) array per record, nats, and use L, the
mean negative log-probability per token, of the target model (L_t) or of the model before training (L_0). Scores that
need other models or thresholds take one number per record. The definitions are those of the papers; where a paper's
code gives NaN or calls the best remembered text no member, what is done instead is said.
"""

import zlib as compression
from collections.abc import Sequence

import numpy as np

from reticent.models.language_model import TokenScores

Logp = Sequence[np.ndarray]

WIDTHS = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)
_AT_ONCE = 1000  # records
_LEAST_LOSS = 1e-6  # nats; a loss of zero cannot be divided by
_LEAST_DEVIATION = 1e-4  # nats; below it float32 rounding is all there is
_LEAST_SPREAD = 1e-6  # of twins' scores, nats
_OWN_SPREAD = 64  # twins from which each record's own spread is known well enough (Carlini et al. 2022)


# --- one model ---


def loss(logp: Logp) -> np.ndarray:
    """Mean token log-probability: the negative loss (Yeom et al. 2018).

    Args:
        logp: one (tokens,) array of natural-log probabilities per record.

    Returns:
        (records,) float64, nats per token.

    Raises:
        ValueError: if a record has no token or a value that is not finite; the message names its index.
    """
    flat, starts = _flat(logp)
    return _means(flat, starts)


def perplexity(logp: Logp) -> np.ndarray:
    """Minus the perplexity, -exp(L): ranks as `loss`.

    Raises:
        ValueError: as `loss`.
    """
    negative: np.ndarray = -np.exp(-loss(logp))
    return negative


def zlib(logp: Logp, texts: Sequence[str]) -> np.ndarray:
    """Minus the loss per byte of the zlib-compressed text, -L / len(zlib(x)) (Carlini et al. 2021).

    L is the mean per token, as in the papers' benchmarks; dividing the total ranks differently.

    Args:
        logp: as `loss`.
        texts: the text of each record.

    Raises:
        ValueError: as `loss`, or if ``texts`` has another length.
    """
    if len(texts) != len(logp):
        raise ValueError(f"{len(logp)} records but {len(texts)} texts: give the text of each record")
    sizes = [len(compression.compress(text.encode("utf-8", "surrogatepass"))) for text in texts]
    scores: np.ndarray = loss(logp) / np.array(sizes, dtype=np.float64)
    return scores


def lowercase(logp: Logp, lower: Logp) -> np.ndarray:
    """Loss of the lowercased text over the loss of the text, L(lower x) / L(x) (Carlini et al. 2021).

    Args:
        logp: as `loss`.
        lower: the same records in lower case, under the same model; their tokens may differ in number.

    Raises:
        ValueError: as `loss`, or if the two hold different numbers of records.
    """
    _same_records("logp", logp, "lower", lower)
    return _ratio(-loss(lower), -loss(logp))


def min_k(logp: Logp, share: float = 0.2) -> np.ndarray:
    """Mean of the lowest ``share`` of token log-probabilities, of max(1, floor(share n)) tokens (Shi et al. 2024).

    Raises:
        ValueError: as `loss`, or unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    flat, starts = _flat(logp)
    return _lowest(flat, starts, share)


def min_k_plus(scores: Sequence[TokenScores], share: float = 0.2) -> np.ndarray:
    """Min-K%++: as `min_k`, of (log p - mean) / deviation over the vocabulary (Zhang et al. 2025, equation 3).

    Deviations are at least 1e-4 nats: below, the quotient is rounding.

    Args:
        scores: of each record, with the vocabulary's ``mean`` and ``deviation``.
        share: of the tokens.

    Raises:
        ValueError: as `min_k`, or if a record's mean and deviation are missing.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    means, deviations = [], []
    for i, one in enumerate(scores):
        if one.mean is None or one.deviation is None:
            raise ValueError(f"record {i} has no mean and deviation over the vocabulary: score with vocabulary=True")
        means.append(one.mean)
        deviations.append(one.deviation)
    flat, starts = _flat([one.logp for one in scores])
    centred = flat - _flat(means)[0]
    return _lowest(centred / np.maximum(_flat(deviations)[0], _LEAST_DEVIATION), starts, share)


def window(logp: Logp, width: int = 50) -> np.ndarray:
    """Highest mean log-probability of ``width`` consecutive tokens; of all tokens where there are fewer.

    The least perplexity of any window that slides token by token (Carlini et al. 2021).

    Raises:
        ValueError: as `loss`, or if ``width`` is below 1.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    flat, starts = _flat(logp)
    counts = _counts(flat, starts)
    scores = _means(flat, starts)
    total = np.concatenate([[0.0], np.cumsum(flat)])
    for i in np.flatnonzero(counts > width):
        own = total[starts[i] : starts[i] + counts[i] + 1]
        scores[i] = (own[width:] - own[:-width]).max() / width
    return scores


def recall(logp: Logp, conditional: Logp) -> np.ndarray:
    """Loss after text of non-members over the loss alone, L(x | prefix) / L(x) (ReCaLL, Xie et al. 2024).

    Both are means over the same tokens: give those of the record that are predicted with and without the prefix.

    Args:
        logp: as `loss`.
        conditional: the same records and tokens, read after the prefix.

    Raises:
        ValueError: as `loss`, or if the two do not hold the same records and tokens.
    """
    _same_tokens("logp", logp, "conditional", conditional)
    return _ratio(-loss(conditional), -loss(logp))


def neighbour(logp: Logp, neighbours: Sequence[np.ndarray]) -> np.ndarray:
    """Mean loss of slightly changed texts minus the loss of the text (Mattern et al. 2023).

    Args:
        logp: as `loss`.
        neighbours: per record, (neighbours,) mean losses in nats per token of its neighbours.

    Raises:
        ValueError: as `loss`, or if a record has no neighbour.
    """
    _same_records("logp", logp, "neighbours", neighbours)
    flat, starts = _flat(neighbours)
    scores: np.ndarray = _means(flat, starts) + loss(logp)
    return scores


# --- the model and what it was before training ---


def loss_difference(target: Logp, base: Logp) -> np.ndarray:
    """How much training helped each record, L_0 - L_t: base loss minus target loss ("Ref-diff").

    The base model, before training, knows which texts are easy; the difference keeps what was learned.

    Args:
        target: one (tokens,) array per record, from the trained model.
        base: the same records and tokens, from the model before training.

    Returns:
        (records,) float64, nats per token.

    Raises:
        ValueError: as `loss`, or if the two do not hold the same records and tokens.
    """
    _same_tokens("target", target, "base", base)
    difference: np.ndarray = loss(target) - loss(base)
    return difference


def loss_ratio(target: Logp, base: Logp) -> np.ndarray:
    """Minus the target's loss over the base's, -L_t / L_0 (Carlini et al. 2021).

    Raises:
        ValueError: as `loss_difference`.
    """
    _same_tokens("target", target, "base", base)
    return -_ratio(-loss(target), -loss(base))


def normalised_perplexity(target: Logp, base: Logp) -> np.ndarray:
    """The base's perplexity over the target's, exp(L_0 - L_t): ranks as `loss_difference`; above 1, training helped.

    Raises:
        ValueError: as `loss_difference`.
    """
    ratio: np.ndarray = np.exp(loss_difference(target, base))
    return ratio


def wbc(target: Logp, base: Logp, widths: Sequence[int] = WIDTHS) -> np.ndarray:
    """Share of windows in which the base's loss exceeds the target's, averaged over ``widths`` ("window-based
    comparison", arXiv 2601.02751).

    Widths above a record's length are left out for it; one of fewer tokens than every width is one window.

    Raises:
        ValueError: as `loss_difference`, or if a width is below 1 or there is none.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be one or more numbers of at least 1, got {list(widths)}")
    _same_tokens("target", target, "base", base)
    (ours, starts), (theirs, _) = _flat(target), _flat(base)
    helped = ours - theirs
    counts = _counts(helped, starts)
    left = np.repeat(starts + counts, counts) - np.arange(len(helped))  # tokens from here to the record's end
    totals, used = np.zeros(len(starts)), np.zeros(len(starts))
    sums = np.zeros(len(helped))
    for width in range(1, min(max(widths), len(helped)) + 1):
        # Window by window from the one before: as exact as adding up each, unlike differences of running totals.
        sums[: len(helped) - width + 1] += helped[width - 1 :]
        if width in widths:
            fits = counts >= width
            won = np.add.reduceat((sums > 0) & (left >= width), starts, dtype=np.float64)
            totals[fits] += won[fits] / (counts[fits] - width + 1)
            used[fits] += 1
    whole = np.add.reduceat(helped, starts) > 0 if len(starts) else np.zeros(0, dtype=bool)
    return np.where(used > 0, totals / np.maximum(used, 1), whole)


def ez(target: Sequence[TokenScores], base: Logp, constant: float = 0.1) -> np.ndarray:
    """log((P + c) / (N + c)): by how much training helped and hurt the tokens that the target gets wrong
    (arXiv 2601.12104).

    P and N are the sums of (l_0 - l_t)+ and (l_0 - l_t)- over those tokens, l a token's loss. The paper's own P / N is
    replaced because it calls text that the target gets wholly right no member; for such text P is over all tokens.

    Args:
        target: of each record, from the trained model.
        base: log-probabilities of the same records and tokens, from the model before training.
        constant: c, nats, above 0.

    Raises:
        ValueError: as `loss_difference`, or if ``constant`` is not above 0.
    """
    if not constant > 0:
        raise ValueError(f"constant must be above 0, got {constant}")
    logp = [one.logp for one in target]
    _same_tokens("target", logp, "base", base)
    (ours, starts), (theirs, _) = _flat(logp), _flat(base)
    if not len(starts):
        return np.empty(0)
    helped, wrong = ours - theirs, ~np.concatenate([one.hit for one in target])
    none = np.repeat(np.add.reduceat(wrong, starts, dtype=np.int64) == 0, _counts(helped, starts))
    better = np.add.reduceat(np.maximum(helped, 0) * (wrong | none), starts)
    worse = np.add.reduceat(np.maximum(-helped, 0) * wrong, starts)
    scores: np.ndarray = np.log((better + constant) / (worse + constant))
    return scores


def from_two_models(
    target: Sequence[TokenScores], base: Sequence[TokenScores], texts: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Every score that needs no more than the target and the base model, by name; `zlib` if there are ``texts``.

    `min_k_plus` is among them if the target's scores hold the vocabulary's mean and deviation. The tokens of a
    thousand records at a time are in memory.

    Raises:
        ValueError: as the scores; the index of a record is then one within its thousand.
    """
    _same_records("target", target, "base", base)
    if texts is not None:
        _same_records("target", target, "texts", texts)
    parts = []
    for begin in range(0, max(1, len(target)), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        parts.append(_two_models(target[part], base[part], None if texts is None else texts[part]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _two_models(
    target: Sequence[TokenScores], base: Sequence[TokenScores], texts: Sequence[str] | None
) -> dict[str, np.ndarray]:
    ours, theirs = [one.logp for one in target], [one.logp for one in base]
    found = {score.__name__: score(ours) for score in (loss, perplexity, min_k, window)}
    found |= {
        score.__name__: score(ours, theirs) for score in (loss_difference, loss_ratio, normalised_perplexity, wbc)
    }
    found["ez"] = ez(target, theirs)
    if all(one.mean is not None for one in target):
        found["min_k_plus"] = min_k_plus(target)
    if texts is not None:
        found["zlib"] = zlib(ours, texts)
    return found


# --- one number per record, and what others have ---


def attack_p(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Share of non-members that the model likes no better, P_z(L(z) >= L(x)) (Ye et al. 2022, "attack P").

    Args:
        scores: (records,) higher = more likely a member, such as `loss`.
        calibration: (non-members,) the same score of records that were never trained on and are not attacked.

    Raises:
        ValueError: if there is no calibration score, or a score is not finite.
    """
    values, known = _numbers("scores", scores), np.sort(_numbers("calibration", calibration))
    if not len(known):
        raise ValueError("calibration holds no score: keep some records out of training for it")
    share: np.ndarray = np.searchsorted(known, values, side="right") / len(known)
    return share


def rmia(
    target: np.ndarray,
    twins: np.ndarray,
    calibration: np.ndarray,
    calibration_twins: np.ndarray,
    *,
    trained: np.ndarray | None = None,
    a: float = 0.3,
    gamma: float = 1.0,
) -> np.ndarray:
    """Share of population records z that x beats, (p_t(x)/p(x)) / (p_t(z)/p(z)) > gamma (Zarifzadeh et al. 2024,
    offline).

    p_t = exp(-L_t) and p = ((1 + a) q + 1 - a) / 2, with q the mean of exp(-L) over the twins that were not trained on
    the record.

    Args:
        target: (records,) -L of each record under the target, as `loss` gives it.
        twins: (twins, records) the same under models like the target, the base model among them if wanted.
        calibration: (population,) -L under the target of records that no model was trained on.
        calibration_twins: (twins, population) the same under the twins.
        trained: (twins, records) bool, whether the twin was trained on the record; never if None.
        a: how much less likely a record is to a model that was not trained on it, in [0, 1].
        gamma: threshold of the ratio, above 0.

    Raises:
        ValueError: on shapes that do not fit, a parameter out of bounds, or a record that every twin was trained on.
    """
    if not 0 <= a <= 1 or not gamma > 0:
        raise ValueError(f"a must lie in [0, 1] and gamma be above 0, got {a} and {gamma}")
    values, known = _numbers("target", target), _numbers("calibration", calibration)
    if not len(known):
        raise ValueError("calibration holds no record: keep some out of training for it")
    lacked = ~_trained(twins, trained, len(values))
    if not lacked.any(axis=0).all():
        raise ValueError(f"record {int(np.argmin(lacked.any(axis=0)))} was trained on by every twin: leave it out")
    out = np.where(lacked, np.exp(_table("twins", twins, len(values))), 0).sum(axis=0) / lacked.sum(axis=0)
    others = np.exp(_table("calibration_twins", calibration_twins, len(known))).mean(axis=0)
    ratio = np.exp(values) / (((1 + a) * out + 1 - a) / 2)
    against = np.sort(gamma * np.exp(known) / (((1 + a) * others + 1 - a) / 2))
    share: np.ndarray = np.searchsorted(against, ratio, side="left") / len(known)
    return share


def lira(target: np.ndarray, twins: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Log-likelihood ratio of the record's score, log N(s; mu_in, sd_in) - log N(s; mu_out, sd_out) (Carlini et al.
    2022, algorithm 1).

    Means are the record's own. Under 64 twins the spread within records, pooled over all of them, replaces the
    record's own.

    Args:
        target: (records,) score of each record under the target, such as `loss`.
        twins: (twins, records) the same under models like the target.
        trained: (twins, records) bool, whether the twin was trained on the record.

    Raises:
        ValueError: on shapes that do not fit, or a record without two twins of each kind.
    """
    values = _numbers("target", target)
    table, within = _table("twins", twins, len(values)), _trained(twins, trained, len(values))
    scores: np.ndarray = _log_normal(values, *_spread(table, within)) - _log_normal(values, *_spread(table, ~within))
    return scores


def lira_offline(target: np.ndarray, twins: np.ndarray, trained: np.ndarray | None = None) -> np.ndarray:
    """How surprising the record's score is to twins that were not trained on it, Phi((s - mu_out) / sd_out) as
    standard deviations (Carlini et al. 2022, section VI.A).

    Args:
        target: (records,) score of each record under the target, such as `loss`.
        twins: (twins, records) the same under models like the target.
        trained: (twins, records) bool, whether the twin was trained on the record; never if None.

    Returns:
        (records,) float64: (s - mu_out) / sd_out, which ranks as the one-sided probability and does not saturate.

    Raises:
        ValueError: as `lira`, of twins that were not trained on the record.
    """
    values = _numbers("target", target)
    mean, spread = _spread(_table("twins", twins, len(values)), ~_trained(twins, trained, len(values)))
    scores: np.ndarray = (values - mean) / spread
    return scores


# --- parts ---


def _flat(records: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens (tokens,) float64, and where each record begins (records,)."""
    counts = np.empty(len(records), dtype=np.int64)
    for i, tokens in enumerate(records):
        if tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError(f"record {i} has no token log-probabilities (shape {tokens.shape}): leave it out")
        counts[i] = len(tokens)
    starts = np.cumsum(counts) - counts
    if not len(records):
        return np.empty(0), starts
    flat = np.concatenate(records).astype(np.float64, copy=False)
    finite = np.isfinite(flat)
    if not finite.all():
        i = int(np.searchsorted(starts, np.argmin(finite), side="right")) - 1
        raise ValueError(f"record {i} has a token log-probability that is not finite: the model is broken")
    return flat, starts


def _counts(flat: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.diff(starts, append=len(flat))


def _means(flat: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(records,) mean of each record's tokens."""
    if not len(starts):
        return np.empty(0)
    means: np.ndarray = np.add.reduceat(flat, starts) / _counts(flat, starts)
    return means


def _lowest(flat: np.ndarray, starts: np.ndarray, share: float) -> np.ndarray:
    """(records,) mean of each record's lowest ``share`` of values, of one at least."""
    scores = np.empty(len(starts))
    for i, tokens in enumerate(np.split(flat, starts[1:]) if len(starts) else ()):
        k = max(1, int(share * len(tokens) + 1e-9))  # 0.29 times 100 is 28.999...
        scores[i] = np.partition(tokens, k - 1)[:k].mean()
    return scores


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Of losses, each at least a millionth of a nat: 1 where both are zero."""
    ratio: np.ndarray = np.maximum(above, _LEAST_LOSS) / np.maximum(below, _LEAST_LOSS)
    return ratio


def _same_records(one: str, first: Sequence[object], other: str, second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise ValueError(f"{one} holds {len(first)} records, {other} {len(second)}: give the same records to both")


def _same_tokens(one: str, first: Logp, other: str, second: Logp) -> None:
    _same_records(one, first, other, second)
    for i, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        if ours.shape != theirs.shape:
            raise ValueError(f"record {i} has shape {ours.shape} in {one} and {theirs.shape} in {other}")


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers, one per record, got shape {array.shape}")
    return array


def _table(name: str, values: np.ndarray, records: int) -> np.ndarray:
    """(twins, records) float64."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != records or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers, one row per twin of {records} records, got {array.shape}")
    return array


def _trained(twins: np.ndarray, trained: np.ndarray | None, records: int) -> np.ndarray:
    """(twins, records) bool."""
    if trained is None:
        return np.zeros((len(twins), records), dtype=bool)
    array = np.asarray(trained, dtype=bool)
    if array.shape != (len(twins), records):
        raise ValueError(f"trained must have shape {(len(twins), records)}, got {array.shape}")
    return array


def _spread(table: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(records,) mean of the ``chosen`` twins' scores of each record, and their standard deviation."""
    count = chosen.sum(axis=0)
    if (count < 2).any():
        i = int(np.argmax(count < 2))
        raise ValueError(f"record {i} has {count[i]} twins of one kind, two are needed: train more, or leave it out")
    mean = np.where(chosen, table, 0).sum(axis=0) / count
    squares = np.where(chosen, (table - mean) ** 2, 0).sum(axis=0)
    if len(table) < _OWN_SPREAD:
        variance = np.full(len(count), squares.sum() / (count - 1).sum())
    else:
        variance = squares / (count - 1)
    return mean, np.maximum(np.sqrt(variance), _LEAST_SPREAD)


def _log_normal(value: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Log-density, without the constant."""
    density: np.ndarray = -np.log(spread) - ((value - mean) / spread) ** 2 / 2
    return density
