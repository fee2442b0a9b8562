"""A home with corrected models in it that were registered, made up without training anything."""

import json
import shutil
from pathlib import Path

from governance.conftest import build_evidence, digest, measured_of

from lancet_pipeline.config.environment import Signing
from lancet_pipeline.config.loading import PACKAGED_STUDIES, load_study
from lancet_pipeline.evaluation.gates import all_gates
from lancet_pipeline.files import sha256
from lancet_pipeline.governance.bundle import MANIFEST, write_bundle
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.promotion import record_registration
from lancet_pipeline.lineage.stages import REPORTS
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.tracking.client import RegisteredVersion, Tracking

STUDY = load_study(PACKAGED_STUDIES / "demo.yaml")
FIGURES = {
    "harmlessness_report": {"harm_rate": "harm_rate"},
    "ood_report": {"harm_rate": "ood_harm_rate"},
    "utility_report": {name: name for name in ("over_refusal_rate", "perplexity", "distinct_2")},
}

MEASURED = {
    "harmlessness_report": {},
    "ood_report": {},
    "utility_report": {
        name: name
        for name in ("garbled_rate", "benign_harm_rate", "opening_share", "category_divergence", "category_fall")
    },
}


def empty_registry(folder: Path) -> Path:
    """A home whose MLflow database is there, so that tests can copy it instead of making one each."""
    Tracking(home=str(folder)).client().search_registered_models()
    return folder


def register(
    home: Path,
    name: str = "first",
    *,
    harm: float | None = None,
    failed_checks: tuple[tuple[str, str], ...] = (),
    measured: dict[str, dict] | None = None,
) -> RegisteredVersion:
    """A new candidate of the study demo. harm: its harm rate. failed_checks: (asset, check). measured: what gates read that
    differs from what its figures say, by figure."""
    store, evidence = ArtifactStore(home), build_evidence({})
    if harm is not None:
        evidence.figures["corrected"]["harm_rate"]["value"] = harm
    known = measured_of(evidence.figures) | (measured or {})
    versions = {
        asset: digest(f"{name} {asset}") for asset in ("pareto_pairs", "corrected_model", *REPORTS, "audit_bundle")
    }

    def write(asset: str, inputs: tuple[str, ...], fill, settings: dict | None = None) -> None:
        checks = [{"name": check, "passed": False, "metadata": {}} for owner, check in failed_checks if owner == asset]
        record = {
            "inputs": {i: versions[i] for i in inputs},
            "settings": settings or {},
            "checks": checks,
            "metrics": {},
        }
        with store.write("demo", asset, versions[asset], record) as folder:
            fill(folder)

    write("pareto_pairs", (), lambda folder: _write_selection(folder, name, evidence))
    write("corrected_model", ("pareto_pairs",), lambda folder: (folder / "weights.txt").write_text(name))
    for report in REPORTS:
        write(
            report, ("corrected_model",), lambda folder, report=report: _write_figures(folder, report, evidence, known)
        )

    def bundle(folder: Path) -> None:
        write_bundle(evidence, folder / "bundle", Signing("key", home / "keys" / "signing_key.pem", create=True))

    settings = {"evaluation": STUDY.evaluation.model_dump(mode="json")}
    write("audit_bundle", ("corrected_model", *REPORTS), bundle, settings)
    manifest = store.folder("demo", "audit_bundle", versions["audit_bundle"]) / "bundle" / MANIFEST
    tags = {f"lancet.version.{asset}": version for asset, version in versions.items() if asset != "pareto_pairs"}
    tags |= {"lancet.bundle": sha256(manifest), "lancet.version.registered_model": digest(f"{name} registered_model")}
    version = _new_version(home, tags)
    gates = all_gates(known, STUDY.evaluation)
    record_registration(home, Tracking(home=str(home)), version, "demo", gates)
    return version


def _write_selection(folder: Path, name: str, evidence: Evidence) -> None:
    (folder / "pairs.txt").write_text(name)
    (folder / "selection.json").write_text(json.dumps(evidence.selection))


def copy_home(home: Path, target: Path) -> Path:
    return Path(shutil.copytree(home, target))


def _new_version(home: Path, tags: dict[str, str]) -> RegisteredVersion:
    client = Tracking(home=str(home)).client()
    if not client.search_registered_models("name = 'lancet-demo'"):
        client.create_registered_model("lancet-demo")
    made = client.create_model_version("lancet-demo", (home / "nowhere").as_uri(), tags=tags)
    return RegisteredVersion("lancet-demo", int(made.version), "", tags)


def _write_figures(folder: Path, report: str, evidence: Evidence, known: dict[str, dict]) -> None:
    figures = {
        model: {theirs: values[ours] for theirs, ours in FIGURES[report].items()}
        for model, values in evidence.figures.items()
    }
    (folder / "figures.json").write_text(json.dumps(figures))
    keys = {**FIGURES[report], **MEASURED[report]}
    (folder / "measured.json").write_text(json.dumps({key: known[name] for key, name in keys.items() if name in known}))
