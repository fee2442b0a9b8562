"""Whether what stands behind a registered model allows its promotion: gates, checks, and whole evidence."""

from collections.abc import Mapping
from dataclasses import dataclass

from lancet_pipeline.config.study import EvaluationSettings
from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.evaluation.gates import all_gates
from lancet_pipeline.files import sha256
from lancet_pipeline.governance.signature import Trust
from lancet_pipeline.governance.verification import MANIFEST, inspect_bundle
from lancet_pipeline.lineage.results import model_figures
from lancet_pipeline.lineage.stages import REPORTS
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.tracking.client import BUNDLE_TAG, VERSION_TAG

REPORTED_ONLY = frozenset({"sample_sufficed"})
"""Checks that do not keep a model from promotion: they say how settled the factors are. What these are worth shows in the
evaluations, and those have gates."""

BEHIND = ("corrected_model", *REPORTS, "audit_bundle")


@dataclass(frozen=True)
class Evaluation:
    """What stands behind a registered version. faults: why it may not be promoted. notes: failed checks that are only
    reported."""

    gates: dict[str, bool]
    faults: list[str]
    notes: list[str]


def evaluate(store: ArtifactStore, study: str, tags: Mapping[str, str], trust: Trust) -> Evaluation:
    """Whether every gate and check of the run behind a registered version holds, and its bundle verifies.

    Gates are computed again from the reports, with the limits that the bundle was made under.

    Args:
        trust: what the bundle's signature is held against.
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
    except (IntegrityError, InputError) as error:
        return Evaluation({}, [str(error)], [])
    faults, notes = [], []
    if sha256(bundle / MANIFEST) != tags.get(BUNDLE_TAG):
        faults.append(f"{bundle} is not the bundle that the version was registered with (tag {BUNDLE_TAG})")
    limits = EvaluationSettings.model_validate(lineage["audit_bundle"]["settings"]["evaluation"])
    gates = all_gates(model_figures(store, study, lineage), limits)
    faults += [
        f"gate {gate.name} does not hold: {gate.explanation} is {gate.value:.4g}, the limit {gate.limit:.4g}"
        for gate in gates
        if not gate.passed
    ]
    named = {gate.name for gate in gates}
    for asset, manifest in lineage.items():
        for check in manifest["checks"]:
            if check["passed"] or check["name"] in named:  # a gate is told once, with its figures
                continue
            told = f"check {check['name']} of {asset} failed"
            (notes if check["name"] in REPORTED_ONLY else faults).append(told)
    return Evaluation({gate.name: gate.passed for gate in gates}, faults, notes)
