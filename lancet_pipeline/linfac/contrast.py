"""Queries set against one another and against their controls: what each counts, which of them compete, and the one score of a
sample that follows (docs/method.md, Queries)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lancet_pipeline.data.batches import TokenSequence, bucketed, collate
from lancet_pipeline.linfac.damping import ELEMENTS
from lancet_pipeline.linfac.factors import Factors
from lancet_pipeline.linfac.low_rank import query_each
from lancet_pipeline.linfac.placement import spread_layers
from lancet_pipeline.linfac.scores import Query, score_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS = 4
"""Layers of a deeper model whose gradients tell how outputs are related."""

SMALLEST_CLUSTER = 0.1
"""Share of the queries below which a cluster does not speak for itself."""

CONTROL_PRIOR = 16
"""Controls count in full once they are many more than this: n of them by n / (n + CONTROL_PRIOR)."""


def relations(
    model: "PreTrainedModel", asked: Sequence[TokenSequence], factors: Factors, batch_tokens: int
) -> np.ndarray:
    """Influence of each output on each other one, on a few layers spread over the depth: [A, A] float64, symmetric."""
    sizes = [len(block.gradient_vectors) * len(block.input_vectors) for block in factors.blocks]
    part = factors.only(spread_layers(sizes, model.config.num_hidden_layers, ELEMENTS, most=LAYERS))
    groups = bucketed(asked, batch_tokens)
    query = query_each(model, asked, part, batch_tokens)
    found = score_sequences(model, (collate([asked[i] for i in group]) for group in groups), query)
    back = np.argsort([i for group in groups for i in group])
    values = found.reshape(len(asked), -1).numpy().astype(np.float64)[back]
    return (values + values.T) / 2


def equal_weights(related: np.ndarray) -> np.ndarray:
    """Weights by which all outputs count the same, whatever the size of their gradients; 1 on average: [A]."""
    own = np.sqrt(np.diag(related).clip(0))
    weights = 1 / np.maximum(own, max(1e-3 * np.median(own), np.finfo(float).tiny))
    return weights / weights.mean()


def competing(related: np.ndarray) -> np.ndarray:
    """Cluster of each query, from 0: queries are apart where training on one makes the other less likely, as with
    different wordings of one fault. Average linkage over correlations, cut where they are negative; clusters smaller than
    SMALLEST_CLUSTER join the largest one. [Q] int."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    count = len(related)
    if count < 2:
        return np.zeros(count, dtype=int)
    weights = equal_weights(related)
    scaled = related * weights[:, None] * weights
    distance = 1 - scaled / max(np.abs(np.diag(scaled)).max(), np.finfo(float).tiny)
    np.fill_diagonal(distance, 0)
    labels = fcluster(linkage(squareform(distance.clip(0), checks=False), "average"), 1.0, "distance")
    names, sizes = np.unique(labels, return_counts=True)
    order = [name for name in names[np.argsort(-sizes, kind="stable")] if (labels == name).mean() >= SMALLEST_CLUSTER]
    return np.array([order.index(label) if label in order else 0 for label in labels])


def less_controls(query: Query, clusters: int, controls: int) -> Query:
    """The first groups of a query, less the share of the last one, its controls, that their number is worth."""
    share = controls / (controls + CONTROL_PRIOR)
    groups, weights = query.groups or ("",), np.array(query.weights[:clusters])
    return replace(
        query,
        groups=groups[:clusters],
        matrices=tuple(
            matrix[:clusters] - share * matrix[clusters:] if controls else matrix[:clusters]
            for matrix in query.matrices
        ),
        weights=tuple((weights / weights.sum()).tolist()),
        competing=True,
    )
