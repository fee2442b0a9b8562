"""What runs by itself runs studies, and leaves the variants of experiments alone."""

import dagster as dg
import pytest
import yaml
from conftest import write_tiny_study

from lancet_pipeline.definitions import build_definitions
from lancet_pipeline.deployment import deployment
from lancet_pipeline.graph import REPORTS, SOURCES, upstream

VARIANT = "trial--pareto.alpha=0.1--seed=0"


@pytest.fixture
def definitions(tmp_path, monkeypatch) -> dg.Definitions:
    monkeypatch.chdir(tmp_path)
    write_tiny_study(tmp_path / "studies")
    (tmp_path / "experiments").mkdir()
    tree = {"name": "trial", "study": "tiny", "seeds": [0], "vary": {"pareto.alpha": [0.1]}}
    (tmp_path / "experiments" / "trial.yaml").write_text(yaml.safe_dump(tree))
    return build_definitions(deployment({}, tmp_path / "home"))


def ticked(
    definitions: dg.Definitions, sensor: str, instance: dg.DagsterInstance, cursor: str | None = None
) -> dg.SensorResult:
    repository = definitions.get_repository_def()
    context = dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        repository_def=repository,
        resources={"catalog": definitions.resources["catalog"]},
    )
    return repository.get_sensor_def(sensor)(context)


def test_observed_data_corrects_studies_and_no_variant(definitions):
    with dg.DagsterInstance.ephemeral() as instance:
        before = ticked(definitions, "recorrection", instance)
        instance.add_dynamic_partitions("study", ["tiny", VARIANT])
        for partition in ("tiny", VARIANT):
            for source in SOURCES:
                tags = {"dagster/data_version": "0"}
                instance.report_runless_asset_event(dg.AssetObservation(source, partition=partition, tags=tags))
        after = ticked(definitions, "recorrection", instance, before.cursor)
    assert {request.partition_key for request in after.run_requests} == {"tiny"}


def test_only_the_sensor_of_experiments_makes_partitions_of_variants(definitions):
    with dg.DagsterInstance.ephemeral() as instance:
        [added] = ticked(definitions, "study_sensor", instance).dynamic_partitions_requests
        assert "tiny" in added.partition_keys
        assert VARIANT not in added.partition_keys
        result = ticked(definitions, "experiment_variants", instance)
        assert VARIANT in result.dynamic_partitions_requests[0].partition_keys
        assert not result.run_requests
    sensor = definitions.get_repository_def().get_sensor_def("experiment_variants")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED


def test_sources_are_observed_for_studies_alone(definitions):
    job = definitions.resolve_job_def("observation")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("study", ["tiny", VARIANT])
        assert job.execute_in_process(instance=instance).success
        records = instance.fetch_observations(dg.AssetKey("training_data"), limit=10).records
    assert {record.partition_key for record in records} == {"tiny"}


def test_the_job_of_experiments_ends_at_the_reports(definitions):
    job = definitions.resolve_job_def("experiment")
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(upstream(*REPORTS))
