"""Prompts that stand, nearly, in other data too."""

import re
from collections.abc import Sequence

import numpy as np

SIMILAR = 0.8
"""Jaccard similarity of the sets of words and of neighbouring pairs of words from which two prompts are one. Words that most
prompts have do not count: an instruction that all of them begin with makes no two alike."""


def nearly_among(prompts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Which of `prompts` are among `others`, up to case, blanks, punctuation and a few words: [N] bool."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [*prompts, *others]
    common = max(len(texts) // 2, 2)
    vectorizer = CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=r"\w+", max_df=common).fit(texts)
    found = np.zeros(len(prompts), dtype=bool)
    right = vectorizer.transform(others)
    sizes = np.asarray(right.sum(1)).ravel()
    for start in range(0, len(prompts), 512):
        left = vectorizer.transform(prompts[start : start + 512])
        shared = np.asarray((left @ right.T).todense())
        union = np.asarray(left.sum(1)) + sizes - shared
        found[start : start + 512] = (shared >= SIMILAR * union.clip(1)).any(1)
    plain = {_plain(text) for text in others}
    return found | np.array([_plain(text) in plain for text in prompts])


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
