"""From influence scores to the pairs that a correction learns from."""

from lancet_pipeline.selection.pairing import pair
from lancet_pipeline.selection.pareto import Selection, Side, driving, select

__all__ = ["Selection", "Side", "driving", "pair", "select"]
