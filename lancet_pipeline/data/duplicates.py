"""Prompts that stand, nearly, in other data too."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

SIMILAR = 0.8
"""Jaccard similarity of the sets of words and of neighbouring pairs of words from which two prompts are one. Words that most
prompts have do not count: an instruction that all of them begin with makes no two alike."""

COMPARED = 2**22
"""Pairs of prompts that are compared at once."""


def nearly_among(prompts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Which of `prompts` are among `others`, up to case, blanks, punctuation and a few words: [N] bool."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [_plain(text) for text in (*prompts, *others)]
    plain = set(texts[len(prompts) :])
    found = np.array([text in plain for text in texts[: len(prompts)]], dtype=bool)
    if not any(text for text in texts):
        return found
    vectorizer = CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=r"\S+", lowercase=False)
    counts: Any = vectorizer.fit_transform(texts)
    counts = counts[:, np.asarray(counts.sum(0)).ravel() <= max(len(texts) // 2, 2)]
    sizes = np.asarray(counts.sum(1)).ravel()
    left, right = counts[: len(prompts)], counts[len(prompts) :]
    size = max(1, COMPARED // max(len(others), 1))
    for start in range(0, len(prompts), size):
        rows = slice(start, min(start + size, len(prompts)))
        shared = (left[rows] @ right.T).toarray()
        union = sizes[rows, None] + sizes[len(prompts) :] - shared
        found[rows] |= (shared >= SIMILAR * union.clip(1)).any(1)
    return found


def _plain(text: str) -> str:
    """Its words in lower case; the text itself where it has none."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()
