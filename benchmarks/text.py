"""Retrieval by the words alone: what influence has to be worth more than, or cannot do."""

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer


def bm25(documents: list[str], queries: list[str], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Okapi BM25 of each document, averaged over the queries: [N]."""
    vectorizer = CountVectorizer()
    counts = vectorizer.fit_transform(documents).tocsc()
    lengths = np.asarray(counts.sum(1)).ravel()
    frequency = np.diff(counts.indptr)
    inverse = np.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
    counts = counts.tocoo()
    saturated = counts.data * (k1 + 1) / (counts.data + k1 * (1 - b + b * lengths[counts.row] / lengths.mean()))
    counts.data = saturated * inverse[counts.col]
    return np.asarray(counts.tocsr() @ (vectorizer.transform(queries) > 0).mean(0).T).ravel()


def tf_idf(documents: list[str], queries: list[str]) -> np.ndarray:
    """Cosine of each document with each query, averaged over the queries: [N]."""
    vectorizer = TfidfVectorizer()
    return np.asarray(vectorizer.fit_transform(documents) @ vectorizer.transform(queries).mean(0).T).ravel()
