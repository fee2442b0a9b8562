"""The plan of a study: seconds, memory and disk of every asset on given hardware, what stops scaling, what was assumed."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lancet_pipeline.config.study import Study
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.scale import constants
from lancet_pipeline.scale.bottlenecks import LARGE_HOST, limits
from lancet_pipeline.scale.hardware import Hardware
from lancet_pipeline.scale.memory import sizes
from lancet_pipeline.scale.shapes import Shape, known_shape, shape_of
from lancet_pipeline.scale.work import Counts, Work, works
from lancet_pipeline.scale.workload import Workload, workload_of


@dataclass(frozen=True)
class Expected:
    """assets: one row each, {asset, seconds, device_bytes, host_bytes, disk_bytes}. `limits`: {assets, why, then}. assumed:
    what was taken for granted, in words."""

    study: str
    hardware: Hardware
    shape: Shape
    data: Workload
    assets: tuple[dict[str, Any], ...]
    limits: tuple[dict[str, Any], ...]
    assumed: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(row["seconds"] for row in self.assets)

    @property
    def disk(self) -> float:
        return sum(row["disk_bytes"] for row in self.assets)

    @property
    def largest(self) -> str:
        """The asset that takes longest."""
        return max(self.assets, key=lambda row: row["seconds"])["asset"]

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; seconds and bytes throughout."""
        return {
            "study": self.study,
            "hardware": {
                "name": self.hardware.name,
                "devices": self.hardware.devices,
                "measured": self.hardware.measured,
                "basis": self.hardware.basis,
                "device_bytes": self.hardware.memory,
            },
            "model": {"parameters": self.shape.parameters, **asdict(self.shape)},
            "data": {name: value for name, value in asdict(self.data).items() if name != "assumed"},
            "assets": list(self.assets),
            "total": {
                "seconds": self.seconds,
                "device_bytes": max(row["device_bytes"] for row in self.assets),
                "host_bytes": max(row["host_bytes"] for row in self.assets),
                "disk_bytes": self.disk,
            },
            "largest": self.largest,
            "limits": list(self.limits),
            "assumed": list(self.assumed),
            "median_error": constants.MEDIAN_ERROR if self.hardware.measured else None,
        }


def plan(
    study: Study,
    hardware: Hardware,
    model_directories: Sequence[Path],
    *,
    samples: int | None = None,
    parameters: int | None = None,
) -> Expected:
    """What a run of everything is expected to cost. Asks nothing of the network.

    Args:
        samples, parameters: in place of the study's own.

    Raises:
        InputError: data or a checkpoint that do not fit, or whose shape is unknown.
    """
    shape = shape_of(study, model_directories, parameters)
    data = workload_of(study, model_directories, samples)
    judge = study.evaluation.judge.model
    judging = known_shape(judge, model_directories) if judge else None
    counts = Counts(shape, data, study, judging)
    seconds = {asset: expected_seconds(asset, work, hardware) for asset, work in works(counts).items()}
    needed = sizes(counts)
    host = _host_memory() if hardware.memory is None else LARGE_HOST
    rows = tuple(
        {
            "asset": asset,
            "seconds": seconds[asset],
            "device_bytes": needed[asset].device / hardware.devices,
            "host_bytes": needed[asset].host + (needed[asset].device if hardware.memory is None else 0),
            "disk_bytes": needed[asset].disk,
        }
        for asset in STAGES
    )
    assumed = [*data.assumed, f"{hardware.name}: {hardware.basis}"]
    if judge and judging is None:
        assumed.append(f"nothing for the judge {judge}, whose shape is not known")
    if hardware.memory is not None:
        assumed.append(f"the host has {LARGE_HOST / 1e9:,.0f} GB of memory; its own work as fast as measured here")
    return Expected(
        study.name, hardware, shape, data, rows, tuple(limits(counts, hardware, needed, seconds, host)), tuple(assumed)
    )


def expected_seconds(asset: str, work: Work, hardware: Hardware) -> float:
    """Of one asset: products, memory traffic, calls of layers, rows and what it takes whatever it does."""
    product, traffic, visit = constants.SECONDS_A_FLOP[work.kind], constants.SECONDS_A_BYTE, constants.SECONDS_A_VISIT
    if not hardware.measured:
        # How much slower than training a kind of pass is counts on every device; the device's own speed replaces the CPU's.
        product = product / constants.SECONDS_A_FLOP["training"] / hardware.flops
        traffic, visit = 1 / hardware.bandwidth, hardware.visit
    rows = constants.SECONDS_A_ROW.get(asset, 0.0) * work.rows
    return constants.FIXED[asset] + product * work.flops + traffic * work.bytes + visit * work.visits + rows


def _host_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
