"""Draws docs/figures from what the benchmarks measured.

    python -m benchmarks.figures

Reads benchmarks/measured/*.json, the files that the other benchmarks wrote with `--json`; draws what it finds there.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import typer

matplotlib.use("Agg")
from matplotlib.figure import Figure

OURS, THEIRS, DOT, REST = "#c0392b", "#1f77b4", "#7f8c8d", "#b7b7b7"
NAMES = {
    "linfac": "LinFAC",
    "linfac_default": "LinFAC, default",
    "linfac_refined": "LinFAC, refined",
    "linfac_linear": "LinFAC, all linear",
    "linfac_undivided": "LinFAC, undivided",
    "linfac_over_self_influence": "LinFAC over self-influence",
    "ekfac": "EK-FAC",
    "gradient_dot": "gradient dot",
    "gradient_cosine": "gradient cosine",
    "bm25": "BM25",
    "tf_idf": "TF-IDF",
    "random": "random",
}


def main(measured: Path = Path("benchmarks/measured"), out: Path = Path("docs/figures")) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, (draw, sources) in FIGURES.items():
        paths = [measured / f"{source}.json" for source in sources]
        if not all(path.exists() for path in paths):
            print(f"{name}: no {', '.join(str(path) for path in paths if not path.exists())}; left as it is")
            continue
        figure = draw(*(json.loads(path.read_text()) for path in paths))
        figure.savefig(out / f"{name}.png", dpi=110, metadata={"Software": None})
        print(out / f"{name}.png")


def accuracy_against_cost(exactness: dict[str, Any]) -> Figure:
    """Mean over seeds of every setting's Spearman correlation with exact influence, against its cost."""
    figure, (axes,) = panels(1, "Agreement with exact influence, and what it costs")
    seeds = exactness["per_seed"]

    def mean(values: Callable[[dict[str, Any]], float]) -> float:
        return float(np.mean([values(seed) for seed in seeds]))

    points: dict[str, list[tuple[float, float]]] = {}
    for name in seeds[0]["linfac"]:
        kind = "refined" if "refined" in name else name.split(" damping")[0].split()[0]
        label = f"{name.split()[0]}, refined" if kind == "refined" else kind
        place = (mean(lambda one, name=name: one["passes"][name]), mean(lambda one, name=name: one["linfac"][name]))
        points.setdefault(label, []).append(place)
    markers = {"sublayer_output": ("o", OURS), "linear": ("s", "#e67e22"), "sublayer_input": ("v", REST)}
    for label, places in points.items():
        marker, colour = markers[label.split(",")[0]]
        filled = {"facecolors": "none", "edgecolors": colour} if "refined" in label else {"color": colour}
        axes.scatter(*zip(*places, strict=True), marker=marker, s=26, label=label, **filled)
    passes, best = mean(lambda one: one["passes"]["ekfac"]), mean(lambda one: max(one["ekfac"].values()))
    axes.scatter([passes], [best], marker="D", s=40, color=THEIRS, label="EK-FAC at its best damping")
    axes.scatter([mean(lambda one: one["passes"]["exact"])], [1.0], marker="*", s=70, color="black", label="exact")
    ceiling = mean(lambda one: one["summary"]["exact_block_per_matrix"])
    axes.axhline(ceiling, color="black", linestyle=":", linewidth=1, label="exact, matrices apart")
    axes.set_xscale("log")
    axes.set_xlabel("cost, in plain forward and backward passes over the data", fontsize=9)
    axes.set_ylabel("Spearman correlation", fontsize=9)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def over_damping(every: Sequence[Any], titles: Sequence[str], y: str, note: str = "") -> None:
    """Titles, labels and a logarithmic axis for panels whose x is the damping."""
    for axes, title in zip(every, titles, strict=True):
        axes.set_xscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(f"damping, multiples of the mean eigenvalue{note}", fontsize=8)
    every[0].set_ylabel(y, fontsize=9)
    every[0].legend(frameon=False, fontsize=7)


def accuracy_by_damping(exactness: dict[str, Any]) -> Figure:
    """Units by kinds of factors over damping."""
    kinds = {"sequence": "-", "sequence corrected": "--", "token": "-.", "token corrected": ":"}
    units = ("sublayer_output", "linear", "sublayer_input")
    figure, every = panels(3, "Agreement with exact influence by units, factors and damping", share=True)
    seeds = exactness["per_seed"]
    for axes, unit in zip(every, units, strict=True):
        for kind, style in kinds.items():
            start = f"{unit} {kind} damping "
            rhos = [float(name.removeprefix(start)) for name in seeds[0]["linfac"] if name.startswith(start)]
            values = [np.mean([seed["linfac"][f"{start}{rho:g}"] for seed in seeds]) for rho in rhos]
            axes.plot(rhos, values, style, color=OURS, label=kind, linewidth=1.5)
        rhos = [float(name) for name in seeds[0]["ekfac"] if name != "heuristic"]
        values = [np.mean([seed["ekfac"][f"{rho:g}"] for seed in seeds]) for rho in rhos]
        axes.plot(rhos, values, color=THEIRS, label="EK-FAC", linewidth=1.2)
    over_damping(every, units, "Spearman correlation")
    return figure


def datamodels(lds: dict[str, Any], left_out: dict[str, Any]) -> Figure:
    figure, (first, second) = panels(2, "Retraining as the judge")
    bars(first, lds["lds"], "linear datamodeling score")
    bars(second, left_out["fall_of_log_likelihood"], "fall of log-likelihood without the top tenth, nats")
    return figure


def retrieval_curves(retrieval: dict[str, Any]) -> Figure:
    figure, (first, second) = panels(2, "Harmful training samples of the embedded study")
    for name, curve in retrieval["curves"].items():
        first.plot(curve["recall"], curve["precision"], label=NAMES[name], color=colour(name), linewidth=1.5)
    for line, style in zip(first.lines, ("-", "--", ":", "-", "--", ":", "-.", "-"), strict=True):
        line.set_linestyle(style)
    first.set_xlabel("recall", fontsize=9)
    first.set_ylabel("precision", fontsize=9)
    first.legend(frameon=False, fontsize=7)
    sizes = [int(size) for size in retrieval["by_queries"]]
    rows = list(retrieval["by_queries"].values())
    second.plot(sizes, [row["mean"] for row in rows], color=OURS, marker="o", markersize=4)
    second.fill_between(
        sizes, [row["lowest"] for row in rows], [row["highest"] for row in rows], color=OURS, alpha=0.15
    )
    second.set_xscale("log", base=2)
    second.set_xlabel("queries in the batch", fontsize=9)
    second.set_ylabel("average precision", fontsize=9)
    return figure


def precision_by_damping(demo: dict[str, Any], smollm2: dict[str, Any]) -> Figure:
    """Means over seeds, under two normalisations of the scores; the dots are the dampings chosen without labels."""
    figure, every = panels(2, "Average precision of harmful samples by damping and normalisation")
    titles = ("embedded study", "SmolLM2-135M")
    for axes, found in zip(every, (demo, smollm2), strict=True):
        seeds = found["average_precision_per_seed"]
        for key, shade, label in (("linfac", OURS, "LinFAC"), ("ekfac", THEIRS, "EK-FAC")):
            for divisor, style, text in (("gradient_norm", "-", "over gradient norm"), ("length", "--", "per token")):
                rhos = sorted((rho for rho in seeds[0][f"{key}_by_damping"] if rho != "heuristic"), key=float)
                values = [np.mean([one[f"{key}_by_damping"][rho][divisor] for one in seeds]) for rho in rhos]
                axes.plot(
                    [float(rho) for rho in rhos], values, style, color=shade, linewidth=1.5, label=f"{label} {text}"
                )
        chosen = [(one["chosen_damping"], one["linfac"]) for one in seeds]
        axes.scatter(*zip(*chosen, strict=True), color=OURS, s=18, zorder=3, alpha=0.6)
    over_damping(every, titles, "average precision", "; dots: chosen, by seed")
    return figure


def scaling(measured: dict[str, Any]) -> Figure:
    figure, every = panels(3, "Seconds by width, depth and number of samples")
    for axes, axis in zip(every, ("width", "depth", "samples"), strict=True):
        base = measured["base"]
        points = [one for one in measured["points"] if all(one[k] == v for k, v in base.items() if k != axis)]
        points.sort(key=lambda one: one[axis])
        for key, shade in (("plain", DOT), ("factors", THEIRS), ("scores", OURS)):
            axes.plot([p[axis] for p in points], [p[f"{key}_seconds"] for p in points], "o-", color=shade, label=key)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(axis, fontsize=9)
    every[0].set_ylabel("seconds", fontsize=9)
    every[0].legend(frameon=False, fontsize=8)
    return figure


def correction_front(measured: dict[str, Any]) -> Figure:
    """Harm out of distribution against what utility it cost: means over seeds, with their ranges."""
    figure, every = panels(2, "Corrections of the embedded study: harm against utility, means and ranges over seeds")
    methods = {name: found for name, found in measured["methods"].items() if "perplexity_ratio" in found}
    base = measured["methods"]["base"]
    axis = {"perplexity_ratio": "perplexity over the uncorrected model's", "over_refusal_rate": "over-refusal"}
    for axes, (key, label) in zip(every, axis.items(), strict=True):
        for index, (name, found) in enumerate(methods.items()):
            x, y = found["sampled_ood_harm_rate"], found[key]
            bars = [
                [[value - span[0]], [span[1] - value]]
                for value, span in zip(
                    (x, y), (found["ranges"]["sampled_ood_harm_rate"], found["ranges"][key]), strict=True
                )
            ]
            shade = OURS if name == "ibo" else THEIRS if name == "retrain_clean" else REST
            axes.errorbar(
                x, y, xerr=bars[0], yerr=bars[1], fmt="osD^vPX<>*"[index % 10], color=shade, ms=6, lw=0.7, label=name
            )
        axes.set_xlabel("harm rate, out of distribution, sampled answers", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
    every[1].axhline(base["over_refusal_rate"], color="black", lw=0.6, ls=":")
    every[0].axhline(1.0, color="black", lw=0.6, ls=":")
    every[1].legend(frameon=False, fontsize=7, ncols=2)
    return figure


def long_run(measured: dict[str, Any]) -> Figure:
    """Rates of every behaviour after every round, and what else changed."""
    figure, (rates, utility) = panels(2, "Five corrections in a row: what becomes of each behaviour")
    rounds = measured["mean"]
    steps = [one["round"] for one in rounds]
    for index, name in enumerate(measured["behaviours"]):
        shade = ("#c0392b", "#1f77b4", "#27ae60", "#8e44ad", "#e67e22")[index]
        rates.plot(steps, [one["rates"][name] for one in rounds], "o-", color=shade, label=name)
        rates.axvline(index + 1, color=shade, lw=0.5, ls=":")
    rates.set_xlabel("round (dotted: the behaviour becomes undesirable)", fontsize=8)
    rates.set_ylabel("share of answers", fontsize=8)
    rates.legend(frameon=False, fontsize=7)
    utility.plot(
        steps, [one.get("perplexity_ratio", 1.0) for one in rounds], "o-", color="black", label="perplexity ratio"
    )
    utility.set_xlabel("round", fontsize=8)
    utility.set_ylabel("perplexity of other answers, over the first model's", fontsize=8)
    return figure


def panels(count: int, title: str, *, share: bool = False) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(7.6 if count == 1 else 9.0, 3.4), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    axes = list(np.atleast_1d(figure.subplots(1, count, sharey=share)))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", linewidth=0.4, alpha=0.5)
        one.tick_params(labelsize=8)
    return figure, axes


def bars(axes: Any, found: dict[str, dict[str, float]], label: str) -> None:
    """Horizontal bars with intervals, the first on top."""
    names = list(found)[::-1]
    values = [found[name]["value"] for name in names]
    error = [
        [found[name]["value"] - found[name]["low"] for name in names],
        [found[name]["high"] - found[name]["value"] for name in names],
    ]
    axes.barh([NAMES[name] for name in names], values, xerr=error, capsize=3, color=[colour(n) for n in names])
    axes.set_xlabel(label, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.6)


def colour(name: str) -> str:
    if name.startswith("linfac"):
        return OURS
    return {"ekfac": THEIRS, "gradient_dot": DOT, "gradient_cosine": DOT}.get(name, REST)


FIGURES: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "accuracy_against_cost": (accuracy_against_cost, ("exactness",)),
    "accuracy_by_damping": (accuracy_by_damping, ("exactness",)),
    "datamodels": (datamodels, ("lds", "leave_group_out")),
    "retrieval": (retrieval_curves, ("retrieval",)),
    "precision_by_damping": (precision_by_damping, ("influence_b", "influence_c")),
    "scaling": (scaling, ("scaling",)),
    "correction_front": (correction_front, ("correction_demo",)),
    "long_run": (long_run, ("long_run",)),
}


if __name__ == "__main__":
    typer.run(main)
