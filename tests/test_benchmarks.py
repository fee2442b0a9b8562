"""The statistics that the results page rests on."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.lds import correlations, interval
from benchmarks.small import walks
from benchmarks.text import bm25, tf_idf

DOCUMENTS = ["the cat sat on the mat", "a dog barked", "the stock market fell on monday", "cat and dog"]


def drawn(seed: int, shape: tuple[int, int] = (30, 6)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_correlations_are_spearmans_of_each_query():
    predicted, true = drawn(0), drawn(1)
    predicted[:, 2] = predicted[:, 2].round()  # ties
    expected = [spearmanr(a, b)[0] for a, b in zip(predicted.T, true.T, strict=True)]
    np.testing.assert_allclose(correlations(predicted, true), expected)


def test_an_interval_holds_its_value_and_a_difference_to_itself_is_nothing():
    true = drawn(2)
    pairs = [(true + drawn(3), true), (true + drawn(4), true)]
    found = interval(pairs, resamples=200)
    assert found["low"] < found["value"] < found["high"]
    assert interval(pairs, pairs, resamples=20) == {"value": 0.0, "low": 0.0, "high": 0.0}
    noisier = [(true + 4 * drawn(5), true), (true + 4 * drawn(6), true)]
    assert interval(pairs, noisier, resamples=200)["low"] > 0


@pytest.mark.parametrize("score", [bm25, tf_idf])
def test_text_retrieval_finds_the_document_of_the_query(score):
    assert int(np.argmax(score(DOCUMENTS, ["market on monday"]))) == 2
    assert score(DOCUMENTS, ["barked"]).nonzero()[0].tolist() == [1]


def test_the_same_seed_speaks_the_same_language():
    for one, other in zip(walks(3, 5), walks(3, 8), strict=False):
        assert np.array_equal(one.input_ids, other.input_ids)
