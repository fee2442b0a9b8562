"""MLflow: one run for each study run, every asset's settings, metrics and plots in it."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from lancet_pipeline.experiment import experiment_of, is_variant


class Tracking(dg.ConfigurableResource):
    """`uri` is a tracking server or database; a SQLite file below `home` where empty."""

    home: str = ".lancet"
    uri: str = ""

    def tracking_uri(self) -> str:
        return self.uri or f"sqlite:///{Path(self.home).expanduser().absolute() / 'mlflow' / 'mlflow.db'}"

    def client(self) -> Any:
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        if not self.uri:
            (Path(self.home).expanduser().absolute() / "mlflow").mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.tracking_uri())
        return mlflow.MlflowClient()

    def experiment_id(self, client: Any, study: str) -> str:
        study = experiment_of(study) if is_variant(study) else study  # variants stand side by side, to be compared
        name = f"lancet/{study}"
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
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
        params = [Param(f"{asset}/{key}", str(value)[:500]) for key, value in _flat(settings).items()]
        for start in range(0, max(len(logged), 1), 900):  # MLflow takes at most 1000 metrics a batch
            client.log_batch(run, metrics=logged[start : start + 900])
        for start in range(0, len(params), 90):
            client.log_batch(run, params=params[start : start + 90])
        client.log_batch(run, tags=[RunTag(f"lancet.version.{asset}", version)])
        for name, png in plots.items():
            self._log_bytes(client, run, f"{asset}/{name}.png", png)
        return run

    def finish(self, study: str, dagster_run_id: str, status: str) -> None:
        self.client().set_terminated(self.run_id(study, dagster_run_id), status)

    def register(
        self, study: str, dagster_run_id: str, model_folder: Path, *, tags: Mapping[str, str], champion: bool
    ) -> dict[str, Any]:
        """Log a model into the study run and register it; aliases `candidate` and, where `champion`, that too.

        Returns:
            {"name", "version", "aliases", "model_uri", "run_id"}.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        import mlflow

        client = self.client()
        run = self.run_id(study, dagster_run_id)
        components = {
            "model": AutoModelForCausalLM.from_pretrained(model_folder, use_safetensors=True),
            "tokenizer": AutoTokenizer.from_pretrained(model_folder),
        }
        with mlflow.start_run(run_id=run):
            logged = mlflow.transformers.log_model(
                components, name="corrected_model", task="text-generation", pip_requirements=["torch", "transformers"]
            )
        name = f"lancet-{study}"
        if not self._exists(client, name):
            client.create_registered_model(name)
        version = client.create_model_version(
            name, logged.model_uri, run_id=run, tags=dict(tags), model_id=logged.model_id
        )
        aliases = ["candidate", "champion"] if champion else ["candidate"]
        for alias in aliases:
            client.set_registered_model_alias(name, alias, version.version)
        return {
            "name": name,
            "version": int(version.version),
            "aliases": aliases,
            "model_uri": f"models:/{name}/{version.version}",
            "run_id": run,
        }

    @staticmethod
    def _exists(client: Any, name: str) -> bool:
        return bool(client.search_registered_models(f"name = '{name}'"))

    @staticmethod
    def _log_bytes(client: Any, run: str, path: str, content: bytes) -> None:
        import tempfile

        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / name
            file.write_bytes(content)
            client.log_artifact(run, str(file), folder)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
