"""Query groups that do not fit into memory at once: the share that they may take is set to what some of them need."""

import numpy as np
import psutil
import pytest
import torch
from models.test_architectures import ARCHITECTURES, make_model

from lancet_pipeline.config.study import RefinementSettings
from lancet_pipeline.data.batches import TokenBatch, collate
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import find_units, placement
from lancet_pipeline.linfac.damping import choose_damping
from lancet_pipeline.linfac.influence import influence
from lancet_pipeline.linfac.scores import mean_gradient
from lancet_pipeline.linfac.traces import trace_outputs
from lancet_pipeline.linfac.units import gradient_elements
from lancet_pipeline.models.memory import available_memory
from lancet_pipeline.models.runtime import Runtime

DAMPING = 0.2
QUERIES = [
    {"sample_id": f"q{n}", "prompt": f"Tell me how to {what}.", "response": f"Sure, {what} it.", "finished": True}
    for n, what in enumerate(("break a gate", "steal a drone", "jam a lock", "fake a badge", "hijack a car"))
]


def allow(monkeypatch, model, factors, groups: float, copies: int = 2) -> None:
    needed = groups * copies * 4 * gradient_elements(model, factors.units)
    monkeypatch.setattr(placement, "QUERY_SHARE", needed / available_memory(model.device))


def by(study, groups: str, **linfac):
    return study.model_copy(
        update={"linfac": study.linfac.model_copy(update={"query_groups": groups, "damping": DAMPING, **linfac})}
    )


@pytest.mark.parametrize("units", ["sublayer_output", "sublayer_input", "linear"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_size_of_a_gradient_is_known_before_it_is_made(name, units):
    model = make_model(name)
    found = tuple(find_units(model, units))
    ids = torch.arange(1, 9)[None]
    data = TokenBatch(ids, torch.ones_like(ids), torch.arange(8)[None] > 3)
    gradients, _ = mean_gradient(model, [data], found, "")
    assert gradient_elements(model, found) == sum(gradient.numel() for gradient in gradients)


@pytest.mark.parametrize("normalisation", ["none", "self_influence"])
def test_groups_in_chunks_have_the_scores_of_one_pass(
    model, tokenizer, sequences, factors, study, normalisation, tmp_path, monkeypatch
):
    study, passes = by(study, "query", normalisation=normalisation), []

    def track(items, total, label):
        passes.append(label)
        return items

    def scored(journal=None):
        passes.clear()
        return influence(model, tokenizer, sequences, factors, QUERIES, study, Runtime(journal=journal, track=track))

    whole = scored()
    assert passes.count("scoring") == 2, "one on all queries, one on every single one"
    allow(monkeypatch, model, factors, 3)
    chunks = scored(tmp_path)
    assert passes.count("scoring") == 3 + 1, "all queries, and five groups two by two"
    assert list(chunks.groups) == list(whole.groups) == [query["sample_id"] for query in QUERIES]
    for name, scores in whole.groups.items():
        np.testing.assert_allclose(chunks.groups[name], scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max())
    np.testing.assert_allclose(chunks.score, whole.score, rtol=1e-4, atol=1e-5 * np.abs(whole.score).max())
    np.testing.assert_array_equal(chunks.raw.positions, whole.raw.positions)
    again = scored(tmp_path)
    assert again.raw.reused == len(sequences)
    np.testing.assert_array_equal(again.score, chunks.score)
    np.testing.assert_array_equal(again.raw.by_group, chunks.raw.by_group)


@pytest.mark.parametrize("groups", ["query", "none"])
def test_too_little_memory_for_one_group_is_refused_before_any_work(
    model, tokenizer, sequences, factors, study, groups, monkeypatch
):
    allow(monkeypatch, model, factors, 0.5)
    handle = model.register_forward_pre_hook(lambda *_: pytest.fail("the model was used"))
    try:
        with pytest.raises(InputError, match=rf"linfac\.query_groups: {groups}: .* GB .* more memory"):
            influence(model, tokenizer, sequences, factors, QUERIES, by(study, groups))
        with pytest.raises(InputError, match=r"governance\.traced_outputs: .* GB .* more memory"):
            trace_outputs(model, tokenizer, sequences, {}, factors, QUERIES, by(study, groups), damping=DAMPING)
        with pytest.raises(InputError, match=r"linfac\.damping: auto: .*; give linfac\.damping a number"):
            choose_damping(model, [collate(sequences[:4])], [collate(sequences[4:8])], factors)
    finally:
        handle.remove()


def test_refinement_needs_more_and_is_named_as_the_remedy(model, tokenizer, sequences, factors, study, monkeypatch):
    allow(monkeypatch, model, factors, 1.5)
    influence(model, tokenizer, sequences, factors, QUERIES, by(study, "query"))
    refined = by(study, "query", refinement=RefinementSettings(samples=6, steps=1))
    with pytest.raises(InputError, match=r"leave out linfac\.refinement"):
        influence(model, tokenizer, sequences, factors, QUERIES, refined)


def test_available_memory_is_some_and_no_more_than_the_machine_has():

    assert 0 < available_memory(torch.device("cpu")) <= psutil.virtual_memory().total


def test_groups_that_compete_are_refused_rather_than_mixed_where_memory_is_short(
    model, tokenizer, sequences, factors, study, monkeypatch
):
    study = by(study, "none")
    queries = [{**QUERIES[0], "sample_id": answer, "response": answer} for answer in ("Yes", "No")]
    groups = len(set(influence(model, tokenizer, sequences, factors, queries, study).clusters))
    assert groups > 1, "else this test says nothing"
    allow(monkeypatch, model, factors, groups - 0.5)
    with pytest.raises(InputError, match=rf"the matrices of {groups} query groups need .* more memory"):
        influence(model, tokenizer, sequences, factors, queries, study)
