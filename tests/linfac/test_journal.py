"""Scoring of whole data sets: resumed, extended, and whatever the batches are."""

import numpy as np
import pytest
from linfac.small import llama

from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.errors import IntegrityError
from lancet_pipeline.linfac import LinfacConfig, fit_factors, query_gradient, score_dataset, score_tokens
from lancet_pipeline.linfac.scores import gradient_norms
from lancet_pipeline.models.runtime import Runtime


def some_sequences(count: int, seed: int = 0) -> list[TokenSequence]:
    generator = np.random.default_rng(seed)
    return [
        TokenSequence(f"{seed}-{i}", generator.integers(0, 50, int(generator.integers(6, 30))).astype(np.int32), 4)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def query(model):
    queries = [collate(some_sequences(5, seed=9))]
    return query_gradient(
        model,
        {"a": queries, "b": [queries[0].rows(queries[0].loss_tokens.argsort()[:2])]},
        fit_factors(model, [collate(some_sequences(12, seed=8))], LinfacConfig()),
    )


class Killed(Exception):
    pass


def killed_after(batches: int):
    def track(items, total, label):
        for number, item in enumerate(items):
            if number == batches:
                raise Killed
            yield item

    return track


def counted(into: list):
    def track(items, total, label):
        for item in items:
            into.extend(range(len(item)))
            yield item

    return track


def assert_same(one, other, exact: bool):
    for field in ("by_group", "pooled", "norms", "shares"):
        left, right = getattr(one, field), getattr(other, field)
        if exact:
            assert np.array_equal(left, right), field
        else:
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5 * np.abs(left).max())


def test_scores_and_largest_shares_are_those_of_each_sequence_alone(model, query):
    sequences = some_sequences(9)
    scores = score_dataset(model, sequences, query, Runtime(batch_tokens=64))
    assert scores.by_group.shape == (9, 2)
    for row, sequence in enumerate(sequences):
        shares = score_tokens(model, collate([sequence]), query)[0].numpy()
        np.testing.assert_allclose(scores.by_group[row], shares.sum(0), rtol=1e-3, atol=1e-4)
        pooled = shares @ np.array(query.weights)
        np.testing.assert_allclose(scores.pooled[row], pooled.sum(), rtol=1e-3, atol=1e-4)
        norm = gradient_norms(model, [collate([sequence])], query.units)
        np.testing.assert_allclose(scores.norms[row], norm[0], rtol=1e-4)
        kept = scores.positions[row][scores.positions[row] >= 0]
        assert len(kept) == min(8, len(sequence))
        np.testing.assert_allclose(
            np.abs(scores.shares[row][: len(kept)]), np.sort(np.abs(pooled))[::-1][:8], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("batch_tokens", [32, 200])
def test_result_does_not_depend_on_batch_size_or_order(model, query, batch_tokens):
    sequences = some_sequences(20)
    whole = score_dataset(model, sequences, query, Runtime(batch_tokens=100))
    order = np.random.default_rng(1).permutation(20)
    other = score_dataset(model, [sequences[i] for i in order], query, Runtime(batch_tokens=batch_tokens))
    np.testing.assert_allclose(other.pooled, whole.pooled[order], rtol=1e-5, atol=1e-5 * np.abs(whole.pooled).max())


def test_a_killed_run_goes_on_where_it_was_to_the_same_bits(model, query, tmp_path):
    sequences = some_sequences(30)
    expected = score_dataset(model, sequences, query, Runtime(batch_tokens=100))
    runtime = Runtime(batch_tokens=100, journal=tmp_path, track=killed_after(3))
    with pytest.raises(Killed):
        score_dataset(model, sequences, query, runtime, flush_seconds=0)
    scored: list[int] = []
    resumed = score_dataset(model, sequences, query, Runtime(batch_tokens=100, journal=tmp_path, track=counted(scored)))
    assert resumed.reused > 0
    assert len(scored) == 30 - resumed.reused
    assert_same(resumed, expected, exact=True)


def test_only_new_sequences_are_scored(model, query, tmp_path):
    first, more = some_sequences(20), some_sequences(3, seed=2)
    score_dataset(model, first, query, Runtime(batch_tokens=100, journal=tmp_path))
    mixed = [*first[:7], *more, *first[7:]]
    scored: list[int] = []
    found = score_dataset(model, mixed, query, Runtime(batch_tokens=100, journal=tmp_path, track=counted(scored)))
    assert len(scored) == 3
    assert found.reused == 20
    assert_same(found, score_dataset(model, mixed, query, Runtime(batch_tokens=100)), exact=False)


def test_another_query_shares_nothing(model, query, tmp_path):
    sequences = some_sequences(4)
    score_dataset(model, sequences, query, Runtime(batch_tokens=100, journal=tmp_path))
    assert score_dataset(model, sequences, query.pooled(), Runtime(batch_tokens=100, journal=tmp_path)).reused == 0


def test_an_altered_part_is_refused(model, query, tmp_path):
    sequences = some_sequences(4)
    score_dataset(model, sequences, query, Runtime(batch_tokens=100, journal=tmp_path))
    part = next(tmp_path.rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match="remove it"):
        score_dataset(model, sequences, query, Runtime(batch_tokens=100, journal=tmp_path))
    part.unlink()
    assert score_dataset(model, sequences, query, Runtime(batch_tokens=100, journal=tmp_path)).reused == 0


def test_samples_of_equal_tokens_are_scored_once(model, query):
    one = some_sequences(1)[0]
    twin = TokenSequence("twin", one.input_ids, one.response_start)
    scored: list[int] = []
    scores = score_dataset(model, [one, twin], query, Runtime(batch_tokens=100, track=counted(scored)))
    assert len(scored) == 1
    assert scores.pooled[0] == scores.pooled[1]
