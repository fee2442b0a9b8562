"""Factors that the device has no room for."""

import pytest
import torch
from linfac.small import batch, llama, split
from torch._subclasses import FakeTensorMode

from lancet_pipeline.linfac import Factors, LinfacConfig, fit_factors, placement


@pytest.mark.parametrize("config", [{}, {"eigenvalue_correction": True}, {"factors": "token"}])
def test_factors_kept_by_the_host_are_those_of_the_device(config, monkeypatch):
    model, data = llama(), split(batch(), 4, 2)
    held_out = [batch(rows=24, seed=1)]
    expected = fit_factors(model, data, LinfacConfig(**config), held_out=held_out)
    asked = []

    def is_crowded(device: torch.device) -> bool:
        asked.append(device)
        return len(asked) % 2 == 0

    monkeypatch.setattr(placement, "is_crowded", is_crowded)
    found = fit_factors(model, data, LinfacConfig(**config), held_out=held_out)
    assert len(asked) == 3 * len(found.units)  # both halves of each unit's sums, and its factors
    assert found.reliabilities
    assert found.reliabilities == expected.reliabilities
    for one, other in zip(found.blocks, expected.blocks, strict=True):
        assert all(torch.equal(t, other.tensors()[name]) for name, t in one.tensors().items())


def test_factors_of_the_host_serve_gradients_of_the_device():
    """Fake tensors are of a device that need not be here, and as real ones do not mix with those of another."""
    factors = fit_factors(llama(), [batch()], LinfacConfig(eigenvalue_correction=True))
    vectors = factors.blocks[1].input_vectors
    with FakeTensorMode(allow_non_fake_inputs=True):
        gradient = torch.empty(3, 16, 24, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            gradient @ vectors
        tokens = torch.empty(3, 5, 24, device="cuda"), torch.empty(3, 5, 16, device="cuda")
        for found in (factors.precondition(1, gradient), factors.squared_norm(1, *tokens)):
            assert found.device.type == "cuda"
            assert len(found) == 3


def test_the_host_is_never_crowded_and_a_full_device_keeps_no_factors(tmp_path, monkeypatch):
    assert not placement.is_crowded(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert placement.is_crowded(torch.device("cuda"))
    fit_factors(llama(), [batch()], LinfacConfig()).save(tmp_path)
    assert {block.input_vectors.device.type for block in Factors.load(tmp_path, "cuda").blocks} == {"cpu"}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert not placement.is_crowded(torch.device("cuda"))


@pytest.mark.parametrize(
    ("budget", "most", "layers"),
    [(1, None, {4}), (20, None, {2, 6}), (40, None, {1, 3, 5, 7}), (80, None, set(range(8))), (80, 4, {1, 3, 5, 7})],
)
def test_layers_are_spread_over_the_depth(budget, most, layers):
    sizes = [3, 7] * 8
    chosen = placement.spread_layers(sizes, 8, budget, most=most)
    assert {index // 2 for index in chosen} == layers
    assert len(chosen) == 2 * len(layers)
    assert placement.spread_layers([5], 1, 1, least=4) == [0]
    assert placement.spread_layers(sizes, 8, 1, least=2) == [4, 5, 12, 13]
