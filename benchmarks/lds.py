"""Linear datamodeling score: how well influence predicts what models trained on parts of the data do.

    python -m benchmarks.lds --json OUT

A small model is trained on all sequences, and one on each of many random halves of them. For every held-out query a
method predicts the order of its log-likelihood under those models from the sums of its scores over each half; the score is the
Spearman correlation with the true order, averaged over the queries (Park et al. 2023). Intervals: 95 %, bootstrap over
subsets and queries. LinFAC and EK-FAC both get the best damping of a sweep, chosen by this very score; LinFAC as it comes
stands beside.
"""

import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.stats import rankdata

from benchmarks.small import TRAINING, batches, trained, walks
from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.linfac import (
    Factors,
    LinfacConfig,
    Refinement,
    fit_factors,
    query_gradient,
    score_sequences,
    self_influence,
)
from lancet_pipeline.models.likelihood import response_logps

DAMPINGS = (0.01, 0.1, 1.0, 10.0)  # multiples of the mean eigenvalue


def main(
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    subsets: Annotated[int, typer.Option(min=3, help="Halves of the data that a model is trained on.")] = 60,
    repeats: Annotated[int, typer.Option(min=1, help="Models of each half, that differ in their seed.")] = 2,
    samples: int = 256,
    queries: int = 32,
    seed: int = 0,
) -> None:
    sequences = walks(seed, samples + queries)
    train, held_out = sequences[:samples], sequences[samples:]
    members, likelihoods = retrained(train, held_out, subsets, repeats, seed)
    model = trained(train, seed)
    by_method = all_scores(model, train, held_out, seed)
    values = {name: correlations(members @ scores, likelihoods) for name, scores in by_method.items()}

    def best(prefix: str) -> str:
        return max((name for name in values if name.startswith(prefix)), key=lambda name: values[name].mean())

    chosen = {
        "linfac": best("linfac "),
        "linfac_default": "default",
        "linfac_refined": best("refined "),
        "ekfac": best("ekfac "),
        **{name: name for name in ("gradient_dot", "gradient_cosine", "random")},
    }
    lds = {
        name: {"setting": setting, **interval(members @ by_method[setting], likelihoods)}
        for name, setting in chosen.items()
    }
    differences = {
        f"{ours} - {theirs}": interval(
            members @ by_method[chosen[ours]], likelihoods, members @ by_method[chosen[theirs]]
        )
        for ours in ("linfac", "linfac_default", "linfac_refined")
        for theirs in ("ekfac", "gradient_dot")
    }
    result = {
        "lds": lds,
        "differences": differences,
        "all_settings": {name: float(value.mean()) for name, value in values.items()},
        "subsets": subsets,
        "repeats": repeats,
        "queries": queries,
    }
    print(json.dumps({"lds": lds, "differences": differences}, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2))


def retrained(
    train: list[TokenSequence], held_out: list[TokenSequence], subsets: int, repeats: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which sequences are in which half [subsets, N], and log-likelihoods of the queries [subsets, queries]."""
    generator = np.random.default_rng(seed + 1)
    members = np.zeros((subsets, len(train)))
    likelihoods = np.zeros((subsets, len(held_out)))
    queries = collate(held_out)
    started = time.monotonic()
    for row in range(subsets):
        chosen = np.sort(generator.permutation(len(train))[: len(train) // 2])
        members[row, chosen] = 1
        for repeat in range(repeats):
            model = trained([train[i] for i in chosen], seed * 1000 + row * repeats + repeat, TRAINING)
            with torch.no_grad():
                likelihoods[row] += response_logps(model.eval(), queries).numpy() / repeats
        done = time.monotonic() - started
        print(f"subset {row + 1} of {subsets}, about {done / (row + 1) * (subsets - row - 1):.0f} s left", flush=True)
    return members, likelihoods


def all_scores(
    model: Any, train: list[TokenSequence], held_out: list[TokenSequence], seed: int
) -> dict[str, np.ndarray]:
    """Scores [N, queries] of every method and setting."""
    data = batches(train)
    queries = {query.sample_id: [collate([query])] for query in held_out}

    def linfac(factors: Factors, refinement: Refinement | None = None) -> np.ndarray:
        return score_sequences(model, data, query_gradient(model, queries, factors, refinement=refinement)).numpy()

    found = {"default": linfac(fit_factors(model, data, LinfacConfig()))}
    linear = fit_factors(model, data, LinfacConfig(units="linear"))
    for units in ("sublayer_output", "linear"):
        factors = fit_factors(model, data, LinfacConfig(units=units))
        for rho in DAMPINGS:
            found[f"linfac {units} damping {rho:g}"] = linfac(factors.damped(rho))
    for rho in DAMPINGS:
        for steps in (2, 4, 8):
            found[f"refined linear damping {rho:g} steps {steps}"] = linfac(
                linear.damped(rho), Refinement(batches(train), steps)
            )
    flat = linear.damped(1e6)  # so much damping leaves the gradient
    found["gradient_dot"] = linfac(flat)
    found["gradient_cosine"] = found["gradient_dot"] / self_influence(model, data, flat).sqrt().numpy()[:, None]
    found["random"] = np.random.default_rng(seed).normal(size=found["default"].shape)

    from benchmarks.ekfac import Ekfac

    with tempfile.TemporaryDirectory() as folder:
        rival = Ekfac(copy.deepcopy(model), train, 128, Path(folder), seed)
        dampings = {"heuristic": None, **{f"{rho:g}": rho * linear.mean_eigenvalue for rho in DAMPINGS}}
        for name, damping in dampings.items():
            found[f"ekfac damping {name}"] = rival.scores(held_out, train, damping, pooled=False).numpy()
    return found


def correlations(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Spearman correlation over subsets of each query: [subsets, queries] twice, to [queries]."""
    left, right = (rankdata(values, axis=0) for values in (predicted, true))
    left, right = (ranks - ranks.mean(0) for ranks in (left, right))
    return (left * right).sum(0) / np.sqrt((left**2).sum(0) * (right**2).sum(0))


def interval(
    predicted: np.ndarray, true: np.ndarray, minus: np.ndarray | None = None, resamples: int = 1000
) -> dict[str, float]:
    """Mean correlation, or its difference to that of `minus`, with a bootstrap interval over subsets and queries."""

    def value(rows: np.ndarray, columns: np.ndarray) -> float:
        picked = np.ix_(rows, columns)
        own = correlations(predicted[picked], true[picked]).mean()
        return float(own if minus is None else own - correlations(minus[picked], true[picked]).mean())

    generator = np.random.default_rng(0)
    subsets, queries = true.shape
    drawn = [
        value(generator.integers(0, subsets, subsets), generator.integers(0, queries, queries))
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": value(np.arange(subsets), np.arange(queries)), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    typer.run(main)
