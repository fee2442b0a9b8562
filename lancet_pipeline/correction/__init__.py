"""Corrections of a model from influential samples: IBO, and the methods that it is compared with."""

from lancet_pipeline.correction.losses import METHODS
from lancet_pipeline.correction.trainer import Correction, RankedPair, correct

__all__ = ["METHODS", "Correction", "RankedPair", "correct"]
