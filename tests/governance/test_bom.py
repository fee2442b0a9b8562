import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from lancet_pipeline.governance.bom import bill_of_materials
from lancet_pipeline.governance.evidence import Evidence


@pytest.fixture(scope="module")
def document(make_evidence: Callable[[], Evidence]) -> dict:
    return bill_of_materials(make_evidence())


def invalid(document: dict) -> object:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))


def test_document_fits_the_schema_and_the_schema_would_say_so_if_not(document: dict) -> None:
    assert invalid(document) is None
    card = document["metadata"]["component"]["modelCard"]
    assert invalid({**document, "metadata": {"component": {"type": "x", "name": "y", "modelCard": card}}}) is not None


def test_model_has_a_card_with_every_rate_and_its_interval(document: dict, evidence: Evidence) -> None:
    model = document["metadata"]["component"]
    assert (model["type"], model["version"]) == ("machine-learning-model", evidence.versions["corrected_model"])
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    rate = evidence.figures["corrected"]["harm_rate"]
    told = next(m for m in metrics if m["type"] == "harm_rate" and m["slice"].startswith("corrected"))
    assert float(told["value"]) == rate["value"]
    assert float(told["confidenceInterval"]["upperBound"]) == rate["high"]
    limitations = " ".join(model["modelCard"]["considerations"]["technicalLimitations"])
    assert "one seed" in limitations


def test_data_carry_their_content_version_and_the_model_names_them(document: dict, evidence: Evidence) -> None:
    data = {c["bom-ref"]: c for c in document["components"] if c["type"] == "data"}
    named = document["metadata"]["component"]["modelCard"]["modelParameters"]["datasets"]
    assert {entry["ref"] for entry in named} == data.keys()
    assert len(data) == 7
    train = data["data:training_data"]
    assert train["hashes"] == [{"alg": "SHA-256", "content": evidence.versions["training_data"]}]
    assert train["data"][0]["type"] == "dataset"


def test_packages_and_base_model_are_components(document: dict, evidence: Evidence) -> None:
    packages = {c["name"]: c["version"] for c in document["components"] if c["type"] == "library"}
    assert packages == {"torch": "2.9.1", "transformers": "5.0.0"}
    (base,) = [c for c in document["components"] if c["type"] == "machine-learning-model"]
    assert base["version"] == evidence.versions["base_model"]
    depends = {entry["ref"]: entry.get("dependsOn", []) for entry in document["dependencies"]}
    assert base["bom-ref"] in depends[document["metadata"]["component"]["bom-ref"]]


def test_serial_number_and_time_follow_from_the_evidence(document: dict, evidence: Evidence) -> None:
    assert bill_of_materials(evidence) == document
    assert document["metadata"]["timestamp"] == max(m["created"] for m in evidence.lineage.values())
    evidence.versions["training_data"] = "0" * 64
    assert bill_of_materials(evidence)["serialNumber"] != document["serialNumber"]


def test_checkpoint_revision_and_no_directory_of_the_machine_are_told(evidence: Evidence) -> None:
    evidence.study["model"] |= {"checkpoint": "/secret/place/SmolLM2", "revision": "abc", "source": "finetune"}
    evidence.study["data"]["train"] = {"path": "/secret/place/train.parquet"}
    document = bill_of_materials(evidence)
    assert invalid(document) is None
    assert "/secret" not in json.dumps(document)
    (base,) = [c for c in document["components"] if c["type"] == "machine-learning-model"]
    assert base["name"] == "SmolLM2"
    assert {"name": "lancet:revision", "value": "abc"} in base["properties"]


def test_bundle_holds_the_same_document(pristine: Path, document: dict) -> None:
    assert json.loads((pristine / "bom.cdx.json").read_text()) == document
