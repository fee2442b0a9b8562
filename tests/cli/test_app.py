"""The command as a whole."""

import subprocess
import sys

from command import lancet


def test_help_is_instant_and_loads_nothing_heavy():
    code = "import sys, lancet_pipeline.cli; print([m for m in ('torch', 'dagster', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_command_has_a_help_of_its_own():
    for name in (
        "demo",
        "run",
        "plan",
        "summary",
        "advise",
        "trace",
        "evaluate",
        "import-gguf",
        "promote",
        "rollback",
        "decisions",
    ):
        assert f"lancet {name}" in lancet(name, "--help").stdout
    for name in ("gc", "verify", "bundle", "diff", "ui", "judge validate", "experiment run", "experiment summary"):
        assert f"lancet {name}" in lancet(*name.split(), "--help").stdout
    for name in ("keys create", "keys show"):
        assert f"lancet {name}" in lancet(*name.split(), "--help").stdout
