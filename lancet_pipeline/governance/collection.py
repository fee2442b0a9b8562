"""The evidence of one correction, gathered from its artifacts."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lancet_pipeline.artifacts import ArtifactStore
from lancet_pipeline.data.expectations import RESULTS
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.gates import all_gates
from lancet_pipeline.evaluation.traced_outputs import read_traces
from lancet_pipeline.governance.decisions import read_decisions
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.study import Study
from lancet_pipeline.summary import REPORTS, influence_figures, model_figures, selection_figures


def collect_evidence(
    store: ArtifactStore, study: Study, versions: Mapping[str, str], judge: dict[str, Any] | None
) -> Evidence:
    """Read everything that a review needs from the artifacts of `versions`; each is verified on the way.

    Args:
        judge: the judge's validation on human labels, where the study has some.
    """
    lineage = store.lineage(
        study.name, {asset: versions[asset] for asset in ("corrected_model", *REPORTS, "output_traces")}
    )

    def folder(asset: str) -> Path:
        return store.read(study.name, asset, versions[asset])

    figures = model_figures(store, study.name, lineage)
    correction = json.loads((folder("corrected_model") / "correction.json").read_text())
    return Evidence(
        study=study.model_dump(mode="json"),
        versions=dict(versions),
        lineage=lineage,
        figures=figures,
        tests={a.removesuffix("_report"): json.loads((folder(a) / "tests.json").read_text()) for a in REPORTS},
        gates=[asdict(gate) | {"passed": gate.passed} for gate in all_gates(figures, study.evaluation)],
        selection=selection_figures(store, study.name, lineage),
        influence=influence_figures(lineage),
        samples=_selected_samples(folder("prepared_data"), folder("influence_scores"), folder("pareto_pairs")),
        queries=pq.read_table(folder("undesirable_outputs") / "queries.parquet").to_pylist(),
        pairs=pq.read_table(folder("pareto_pairs") / "pairs.parquet").to_pylist(),
        generations=[
            {"report": asset.removesuffix("_report"), **row}
            for asset in REPORTS
            for row in pq.read_table(folder(asset) / "generations.parquet").to_pylist()
        ],
        correction_curve=correction["curve"],
        plots={
            f"{asset}_{path.stem}": path.read_bytes()
            for asset in lineage
            for path in sorted((folder(asset) / "plots").glob("*.png"))
        },
        judge=judge,
        decisions=read_decisions(store.root, study.name),
        data_checks={
            asset: json.loads((folder(asset) / RESULTS).read_text())
            for asset in lineage
            if (folder(asset) / RESULTS).is_file()
        },
        traces=read_traces(folder("output_traces")).to_pylist(),
    )


def collect_last_run(store: ArtifactStore, study: str) -> Evidence:
    """The evidence of the last run that made an audit bundle, with the settings that it had and the decisions up to now.

    Raises:
        InputError: no run of the study came so far.
    """
    version = store.current(study, "audit_bundle")
    if version is None or not store.has(study, "audit_bundle", version):
        raise InputError(
            f"study '{study}': no run came as far as audit_bundle in {store.place}; run `lancet run {study}`"
        )
    bundle = store.read(study, "audit_bundle", version) / "bundle"
    settings = Study.model_validate_json((bundle / "study.json").read_text())
    versions = json.loads((bundle / "manifest.json").read_text())["versions"]
    if "output_traces" not in versions:
        raise InputError(
            f"study '{study}': its last run traced no outputs, as earlier versions did; run `lancet run {study}`"
        )
    judge = json.loads((bundle / "figures.json").read_text())["judge"]
    return collect_evidence(store, settings, versions, judge)


def _selected_samples(prepared: Path, scores: Path, pairs: Path) -> list[dict[str, Any]]:
    samples, _ = load_prepared(prepared)
    by_id = {row["sample_id"]: row for row in samples.to_pylist()}
    tokens = {row["sample_id"]: row["tokens"] for row in pq.read_table(scores / "scores.parquet").to_pylist()}
    chosen = pq.read_table(pairs / "samples.parquet").to_pylist()
    return [by_id[row["sample_id"]] | row | {"tokens": tokens[row["sample_id"]]} for row in chosen]
