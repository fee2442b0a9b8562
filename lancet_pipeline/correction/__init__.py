"""Corrections of a model from influential samples."""

from lancet_pipeline.correction.ibo import Correction, RankedPair, correct

__all__ = ["Correction", "RankedPair", "correct"]
