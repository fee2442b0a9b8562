"""The figures of a study's last run, read from its artifacts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lancet_pipeline.config.loading import leaves
from lancet_pipeline.config.study import EvaluationSettings
from lancet_pipeline.correction.losses import METHODS
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.figures import CONDITIONS, SIDE_EFFECTS, figures_of, measured
from lancet_pipeline.evaluation.gates import all_gates, selection_measured
from lancet_pipeline.lineage.stages import REPORTS, STAGES
from lancet_pipeline.store.artifacts import ArtifactStore

Lineage = Mapping[str, Mapping[str, Any]]


def last_run(store: ArtifactStore, study: str) -> dict[str, dict[str, Any]]:
    """Manifests of the last run: of the furthest asset it reached and of all that it was computed from.

    Raises:
        InputError: the study has not been run in this store.
    """
    root = reached(store, study)
    if root is None:
        raise InputError(f"study '{study}': nothing has been run in {store.place}; run `lancet run {study}` first")
    return store.lineage(study, root | _other_reports(store, study, store.lineage(study, root)))


def reached(store: ArtifactStore, study: str) -> dict[str, str] | None:
    """The furthest asset of the last run: {name: version}; None where nothing has been run."""
    for asset in reversed(STAGES):
        version = store.current(study, asset)
        if version is not None and store.has(study, asset, version):
            return {asset: version}
    return None


def _other_reports(store: ArtifactStore, study: str, lineage: Lineage) -> dict[str, str]:
    """Versions of the reports on the corrected model of `lineage` that stand beside it, not before it."""
    if "corrected_model" not in lineage:
        return {}
    corrected, found = lineage["corrected_model"]["version"], {}
    for asset in set(REPORTS) - lineage.keys():
        version = store.current(study, asset)
        if version is None or not store.has(study, asset, version):
            continue
        if store.manifest(study, asset, version)["inputs"]["corrected_model"] == corrected:
            found[asset] = version
    return found


def model_figures(store: ArtifactStore, study: str, lineage: Lineage) -> dict[str, dict[str, Any]]:
    """Figures of each evaluated model, the three reports merged: {"base": {"harm_rate": rate, ...}, ...}, with
    `condition` and `ood_condition` (`condition.condition_figures`) and `side_effects` (`side_effects.side_effects`) where they were
    measured."""
    merged: dict[str, dict[str, Any]] = {}
    for asset, folder in _reports(store, study, lineage):
        for model, values in json.loads((folder / "figures.json").read_text()).items():
            keys = {figure.name: figure.stored for figure in figures_of(asset)}
            keys |= {CONDITIONS[asset]: "condition"} if asset in CONDITIONS else {SIDE_EFFECTS: SIDE_EFFECTS}
            found = {name: values[key] for name, key in keys.items() if key in values}
            merged.setdefault(model, {}).update(found)
    return merged


def paired_tests(store: ArtifactStore, study: str, lineage: Lineage) -> dict[str, dict[str, Any]]:
    """Every two models compared on the same prompts: {"harm_rate": {"base vs corrected": {"p", "difference"}}, ...}."""
    return {
        figures_of(asset)[0].name: json.loads((folder / "tests.json").read_text())
        for asset, folder in _reports(store, study, lineage)
    }


def measured_for_gates(store: ArtifactStore, study: str, lineage: Lineage) -> dict[str, dict[str, Any]]:
    """What the reports measured of base and corrected model for `gates.all_gates`, by figure."""
    found = {}
    for asset, folder in _reports(store, study, lineage):
        if not (folder / "measured.json").is_file():
            raise InputError(f"study '{study}': {asset} was made by an earlier version; run `lancet run {study}` again")
        values = json.loads((folder / "measured.json").read_text())
        keys = {figure.name: figure.stored for figure in figures_of(asset)}
        found |= {name: values[key] for name, key in keys.items() if key in values}
    measured = selection_measured(selection_figures(store, study, lineage)) if "pareto_pairs" in lineage else None
    return found | ({"countering_harm": dict(measured)} if measured else {})


def gates_of(store: ArtifactStore, study: str, lineage: Lineage) -> list[dict[str, Any]] | None:
    """Every gate (`gates.Gate.row`) under the limits of the last audit bundle; None where the run did not reach it, or is one of
    an earlier version."""
    if "audit_bundle" not in lineage or lineage["audit_bundle"]["code_version"] != STAGES["audit_bundle"].code_version:
        return None
    limits = EvaluationSettings.model_validate(lineage["audit_bundle"]["settings"]["evaluation"])
    return [gate.row() for gate in all_gates(measured_for_gates(store, study, lineage), limits)]


def _reports(store: ArtifactStore, study: str, lineage: Lineage) -> list[tuple[str, Path]]:
    return [(asset, store.read(study, asset, lineage[asset]["version"])) for asset in REPORTS if asset in lineage]


def judge_agreement(store: ArtifactStore, study: str, lineage: Lineage) -> dict[str, Any] | None:
    """The judge's validation on human labels as the audit bundle holds it; None where there is none."""
    if "audit_bundle" not in lineage:
        return None
    folder = store.read(study, "audit_bundle", lineage["audit_bundle"]["version"])
    return json.loads((folder / "bundle" / "figures.json").read_text())["judge"]


def influence_figures(lineage: Lineage) -> dict[str, Any]:
    metrics = lineage["influence_scores"]["metrics"]
    return {
        "contamination_ap": metrics.get("contamination_ap"),
        "contamination_base_rate": metrics.get("contamination_base_rate"),
        "word_search_overlap": metrics.get("word_search_overlap"),
        "word_search_correlation": metrics.get("word_search_correlation"),
        "samples": metrics["samples"],
        "seconds": lineage["influence_scores"]["seconds"] + lineage["linfac_factors"]["seconds"],
    }


def selection_figures(store: ArtifactStore, study: str, lineage: Lineage) -> dict[str, Any]:
    folder = store.read(study, "pareto_pairs", lineage["pareto_pairs"]["version"])
    return json.loads((folder / "selection.json").read_text())


def label_budget(
    lineage: Lineage, figures: Mapping[str, Mapping[str, Any]], selection: Mapping[str, Any] | None
) -> dict[str, dict[str, int | None]]:
    """How much of what people said stands behind each figure of a summary, and behind the selection and the correction: `labels` of
    training samples (None where an earlier version did not count them), `replacements`, and prompts with `expected_answers`
    or `wanted_answers`. A figure that needs nothing of it has an empty entry.

    Args:
        figures: by model (`model_figures`).
    """
    settings = dict(leaves({asset: manifest["settings"] for asset, manifest in lineage.items()}))
    labels = lineage["prepared_data"]["metrics"].get("labelled_samples") if "prepared_data" in lineage else 0
    expected = settings.get("undesirable_outputs.evaluation.judge.name") == "expected"
    replaced = (selection or {}).get("replaced", {"size": 0, "alone": False})
    budget: dict[str, dict[str, int | None]] = {}
    if selection:
        probes = int(lineage["undesirable_outputs"]["metrics"]["probes"]) if expected else 0
        budget["selection"] = {"labels": 0, "replacements": replaced["size"], "expected_answers": probes}
    if "corrected_model" in lineage:
        labelled = METHODS[settings["corrected_model.correction.method"]].labelled and not replaced["alone"]
        budget["correction"] = {"labels": labels if labelled else 0, "replacements": replaced["size"]}
    for figure in measured(figures) if figures else ():
        asked = figures["base"][figure.name if figure.rate else figures_of(figure.report)[0].name]["n"]
        needed = figure.answers and (expected or figure.answers != "expected_answers")
        budget[figure.name] = {figure.answers: asked} if needed else {}
    if "contamination_ap" in lineage.get("influence_scores", {}).get("metrics", {}):
        budget["contamination_ap"] = {"labels": labels}
    if figures.keys() - {"base", "corrected"}:
        budget["references"] = {"labels": labels}
    return budget


def summarise(store: ArtifactStore, study: str) -> dict[str, Any]:
    """What `lancet summary --json` prints; parts that the last run did not reach are null."""
    lineage = last_run(store, study)
    figures = model_figures(store, study, lineage)
    selection = selection_figures(store, study, lineage) if "pareto_pairs" in lineage else None
    order = [asset for asset in STAGES if asset in lineage]
    budget = label_budget(lineage, figures, selection)
    return {
        "study": study,
        "base": figures.pop("base", None),
        "corrected": figures.pop("corrected", None),
        "references": figures,
        "gates": gates_of(store, study, lineage),
        "tests": paired_tests(store, study, lineage),
        "judge": judge_agreement(store, study, lineage),
        "judge_name": lineage.get("undesirable_outputs", {}).get("settings", {}).get("evaluation.judge.name"),
        "influence": influence_figures(lineage) if "influence_scores" in lineage else None,
        "selection": selection and {side: values["size"] for side, values in selection.items()},
        "label_budget": budget,
        "seconds": {asset: lineage[asset]["seconds"] for asset in order},
        "processor_seconds": {asset: lineage[asset].get("processor_seconds") for asset in order},
        "versions": {asset: lineage[asset]["version"] for asset in order},
        "paths": {asset: str(store.folder(study, asset, lineage[asset]["version"])) for asset in order},
    }
