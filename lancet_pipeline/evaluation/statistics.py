"""Rates with their intervals, paired comparisons, and how well a ranking finds what is known."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest


def rate(outcomes: Sequence[bool]) -> dict[str, float | int]:
    """Share of true outcomes with its 95 % Wilson interval: {value, low, high, n}."""
    n, hits = len(outcomes), int(sum(outcomes))
    if n == 0:
        raise ValueError("a rate needs at least one outcome")
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return {"value": hits / n, "low": float(interval.low), "high": float(interval.high), "n": n}


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided McNemar test of paired outcomes; 1.0 where no pair differs."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Agreement beyond chance of two raters; 1.0 where both give one and the same label throughout."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return 1.0 if chance == 1 else float(((a == b).mean() - chance) / (1 - chance))


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Area under the precision-recall curve of ranking by falling score; ties count as a whole. nan without relevant items."""
    from sklearn.metrics import average_precision_score

    relevant = np.asarray(relevant, bool)
    return float(average_precision_score(relevant, scores)) if relevant.any() else float("nan")


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams of words over all n-grams, pooled over `texts`; 0 where there is none."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
