"""What a run will cost, before it runs: an analytical model of every asset's work, fitted to measurements on one CPU thread.

    expected = plan(study, hardware_of("h100-80gb"), model_directories)

See docs/scaling.md.
"""

from lancet_pipeline.scale.hardware import HARDWARE, Hardware, hardware_of
from lancet_pipeline.scale.planning import Expected, plan

__all__ = ["HARDWARE", "Expected", "Hardware", "hardware_of", "plan"]
