"""What keeps models and batches within the memory of a device."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from lancet_pipeline.data.batches import TokenBatch, TokenSequence
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.architectures import layers_of
from lancet_pipeline.models.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lancet_pipeline.config.study import Study

LARGE_MODEL = 10**9
"""Parameters from which on a model computes activations again unless told otherwise."""

States = Literal["32bit", "8bit"]
Checkpointing = bool | Literal["auto"]
T = TypeVar("T")


@contextmanager
def activation_checkpointing(model: "PreTrainedModel", setting: Checkpointing) -> Iterator[None]:
    """Until the block ends, Transformer layers keep their input alone for the backward pass, and compute the rest again in it
    (arXiv 1604.06174): a third more time. `auto` is on for models of LARGE_MODEL parameters or more.

    transformers' own switch works in training mode only, which would bring dropout into a correction.

    Raises:
        InputError: the architecture is unknown.
    """
    on = model.num_parameters() >= LARGE_MODEL if setting == "auto" else setting
    layers = [layer for _, layer in layers_of(model)] if on else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class has its own


class Backoff:
    """Splits what does not fit into the memory of a device, and remembers what did not for all that follows.

    A batch that is out of memory is taken in halves, each of them again if it must. One of these serves a walk over batches.
    """

    def __init__(self) -> None:
        self._tokens = math.inf

    def parts(self, part: slice, width: int) -> list[slice]:
        """The sequences `part` of `width` tokens, padding included, in halves of halves that are as small as what fitted."""
        rows = part.stop - part.start
        if rows == 1 or rows * width <= self._tokens:
            return [part]
        middle = part.start + math.ceil(rows / 2)
        return [*self.parts(slice(part.start, middle), width), *self.parts(slice(middle, part.stop), width)]

    def smaller(self, part: slice, width: int, name: Callable[[int], str]) -> None:
        """Take note that the sequences `part` of `width` tokens were too many at once.

        Raises:
            InputError: it was one, which `name` says.
        """
        rows = part.stop - part.start
        if rows == 1:
            raise InputError(
                f"{name(part.start)}: its {width} tokens alone do not fit into the memory of the device; lower "
                "data.max_length, shorten or drop the sample, or take a larger device"
            )
        self._tokens = math.ceil(rows / 2) * width
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def run(self, work: Callable[[slice], T], rows: int, width: int, name: Callable[[int], str]) -> list[T]:
        """What `work` gives of all `rows` sequences, in order: of all at once, or of parts of them.

        `work` gets slices that only become finer: one that failed comes again in halves.

        Raises:
            InputError: a sequence that does not fit by itself.
        """
        waiting, found = [slice(0, rows)], []
        while waiting:
            first, *waiting = [*self.parts(waiting[0], width), *waiting[1:]]
            result = attempt(lambda first=first: work(first))
            if result is None:
                self.smaller(first, width, name)
                waiting.insert(0, first)
            else:
                found.append(result[0])
        return found

    def each(self, work: Callable[[TokenBatch], T], batch: TokenBatch) -> list[T]:
        """As `run`, of the sequences of a batch."""
        return self.run(lambda part: work(batch.part(part)), len(batch), batch.input_ids.shape[1], batch.name)

    def over(self, work: Callable[[Sequence[TokenSequence]], T], sequences: Sequence[TokenSequence]) -> list[T]:
        """As `run`, of sequences that are no batch yet."""
        width = max(map(len, sequences))
        return self.run(
            lambda part: work(sequences[part]), len(sequences), width, lambda i: f"sample {sequences[i].sample_id}"
        )


def attempt(work: Callable[[], T]) -> tuple[T] | None:
    """What `work` gives, or None where it is out of memory; nothing that it held is held any longer then.

    On several ranks the error stands: the others wait for this one, which cannot begin anew by itself.
    """
    if ranks() > 1:
        return (work(),)
    try:
        return (work(),)
    except torch.OutOfMemoryError:
        return None


def available_memory(device: torch.device) -> int:
    """Bytes that a device can still give: of the host, within the limit of the container (cgroup v2) if it has one."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (told := Path("/proc/meminfo")).is_file():
        found = 1024 * _number("MemAvailable:", told.read_text())
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "stat"))
    if limit.is_file() and (most := limit.read_text().strip()).isdecimal():
        found = min(found, int(most) - _number("anon", used.read_text()))
    return max(found, 0)


def _number(name: str, text: str) -> int:
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def require_states(states: States, setting: str) -> None:
    """Raises InputError where the states of an optimiser that `setting` asks for need a package that is not installed."""
    if states == "8bit" and find_spec("bitsandbytes") is None:
        raise InputError(
            f"{setting} = 8bit: needs the package bitsandbytes; install lancet-pipeline[memory], or take 32bit"
        )


def require_memory_packages(study: "Study") -> None:
    """Raises InputError where `study` asks for a package that is not installed."""
    if study.model.training is not None:
        require_states(study.model.training.optimizer_states, "model.training.optimizer_states")
    require_states(study.correction.optimizer_states, "correction.optimizer_states")


def adamw(
    parameters: list[torch.nn.Parameter], states: States, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW with moments in 32 bits, or in 8 bits of blocks that are scaled by themselves (arXiv 2110.02861), where
    parameters of fewer than 4,096 elements keep 32.

    Raises:
        InputError: bitsandbytes is not installed, or does not know the shards of several ranks.
    """
    arguments = {"lr": learning_rate, "weight_decay": weight_decay, "betas": (0.9, 0.95)}
    if states == "32bit":
        return torch.optim.AdamW(parameters, **arguments)
    require_states(states, "optimizer_states")
    if ranks() > 1:
        raise InputError("optimizer_states = 8bit: does not go with a model that is sharded over workers; take 32bit")
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters, **arguments)
