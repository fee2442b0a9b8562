"""The `lancet` command: one module per group of commands, what the terminal shows beside them."""

from lancet_pipeline.cli.app import app, main

__all__ = ["app", "main"]
