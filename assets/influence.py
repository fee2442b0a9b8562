"""LinFAC: factors of the model, and the influence of every training sample on the undesirable outputs."""

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import Check, Outcome, StageRun, stage_asset
from lancet_pipeline.data.expectations import meets, score_expectations
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.evaluation.influence import retrieval
from lancet_pipeline.evaluation.queries import read_rows
from lancet_pipeline.linfac import Factors
from lancet_pipeline.linfac.study import fit_study_factors, influence_table, read_scores, write_scores


@stage_asset(
    kinds={"pytorch", "safetensors"},
    checks={
        "factors_are_finite": "No eigenvalue or eigenvector is infinite or not a number.",
        "factors_are_positive_semidefinite": "No eigenvalue is negative beyond rounding.",
        "eigenvectors_are_orthonormal": "Each factor is symmetric: its eigenvectors form an orthonormal basis.",
    },
)
def linfac_factors(run: StageRun) -> Outcome:
    """Kronecker factors of the Gauss-Newton matrix, one pair for every Transformer sublayer."""
    model, _ = run.model("base_model")
    _, sequences = load_prepared(run.input("prepared_data"))
    factors = fit_study_factors(model, sequences, run.study, run.track)
    factors.save(run.out)
    health = factors.health()
    return Outcome(
        metrics={"units": len(factors.units), "sequences": factors.sequences, "damping_value": factors.damping_value},
        plots={"spectrum": plots.spectra(factors.spectra())},
        checks=[
            Check("factors_are_finite", health.finite),
            Check(
                "factors_are_positive_semidefinite", health.lowest_eigenvalue >= 0, {"lowest": health.lowest_eigenvalue}
            ),
            Check(
                "eigenvectors_are_orthonormal",
                health.orthonormality_error < 1e-3,
                {"error": health.orthonormality_error},
            ),
        ],
    )


@stage_asset(
    kinds={"parquet"},
    checks={"every_sample_is_scored_once": "Great Expectations: one finite score for each prepared sample."},
)
def influence_scores(run: StageRun) -> Outcome:
    """Influence of every training sample on the undesirable outputs; positive means that it made them more likely."""
    model, tokenizer = run.model("base_model")
    samples, sequences = load_prepared(run.input("prepared_data"))
    factors = Factors.load(run.input("linfac_factors"), run.device)
    queries = read_rows(run.input("undesirable_outputs") / "queries.parquet")
    table, seconds = influence_table(model, tokenizer, samples, sequences, factors, queries, run.study, run.track)
    write_scores(table, run.out)
    scored = read_scores(run.out)
    valid, found = meets(scored.to_pandas(), score_expectations(len(sequences)), "influence_scores")
    quality, precision_recall = retrieval(samples, scored)
    return Outcome(
        metrics={"samples": len(sequences), "queries": len(queries), "scoring_seconds": seconds, **quality},
        plots=precision_recall,
        tables={
            "most_driving": scored.sort_by([("score", "descending")]).slice(0, 10).drop_columns("tokens").to_pylist()
        },
        checks=[Check("every_sample_is_scored_once", valid, found)],
    )
