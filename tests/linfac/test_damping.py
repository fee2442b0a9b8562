"""Automatic damping: the scores of held-out queries it rests on, and that it looks at no label."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linfac.small import batch, llama, split

from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import (
    LinfacConfig,
    choose_damping,
    fit_factors,
    query_gradient,
    score_sequences,
)
from lancet_pipeline.linfac.damping import CANDIDATES, FOLDS, _chosen


def test_areas_are_those_of_queries_really_left_out():
    model, unlabelled, queries = llama(), batch(rows=12, seed=1), batch(rows=7, seed=2)
    factors = fit_factors(model, [batch(rows=16, seed=3)], LinfacConfig())
    choice = choose_damping(model, split(queries, 2, 5), [unlabelled], factors)
    for rho, area in choice.areas.items():
        above = []
        for fold in range(FOLDS):
            left_out = torch.arange(7) % FOLDS == fold
            others = queries.rows((~left_out).nonzero()[:, 0])
            query = query_gradient(model, [others], factors.damped(rho))
            own = score_sequences(model, [queries.rows(left_out.nonzero()[:, 0])], query)
            among = score_sequences(model, [unlabelled], query)
            above += [(score > among).double().mean() for score in own]
        assert area == pytest.approx(float(np.mean(above)), abs=1e-6)
    assert choice.damping in choice.tied
    assert max(choice.areas, key=choice.areas.__getitem__) in choice.tied


def test_a_model_too_large_for_all_candidates_at_once_is_scored_in_parts(monkeypatch):
    model, unlabelled, queries = llama(), [batch(rows=12, seed=1)], [batch(rows=7, seed=2)]
    factors = fit_factors(model, [batch(rows=16, seed=3)], LinfacConfig())
    whole = choose_damping(model, queries, unlabelled, factors)
    monkeypatch.setattr("lancet_pipeline.linfac.damping.ELEMENTS", 3 * FOLDS * 2 * (16 * 16 + 16 * 24))
    parts = choose_damping(model, queries, iter(unlabelled), factors)
    assert parts.areas == pytest.approx(whole.areas)
    assert parts.damping == whole.damping


def test_queries_that_do_not_tell_dampings_apart_leave_the_middle_one():
    choice = _chosen(CANDIDATES, np.ones((8, len(CANDIDATES))))
    assert (choice.damping, choice.tied) == (0.1, CANDIDATES)


@settings(max_examples=50, deadline=None)
@given(
    best=st.integers(0, 7),
    slope=st.floats(0.02, 0.1),
    noise=st.floats(0, 0.02),
    shift=st.floats(0, 0.3),
    seed=st.integers(0, 99),
)
def test_ties_are_of_queries_in_pairs_and_go_towards_the_middle(best, slope, noise, shift, seed):
    """Queries differ much among themselves (`shift`), which counts for nothing; what counts is how candidates differ on each."""
    draw = np.random.default_rng(seed)
    placements = (
        0.6 - slope * np.abs(np.arange(8) - best) + draw.normal(0, noise, (12, 8)) + draw.normal(0, shift, (12, 1))
    )
    choice = _chosen(CANDIDATES, placements)
    assert choice == replace(_chosen(CANDIDATES, placements + draw.normal(0, 1, (12, 1))), areas=choice.areas)
    highest = max(choice.areas, key=choice.areas.__getitem__)
    assert abs(np.log(choice.damping / 0.1)) <= abs(np.log(highest / 0.1)) + 1e-9
    if noise < slope / 10:
        assert choice.tied == (CANDIDATES[best],)


def test_one_query_is_not_enough():
    model, data = llama(), batch()
    with pytest.raises(InputError, match="at least 2 queries"):
        choose_damping(model, split(data, 1, 5)[:1], [data], fit_factors(model, [data], LinfacConfig()))
