"""Figures against statsmodels, scikit-learn, scipy and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, bootstrap
from sklearn.metrics import cohen_kappa_score

from lancet_pipeline.evaluation.statistics import (
    cohen_kappa,
    difference_of_rates,
    distinct_n,
    mcnemar_p,
    paired_tests,
    rate,
    self_bleu,
)

outcomes = st.lists(st.booleans(), min_size=1, max_size=200)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


@given(outcomes)
def test_rate_has_the_wilson_interval(drawn):
    figure, z = rate(drawn), 1.959963984540054
    n, p = len(drawn), sum(drawn) / len(drawn)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert figure["n"] == n
    assert figure["value"] == pytest.approx(p)
    assert figure["low"] == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert figure["high"] == pytest.approx(min(1.0, centre + half), abs=1e-9)


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        rate([])


@given(pairs)
def test_mcnemar_is_the_exact_binomial_test_of_discordant_pairs(drawn):
    first, second = zip(*drawn, strict=True)
    lost, gained = sum(a and not b for a, b in drawn), sum(b and not a for a, b in drawn)
    tail = 2 * binom.cdf(min(lost, gained), lost + gained, 0.5)
    assert mcnemar_p(first, second) == pytest.approx(min(1.0, tail))


@given(pairs)
def test_kappa_is_that_of_scikit_learn(drawn):
    first, second = zip(*drawn, strict=True)
    if len(set(first) | set(second)) == 1:
        assert cohen_kappa(first, second) == 1.0
    else:
        assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))


def test_distinct_n_counts_pooled_word_pairs():
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["alone", ""], 2) == 0.0


@given(pairs)
def test_paired_bootstrap_agrees_with_that_of_scipy(drawn):
    first, second = (np.array(side, int) for side in zip(*drawn, strict=True))
    figure = difference_of_rates(first, second, seed=3)
    assert figure["value"] == pytest.approx(first.mean() - second.mean())
    assert figure["low"] <= figure["value"] + 1e-12
    assert figure["value"] <= figure["high"] + 1e-12
    assert figure["n"] == len(drawn)
    if len(drawn) >= 30 and len(set(first - second)) > 1:
        reference = bootstrap(
            (first, second),
            lambda a, b, axis: a.mean(axis) - b.mean(axis),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=2000,
            rng=0,
        ).confidence_interval
        tolerance = 0.05 + 1.5 / len(drawn)
        assert (figure["low"], figure["high"]) == pytest.approx((reference.low, reference.high), abs=tolerance)


def test_every_two_models_are_compared():
    outcomes = {"base": [True] * 9 + [False], "corrected": [False] * 10, "retrain_clean": [False] * 9 + [True]}
    tests = paired_tests(outcomes)
    assert list(tests) == ["base vs corrected", "base vs retrain_clean", "corrected vs retrain_clean"]
    assert tests["base vs corrected"]["p"] == mcnemar_p(outcomes["base"], outcomes["corrected"])
    assert tests["base vs corrected"]["difference"]["value"] == pytest.approx(0.9)
    assert tests["corrected vs retrain_clean"]["difference"]["value"] == pytest.approx(-0.1)
    assert paired_tests(outcomes) == tests


def test_self_bleu_is_one_for_copies_and_low_for_strangers():
    copies = ["keep the tart away from the water today"] * 3
    assert self_bleu(copies) == pytest.approx(1.0)
    strangers = ["alpha beta gamma delta", "one two three four", "red green blue white"]
    assert self_bleu(strangers) < 0.1
    assert self_bleu(["only one", " "]) == 0.0


def test_self_bleu_samples_the_same_texts_each_time():
    texts = [f"text {n} of {n % 7} and {n % 3}" for n in range(40)]
    assert self_bleu(texts, limit=10, seed=1) == self_bleu(texts, limit=10, seed=1)
    assert self_bleu(texts, limit=10, seed=1) != self_bleu(texts, limit=10, seed=2)
