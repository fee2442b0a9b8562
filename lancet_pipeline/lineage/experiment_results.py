"""What an experiment found: figures at every value of every factor, over its seeds."""

from collections.abc import Iterable, Mapping
from typing import Any

from lancet_pipeline.config.experiment import Experiment
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.figures import main_figures
from lancet_pipeline.lineage.results import Lineage, influence_figures, model_figures
from lancet_pipeline.lineage.stages import REPORTS
from lancet_pipeline.lineage.variant_failures import failure
from lancet_pipeline.store.artifacts import ArtifactStore

_SHOWN = {f"{figure.name}_ratio" if figure.relative else figure.name: figure for figure in main_figures()}
FIGURES = {
    **{name: f"{figure.label} / base" if figure.relative else figure.label for name, figure in _SHOWN.items()},
    "benign_rate": "benign answers right",
    "slope_moved": "slope moved / clean training",
    "bias_off": "bias less clean training's",
    "ood_slope_moved": "OOD slope moved / clean",
    "ood_bias_off": "OOD bias less clean's",
    "contamination_ap": "average precision",
}
"""Figures of a variant -> how they are called. All but the last are of the corrected model. Those of the condition stand beside those of
the reference retrain_clean; what was not measured is None."""

Figures = dict[str, float | None]


def summarise_experiment(
    experiment: Experiment, store: ArtifactStore, versions: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """What `lancet experiment summary --json` prints. Only results of the present settings count.

    Args:
        versions: of each variant, as `staleness.variant_versions` gives them.

    Returns:
        {"experiment", "study", "design", "seeds", "base": {figure: spread}, "factors": {factor: [{"value", "own",
        "figures": {figure: spread}}]}, "variants": {name: {"changes", "seed", "figures"}}, "failures": [{"variant",
        "reason"}], "missing": [name]} with spread = {"mean", "min", "max", "n"}, n variants; None where n would be 0.

    Raises:
        InputError: no variant has been run in this store.
    """
    wanted = {name: {report: known[report] for report in REPORTS} for name, known in versions.items()}
    done = {
        name: store.lineage(name, reports)
        for name, reports in wanted.items()
        if all(store.has(name, report, version) for report, version in reports.items())
    }
    reasons = {name: failure(store.root, name, versions[name]) for name in versions if name not in done}
    failures = [{"variant": name, "reason": reason} for name, reason in reasons.items() if reason is not None]
    if not done and not failures:
        raise InputError(
            f"experiment '{experiment.name}': nothing has been run in {store.place} with the present settings; "
            f"run `lancet experiment run {experiment.name}` first"
        )
    models = {name: model_figures(store, name, lineage) for name, lineage in done.items()}
    figures = {name: _figures(models[name], lineage) for name, lineage in done.items()}
    bases = {lineage["base_model"]["version"]: models[name]["base"] for name, lineage in done.items()}
    return {
        "experiment": experiment.name,
        "study": experiment.base.name,
        "design": experiment.settings.design,
        "seeds": experiment.settings.seeds,
        "base": {
            figure.name: _spread(figure.value(base) for base in bases.values())
            for figure in main_figures()
            if not figure.relative
        },
        "factors": {
            factor: [_at(experiment, factor, value, figures) for value in values]
            for factor, values in experiment.factors.items()
        },
        "variants": {
            variant.name: {
                "changes": dict(variant.changes),
                "seed": variant.study.seed,
                "figures": figures.get(variant.name),
            }
            for variant in experiment.variants
        },
        "failures": failures,
        "missing": [name for name, reason in reasons.items() if reason is None],
    }


def _figures(models: Mapping[str, Mapping[str, Any]], lineage: Lineage) -> Figures:
    """Rates without their intervals: here seeds tell how sure a figure is."""
    found: Figures = {}
    for name, figure in _SHOWN.items():
        value = figure.value(models["corrected"])
        found[name] = value / figure.value(models["base"]) if figure.relative else value
    if "benign_rate" in models["corrected"]:
        found["benign_rate"] = models["corrected"]["benign_rate"]["value"]
    for prefix in ("", "ood_"):
        base, corrected, clean = (
            models.get(name, {}).get(f"{prefix}condition") for name in ("base", "corrected", "retrain_clean")
        )
        if base and corrected and clean:
            span = base["slope"] - clean["slope"]
            found[f"{prefix}slope_moved"] = (base["slope"] - corrected["slope"]) / span if span else None
            found[f"{prefix}bias_off"] = corrected["bias"] - clean["bias"]
    return dict.fromkeys(FIGURES) | found | {"contamination_ap": influence_figures(lineage)["contamination_ap"]}


def _at(experiment: Experiment, factor: str, value: Any, figures: Mapping[str, Figures]) -> dict[str, Any]:
    there = [figures[variant.name] for variant in experiment.variants_at(factor, value) if variant.name in figures]
    return {
        "value": value,
        "own": value == experiment.own_value(factor),
        "figures": {name: _spread(found[name] for found in there) for name in FIGURES},
    }


def _spread(values: Iterable[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known), "n": len(known)}
