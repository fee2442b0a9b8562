"""What runs from the command line: variants one after the other, and nothing where the disk or the signer stops it."""

import shutil

import pytest
from command import held_elsewhere
from conftest import write_tiny_study

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import load_study
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.staleness import PendingRun, pending_run
from lancet_pipeline.lineage.variant_failures import failure, record_failure
from lancet_pipeline.orchestration.runs import execute, run_experiment


def test_a_variant_that_another_run_holds_is_recorded_and_stops_no_other(tmp_path):
    study = load_study(write_tiny_study(tmp_path))
    busy, *free = (f"trial--seed={seed}" for seed in range(3))
    where = deployment({}, tmp_path / "home")
    runs = [
        PendingRun(study.model_copy(update={"name": name}), tmp_path / "trial.yaml", where, {}, [])
        for name in (busy, *free)
    ]
    for name in free:
        record_failure(where.home, name, "of an earlier run", {})
    with held_elsewhere(where.home, busy):
        told: list[str] = []
        failures = run_experiment(runs, told.append)
    assert failures.keys() == {busy}
    assert "another run is going on" in failures[busy]
    assert told == [f"  failed: {failures[busy]}"]
    assert failure(where.home, busy, {}) == failures[busy]
    assert [failure(where.home, name, {}) for name in free] == [None] * len(free)


def test_a_disk_that_is_too_small_stops_a_run_before_anything_is_written(tmp_path, tiny_study, monkeypatch):
    where = deployment({}, tmp_path / "home")
    study = pending_run(str(tiny_study), where)
    free = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    for go in (lambda: execute(study), lambda: run_experiment([study], print)):
        with pytest.raises(InputError, match="the disk has 1 MiB free, a run of study 'tiny' needs about"):
            go()
    assert not where.home.exists()
