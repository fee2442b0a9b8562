"""LinFAC: factors of the model, and the influence of training samples on undesirable outputs, together and singly."""

import json
import time
from typing import Any

from lancet_pipeline import plots
from lancet_pipeline.assets.stage import stage_asset
from lancet_pipeline.assets.stage_run import Check, Outcome, StageRun
from lancet_pipeline.attribution import Case
from lancet_pipeline.attribution.scoring import score_table, study_case, study_scores, word_search
from lancet_pipeline.attribution.scoring import trace_outputs as trace_by_method
from lancet_pipeline.data.expectations import meets, score_expectations, trace_expectations
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.evaluation.judges import study_judge
from lancet_pipeline.evaluation.queries import read_rows
from lancet_pipeline.evaluation.reports import answers
from lancet_pipeline.evaluation.retrieval import retrieval
from lancet_pipeline.evaluation.traced_outputs import (
    all_sound,
    read_traces,
    traced_answers,
    traced_queries,
    write_traces,
)
from lancet_pipeline.files import sha256
from lancet_pipeline.linfac import Factors
from lancet_pipeline.linfac.influence import (
    Influence,
    influence,
    influence_table,
    read_scores,
    write_scores,
    write_study_factors,
)
from lancet_pipeline.linfac.traces import trace_outputs
from lancet_pipeline.selection.tables import ranked_roles

SUFFICIENT_RELIABILITY = 0.8
CHOSEN = "damping.json"


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
    base, prepared = run.input("base_model"), run.input("prepared_data")
    factors, kept = write_study_factors(run.study, base, prepared, run.previous(), run.out, run.runtime)
    health = factors.health()
    return Outcome(
        metrics={
            **(kept.metrics() if kept else {}),
            "units": len(factors.units),
            "sequences": factors.sequences,
            "mean_eigenvalue": factors.mean_eigenvalue,
        },
        plots={"spectrum": plots.spectra(factors.spectra())},
        tables={"reliability": [{"damping": r, "reliability": c} for r, c in factors.reliabilities.items()]},
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
    checks={
        "every_sample_is_scored_once": "Great Expectations: one finite score for each prepared sample.",
        "sample_sufficed": "Scores are estimated to correlate by 0.8 or more with those of unlimited factor samples, at the "
        "damping that was used; met where no sample was left to estimate it on.",
    },
    advisory=frozenset({"sample_sufficed"}),
)
def influence_scores(run: StageRun) -> Outcome:
    """Influence of every training sample on the undesirable outputs; positive means that it made them more likely."""
    samples, sequences = load_prepared(run.input("prepared_data"))
    factors = Factors.load(run.input("linfac_factors"), run.runtime.device)
    outputs, method = run.input("undesirable_outputs"), run.study.influence.method
    queries, controls = read_rows(outputs / "queries.parquet"), read_rows(outputs / "controls.parquet")
    model, tokenizer = run.model("base_model")
    case = study_case(model, tokenizer, samples, sequences, queries, controls, run.study, run.runtime, factors)
    started = time.monotonic()
    found = _by_linfac(run, case, queries, controls) if method == "linfac" else None
    score = study_scores(case) if found is None else found.score
    seconds = time.monotonic() - started
    table = score_table(case, score) if found is None else influence_table(found, samples, sequences, tokenizer)
    write_scores(table, run.out)
    scored = read_scores(run.out)
    valid, details = meets(
        scored.drop_columns(["tokens", "groups"]).to_pandas(),
        score_expectations(len(sequences)),
        "influence_scores",
        run.out,
    )
    quality, precision_recall = retrieval(samples, scored)
    reliability = factors.damped(found.damping).reliability if found and factors.reliabilities else None
    return Outcome(
        metrics={
            "samples": len(sequences),
            "queries": len(queries),
            "controls": len(controls),
            "scoring_seconds": seconds,
            **({} if controls else {"without_contrast": 1}),
            **({} if found is None else found.metrics()),
            **({} if reliability is None else {"reliability": reliability}),
            **word_search(case, score),
            **quality,
        },
        plots=precision_recall,
        tables={
            "most_driving": scored.sort_by([("score", "descending")])
            .slice(0, 10)
            .drop_columns(["tokens", "groups"])
            .to_pylist(),
            **({} if found is None else found.tables(queries)),
        },
        checks=[
            Check("every_sample_is_scored_once", valid, details),
            Check(
                "sample_sufficed",
                reliability is None or reliability >= SUFFICIENT_RELIABILITY,
                {"reliability": reliability, "remedy": "raise linfac.factor_samples"}
                if found
                else {"reliability": f"not available: {method} has no factors"},
            ),
        ],
    )


@stage_asset(
    kinds={"parquet"},
    checks={
        "every_output_is_traced_once": "Great Expectations: one row a harmful output, with the corrected answer judged.",
        "traces_hold_selected_samples": "Every sample behind an output drives or counters, once, with finite shares.",
    },
)
def output_traces(run: StageRun) -> Outcome:
    """Every harmful output traced by itself: the selected samples and tokens behind it, and the corrected answer."""
    limit = run.study.governance.traced_outputs
    queries = read_rows(run.input("undesirable_outputs") / "queries.parquet")[:limit]
    corrected = answers(
        "corrected",
        *run.model("corrected_model"),
        queries,
        study_judge(run.study, run.runtime),
        max_new_tokens=run.study.queries.max_new_tokens,
        runtime=run.runtime,
    )
    outputs = traced_queries(queries, corrected)
    outputs += traced_answers(
        "harmlessness", read_rows(run.input("harmlessness_report") / "generations.parquet"), limit
    )
    outputs += traced_answers("ood", read_rows(run.input("ood_report") / "generations.parquet"), limit)
    roles = ranked_roles(run.input("pareto_pairs"))
    model, tokenizer = run.model("base_model")
    samples, sequences = load_prepared(run.input("prepared_data"))
    factors = Factors.load(run.input("linfac_factors"), run.runtime.device)
    started = time.monotonic()
    if run.study.influence.method == "linfac":
        scores = run.store.manifest(run.study.name, "influence_scores", run.versions["influence_scores"])
        found = trace_outputs(
            model,
            tokenizer,
            sequences,
            roles,
            factors,
            outputs,
            run.study,
            run.runtime,
            damping=scores["metrics"]["damping"],
            typical_norm=scores["metrics"]["typical_norm"],
        )
    else:
        found = trace_by_method(
            Case(model, tokenizer, samples, sequences, (), 0, run.study, run.runtime, factors), roles, outputs
        )
    seconds = time.monotonic() - started
    write_traces(outputs, found, run.out)
    written = read_traces(run.out)
    table = written.drop_columns(["samples"]).to_pandas()
    valid, details = meets(table, trace_expectations(len(outputs)), "output_traces", run.out)
    return Outcome(
        metrics={"outputs": len(outputs), "samples": len(roles), "tracing_seconds": seconds},
        checks=[
            Check("every_output_is_traced_once", valid, details),
            Check("traces_hold_selected_samples", all_sound(written, roles)),
        ],
    )


def _by_linfac(run: StageRun, case: Case, queries: list[dict[str, Any]], controls: list[dict[str, Any]]) -> Influence:
    """LinFAC's scores; the damping that they chose is kept where the study lets factors outlive a change of the data."""
    factors_hash = sha256(run.input("linfac_factors") / "factors.safetensors")
    found = influence(
        case.model,
        case.tokenizer,
        case.sequences,
        case.fitted,
        queries,
        run.study,
        run.runtime,
        controls=controls,
        damping=_known_damping(run, factors_hash),
    )
    if run.study.model.reuse is not None:
        (run.out / CHOSEN).write_text(json.dumps({"damping": found.damping, "factors": factors_hash}))
    return found


def _known_damping(run: StageRun, factors: str) -> float | None:
    """The damping that was chosen for the same factors before, where the study lets them outlive a change of the data: a
    new choice could fall on a neighbour, and then every sample would be scored anew."""
    previous = run.previous()
    if previous is None:
        return None
    chosen = json.loads((previous / CHOSEN).read_text())
    return chosen["damping"] if chosen["factors"] == factors else None
