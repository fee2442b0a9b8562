"""Why variants of experiments failed, kept in the home: `experiments/EXPERIMENT/VARIANT.json`."""

import json
from collections.abc import Mapping
from pathlib import Path

from lancet_pipeline.config.experiment import experiment_of


def record_failure(home: Path, variant: str, reason: str, versions: Mapping[str, str]) -> None:
    """Keep why a variant failed, and the versions (asset -> version) that it was to compute."""
    path = _file(home, variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"reason": reason, "versions": dict(versions)}, indent=2))


def forget_failure(home: Path, variant: str) -> None:
    _file(home, variant).unlink(missing_ok=True)


def failure(home: Path, variant: str, versions: Mapping[str, str]) -> str | None:
    """Why a variant failed when it was last run with these versions; None where it did not."""
    path = _file(home, variant)
    record = json.loads(path.read_text()) if path.is_file() else {}
    return record["reason"] if record.get("versions") == dict(versions) else None


def _file(home: Path, variant: str) -> Path:
    return home / "experiments" / experiment_of(variant) / f"{variant}.json"
