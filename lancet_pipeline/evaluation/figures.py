"""What is measured of a model, and how its figures are written."""

import math
from collections.abc import Mapping
from typing import Any


def rate_text(rate: Mapping[str, Any]) -> str:
    """`0.12 (0.08 to 0.17, n = 200)`: the value, its 95 % interval, the number of prompts."""
    return f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f}, n = {rate['n']})"


def number_text(value: Any) -> str:
    """A number with four significant digits; words for what is no finite number."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if math.isnan(value):
        return "not defined"
    return f"{value:.4g}" if math.isfinite(value) else "infinite"
