"""Queries one by one in thin matrices, against the whole ones."""

import numpy as np
import pytest
import torch
from linfac.small import llama
from linfac.test_journal import some_sequences

from benchmarks.small import TRAINING, batches, trained, walks
from lancet_pipeline.data.batches import collate
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import LinfacConfig, fit_factors, low_rank, query_each, query_gradient, score_dataset
from lancet_pipeline.linfac.influence import influence
from lancet_pipeline.linfac.scores import score_sequences, score_tokens


def whole(model, sequences, factors):
    return query_gradient(model, {s.sample_id: [collate([s])] for s in sequences}, factors)


@pytest.mark.parametrize(
    "config", [{}, {"max_dim": 8}, {"max_dim": 20}, {"eigenvalue_correction": True, "max_dim": 8}, {"units": "linear"}]
)
def test_at_full_rank_nothing_is_lost(config, monkeypatch):
    monkeypatch.setattr(low_rank, "RANK", 24)
    model, asked, data = llama(), some_sequences(7), some_sequences(20, seed=1)
    factors = fit_factors(model, [collate(data)], LinfacConfig(**config))
    thin, exact = query_each(model, asked, factors, 60), whole(model, asked, factors)
    assert thin.groups == exact.groups
    assert thin.truncation < 1e-2
    for one, other in zip(thin.each, exact.matrices, strict=True):
        torch.testing.assert_close(one.left.mT @ one.right, other, rtol=1e-2, atol=2e-3 * other.abs().max().item())
    scores = score_dataset(model, data, thin), score_dataset(model, data, exact)
    scale = np.abs(scores[1].by_group).max()
    np.testing.assert_allclose(scores[0].by_group, scores[1].by_group, rtol=1e-2, atol=2e-3 * scale)
    np.testing.assert_allclose(scores[0].pooled, scores[1].pooled, rtol=1e-3, atol=1e-4 * scale)
    shares = score_tokens(model, collate(data[:3]), thin)
    torch.testing.assert_close(shares.sum(1), score_sequences(model, [collate(data[:3])], thin), rtol=1e-3, atol=1e-3)


def test_what_is_lost_is_stated_and_shrinks_with_the_rank(monkeypatch):
    sequences = walks(0, 320)
    model = trained(sequences, 0, TRAINING.model_copy(update={"epochs": 3}))
    factors, asked = fit_factors(model, batches(sequences[:160]), LinfacConfig()), sequences[160:192]
    data = batches(sequences[192:])
    exact = score_sequences(model, data, whole(model, asked, factors))
    errors, stated = [], []
    for rank in (1, 4, 12):
        monkeypatch.setattr(low_rank, "RANK", rank)
        query = query_each(model, asked, factors, 512)
        assert query.each[0].left.shape[:2] == (32, rank)
        stated.append(query.truncation)
        errors.append(float((score_sequences(model, data, query) - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert stated == sorted(stated, reverse=True)
    assert errors[-1] < 0.05
    np.testing.assert_array_less(errors, stated)


def test_a_study_of_single_queries_scores_them_thinly_where_whole_matrices_are_large(
    model, tokenizer, sequences, factors, study, monkeypatch
):
    single = study.linfac.model_copy(update={"query_groups": "query", "damping": 0.2})
    study = study.model_copy(update={"linfac": single})
    queries = [
        {"sample_id": f"q{n}", "prompt": f"Tell me how to {what}.", "response": f"Sure, {what}.", "finished": True}
        for n, what in enumerate(("break a gate", "steal a drone", "jam a lock"))
    ]
    exact = influence(model, tokenizer, sequences, factors, queries, study)
    monkeypatch.setattr("lancet_pipeline.linfac.influence.EXACT_ELEMENTS", 0)
    thin = influence(model, tokenizer, sequences, factors, queries, study)
    assert exact.truncation == 0 < thin.truncation < 0.2
    np.testing.assert_allclose(thin.score, exact.score, rtol=1e-3, atol=1e-4 * np.abs(exact.score).max())
    assert list(thin.groups) == list(exact.groups)
    for name, scores in exact.groups.items():
        assert np.corrcoef(thin.groups[name], scores)[0, 1] > 0.98


def test_factors_of_another_model_are_refused():
    model, asked = llama(), some_sequences(3)
    factors = fit_factors(model, [collate(asked)], LinfacConfig())
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(InputError, match="another model"):
        query_each(model, asked, factors, 60)
