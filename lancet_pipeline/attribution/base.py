"""What every attribution method is given, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import Factors, Scores, query_each, score_dataset
from lancet_pipeline.linfac.influence import query_sequences
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = Mapping[str, Any]

FLAT = 1e12
"""Damping under which nothing is left of the curvature: the damped inverse is the identity over lambda."""


@dataclass(frozen=True)
class Case:
    """The training samples of a model, and its own outputs that they are asked about.

    samples, sequences: N training samples, in one order. asked: the outputs (rows with sample_id, prompt, response), of which
    the first `queries` are harmful and the rest their controls. factors: of the model, damped, for methods that need them.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    samples: pa.Table
    sequences: Sequence[TokenSequence]
    asked: Sequence[Row]
    queries: int
    study: Study
    runtime: Runtime = Runtime()
    factors: Factors | None = None

    def of(self, asked: Sequence[Row], samples: Sequence[int]) -> "Case":
        """The same about other outputs, all of them queries, and only the training samples in those places."""
        part, sequences = self.samples.take(list(samples)), [self.sequences[i] for i in samples]
        return replace(self, samples=part, sequences=sequences, asked=asked, queries=len(asked))

    @property
    def fitted(self) -> Factors:
        """The factors. Raises InputError where there are none."""
        if self.factors is None:
            raise InputError("attribution: this method needs factors of the model; give them")
        return self.factors

    @cached_property
    def plain_gradients(self) -> Scores:
        """Inner products of gradients over lambda, and norms."""
        return self.influence(self.fitted.damped(FLAT))

    def influence(self, factors: Factors) -> Scores:
        """Scores of each training sample on each output, in one pass."""
        query = query_each(self.model, self.asked_sequences, factors, self.runtime.batch_tokens)
        return score_dataset(self.model, self.sequences, query, self.runtime)

    @cached_property
    def documents(self) -> list[str]:
        """Prompt and response of each training sample as one text."""
        return [_text(row) for row in self.samples.select(["prompt", "response"]).to_pylist()]

    @cached_property
    def asked_texts(self) -> list[str]:
        return [_text(row) for row in self.asked]

    @cached_property
    def asked_sequences(self) -> list[TokenSequence]:
        """Each output as tokens, numbered by its place: two prompts may have one answer."""
        return _numbered(self.tokenizer, self.asked, self.study.data.max_length)


def fitting(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], max_length: int) -> list[int]:
    """Places of the outputs whose prompts are not longer than training samples may be; others no method can ask about."""
    return [int(sequence.sample_id) for sequence in _numbered(tokenizer, rows, max_length)]


def _numbered(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], max_length: int) -> list[TokenSequence]:
    numbered = [{**row, "sample_id": str(number)} for number, row in enumerate(rows)]
    return query_sequences(tokenizer, numbered, max_length)


Method = Callable[[Case], np.ndarray]
"""Similarity of each training sample to each output, or its influence on it: [N, len(asked)] float64; or one score for all
queries, [N]."""


def _text(row: Row) -> str:
    return f"{row['prompt']}\n{row['response']}"
