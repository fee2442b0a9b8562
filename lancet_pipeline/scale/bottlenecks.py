"""Where each stage of a plan stops scaling, and what to do then."""

from collections.abc import Mapping
from typing import Any

from lancet_pipeline.scale.hardware import Hardware
from lancet_pipeline.scale.memory import Bytes, factor_elements
from lancet_pipeline.scale.work import Counts

DAY = 86_400.0
LARGE_HOST = 1e12
"""Host memory that a machine with GPUs is taken to have."""


def limits(
    counts: Counts, hardware: Hardware, sizes: Mapping[str, Bytes], seconds: Mapping[str, float], host: float
) -> list[dict[str, Any]]:
    """One entry for each limit that is passed: the assets it stops, why (of memory: what the largest needs), what then.

    Args:
        host: bytes of the host's memory.
    """
    study = counts.study
    found = _memory(counts, hardware, sizes, host)

    def passed(asset: str, why: str, then: str) -> None:
        found.append({"assets": [asset], "why": why, "then": then})

    if seconds["influence_scores"] > 7 * DAY:
        passed(
            "influence_scores",
            f"{seconds['influence_scores'] / DAY:,.0f} days on this hardware: every sample takes a pass forward and backward",
            "compute.engine: ray on more devices, or the influence of a random part of the samples; each sample is scored by "
            "itself, so time falls with the number of devices",
        )
    if seconds["linfac_factors"] > DAY and study.linfac.factor_samples is None:
        passed(
            "linfac_factors",
            f"an eighth of the samples is {counts.factor_samples:,} sequences to fit on",
            "set linfac.factor_samples: what a fit gains from more of them is in the metric `reliability`",
        )
    wide = max(side for unit in counts.shape.units(study.linfac.units) for side in unit)
    if wide > study.linfac.max_dim:
        passed(
            "linfac_factors",
            f"a factor side is {wide:,} wide, above linfac.max_dim = {study.linfac.max_dim:,}",
            f"it is sketched to that width, factors take {_gigabytes(4 * factor_elements(counts))}; a wider max_dim costs its cube",
        )
    if seconds["output_traces"] > DAY:
        passed(
            "output_traces",
            "every few outputs cost one pass over all selected samples",
            "lower governance.traced_outputs; a first choice by the pooled score would spare most of them (not built yet)",
        )
    if counts.data.samples > 2 * 10**7 and sizes["pareto_pairs"].host <= host:
        passed(
            "pareto_pairs",
            "scores are sorted and samples paired in the memory of one process",
            "quantiles of streamed scores in place of a sort (not built yet)",
        )
    return found


def _memory(counts: Counts, hardware: Hardware, sizes: Mapping[str, Bytes], host: float) -> list[dict[str, Any]]:
    """Assets that share a remedy in one entry."""
    device, groups = hardware.memory, {}

    def passed(asset: str, needed: float, bound: float, of: str, then: str) -> None:
        groups.setdefault((of, bound, then), []).append((needed, asset))

    for asset, needed in sizes.items():
        if device is None:
            if needed.device + needed.host > host:
                then = _remedy(asset, counts) if needed.device > needed.host else _host_remedy(asset)
                passed(asset, needed.device + needed.host, host, "this machine has", then)
            continue
        if needed.device > device * hardware.devices:
            passed(asset, needed.device, device * hardware.devices, "all devices have", _remedy(asset, counts))
        elif needed.device > device:
            sharded = asset in ("base_model", "corrected_model")
            then = (
                "compute.engine: ray, which shards it over the devices (FSDP)"
                if sharded
                else "its parameters and matrices sharded over devices, which is not built yet"
            )
            passed(asset, needed.device, device, "one device has", then)
        if needed.host > host:
            passed(asset, needed.host, host, "the host is taken to have", _host_remedy(asset))
    return [
        {
            "assets": [asset for _, asset in members],
            "why": f"needs {_gigabytes(max(members)[0])} of memory, {of} {_gigabytes(bound)}",
            "then": then,
        }
        for (of, bound, then), members in groups.items()
    ]


def _remedy(asset: str, counts: Counts) -> str:
    lora = counts.study.correction.lora
    return {
        "prepared_data": _host_remedy(asset),
        "base_model": "model.training.optimizer_states: 8bit, a smaller model.training.batch_size, compute.engine: ray on more "
        "devices (FSDP), or source: given with a model that was trained elsewhere",
        "reference_models": "evaluation.references: [] leaves it out",
        "linfac_factors": "what the device has no room for is kept by the host; a lower linfac.max_dim or compute.batch_tokens is "
        "faster",
        "influence_scores": "lower compute.batch_tokens; fewer groups in linfac.query_groups; query matrices sharded over layers are "
        "not built yet",
        "corrected_model": "fewer pairs_per_step and retain_per_step, compute.engine: ray on more devices (FSDP)"
        + ("" if lora else ", correction.lora, correction.optimizer_states: 8bit"),
        "output_traces": "lower compute.batch_tokens",
    }.get(asset, "a smaller judge or model, or a larger device")


def _host_remedy(asset: str) -> str:
    if asset == "corrected_model":
        return "fewer correction.steps or retain_per_step, or retain_tokens: logits of D0 samples are kept in memory"
    return "samples are held in memory whole; streaming over shards is not built yet, so take a random part of them"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB"
