"""Where factors are kept: on the device of the model, or in the memory of the host once the device has none to spare. And how
many query matrices fit there at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac.units import Unit, gradient_elements
from lancet_pipeline.models.memory import available_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESERVE = 0.25
"""Share of a device's memory that factors leave to weights, activations and what is computed with factors."""

QUERY_SHARE = 0.6
"""Share of the available memory that query matrices may take; activations need the rest."""


def groups_at_once(
    model: "PreTrainedModel", units: Sequence[Unit], copies: float, setting: str, remedy: str, least: int = 1
) -> int:
    """Query groups whose matrices over `units` fit into the available memory, `copies` of them for each group.

    A power of two, so that a second run with a little more or less memory forms the same chunks and finds them in the journal.

    Raises:
        InputError: fewer than `least` fit; names `setting` and the remedy.
    """
    one = 4 * copies * gradient_elements(model, units)
    room = QUERY_SHARE * available_memory(model.device)
    if room < least * one:
        raise InputError(
            f"{setting}: the matrices of {least} query group{'s' * (least > 1)} need {least * one / 1e9:.2g} GB of memory, and "
            f"{room / 1e9:.2g} GB are free for them on {model.device}; {remedy}, or take a machine with more memory"
        )
    return 2 ** (int(room // one).bit_length() - 1)


def spread_layers(
    sizes: Sequence[int], layers: int, budget: int, *, least: int = 1, most: int | None = None
) -> list[int]:
    """Indices of the units of as many layers as `budget` elements hold, within `least` and `most`, spread over the depth.

    sizes: elements of each unit, layer by layer.
    """
    per_layer = max(1, len(sizes) // layers)
    layers = len(sizes) // per_layer
    count = min(max(least, budget * layers // sum(sizes)), layers, most or layers)
    chosen = {(2 * number + 1) * layers // (2 * count) for number in range(count)}
    return [index for index in range(len(sizes)) if index // per_layer in chosen]


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
