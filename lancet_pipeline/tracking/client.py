"""MLflow: one run for each study run, every asset's settings, metrics and plots in it; and the registry of models."""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from lancet_pipeline.config.experiment import experiment_of, is_variant
from lancet_pipeline.config.loading import leaves
from lancet_pipeline.errors import Unreachable, first_line, without_credentials
from lancet_pipeline.tracking.logged_model import components, data_set, model_metrics
from lancet_pipeline.tracking.registration import Registration

VERSION_TAG, BUNDLE_TAG = "lancet.version.", "lancet.bundle"
"""Tags of a registered version: the first, with an asset behind it, its version; the second, the bundle's digest."""

CONNECT_SECONDS = 5
IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a study's model in the registry."""

    name: str
    number: int
    run: str
    tags: Mapping[str, str]
    aliases: Sequence[str] = ()

    @property
    def artifacts(self) -> dict[str, str]:
        """Asset -> version of what it was computed from."""
        return {key.removeprefix(VERSION_TAG): value for key, value in self.tags.items() if key.startswith(VERSION_TAG)}


def registry_name(study: str) -> str:
    return f"lancet-{study}"


@dataclass(frozen=True)
class Tracking:
    """`uri` is a tracking server or database; a SQLite file below `home` where empty."""

    home: str = ".lancet"
    uri: str = ""

    def tracking_uri(self) -> str:
        return self.uri or f"sqlite:///{self._database()}"

    def client(self) -> Any:
        """A client of the server or database, once that answers. Raises Unreachable."""
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        if not self.uri:
            self._database().parent.mkdir(parents=True, exist_ok=True)
        self._check_reachable()
        return mlflow.MlflowClient(self.tracking_uri())

    def experiment_id(self, client: Any, study: str) -> str:
        study = experiment_of(study) if is_variant(study) else study  # variants stand side by side, to be compared
        name = f"lancet/{study}"
        if (experiment := client.get_experiment_by_name(name)) is not None:
            return experiment.experiment_id
        location = None
        if not self.uri:
            location = (Path(self.home).expanduser().absolute() / "mlflow" / "artifacts" / study).as_uri()
        return client.create_experiment(name, artifact_location=location)

    def run_id(self, study: str, dagster_run_id: str) -> str:
        """The MLflow run of a Dagster run, made at its first asset."""
        client = self.client()
        experiment = self.experiment_id(client, study)
        found = client.search_runs([experiment], f"tags.`dagster.run_id` = '{dagster_run_id}'", max_results=1)
        if found:
            return found[0].info.run_id
        tags = {"dagster.run_id": dagster_run_id, "lancet.study": study}
        return client.create_run(experiment, tags=tags, run_name=f"{study}-{dagster_run_id[:8]}").info.run_id

    def record(
        self,
        study: str,
        dagster_run_id: str,
        asset: str,
        *,
        version: str,
        settings: Mapping[str, Any],
        metrics: Mapping[str, float],
        curves: Mapping[str, list[tuple[int, float]]],
        plots: Mapping[str, bytes],
    ) -> str:
        """Log one asset into the study run's MLflow run and return that run's id."""
        from mlflow.entities import Metric, Param, RunTag

        client = self.client()
        run = self.run_id(study, dagster_run_id)
        stamp = int(time.time() * 1000)
        logged = [Metric(f"{asset}/{name}", float(value), stamp, 0) for name, value in metrics.items()]
        for name, points in curves.items():
            logged += [Metric(f"{asset}/{name}", float(value), stamp, step) for step, value in points]
        params = [Param(f"{asset}/{key}", str(value)[:500]) for key, value in leaves(settings)]
        for start in range(0, max(len(logged), 1), 900):  # MLflow takes at most 1000 metrics a batch
            client.log_batch(run, metrics=logged[start : start + 900])
        for start in range(0, len(params), 90):
            client.log_batch(run, params=params[start : start + 90])
        client.log_batch(run, tags=[RunTag(f"lancet.version.{asset}", version)])
        if plots:
            with TemporaryDirectory() as folder:
                for name, png in plots.items():
                    (Path(folder) / f"{name}.png").write_bytes(png)
                client.log_artifacts(run, folder, asset)
        return run

    def finish(self, study: str, dagster_run_id: str, status: str) -> None:
        self.client().set_terminated(self.run_id(study, dagster_run_id), status)

    def register(self, dagster_run_id: str, entry: Registration) -> RegisteredVersion:
        """Log a model into the study run and give it a version in the registry, without an alias.

        Raises:
            Unreachable: the server or database is lost.
        """
        from huggingface_hub import ModelCard
        from mlflow.models import infer_signature
        from mlflow.transformers import log_model

        import mlflow

        with self.connection() as client:
            run = self.run_id(entry.study, dagster_run_id)
            signature = infer_signature("prompt", "text", {"max_new_tokens": entry.max_new_tokens, "do_sample": False})
            mlflow.set_tracking_uri(self.tracking_uri())  # the model flavours know no client
            with mlflow.start_run(run_id=run):
                mlflow.log_inputs(
                    [data_set(data) for data in entry.data],
                    [data.context for data in entry.data],
                    [{"lancet.version": data.version} for data in entry.data],
                )
                model = log_model(
                    components(entry.folder),
                    name="corrected_model",
                    task="text-generation",
                    signature=signature,
                    model_card=ModelCard(entry.card),
                    model_type="corrected",
                    tags=dict(entry.tags),
                    pip_requirements=["torch", "transformers"],
                )
            client.log_batch(run, metrics=model_metrics(entry, model.model_id))
            name = registry_name(entry.study)
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name, {"lancet.study": entry.study})
            version = client.create_model_version(
                name, model.model_uri, run, dict(entry.tags), description=entry.description, model_id=model.model_id
            )
            return _registered(version)

    def registered(self, study: str) -> list[RegisteredVersion]:
        """All versions of a study's model, oldest first; empty where it was never registered.

        Raises:
            Unreachable: the server or database is lost.
        """
        if not self.uri and not self._database().exists():
            return []  # asking would make one
        with self.connection() as client:
            name = registry_name(study)
            models = client.search_registered_models(f"name = '{name}'")
            if not models:
                return []
            aliases = {}
            for alias, number in models[0].aliases.items():
                aliases.setdefault(int(number), []).append(alias)
            found, token = [], None
            while True:
                page = client.search_model_versions(f"name = '{name}'", page_token=token)
                found += [_registered(version, aliases.get(int(version.version), ())) for version in page]
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: version.number)

    def set_alias(self, study: str, alias: str, number: int) -> None:
        with self.connection() as client:
            client.set_registered_model_alias(registry_name(study), alias, str(number))

    def tag_version(self, study: str, number: int, key: str, value: str) -> None:
        with self.connection() as client:
            client.set_model_version_tag(registry_name(study), str(number), key, value)

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """A client that gives up within seconds, for commands that a person waits for and for the registry.

        MLflow itself goes on trying for minutes. What the environment says of that (MLFLOW_HTTP_REQUEST_*) holds.

        Raises:
            Unreachable: no server or database answers, or it says no; without the credentials that the address may hold.
        """
        from mlflow.exceptions import MlflowException

        logger = logging.getLogger("mlflow.store.db.utils")
        level = logger.level
        with _environment(IMPATIENT):
            client = self.client()
            logger.setLevel(logging.CRITICAL)  # the error below says it, without a traceback
            try:
                yield client
            except MlflowException as error:
                raise self._lost(error) from None
            finally:
                logger.setLevel(level)

    def _check_reachable(self) -> None:
        """MLflow tries a dead server for minutes, and a dead database for longer; one attempt says enough.

        Raises:
            Unreachable: nothing answers.
        """
        scheme = self.uri.partition(":")[0].partition("+")[0].lower()
        try:
            if scheme in ("http", "https"):
                address = urlsplit(self.uri)
                port = address.port or (443 if scheme == "https" else 80)
                socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
            elif scheme in ("postgresql", "mysql"):
                import sqlalchemy

                engine = sqlalchemy.create_engine(self.uri, connect_args={"connect_timeout": CONNECT_SECONDS})
                try:
                    engine.connect().close()
                finally:
                    engine.dispose()
        except Exception as error:  # drivers raise types of their own
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"MLflow at {without_credentials(self.tracking_uri())}: {first_line(error)}; see that it runs and that "
            "MLFLOW_TRACKING_URI names it, then give the command again"
        )

    def _database(self) -> Path:
        return Path(self.home).expanduser().absolute() / "mlflow" / "mlflow.db"


def _registered(version: Any, aliases: Sequence[str] = ()) -> RegisteredVersion:
    return RegisteredVersion(version.name, int(version.version), version.run_id, dict(version.tags), tuple(aliases))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of `values` that are not set are, until the block ends: MLflow takes these settings from nowhere else."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
