"""The table of influence, built by columns, against the same table built row by row."""

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.tokenization import train_tokenizer
from lancet_pipeline.linfac.influence import Influence, influence_table
from lancet_pipeline.linfac.journal import Scores

LENGTHS, KEPT = (3, 9, 5, 4), 4


def made_up(tokenizer: PreTrainedTokenizerFast) -> tuple[Influence, list[TokenSequence], pa.Table]:
    draw = np.random.default_rng(0)
    ids = [draw.integers(4, len(tokenizer), length).astype(np.int32) for length in LENGTHS]
    positions = np.full((len(LENGTHS), KEPT), -1, np.int32)
    for row, length in enumerate(LENGTHS):
        chosen = draw.permutation(length)[:KEPT]
        positions[row, : len(chosen)] = chosen
    shares = np.where(positions >= 0, draw.standard_normal(positions.shape), 0).astype(np.float32)
    pooled = draw.standard_normal(len(LENGTHS))
    raw = Scores(pooled[:, None].astype(np.float32), pooled, np.ones(len(LENGTHS), np.float32), positions, shares, 0)
    scale = draw.uniform(1, 2, len(LENGTHS))
    groups = {"a": draw.standard_normal(len(LENGTHS))}
    sequences = [TokenSequence(f"s{i}", tokens, 1) for i, tokens in enumerate(ids)]
    samples = pa.table({"source": ["x"] * len(LENGTHS), "category": pa.array([None] * len(LENGTHS), pa.string())})
    return Influence(pooled / scale, groups, raw, scale, None, [], 0.1, None), sequences, samples


def test_every_row_names_its_own_tokens_and_shares():
    tokenizer = train_tokenizer(["some words that a tokenizer can learn from, and more words"], 300)
    found, sequences, samples = made_up(tokenizer)
    table = influence_table(found, samples, sequences, tokenizer).to_pylist()
    for row, sequence in enumerate(sequences):
        assert table[row]["sample_id"] == sequence.sample_id
        assert table[row]["groups"] == [{"group": "a", "score": found.groups["a"][row]}]
        kept = [k for k in range(KEPT) if found.raw.positions[row, k] >= 0]
        assert [token["position"] for token in table[row]["tokens"]] == [found.raw.positions[row, k] for k in kept]
        for k, token in zip(kept, table[row]["tokens"], strict=True):
            assert token["token"] == tokenizer.decode([int(sequence.input_ids[found.raw.positions[row, k]])])
            assert token["share"] == np.float32(found.raw.shares[row, k] / found.scale[row])
    assert len(table[0]["tokens"]) == 3
