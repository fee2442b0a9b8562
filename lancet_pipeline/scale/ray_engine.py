"""Passes over data on a Ray cluster (Ray Data): actors hold the model, batches go to them in shards.

A shard is a run of batches that the driver formed, so that each batch is computed as it would be in one process. A worker
that dies is started again by Ray, and the shard that it had is computed again; results come back in the order of the
shards.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from lancet_pipeline.config.study import ComputeSettings
from lancet_pipeline.data.batches import TokenBatch
from lancet_pipeline.errors import InputError, LancetError, error_named
from lancet_pipeline.models.engine import Pass
from lancet_pipeline.models.loading import load_model
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.scale.cluster import connect, on_gpu, worker_device, workers

T = TypeVar("T")

ERROR = "error of the worker"


@dataclass(frozen=True)
class RayEngine:
    """An engine of workers that each load the model in `folder`, which every node must see under the same path.

    device: of each worker; `auto` is a GPU where the cluster has any, cpu elsewhere.
    """

    folder: Path
    dtype: str
    device: str
    settings: ComputeSettings

    def run(
        self, work: Pass[T], batches: Iterable[TokenBatch], total: int, label: str, track: Track = no_progress
    ) -> Iterator[T]:
        """What `work` yields of `total` batches, in their order.

        Raises:
            LancetError: what a worker raised, as it was.
            InputError: no Ray cluster, or a node that does not see the model.
        """
        # The size of a shard does not depend on the number of workers, and so neither does the result.
        pieces, size = work.most_pieces, self.settings.shard_batches
        size, waiting = max(1, -(-total // pieces)) if pieces else size, iter(batches)
        shards = [_packed(shard) for shard in iter(lambda: list(itertools.islice(waiting, size)), [])]
        if not shards:
            return
        ray = connect(self.settings)
        from ray import data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        device = worker_device(ray, self.device)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.target_max_block_size = None  # what a shard yields stays together
        dataset = data.from_arrow(shards).map_batches(
            Worker,
            fn_constructor_args=(str(self.folder), self.dtype, device, self.settings.threads or 1, ray.put(work)),
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=min(workers(ray, self.settings, device), len(shards))),
            num_cpus=1,
            num_gpus=int(on_gpu(device)),
        )
        found = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for table in track(found, len(shards), label):
            yield from _read(table, work)


class Worker:
    """One actor: the model, and what is to be computed of each shard. An error of ours is a result like another, since
    Ray would wrap it."""

    def __init__(self, folder: str, dtype: str, device: str, threads: int, work: Any) -> None:
        self._folder, self._dtype, self._device, self._threads, self._given = folder, dtype, device, threads, work

    def __call__(self, shard: pa.Table) -> pa.Table:
        try:
            parts = self._work(self._model, _unpacked(shard))
            return pa.concat_tables([self._work.to_table(part) for part in parts])
        except LancetError as error:
            return pa.table({ERROR: [type(error).__name__], "message": [str(error)]})

    @cached_property
    def _model(self) -> Any:
        torch.set_num_threads(self._threads)
        if not Path(self._folder).is_dir():
            raise InputError(
                f"{self._folder}: a Ray worker does not see the model; put --home on a file system that all nodes share"
            )
        return load_model(Path(self._folder), dtype=self._dtype, device=self._device)

    @cached_property
    def _work(self) -> Any:
        import ray

        return ray.get(self._given)


def _read(table: pa.Table, work: Pass[T]) -> Iterator[T]:
    if ERROR in table.column_names:
        row = table.to_pylist()[0]
        raise error_named(row[ERROR], row["message"])
    yield from work.from_table(table)


def _packed(batches: Sequence[TokenBatch]) -> pa.Table:
    """A row for each batch."""

    def column(name: str, dtype: type) -> pa.Array:
        return pa.array([getattr(batch, name).numpy().astype(dtype).reshape(-1) for batch in batches])

    return pa.table(
        {
            "sequences": [len(batch) for batch in batches],
            "input_ids": column("input_ids", np.int32),
            "attention_mask": column("attention_mask", np.int8),
            "loss_mask": column("loss_mask", np.int8),
            "names": pa.array([list(batch.names) for batch in batches], pa.list_(pa.string())),
        }
    )


def _unpacked(shard: pa.Table) -> Iterator[TokenBatch]:
    for row in shard.to_pylist():

        def tensor(name: str, row: dict[str, Any] = row) -> torch.Tensor:
            return torch.tensor(row[name]).view(row["sequences"], -1)

        masks = tensor("attention_mask").long(), tensor("loss_mask").bool()
        yield TokenBatch(tensor("input_ids").long(), *masks, tuple(row["names"]))
