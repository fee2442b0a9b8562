"""Real servers for tests: PostgreSQL from its own binaries, an S3 server, and the MLflow server of mlflow/serve.sh."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
SCRIPTS = PROJECT / "mlflow"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def postgres_binaries() -> Path | None:
    """The newest installed PostgreSQL server."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).parent)
    return max(found, key=lambda path: [int(part) for part in path.parts if part.isdigit()], default=None)


@dataclass(frozen=True)
class Postgres:
    """A cluster of its own in `folder`; clients find the password of `user` in `password_file` (PGPASSFILE)."""

    binaries: Path
    folder: Path
    port: int
    password_file: Path
    user: str = "lancet"

    def url(self, database: str) -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-D", self.folder, "-l", self.folder / "server.log", "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-D", self.folder, "-m", "immediate")

    def create(self, database: str) -> str:
        self._client("createdb", database)
        return self.url(database)

    def drop(self, database: str) -> None:
        self._client("dropdb", "--force", database)

    def _client(self, program: str, *arguments: str) -> None:
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, "--no-password")
        environment = {**os.environ, "PGPASSFILE": str(self.password_file)}
        subprocess.run([self.binaries / program, *where, *arguments], check=True, env=environment)

    def _run(self, program: str, *arguments: object) -> None:
        run_as_postgres(self.binaries / program, *arguments)


def run_as_postgres(*command: object) -> None:
    """PostgreSQL refuses to run as root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, *map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/", check=False
    )
    assert done.returncode == 0, f"{command[0]} failed"


def make_postgres(root: Path) -> Postgres:
    """Make and start a cluster that asks for passwords. `root` must be a folder that the user postgres can reach."""
    binaries = postgres_binaries()
    assert binaries is not None
    password = secrets.token_hex(8)
    folder, initial = root / "cluster", root / "password"
    initial.write_text(password)
    if os.geteuid() == 0:
        shutil.chown(root, "postgres")
        shutil.chown(initial, "postgres")
    options = ("-U", "lancet", f"--pwfile={initial}", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8")
    run_as_postgres(binaries / "initdb", "-D", folder, *options)
    port = free_port()
    password_file = root / "pgpass"
    password_file.write_text(f"127.0.0.1:{port}:*:lancet:{password}\n")
    password_file.chmod(0o600)
    server = Postgres(binaries, folder, port, password_file)
    server.start()
    return server


@dataclass(frozen=True)
class ServerProcess:
    """A server in a process group of its own."""

    process: subprocess.Popen
    url: str
    log: Path

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def start(command: list[object], environment: Mapping[str, str], url: str, health: str, log: Path) -> ServerProcess:
    """Start a server and wait until `url` + `health` answers."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*map(str, command)], env=dict(environment), stdout=output, stderr=output, start_new_session=True
        )
    server = ServerProcess(process, url, log)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url + health, timeout=2)
        except OSError:
            if process.poll() is not None:
                raise AssertionError(log.read_text()[-3000:]) from None
            time.sleep(0.2)
        else:
            return server
    server.stop()
    raise AssertionError(f"{url}{health} does not answer:\n{log.read_text()[-3000:]}")


def start_s3(folder: Path) -> ServerProcess:
    """moto's server: S3 over HTTP, objects in memory."""
    port = free_port()
    command = [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", port]
    return start(command, os.environ, f"http://127.0.0.1:{port}", "/moto-api/", folder / "s3.log")


def start_mlflow(environment: Mapping[str, str], folder: Path, port: int | None = None) -> ServerProcess:
    port = port or free_port()
    settings = {**environment, "MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1"}
    return start([SCRIPTS / "serve.sh"], settings, f"http://127.0.0.1:{port}", "/health", folder / "mlflow.log")


def script(name: str, *arguments: object, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    command = [str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
