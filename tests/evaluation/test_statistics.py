"""Figures against statsmodels, scikit-learn, scipy and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import cohen_kappa_score

from lancet_pipeline.evaluation.statistics import average_precision, cohen_kappa, distinct_n, mcnemar_p, rate

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


def test_average_precision_of_rankings_worked_by_hand():
    relevant = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), relevant) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(np.array([4.0, 1.0, 3.0, 2.0]), relevant) == pytest.approx(1.0)
    assert average_precision(np.zeros(4), relevant) == pytest.approx(0.5)
    assert math.isnan(average_precision(np.ones(2), np.zeros(2, bool)))


def test_distinct_n_counts_pooled_word_pairs():
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["alone", ""], 2) == 0.0
