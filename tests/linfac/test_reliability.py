"""The estimated reliability of factors against what factors of very many sequences say."""

import math

import numpy as np
import pytest
import torch
from linfac.small import batch, llama

from benchmarks.small import TRAINING, batches, trained, walks
from lancet_pipeline.data.batches import collate
from lancet_pipeline.linfac import LinfacConfig, fit_factors, query_gradient, score_sequences
from lancet_pipeline.linfac.damping import CANDIDATES

DAMPINGS = (0.1, 1.0, 10.0)
MARGIN = 0.05
"""By which the estimate may be above the truth, on average over models."""


@pytest.fixture(scope="module")
def compared() -> np.ndarray:
    """[models, sizes, dampings, (truth, estimate)] for factors of 16, 32 and 96 sequences."""
    found = []
    for seed in range(4):
        sequences = walks(seed, 1600)
        model = trained(sequences[:320], seed, TRAINING.model_copy(update={"epochs": 3 + 3 * seed}))
        asked, scored, held_out = (
            [collate(sequences[320:336])],
            batches(sequences[336:480]),
            batches(sequences[480:544]),
        )
        many = fit_factors(model, batches(sequences[640:]), LinfacConfig())

        def scores(factors, rho, model=model, asked=asked, scored=scored):
            return score_sequences(model, scored, query_gradient(model, asked, factors.damped(rho))).double().numpy()

        truth = {rho: scores(many, rho) for rho in DAMPINGS}
        found.append([])
        for count in (16, 32, 96):
            few = fit_factors(model, batches(sequences[544 : 544 + count]), LinfacConfig(), held_out=held_out)
            found[-1].append(
                [
                    (float(np.corrcoef(scores(few, rho), truth[rho])[0, 1]), few.damped(rho).reliability)
                    for rho in DAMPINGS
                ]
            )
    return np.array(found)


def test_the_estimate_is_not_above_the_truth_by_more_than_a_margin(compared):
    above = (compared[..., 1] - compared[..., 0])[:, 1:]
    assert above.mean(0).max() <= MARGIN
    assert above.max() <= 0.2, "a single model, whose estimate rests on 48 scores"
    assert above.mean() > -0.1, "and it is not much below it"


def test_truth_and_estimate_grow_with_the_sample(compared):
    assert (np.diff(compared.mean((0, 2)), axis=0) > 0).all()


def test_it_is_known_at_every_damping_and_nan_where_nothing_was_held_out():
    model, data = llama(), batch(rows=12)
    factors = fit_factors(model, [data], LinfacConfig(), held_out=[batch(rows=24, seed=1)])
    assert tuple(factors.reliabilities) == CANDIDATES
    assert factors.damped(0.3).reliability == factors.reliabilities[0.3]
    between = sorted(factors.reliabilities[rho] for rho in (1.0, 3.0))
    assert between[0] <= factors.damped(2.0).reliability <= between[1]
    assert factors.damped(1e6).reliability == factors.reliabilities[30.0]
    for held_out in ((), [batch(rows=15, seed=1)]):
        assert math.isnan(fit_factors(model, [data], LinfacConfig(), held_out=held_out).reliability)
    assert math.isnan(
        fit_factors(model, [data.rows(torch.tensor([0]))], LinfacConfig(), held_out=[batch(24)]).reliability
    )
