"""Machines that a study may run on. What is measured is the CPU; figures of GPUs are data sheets times an assumed share."""

from dataclasses import dataclass

from lancet_pipeline.errors import InputError


@dataclass(frozen=True)
class Hardware:
    """flops: dense products a second that training reaches, over all devices. bandwidth: bytes a second of memory traffic, over all
    devices. memory: bytes of one device, None for the host's. visit: seconds that calling one layer costs. basis: where the
    figures come from."""

    name: str
    flops: float
    bandwidth: float
    memory: float | None
    visit: float
    basis: str
    devices: int = 1
    measured: bool = False


UTILISATION = 0.35
"""Share of a GPU's peak in bfloat16 that training is assumed to reach; nothing of ours has been measured on one."""

_BANDWIDTH_SHARE, _VISIT = 0.6, 3e-4
_ASSUMED = (
    f"peak of the data sheet in dense bfloat16, {UTILISATION:.0%} of it reached, {_BANDWIDTH_SHARE:.0%} of the memory bandwidth, "
    "0.3 ms to call a layer; an assumption, not measured"
)


def _gpu(
    name: str, peak: float, bandwidth: float, gigabytes: float, devices: int = 1, scaling: float = 1.0
) -> Hardware:
    return Hardware(
        name,
        devices * peak * UTILISATION * scaling,
        devices * bandwidth * _BANDWIDTH_SHARE,
        gigabytes * 1e9,
        _VISIT,
        _ASSUMED
        if devices == 1
        else _ASSUMED + "; several devices at 0.85 of their sum, which takes compute.engine: ray",
        devices,
    )


HARDWARE: dict[str, Hardware] = {
    "cpu": Hardware(
        "cpu", 1.0, 1.0, None, 1.0, "measured on one CPU thread, fitted by benchmarks/plan.py", measured=True
    ),
    "a100-80gb": _gpu("a100-80gb", 312e12, 2.0e12, 80),
    "h100-80gb": _gpu("h100-80gb", 989e12, 3.35e12, 80),
    "8xh100": _gpu("8xh100", 989e12, 3.35e12, 80, devices=8, scaling=0.85),
}
"""By name. The figures of `cpu` are 1, since its rates are the fitted constants themselves."""


def hardware_of(name: str) -> Hardware:
    """Raises InputError: no such hardware."""
    if name not in HARDWARE:
        raise InputError(f"--hardware {name}: not known; take one of {', '.join(HARDWARE)}")
    return HARDWARE[name]
