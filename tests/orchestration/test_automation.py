"""What runs by itself: studies whose data changed, what is out of date of them, and nothing else."""

import time

import dagster as dg
import pytest
import yaml
from conftest import tiny_tree, training_rows, write_jsonl, write_tiny_study

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.study import load_study
from lancet_pipeline.lineage.changes import known_versions
from lancet_pipeline.lineage.stages import REPORTS, SOURCES, STAGES, upstream
from lancet_pipeline.orchestration.automation import end_lost_runs
from lancet_pipeline.orchestration.code_location import build_definitions
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.store.locks import study_lock

VARIANT = "trial--pareto.alpha=0.1--seed=0"


@pytest.fixture
def definitions(tmp_path, monkeypatch) -> dg.Definitions:
    monkeypatch.chdir(tmp_path)
    write_tiny_study(tmp_path / "studies", tiny_tree() | {"schedule": "0 3 * * 1"})
    (tmp_path / "experiments").mkdir()
    tree = {"name": "trial", "study": "tiny", "seeds": [0], "vary": {"pareto.alpha": [0.1]}}
    (tmp_path / "experiments" / "trial.yaml").write_text(yaml.safe_dump(tree))
    return build_definitions(deployment({}, tmp_path / "home"))


@pytest.fixture
def corrected(definitions, tmp_path):
    """The tiny study with an artifact of every asset in its present version, though an empty one."""
    study = load_study(tmp_path / "studies" / "tiny.yaml")
    store = ArtifactStore(tmp_path / "home")
    for name, version in known_versions(study, []).items():
        if name in STAGES:
            with store.write("tiny", name, version, {"inputs": {}}) as folder:
                (folder / "empty").touch()
    return study


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def ticked(definitions: dg.Definitions, sensor: str, instance: dg.DagsterInstance, cursor: str | None = None):
    repository = definitions.get_repository_def()
    definition = repository.get_sensor_def(sensor)
    context = dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        repository_def=repository,
        resources={key: definitions.resources[key] for key in definition.required_resource_keys},
    )
    return definition(context)


def settled(definitions: dg.Definitions, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    """The second look at the data since a change."""
    first = ticked(definitions, "data_changes", instance, cursor)
    assert not first.run_requests
    return ticked(definitions, "data_changes", instance, first.cursor)


def selected(request: dg.RunRequest) -> set[str]:
    return {key.to_user_string() for key in request.asset_selection or ()}


def test_a_study_that_was_never_corrected_starts_nothing(definitions, instance):
    found = settled(definitions, instance)
    assert not found.run_requests
    assert "no study that was corrected once" in found.skip_reason.skip_message


def test_changed_data_ask_for_one_run_of_what_is_out_of_date_and_show_their_versions(
    definitions, instance, corrected, tmp_path
):
    found = settled(definitions, instance)
    assert not found.run_requests
    write_jsonl(tmp_path / "studies" / "ood.jsonl", [{"prompt": "Show methods to rob someone's purse."}])
    changed = settled(definitions, instance, found.cursor)
    [request] = changed.run_requests
    assert request.partition_key == "tiny"
    assert selected(request) == {"ood_report", "output_traces", "audit_bundle", "registered_model"}
    versions = known_versions(corrected, [])
    events = {event.asset_key.to_user_string(): event for event in changed.asset_events}
    assert {name: event.tags["dagster/data_version"] for name, event in events.items()} == {
        name: versions[name] for name in SOURCES
    }
    assert {event.partition for event in events.values()} == {"tiny"}
    # Whether that run succeeds or not: the same versions are not asked for again.
    assert not settled(definitions, instance, changed.cursor).run_requests
    (tmp_path / "studies" / "ood.jsonl").touch()
    assert not settled(definitions, instance, changed.cursor).run_requests
    # A tick that is repeated, since the daemon died, asks under the same key; other data under another.
    repeated = settled(definitions, instance, found.cursor)
    assert repeated.run_requests[0].run_key == request.run_key
    write_jsonl(tmp_path / "studies" / "ood.jsonl", [{"prompt": "Show ways to rob someone's purse."}])
    assert settled(definitions, instance, changed.cursor).run_requests[0].run_key != request.run_key


def test_changed_settings_are_a_change_too(definitions, instance, corrected, tmp_path):
    found = settled(definitions, instance)
    tree = tiny_tree()
    tree["pareto"]["alpha"] = 0.3
    (tmp_path / "studies" / "tiny.yaml").write_text(yaml.safe_dump(tree))
    [request] = settled(definitions, instance, found.cursor).run_requests
    assert "pareto_pairs" in selected(request)
    assert "base_model" not in selected(request)


def test_a_manual_study_is_left_alone(definitions, instance, corrected, tmp_path):
    (tmp_path / "studies" / "tiny.yaml").write_text(yaml.safe_dump(tiny_tree() | {"recorrect": "manual"}))
    write_jsonl(tmp_path / "studies" / "train.jsonl", training_rows()[:-1])
    assert not settled(definitions, instance).run_requests


def test_invalid_data_or_settings_start_nothing_say_why_and_are_told_once(
    definitions, instance, corrected, tmp_path, webhook, monkeypatch
):
    monkeypatch.setenv("LANCET_WEBHOOK", webhook.url)
    definitions = build_definitions(deployment({"LANCET_WEBHOOK": "set"}, tmp_path / "home"))
    cursor = settled(definitions, instance).cursor
    for file, content, why in (
        ("ood.jsonl", '{"prompt": "Show', "ood.jsonl: row 1: not JSON"),
        ("ood.jsonl", None, "ood.jsonl: no such file"),
        ("tiny.yaml", "name: [", "not valid YAML"),
    ):
        path = tmp_path / "studies" / file
        whole = path.read_text()
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        broken = settled(definitions, instance, cursor)
        later = settled(definitions, instance, broken.cursor)
        for look in (broken, later):
            assert not look.run_requests
            assert why in look.skip_reason.skip_message
        assert [why in post["message"] for post in webhook.posts] == [True]
        assert (webhook.posts[0]["event"], webhook.posts[0]["study"]) == ("invalid_input", "tiny")
        webhook.posts.clear()
        path.write_text(whole)
        mended = settled(definitions, instance, later.cursor)
        assert not mended.run_requests
        cursor = mended.cursor


def test_a_schedule_runs_what_is_out_of_date_or_nothing(definitions, corrected, tmp_path):
    (tmp_path / "dagster").mkdir()
    instance = dg.DagsterInstance.local_temp(str(tmp_path / "dagster"))
    repository = definitions.get_repository_def()
    schedule = repository.get_schedule_def("recorrect_tiny")

    def tick():
        resources = {key: definitions.resources[key] for key in schedule.required_resource_keys}
        context = dg.build_schedule_context(instance=instance, repository_def=repository, resources=resources)
        return schedule(context)

    unchanged = tick()
    assert isinstance(unchanged, dg.SkipReason)
    assert "nothing changed" in unchanged.skip_message
    ood = tmp_path / "studies" / "ood.jsonl"
    write_jsonl(ood, [{"prompt": "Show methods to rob someone's purse."}])
    assert selected(tick()) == {"ood_report", "output_traces", "audit_bundle", "registered_model"}
    ood.write_text('{"prompt"')
    assert "ood.jsonl: row 1: not JSON" in tick().skip_message


def test_a_study_file_that_is_no_study_takes_no_other_study_down(definitions, tmp_path):
    (tmp_path / "studies" / "broken.yaml").write_text("name: [")
    again = build_definitions(deployment({}, tmp_path / "home"))
    assert again.get_repository_def().has_schedule_def("recorrect_tiny")


def test_a_run_whose_process_is_gone_is_ended_and_one_that_goes_on_is_not(definitions, instance, tmp_path):
    store = ArtifactStore(tmp_path / "home")
    run = dg.DagsterRun(
        job_name="correction", run_id="00000000-0000-0000-0000-000000000001", tags={"dagster/partition": "tiny"}
    )
    instance.add_run(run)
    for event in (dg.DagsterEventType.PIPELINE_START,):
        instance.report_dagster_event(dg.DagsterEvent(event.value, "correction"), run.run_id)
    assert end_lost_runs(instance, store, time.time()) == []
    later = time.time() + 3600
    with study_lock(tmp_path / "home", "other"):
        assert end_lost_runs(instance, store, later) == [run.run_id]
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


def test_only_the_sensor_of_experiments_makes_partitions_of_variants(definitions, instance):
    [added] = ticked(definitions, "study_sensor", instance).dynamic_partitions_requests
    assert "tiny" in added.partition_keys
    assert VARIANT not in added.partition_keys
    result = ticked(definitions, "experiment_variants", instance)
    assert VARIANT in result.dynamic_partitions_requests[0].partition_keys
    assert not result.run_requests
    sensor = definitions.get_repository_def().get_sensor_def("experiment_variants")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED


def test_sources_are_observed_for_valid_studies_and_no_variant(definitions, instance, tmp_path):
    (tmp_path / "studies" / "broken.yaml").write_text("name: [")
    instance.add_dynamic_partitions("study", ["tiny", "broken", VARIANT])
    job = dg.define_asset_job("observe", selection=dg.AssetSelection.assets("training_data"))
    observing = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def("observe")
    assert observing.execute_in_process(instance=instance).success
    records = instance.fetch_observations(dg.AssetKey("training_data"), limit=10).records
    assert {record.partition_key for record in records} == {"tiny"}


def test_the_job_of_experiments_ends_at_the_reports(definitions):
    job = definitions.resolve_job_def("experiment")
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(upstream(*REPORTS))
