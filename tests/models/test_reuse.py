"""Drift is counted and measured from the data that a model saw."""

import math

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.models.likelihood import perplexity, response_logps
from lancet_pipeline.models.reuse import may_stay, measure_drift, record_seen


def sequence(*ids: int) -> TokenSequence:
    return TokenSequence("any", np.array(ids, dtype=np.int32), 2)


def study(**limits: float) -> Study:
    tree = tiny_tree()
    tree["model"]["reuse"] = limits or None
    return Study.model_validate(tree)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes)).eval()


SEEN = [sequence(1, 2, i, i + 1) for i in range(3, 23)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_changes_are_those_of_multisets(model, tmp_path_factory, before, now):
    folder = tmp_path_factory.mktemp("seen")
    record_seen([sequence(1, 2, i) for i in before], folder)
    drift = measure_drift(model, folder, [sequence(1, 2, i) for i in now], study(max_changed=1e-6))
    expected = [max(now.count(i) - before.count(i), 0) for i in range(10)]
    gone = [max(before.count(i) - now.count(i), 0) for i in range(10)]
    assert (drift.added, drift.removed) == (sum(expected), sum(gone))
    assert drift.changed == max(sum(expected), sum(gone)) / len(now)


def test_drift_is_what_new_samples_add_to_the_mean_loss(model, tmp_path):
    record_seen(SEEN, tmp_path)
    new = [sequence(9, 8, 7, 6), sequence(5, 5, 5, 5)]
    now = [*SEEN[1:], *new]
    drift = measure_drift(model, tmp_path, now, study(max_changed=0.5))

    def loss(chosen: list[TokenSequence]) -> float:
        with torch.no_grad():
            return -sum(response_logps(model, collate([s])).item() for s in chosen) / (2 * len(chosen))

    assert (drift.added, drift.removed) == (2, 1)
    assert drift.changed == pytest.approx(2 / 21)
    assert drift.loss == pytest.approx(loss(now) - loss(SEEN[1:]), abs=1e-5)


def test_a_model_stays_within_both_limits_only(model, tmp_path):
    record_seen(SEEN, tmp_path)
    now = [*SEEN, sequence(9, 8, 7, 6)]
    rise = abs(measure_drift(model, tmp_path, now, study(max_changed=0.5)).loss)
    assert may_stay(model, tmp_path, now, study(max_changed=0.5, max_drift=rise + 0.01)) is not None
    assert may_stay(model, tmp_path, now, study(max_changed=0.01, max_drift=rise + 0.01)) is None
    assert may_stay(model, tmp_path, now, study()) is None
    others = [sequence(30, 31, i, 39 - i) for i in range(18)]
    hardest = max(others, key=lambda s: perplexity(model, [s]))
    loss = measure_drift(model, tmp_path, [*SEEN, hardest], study(max_changed=0.5)).loss
    assert loss > 0
    assert may_stay(model, tmp_path, [*SEEN, hardest], study(max_changed=0.5, max_drift=loss / 2)) is None


def test_nothing_that_was_seen_is_no_ground_to_stay(model, tmp_path):
    record_seen(SEEN, tmp_path)
    others = [sequence(7, 7, i) for i in range(20)]
    assert measure_drift(model, tmp_path, others, study(max_changed=0.5)).loss == math.inf
    assert may_stay(model, tmp_path / "elsewhere", SEEN, study(max_changed=0.5)) is None
