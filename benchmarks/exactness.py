"""How near each method comes to exact damped Gauss-Newton influence, on small trained models.

    python -m benchmarks.exactness --json OUT

For every seed a model is trained, the exact influence of all training sequences on held-out queries is computed by
conjugate gradients on all linear layers, and each method's scores are compared with it (Spearman, averaged over the
queries). Rivals get their best damping of a sweep, chosen by looking at the exact influence itself. `passes` is what a
method costs, factors and queries and scores together, in plain forward and backward passes over the training sequences.
"""

import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from scipy.stats import spearmanr

from benchmarks.influence import plain_pass
from benchmarks.small import TRAINING, batches, trained, walks
from lancet_pipeline.data.batches import TokenBatch, collate
from lancet_pipeline.linfac import (
    Factors,
    LinfacConfig,
    Query,
    Refinement,
    fit_factors,
    query_gradient,
    score_sequences,
)
from lancet_pipeline.linfac.exact import Blocks, GaussNewton, conjugate_gradients
from lancet_pipeline.linfac.scores import mean_gradient
from lancet_pipeline.models.likelihood import perplexity

T = TypeVar("T")
SAMPLES, QUERIES = 256, 4
DAMPINGS = (0.01, 0.1, 1.0, 10.0)  # multiples of the mean eigenvalue
DEFAULT = f"{LinfacConfig.units} {LinfacConfig.factors} damping {LinfacConfig.damping:g}"
REFINEMENTS = ((32, 2), (64, 2), (64, 4), (128, 4), (256, 2), (256, 4), (256, 8), (256, 16))  # sequences, steps


def main(
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="20 memorises the training data, 4 generalises.")] = 20,
) -> None:
    per_seed = []
    for seed in range(seeds):
        per_seed.append(one_seed(seed, epochs))
        print(f"seed {seed}: " + "  ".join(f"{k} {v:.3f}" for k, v in per_seed[-1]["summary"].items()), flush=True)
    names = per_seed[0]["summary"]
    result = {
        "spearman": {name: float(np.mean([one["summary"][name] for one in per_seed])) for name in names},
        "per_seed": per_seed,
        "epochs": epochs,
    }
    print(json.dumps(result["spearman"], indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2))


def one_seed(seed: int, epochs: int) -> dict[str, Any]:
    """Spearman with exact influence, and cost, of every method and setting; and the best of each kind."""
    sequences = walks(seed, SAMPLES + QUERIES)
    train, held_out = sequences[:SAMPLES], sequences[SAMPLES:]
    model = trained(train, seed, TRAINING.model_copy(update={"epochs": epochs}))
    data = batches(train)
    queries = {query.sample_id: [collate([query])] for query in held_out}
    linear = fit_factors(model, data, LinfacConfig(units="linear"))
    gradients = [mean_gradient(model, batch, linear.units, name)[0] for name, batch in queries.items()]
    right = tuple(torch.stack([gradient[i] for gradient in gradients]) for i in range(len(linear.units)))

    def scores(matrices: Blocks) -> torch.Tensor:
        weights = (1 / QUERIES,) * QUERIES
        return score_sequences(model, data, Query(tuple(queries), linear.units, matrices, weights, linear.model))

    _, plain = timed(lambda: [plain_pass(model, data) for _ in range(5)])
    plain /= 5
    exact, exact_seconds = timed(lambda: scores(exact_solution(model, data, linear, right)))

    def agreement(found: torch.Tensor) -> float:
        columns = zip(found.T.numpy(), exact.T.numpy(), strict=True)
        return float(np.mean([spearmanr(a, b)[0] for a, b in columns]))

    def linfac(factors: Factors, refinement: Refinement | None = None) -> torch.Tensor:
        return score_sequences(model, data, query_gradient(model, queries, factors, refinement=refinement))

    found: dict[str, float] = {}
    passes: dict[str, float] = {}
    for units in ("sublayer_input", "sublayer_output", "linear"):
        for kind in ("sequence", "token"):
            for corrected in (False, True):
                config = LinfacConfig(units=units, factors=kind, eigenvalue_correction=corrected)
                factors, fitting = timed(lambda config=config: fit_factors(model, data, config))
                for rho in DAMPINGS:
                    name = f"{units} {kind}{' corrected' if corrected else ''} damping {rho:g}"
                    result, scoring = timed(lambda factors=factors, rho=rho: linfac(factors.damped(rho)))
                    found[name], passes[name] = agreement(result), (fitting + scoring) / plain
    for units in ("sublayer_output", "linear"):
        factors, fitting = timed(lambda units=units: fit_factors(model, data, LinfacConfig(units=units)))
        for count, steps in REFINEMENTS:
            name, refinement = f"{units} refined on {count} steps {steps}", Refinement(batches(train[:count]), steps)
            result, scoring = timed(lambda factors=factors, refinement=refinement: linfac(factors, refinement))
            found[name], passes[name] = agreement(result), (fitting + scoring) / plain
    ekfac, seconds = ekfac_scores(model, train, held_out, linear.mean_eigenvalue, seed)
    theirs = {name: agreement(result) for name, result in ekfac.items()}
    summary = {
        "default": found[DEFAULT],
        "best": max(found.values()),
        "ekfac": max(theirs.values()),
        "gradient_dot": agreement(scores(right)),
        "exact_block_per_matrix": agreement(scores(block_solution(model, data, linear, right))),
    }
    return {
        "seed": seed,
        "summary": summary,
        "best_setting": max(found, key=found.__getitem__),
        "linfac": found,
        "ekfac": theirs,
        "passes": passes | {"ekfac": seconds / plain, "exact": exact_seconds / plain},
        "perplexity": {
            "training": perplexity(model, train),
            "held_out": perplexity(model, walks(seed, 1024)[SAMPLES:]),
        },
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """A result, and the seconds that it took."""
    started = time.monotonic()
    return work(), time.monotonic() - started


def exact_solution(model: Any, data: Sequence[TokenBatch], factors: Factors, right: Blocks) -> Blocks:
    """(G + lambda I)^-1 right over all units together, to a relative residual of 1e-3."""
    return conjugate_gradients(
        GaussNewton(model, data, factors.units).product,
        right,
        factors.damping_value,
        steps=500,
        tolerance=1e-3,
        precondition=lambda blocks: tuple(factors.precondition(i, block) for i, block in enumerate(blocks)),
    )


def block_solution(model: Any, data: Sequence[TokenBatch], factors: Factors, right: Blocks) -> Blocks:
    """The same with the exact matrix cut to one block a weight matrix: the ceiling of all that treat matrices apart."""
    return tuple(
        conjugate_gradients(
            GaussNewton(model, data, [unit]).product,
            (right[index],),
            factors.damping_value,
            steps=500,
            tolerance=1e-3,
            precondition=lambda blocks, index=index: (factors.precondition(index, blocks[0]),),
        )[0]
        for index, unit in enumerate(factors.units)
    )


def ekfac_scores(
    model: Any, train: Any, held_out: Any, mean: float, seed: int
) -> tuple[dict[str, torch.Tensor], float]:
    """kronfluence's EK-FAC at its heuristic damping and at multiples of the mean eigenvalue; seconds of one of them."""
    from benchmarks.ekfac import Ekfac

    with tempfile.TemporaryDirectory() as folder:
        rival, fitting = timed(lambda: Ekfac(copy.deepcopy(model), train, 128, Path(folder), seed))
        found, scoring = {}, 0.0
        for name, damping in {"heuristic": None, **{f"{rho:g}": rho * mean for rho in DAMPINGS}}.items():
            found[name], scoring = timed(lambda damping=damping: rival.scores(held_out, train, damping, pooled=False))
    return found, fitting + scoring


if __name__ == "__main__":
    typer.run(main)
