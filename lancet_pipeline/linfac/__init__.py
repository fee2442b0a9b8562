"""LinFAC: influence of training sequences, with the Transformer sublayer as the unit of a Kronecker-factored
Gauss-Newton approximation (arXiv 2412.16451, section LinFAC; choices of ours are in docs/method.md).

    factors = fit_factors(model, batches, LinfacConfig())
    query = query_gradient(model, query_batches, factors)
    scores = score_sequences(model, batches, query)

A positive score means: training on the sequence made the query's output more likely.
"""

from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.linfac.damping import choose_damping
from lancet_pipeline.linfac.factors import Factors, LinfacConfig
from lancet_pipeline.linfac.fitting import fit_factors
from lancet_pipeline.linfac.journal import Scores, score_dataset
from lancet_pipeline.linfac.low_rank import query_each
from lancet_pipeline.linfac.refinement import Refinement
from lancet_pipeline.linfac.scores import (
    Query,
    gradient_norms,
    query_gradient,
    score_sequences,
    score_tokens,
    self_influence,
)
from lancet_pipeline.linfac.units import Unit, find_units

__all__ = [
    "Factors",
    "LinfacConfig",
    "Query",
    "Refinement",
    "Scores",
    "TokenBatch",
    "Unit",
    "choose_damping",
    "find_units",
    "fit_factors",
    "gradient_norms",
    "query_each",
    "query_gradient",
    "score_dataset",
    "score_sequences",
    "score_tokens",
    "self_influence",
]
