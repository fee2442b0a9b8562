"""The `lancet` command: one module per group of commands, assembled in `app`; the terminal's tables beside them."""

from lancet_pipeline.cli.app import app, main

__all__ = ["app", "main"]
