"""The tiny model of the tests of LinFAC."""

from linfac.conftest import factors, model, rows, sequences, study, tokenizer

__all__ = ["factors", "model", "rows", "sequences", "study", "tokenizer"]
