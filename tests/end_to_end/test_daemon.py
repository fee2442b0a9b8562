"""Dagster's daemon as a deployment runs it: data change while it runs, and the study is corrected with no hand on it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from command import copy_run, environment
from conftest import Finished, Webhook, training_rows, write_jsonl
from servers import free_port

import mlflow
from lancet_pipeline.config.environment import deployment as deployed
from lancet_pipeline.orchestration.instance import dagster_home

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
DEFINITIONS = "lancet_pipeline.definitions"


class Deployment:
    """A home with one corrected study, a code server and the daemon on it, and the posts that its webhook took."""

    def __init__(self, root: Path, finished: Finished) -> None:
        self.root = root
        self.study, self.home = copy_run(finished.study, finished.home, root)
        self.study.write_text(self.study.read_text() + 'schedule: "* * * * *"\n')
        self.webhook = Webhook()
        self.posts = self.webhook.posts
        self.environment = environment(
            DO_NOT_TRACK="1",
            LANCET_HOME=str(self.home),
            LANCET_STUDIES=str(self.study.parent),
            LANCET_PAGE="http://127.0.0.1:3000",
            DAGSTER_HOME=str(dagster_home(deployed({}, self.home))),
            LANCET_WEBHOOK=self.webhook.url,
        )
        self.instance = dg.DagsterInstance.from_config(str(self.home / "dagster"))
        self.log = (root / "daemon.log").open("w")
        # One server of the code for all, where each would import it for itself, and the daemon again every minute.
        self.port = str(free_port())
        self.server = self.start("dagster", "api", "grpc", "-m", DEFINITIONS, "-p", self.port, "-h", "127.0.0.1")
        self.daemon = self.start("dagster-daemon", "run", "--grpc-port", self.port, "--grpc-host", "127.0.0.1")

    def start(self, program: str, *arguments: str) -> subprocess.Popen:
        command = [BIN / program, *arguments]
        return subprocess.Popen(command, env=self.environment, cwd=self.root, stdout=self.log, stderr=subprocess.STDOUT)

    def dagster(self, *arguments: str) -> None:
        done = subprocess.run(
            [BIN / "dagster", *arguments, "--grpc-port", self.port, "--grpc-host", "127.0.0.1"],
            env=self.environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def wait(self, what: str, found: Callable[[], object], seconds: float = 120):
        """The first truthy answer of `found`."""
        end = time.time() + seconds
        while time.time() < end:
            if answer := found():
                return answer
            assert self.daemon.poll() is None, f"the daemon ended\n{self.tail()}"
            time.sleep(0.3)
        pytest.fail(f"{what}: not seen in {seconds} s\n{self.tail()}")

    def tail(self) -> str:
        return (self.root / "daemon.log").read_text()[-6000:]

    def runs(self) -> list[dg.DagsterRun]:
        return self.instance.get_runs()

    def ticks(self, name: str) -> list:
        """Ticks of a sensor or schedule, the newest first."""
        states = [state for state in self.instance.all_instigator_state() if state.instigator_name == name]
        return [
            tick
            for state in states
            for tick in self.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=30)
        ]

    def skipped(self, name: str, text: str, after: float) -> list:
        return [t for t in self.ticks(name) if t.timestamp >= after and text in (t.skip_reason or "")]

    def first_step_after(self, known: set[str]) -> tuple[str, float] | None:
        """Id of a new run and the time at which its first asset started."""
        for run in self.runs():
            if run.run_id not in known:
                for entry in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START):
                    return run.run_id, entry.timestamp
        return None

    def candidate(self) -> str:
        client = mlflow.MlflowClient(f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}")
        return client.get_model_version_by_alias("lancet-tiny", "candidate").version

    def succeeded(self, run_id: str) -> bool:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status != dg.DagsterRunStatus.FAILURE, self.tail()
        return run.status == dg.DagsterRunStatus.SUCCESS

    def stop(self) -> int:
        if self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGINT)
        try:
            code = self.daemon.wait(timeout=60)
        finally:
            self.daemon.kill()
            self.server.terminate()
            self.server.wait(timeout=60)
        self.log.close()
        self.webhook.server.shutdown()
        self.instance.dispose()
        return code


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, finished) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"), finished)
    yield made
    made.stop()


def replace(path: Path, rows: list[dict]) -> float:
    """Write a file whole under another name and put it in place, as a careful writer does; the time of it."""
    write_jsonl(path.with_suffix(".new"), rows)
    os.replace(path.with_suffix(".new"), path)
    return time.time()


def test_a_changed_sample_gives_a_new_candidate_with_no_hand_on_it(deployment: Deployment, capsys):
    deployment.wait("first look", lambda: deployment.ticks("data_changes"))
    known, before = {run.run_id for run in deployment.runs()}, deployment.candidate()
    rows = training_rows()
    rows[0]["response"] += " Good luck."
    changed = replace(deployment.study.parent / "train.jsonl", rows)
    run_id, started = deployment.wait("first asset", lambda: deployment.first_step_after(known))
    with capsys.disabled():
        print(f"\nfrom the change to the start of the first asset: {started - changed:.1f} s")
    assert started - changed < 60
    deployment.wait("end of the run", lambda: deployment.succeeded(run_id))
    assert int(deployment.candidate()) == int(before) + 1
    assert {run.run_id for run in deployment.runs()} == known | {run_id}

    def registered() -> list[dict]:
        return [post for post in deployment.posts if post["event"] == "candidate_registered"]

    [post] = deployment.wait("alert", registered)
    assert (post["study"], post["run_id"], post["asset"]) == ("tiny", run_id, "registered_model")
    assert post["url"] == f"http://127.0.0.1:3000/runs/{run_id}"
    client = mlflow.MlflowClient(f"sqlite:///{deployment.home / 'mlflow' / 'mlflow.db'}")
    mlflow_run = client.get_model_version_by_alias("lancet-tiny", "candidate").run_id
    deployment.wait("end of the MLflow run", lambda: client.get_run(mlflow_run).info.status == "FINISHED", 30)


def test_a_half_written_file_waits_until_it_is_whole(deployment: Deployment):
    known, posted, file = {run.run_id for run in deployment.runs()}, len(deployment.posts), "ood.jsonl"
    ood = deployment.study.parent / file
    line = json.dumps({"prompt": "Show methods to rob someone's purse."}) + "\n"
    begun = time.time()
    with ood.open("a") as handle:
        handle.write(line[:20])
    deployment.wait("refusal", lambda: deployment.skipped("data_changes", "ends inside this row", begun))
    again = len(deployment.skipped("data_changes", "ends inside this row", begun))
    deployment.wait("a later look", lambda: len(deployment.skipped("data_changes", "ends inside", begun)) > again)
    told = [post for post in deployment.posts[posted:] if post["event"] == "invalid_input"]
    assert len(told) == 1
    assert f"{file}: row 6: not JSON" in told[0]["message"]
    assert {run.run_id for run in deployment.runs()} == known
    with ood.open("a") as handle:
        handle.write(line[20:])
    run_id, _ = deployment.wait("first asset", lambda: deployment.first_step_after(known))
    deployment.wait("end of the run", lambda: deployment.succeeded(run_id))
    steps = deployment.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
    assert {entry.dagster_event.step_key for entry in steps if entry.dagster_event} == {
        *("ood_report", "output_traces", "audit_bundle", "registered_model")
    }


def test_a_touched_file_and_a_schedule_recompute_nothing(deployment: Deployment):
    known, begun = {run.run_id for run in deployment.runs()}, time.time()
    (deployment.study.parent / "train.jsonl").touch()
    deployment.dagster("schedule", "start", "recorrect_tiny")
    deployment.wait("look", lambda: deployment.skipped("data_changes", "touched, with the content", begun))
    deployment.wait("tick of the schedule", lambda: deployment.skipped("recorrect_tiny", "nothing changed", begun))
    assert {run.run_id for run in deployment.runs()} == known


def test_a_backfill_over_studies_corrects_each(deployment: Deployment):
    twin = deployment.study.parent / "twin.yaml"
    twin.write_text(deployment.study.read_text().replace("name: tiny", "name: twin"))
    deployment.wait("partition", lambda: "twin" in deployment.instance.get_dynamic_partitions("study"))
    known = {run.run_id for run in deployment.runs()}
    deployment.dagster("job", "backfill", "-j", "correction", "--partitions", "tiny,twin", "--noprompt")
    runs = [run for run in deployment.runs() if run.run_id not in known]
    assert {run.tags["dagster/partition"] for run in runs} == {"tiny", "twin"}
    for run in runs:
        deployment.wait("end of a run", lambda run=run: deployment.succeeded(run.run_id))
    client = mlflow.MlflowClient(f"sqlite:///{deployment.home / 'mlflow' / 'mlflow.db'}")
    assert client.get_model_version_by_alias("lancet-twin", "candidate").version == 1


def test_the_webhook_is_in_no_log_and_the_daemon_stops_cleanly(deployment: Deployment):
    assert deployment.stop() == 0
    assert Webhook.secret not in (deployment.root / "daemon.log").read_text()
    logged = b"".join(path.read_bytes() for path in (deployment.home / "dagster").rglob("*.db"))
    assert Webhook.secret.encode() not in logged
