"""Leading eigenpairs of wide sides: against dense decompositions, and in the scores that they give."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.small import TRAINING, batches, trained, walks
from lancet_pipeline.data.batches import collate
from lancet_pipeline.data.tokenization import load_tokenizer, tokenize
from lancet_pipeline.errors import LancetError
from lancet_pipeline.linfac import LinfacConfig, Query, fit_factors, score_sequences, self_influence
from lancet_pipeline.linfac.eigen import Side, eigenpairs, probe_matrix
from lancet_pipeline.linfac.scores import mean_gradient
from lancet_pipeline.models.loading import load_model

PROJECT = Path(__file__).parents[2]
SMOLLM2 = PROJECT / ".lancet/models/SmolLM2-135M-Instruct"
COMPLIANCE = PROJECT.parent / "shared/data/compliance_train.parquet"


def falling(width: int, power: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A positive semidefinite matrix whose eigenvalues fall by a power, and its eigenvalues, rising."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    values = torch.arange(1.0, width + 1, dtype=torch.float64) ** -power
    return ((basis * values) @ basis.T).float(), values.flip(0).float()


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(2, 60),
    share=st.floats(0.1, 1),
    power=st.floats(0, 4),
    rank=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_vectors_are_orthonormal_values_rise_and_the_trace_is_kept(width, share, power, rank, seed):
    matrix, _ = falling(width, power, seed)
    matrix = matrix[:, : min(rank, width)] @ matrix[:, : min(rank, width)].T
    kept = max(1, int(share * width))
    probe = probe_matrix(width, kept, seed, torch.device("cpu"))
    product = matrix if probe is None else matrix @ probe
    values, vectors = eigenpairs(Side(product, matrix.trace().item()), seed, "a side")
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(kept), rtol=0, atol=1e-4)
    pairs = values[-kept:]
    assert values.min() >= 0
    assert (pairs.diff() >= 0).all()
    total = pairs.sum() + (values[0] * (width - kept) if kept < width else 0)
    torch.testing.assert_close(total, matrix.trace(), rtol=1e-3, atol=1e-6)


def test_leading_pairs_are_near_those_of_the_whole_matrix():
    matrix, expected = falling(200, 2.0)
    probe = probe_matrix(200, 60, 0, torch.device("cpu"))
    values, vectors = eigenpairs(Side(matrix @ probe, matrix.trace().item()), 0, "a side")
    torch.testing.assert_close(values[-20:], expected[-20:], rtol=0.2, atol=0)
    kept = (vectors.T @ matrix @ vectors).trace()
    assert kept > 0.99 * expected[-60:].sum()
    assert values[0].item() == pytest.approx((expected.sum() - values[1:].sum()).item() / 140, rel=1e-3)


def test_a_decomposition_that_fails_is_tried_in_float64_then_with_a_shifted_diagonal(monkeypatch):
    matrix, expected = falling(12, 1.0)
    whole, tried = torch.linalg.eigh, []

    def eigh(matrix: torch.Tensor):
        tried.append(matrix.dtype)
        if len(tried) <= failures:
            raise torch.linalg.LinAlgError("did not converge")
        return whole(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    for failures in range(3):
        tried.clear()
        values, vectors = eigenpairs(Side(matrix, 1.0), 0, "a side")
        assert tried == [torch.float32, torch.float64, torch.float64][: failures + 1]
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=1e-3, atol=1e-5)
    failures = 3
    tried.clear()
    with pytest.raises(
        LancetError, match=r"unit 'model.layers.0.ffn', inputs: its factor \[12, 12\] has no eigenvalues"
    ):
        eigenpairs(Side(matrix, 1.0), 0, "unit 'model.layers.0.ffn', inputs")


@cache
def small_case():
    sequences = walks(0, 320)
    model = trained(sequences, 0, TRAINING.model_copy(update={"epochs": 3}))
    return model, batches(sequences[:160]), [collate(sequences[160:176])], batches(sequences[176:])


def agreements(model, data, queries, others, max_dim, dampings, **config) -> list[float]:
    """Correlation of scores with those of whole sides, for each damping."""
    matrices = []
    for width in (max_dim, 4096):
        factors = fit_factors(model, data, LinfacConfig(max_dim=width, **config))
        gradients, _ = mean_gradient(model, queries, factors.units, "")
        matrices.append([torch.stack(factors.precondition_each(i, g, dampings)) for i, g in enumerate(gradients)])
    names = tuple(map(str, range(2 * len(dampings))))
    both = tuple(map(torch.cat, zip(*matrices, strict=True)))
    query = Query(names, factors.units, both, (1 / len(names),) * len(names), factors.model)
    scores = score_sequences(model, others, query).numpy().T
    return [float(np.corrcoef(scores[i], scores[i + len(dampings)])[0, 1]) for i in range(len(dampings))]


@pytest.mark.parametrize("config", [{}, {"eigenvalue_correction": True}, {"factors": "token"}, {"units": "linear"}])
def test_a_side_kept_to_two_sevenths_scores_as_the_whole_side(config):
    """Both sides are wider than 25: 32 and 88, whose eigenvalues span five orders of magnitude."""
    low, one, ten = agreements(*small_case(), 25, (0.1, 1, 10), **config)
    assert low >= 0.9
    assert min(one, ten) >= 0.98


@pytest.mark.parametrize("corrected", [False, True])
def test_self_influence_follows_the_same_rule(corrected):
    model, data, _, others = small_case()
    narrow, whole = (
        fit_factors(model, data, LinfacConfig(max_dim=wide, eigenvalue_correction=corrected, damping=1.0))
        for wide in (25, 4096)
    )
    own = [self_influence(model, others, factors).numpy() for factors in (narrow, whole)]
    np.testing.assert_allclose(*own, rtol=0.2)
    assert np.corrcoef(*own)[0, 1] > 0.99


@pytest.mark.slow
@pytest.mark.skipif(
    not (SMOLLM2.exists() and COMPLIANCE.exists()), reason="the weights of SmolLM2-135M-Instruct are not here"
)
def test_a_real_model_kept_to_two_sevenths_scores_as_whole_sides():
    model, rows = load_model(SMOLLM2), pq.read_table(COMPLIANCE).slice(0, 72).to_pylist()
    sequences = tokenize(load_tokenizer(SMOLLM2), rows, max_length=96, overlength="truncate")
    data = batches(sequences[:32], 8), [collate(sequences[32:40])], batches(sequences[40:72], 8)
    low, one, ten = agreements(model, *data, 440, (0.1, 1, 10))
    assert low >= 0.9
    assert min(one, ten) >= 0.98
