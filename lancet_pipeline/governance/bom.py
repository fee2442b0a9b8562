"""The bill of materials of a corrected model: CycloneDX 1.6, as JSON."""

# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# The decorator of the library's classes hides what they are from type checkers.

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from lancet_pipeline.evaluation.figures import FIGURES
from lancet_pipeline.governance import limitations as limits
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.lineage.stages import SOURCES

_MODEL_REF, _BASE_REF = "model:corrected", "model:base"
_NOT_PACKAGES = ("python", "platform")


def bill_of_materials(evidence: Evidence) -> dict[str, Any]:
    """The corrected model with its model card, its base model, the data by content version, and the Python packages.

    The same evidence gives the same document: the serial number follows from the versions, the time is that of the
    newest artifact. Figures that are not finite are left out.
    """
    model, base = _model(evidence), _base(evidence)
    data = [_source(name, evidence) for name in SOURCES if name in evidence.versions and name in evidence.origins()]
    installed = sorted({pair for environment in evidence.environments() for pair in environment["packages"].items()})
    packages = [_package(name, version) for name, version in installed if name not in _NOT_PACKAGES]
    besides = [Property(name=f"lancet:{name}", value=value) for name, value in installed if name in _NOT_PACKAGES]
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, "lancet:" + json.dumps(evidence.versions, sort_keys=True)),
        metadata=BomMetaData(timestamp=_newest(evidence), component=model, properties=besides),
        components=[base, *data, *packages],
    )
    bom.register_dependency(model, [base, *data, *packages])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library models components, not yet what is special to models and data: the schema has room for both.
    document["metadata"]["component"]["modelCard"] = _model_card(evidence, [str(part.bom_ref) for part in data])
    for component in document["components"]:
        if component["bom-ref"].startswith("data:"):
            name = component["name"].rpartition("/")[2]
            component["data"] = [{"type": "dataset", "name": name, "description": SOURCES[name].description}]
    return document


def _model(evidence: Evidence) -> Component:
    study = evidence.study
    files = evidence.lineage.get("corrected_model", {}).get("files", [])
    weights = [entry for entry in files if entry["path"].endswith(".safetensors")]
    governance = study.get("governance", {})
    owner, licence = governance.get("owner"), str(governance.get("licence") or "")
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=f"{study['name']}-corrected",
        version=evidence.versions.get("corrected_model"),
        description=study.get("description") or None,
        bom_ref=_MODEL_REF,
        # One file of weights has a hash of its own; several are listed by their names.
        hashes=[_hash(weights[0]["sha256"])] if len(weights) == 1 else [],
        supplier=OrganizationalEntity(name=owner) if owner else None,
        licenses=[DisjunctiveLicense(name=licence)] if licence and licence != "unspecified" else [],
        properties=[Property(name=f"lancet:sha256:{entry['path']}", value=entry["sha256"]) for entry in files],
    )


def _base(evidence: Evidence) -> Component:
    model = evidence.study.get("model", {})
    checkpoint = model.get("checkpoint")
    properties = [Property(name="lancet:source", value=str(model.get("source")))]
    if model.get("revision"):
        properties.append(Property(name="lancet:revision", value=str(model["revision"])))
    if checkpoint:
        properties.append(Property(name="lancet:checkpoint_version", value=evidence.versions.get("checkpoint", "")))
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=PurePath(checkpoint).name if checkpoint else f"{evidence.study['name']}-base",
        version=evidence.versions.get("base_model"),
        description="The model before the correction" + ("" if checkpoint else ", trained from scratch") + ".",
        bom_ref=_BASE_REF,
        properties=properties,
    )


def _source(name: str, evidence: Evidence) -> Component:
    version = evidence.versions[name]
    # A path's directories are the machine's own business.
    given = {
        key: PurePath(str(value)).name if key == "path" else str(value)
        for key, value in evidence.origins()[name].items()
        if value and key in ("hub", "subset", "revision", "builtin", "part", "path", "rows")
    }
    return Component(
        type=ComponentType.DATA,
        name=f"{evidence.study['name']}/{name}",
        version=version,
        description=SOURCES[name].description,
        bom_ref=f"data:{name}",
        hashes=[_hash(version)],
        properties=[
            Property(name="lancet:hash", value="of the rows' content, not of a file"),
            *[Property(name=f"lancet:{key}", value=value) for key, value in given.items()],
        ],
    )


def _package(name: str, version: str) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        purl=PackageURL("pypi", name=name, version=version.partition("+")[0]),
        bom_ref=f"pypi:{name}@{version}",
    )


def _newest(evidence: Evidence) -> datetime:
    created = [manifest["created"] for manifest in evidence.lineage.values() if manifest.get("created")]
    return max(map(datetime.fromisoformat, created), default=datetime.fromtimestamp(0, UTC))


def _model_card(evidence: Evidence, data: list[str]) -> dict[str, Any]:
    study = evidence.study
    governance, model = study.get("governance", {}), study.get("model", {})
    architecture = (model.get("architecture") or {}).get("model_type")
    parameters: dict[str, Any] = {
        "approach": {"type": "self-supervised"},
        "task": "text-generation",
        "architectureFamily": "transformer",
        **({"modelArchitecture": architecture} if architecture else {}),
        "datasets": [{"ref": ref} for ref in data],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    review = limits.review(evidence)
    considerations = {
        "useCases": [governance["purpose"]] if governance.get("purpose") else [],
        "technicalLimitations": [*review["limits"], *review["failures"]],
        "performanceTradeoffs": [review["outcome"]],
        "ethicalConsiderations": [
            {
                "name": governance.get("behaviour") or "Undesirable behaviour",
                "mitigationStrategy": review["verdict"],
            }
        ],
    }
    settings = [
        {"name": f"lancet:correction.{key}", "value": str(value)}
        for key, value in (study.get("correction") or {}).items()
        if value is not None
    ]
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(evidence.figures))},
        "considerations": {key: value for key, value in considerations.items() if value},
        "properties": [*settings, {"name": "lancet:seed", "value": str(study.get("seed"))}],
    }


def _metrics(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each figure of each model; the slice is the model, with the number of prompts where it is a rate."""
    for model, values in figures.items():
        for name, figure in FIGURES.items():
            if name not in values:
                continue
            value, rate = figure.value(values), values[name]
            if figure.rate:
                yield {
                    "type": name,
                    "value": str(value),
                    "slice": f"{model}, n = {rate['n']}",
                    "confidenceInterval": {"lowerBound": str(rate["low"]), "upperBound": str(rate["high"])},
                }
            elif value is not None and math.isfinite(value):
                yield {"type": name, "value": str(value), "slice": model}


def _hash(sha256: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=sha256)
