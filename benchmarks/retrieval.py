"""How well the harmful training samples are found: LinFAC, other gradients, text retrieval, and how many queries it takes.

    python -m benchmarks.retrieval --json OUT

The embedded study is trained once for every seed; its harmful samples are the known causes of the model's harmful
answers, which are the queries. (`benchmarks.influence` has EK-FAC and the costs on the same models.)
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.metrics import precision_recall_curve

from benchmarks.influence import FLAT, Setup, precision, shape_b, sweep
from benchmarks.text import bm25, tf_idf
from lancet_pipeline.linfac import (
    LinfacConfig,
    choose_damping,
    fit_factors,
    query_gradient,
    score_sequences,
    self_influence,
)
from lancet_pipeline.linfac.influence import default_budget, unlabelled_budget
from lancet_pipeline.linfac.scores import floored

SIZES = (1, 2, 4, 8, 16, 32, 64)
DRAWS = 10


def main(
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    home: Path = Path(".lancet"),
    seeds: int = 5,
) -> None:
    runs = []
    for seed in range(seeds):
        runs.append(one_model(shape_b(home, seed), seed))
        print(json.dumps({k: runs[-1][k] for k in ("average_precision", "by_queries")}), flush=True)
    names, sizes = runs[0]["average_precision"], runs[0]["by_queries"]
    result = {
        "average_precision": {name: spread([run["average_precision"][name] for run in runs]) for name in names},
        "by_queries": {size: spread([run["by_queries"][size] for run in runs]) for size in sizes},
        "curves": runs[0]["curves"],
        "share": runs[0]["share"],
        "seeds": seeds,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "curves"}, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2))


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "lowest": min(values), "highest": max(values)}


def one_model(setup: Setup, seed: int) -> dict[str, Any]:
    """Average precision of every method, and of LinFAC by the number of queries in the batch."""
    model, queries = setup.model, setup.query_batches
    factors = fit_factors(model, setup.batches(default_budget(len(setup.train)), seed), LinfacConfig())
    chosen = choose_damping(
        model, queries, setup.batches(unlabelled_budget(len(setup.train)), seed + 1), factors
    ).damping
    found, norms = sweep(setup, factors, {chosen, FLAT})
    own = self_influence(model, setup.batches(), factors.damped(chosen)).sqrt().numpy()
    documents, asked = list(setup.documents), list(setup.asked)
    scores = {
        "linfac": found[chosen] / floored(norms),
        "linfac_over_self_influence": found[chosen] / own,
        "linfac_undivided": found[chosen],
        "gradient_dot": found[FLAT],
        "gradient_cosine": found[FLAT] / floored(norms),
        "bm25": bm25(documents, asked),
        "tf_idf": tf_idf(documents, asked),
        "random": np.random.default_rng(seed).normal(size=len(norms)),
    }
    curves = {}
    for name, column in scores.items():
        values, recall, _ = precision_recall_curve(setup.harmful, column)
        kept = np.linspace(0, len(recall) - 1, 200).astype(int)
        curves[name] = {"recall": recall[kept].tolist(), "precision": values[kept].tolist()}
    return {
        "average_precision": {name: precision(setup, column) for name, column in scores.items()},
        "by_queries": by_number_of_queries(setup, factors.damped(chosen), norms, seed),
        "curves": curves,
        "share": float(np.mean(setup.harmful)),
    }


def by_number_of_queries(setup: Setup, factors: Any, norms: np.ndarray, seed: int) -> dict[int, float]:
    """Mean average precision over random batches of the queries; a batch's scores are the mean of its queries' scores."""
    groups = {}
    for number, batch in enumerate(setup.query_batches):
        for row in range(len(batch)):
            groups[f"{number}-{row}"] = [batch.rows(torch.tensor([row]))]
    query = query_gradient(setup.model, groups, factors)
    each = score_sequences(setup.model, setup.batches(), query).numpy()
    generator = np.random.default_rng(seed)
    return {
        size: float(
            np.mean(
                [
                    precision(setup, each[:, generator.permutation(each.shape[1])[:size]].mean(1) / norms)
                    for _ in range(DRAWS if size < each.shape[1] else 1)
                ]
            )
        )
        for size in SIZES
        if size <= each.shape[1]
    }


if __name__ == "__main__":
    typer.run(main)
