"""Where factors are kept: on the device of the model, or in the memory of the host once the device has none to spare."""

import torch

RESERVE = 0.25
"""Share of a device's memory that factors leave to weights, activations and what is computed with factors."""


def settled(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`tensors` where they are, or on the host where less than RESERVE of their device's memory is free."""
    return tuple(tensor.cpu() for tensor in tensors) if is_crowded(tensors[0].device) else tensors


def is_crowded(device: torch.device) -> bool:
    """Whether less than RESERVE of a device's memory is free; the host's own never is."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused < RESERVE * total
