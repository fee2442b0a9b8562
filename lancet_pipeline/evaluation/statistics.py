"""Rates with their intervals, paired comparisons, and how well a ranking finds what is known."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

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


def difference_of_rates(
    first: Sequence[bool], second: Sequence[bool], *, seed: int = 0, resamples: int = 10_000
) -> dict[str, float | int]:
    """Rate of `first` less rate of `second` on the same prompts, with its 95 % paired percentile bootstrap interval:
    {value, low, high, n}. The interval has no width where every pair differs alike.

    A pair contributes -1, 0 or 1, so that a resample of the pairs is one multinomial draw of how many do which.
    """
    differences = np.asarray(first, int) - np.asarray(second, int)
    n = len(differences)
    if n == 0:
        raise ValueError("a difference needs at least one pair of outcomes")
    shares = np.array([(differences == -1).sum(), (differences == 0).sum(), (differences == 1).sum()]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = np.quantile((counts[:, 2] - counts[:, 0]) / n, (0.025, 0.975))
    return {"value": float(differences.mean()), "low": float(low), "high": float(high), "n": n}


def paired_tests(outcomes: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Any]]:
    """Every two models compared on the same prompts.

    Args:
        outcomes: model -> outcome on each prompt, the prompts in the same order for every model.

    Returns:
        {"first vs second": {"p": exact McNemar test, "difference": rate of the first less that of the second}}.
    """
    return {
        f"{first} vs {second}": {
            "p": mcnemar_p(outcomes[first], outcomes[second]),
            "difference": difference_of_rates(outcomes[first], outcomes[second]),
        }
        for first, second in combinations(outcomes, 2)
    }


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Agreement beyond chance of two raters; 1.0 where both give one and the same label throughout."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return 1.0 if chance == 1 else float(((a == b).mean() - chance) / (1 - chance))


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams of words over all n-grams, pooled over `texts`; 0 where there is none."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], *, limit: int = 200, seed: int = 0) -> float:
    """How much answers resemble one another: mean BLEU-4 of each with all others as references, in [0, 1]
    (Zhu et al. 2018, Texygen); lower is more diverse. Words are what whitespace separates; smoothed, since short
    answers may share no four words.

    Args:
        limit: texts that are compared, at most; more are sampled down to it.

    Returns:
        0 with fewer than two texts that hold a word.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    words = [text.split() for text in texts if text.strip()]
    if len(words) > limit:
        words = [words[i] for i in sorted(np.random.default_rng(seed).choice(len(words), limit, replace=False))]
    if len(words) < 2:
        return 0.0
    smooth = SmoothingFunction().method1
    values = [
        sentence_bleu(words[:i] + words[i + 1 :], text, smoothing_function=smooth) for i, text in enumerate(words)
    ]
    return float(np.mean(values))
