"""A study that lets its model outlive small changes of the data."""

import json
from pathlib import Path

import pytest
from command import lancet
from conftest import tiny_tree, training_rows, write_jsonl, write_tiny_study

from lancet_pipeline.lineage.results import last_run
from lancet_pipeline.store.artifacts import ArtifactStore

LIMITS = {"max_changed": 0.02, "max_drift": 0.05}


def scored(study: Path, home: Path) -> dict[str, dict]:
    lancet("run", study, "--home", home, "--until", "influence_scores")
    return last_run(ArtifactStore(home), "tiny")


def weights(manifest: dict) -> str:
    return next(file["sha256"] for file in manifest["files"] if file["path"].endswith(".safetensors"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict]:
    """The same study on its data, on data with one sample edited, and on data with many gone."""
    root = tmp_path_factory.mktemp("reuse")
    tree = tiny_tree()
    tree["model"]["reuse"] = LIMITS
    study = write_tiny_study(root / "study", tree)
    found = {"first": scored(study, root / "home")}
    rows = training_rows()
    rows[5] = {**rows[5], "response": rows[5]["response"].replace("soft cloth", "soft towel")}
    for name, present in (
        ("edited", rows),
        ("many gone", [row for i, row in enumerate(rows) if row["category"] == "request" or i % 2]),
    ):
        write_jsonl(study.parent / "train.jsonl", present)
        found[name] = scored(study, root / "home")
    return found


def test_model_factors_and_damping_stay_and_one_sample_is_scored(runs):
    first, edited = runs["first"], runs["edited"]
    assert all(edited[name]["version"] != first[name]["version"] for name in ("base_model", "linfac_factors"))
    assert all(weights(edited[name]) == weights(first[name]) for name in ("base_model", "linfac_factors"))
    assert edited["base_model"]["metrics"]["drift_added"] == edited["base_model"]["metrics"]["drift_removed"] == 1
    assert edited["base_model"]["metrics"]["drift_loss"] < LIMITS["max_drift"]
    assert edited["influence_scores"]["metrics"]["damping"] == first["influence_scores"]["metrics"]["damping"]
    assert first["influence_scores"]["metrics"]["reused"] == 0
    assert edited["influence_scores"]["metrics"]["reused"] == 119


def test_a_large_change_trains_and_fits_anew(runs):
    edited, gone = runs["edited"], runs["many gone"]
    assert all(weights(gone[name]) != weights(edited[name]) for name in ("base_model", "linfac_factors"))
    assert gone["influence_scores"]["metrics"]["reused"] == 0
    assert "drift_added" not in gone["base_model"]["metrics"]


def test_without_the_setting_versions_are_those_of_a_study_that_never_had_it(tmp_path):
    from lancet_pipeline.config.study import ReuseSettings, load_study
    from lancet_pipeline.lineage.stages import SOURCES, STAGES, versions

    study = load_study(write_tiny_study(tmp_path))
    assert not any("model.reuse" in stage.settings_of(study) for stage in STAGES.values())
    allowed = study.model_copy(update={"model": study.model.model_copy(update={"reuse": ReuseSettings(**LIMITS)})})
    known = [json.dumps(versions(one, dict.fromkeys(SOURCES, "0")), sort_keys=True) for one in (study, allowed)]
    assert known[0] != known[1]
