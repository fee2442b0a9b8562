"""Influence by gradients: LinFAC, and what is left of it without curvature."""

import numpy as np

from lancet_pipeline.attribution.base import Case
from lancet_pipeline.data.batches import bucketed, collate
from lancet_pipeline.linfac import Factors, Scores, gradient_norms, query_each, score_dataset
from lancet_pipeline.linfac.scores import floored

FLAT = 1e12
"""So much damping that only the gradient is left of the curvature."""


def linfac(case: Case) -> np.ndarray:
    """Influence by LinFAC, of each training sample on each output."""
    return _scores(case, case.fitted).by_group.astype(np.float64)


def gradient_dot(case: Case) -> np.ndarray:
    """Inner product of gradients (TracIn at one checkpoint, Pruthi et al. 2020), up to a factor."""
    return _scores(case, case.fitted.damped(FLAT)).by_group * FLAT


def gradient_cosine(case: Case) -> np.ndarray:
    """Cosine of gradients, up to a factor."""
    found = _scores(case, case.fitted.damped(FLAT))
    groups = bucketed(case.asked_sequences, case.runtime.batch_tokens)
    batches = (collate([case.asked_sequences[i] for i in group]) for group in groups)
    asked = np.empty(len(case.asked))
    asked[[i for group in groups for i in group]] = gradient_norms(case.model, batches, case.fitted.units).numpy()
    return found.by_group * FLAT / floored(found.norms)[:, None] / floored(asked)


def _scores(case: Case, factors: Factors) -> Scores:
    query = query_each(case.model, case.asked_sequences, factors, case.runtime.batch_tokens)
    return score_dataset(case.model, case.sequences, query, case.runtime)
