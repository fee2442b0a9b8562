"""Which way against the harm is advised, from records made by hand."""

import json
from pathlib import Path

import pytest

from lancet_pipeline.config.loading import PACKAGED_STUDIES, load_study
from lancet_pipeline.config.study import DataSource
from lancet_pipeline.evaluation.statistics import rate
from lancet_pipeline.governance.advice import ARMS, FINDING, NEEDED, TITLES, advise

MEASURED = Path(__file__).parents[2] / "benchmarks" / "measured"
DEMO = load_study(PACKAGED_STUDIES / "demo.yaml")
PLAIN = DEMO.model_copy(update={"evaluation": DEMO.evaluation.model_copy(update={"references": ()})})
GIVEN = DEMO.model_copy(
    update={"model": type(DEMO.model).model_validate({"source": "given", "checkpoint": "somewhere/model"})}
)
SECONDS = dict.fromkeys(NEEDED, 1.0) | {"base_model": 50.0, "corrected_model": 9.0, "influence_scores": 7.0}
SPREAD = {
    "source": {"all.jsonl": (40, 200)},
    "category": {"mishap": (36, 50), "praise": (4, 60), None: (0, 90)},
}


def harm(hits: int, n: int = 200) -> dict:
    return {"harm_rate": rate([True] * hits + [False] * (n - hits))}


def gate(name: str, outcome: str) -> dict:
    return {"name": name, "outcome": outcome, "passed": outcome == "passed"}


def record(corrected: int, retrained: int | None = None, gates: str = "passed", labelled: bool = True) -> dict:
    """A last run whose base model is harmful in 180 of 200 answers."""
    return {
        "base": harm(180),
        "corrected": harm(corrected),
        "references": {} if retrained is None else {"retrain_clean": harm(retrained)},
        "gates": [gate("harm_falls", "passed"), gate("perplexity_holds", gates)],
        "influence": {"contamination_ap": 0.9 if labelled else None},
        "selection": {"positive": 40, "negative": 20, "neutral": 120},
        "paths": {"pareto_pairs": "home/pairs"},
    }


def ways(found: dict) -> dict[str, dict]:
    return {way["name"]: way for way in found["ways"]}


def test_a_good_correction_that_passed_stays():
    found = advise(DEMO, SECONDS, record(0, 0), SPREAD)
    assert found["best"] == "ibo"
    assert ways(found)["ibo"]["gates"] == "passed"
    assert ways(found)["ibo"]["how"] == "lancet promote demo --approver NAME --reason TEXT"
    assert "train again" in found["why"], "what it is better than"


def test_a_correction_that_failed_a_gate_is_not_advised_however_much_harm_it_takes_away():
    found = advise(DEMO, SECONDS, record(0, 20, gates="failed"), SPREAD)
    assert found["best"] == "filter_and_retrain"
    assert ways(found)["ibo"]["gates"] == "failed"
    assert found["why"].startswith("train again without D+")
    assert "failed perplexity_holds" in found["why"]


def test_training_again_wins_by_effect():
    found = advise(DEMO, SECONDS, record(80, 0), SPREAD)
    assert found["best"] == "filter_and_retrain"
    assert "takes away less (55.6 %" in found["why"]
    assert "it costs" not in found["why"], "it costs more"


def test_training_again_wins_by_effect_and_cost():
    found = advise(DEMO, SECONDS | {"base_model": 1.0}, record(80, 0), SPREAD)
    assert found["best"] == "filter_and_retrain"
    assert "takes away less" in found["why"]
    assert "it costs 2.0 s, 'correct the model' 10.0 s" in found["why"]


@pytest.mark.parametrize(
    ("training", "best"), [(50.0, "ibo"), (12.0, "filter_and_retrain"), (0.5, "filter_and_retrain")]
)
def test_within_the_interval_of_the_larger_fall_less_than_half_of_the_cost_wins(training, best):
    """2 of 200 lies in the interval of 0 of 200; the correction costs 10 seconds."""
    assert advise(DEMO, SECONDS | {"base_model": training}, record(2, 0), SPREAD)["best"] == best


def test_of_equal_falls_training_again_wins_where_it_is_much_cheaper():
    found = advise(DEMO, SECONDS | {"base_model": 1.0}, record(0, 0), SPREAD)
    assert found["best"] == "filter_and_retrain"
    assert "is not shown to take away more" in found["why"]
    assert "it costs 2.0 s" in found["why"]


def test_a_record_goes_before_arms_and_arms_before_the_field():
    modest = advise(PLAIN, SECONDS, record(80), SPREAD)
    effects = {name: way["effect"] for name, way in ways(modest).items()}
    assert effects["filter_and_retrain"]["from"] == "arms"
    assert effects["filter_and_retrain"]["value"] > effects["ibo"]["value"]
    assert modest["best"] == "ibo"
    red = advise(PLAIN, SECONDS, record(80, gates="failed"), SPREAD)
    assert effects["drop_source"]["from"] == "field"
    assert red["best"] == "filter_and_retrain"
    assert "as measured on the study demo" in red["why"]


def test_a_correction_that_adds_harm_is_not_advised():
    found = advise(PLAIN, SECONDS, record(190), SPREAD)
    assert found["best"] == "filter_and_retrain"
    assert "'correct the model' takes no harm away" in found["why"]


def test_open_gates_are_told():
    found = advise(DEMO, SECONDS, record(0, 0, gates="not_shown"), SPREAD)
    assert found["best"] == "ibo"
    assert ways(found)["ibo"]["gates"] is None
    assert "open gates: perplexity_holds" in found["why"]
    assert ways(found)["ibo"]["how"] == "lancet summary demo"


def test_a_given_model_is_not_trained_again():
    found = advise(GIVEN, SECONDS, record(0), SPREAD)
    assert [name for name, way in ways(found).items() if way["at_hand"]] == ["ibo"]
    assert all(ways(found)[name]["processor_seconds"] is None for name in TITLES if name not in ("ibo", "replacements"))
    assert "model.source: given" in ways(found)["filter_and_retrain"]["missing"]
    red = advise(GIVEN, SECONDS, record(0, 0, gates="failed"), SPREAD)
    assert red["best"] is None
    assert "failed perplexity_holds" in red["why"]
    assert ways(red)["filter_and_retrain"]["effect"]["from"] == "arms", "its reference was never trained"


@pytest.mark.parametrize(("study", "hint"), [(DEMO, False), (PLAIN, True), (GIVEN, False)])
def test_where_nothing_was_run_it_says_what_to_run(study, hint):
    found = advise(study, SECONDS)
    assert found["best"] is None
    assert found["base_harm_rate"] is None
    assert found["why"].startswith("nothing has been run yet: `lancet run demo`")
    assert ("retrain_clean" in found["why"]) == hint
    assert ways(found)["ibo"]["how"] == "lancet run demo"
    assert ways(found)["ibo"]["effect"]["from"] == "arms"
    assert not ways(found)["drop_source"]["at_hand"]


def test_a_run_that_ended_early_is_to_go_on():
    early = record(0) | {"base": None, "corrected": None, "gates": None}
    found = advise(DEMO, SECONDS, early, SPREAD, "studies/demo.yaml")
    assert found["best"] is None
    assert found["why"].startswith("the last run did not reach the reports: `lancet run studies/demo.yaml`")
    assert ways(found)["drop_source"]["at_hand"]


def test_where_nothing_is_harmful_there_is_nothing_to_correct():
    found = advise(DEMO, SECONDS, record(0) | {"base": harm(0)}, SPREAD)
    assert found["best"] is None
    assert found["why"] == "the base model answers none of 200 prompts harmfully: nothing to correct"


def test_costs_are_those_of_a_way_once_driving_samples_are_found():
    """Three reports of one second on three models."""
    found = advise(DEMO, SECONDS, record(0, 0), SPREAD)
    costs = {name: way["processor_seconds"] for name, way in ways(found).items()}
    assert costs == pytest.approx(
        {
            **dict.fromkeys(("filter_and_retrain", "relabel_and_retrain", "drop_source"), 50.0 + 1.0),
            **dict.fromkeys(("ibo", "replacements"), 9.0 + 1.0),
        }
    )
    assert found["finding_processor_seconds"] == pytest.approx(sum(SECONDS[asset] for asset in FINDING))
    alone = advise(PLAIN, SECONDS, record(0), SPREAD)
    assert ways(alone)["ibo"]["processor_seconds"] == pytest.approx(9.0 + 3 / 2)


def test_an_effect_is_the_share_of_harm_that_goes_by_the_interval_of_the_rate():
    effect = ways(advise(DEMO, SECONDS, record(18, 0), SPREAD))["ibo"]["effect"]
    left = rate([True] * 18 + [False] * 182)
    assert effect == {
        "value": pytest.approx(0.9),
        "low": pytest.approx(1 - left["high"] / 0.9),
        "high": pytest.approx(1 - left["low"] / 0.9),
        "from": "record",
    }


def test_another_method_than_ibo_has_no_measured_arm():
    other = DEMO.model_copy(update={"correction": DEMO.correction.model_copy(update={"method": "npo"})})
    assert ways(advise(other, SECONDS))["ibo"]["effect"] is None


def test_the_sources_of_driving_samples_are_named_with_what_goes():
    way = ways(advise(DEMO, SECONDS, record(0, 0), SPREAD))["drop_source"]
    assert way["at_hand"]
    assert way["how"] == (
        "data.train without category mishap (50 of 200 samples, 36 of 40 of D+), then lancet run demo"
    )


@pytest.mark.parametrize(
    "values",
    [
        {"one": (40, 200)},
        {"one": (20, 100), "two": (20, 100)},
        {None: (40, 100), "two": (0, 100)},
        {"one": (30, 80), "two": (10, 120)},
        {"one": (0, 100), "two": (0, 100)},
    ],
    ids=["one source", "scattered", "without a name", "three quarters", "no driving sample"],
)
def test_scattered_driving_samples_leave_no_source_to_drop(values):
    way = ways(advise(DEMO, SECONDS, record(0, 0), {"category": values}))["drop_source"]
    assert way["missing"] == "a source or category that holds most of D+"


def test_answers_are_asked_of_people_for_every_driving_sample():
    found = ways(advise(DEMO, SECONDS, record(0, 0), SPREAD))
    for name in ("relabel_and_retrain", "replacements"):
        assert not found[name]["at_hand"]
        assert found[name]["people"] == "40 good answers"


def test_an_assisted_correction_is_not_told_as_one_that_people_gave_nothing_to():
    changed = {"replacements": DataSource(path="good.jsonl")}
    assisted = PLAIN.model_copy(update={"correction": PLAIN.correction.model_copy(update=changed)})
    last = record(0)
    last["selection"] |= {"replaced": 30}
    found = advise(assisted, SECONDS, last, SPREAD)
    plain, written = (ways(found)[name] for name in ("ibo", "replacements"))
    assert (plain["effect"]["from"], plain["gates"]) == ("arms", None)
    assert (written["effect"]["from"], written["gates"], written["people"]) == ("record", "passed", "40 good answers")
    assert found["best"] == "replacements"
    assert found["why"].startswith("correct with written good answers: harm falls by 100 %")
    assert "measured on this study;" in f"{found['why']};"
    red = advise(assisted, SECONDS, last | {"gates": [gate("harm_falls", "failed")]}, SPREAD)
    assert red["best"] == "ibo"
    assert "'correct with written good answers' failed harm_falls" in red["why"]


def test_a_correction_by_labels_asks_for_labels():
    by_labels = DEMO.model_copy(update={"correction": DEMO.correction.model_copy(update={"method": "dpo"})})
    assert ways(advise(by_labels, SECONDS, record(0)))["ibo"]["people"] == "labels"


@pytest.mark.parametrize(
    ("last", "people", "how"),
    [
        (record(0), "labels", "evaluation: {references: [retrain_clean]}"),
        (record(0, 0), "labels", "data.train without the rows labelled unsafe"),
        (
            record(0, labelled=False),
            "nothing",
            "data.train without the samples of role driving in home/pairs/samples.parquet",
        ),
    ],
    ids=["labels, not measured", "measured", "no labels"],
)
def test_training_again_is_measured_first_where_labels_allow_it(last, people, how):
    way = ways(advise(DEMO, SECONDS, last, SPREAD))["filter_and_retrain"]
    assert (way["people"], way["how"]) == (people, f"{how}, then lancet run demo")


def test_advice_is_json():
    found = advise(DEMO, SECONDS, record(0, 0), SPREAD)
    assert json.loads(json.dumps(found)) == found
    assert found["ways"][0].keys() == {
        *("name", "at_hand", "missing", "processor_seconds", "people", "effect", "gates", "how"),
    }


@pytest.mark.parametrize(("way", "method"), [("ibo", "ibo"), ("filter_and_retrain", "retrain_clean")])
def test_packaged_arms_are_what_the_benchmark_measured(way, method):
    arm = ARMS[way]
    methods = json.loads((MEASURED / f"correction_{arm['study']}.json").read_text())["methods"]
    base, left = (methods[name]["intervals"]["in_distribution"] for name in ("base", method))
    falls = [1 - left[end] / base["value"] for end in ("value", "high", "low")]
    assert [arm[key] for key in ("harm_rate_fall", "low", "high")] == pytest.approx(falls, abs=1e-4)
