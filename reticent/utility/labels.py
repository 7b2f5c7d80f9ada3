"""What text is worth to a classifier: it learns labels from synthetic or real text, and is asked on real text."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

FEWEST = 10
"""Texts with a label that anything is said on."""


class Labelled(NamedTuple):
    """Texts and the label of each, (texts,)."""

    texts: Sequence[str]
    labels: Sequence[str]

    def enough(self) -> bool:
        """Whether there is something to learn, or to be asked on."""
        return len(self.texts) >= FEWEST and len(set(self.labels)) >= 2

    def drawn(self, count: int, rng: np.random.Generator) -> "Labelled":
        """``count`` of them at random, all if there are fewer."""
        kept = sorted(rng.permutation(len(self.texts))[:count].tolist())
        return Labelled([self.texts[i] for i in kept], [self.labels[i] for i in kept])

    def __repr__(self) -> str:  # never the text of records
        return f"{len(self.texts)} texts with labels"


def classified(learned: Labelled, asked: Labelled, *, seed: int) -> np.ndarray:
    """(asked,) whether the label is found by logistic regression on TF-IDF of words and word pairs.

    Raises:
        ValueError: ``learned`` has fewer than two labels, or a side has no text.
    """
    if len(set(learned.labels)) < 2 or len(asked.texts) == 0:
        raise ValueError(
            f"two or more labels to learn and a text to be asked on are needed, got {len(set(learned.labels))} labels "
            f"and {len(asked.texts)} texts"
        )
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model: Any = make_pipeline(
        TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000, random_state=seed),
    )
    try:
        with warnings.catch_warnings():
            # It takes many labels for a mistake.
            warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
            model.fit(list(learned.texts), list(learned.labels))
    except ValueError:
        raise ValueError("the texts to learn from hold no word") from None
    return np.asarray(model.predict(list(asked.texts)) == np.array(asked.labels))


def majority(learned: Labelled, asked: Labelled) -> float:
    """Share of ``asked`` whose label is the most frequent one of ``learned``."""
    names, counts = np.unique(list(learned.labels), return_counts=True)
    return float((np.array(asked.labels) == names[int(np.argmax(counts))]).mean())
