"""Whether a model recites records: which token comes next, at every place, given those before.

Nothing is generated for the main numbers. Greedy decoding says a suffix exactly if each of its tokens is the likeliest
one given the true tokens before it (`TokenScores.hit`), and a sampler says it with the product of the probabilities
that it gives to each (`TokenScores.sampled`). What this does not see: near-verbatim copies; `similarity` looks at those
in generated text.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reticent.statistics import clopper_pearson, cochran_armitage, share_upper
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LINEAR = -30.0  # log-probabilities below: log(1 - p) is -p to double precision


def places(record: Tokens, *, prefix: int, suffix: int, count: int, rng: np.random.Generator) -> list[int]:
    """Where to cut a record: up to ``count`` indices of first suffix tokens, one from each of as many equal parts.

    Admissible is an index with ``prefix`` tokens before it and ``suffix`` trained tokens from it on; empty if there is
    none.

    Raises:
        ValueError: unless prefix, suffix and count are at least 1.
    """
    if min(prefix, suffix, count) < 1:
        raise ValueError(f"prefix, suffix and count must be >= 1, got {prefix}, {suffix} and {count}")
    if len(record) < prefix + suffix:
        return []
    whole = np.convolve(record.trained, np.ones(suffix, np.int64), "valid") == suffix
    (fits,) = np.nonzero(whole[prefix:])
    parts = np.array_split(fits + prefix, min(count, len(fits))) if len(fits) else []
    return [int(rng.choice(part)) for part in parts]


def cut(record: Tokens, at: int, *, prefix: int, suffix: int) -> Tokens:
    """``prefix`` tokens before the index ``at`` and ``suffix`` from it on; only these are trained.

    Raises:
        ValueError: the record is too short for it.
    """
    if not 1 <= prefix <= at or not 1 <= suffix <= len(record) - at:
        raise ValueError(f"{prefix} tokens before {at} and {suffix} from there on do not fit in {len(record)} tokens")
    ids = record.ids[at - prefix : at + suffix]
    return Tokens(ids, np.arange(len(ids)) >= prefix)


def all_but_last(record: Tokens, suffix: int = 50) -> Tokens:
    """A record whose last ``suffix`` tokens are asked for given all others: how Goldfish training is judged.

    After the evaluation of Hans et al. 2024 (Be like a Goldfish, don't memorize!). Goldfish training works against
    exactly this test, so read `attempts` and membership beside it.

    Raises:
        ValueError: as `cut`.
    """
    return cut(record, len(record) - suffix, prefix=len(record) - suffix, suffix=suffix)


def identifiers(
    prompt: Sequence[int], text: str, spans: Sequence[tuple[int, int]], tokenizer: "PreTrainedTokenizerBase"
) -> list[Tokens]:
    """One record for each identifier: the tokens that touch its characters, given all text to its left.

    Args:
        prompt: token ids that stand before ``text``; one or more if an identifier starts the text.
        text: tokenised by itself, without special tokens.
        spans: characters (start, end) of each identifier in ``text``.
        tokenizer: one that knows which characters a token came from (a fast one).

    Raises:
        ValueError: a span is empty, ends outside of the text, or has nothing before it.
    """
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.array([*prompt, *found["input_ids"]], dtype=np.int64)
    starts, ends = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    records = []
    for number, (start, end) in enumerate(spans):
        if not 0 <= start < end <= len(text):
            raise ValueError(f"span {number} is ({start}, {end}) in a text of {len(text)} characters")
        (touched,) = np.nonzero((starts < end) & (ends > start))
        first, last = len(prompt) + int(touched[0]), len(prompt) + int(touched[-1])
        if first == 0:
            raise ValueError(f"span {number} starts the text, and nothing stands before it to be given")
        records.append(Tokens(ids[: last + 1], np.arange(last + 1) >= first))
    return records


def recited(hits: np.ndarray) -> bool:
    """Whether greedy decoding reproduces all of a suffix (Carlini et al. 2022, arXiv:2202.07646)."""
    return bool(hits.all())


def windows(scores: np.ndarray, suffix: int) -> np.ndarray:
    """Each run of ``suffix`` tokens in a row, (runs, suffix), none if there are too few.

    Of the scores of one whole record these are all its suffixes given everything before them, for one forward pass.

    Raises:
        ValueError: unless ``suffix`` is at least 1.
    """
    if suffix < 1:
        raise ValueError(f"suffix must be >= 1, got {suffix}")
    if len(scores) < suffix:
        return np.empty((0, suffix), dtype=scores.dtype)
    return np.lib.stride_tricks.sliding_window_view(scores, suffix)


def log_probability(sampled: np.ndarray) -> float:
    """Log-probability (nats) that a sampler says all of a suffix; -inf where it cannot. Summed in logs: no underflow.

    ``sampled``: (tokens,) log-probabilities under the sampler, as `TokenScores.sampled`.
    """
    return min(0.0, float(np.sum(sampled, dtype=np.float64)))


def attempts(log_p: np.ndarray | float, p: float) -> np.ndarray:
    """Samples until a text of log-probability ``log_p`` (nats) was said at least once with probability ``p``.

    ``n(p) = ceil(log(1 - p) / log(1 - p_z))``: the text is (n, p)-discoverable for this n and all above (Hayes et al.
    2024, arXiv:2410.19482). inf where p_z = 0, 1 where p_z = 1.

    Raises:
        ValueError: unless 0 < p < 1 and all log-probabilities are <= 0.
    """
    logs = np.asarray(log_p, dtype=np.float64)
    if not 0 < p < 1:
        raise ValueError(f"p must be between 0 and 1, got {p}")
    if not (logs <= 0).all():
        raise ValueError("a log-probability must be at most 0")
    with np.errstate(divide="ignore", over="ignore"):
        missed = np.where(logs > _LINEAR, np.log1p(-np.exp(logs)), -np.exp(logs))
        needed = np.log1p(-p) / missed
        # Under the smallest double p_z is lost, its logarithm is not.
        needed = np.where(logs > -600, needed, np.exp(np.log(-np.log1p(-p)) - logs))
    # A quotient of two logarithms that should be whole may come out a little above.
    whole: np.ndarray = np.maximum(1.0, np.ceil(needed * (1 - 1e-12)))
    return whole


def exact_match(hits: np.ndarray) -> float:
    """Share of tokens that greedy decoding would say given the true ones before."""
    return float(np.mean(hits))


def extraction_strength(hits: np.ndarray) -> float:
    """Share of a record, from its end, that greedy decoding says given all before: ``1 - k / tokens`` for the least k.

    0 where the last token is missed. After Carlini et al. 2021 as OpenUnlearning has it, whose loop ends one short and
    gives 1 / tokens there.
    """
    missed = np.flatnonzero(~np.asarray(hits, dtype=bool))
    return 1.0 - (int(missed[-1]) + 1) / len(hits) if len(missed) else 1.0


class Similarity(NamedTuple):
    """Of a generated text to the true one, token by token: ``bleu`` (BLEU-4, smoothing method 1) and ``rouge_l`` (F1)
    from 0 to 1, ``edit_distance`` from 0 (the same) to 1, ``longest_run`` tokens in common, ``exact``."""

    bleu: float
    rouge_l: float
    edit_distance: float
    longest_run: int
    exact: bool


def similarity(said: Sequence[int] | np.ndarray, truth: Sequence[int] | np.ndarray) -> Similarity:
    """How near generated tokens come to the true ones.

    Raises:
        ValueError: if there is no true token.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rapidfuzz.distance import LCSseq, Levenshtein

    ours, theirs = [int(token) for token in said], [int(token) for token in truth]
    if not theirs:
        raise ValueError("the true text needs a token")
    common = int(LCSseq.similarity(ours, theirs))
    return Similarity(
        bleu=float(sentence_bleu([theirs], ours, smoothing_function=SmoothingFunction().method1)) if ours else 0.0,
        rouge_l=2 * common / (len(ours) + len(theirs)),
        edit_distance=float(Levenshtein.normalized_distance(ours, theirs)),
        longest_run=longest_run(ours, theirs),
        exact=ours == theirs,
    )


def longest_run(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest run of tokens that both hold."""
    others = np.asarray(second, dtype=np.int64)
    ending = np.zeros(len(others) + 1, dtype=np.int64)  # ending[j]: the run that ends before the j-th of the others
    longest = 0
    for token in first:
        ending[1:] = np.where(others == token, ending[:-1] + 1, 0)
        longest = max(longest, int(ending.max()))
    return longest


class Rate(NamedTuple):
    """``hits`` of ``n`` were extracted; ``upper`` is the one-sided 95 % bound of the share."""

    hits: int
    n: int
    share: float
    interval: tuple[float, float]
    upper: float


def rate(hits: Sequence[bool] | np.ndarray) -> Rate:
    """Share with its exact intervals (Clopper and Pearson); each entry an independent trial.

    With none of n, the upper bound is ``1 - 0.05^(1/n)``.

    Raises:
        ValueError: if there is no trial.
    """
    count, n = int(np.sum(hits)), len(hits)
    return Rate(count, n, count / max(n, 1), clopper_pearson(count, n), share_upper(count, n))


def rates_by_copies(hits: Sequence[bool] | np.ndarray, copies: Sequence[int]) -> dict[int, Rate]:
    """The `rate` of each number of copies, in ascending order; 0: never trained on.

    Raises:
        ValueError: if lengths differ.
    """
    groups: dict[int, list[bool]] = {}
    for hit, count in zip(hits, copies, strict=True):
        groups.setdefault(count, []).append(bool(hit))
    return {count: rate(groups[count]) for count in sorted(groups)}


def rising(rates: Mapping[int, Rate], *, rng: np.random.Generator) -> float:
    """One-sided p-value that the share rises with the logarithm of the copies (Cochran-Armitage, by permutation).

    ``rates``: by number of copies, as `rates_by_copies`.
    """
    own = rates.values()
    return cochran_armitage(
        [rate.hits for rate in own], [rate.n for rate in own], [float(np.log1p(count)) for count in rates], rng=rng
    )


def guesser_attempts(space: int, p: float) -> float:
    """`attempts` of who knows only that there are ``space`` equally likely fills."""
    return float(attempts(-float(np.log(space)), p)) if space > 1 else 1.0
