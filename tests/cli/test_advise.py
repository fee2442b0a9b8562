"""`lancet advise`: what is at hand for a study."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import lancet
from conftest import training_rows

from lancet_pipeline.data.schema import sample_id
from lancet_pipeline.governance.advice import TITLES, spread_of


def test_advice_holds_the_figures_and_costs_of_the_last_run(finished):
    place = (finished.study, "--home", finished.home, "--json")
    found, figures = (json.loads(lancet(command, *place).stdout) for command in ("advise", "summary"))
    ways = {way["name"]: way for way in found["ways"]}
    assert list(ways) == list(TITLES)
    assert found["base_harm_rate"] == figures["base"]["harm_rate"]
    for name, model in (("ibo", figures["corrected"]), ("filter_and_retrain", figures["references"]["retrain_clean"])):
        fall = 1 - model["harm_rate"]["value"] / figures["base"]["harm_rate"]["value"]
        assert ways[name]["effect"]["value"] == pytest.approx(fall)
        assert ways[name]["effect"]["from"] == "record"
    seconds = figures["processor_seconds"]
    evaluation = sum(seconds[f"{kind}_report"] for kind in ("harmlessness", "ood", "utility")) / 3
    assert ways["filter_and_retrain"]["processor_seconds"] == pytest.approx(seconds["base_model"] + evaluation)
    assert ways["ibo"]["processor_seconds"] == pytest.approx(seconds["corrected_model"] + evaluation)
    assert ways["relabel_and_retrain"]["people"] == f"{figures['selection']['positive']} good answers"
    assert found["best"] in ("ibo", "filter_and_retrain")


def test_driving_samples_are_counted_by_source_and_category(finished):
    paths = json.loads(lancet("summary", finished.study, "--home", finished.home, "--json").stdout)["paths"]
    roles = pq.read_table(Path(paths["pareto_pairs"]) / "samples.parquet").to_pylist()
    driving = {row["sample_id"] for row in roles if row["role"] == "driving"}
    rows = [{**row, "drives": sample_id(row["prompt"], row["response"]) in driving} for row in training_rows()]
    found = spread_of(Path(paths["prepared_data"]), Path(paths["pareto_pairs"]))
    assert found["source"] == {"train.jsonl": (len(driving), 120)}
    assert found["category"] == {
        category: (sum(row["drives"] and row["category"] == category for row in rows), 60)
        for category in ("request", "chore")
    }


def test_people_read_a_table_a_verdict_and_the_next_command(finished):
    printed = lancet("advise", finished.study, "--home", finished.home).stdout
    found = json.loads(lancet("advise", finished.study, "--home", finished.home, "--json").stdout)
    best = next(way for way in found["ways"] if way["name"] == found["best"])
    assert printed.startswith("study tiny: what is at hand")
    assert printed.splitlines()[-2:] == [f"verdict     {found['why']}", f"next        {best['how']}"]


def test_a_study_that_was_not_run_is_told_what_to_run_and_what_it_is_expected_to_cost(finished, tmp_path):
    found = json.loads(lancet("advise", finished.study, "--home", tmp_path, "--json").stdout)
    assert found["best"] is None
    assert f"nothing has been run yet: `lancet run {finished.study} --home {tmp_path}`" in found["why"]
    assert all(way["processor_seconds"] > 0 for way in found["ways"])
    assert (
        f"next        lancet run {finished.study} --home {tmp_path}\n"
        in lancet("advise", finished.study, "--home", tmp_path).stdout
    )


def test_a_run_points_to_the_advice(finished):
    last = finished.printed.splitlines()[-1]
    assert last.startswith(f"advise      lancet advise {finished.study} --home {finished.home} ")
