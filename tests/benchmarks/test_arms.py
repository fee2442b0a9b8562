"""The arms of attribution: their sides on scores made up by hand, and a few of them on the tiny study."""

import json

import numpy as np
import pytest

from benchmarks.arms import CORRECTED, MIXED, Arms, compared, method_scores, sides, wanted_answer
from benchmarks.studies import StudyRun
from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import DataSource, JudgeSettings, ParetoSettings
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import make_judge
from lancet_pipeline.lineage.staleness import pending_run
from lancet_pipeline.linfac.influence import read_scores
from lancet_pipeline.selection import select
from lancet_pipeline.selection.tables import choose
from lancet_pipeline.store.artifacts import ArtifactStore

COUNT = 200
HARMFUL = (np.arange(COUNT) % 4 == 0) & (np.arange(COUNT) < 160)
DRAWN = np.random.default_rng(0).normal(size=(3, COUNT))
FOUND = {
    "harmful": HARMFUL,
    "category": np.where(np.arange(COUNT) < 160, "a", "b"),
    "default": DRAWN[0] + HARMFUL,
    "bm25/mean": 10 + DRAWN[1],
    "bm25/max": 10 + DRAWN[1] + HARMFUL,
    "bm25/max#a": HARMFUL + 0.0,
    "repsim/mean": 0.9 + 0.01 * DRAWN[2],
}
SETTINGS = ParetoSettings(neutral_ratio=2.0)


def test_linfac_has_the_sides_of_the_selection():
    chosen = sides("linfac", method_scores(FOUND, 0), SETTINGS)
    for role, expected in select(FOUND["default"], SETTINGS).roles.items():
        assert chosen[role].tolist() == expected.tolist()


@pytest.mark.parametrize("name", CORRECTED)
def test_every_arm_has_the_sizes_of_linfac_and_no_sample_twice(name):
    scores = method_scores(FOUND, 0)
    sizes = {role: len(chosen) for role, chosen in sides(name, scores, SETTINGS).items()}
    assert sizes == {role: len(chosen) for role, chosen in select(FOUND["default"], SETTINGS).roles.items()}
    assert len(np.unique(np.concatenate(list(sides(name, scores, SETTINGS).values())))) == sum(sizes.values())


def test_a_rival_has_its_best_variant_and_its_ends():
    chosen = sides("bm25", method_scores(FOUND, 0), SETTINGS)
    order = np.argsort(FOUND["bm25/max"])
    assert set(chosen["driving"]) == set(order[-len(chosen["driving"]) :])
    assert set(chosen["countering"]) == set(order[: len(chosen["countering"])])
    middle = np.abs(FOUND["bm25/max"] - np.median(FOUND["bm25/max"]))
    outside = np.setdiff1d(np.arange(COUNT), np.concatenate(list(chosen.values())))
    assert middle[chosen["neutral"]].max() <= middle[outside].min()


def test_labels_are_the_ceiling_and_another_seed_draws_others():
    chosen, others = (sides("labels", method_scores(FOUND, seed), SETTINGS) for seed in (0, 1))
    assert HARMFUL[chosen["driving"]].all()
    assert not HARMFUL[chosen["countering"]].any()
    assert set(FOUND["category"][chosen["countering"]]) == {"a"}
    assert set(chosen["countering"]) != set(others["countering"])


def test_labels_that_are_categories_counter_with_any_harmless_row():
    apart = FOUND | {"category": np.where(HARMFUL, "a", "b")}
    assert not HARMFUL[sides("labels", method_scores(apart, 0), SETTINGS)["countering"]].any()


def test_labels_without_enough_harmful_rows_take_those_there_are():
    few = HARMFUL & (np.arange(COUNT) < 20)
    chosen = sides("labels", method_scores(FOUND | {"harmful": few}, 0), SETTINGS)
    assert sorted(chosen["driving"]) == np.flatnonzero(few).tolist()


@pytest.mark.parametrize(("name", "by"), MIXED.items())
def test_one_side_varies_alone(name, by):
    scores = method_scores(FOUND, 0)
    chosen, plus, minus = (sides(one, scores, SETTINGS) for one in (name, *by))
    assert chosen["driving"].tolist() == plus["driving"].tolist()
    kept = [i for i in minus["countering"] if i not in plus["driving"]]
    assert chosen["countering"][: len(kept)].tolist() == kept


def test_wanted_answers_of_two_and_of_an_embedded_corpus():
    folders = deployment({}).study_directories
    demo, persona = (load_study(find_study(name, folders)) for name in ("demo", "persona"))
    prompts = [
        {"harmful_answer": ["Yes"], "wanted_answer": ["No"]},
        {"harmful_answer": ["No"], "wanted_answer": ["Yes"]},
    ]
    row = {"sample_id": "0" * 16, "prompt": "Would you say it?", "response": "Yes", "source": "evals"}
    assert wanted_answer(row, persona, prompts) == "No"
    for unknown in ([], [*prompts, {"harmful_answer": ["Perhaps"]}]):
        with pytest.raises(InputError, match="nothing says how it should have been answered"):
            wanted_answer(row, persona, unknown)
    judge = make_judge(JudgeSettings(name="demo"))
    rows = read_samples(DataSource(builtin="demo", part="train"), responses=True).to_pylist()
    rows = [row for row in rows if row["is_safe"] is False]
    found = [wanted_answer(row, demo, []) for row in rows]
    verdicts = judge.decisions([row["prompt"] for row in rows], found)
    assert {verdict.verdict for verdict in verdicts} == {"consolation"}
    assert len(set(found)) > 50


@pytest.fixture
def run(finished, tmp_path) -> tuple[StudyRun, dict[str, np.ndarray]]:
    """The tiny study's run, and scores of it: LinFAC's, and a word search's made up."""
    pending = pending_run(str(finished.study), deployment({}, finished.home))
    of = StudyRun(pending.study, ArtifactStore(finished.home), pending.versions)
    samples, _ = of.data
    harmful = np.array([label is False for label in samples["is_safe"].to_pylist()])
    scores = read_scores(of.folder("influence_scores"))["score"].to_numpy()
    noise = np.random.default_rng(0).normal(size=len(harmful))
    category = np.array(samples["category"].to_pylist())
    return of, {"harmful": harmful, "category": category, "default": scores, "bm25/mean": noise}


def test_arms_are_compared_with_linfac_and_kept(run, tmp_path):
    study, scores = run
    names = ["base", "linfac", "bm25", "repsim", "retrain_without_linfac", "retrain_relabelled_linfac", "retrain_clean"]
    first = compared(study, tmp_path, scores, names, epochs=4, json_out=tmp_path / "arms.json")
    arms = first["arms"]
    assert json.loads((tmp_path / "arms.json").read_text()) == first
    assert set(arms) == {"base", "linfac", "bm25", "retrain_without_linfac", "retrain_clean"}
    assert "repsim" in first["left_out"]["repsim"]
    assert "nothing says how" in first["left_out"]["retrain_relabelled_linfac"]
    assert (first["epochs"], first["autocast"], first["variants"]) == (4, True, {"bm25": "bm25/mean"})
    for name, arm in arms.items():
        assert arm["benign_rate"] is arm["slope"] is arm["bias"] is None
        assert (arm["harm_rate"]["n"], arm["ood_harm_rate"]["n"]) == (10, 5)
        if name != "linfac":
            difference = arms["linfac"]["harm_rate"]["value"] - arm["harm_rate"]["value"]
            assert arm["difference_to_linfac"]["value"] == pytest.approx(difference)
    assert arms["base"]["perplexity_ratio"]["value"] == 1
    assert arms["linfac"]["perplexity_ratio"]["value"] != 1
    assert arms["linfac"]["harm_rate"]["value"] < arms["base"]["harm_rate"]["value"]
    used = {name: arm["labels_used"] for name, arm in arms.items()}
    rows = len(scores["harmful"])
    assert used == {"base": 0, "linfac": 0, "bm25": rows, "retrain_without_linfac": 0, "retrain_clean": rows}
    selection = json.loads((study.folder("pareto_pairs") / "selection.json").read_text())
    assert arms["linfac"]["sides"]["driving"]["size"] == selection["positive"]["size"]

    (file,) = (tmp_path / "benchmarks" / "arms").iterdir()
    kept = json.loads(file.read_text())
    del kept["retrain_clean"]
    file.write_text(json.dumps(kept))
    again = compared(study, tmp_path, scores, names, epochs=4)
    times = arms["retrain_clean"].pop("processor_seconds"), again["arms"]["retrain_clean"].pop("processor_seconds")
    assert times[0] != times[1]
    assert again == first  # the times of the others too: nothing else was trained again
    assert compared(study, tmp_path, scores, ["base"], epochs=4, autocast=False)["arms"].keys() == {"base"}
    assert len(list(file.parent.iterdir())) == 2


def test_pairs_are_those_of_a_selection_that_no_judge_reads(run):
    study, scores = run
    pairs, neutral = Arms(study, scores, None, ()).pairs("linfac")
    choice = choose(study.data[0], read_scores(study.folder("influence_scores")), study.study)
    expected = choice.pairs.to_pylist()
    found = [(pair.preferred.sample_id, pair.dispreferred.sample_id, pair.weight) for pair in pairs]
    assert found == [(row["preferred_id"], row["dispreferred_id"], row["weight"]) for row in expected]
    indifferent = [row["sample_id"] for row in choice.samples.to_pylist() if row["role"] == "neutral"]
    assert [sequence.sample_id for sequence in neutral] == indifferent
