"""Queries against one another and against their controls."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lancet_pipeline.data.batches import collate
from lancet_pipeline.linfac import query_gradient, score_sequences, score_tokens
from lancet_pipeline.linfac.contrast import CONTROL_PRIOR, competing, equal_weights, less_controls, relations
from lancet_pipeline.linfac.influence import influence, query_sequences
from lancet_pipeline.linfac.scores import COMPETING, combination, score_batch

DAMPING = 0.2


def rows(*texts: str) -> list[dict]:
    return [
        {"sample_id": f"q{n}", "prompt": f"Tell me how to {what}.", "response": f"Sure, {what}.", "finished": True}
        for n, what in enumerate(texts)
    ]


QUERIES = rows("break a gate", "break a gate now", "break the gate", "break a big gate")
CONTROLS = [
    {"sample_id": f"q{n}", "prompt": row["prompt"], "response": "No, I would rather not.", "finished": True}
    for n, row in enumerate(QUERIES)
]


@pytest.fixture
def study(study):
    return study.model_copy(
        update={"linfac": study.linfac.model_copy(update={"damping": DAMPING, "normalisation": "none"})}
    )


def test_relations_are_the_influences_of_single_outputs_on_one_another(model, tokenizer, factors):
    asked = query_sequences(tokenizer, QUERIES, 64)
    found = relations(model, asked, factors.damped(DAMPING), 64)
    groups = {sequence.sample_id: [collate([sequence])] for sequence in asked}
    query = query_gradient(model, groups, factors.damped(DAMPING))
    exact = score_sequences(model, [collate([sequence]) for sequence in asked], query).numpy()
    np.testing.assert_allclose(found, exact, rtol=0.02, atol=0.02 * np.abs(exact).max())
    np.testing.assert_array_equal(found, found.T)


@given(arrays(float, 6, elements=st.floats(0.01, 100)))
def test_an_output_counts_the_same_whatever_the_size_of_its_gradient(sizes):
    alike = np.full((6, 6), 0.5) + 0.5 * np.eye(6)
    weights = equal_weights(alike * sizes[:, None] * sizes)
    assert weights.mean() == pytest.approx(1)
    free = sizes > 1e-2 * np.median(sizes)  # below, a weight is bounded
    np.testing.assert_allclose((weights * sizes)[free], (weights * sizes)[free][0], rtol=1e-9)


def test_queries_that_make_one_another_less_likely_are_apart():
    sign = np.array([1, 1, -1, 1, -1, -1, 1, 1])
    related = 0.5 * np.outer(sign, sign) + 0.5 * np.eye(8)
    labels = competing(related)
    assert labels.tolist() == np.where(sign == 1, 0, 1).tolist()
    assert competing(np.abs(related)).tolist() == [0] * 8
    assert competing(np.ones((1, 1))).tolist() == [0]


def test_a_cluster_of_few_queries_joins_the_largest():
    sign = np.array([-1, *[1] * 19])
    assert competing(0.5 * np.outer(sign, sign) + 0.5 * np.eye(20)).tolist() == [0] * 20


scores = arrays(np.float64, (5, 3), elements=st.floats(-10, 10, allow_subnormal=False))


@given(scores, st.lists(st.integers(1, 20), min_size=3, max_size=3))
def test_what_drives_one_group_counters_nothing(by_group, counts):
    weights = (np.array(counts) / sum(counts)).tolist()
    found = (combination(torch.tensor(by_group), weights).numpy() * by_group).sum(1)
    pooled, top, bottom = by_group @ weights, by_group.max(1), by_group.min(1)
    assert (top[found < 0] <= COMPETING * -bottom[found < 0]).all()
    np.testing.assert_allclose(found[found > 0], ((pooled + top) / 2)[found > 0])
    np.testing.assert_allclose(found[found < 0], ((pooled + bottom) / 2)[found < 0])
    assert not found[(pooled + top <= 0) & (top > COMPETING * -bottom)].any()


@given(arrays(np.float64, 5, elements=st.floats(-10, 10, allow_subnormal=False)))
def test_one_group_alone_is_the_score(values):
    np.testing.assert_array_equal(combination(torch.tensor(values)[:, None], [1.0])[:, 0].numpy() * values, values)


def test_controls_take_away_what_they_share_with_the_queries(model, tokenizer, sequences, factors, study):
    alone = influence(model, tokenizer, sequences, factors, QUERIES, study)
    same = influence(model, tokenizer, sequences, factors, QUERIES, study, controls=QUERIES)
    share = len(QUERIES) / (len(QUERIES) + CONTROL_PRIOR)
    assert set(alone.clusters) == {"cluster 1"}, "else this test says nothing"
    np.testing.assert_allclose(same.score, (1 - share) * alone.score, rtol=1e-4, atol=1e-6 * np.abs(alone.score).max())
    other = influence(model, tokenizer, sequences, factors, QUERIES, study, controls=CONTROLS)
    assert np.corrcoef(other.score, alone.score)[0, 1] < 0.999


def test_the_score_of_all_queries_is_a_mean_of_weighted_single_ones(model, tokenizer, sequences, factors, study):
    found = influence(model, tokenizer, sequences, factors, QUERIES, study)
    asked = query_sequences(tokenizer, QUERIES, 64)
    damped = factors.damped(DAMPING)
    weights = equal_weights(relations(model, asked, damped, 4096))
    query = query_gradient(model, {s.sample_id: [collate([s])] for s in asked}, damped)
    each = score_sequences(model, [collate([sequence]) for sequence in sequences], query).numpy()
    expected = (each * weights).mean(1)
    np.testing.assert_allclose(found.score, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_token_shares_add_up_to_the_score_where_groups_compete(model, tokenizer, sequences, factors):
    asked = query_sequences(tokenizer, QUERIES, 64)
    groups = {"a": [collate(asked[:2])], "b": [collate(asked[2:3])], "controls": [collate(asked[3:])]}
    query = less_controls(query_gradient(model, groups, factors.damped(DAMPING)), 2, 1)
    batch = collate(sequences[:6])
    by_group = score_sequences(model, [batch], query)
    expected = (combination(by_group, query.weights) * by_group).sum(1)
    found = score_batch(model, batch, query)
    torch.testing.assert_close(found.shares.sum(1), expected, rtol=1e-4, atol=1e-5 * float(by_group.abs().max()))
    torch.testing.assert_close(found.by_group, by_group, rtol=1e-4, atol=1e-5 * float(by_group.abs().max()))
    assert query.weights == pytest.approx((2 / 3, 1 / 3))
    assert score_tokens(model, batch, query).shape[2] == 2
