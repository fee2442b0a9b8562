"""The Pareto rule."""

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import stage_asset
from lancet_pipeline.assets.stage_run import Check, Outcome, StageRun
from lancet_pipeline.correction.replacements import suffice, write_replacements
from lancet_pipeline.data.expectations import meets, pair_expectations
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.evaluation.gates import GATES, gate, selection_measured
from lancet_pipeline.evaluation.judges import study_judge
from lancet_pipeline.evaluation.sides import judged_sides
from lancet_pipeline.linfac.influence import read_scores
from lancet_pipeline.selection.tables import choose, write_choice


@stage_asset(
    kinds={"parquet"},
    checks={
        "pairs_are_ordered": "Great Expectations: a countering and a driving sample in each pair, with a positive weight.",
        "sides_are_disjoint": "No sample drives, counters and is indifferent at once.",
        "sides_agree": f"Gate: {GATES['sides_agree'].explanation}.",
    },
    advisory=frozenset({"sides_agree"}),
)
def pareto_pairs(run: StageRun) -> Outcome:
    """The few samples that drive the behaviour, the few that counter it, the indifferent rest, and pairs of them."""
    prepared = run.input("prepared_data")
    samples, _ = load_prepared(prepared)
    scores = read_scores(run.input("influence_scores"))
    written = write_replacements(run.study, run.source("replacements"), prepared, run.out)
    replaced, alone = frozenset(row["replaces"] for row in written), suffice(written, run.study)
    choice = choose(samples, scores, run.study, replaced, sparse=alone)
    judge, stop = study_judge(run.study, run.runtime), run.study.pareto.harmful_countering == "stop"
    preferred = written if alone else ()
    judged = judged_sides(samples, choice, judge, written=preferred, stop=stop, track=run.runtime.track)
    if judged is not None:
        countering = len(preferred) or choice.figures["negative"]["size"]
        choice = choose(samples, scores, run.study, replaced | judged.leaving, sparse=alone)
        choice.figures["positive"] |= {"harmful": judged.driving, "judged": choice.figures["positive"]["size"]}
        choice.figures["negative"] |= {"harmful": judged.countering, "judged": countering}
    if written:
        choice.figures["replaced"] = {"size": len(written), "alone": alone}
    write_choice(choice, run.out)
    side = gate("sides_agree", selection_measured(choice.figures), run.study.evaluation)
    valid, found = meets(choice.pairs.to_pandas(), pair_expectations(0 if alone else 1), "pareto_pairs", run.out)
    sides = {"driving": choice.figures["positive"], "countering": choice.figures["negative"]}
    return Outcome(
        metrics={
            f"{side}_{key}": float(v) for side, figures in sides.items() for key, v in figures.items() if key != "tail"
        }
        | {
            "replaced_size": len(written),
            "neutral_size": choice.figures["neutral"]["size"],
            "pairs": choice.pairs.num_rows,
        }
        | {"pairs_same_answer": choice.same_answer},
        plots={"rank_size": plots.rank_size(choice.ranked)},
        tables={"composition": choice.composition},
        checks=[
            Check("pairs_are_ordered", valid, found),
            Check("sides_are_disjoint", choice.disjoint),
            Check(side.name, side.passed, side.shown()),
        ],
    )
