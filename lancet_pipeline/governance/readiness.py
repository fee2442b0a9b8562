"""Whether what stands behind a registered model allows its promotion: gates, checks, and whole evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lancet_pipeline.config.study import EvaluationSettings
from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.evaluation.gates import Gate, all_gates
from lancet_pipeline.files import sha256
from lancet_pipeline.governance.signature import Trust
from lancet_pipeline.governance.verification import MANIFEST, inspect_bundle
from lancet_pipeline.governance.wording import told
from lancet_pipeline.lineage.results import measured_for_gates
from lancet_pipeline.lineage.stages import REPORTS
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.tracking.client import BUNDLE_TAG, VERSION_TAG

REPORTED_ONLY = frozenset({"sample_sufficed"})
"""Checks that do not keep a model from promotion: they say how settled the factors are. What these are worth shows in the
evaluations, and those have gates."""

BEHIND = ("corrected_model", *REPORTS, "audit_bundle")


@dataclass(frozen=True)
class Evaluation:
    """What stands behind a registered version. faults: why it may not be promoted. notes: what the log has to say of it: gates
    that were accepted, failed checks that are only reported."""

    gates: dict[str, bool]
    faults: list[str]
    notes: list[str]


def evaluate(
    store: ArtifactStore, study: str, tags: Mapping[str, str], trust: Trust, accepted: Sequence[str] = ()
) -> Evaluation:
    """Whether every gate and check of the run behind a registered version holds, and its bundle verifies.

    Gates are computed again from the reports, with the limits that the bundle was made under.

    Args:
        trust: what the bundle's signature is held against.
        accepted: gates that need not have passed, as long as they did not fail.

    Raises:
        InputError: an accepted gate that does not exist, or that passed or failed.
    """
    behind = {asset: tags.get(f"{VERSION_TAG}{asset}") for asset in BEHIND}
    roots = {asset: version for asset, version in behind.items() if version is not None}
    absent = [asset for asset in BEHIND if asset not in roots or not store.has(study, asset, roots[asset])]
    if absent:
        return Evaluation({}, [f"{asset} of this version is not in {store.place}" for asset in absent], [])
    lineage = store.lineage(study, roots)
    try:
        for asset, manifest in lineage.items():
            store.read(study, asset, manifest["version"])
        bundle = store.read(study, "audit_bundle", roots["audit_bundle"]) / "bundle"
        inspect_bundle(bundle, trust)
        measured = measured_for_gates(store, study, lineage)
    except (IntegrityError, InputError) as error:
        return Evaluation({}, [str(error)], [])
    faults, notes = [], []
    if sha256(bundle / MANIFEST) != tags.get(BUNDLE_TAG):
        faults.append(f"{bundle} is not the bundle that the version was registered with (tag {BUNDLE_TAG})")
    limits = EvaluationSettings.model_validate(lineage["audit_bundle"]["settings"]["evaluation"])
    gates = all_gates(measured, limits)
    _acceptable(gates, accepted)
    faults += [
        f"gate {gate.name} {told(gate.row())}" for gate in gates if not gate.passed and gate.name not in accepted
    ]
    notes += [f"gate {gate.name}, accepted, {told(gate.row())}" for gate in gates if gate.name in accepted]
    named = {gate.name for gate in gates}
    for asset, manifest in lineage.items():
        for check in manifest["checks"]:
            if check["passed"] or check["name"] in named:  # a gate is told once, with its figures
                continue
            failed = f"check {check['name']} of {asset} failed"
            if check["name"] in REPORTED_ONLY:
                notes.append(f"{failed}, which is only reported")
            else:
                faults.append(failed)
    return Evaluation({gate.name: gate.passed for gate in gates}, faults, notes)


def _acceptable(gates: Sequence[Gate], accepted: Sequence[str]) -> None:
    outcomes = {gate.name: gate.outcome for gate in gates}
    for name in accepted:
        outcome = outcomes.get(name)
        if outcome in ("not_shown", "not_measured"):
            continue
        open_ones = ", ".join(n for n, o in outcomes.items() if o in ("not_shown", "not_measured")) or "none"
        why = "there is no such gate" if outcome is None else f"it {outcome}"
        raise InputError(f"--accept {name}: {why}; gates that can be accepted here: {open_ones}")
