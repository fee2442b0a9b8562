"""What people see of a stage: its progress, its tables and its plots."""

import base64
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from lancet_pipeline.progress import Track, progress_bar


def logged_progress(context: dg.AssetExecutionContext) -> Track:
    """A bar where a person watches the terminal, a log line every 30 s elsewhere; both with the time left."""

    def track(items: Any, total: int, label: str) -> Iterator[Any]:
        if sys.stderr.isatty():
            yield from progress_bar(items, total, label)
            return
        started = reported = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - reported > 30:
                reported = time.monotonic()
                left = (reported - started) / done * (total - done)
                context.log.info(f"{label}: {done} of {total}, about {left:.0f} s left")

    return track


def markdown_table(rows: Sequence[Mapping[str, Any]], limit: int = 30) -> str:
    if not rows:
        return "none"
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows[:limit]:
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row.get(name, "") for name in header)]
        lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ")[:200] for c in cells) + " |")
    if len(rows) > limit:
        lines.append(f"\n{len(rows) - limit} more rows in the artifact.")
    return "\n".join(lines)


def inline_image(png: bytes, name: str) -> str:
    return f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"


def save_plots(plots: Mapping[str, bytes], out: Path) -> None:
    for name, png in plots.items():
        (out / "plots").mkdir(exist_ok=True)
        target = out / "plots" / f"{name}.png"
        target.unlink(missing_ok=True)  # it may be a link into an artifact that was taken over
        target.write_bytes(png)
