"""What training on several ranks takes: shares of the data, sums over ranks, and models that are sharded by FSDP2.

Outside a process group, or in one of a single rank, everything here changes nothing. Every rank forms the loss from the
values of all ranks, so that what is decided by it is decided alike everywhere; gradients flow into a rank's own values, and
FSDP adds them up. What is written to disk is whole and written by rank 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from lancet_pipeline.models.architectures import layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first() -> bool:
    """Whether this is the rank that reads and writes files."""
    return ranks() == 1 or dist.get_rank() == 0


def share(items: Sequence[T]) -> tuple[Sequence[T], bool]:
    """This rank's part of `items`, every ranks-th from its own number on, and True.

    Where there are fewer items than ranks, those without get the first item and False: they take part in the forward and
    backward passes, as FSDP needs all ranks to, and what they find is not counted.
    """
    own = items if ranks() == 1 else items[dist.get_rank() :: ranks()]
    return (own, True) if own else (items[:1], False)


def in_step(own: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This rank's items with True, then its last one with False until every rank has had as many."""
    count = int(_reduced(torch.tensor(len(own)), dist.ReduceOp.MAX)) if ranks() > 1 else len(own)
    for index in range(count):
        yield own[min(index, len(own) - 1)], index < len(own)


def rounds(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """`items` dealt out to the ranks, as many to each; False with those that do not count (see `share`, `in_step`)."""
    own, mine = share(items)
    for item, new in in_step(own):
        yield item, mine and new


def whole(own: torch.Tensor, count: int) -> torch.Tensor:
    """Values of all `count` items, [..., count], of this rank's values for its `share` of them, [..., n].

    Their gradient flows into the rank's own.
    """
    if ranks() == 1:
        return own
    rows = torch.arange(dist.get_rank(), count, ranks(), device=own.device)
    return total(own.new_zeros(*own.shape[:-1], count).index_copy(-1, rows, own[..., : len(rows)]))


def mean(own: torch.Tensor, count: int) -> torch.Tensor:
    """The mean over all ranks' items, of this rank's mean `own` over `count` items; its gradient flows into `own`."""
    if ranks() == 1:
        return own
    return total(own * count) / total(torch.tensor(float(count), device=own.device))


def total(own: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, elementwise; its gradient flows into this rank's summand."""
    return own if ranks() == 1 else _Total.apply(own)


def totals(*own: float) -> tuple[float, ...]:
    """Sums over ranks, in float64."""
    return own if ranks() == 1 else tuple(_reduced(torch.tensor(own, dtype=torch.float64)).tolist())


def merged(own: Mapping[str, T]) -> dict[str, T]:
    """Entries of all ranks."""
    if ranks() == 1:
        return dict(own)
    parts: list[Any] = [None] * ranks()
    dist.all_gather_object(parts, dict(own))
    return {key: value for part in parts for key, value in part.items()}


def agreed(value: T) -> T:
    """The value of rank 0."""
    if ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_device())
    return box[0]


def shard(model: "PreTrainedModel") -> None:
    """Spread the parameters of `model` over the ranks by FSDP2: a unit for each Transformer layer, and one for the rest.

    The values are those of rank 0; elsewhere the model may be without any, on the meta device. Shards lie on the
    accelerator where the group has one. Parameters are gathered for the pass through their layer alone, so that what
    `named_parameters` gives between passes is always the shard. Gradients are summed over ranks, in float32.

    Raises:
        InputError: an architecture whose layers are not known.
    """
    if ranks() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    values = {name: parameter.detach() for name, parameter in model.named_parameters()} if first() else {}
    if model.device.type == "meta":
        model.to_empty(device="cpu")  # memory that is not touched before it is sharded takes no room
        model.tie_weights()
    device = _device()
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (ranks(),))
    for unit in (*(layer for _, layer in layers_of(model)), model):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # Gloo knows no other
    load(dict(model.named_parameters()), values)
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor; all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors on the host at rank 0, nothing at the others; in one process the tensors themselves."""
    if ranks() == 1:
        return {name: tensor.detach() for name, tensor in named.items()}
    found, seen = {}, {}
    for name, tensor in named.items():  # one at a time, so that no device ever holds more than one
        if id(tensor) not in seen:
            value = full(tensor.detach())
            seen[id(tensor)] = value.cpu() if first() else None
        if first():
            found[name] = seen[id(tensor)]  # what is tied stays so
    return found


def placed(value: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """What rank 0 gives as `value`, laid out as `like` is: on its device and, where that is sharded, this rank's shard."""
    if not isinstance(like, DTensor):
        assert value is not None
        return value.to(like.device)
    if value is None:
        value = torch.empty(like.shape, dtype=like.dtype)
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)


def load(named: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Write the whole `values` that rank 0 has into tensors of those names, in place."""
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(placed(values.get(name) if first() else None, tensor))


def _device() -> torch.device:
    """Where the group communicates: the accelerator where it has a backend for that, the host otherwise."""
    if "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _reduced(value: torch.Tensor, operation: Any = dist.ReduceOp.SUM) -> torch.Tensor:
    value = value.to(_device(), copy=True)
    dist.all_reduce(value, operation)
    return value


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        return _reduced(own.detach())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient
