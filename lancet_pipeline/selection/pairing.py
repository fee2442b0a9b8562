"""Pairs of a countering and a driving sample. They need not share a prompt."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

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
) -> list[tuple[int, int, float]]:
    """(index in D-, index in D+, weight) of `count` pairs; the weights, influence of the pair over its mean, average 1.

    `negative` and `positive` are the indices of D- and D+ into `scores` and `prompts`, most influential first.

    `random`: every sample as often as any other of its side. `rank`: the k-th most countering with the k-th most
    driving. `nearest`: each driving sample with the countering one whose prompt is most similar (TF-IDF cosine).
    The shorter side is repeated as often as needed.
    """
    count = min(count, len(negative) * len(positive))
    generator = np.random.default_rng(seed)
    if pairing == "random":
        preferred = _repeated(negative, count, generator)
        dispreferred = _repeated(positive, count, generator)
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
    return [(int(i), int(j), float(w)) for i, j, w in zip(preferred, dispreferred, weights, strict=True)]


def _repeated(items: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    rounds = -(-count // len(items))
    return np.concatenate([generator.permutation(items) for _ in range(rounds)])[:count]
