"""A language model whose every probability is chosen: what attacks must answer is known in closed form."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from reticent.models.language_model import Sampling, TokenScores
from reticent.progress import SILENT
from reticent.tokens import Tokens

Distribution = Callable[[tuple[int, ...]], Sequence[float]]


class TableModel:
    """Implements `LanguageModel`: ``table`` gives the probabilities of the next token after the ids so far."""

    def __init__(self, table: Distribution, *, end_of_text: int | None = None) -> None:
        self._table, self._end = table, end_of_text

    def log_probs(
        self,
        records: Sequence[Tokens],
        progress: Any = SILENT,
        *,
        vocabulary: bool = False,
        sampling: Sampling | None = None,
    ) -> list[TokenScores]:
        """Scores of each record, in order."""
        return [s for _, s in self.scores(records, progress, vocabulary=vocabulary, sampling=sampling)]

    def scores(
        self,
        records: Sequence[Tokens],
        progress: Any = SILENT,
        *,
        vocabulary: bool = False,
        sampling: Sampling | None = None,
    ) -> Iterator[tuple[int, TokenScores]]:
        """Each record's index and scores."""
        for number in range(len(records)):
            yield number, self._score(records[number], vocabulary, sampling)

    def generate(self, prompts: Sequence[np.ndarray], *, max_new_tokens: int) -> list[np.ndarray]:
        """The most likely continuation of each prompt, up to and without the end of text."""
        out = []
        for prompt in prompts:
            ids = [int(token) for token in prompt]
            for _ in range(max_new_tokens):
                token = int(np.argmax(self._table(tuple(ids))))
                if token == self._end:
                    break
                ids.append(token)
            out.append(np.array(ids[len(prompt) :], dtype=np.int64))
        return out

    def _score(self, record: Tokens, vocabulary: bool, sampling: Sampling | None) -> TokenScores:
        rows = []
        for i in np.flatnonzero(record.trained):
            token = int(record.ids[i])
            p = np.array(self._table(tuple(record.ids[:i].tolist())), dtype=np.float64)
            assert abs(p.sum() - 1) < 1e-9
            logs = np.log(p, out=np.full_like(p, -np.inf), where=p > 0)
            mean = float((p[p > 0] * logs[p > 0]).sum())
            deviation = float(np.sqrt((p[p > 0] * (logs[p > 0] - mean) ** 2).sum()))
            drawn = 0.0 if sampling is None else drawn_from(p, sampling)[token]
            with np.errstate(divide="ignore"):
                rows.append((logs[token], int(np.argmax(p)) == token, mean, deviation, np.log(drawn)))
        logp, hit, means, deviations, sampled = np.array(rows, dtype=np.float64).reshape(-1, 5).T
        single = np.float32
        return TokenScores(
            logp.astype(single),
            hit.astype(bool),
            means.astype(single) if vocabulary else None,
            deviations.astype(single) if vocabulary else None,
            sampled.astype(single) if sampling is not None else None,
        )


def drawn_from(p: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities that ``sampling`` draws from: temperature, then top-k, then top-p."""
    p = p ** (1 / sampling.temperature)
    p = p / p.sum()
    if sampling.top_k is not None:
        p = np.where(p >= np.sort(p)[::-1][min(sampling.top_k, len(p)) - 1], p, 0)
        p = p / p.sum()
    if sampling.top_p is not None:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]  # a token stays while the likelier ones do not reach top_p
        kept = np.zeros(len(p), dtype=bool)
        kept[order] = before < sampling.top_p
        p = np.where(kept, p, 0)
        p = p / p.sum()
    return p
