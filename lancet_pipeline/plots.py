"""Plots as PNG bytes, the same for the Dagster UI, MLflow and the report."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

DRIVING, COUNTERING, NEUTRAL, BASE = "#c0392b", "#1f77b4", "#9aa0a6", "#444444"


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, title: str, *, limit: float | None = None
) -> bytes:
    """Lines of (x, y) points, with a dashed horizontal line at `limit`."""
    figure, axes = _figure(title, x, y)
    for name, points in series.items():
        axes.plot([p[0] for p in points], [p[1] for p in points], label=name, linewidth=1.6)
    if limit is not None:
        axes.axhline(limit, color=BASE, linestyle="--", linewidth=1, label=f"limit {limit:g}")
    return _png(figure, legend=len(series) > 1 or limit is not None)


def rank_size(sides: Mapping[str, tuple[Sequence[float], int]]) -> bytes:
    """Influence by rank on log-log axes: a Pareto tail is a straight line. `sides`: name -> (falling values, chosen)."""
    figure, axes = _figure("Influence by rank", "rank", "|influence|")
    for (name, (values, chosen)), colour in zip(sides.items(), (DRIVING, COUNTERING), strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.6, label=f"{name} ({chosen} chosen)")
        axes.axvline(max(chosen, 1), color=colour, linestyle=":", linewidth=1)
    axes.loglog()
    return _png(figure, legend=True)


def precision_recall(scores: Sequence[float], relevant: Sequence[bool], average_precision: float) -> bytes:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(relevant, scores)
    share = sum(relevant) / len(relevant)
    figure, axes = _figure(f"Known-harmful samples: average precision {average_precision:.2f}", "recall", "precision")
    axes.step(recall, precision, where="post", color=DRIVING, linewidth=1.6)
    axes.axhline(share, color=BASE, linestyle="--", linewidth=1, label=f"share {share:.2f}")
    axes.set_ylim(0, 1.03)
    return _png(figure, legend=True)


def histogram(groups: Mapping[str, Sequence[float]], x: str, title: str) -> bytes:
    figure, axes = _figure(title, x, "samples")
    axes.hist(list(groups.values()), bins=40, stacked=True, label=list(groups))
    axes.set_yscale("symlog")
    return _png(figure, legend=len(groups) > 1)


def spectra(values: Mapping[str, Sequence[float]]) -> bytes:
    """Falling eigenvalues on log-log axes, one line a kind of factor."""
    figure, axes = _figure("Eigenvalues of the factors, mean over layers", "index", "eigenvalue")
    for name, eigenvalues in values.items():
        axes.plot(range(1, len(eigenvalues) + 1), eigenvalues, linewidth=1.4, label=name)
    axes.loglog()
    return _png(figure, legend=True)


def rates(bars: Mapping[str, Mapping[str, Any]], title: str) -> bytes:
    """Rates with their intervals, one bar a model."""
    figure, axes = _figure(title, "", "share of answers")
    values = [rate["value"] for rate in bars.values()]
    errors = _errors(bars.values(), "value", "low", "high")
    colours = [BASE, COUNTERING, *[NEUTRAL] * len(bars)][: len(bars)]
    axes.bar(list(bars), values, yerr=errors, capsize=5, color=colours, width=0.55)
    for position, value in enumerate(values):
        axes.annotate(f"{value:.2f}", (position, value), (8, 4), textcoords="offset points", fontsize=8)
    axes.set_ylim(0, 1.08)
    return _png(figure)


def sensitivity(
    factor: str, values: Sequence[Mapping[str, Any]], names: Mapping[str, str], base: Mapping[str, Any]
) -> bytes:
    """A panel for each of `names` (figure -> label) that was measured: mean at every value of a factor, with the range over seeds.

    Args:
        values: of `sensitivity.summarise_experiment`, of one factor.
        base: spreads of the base model, drawn as dashed lines.
    """
    measured = {name: label for name, label in names.items() if any(entry["figures"][name] for entry in values)}
    rows = max(1, -(-len(measured) // 3))
    figure = Figure(figsize=(9.0, 2.4 * rows), layout="constrained")
    figure.suptitle(
        f"{factor}: mean and range over seeds (dashed: base model; dotted: the study's own value)", fontsize=10
    )
    labels = [f"{entry['value']:g}" if _number(entry["value"]) else str(entry["value"]) for entry in values]
    ordered = all(_number(entry["value"]) for entry in values)
    places = figure.subplots(rows, 3, squeeze=False).flat
    for axes in places[len(measured) :]:
        axes.axis("off")
    for axes, (name, label) in zip(places, measured.items(), strict=False):
        _style(axes, label, "", "")
        found = [(place, entry["figures"][name]) for place, entry in enumerate(values) if entry["figures"][name]]
        axes.errorbar(
            [place for place, _ in found],
            [spread["mean"] for _, spread in found],
            yerr=_errors([spread for _, spread in found], "mean", "min", "max"),
            fmt="o-" if ordered else "o",
            color=COUNTERING,
            capsize=4,
            markersize=4,
            linewidth=1.4,
        )
        for place, entry in enumerate(values):
            if entry["own"]:
                axes.axvline(place, color=NEUTRAL, linestyle=":", linewidth=1)
        if base.get(name):
            axes.axhline(base[name]["mean"], color=BASE, linestyle="--", linewidth=1)
        axes.set_xticks(range(len(values)), labels)
        axes.set_xlim(-0.5, len(values) - 0.5)
    return _png(figure)


def _errors(spreads: Iterable[Mapping[str, Any]], middle: str, low: str, high: str) -> list[list[float]]:
    """Lengths of error bars below and above; the interval of a rate of 0 or 1 can miss the value by a rounding error."""
    pairs = [(spread[middle] - spread[low], spread[high] - spread[middle]) for spread in spreads]
    return [[max(0.0, pair[side]) for pair in pairs] for side in (0, 1)]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _figure(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, title, x, y)
    return figure, axes


def _style(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)


def _png(figure: Figure, legend: bool = False) -> bytes:
    if legend:
        figure.axes[0].legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
