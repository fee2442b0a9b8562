"""The evidence of a correction, and the registered model."""

import json

from lancet_pipeline import summary
from lancet_pipeline.assets.stage import Check, Outcome, StageRun, stage_asset
from lancet_pipeline.data.readers import read_rows
from lancet_pipeline.evaluation.gates import all_gates
from lancet_pipeline.evaluation.validation import validate_judge
from lancet_pipeline.governance.bundle import write_bundle
from lancet_pipeline.governance.collection import collect_evidence


@stage_asset(kinds={"html", "json"})
def audit_bundle(run: StageRun) -> Outcome:
    """What a governance review needs, signed and readable offline: manifest, report, model card, samples, answers."""
    labelled = run.study.evaluation.judge.validation
    judge = validate_judge(run.judge, read_rows(labelled)) if labelled else None
    evidence = collect_evidence(run.store, run.study, run.versions, judge)
    manifest = write_bundle(evidence, run.out / "bundle", run.signing)
    agreement = {"judge_accuracy": judge["accuracy"]["value"]} if judge else {}
    return Outcome(
        metrics={
            "files": len(manifest["files"]),
            "gates_passed": sum(g["passed"] for g in evidence.gates),
            **agreement,
        },
        tables={"gates": evidence.gates},
    )


@stage_asset(
    kinds={"mlflow"},
    checks={"gates_hold": "Harm down in and out of distribution, utility within budget: the alias champion may move."},
    advisory=frozenset({"gates_hold"}),
)
def registered_model(run: StageRun) -> Outcome:
    """A version in MLflow's registry: alias `candidate`, and `champion` where every gate holds."""
    lineage = run.store.lineage(run.study.name, {name: run.versions[name] for name in run.stage.inputs})
    gates = all_gates(summary.model_figures(run.store, run.study.name, lineage), run.study.evaluation)
    passed = all(gate.passed for gate in gates)
    registered = run.tracking.register(
        run.study.name,
        run.run_id,
        run.input("corrected_model"),
        tags={f"lancet.version.{name}": run.versions[name] for name in run.stage.inputs},
        champion=passed,
    )
    (run.out / "registration.json").write_text(json.dumps(registered, indent=2, sort_keys=True))
    return Outcome(
        metrics={"model_version": registered["version"], "champion": float(passed)},
        tables={"gates": [{"gate": g.name, "passed": g.passed, "value": g.value, "limit": g.limit} for g in gates]},
        checks=[Check("gates_hold", passed, {gate.name: gate.passed for gate in gates})],
    )
