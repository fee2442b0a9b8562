"""Dagster's events as a person wants to read them in a terminal: one line when an asset starts, one when it ends."""

import logging
import sys
from typing import Any

import dagster as dg


@dg.logger(None, "One line for each asset, its warnings and its progress.")
def console_logger(_context: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("lancet", logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_readable)
    logger.addHandler(handler)
    return logger


def _readable(record: logging.LogRecord) -> bool:
    meta: dict[str, Any] = getattr(record, "dagster_meta", {})
    event = getattr(record, "dagster_event", None)
    line = f"    {meta.get('orig_message')}" if event is None and record.levelno >= logging.INFO else None
    if event is not None:
        line = _event_line(event)
    record.msg, record.args = line, ()
    return line is not None


def _event_line(event: dg.DagsterEvent) -> str | None:
    data: Any = event.event_specific_data
    match event.event_type_value:
        case "STEP_START":
            return f"  {event.step_key} ..."
        case "STEP_SUCCESS":
            return f"  {event.step_key} done in {data.duration_ms / 1000:.1f} s"
        case "STEP_FAILURE":
            return f"  {event.step_key} failed"
        case "ASSET_CHECK_EVALUATION" if not data.passed:
            return f"    check failed: {data.check_name}"
    return None
