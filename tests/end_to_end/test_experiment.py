"""A tiny experiment, as a user runs it: shared work is done once, and a variant that fails stops no other."""

import json
from pathlib import Path

import pytest
import yaml
from command import lancet
from conftest import tiny_tree, write_tiny_study

from lancet_pipeline.lineage.results import last_run
from lancet_pipeline.lineage.stages import REPORTS, STAGES, upstream
from lancet_pipeline.store.artifacts import ArtifactStore

pytestmark = pytest.mark.slow

OWN, OTHER, FAILING = "trial--seed=0", "trial--correction.beta=0.3--seed=0", "trial--pareto.minimum=100--seed=0"


def written(folder: Path, vary: dict) -> Path:
    path = folder / "trial.yaml"
    path.write_text(
        yaml.safe_dump({"name": "trial", "study": "./tiny.yaml", "seeds": [0], "vary": vary}, sort_keys=False)
    )
    return path


def summary(experiment: Path, home: Path, *more: object) -> dict:
    return json.loads(lancet("experiment", "summary", experiment, "--home", home, "--json", *more).stdout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Experiment file and home after one run with a variant that fails, and what that run printed."""
    root = tmp_path_factory.mktemp("experiment")
    write_tiny_study(root / "study", tiny_tree())
    experiment = written(root / "study", {"pareto.minimum": [100, 2], "correction.beta": [0.1, 0.3]})
    done = lancet("experiment", "run", experiment, "--home", root / "home", code=1)
    return experiment, root / "home", done


def test_a_failed_variant_is_told_recorded_and_stops_no_other(finished):
    experiment, home, done = finished
    assert "1 of 3 variants failed" in done.stderr
    assert "[1/3] " + FAILING in done.stderr
    assert "min left" in done.stderr
    found = summary(experiment, home)
    assert [failed["variant"] for failed in found["failures"]] == [FAILING]
    assert "fewer than pareto.minimum" in found["failures"][0]["reason"]
    assert found["missing"] == []
    assert "failed" in lancet("experiment", "summary", experiment, "--home", home).stdout


def test_variants_share_what_a_setting_does_not_affect(finished):
    _, home, _ = finished
    store = ArtifactStore(home)
    own, other = last_run(store, OWN), last_run(store, OTHER)
    assert own.keys() == other.keys() == set(upstream(*REPORTS))
    shared = {asset for asset in own if own[asset]["run_id"] == other[asset]["run_id"]}
    assert shared == set(own) - {"corrected_model", *REPORTS}
    models = {path.stat().st_ino for path in home.glob("artifacts/*/base_model/*/model.safetensors")}
    assert len(models) == 1
    for asset, manifest in other.items():
        store.read(OTHER, asset, manifest["version"])


def test_summary_gives_the_spread_of_every_figure(finished, tmp_path):
    experiment, home, _ = finished
    found = summary(experiment, home, "--plots", tmp_path / "plots")
    own, other = found["factors"]["correction.beta"]
    assert (own["value"], own["own"], other["value"], other["own"]) == (0.1, True, 0.3, False)
    for name in (
        "harm_rate",
        "ood_harm_rate",
        "over_refusal_rate",
        "perplexity_ratio",
        "distinct_2",
        "contamination_ap",
    ):
        spread = own["figures"][name]
        assert spread["n"] == 1
        assert spread["min"] == spread["mean"] == spread["max"]
    assert own["figures"]["perplexity_ratio"]["mean"] == pytest.approx(1, abs=0.5)
    assert found["factors"]["pareto.minimum"][0]["figures"]["harm_rate"] is None
    assert found["base"]["harm_rate"]["mean"] > 0.5
    pngs = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in pngs] == ["correction.beta.png", "pareto.minimum.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pngs)


def test_no_variant_is_registered_and_all_stand_in_one_mlflow_experiment(finished):
    import mlflow

    _, home, _ = finished
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    assert not client.search_registered_models()
    experiment = client.get_experiment_by_name("lancet/trial")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["lancet.study"] for run in runs} == {OWN, OTHER, FAILING}
    assert not set(STAGES) - set(upstream(*REPORTS)) & {path.name for path in home.glob("artifacts/*/*")}


def test_another_run_tries_only_what_failed_and_a_mended_experiment_has_nothing_to_run(finished):
    experiment, home, _ = finished
    again = lancet("experiment", "run", experiment, "--home", home, code=1)
    assert "1 of 3 variants to run" in again.stderr
    mended = written(experiment.parent, {"correction.beta": [0.1, 0.3]})
    done = lancet("experiment", "run", mended, "--home", home)
    assert "0 of 2 variants to run" in done.stderr
    assert summary(mended, home)["failures"] == []


def test_an_experiment_that_was_not_run_says_how(finished, tmp_path):
    experiment, _, _ = finished
    done = lancet("experiment", "summary", experiment, "--home", tmp_path, code=2)
    assert "run `lancet experiment run trial` first" in done.stderr
