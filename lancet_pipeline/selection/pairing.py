"""Pairs of a countering and a driving sample. They need not share a prompt."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lancet_pipeline.data.batches import shuffled_passes

Pairing = Literal["random", "rank", "nearest"]


def pair(
    negative: np.ndarray,
    positive: np.ndarray,
    scores: np.ndarray,
    prompts: Sequence[str],
    *,
    pairing: Pairing,
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices in D-, those in D+ and weights of `count` pairs, [count] each; the weights, influence of the pair over its mean,
    average 1.

    `negative` and `positive` are the indices of D- and D+ into `scores` and `prompts`, most influential first.

    `random`: every sample as often as any other of its side. `rank`: the k-th most countering with the k-th most
    driving. `nearest`: each driving sample with the countering one whose prompt is most similar (TF-IDF cosine).
    The shorter side is repeated as often as needed.
    """
    count = min(count, len(negative) * len(positive))
    generator = np.random.default_rng(seed)
    if pairing == "random":
        preferred = negative[shuffled_passes(len(negative), count, generator)]
        dispreferred = positive[shuffled_passes(len(positive), count, generator)]
    elif pairing == "rank":
        preferred, dispreferred = np.resize(negative, count), np.resize(positive, count)
    else:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectors: Any = TfidfVectorizer().fit_transform(prompts)  # sparse rows of length 1
        similarity = vectors[positive] @ vectors[negative].T
        closest = negative[similarity.toarray().argmax(1)]
        preferred, dispreferred = np.resize(closest, count), np.resize(positive, count)
    influence = scores[dispreferred] - scores[preferred]
    weights = influence / influence.mean() if influence.any() else np.ones(len(influence))
    return preferred, dispreferred, weights
