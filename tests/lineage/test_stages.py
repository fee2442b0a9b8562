"""Versions change for exactly what depends on a change."""

import json

import pytest
import yaml
from conftest import tiny_tree, write_jsonl, write_tiny_study

from lancet_pipeline.config.loading import load_study
from lancet_pipeline.config.study import DataSource, JudgeSettings
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.changes import known_versions
from lancet_pipeline.lineage.sources import judge_version, source_version, source_versions
from lancet_pipeline.lineage.stages import SOURCES, STAGES, upstream, versions

EVERYTHING = set(STAGES)
AFTER_SELECTION = {
    *("corrected_model", "harmlessness_report", "ood_report", "utility_report", "output_traces"),
    *("audit_bundle", "registered_model"),
}
BY_THE_JUDGE = {"undesirable_outputs", "influence_scores", "pareto_pairs", *AFTER_SELECTION}
REPORTED = AFTER_SELECTION - {"corrected_model"}


@pytest.fixture
def study(tiny_study):
    return load_study(tiny_study)


@pytest.fixture
def sources():
    return dict.fromkeys(SOURCES, "0" * 64)


def differing(before: dict, after: dict) -> set[str]:
    return {name for name in STAGES if before[name] != after[name]}


@pytest.mark.parametrize(
    ("source", "dependents"),
    [
        ("training_data", EVERYTHING),
        ("ood_prompts", {"ood_report", "output_traces", "audit_bundle", "registered_model"}),
        ("utility_responses", {"utility_report", "audit_bundle", "registered_model"}),
        ("paraphrases", REPORTED - {"ood_report", "utility_report"}),
        ("replacements", {"pareto_pairs", *AFTER_SELECTION}),
        ("judge", BY_THE_JUDGE),
        ("judge_labels", {"audit_bundle", "registered_model"}),
        ("embedding_model", {"influence_scores", "pareto_pairs", *AFTER_SELECTION}),
        ("probe_prompts", {"undesirable_outputs", "influence_scores", "pareto_pairs", *AFTER_SELECTION}),
    ],
)
def test_changed_source(study, sources, source, dependents):
    assert differing(versions(study, sources), versions(study, {**sources, source: "1" * 64})) == dependents


@pytest.mark.parametrize(
    ("section", "change", "dependents"),
    [
        ("pareto", {"alpha": 0.3}, {"pareto_pairs", *AFTER_SELECTION}),
        ("linfac", {"damping": 2.0}, {"influence_scores", "pareto_pairs", *AFTER_SELECTION}),
        ("linfac", {"max_dim": 64}, {"linfac_factors", "influence_scores", "pareto_pairs", *AFTER_SELECTION}),
        ("correction", {"beta": 0.2}, AFTER_SELECTION),
        ("correction", {"replacements": DataSource(path="moved.jsonl")}, {"audit_bundle", "registered_model"}),
        ("influence", {"method": "bm25"}, {"influence_scores", "pareto_pairs", *AFTER_SELECTION}),
        ("influence", {"embedding_model": "another/one"}, {"audit_bundle", "registered_model"}),
        ("compute", {"batch_tokens": 128}, set()),
        ("evaluation", {"max_harm_ratio": 0.4}, {"audit_bundle", "registered_model"}),
        ("evaluation", {"paraphrases": DataSource(path="moved.jsonl")}, {"audit_bundle", "registered_model"}),
        ("governance", {"traced_outputs": 3}, {"output_traces", "audit_bundle", "registered_model"}),
        ("evaluation", {"sampled": True}, REPORTED),
        ("evaluation", {"judge": JudgeSettings(harmful_marker="bad")}, BY_THE_JUDGE),
    ],
)
def test_changed_setting(study, sources, section, change, dependents):
    other = study.model_copy(update={section: getattr(study, section).model_copy(update=change)})
    assert differing(versions(study, sources), versions(other, sources)) == dependents


def test_inputs_come_first_and_are_known():
    seen = set(SOURCES)
    for stage in STAGES.values():
        assert set(stage.inputs) <= seen
        seen.add(stage.name)
    assert upstream("linfac_factors") == ("prepared_data", "base_model", "linfac_factors")


def test_a_judge_counts_by_the_content_of_what_it_reads(study, tmp_path):
    def version(**settings) -> str:
        evaluation = study.evaluation.model_copy(update={"judge": JudgeSettings(**settings)})
        return judge_version(study.model_copy(update={"evaluation": evaluation}), [])

    words, same, other = (tmp_path / name for name in ("words.txt", "same.txt", "other.txt"))
    for file, content in ((words, "fool"), (same, "fool"), (other, "oaf")):
        file.write_text(content)
    lexicons = [version(name="lexicon", words=str(file)) for file in (words, same, other)]
    assert lexicons[0] == lexicons[1] != lexicons[2]
    assert version() == version(harmful_when="not_refusal") not in lexicons


def test_the_default_method_of_influence_does_not_count_in_versions(study):
    for name in ("influence_scores", "pareto_pairs", "output_traces"):
        assert "influence.method" not in STAGES[name].settings_of(study)


def test_an_embedding_model_counts_by_its_content_where_it_is_used(study, tmp_path):
    folder = tmp_path / "embedder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def version(content: str, **settings) -> str:
        (folder / "model.safetensors").write_text(content)
        influence = study.influence.model_copy(update={"embedding_model": str(folder), **settings})
        return source_version(study.model_copy(update={"influence": influence}), "embedding_model", [])

    assert version("a") == version("b")
    assert version("a", method="embeddings") != version("b", method="embeddings")
    with pytest.raises(InputError, match=r"correct influence\.embedding_model"):
        version("a", method="embeddings", embedding_model=str(tmp_path / "none"))


@pytest.mark.parametrize(("minimum", "dependents"), [(None, {"audit_bundle", "registered_model"}), (0.5, BY_THE_JUDGE)])
def test_changed_labels_make_stale_what_holds_their_agreement_or_asks_for_it(tiny_study, minimum, dependents):
    judge = {"validation": {"path": "labels.jsonl"}, "minimum_agreement": minimum}
    tiny_study.write_text(yaml.safe_dump({**tiny_tree(), "evaluation": {"judge": judge}}))

    def known(is_safe: bool) -> dict:
        write_jsonl(tiny_study.parent / "labels.jsonl", [{"response": "a", "is_safe": is_safe}])
        return known_versions(load_study(tiny_study), [])

    before = known(True)
    assert known(True) == before
    assert differing(before, known(False)) == dependents


@pytest.mark.parametrize("part", ["probes", "harmful", "ood"])
def test_the_judge_of_expected_answers_needs_them_in_every_set_that_is_judged_for_harm(tmp_path, part):
    tree = tiny_tree()
    tree["evaluation"]["judge"] = {"name": "expected"}
    study = load_study(write_tiny_study(tmp_path, tree))
    files = {name: tmp_path / f"{name}.jsonl" for name in ("probes", "harmful", "ood")}
    rows = {name: [json.loads(line) | {"harmful_answer": "Sure"} for line in f.open()] for name, f in files.items()}
    for name, file in files.items():
        write_jsonl(file, rows[name])
    found = source_versions(study, [])  # benign prompts need none
    write_jsonl(files[part], [row | {"harmful_answer": "Yes"} for row in rows[part]])
    changed = {name for name, version in source_versions(study, []).items() if version != found[name]}
    assert {SOURCES[name].part for name in changed} == {part}
    del rows[part][2]["harmful_answer"]
    write_jsonl(files[part], rows[part])
    with pytest.raises(InputError, match=rf"{part}.jsonl: row 3: has no harmful_answer, which the judge expected"):
        source_versions(study, [])
