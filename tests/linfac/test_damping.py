"""Automatic damping: the scores of held-out queries it rests on, and that it looks at no label."""

import numpy as np
import pytest
import torch
from linfac.small import batch, llama, split

from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import (
    LinfacConfig,
    choose_damping,
    fit_factors,
    query_gradient,
    score_sequences,
)
from lancet_pipeline.linfac.damping import CANDIDATES, FOLDS, _affordable_units


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
    assert choice.areas[choice.damping] == max(choice.areas.values())


def test_a_large_model_gives_every_other_layer(monkeypatch):
    factors = fit_factors(llama(), [batch()], LinfacConfig())
    assert _affordable_units(factors, len(CANDIDATES), 2) == [0, 1, 2, 3]
    monkeypatch.setattr("lancet_pipeline.linfac.damping.ELEMENTS", 8 * (16 * 16 + 16 * 24))
    assert _affordable_units(factors, len(CANDIDATES), 2) == [2, 3]


def test_one_query_is_not_enough():
    model, data = llama(), batch()
    with pytest.raises(InputError, match="at least 2 queries"):
        choose_damping(model, split(data, 1, 5)[:1], [data], fit_factors(model, [data], LinfacConfig()))
