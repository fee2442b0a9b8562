"""Retrieval by the words alone: what influence has to be worth more than."""

from typing import Any

import numpy as np

from lancet_pipeline.attribution.base import Case
from lancet_pipeline.errors import InputError

K1, B = 1.5, 0.75


def bm25(case: Case) -> np.ndarray:
    """Okapi BM25 of each document for each query (Robertson and Zaragoza 2009). Raises InputError where no text has words."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer()
    fitted = _fitted(vectorizer, case)
    counts = fitted.tocsc()
    lengths = np.asarray(counts.sum(1)).ravel()
    frequency = np.diff(counts.indptr)
    inverse = np.log(1 + (len(lengths) - frequency + 0.5) / (frequency + 0.5))
    counts = counts.tocoo()
    saturated = counts.data * (K1 + 1) / (counts.data + K1 * (1 - B + B * lengths[counts.row] / lengths.mean()))
    counts.data = saturated * inverse[counts.col]
    asked: Any = vectorizer.transform(case.asked_texts)
    return (counts.tocsr() @ (asked > 0).T).toarray().astype(np.float64)


def tf_idf(case: Case) -> np.ndarray:
    """Cosine of TF-IDF vectors. Raises InputError where no text has words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer()
    documents = _fitted(vectorizer, case)
    asked: Any = vectorizer.transform(case.asked_texts)
    return (documents @ asked.T).toarray()


def _fitted(vectorizer: Any, case: Case) -> Any:
    try:
        return vectorizer.fit_transform(case.documents)
    except ValueError as error:
        raise InputError("influence.method: no training sample has a word of two letters or more") from error
