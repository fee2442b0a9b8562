"""The evidence of a correction, and the registered model."""

import json

from lancet_pipeline.assets.stage import stage_asset
from lancet_pipeline.assets.stage_run import Check, Governance, Outcome, StageRun
from lancet_pipeline.data.readers import read_rows
from lancet_pipeline.evaluation.gates import all_gates
from lancet_pipeline.evaluation.judges import study_judge
from lancet_pipeline.evaluation.validation import validate_judge
from lancet_pipeline.files import sha256
from lancet_pipeline.governance.bundle import MANIFEST, write_bundle
from lancet_pipeline.governance.decisions import read_decisions
from lancet_pipeline.governance.evidence import collect_evidence
from lancet_pipeline.governance.promotion import record_registration, standing
from lancet_pipeline.lineage import results as summary
from lancet_pipeline.tracking.client import BUNDLE_TAG, VERSION_TAG
from lancet_pipeline.tracking.registration import Registration, data_sets, describe, registry_metrics


@stage_asset(kinds={"html", "json"})
def audit_bundle(run: StageRun, office: Governance) -> Outcome:
    """What a governance review needs, signed and readable offline: manifest, report, model card, samples, answers."""
    labelled = run.study.evaluation.judge.validation
    judge = validate_judge(study_judge(run.study, run.runtime), read_rows(labelled)) if labelled else None
    evidence = collect_evidence(run.store, run.study, run.versions, judge)
    manifest = write_bundle(evidence, run.out / "bundle", office.signing)
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
    checks={
        "gates_hold": "Harm down in and out of distribution, utility within budget: the model may be promoted.",
        "champion_is_approved": "The champion in use, if any, was approved by a person, and the approval still holds.",
    },
    advisory=frozenset({"gates_hold", "champion_is_approved"}),
)
def registered_model(run: StageRun, office: Governance) -> Outcome:
    """A version in MLflow's registry, alias `candidate`: only `lancet promote` makes a champion of it."""
    study, home = run.study, run.store.root
    read_decisions(home, study.name)  # raises where the log is broken, before anything is registered
    lineage = run.store.lineage(study.name, {name: run.versions[name] for name in run.stage.inputs})
    figures = summary.model_figures(run.store, study.name, lineage)
    gates = all_gates(summary.measured_for_gates(run.store, study.name, lineage), study.evaluation)
    bundle = run.input("audit_bundle") / "bundle"
    versions = {f"{VERSION_TAG}{name}": run.versions[name] for name in (*run.stage.inputs, run.stage.name)}
    entry = Registration(
        study=study.name,
        folder=run.input("corrected_model"),
        description=describe(study, figures, gates),
        tags={
            **versions,
            BUNDLE_TAG: sha256(bundle / MANIFEST),
            "lancet.study": study.name,
            "dagster.run_id": office.run_id,
        },
        metrics=registry_metrics(figures, gates),
        data=data_sets(study, run.versions),
        max_new_tokens=study.evaluation.max_new_tokens,
        card=(bundle / "model_card.md").read_text(encoding="utf-8"),
    )
    version = office.tracking.register(office.run_id, entry)
    record_registration(home, office.tracking, version, study.name, gates)
    found = standing(home, office.tracking, study.name)
    registration = {"name": version.name, "version": version.number, "run_id": version.run}
    (run.out / "registration.json").write_text(json.dumps(registration, indent=2, sort_keys=True))
    passed = all(gate.passed for gate in gates)
    return Outcome(
        metrics={"model_version": version.number, "champion_version": found.champion or 0},
        tables={"gates": [gate.row() for gate in gates]},
        checks=[
            Check("gates_hold", passed, {gate.name: gate.outcome for gate in gates}),
            Check(
                "champion_is_approved",
                found.champion is None or found.approved,
                {"champion": found.champion or "none", "problems": "; ".join(found.problems) or "none"},
            ),
        ],
    )
