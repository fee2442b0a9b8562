"""Linear datamodeling score: how well influence predicts what models trained on parts of the data do.

    python -m benchmarks.lds --json OUT

For every seed a small model is trained on all sequences, and some on each of many random halves of them. For every held-out
query a method predicts the order of its log-likelihood under those models from the sums of its scores over each half; the
score is the Spearman correlation with the true order, averaged over queries and seeds (Park et al. 2023). Intervals: 95 %,
bootstrap over subsets and queries. `linfac` and `ekfac` are each the best of a sweep of settings, chosen by this very score;
EK-FAC also gets this project's division by self-influence, which kronfluence does not offer, RepSim the state before the response
beside that at its end, and BM25 pairs of tokens beside tokens as its words. `linfac_default` is `LinfacConfig()` as it comes.
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
from lancet_pipeline.attribution.representations import cosines, hidden_states
from lancet_pipeline.attribution.words import bm25_scores
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
from lancet_pipeline.models.likelihood import perplexity, response_logps

DAMPINGS = (0.001, 0.01, 0.1, 1.0, 10.0)  # multiples of the mean eigenvalue
RIVALS = ("ekfac", "gradient_dot", "gradient_cosine", "repsim", "bm25", "random")
OURS = ("linfac", "linfac_default", "linfac_refined")


def main(
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    subsets: Annotated[int, typer.Option(min=3, help="Halves of the data that models are trained on.")] = 60,
    repeats: Annotated[int, typer.Option(min=1, help="Models of each half, that differ in their seed.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Languages, each with its models.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="10 is where held-out perplexity is lowest.")] = 10,
    samples: int = 256,
    queries: int = 32,
) -> None:
    runs, perplexities = [], []
    for seed in range(seeds):
        sequences = walks(seed, samples + queries)
        train, held_out = sequences[:samples], sequences[samples:]
        members, likelihoods = retrained(train, held_out, subsets, repeats, seed, epochs)
        model = trained(train, seed, TRAINING.model_copy(update={"epochs": epochs}))
        perplexities.append({"training": perplexity(model, train), "held_out": perplexity(model, held_out)})
        scores = all_scores(model, train, held_out, seed)
        runs.append(({name: members @ score for name, score in scores.items()}, likelihoods))
    values = {
        name: float(np.mean([correlations(predicted[name], true).mean() for predicted, true in runs]))
        for name in runs[0][0]
    }

    def best(prefix: str) -> str:
        return max((name for name in values if name.startswith(f"{prefix} ")), key=values.__getitem__)

    chosen = {name: name if name in values else best(name) for name in (*OURS, *RIVALS)}

    def pairs(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(predicted[chosen[name]], true) for predicted, true in runs]

    lds = {name: {"setting": chosen[name], **interval(pairs(name))} for name in chosen}
    differences = {f"{ours} - {theirs}": interval(pairs(ours), pairs(theirs)) for ours in OURS for theirs in RIVALS[:2]}
    result = {
        "lds": lds,
        "differences": differences,
        "all_settings": values,
        "subsets": subsets,
        "repeats": repeats,
        "queries": queries,
        "seeds": seeds,
        "epochs": epochs,
        "perplexity": perplexities,
    }
    print(json.dumps({"lds": lds, "differences": differences}, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2))


def retrained(
    train: list[TokenSequence], held_out: list[TokenSequence], subsets: int, repeats: int, seed: int, epochs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which sequences are in which half [subsets, N], and log-likelihoods of the queries [subsets, queries]."""
    generator = np.random.default_rng(seed + 1)
    members = np.zeros((subsets, len(train)))
    likelihoods = np.zeros((subsets, len(held_out)))
    started = time.monotonic()
    for row in range(subsets):
        chosen = np.sort(generator.permutation(len(train))[: len(train) // 2])
        members[row, chosen] = 1
        part = [train[i] for i in chosen]
        likelihoods[row] = mean_likelihoods(part, held_out, repeats, seed * 10_000 + row * repeats, epochs)
        done = time.monotonic() - started
        if (row + 1) % 10 == 0:
            left = done / (row + 1) * (subsets - row - 1)
            print(f"seed {seed}: subset {row + 1} of {subsets}, about {left:.0f} s left", flush=True)
    return members, likelihoods


def mean_likelihoods(
    train: list[TokenSequence], held_out: list[TokenSequence], repeats: int, seed: int, epochs: int
) -> np.ndarray:
    """Log-likelihood of each query [queries], averaged over models trained on `train`."""
    queries, total = collate(held_out), np.zeros(len(held_out))
    for repeat in range(repeats):
        model = trained(train, seed + repeat, TRAINING.model_copy(update={"epochs": epochs}))
        with torch.no_grad():
            total += response_logps(model.eval(), queries).numpy()
    return total / repeats


def all_scores(
    model: Any, train: list[TokenSequence], held_out: list[TokenSequence], seed: int
) -> dict[str, np.ndarray]:
    """Scores [N, queries] of every method and setting."""
    data = batches(train)
    queries = {query.sample_id: [collate([query])] for query in held_out}
    found: dict[str, np.ndarray] = {}

    def scores(factors: Factors, refinement: Refinement | None = None) -> np.ndarray:
        return score_sequences(model, data, query_gradient(model, queries, factors, refinement=refinement)).numpy()

    def sweep(name: str, factors: Factors) -> None:
        for rho in DAMPINGS:
            damped = factors.damped(rho)
            found[f"{name} damping {rho:g}"] = score = scores(damped)
            own = self_influence(model, data, damped).sqrt().numpy()
            found[f"{name} damping {rho:g}, over self-influence"] = score / own[:, None]

    linear = fit_factors(model, data, LinfacConfig(units="linear"))
    for units in ("sublayer_output", "linear"):
        for corrected in (False, True):
            config = LinfacConfig(units=units, eigenvalue_correction=corrected)
            sweep(f"linfac {units}{' corrected' if corrected else ''}", fit_factors(model, data, config))
    found["linfac_default"] = scores(fit_factors(model, data, LinfacConfig()))
    for rho in (0.1, 1.0, 10.0):
        for steps in (1, 4):
            refinement = Refinement(data, steps)
            found[f"linfac_refined linear damping {rho:g} steps {steps}"] = scores(linear.damped(rho), refinement)
    flat = linear.damped(1e12)  # so much damping leaves the gradient
    found["gradient_dot"] = scores(flat)
    found["gradient_cosine"] = found["gradient_dot"] / self_influence(model, data, flat).sqrt().numpy()[:, None]
    for name, before in (("response", False), ("prompt", True)):
        states = (hidden_states(model, sequences, 4096, before=before) for sequences in (train, held_out))
        found[f"repsim {name}"] = cosines(*states)
    for name, length in (("tokens", 1), ("pairs", 2)):
        found[f"bm25 {name}"] = bm25_scores(*([words(s, length) for s in part] for part in (train, held_out)))
    found["random"] = np.random.default_rng(seed).normal(size=found["gradient_dot"].shape)

    from benchmarks.ekfac import Ekfac

    with tempfile.TemporaryDirectory() as folder:
        rival = Ekfac(copy.deepcopy(model), train, 128, Path(folder), seed)
        found["ekfac damping heuristic"] = rival.scores(held_out, train, None, pooled=False).numpy()
        sweep("ekfac", rival.factors(model))
    return found


def words(sequence: TokenSequence, length: int) -> str:
    """Every `length` tokens in a row as one word."""
    tokens = [f"t{token}" for token in sequence.input_ids]
    return " ".join("".join(tokens[start : start + length]) for start in range(len(tokens) - length + 1))


def correlations(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Spearman correlation over subsets of each query: [subsets, queries] twice, to [queries]."""
    left, right = (rankdata(values, axis=0) for values in (predicted, true))
    left, right = (ranks - ranks.mean(0) for ranks in (left, right))
    return (left * right).sum(0) / np.sqrt((left**2).sum(0) * (right**2).sum(0))


def interval(
    pairs: list[tuple[np.ndarray, np.ndarray]],
    minus: list[tuple[np.ndarray, np.ndarray]] | None = None,
    resamples: int = 1000,
) -> dict[str, float]:
    """Mean correlation over seeds, or its difference to that of `minus`, with a bootstrap interval.

    pairs: predicted and true log-likelihoods of each seed, [subsets, queries]; subsets and queries are drawn anew, the
    same ones for both sides of a difference.
    """
    generator = np.random.default_rng(0)

    def value(draw: bool) -> float:
        total = 0.0
        for number, (predicted, true) in enumerate(pairs):
            rows, columns = (generator.integers(0, n, n) if draw else np.arange(n) for n in true.shape)
            picked = np.ix_(rows, columns)
            total += correlations(predicted[picked], true[picked]).mean()
            if minus is not None:
                other, _ = minus[number]
                total -= correlations(other[picked], true[picked]).mean()
        return float(total / len(pairs))

    low, high = np.quantile([value(True) for _ in range(resamples)], [0.025, 0.975])
    return {"value": value(False), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    typer.run(main)
