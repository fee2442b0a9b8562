"""Retrieval by the words alone: what influence has to be worth more than."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lancet_pipeline.attribution.base import Case
from lancet_pipeline.errors import InputError

K1, B = 1.5, 0.75


def bm25(case: Case) -> np.ndarray:
    """See `bm25_scores`."""
    return bm25_scores(case.documents, case.asked_texts)


def tf_idf(case: Case) -> np.ndarray:
    """See `tf_idf_scores`."""
    return tf_idf_scores(case.documents, case.asked_texts)


def bm25_scores(documents: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Okapi BM25 of each document for each query (Robertson and Zaragoza 2009), [N, Q] float64.

    Raises:
        InputError: no document has words.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer()
    fitted = _fitted(vectorizer, documents)
    asked: Any = vectorizer.transform(queries)
    counts = fitted.tocsc()
    lengths = np.asarray(counts.sum(1)).ravel()
    frequency = np.diff(counts.indptr)
    inverse = np.log(1 + (len(lengths) - frequency + 0.5) / (frequency + 0.5))
    counts = counts.tocoo()
    saturated = counts.data * (K1 + 1) / (counts.data + K1 * (1 - B + B * lengths[counts.row] / lengths.mean()))
    counts.data = saturated * inverse[counts.col]
    return (counts.tocsr() @ (asked > 0).T).toarray().astype(np.float64)


def tf_idf_scores(documents: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Cosine of TF-IDF vectors, [N, Q] float64. Raises InputError where no document has words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer()
    fitted = _fitted(vectorizer, documents)
    asked: Any = vectorizer.transform(queries)
    return (fitted @ asked.T).toarray()


def _fitted(vectorizer: Any, documents: Sequence[str]) -> Any:
    try:
        return vectorizer.fit_transform(documents)
    except ValueError as error:
        raise InputError("influence.method: no training sample has a word of two letters or more") from error
