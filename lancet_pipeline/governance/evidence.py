"""What a governance review of one correction rests on, as plain values, and how it is gathered from artifacts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lancet_pipeline.config.study import SIMILARITIES, Study
from lancet_pipeline.data.expectations import RESULTS
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.gates import all_gates
from lancet_pipeline.evaluation.traced_outputs import read_traces
from lancet_pipeline.governance.decisions import read_decisions
from lancet_pipeline.lineage.results import (
    influence_figures,
    measured_for_gates,
    model_figures,
    selection_figures,
)
from lancet_pipeline.lineage.stages import REPORTS, TABLES
from lancet_pipeline.store.artifacts import ArtifactStore


@dataclass(frozen=True)
class Evidence:
    """Everything that the audit bundle, the report and the model card are made from.

    Rates are `{"value", "low", "high", "n"}`. Positive scores and shares drive the undesirable behaviour, negative
    ones counter it.

    Attributes:
        study: the whole study, JSON-ready.
        versions: version (64 hex digits) of every source and asset.
        lineage: artifact manifest of every asset that was computed: version, code_version, settings, inputs
            {name: version}, seconds, processor_seconds (not of artifacts of older code), created, metrics,
            checks [{name, passed, metadata}], environment, files [{path, bytes, sha256}].
        figures: by model, "base" and "corrected" first, then references: the rates harm_rate, ood_harm_rate and
            over_refusal_rate, the numbers perplexity and distinct_2, and any other of `evaluation.figures`.
        tests: by report (harmlessness, ood, utility), every two models compared on the same prompts:
            {"base vs corrected": {p, difference}, ...} (`statistics.paired_tests`).
        gates: each as `evaluation.gates.Gate.row` gives it: {name, outcome (passed, failed, not_shown, not_measured), passed,
            value, bound, limit, n, explanation}.
        selection: "positive" and "negative" {size, share, tail_index, tail_low, tail_high, tail (heavy, light,
            undecided)}, "neutral" {size}, and "replaced" {size, alone} where people gave good answers (`replaced`).
        influence: contamination_ap and contamination_base_rate (None without labels), word_search_overlap and
            word_search_correlation (`attribution.scoring.word_search`; None where not defined), samples, seconds.
        samples: the selected ones: role (driving, countering, neutral), sample_id, score, source, category, is_safe,
            prompt, response, and tokens [{token, share}], with `position` where the list is not the whole sequence.
        queries: the model's own undesirable outputs: sample_id, prompt, response, verdict.
        pairs: preferred_id, dispreferred_id, preferred_score, dispreferred_score, weight.
        generations: every answer: report (harmlessness, ood, utility), model, decoding (greedy, sampled), wording
            (original, paraphrased), sample_id, prompt, response, verdict, harmful, refusing, and the expected answers
            of the prompt where it has any: harmful_answer, wanted_answer [text].
        correction_curve: step, loss, correction, retain, margin, perplexity_ratio.
        plots: name -> PNG; a name starts with the asset that drew it.
        judge: agreement with human labels {accuracy, kappa, confusion, left_out}, and auc where it scores; None where
            it was not validated.
        traces: harmful outputs of the base model, one by one: report (queries, harmlessness, ood), sample_id, prompt,
            response, verdict, corrected_response, corrected_verdict, and samples: the selected training samples with the
            most influence on this output alone, [{sample_id, role, score, tokens [{position, token, share}]}].
        decisions: what people and the pipeline decided on models of this study, oldest first: sequence, time, study,
            action, actor, reason, model, version, bundle, gates, expires, previous, hash (`governance.decisions`).
        data_checks: by asset, the validation of its table by a Great Expectations suite: name, success, rows, results
            [{type, arguments, success, found}] (`data.expectations.meets`); older artifacts have none.
    """

    study: dict[str, Any]
    versions: dict[str, str]
    lineage: dict[str, dict[str, Any]]
    figures: dict[str, dict[str, Any]]
    tests: dict[str, dict[str, dict[str, Any]]]
    gates: list[dict[str, Any]]
    selection: dict[str, Any]
    influence: dict[str, Any]
    samples: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    generations: list[dict[str, Any]]
    correction_curve: list[dict[str, Any]]
    plots: dict[str, bytes]
    judge: dict[str, Any] | None
    traces: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    data_checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def gates_hold(self) -> bool:
        """Whether there are gates and all of them pass."""
        return bool(self.gates) and all(gate["passed"] for gate in self.gates)

    @property
    def replaced(self) -> dict[str, Any]:
        """How many good answers people gave to prompts of training samples (size), and whether the correction learned from them
        alone."""
        return self.selection.get("replaced", {"size": 0, "alone": False})

    @property
    def by_estimate(self) -> bool:
        """Whether gates look at measured values, not at the bounds of their intervals."""
        return self.study.get("evaluation", {}).get("gates") == "estimate"

    @property
    def exact(self) -> bool:
        """Whether the judge compares answers with expected ones, so that it needs no human labels to be trusted."""
        return self.study.get("evaluation", {}).get("judge", {}).get("name") == "expected"

    @property
    def method(self) -> str:
        """Of attribution."""
        return self.study.get("influence", {}).get("method", "linfac")

    @property
    def signed(self) -> bool:
        """As `config.study.InfluenceSettings.signed`."""
        return self.method not in SIMILARITIES

    def origins(self) -> dict[str, dict[str, Any]]:
        """Where each table of the study comes from, by its source: the settings that it has there, JSON-ready."""
        settings = {
            name: reduce(lambda tree, key: (tree or {}).get(key), table.setting.split("."), self.study)
            for name, table in TABLES.items()
        }
        return {name: origin for name, origin in settings.items() if origin}

    def environments(self) -> list[dict[str, Any]]:
        """Each distinct environment that assets were computed in: {"assets": [name], "packages": {name: version}}."""
        found: dict[str, dict[str, Any]] = {}
        for asset, manifest in self.lineage.items():
            packages = manifest.get("environment", {})
            same = found.setdefault(json.dumps(packages, sort_keys=True), {"assets": [], "packages": packages})
            same["assets"].append(asset)
        return list(found.values())


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
        gates=[gate.row() for gate in all_gates(measured_for_gates(store, study.name, lineage), study.evaluation)],
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
    judge = json.loads((bundle / "figures.json").read_text())["judge"]
    return collect_evidence(store, settings, versions, judge)


def _selected_samples(prepared: Path, scores: Path, pairs: Path) -> list[dict[str, Any]]:
    samples, _ = load_prepared(prepared)
    by_id = {row["sample_id"]: row for row in samples.to_pylist()}
    tokens = {row["sample_id"]: row["tokens"] for row in pq.read_table(scores / "scores.parquet").to_pylist()}
    chosen = pq.read_table(pairs / "samples.parquet").to_pylist()
    return [by_id[row["sample_id"]] | row | {"tokens": tokens[row["sample_id"]]} for row in chosen]
