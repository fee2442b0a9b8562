"""IBO, or one of the methods that it is compared with."""

from lancet_pipeline import plots
from lancet_pipeline.assets.model import FINITE
from lancet_pipeline.assets.stage import stage_asset
from lancet_pipeline.assets.stage_run import Check, Outcome, StageRun
from lancet_pipeline.correction.corrected_model import write_corrected_model


@stage_asset(
    kinds={"pytorch", "safetensors"},
    checks={**FINITE, "pairs_are_ranked": "Countering samples gained likelihood over driving ones."},
)
def corrected_model(run: StageRun) -> Outcome:
    """The base model, trained to rank countering samples over driving ones and held still on the rest."""
    inputs = [run.input(name) for name in ("base_model", "prepared_data", "pareto_pairs")]
    correction, finite = run.runtime.train(write_corrected_model, run.study, *inputs, run.out)
    curves = {
        name: [(int(row["step"]), row[name]) for row in correction.curve]
        for name in ("correction", "retain", "margin", "perplexity_ratio")
    }
    budget = run.study.correction.retain_budget
    kept = correction.kept
    return Outcome(
        metrics={"best_step": correction.best_step, "retain_perplexity_ratio": kept["perplexity_ratio"]},
        curves=curves,
        plots={
            "losses": plots.curves({k: curves[k] for k in ("correction", "retain")}, "step", "loss", "Correction"),
            "budget": plots.curves(
                {"perplexity ratio": curves["perplexity_ratio"]}, "step", "ratio", "Retain budget", limit=budget
            ),
        },
        tables={"ended": [{"best_step": correction.best_step, "why": correction.ended}]},
        checks=[
            Check("parameters_are_finite", finite),
            Check("pairs_are_ranked", kept["margin"] > 0, {"margin": kept["margin"]}),
        ],
    )
