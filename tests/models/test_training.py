"""Supervised training under settings that save memory."""

import copy

import pytest
import torch
from linfac.small import llama

from lancet_pipeline.config.study import Training, load_study
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.sources import source_versions
from lancet_pipeline.models.training import train


def sequences(count: int = 40) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 50, (count, 12), generator=generator).numpy()
    return [TokenSequence(str(i), row[: 8 + i % 5], 4) for i, row in enumerate(rows)]


def test_eight_bit_states_train_as_well():
    pytest.importorskip("bitsandbytes")
    model = llama()
    model.resize_token_embeddings(400, mean_resizing=False)  # large enough for states in 8 bits
    curves = {
        states: train(
            copy.deepcopy(model),
            sequences(),
            Training(epochs=12, learning_rate=1e-2, optimizer_states=states),
            seed=0,
        )
        for states in ("32bit", "8bit")
    }
    assert curves["8bit"] != curves["32bit"]
    assert curves["8bit"][-1] == pytest.approx(curves["32bit"][-1], rel=0.1)
    assert curves["8bit"][-1] < 0.7 * curves["8bit"][0]


def test_a_study_that_lacks_a_package_ends_before_anything_runs(tiny_study, monkeypatch):
    monkeypatch.setattr("lancet_pipeline.models.memory.find_spec", lambda name: None)
    study = load_study(tiny_study)
    chosen = study.correction.model_copy(update={"optimizer_states": "8bit"})
    with pytest.raises(InputError, match=r"correction\.optimizer_states = 8bit: .*lancet-pipeline\[memory\]"):
        source_versions(study.model_copy(update={"correction": chosen}), [])
