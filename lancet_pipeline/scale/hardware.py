"""Machines that a study may run on. What is measured is the CPU; figures of GPUs are data sheets times an assumed share."""

from dataclasses import dataclass

from lancet_pipeline.errors import InputError

UTILISATION = 0.35
"""Share of a GPU's peak in bfloat16 that training is assumed to reach; nothing of ours has been measured on one."""
BANDWIDTH_SHARE, SCALING = 0.6, 0.85
"""Of the memory bandwidth of a GPU; and of the sum of several devices."""


@dataclass(frozen=True)
class Hardware:
    """peak, bandwidth, memory: of one device, in operations a second, bytes a second and bytes; None where measured constants
    and the host's memory take their place."""

    name: str
    peak: float | None = None
    bandwidth: float = 0.0
    memory: float | None = None
    devices: int = 1

    @property
    def basis(self) -> str:
        """Where the figures come from."""
        if self.peak is None:
            return "measured on one CPU thread, fitted by benchmarks/plan.py"
        several = f"; several devices at {SCALING} of their sum, which takes compute.engine: ray"
        return (
            f"peak of the data sheet in dense bfloat16, {UTILISATION:.0%} of it reached, {BANDWIDTH_SHARE:.0%} of the memory "
            f"bandwidth; an assumption, not measured{several if self.devices > 1 else ''}"
        )


HARDWARE = {
    "cpu": Hardware("cpu"),
    "a100-80gb": Hardware("a100-80gb", 312e12, 2.0e12, 80e9),
    "h100-80gb": Hardware("h100-80gb", 989e12, 3.35e12, 80e9),
    "8xh100": Hardware("8xh100", 989e12, 3.35e12, 80e9, devices=8),
}


def hardware_of(name: str) -> Hardware:
    """Raises InputError: no such hardware."""
    if name not in HARDWARE:
        raise InputError(f"--hardware {name}: not known; take one of {', '.join(HARDWARE)}")
    return HARDWARE[name]
