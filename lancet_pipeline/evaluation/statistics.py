"""Rates with their intervals, paired comparisons, and how well a ranking finds what is known."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, t


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


def paired_counts(first: Sequence[bool], second: Sequence[bool]) -> list[int]:
    """Of outcomes on the same prompts, how many are true in both, in the first alone, in the second alone, in neither."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    return [int(found.sum()) for found in (a & b, a & ~b, ~a & b, ~a & ~b)]


def upper_share(hits: int, n: int, level: float = 0.95) -> float:
    """Exact one-sided upper bound of a share (Clopper and Pearson 1934)."""
    return float(binomtest(hits, n, alternative="less").proportion_ci(level, method="exact").high)


def upper_difference(counts: Sequence[int], times: float = 1.0, level: float = 0.95) -> float:
    """One-sided upper bound of the second rate less `times` the first one, of paired outcomes.

    The bound is the largest difference that the score test does not reject (Tango 1998, of which this is the form for any
    `times`): its variance is that of the likeliest shares under which that difference holds, so that it has width where no
    pair differs.

    Args:
        counts: as `paired_counts` gives them.
    """
    counts_4, n = np.asarray(counts, float), sum(counts)
    values = np.array([1 - times, -times, 1.0, 0.0])
    found = float(counts_4 @ values / n)
    z = norm.ppf(level)

    def excess(difference: float) -> float:
        shares = _likeliest_shares(counts_4, values - difference)
        variance = max(float(shares @ values**2) - difference**2, 0.0)
        return (difference - found) - z * (variance / n) ** 0.5

    lowest, highest = found + 1e-9, 1 - 1e-9  # at the ends there is no variance
    return _root(excess, lowest, highest) if lowest < highest and excess(highest) > 0 else 1.0


def upper_ratio(counts: Sequence[int], level: float = 0.95) -> float:
    """One-sided upper bound of the second rate over the first one, of paired outcomes: the largest ratio that `upper_difference`
    does not rule out; infinite where it rules out none."""

    def excess(logarithm: float) -> float:
        return upper_difference(counts, float(np.exp(logarithm)), level)

    lowest, highest = np.log(1e-6), np.log(1e6)
    if not counts[0] + counts[1] or excess(highest) > 0:
        return float("inf")
    return float(np.exp(_root(excess, lowest, highest)))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(cast(Any, brentq(function, low, high, xtol=1e-12)))


def _likeliest_shares(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Shares of the cells of a table that make its counts likeliest where `values`, one a cell, average 0. [4]"""

    def slope(multiplier: float) -> float:
        return float((counts[seen] * values[seen] / (1 + multiplier * values[seen])).sum())

    seen, n = counts > 0, counts.sum()
    lowest, highest = -1 / values.max(), -1 / values.min()  # where a share would become negative
    if slope(0.0) == 0:
        return counts / n
    inner = (lowest * (1 - 1e-12), highest * (1 - 1e-12))
    shares = np.zeros(len(counts))
    if slope(inner[0]) > 0 > slope(inner[1]):
        multiplier = _root(slope, *inner)
        shares[seen] = counts[seen] / n / (1 + multiplier * values[seen])
        return shares / shares.sum()
    # Cells that were seen cannot average 0: what is missing lies in the outermost one that was not.
    end, cell = (lowest, values.argmax()) if slope(inner[0]) <= 0 else (highest, values.argmin())
    shares[seen] = counts[seen] / n / (1 + end * values[seen])
    shares[cell] = 1 - shares.sum()
    return shares


def perplexity_ratio(
    first: np.ndarray, second: np.ndarray, tokens: np.ndarray, level: float = 0.95
) -> dict[str, float | int]:
    """Second perplexity over the first one on the same sequences, with its one-sided upper bound: {value, high, n}; t over
    sequences, of the difference of mean losses a token as a ratio of sums.

    Args:
        first, second: summed negative log-likelihoods of each sequence, nats [N].
        tokens: of each sequence [N].
    """
    with np.errstate(invalid="ignore"):
        differences, n, total = second - first, len(tokens), tokens.sum()
    mean = differences.sum() / total
    if not np.isfinite(mean):  # nor is what a model without likelihoods is compared with
        return {"value": float("inf"), "high": float("inf"), "n": n}
    if n < 2:
        return {"value": float(np.exp(mean)), "high": float("inf"), "n": n}
    error = float(np.sqrt(((differences - mean * tokens) ** 2).sum() * n / (n - 1)) / total)
    return {"value": float(np.exp(mean)), "high": float(np.exp(mean + t.ppf(level, n - 1) * error)), "n": n}


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
