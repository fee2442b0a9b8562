"""Factors that the device has no room for."""

import pytest
import torch
from linfac.small import batch, llama, split
from torch._subclasses import FakeTensorMode

from lancet_pipeline.linfac import Factors, LinfacConfig, fit_factors, placement


@pytest.mark.parametrize("config", [{}, {"eigenvalue_correction": True}, {"factors": "token"}])
def test_factors_kept_by_the_host_are_those_of_the_device(config, monkeypatch):
    model, data = llama(), split(batch(), 4, 2)
    expected = fit_factors(model, data, LinfacConfig(**config))
    asked = []

    def is_crowded(device: torch.device) -> bool:
        asked.append(device)
        return len(asked) % 2 == 0

    monkeypatch.setattr(placement, "is_crowded", is_crowded)
    found = fit_factors(model, data, LinfacConfig(**config))
    assert len(asked) == 3 * len(found.units)  # both halves of each unit's sums, and its factors
    assert found.reliability == expected.reliability
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
        for found in (factors.precondition(1, gradient), factors.squared_norm(1, gradient)):
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
