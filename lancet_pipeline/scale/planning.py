"""The plan of a study: seconds, memory and disk of every asset on given hardware, what stops scaling, what was assumed."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lancet_pipeline.config.study import Study
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.linfac.placement import QUERY_SHARE
from lancet_pipeline.scale.costs import Costs, Work
from lancet_pipeline.scale.decoder import decoder_of, known_decoder
from lancet_pipeline.scale.hardware import BANDWIDTH_SHARE, SCALING, UTILISATION, Hardware
from lancet_pipeline.scale.workload import workload_of

CONSTANTS: dict[str, Any] = json.loads(Path(__file__).with_name("constants.json").read_text())
"""Of one CPU thread, fitted by `python -m benchmarks.plan --constants` (docs/scaling.md)."""
DAY = 86_400.0
LARGE_HOST = 1e12
"""Host memory that a machine with GPUs is taken to have."""
HOST = "samples are held in memory whole; streaming over shards is not built yet, so take a random part of them"
UNSHARDED = "its parameters and matrices sharded over devices, which is not built yet"
REMEDIES = {
    "base_model": "model.training.optimizer_states: 8bit, a smaller model.training.batch_size, compute.engine: ray on more "
    "devices (FSDP), or source: given with a model that was trained elsewhere",
    "reference_models": "evaluation.references: [] leaves it out",
    "linfac_factors": "what the device has no room for is kept by the host; a lower linfac.max_dim or compute.batch_tokens is "
    "faster",
    "influence_scores": "lower compute.batch_tokens; query matrices sharded over layers are not built yet",
    "corrected_model": "fewer pairs_per_step and retain_per_step, compute.engine: ray on more devices (FSDP), correction.lora, "
    "correction.optimizer_states: 8bit",
    "output_traces": "lower compute.batch_tokens",
}


def plan(
    study: Study,
    hardware: Hardware,
    model_directories: Sequence[Path],
    *,
    samples: int | None = None,
    parameters: int | None = None,
) -> dict[str, Any]:
    """What a run of everything is expected to cost, in seconds and bytes. Asks nothing of the network.

    Args:
        samples, parameters: in place of the study's own.

    Raises:
        InputError: data or a checkpoint that do not fit, or whose shape is unknown.
    """
    model, data = decoder_of(study, model_directories, parameters), workload_of(study, model_directories, samples)
    judge = study.evaluation.judge.model
    judging = known_decoder(judge, model_directories) if judge else None
    costs = Costs(study, data, model, judging)
    work, needed, on_host = costs.work(), costs.bytes(), hardware.memory is None
    host = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if on_host else LARGE_HOST
    rows = []
    for asset in STAGES:
        device, memory, disk = needed[asset]
        rows.append(
            {
                "asset": asset,
                "seconds": expected_seconds(asset, work[asset], hardware),
                "device_bytes": device / hardware.devices,
                "host_bytes": memory + device * on_host,
                "disk_bytes": disk,
            }
        )
    assumed = [*data.assumed, f"{hardware.name}: {hardware.basis}"]
    if judge and judging is None:
        assumed.append(f"nothing for the judge {judge}, whose shape is not known")
    if not on_host:
        assumed.append(f"the host has {LARGE_HOST / 1e9:,.0f} GB of memory; its own work as fast as measured here")
    seconds = {row["asset"]: row["seconds"] for row in rows}
    return {
        "study": study.name,
        "hardware": {
            "name": hardware.name,
            "devices": hardware.devices,
            "measured": hardware.peak is None,
            "basis": hardware.basis,
            "device_bytes": hardware.memory,
        },
        "model": model.as_json(),
        "data": {name: value for name, value in asdict(data).items() if name != "assumed"},
        "assets": rows,
        "total": {
            "seconds": sum(seconds.values()),
            **{name: max(row[name] for row in rows) for name in ("device_bytes", "host_bytes")},
            "disk_bytes": sum(row["disk_bytes"] for row in rows),
        },
        "largest": max(seconds, key=lambda asset: seconds[asset]),
        "limits": _memory(costs, hardware, host) + _limits(costs, hardware, host, seconds),
        "assumed": assumed,
        "median_error": CONSTANTS["median_error"] if hardware.peak is None else None,
    }


def expected_seconds(asset: str, work: Work, hardware: Hardware, constants: Mapping[str, Any] = CONSTANTS) -> float:
    """Of one asset: products, memory traffic, rows and what it takes whatever it does."""
    product, traffic = constants["flop"][work.kind], constants["byte"]
    if hardware.peak is not None:
        # How much slower than training a kind of pass is counts on every device; the device's own speed replaces the CPU's.
        devices = hardware.devices * (SCALING if hardware.devices > 1 else 1)
        product /= constants["flop"]["training"] * hardware.peak * UTILISATION * devices
        traffic = 1 / (hardware.bandwidth * BANDWIDTH_SHARE * hardware.devices)
    rows = constants["row"].get(asset, 0.0) * work.rows
    return constants["fixed"][asset] + product * work.flops + traffic * work.bytes + rows


def _limits(costs: Costs, hardware: Hardware, host: float, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """What else is passed: the asset, why, what then."""
    linfac, samples = costs.study.linfac, costs.data.samples
    wide, days = max(map(max, costs.units)), seconds["influence_scores"] / DAY
    matrices, room = 8.0 * costs.gradient * costs.groups, QUERY_SHARE * (hardware.memory or host)
    found = [
        (
            days > 7,
            "influence_scores",
            f"{days:,.0f} days on this hardware: every sample takes a pass forward and backward",
            "compute.engine: ray on more devices, or the influence of a random part of the samples; each sample is scored by "
            "itself, so time falls with the number of devices",
        ),
        (
            costs.groups > 1 and matrices > room,
            "influence_scores",
            f"matrices of {costs.groups:,} query groups take {_gigabytes(matrices)}",
            "groups are scored in chunks that fit, a pass over all samples each; fewer groups in linfac.query_groups",
        ),
        (
            seconds["linfac_factors"] > DAY and linfac.factor_samples is None,
            "linfac_factors",
            f"an eighth of the samples is {costs.factor_samples:,} sequences to fit on",
            "set linfac.factor_samples: what a fit gains from more of them is in the metric `reliability`",
        ),
        (
            wide > linfac.max_dim,
            "linfac_factors",
            f"a factor side is {wide:,} wide, above linfac.max_dim = {linfac.max_dim:,}",
            f"it is sketched to that width, factors take {_gigabytes(costs.factor_bytes)}; a wider max_dim costs its cube",
        ),
        (
            seconds["output_traces"] > DAY,
            "output_traces",
            "every few outputs cost one pass over all selected samples",
            "lower governance.traced_outputs; a first choice by the pooled score would spare most of them (not built yet)",
        ),
        (
            samples > 2 * 10**7 and costs.bytes()["pareto_pairs"][1] <= host,
            "pareto_pairs",
            "scores are sorted and samples paired in the memory of one process",
            "quantiles of streamed scores in place of a sort (not built yet)",
        ),
    ]
    return [{"assets": [asset], "why": why, "then": then} for passed, asset, why, then in found if passed]


def _memory(costs: Costs, hardware: Hardware, host: float) -> list[dict[str, Any]]:
    """Assets that share a remedy in one entry."""
    found: dict[tuple[str, float, str], list[tuple[float, str]]] = {}
    for asset, (device, memory, _) in costs.bytes().items():
        on_host, remedy = HOST, REMEDIES.get(asset, "a smaller judge or model, or a larger device")
        shards = asset in ("base_model", "corrected_model")
        if asset == "corrected_model":
            on_host = (
                "fewer correction.steps or retain_per_step, or retain_tokens: logits of D0 samples are kept in memory"
            )
        if hardware.memory is None:
            bounds = [(device + memory, host, "this machine has", remedy if device > memory else on_host)]
        else:
            one, every = hardware.memory, hardware.memory * hardware.devices
            split = "compute.engine: ray, which shards it over the devices (FSDP)" if shards else UNSHARDED
            place = (one, "one device has", split) if device <= every else (every, "all devices have", remedy)
            bounds = [(device, *place), (memory, host, "the host is taken to have", on_host)]
        for needed, bound, of, then in bounds:
            if needed > bound:
                found.setdefault((of, bound, then), []).append((needed, asset))
    return [
        {
            "assets": [asset for _, asset in members],
            "why": f"needs {_gigabytes(max(members)[0])} of memory, {of} {_gigabytes(bound)}",
            "then": then,
        }
        for (of, bound, then), members in found.items()
    ]


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB"
