"""Passes over data can be cut into pieces that travel as tables."""

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
from linfac.small import llama, split
from linfac.test_journal import some_sequences

from lancet_pipeline.data.batches import collate
from lancet_pipeline.linfac import LinfacConfig, fit_factors, query_gradient, score_dataset, self_influence
from lancet_pipeline.linfac.journal import COLUMNS
from lancet_pipeline.linfac.scores import SelfInfluencePass
from lancet_pipeline.models.runtime import Runtime


class InPieces:
    """An engine of one process that cuts the stream as one of many machines would, and cuts what comes of it too."""

    def __init__(self, model, size: int) -> None:
        self._model, self._size = model, size

    def run(self, work, batches, total, label, track=None) -> Iterator:
        batches = iter(batches)
        while piece := list(itertools.islice(batches, self._size)):
            table = pa.concat_tables([work.to_table(part) for part in work(self._model, piece)])
            for row in range(len(table)):
                yield from work.from_table(table.slice(row, 1))


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def batches():
    sequences = some_sequences(37)
    return split(collate(sequences), 3, 5, 1, 1, 8, 7, 2, 10)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("corrected", [False, True])
def test_factors_do_not_depend_on_the_pieces(model, batches, size, kind, corrected):
    config = LinfacConfig(factors=kind, eigenvalue_correction=corrected)
    held_out = [collate(some_sequences(24, seed=1))]
    whole = fit_factors(model, batches, config, held_out=held_out)
    cut = fit_factors(model, batches, config, held_out=held_out, engine=InPieces(model, size))
    assert cut.sequences == whole.sequences == 37
    assert whole.reliabilities
    assert cut.reliabilities == pytest.approx(whole.reliabilities, rel=1e-3)
    for here, there in zip(whole.blocks, cut.blocks, strict=True):
        scale = here.eigenvalues().abs().max().item()
        torch.testing.assert_close(there.eigenvalues(), here.eigenvalues(), rtol=1e-3, atol=1e-5 * scale)


def test_scores_and_self_influence_do_not_depend_on_the_pieces(model, batches):
    factors = fit_factors(model, batches, LinfacConfig())
    query = query_gradient(model, {"a": batches[:1], "b": batches[1:3]}, factors)
    engine, sequences = InPieces(model, 2), some_sequences(30)
    here = score_dataset(model, sequences, query, Runtime(batch_tokens=100))
    there = score_dataset(model, sequences, query, Runtime(batch_tokens=100, engine=lambda _: engine))
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(there, column), getattr(here, column))
    own = engine.run(SelfInfluencePass(factors), batches, len(batches), "self-influence")
    np.testing.assert_array_equal(np.concatenate(list(own)), self_influence(model, batches, factors).numpy())
