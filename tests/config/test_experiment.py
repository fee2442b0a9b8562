"""An experiment makes valid, distinct variants of its study, and is refused with the place and the remedy otherwise."""

import re

import dagster as dg
import pytest
import yaml
from conftest import write_tiny_study

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.experiment import (
    PACKAGED_EXPERIMENTS,
    experiment_of,
    find_experiment,
    is_variant,
    load_experiment,
)
from lancet_pipeline.config.loading import PACKAGED_STUDIES
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.stages import SOURCES, STAGES, versions
from lancet_pipeline.resources import StudyCatalog


@pytest.fixture
def folder(tmp_path):
    write_tiny_study(tmp_path)
    return tmp_path


def written(folder, **changes):
    tree = {"name": "trial", "study": "./tiny.yaml", "seeds": [0, 1], "vary": {"pareto.alpha": [0.1, 0.2]}, **changes}
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def load(folder, **changes):
    return load_experiment(written(folder, **changes), [PACKAGED_STUDIES])


def test_one_factor_changes_at_a_time_and_the_studys_own_values_share_a_variant(folder):
    experiment = load(folder, vary={"pareto.alpha": [0.1, 0.2], "linfac.damping": ["auto", 1, 10]})
    assert [variant.name for variant in experiment.variants if variant.study.seed == 0] == [
        "trial--pareto.alpha=0.1--seed=0",
        "trial--seed=0",
        "trial--linfac.damping=1--seed=0",
        "trial--linfac.damping=10--seed=0",
    ]
    assert len(experiment.variants) == 8
    first = experiment.variants[0].study
    assert (first.pareto.alpha, first.linfac.damping, first.data) == (0.1, "auto", experiment.base.data)
    own = [variant.name for variant in experiment.variants_at("pareto.alpha", 0.2)]
    assert own == [variant.name for variant in experiment.variants_at("linfac.damping", "auto")]
    assert own == ["trial--seed=0", "trial--seed=1"]


def test_a_grid_has_every_combination_and_a_value_counts_over_the_others(folder):
    experiment = load(folder, design="grid", vary={"pareto.alpha": [0.1, 0.2], "correction.mu": [1, 2, 3]})
    assert len({variant.name for variant in experiment.variants}) == 2 * 3 * 2
    assert len(experiment.variants_at("pareto.alpha", 0.2)) == 3 * 2


def test_names_are_distinct_partition_keys_and_folders_that_no_study_can_have(folder):
    vary = {
        "description": ["A b", "a B", "a/b", "..", "x" * 300],
        "evaluation.references": [[], ["retrain_clean"]],
        "linfac.refinement": [None, {"samples": 8}],
        "correction.gamma": [0, 1e-5, 0.1],
    }
    experiment = load(folder, design="grid", vary=vary)
    names = [variant.name for variant in experiment.variants]
    assert len(set(names)) == len(names) == 5 * 2 * 2 * 3 * 2
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._=+-]{0,199}", name) for name in names)
    assert all(is_variant(name) and experiment_of(name) == "trial" for name in names)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("study", names)
        assert set(instance.get_dynamic_partitions("study")) == set(names)


def test_fixed_settings_hold_in_every_variant(folder):
    experiment = load(folder, fix={"pareto.alpha": 0.3}, vary={"correction.mu": [1, 2]})
    assert {variant.study.pareto.alpha for variant in experiment.variants} == {0.3}
    assert experiment.variants[0].name == "trial--seed=0"


def test_only_what_a_setting_affects_has_another_version(folder):
    experiment = load(folder, seeds=[0])
    first, second = (versions(v.study, dict.fromkeys(SOURCES, "0" * 64)) for v in experiment.variants)
    same = {name for name in STAGES if first[name] == second[name]}
    assert {"prepared_data", "base_model", "linfac_factors", "influence_scores"} <= same
    assert not same & {"pareto_pairs", "corrected_model", "harmlessness_report"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": {"pareto.alhpa": [0.1]}}, r"vary: pareto\.alhpa: unknown key; did you mean 'alpha'\?"),
        ({"vary": {"paretto.alpha": [0.1]}}, r"vary: paretto: unknown key; did you mean 'pareto'\?"),
        ({"vary": {"pareto.alpha": [0.1, 1.4]}}, r"vary: pareto\.alpha = 1\.4: must be in \(0, 1\)"),
        ({"vary": {"pareto.alpha": []}}, r"vary\.pareto\.alpha"),
        ({"vary": {"pareto.alpha": [0.1, 0.1]}}, r"vary\.pareto\.alpha: 0\.1 stands twice"),
        ({"vary": {"seed": [1]}}, r"vary\.seed: cannot be set here; list seeds under `seeds`"),
        ({"fix": {"correction.bta": 1}}, r"fix: correction\.bta: unknown key; did you mean 'beta'\?"),
        ({"fix": {"pareto.alpha": 0.3}}, r"pareto\.alpha: stands in both fix and vary"),
        ({"seeds": [1, 1]}, r"seeds: 1 stands twice"),
        ({"seeds": [-1]}, r"seeds\.0 = -1"),
        ({"design": "star"}, r"design = \"star\": must be 'one_at_a_time' or 'grid'"),
        ({"sedes": [1]}, r"sedes: unknown key; did you mean 'seeds'\?"),
        ({"study": "dmeo"}, r"study: study 'dmeo': not found .* did you mean 'demo'\?"),
        ({"study": "./absent.yaml"}, r"study: .*absent\.yaml: no such study file"),
        ({"name": "other"}, r"name = other: must be trial"),
    ],
)
def test_what_does_not_fit_is_named(folder, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load(folder, **changes)
    assert str(folder / "trial.yaml") in str(caught.value)


def test_unknown_experiment_suggests_the_nearest():
    with pytest.raises(InputError, match=r"experiment 'sensitivty': not found .* did you mean 'sensitivity'"):
        find_experiment("sensitivty", [PACKAGED_EXPERIMENTS])


@pytest.mark.parametrize("path", sorted(PACKAGED_EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_experiments_are_valid(path):
    assert load_experiment(path, [PACKAGED_STUDIES]).variants


def test_catalog_resolves_variants_beside_studies(folder):
    (folder / "experiments").mkdir()
    written(folder / "experiments", study="tiny")
    catalog = StudyCatalog(directories=[str(folder)], experiment_directories=[str(folder / "experiments")])
    assert catalog.load("trial--pareto.alpha=0.1--seed=1").pareto.alpha == 0.1
    assert len(catalog.variants()) == 4
    assert not any(is_variant(name) for name in catalog.names())
    with pytest.raises(InputError, match=r"has no variant trial--pareto\.alpha=0\.7--seed=1"):
        catalog.load("trial--pareto.alpha=0.7--seed=1")


def test_directories_of_experiments_are_searched_in_order(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    found = deployment({"LANCET_EXPERIMENTS": "/first"}).experiment_directories
    assert [str(path) for path in found] == ["/first", str(tmp_path / "experiments"), str(PACKAGED_EXPERIMENTS)]
