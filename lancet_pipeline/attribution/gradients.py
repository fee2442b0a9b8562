"""Influence by gradients: LinFAC, and what is left of it without curvature."""

import numpy as np

from lancet_pipeline.attribution.base import FLAT, Case
from lancet_pipeline.data.batches import bucketed, collate
from lancet_pipeline.linfac import gradient_norms
from lancet_pipeline.linfac.scores import floored


def linfac(case: Case) -> np.ndarray:
    """Influence by LinFAC, of each training sample on each output."""
    return case.influence(case.fitted).by_group.astype(np.float64)


def gradient_dot(case: Case) -> np.ndarray:
    """Inner product of gradients (TracIn at one checkpoint, Pruthi et al. 2020)."""
    return case.plain_gradients.by_group.astype(np.float64) * case.fitted.damped(FLAT).damping_value


def gradient_cosine(case: Case) -> np.ndarray:
    """Cosine of gradients."""
    groups = bucketed(case.asked_sequences, case.runtime.batch_tokens)
    batches = (collate([case.asked_sequences[i] for i in group]) for group in groups)
    asked = np.empty(len(case.asked))
    asked[[i for group in groups for i in group]] = gradient_norms(case.model, batches, case.fitted.units).numpy()
    return gradient_dot(case) / floored(case.plain_gradients.norms)[:, None] / floored(asked)
