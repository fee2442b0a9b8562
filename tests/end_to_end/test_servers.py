"""The tiny study on the servers of a team: PostgreSQL, an S3-compatible store, MLflow's server, all of them real."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from command import environment, lancet
from conftest import write_jsonl, write_tiny_study
from servers import Postgres, ServerProcess, make_postgres, postgres_binaries, script, start_mlflow, start_s3

from lancet_pipeline.lineage.results import last_run
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.store.artifacts import ArtifactStore

HAS_AUTH = importlib.util.find_spec("flask_wtf") is not None
HAS_S3 = importlib.util.find_spec("moto") is not None and importlib.util.find_spec("boto3") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgres_binaries() is None, reason="PostgreSQL's server is not installed"),
    pytest.mark.skipif(not HAS_S3, reason="moto[server] and boto3 are not installed"),
]

BUCKET = "lancet-mlflow"
ADMIN = ("admin", "a-password-for-tests-1")
USER = ("lancet", "a-password-for-tests-2")


def server_environment(folder: Path, **values: str) -> dict[str, str]:
    return environment(
        PYTHON=sys.executable,
        LANCET_MLFLOW_FOLDER=str(folder),
        LANCET_MLFLOW_AUTH="basic" if HAS_AUTH else "none",
        LANCET_MLFLOW_AUTH_CACHE_SECONDS="30",  # checking a password takes tenths of a second of the processor
        MLFLOW_FLASK_SERVER_SECRET_KEY="0123456789abcdef" * 2,
        MLFLOW_AUTH_ADMIN_PASSWORD=ADMIN[1],
        **values,
    )


@dataclass(frozen=True)
class Servers:
    """server: the environment of MLflow's server. client: settings of the pipeline, which knows no key of the bucket."""

    postgres: Postgres
    s3: ServerProcess
    mlflow: ServerProcess
    server: dict[str, str]
    client: dict[str, str]
    root: Path

    def port(self) -> int:
        return int(self.mlflow.url.rpartition(":")[2])

    def bucket(self):
        import boto3

        keys = {"aws_access_key_id": "lancet", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        return boto3.resource("s3", endpoint_url=self.s3.url, **keys).Bucket(BUCKET)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    root = Path(tempfile.mkdtemp(prefix="lancet-servers-"))
    root.chmod(0o755)  # PostgreSQL runs as another user where the tests run as root
    (root / "postgres").mkdir()
    postgres = make_postgres(root / "postgres")
    started = []
    try:
        started.append(s3 := start_s3(root))
        server = server_environment(
            root / "mlflow",
            PGPASSFILE=str(postgres.password_file),
            PATH=f"{postgres.binaries}{os.pathsep}{os.environ['PATH']}",
            MLFLOW_BACKEND_STORE_URI=postgres.create("mlflow"),
            MLFLOW_ARTIFACTS_DESTINATION=f"s3://{BUCKET}/artifacts",
            MLFLOW_S3_ENDPOINT_URL=s3.url,
            AWS_ACCESS_KEY_ID="lancet",
            AWS_SECRET_ACCESS_KEY="secret",
            AWS_DEFAULT_REGION="us-east-1",
        )
        dagster = postgres.create("dagster").replace("postgresql:", "postgresql+psycopg2:")
        client = {"PGPASSFILE": str(postgres.password_file), "LANCET_DAGSTER_POSTGRES_URL": dagster}
        unstarted = Servers(postgres, s3, s3, server, {}, root)
        unstarted.bucket().create()
        started.append(mlflow := start_mlflow(server, root))
        if HAS_AUTH:
            add_user(mlflow.url)
            client |= {"MLFLOW_TRACKING_USERNAME": USER[0], "MLFLOW_TRACKING_PASSWORD": USER[1]}
        yield replace(unstarted, mlflow=mlflow, client=client | {"MLFLOW_TRACKING_URI": mlflow.url})
    finally:
        for process in started[::-1]:
            process.stop()
        postgres.stop()
        shutil.rmtree(root)


def add_user(url: str) -> None:
    import requests

    answer = requests.post(
        f"{url}/api/2.0/mlflow/users/create", json={"username": USER[0], "password": USER[1]}, auth=ADMIN, timeout=30
    )
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def finished(servers) -> tuple[Path, Path]:
    study = write_tiny_study(servers.root / "study")
    lancet("run", study, "--home", servers.root / "home", settings=servers.client)
    return study, servers.root / "home"


@pytest.fixture
def copied(finished, tmp_path) -> tuple[Path, Path]:
    """Study and home of the finished run with the out-of-distribution prompts changed, so that three assets are stale."""
    study, home = finished
    shutil.copytree(study.parent, tmp_path / "study")
    shutil.copytree(home, tmp_path / "home")
    write_jsonl(tmp_path / "study" / "ood.jsonl", [{"prompt": f"Show ways to rob {tmp_path.name}."}])
    return tmp_path / "study" / study.name, tmp_path / "home"


@pytest.fixture
def connect(monkeypatch) -> Iterator[Callable]:
    """Makes MLflow's client of a server, as the user of the tests or, with `admin`, as the administrator."""
    import mlflow

    def client(url: str, admin: bool = False):
        name, password = ADMIN if admin else USER
        if HAS_AUTH:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        mlflow.set_tracking_uri(url)
        return mlflow.MlflowClient()

    yield client
    mlflow.set_tracking_uri(None)  # which takes it out of the environment, too


@pytest.fixture
def tracked(servers, connect, monkeypatch):
    """MLflow's client as the pipeline uses it."""
    for name, value in servers.client.items():
        monkeypatch.setenv(name, value)
    return connect(servers.mlflow.url)


def databases(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:15] == b"SQLite format 3"]


def contents(client) -> dict:
    """What a server knows: runs with their figures and files, and the registry with its aliases."""
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {
        "runs": {r.info.run_id: (r.data.metrics, r.data.params, r.data.tags, r.info.status) for r in runs},
        "files": {r.info.run_id: sorted(f.path for f in client.list_artifacts(r.info.run_id)) for r in runs},
        "models": {
            m.name: (
                dict(m.aliases),
                [(v.version, v.source, v.tags) for v in client.search_model_versions(f"name='{m.name}'")],
            )
            for m in client.search_registered_models()
        },
    }


def test_runs_metrics_plots_and_model_live_on_the_servers_and_no_sqlite_file_is_written(servers, finished, tracked):
    from safetensors.torch import load_file

    import mlflow

    _, home = finished
    version = tracked.get_model_version_by_alias("lancet-tiny", "candidate")
    run = tracked.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["influence_scores/samples"] == 120
    assert run.data.params["corrected_model/correction.beta"] == "0.1"
    files = [file.path for file in tracked.list_artifacts(version.run_id, "corrected_model")]
    plots = [path for path in files if path.endswith(".png")]
    assert plots

    keys = [item.key for item in servers.bucket().objects.all()]
    assert any(key.endswith(".safetensors") for key in keys)
    assert all(any(key.endswith(path) for key in keys) for path in plots)
    loaded = mlflow.transformers.load_model("models:/lancet-tiny@candidate", return_type="components")["model"]
    folder = ArtifactStore(home).folder("tiny", "corrected_model", version.tags["lancet.version.corrected_model"])
    weights = load_file(folder / "model.safetensors")
    assert all((weights[name] == tensor).all() for name, tensor in loaded.state_dict().items() if name in weights)
    assert databases(home) == databases(servers.root / "mlflow") == []


def test_dagster_keeps_its_history_in_postgresql(servers, finished, tracked):
    import dagster as dg

    _, home = finished
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        assert "tiny" in instance.get_dynamic_partitions("study")
        for asset in STAGES:
            event = instance.get_latest_materialization_event(dg.AssetKey(asset))
            assert event is not None, asset


def test_a_second_run_recomputes_nothing(servers, finished):
    study, home = finished
    before = last_run(ArtifactStore(home), "tiny")
    done = lancet("run", study, "--home", home, settings=servers.client)
    assert "nothing to run" in done.stderr
    assert last_run(ArtifactStore(home), "tiny") == before


def test_a_run_without_its_database_stops_before_any_work(servers, copied):
    study, home = copied
    before = last_run(ArtifactStore(home), "tiny")
    servers.postgres.stop()
    try:
        started = time.monotonic()
        done = lancet("run", study, "--home", home, settings=servers.client, code=None)
        seconds = time.monotonic() - started
    finally:
        servers.postgres.start()
    assert_stopped_cleanly(done.returncode, done.stderr, seconds)
    assert f"PostgreSQL at 127.0.0.1:{servers.postgres.port}" in done.stderr
    assert last_run(ArtifactStore(home), "tiny") == before


def test_a_database_lost_in_the_middle_of_a_run_stops_it_and_the_next_run_goes_on(servers, copied, tmp_path):
    study, home = copied
    command = [sys.executable, "-m", "lancet_pipeline.cli", "run", str(study), "--home", str(home)]
    log = tmp_path / "run.log"
    with log.open("w") as output:
        run = subprocess.Popen(command, env=environment(**servers.client), stderr=output, stdout=output)
    wait_for(log, "ood_report ...")
    servers.postgres.stop()
    try:
        started = time.monotonic()
        run.wait(timeout=180)
        seconds = time.monotonic() - started
    finally:
        run.kill()
        servers.postgres.start()
    assert_stopped_cleanly(run.returncode, log.read_text(), seconds, limit=180)
    lancet("run", study, "--home", home, settings=servers.client)


@pytest.mark.skipif(not HAS_AUTH, reason="Flask-WTF is not installed")
def test_nobody_reads_runs_without_a_password(servers, finished):
    import requests

    search = f"{servers.mlflow.url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert requests.get(search, timeout=30).status_code == 401
    assert requests.get(search, auth=(USER[0], "guessed-password"), timeout=30).status_code == 401
    assert requests.get(search, auth=USER, timeout=30).status_code == 200


def test_postgresql_and_bucket_are_backed_up_while_the_server_runs_and_come_back_whole(
    servers, finished, tracked, tmp_path
):
    before = contents(tracked)
    assert before["models"]["lancet-tiny"][0]["candidate"]
    saved = script("backup.sh", tmp_path, environment=servers.server)
    assert saved.returncode == 0, saved.stderr
    backup = saved.stdout.strip()
    refused = script("restore.sh", backup, environment=servers.server)
    assert refused.returncode == 1
    assert "not empty" in refused.stderr

    servers.mlflow.stop()
    servers.postgres.drop("mlflow")
    servers.bucket().objects.all().delete()
    servers.postgres.create("mlflow")
    restored = script("restore.sh", backup, environment=servers.server)
    upgraded = script("upgrade.sh", environment=servers.server)
    again = start_mlflow(servers.server, tmp_path, servers.port())
    try:
        assert restored.returncode == 0, restored.stderr
        assert upgraded.returncode == 0, upgraded.stderr
        assert contents(tracked) == before
        version = tracked.get_model_version_by_alias("lancet-tiny", "candidate")
        tracked.download_artifacts(version.run_id, "corrected_model", str(tmp_path))
        assert any(path.stat().st_size > 0 for path in tmp_path.rglob("*.safetensors"))
    finally:
        again.stop()


def test_sqlite_and_folder_are_backed_up_and_a_damaged_backup_is_refused(tmp_path, connect):
    settings = server_environment(tmp_path / "server")
    server = start_mlflow(settings, tmp_path)
    try:
        before = fill(connect(server.url, admin=True))
        saved = script("backup.sh", tmp_path / "backups", environment=settings)
    finally:
        server.stop()
    assert saved.returncode == 0, saved.stderr
    backup = Path(saved.stdout.strip())
    shutil.rmtree(tmp_path / "server")

    shutil.copytree(backup, tmp_path / "damaged")
    with (tmp_path / "damaged" / "mlflow.db").open("r+b") as file:
        file.write(b"?")
    refused = script("restore.sh", tmp_path / "damaged", environment=settings)
    assert refused.returncode == 2
    assert "damaged" in refused.stderr

    restored = script("restore.sh", backup, environment=settings)
    assert restored.returncode == 0, restored.stderr
    server = start_mlflow(settings, tmp_path)
    try:
        assert contents(connect(server.url, admin=True)) == before
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MLFLOW_HOST": "0.0.0.0"}, "MLFLOW_SERVER_ALLOWED_HOSTS is not set"),
        (
            {"LANCET_MLFLOW_AUTH": "basic", "MLFLOW_FLASK_SERVER_SECRET_KEY": ""},
            "MLFLOW_FLASK_SERVER_SECRET_KEY is not set",
        ),
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql://u:hush@127.0.0.1/m"}, "holds a password"),
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql://u@127.0.0.1:1/m"}, "the database cannot be opened"),
        ({"LANCET_MLFLOW_AUTH": "none", "MLFLOW_HOST": "0.0.0.0", "MLFLOW_SERVER_ALLOWED_HOSTS": "x"}, "loopback"),
        (
            {"MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket", "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:1"}
            | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "hush", "LANCET_MLFLOW_AUTH": "none"},
            "MLFLOW_ARTIFACTS_DESTINATION: s3://bucket",
        ),
    ],
)
def test_the_server_does_not_start_with_settings_that_do_not_fit(tmp_path, changes, message):
    settings = {**server_environment(tmp_path / "server"), **changes}
    done = script("serve.sh", environment=settings)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr + done.stdout


def fill(client) -> dict:
    """A run with a figure and a file, and a registered version with an alias; what the server then knows."""
    run = client.create_run(client.create_experiment("lancet/small"), tags={"lancet.study": "small"}).info.run_id
    client.log_metric(run, "harm", 0.25)
    client.log_text(run, "weights", "model/weights.txt")
    client.create_registered_model("lancet-small")
    source = f"{client.get_run(run).info.artifact_uri}/model"
    version = client.create_model_version("lancet-small", source, run_id=run)
    client.set_registered_model_alias("lancet-small", "champion", version.version)
    return contents(client)


def assert_stopped_cleanly(code: int, stderr: str, seconds: float, limit: float = 25) -> None:
    assert code in (1, 2), stderr  # 2 where it was gone before the run began
    assert "Traceback" not in stderr, stderr
    assert "error: LANCET_DAGSTER_POSTGRES_URL" in stderr or "MLflow at" in stderr, stderr
    assert "password" not in stderr.lower()
    assert seconds < limit, f"stopped after {seconds:.0f} s:\n{stderr}"


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
