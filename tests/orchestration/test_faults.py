"""What happens when something outside goes wrong in a run: what may pass is tried again, the rest is final, people are told."""

import errno
import logging
import sqlite3
import time

import dagster as dg
import pytest
import requests
import sqlalchemy.exc
from mlflow.exceptions import MlflowException

from lancet_pipeline.assets.retries import passing_fault, tried_again
from lancet_pipeline.assets.stage_run import StageRun
from lancet_pipeline.errors import InputError, IntegrityError, Unreachable
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.orchestration.alerts import alerts_of
from lancet_pipeline.resources import Alerts, ModelSource, RunSnapshot, Store, StudyCatalog
from lancet_pipeline.store.locks import is_locked


def lost_database() -> Exception:
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError("unable to open database file"))


def wrapped(inner: Exception) -> Exception:
    """As MLflow gives the errors of its database."""
    try:
        raise inner
    except Exception as error:
        outer = MlflowException(str(error))
        outer.__cause__ = error
        return outer


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (lost_database(), True),
        (wrapped(lost_database()), True),
        (requests.ConnectionError("refused"), True),
        (ConnectionResetError("reset"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (Unreachable("MLflow at 127.0.0.1:9: refused"), True),
        (InputError("train.jsonl: row 1: not JSON"), False),
        (IntegrityError("a file changed"), False),
        (MlflowException("no such experiment"), False),
        (ValueError("a defect"), False),
    ],
)
def test_only_what_is_away_for_a_moment_is_tried_again(error, passes):
    assert (passing_fault(error) is not None) == passes


def ran(error: Exception, times: int) -> tuple[dg.ExecuteInProcessResult, int]:
    """A run of an asset that fails so often, and how often it was tried."""
    tries = []

    @dg.asset
    def fragile(context: dg.AssetExecutionContext):
        with tried_again(context):
            tries.append(1)
            if len(tries) <= times:
                raise error
            yield dg.MaterializeResult()

    job = dg.Definitions([fragile], executor=dg.in_process_executor).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(raise_on_error=False), len(tries)


def test_a_database_that_comes_back_costs_another_try():
    result, tries = ran(wrapped(lost_database()), 1)
    assert result.success
    assert tries == 2


def test_an_error_of_the_input_is_final():
    result, tries = ran(InputError("train.jsonl: row 1: not JSON"), 1)
    assert not result.success
    assert tries == 1


@pytest.fixture
def snapshot(tiny_study, tmp_path) -> RunSnapshot:
    catalog = StudyCatalog(directories=[str(tiny_study.parent)])
    return RunSnapshot(catalog=catalog, models=ModelSource(), store=Store(home=str(tmp_path / "home")))


def test_a_run_stays_with_the_data_it_began_with_and_takes_no_other(tiny_study, snapshot, tmp_path):
    study, versions = snapshot.of("tiny")
    run = StageRun(study, STAGES["prepared_data"], snapshot.store.open(), versions, tmp_path, Runtime())
    file = tiny_study.parent / "train.jsonl"
    samples, text = run.source("training_data"), file.read_text()
    for changed in (text.replace("soft", "hard"), text.replace("soft", "very soft")):  # as long as it was, and longer
        file.write_text(changed)
        assert snapshot.of("tiny") == (study, versions)
        with pytest.raises(InputError, match="training_data: changed since this run began"):
            run.source("training_data")
    file.write_text(text)
    assert run.source("training_data").equals(samples)


def test_a_run_holds_its_study_from_its_first_asset_to_its_end(snapshot, tmp_path):
    def held() -> bool:
        import subprocess
        import sys

        code = "import sys; from pathlib import Path; from lancet_pipeline.store.locks import is_locked\n"
        code += "print(is_locked(Path(sys.argv[1]), 'tiny'))"
        command = [sys.executable, "-c", code, str(tmp_path / "home")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"

    @dg.op
    def asset(snapshot: RunSnapshot) -> bool:
        snapshot.of("tiny")
        return held()

    @dg.job(resource_defs={"snapshot": snapshot})
    def run():
        asset()

    assert run.execute_in_process().output_for_node("asset")
    assert not held()
    assert not is_locked(tmp_path / "home", "tiny")


def test_an_alert_says_what_where_and_the_address_of_the_run(webhook):
    alerts = Alerts(webhook=webhook.url, page="http://dagster.example/")
    assert alerts.send("check_failed", "tiny", "gates", run_id="1", asset="registered_model", check="gates_hold")
    assert webhook.posts == [
        {
            "event": "check_failed",
            "study": "tiny",
            "run_id": "1",
            "asset": "registered_model",
            "check": "gates_hold",
            "message": "gates",
            "url": "http://dagster.example/runs/1",
        }
    ]


@pytest.mark.parametrize("answers", [[500, 204], [500, 500]])
def test_an_alert_is_tried_twice_and_never_fails_or_tells_the_secret(webhook, caplog, answers):
    webhook.answers[:] = answers
    with caplog.at_level(logging.WARNING):
        assert Alerts(webhook=webhook.url).send("run_failed", "tiny", "x") == (204 in answers)
    assert len(webhook.posts) == 2
    assert webhook.secret not in caplog.text
    assert ("127.0.0.1" in caplog.text) == (204 not in answers)


@pytest.mark.parametrize("address", ["", "not a url", "file:///etc/passwd", "http://127.0.0.1:9/secret", "http://[bad"])
def test_a_webhook_that_is_not_there_costs_nothing(address, caplog):
    began = time.monotonic()
    assert Alerts(webhook=address).send("run_failed", "tiny", "x") is False
    assert time.monotonic() - began < 3
    assert "secret" not in caplog.text


def test_people_are_told_of_failures_failed_checks_and_candidates():
    @dg.asset(check_specs=[dg.AssetCheckSpec("gates_hold", asset="registered_model", blocking=False)])
    def registered_model():
        yield dg.AssetCheckResult(passed=False, check_name="gates_hold", metadata={"harm_falls": False})
        yield dg.MaterializeResult(metadata={"model_version": 3.0, "reused": False})

    @dg.asset(deps=[registered_model])
    def next_asset():
        raise InputError("train.jsonl: row 1: not JSON")

    job = dg.Definitions([registered_model, next_asset], executor=dg.in_process_executor)
    with dg.DagsterInstance.ephemeral() as instance:
        done = job.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, raise_on_error=False)
        told = {alert.event: alert for alert in alerts_of(instance, done.dagster_run)}
    assert told["check_failed"].check == "gates_hold"
    assert told["check_failed"].message == "registered_model: gates_hold failed (harm_falls: False)"
    assert told["candidate_registered"].message == "version 3 waits for review"
    assert told["run_failed"].message == "next_asset: train.jsonl: row 1: not JSON"
    assert told["run_failed"].asset == "next_asset"
