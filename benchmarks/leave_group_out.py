"""What happens when the samples that a method calls most influential are left out and the model is trained again.

    python -m benchmarks.leave_group_out --json OUT

For each held-out query every method names the tenth of the training data that makes it most likely. A model is trained without
those samples; the fall of the query's log-likelihood, averaged over queries, tells how right the method was. Leaving out
samples at random is the floor. Intervals: 95 %, bootstrap over queries.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.lds import all_scores, mean_likelihoods
from benchmarks.small import TRAINING, trained, walks

METHODS = {
    "linfac_default": "linfac_default",
    "linfac_linear": "linfac linear damping 0.1",
    "linfac_refined": "linfac_refined linear damping 1 steps 4",
    "ekfac": "ekfac damping 0.1",
    "gradient_dot": "gradient_dot",
    "gradient_cosine": "gradient_cosine",
    "random": "random",
}


def main(
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    queries: Annotated[int, typer.Option(min=2)] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Models of each group, that differ in their seed.")] = 3,
    epochs: int = 10,
    samples: int = 256,
    share: float = 0.1,
    seed: int = 0,
) -> None:
    sequences = walks(seed, samples + queries)
    train, held_out = sequences[:samples], sequences[samples:]
    model = trained(train, seed, TRAINING.model_copy(update={"epochs": epochs}))
    scores = all_scores(model, train, held_out, seed)
    whole = mean_likelihoods(train, held_out, repeats, 1000, epochs)
    falls: dict[str, list[float]] = {name: [] for name in METHODS}
    for query in range(queries):
        for name, setting in METHODS.items():
            out = set(np.argsort(-scores[setting][:, query])[: round(share * samples)].tolist())
            kept = [sequence for index, sequence in enumerate(train) if index not in out]
            falls[name].append(
                float(whole[query] - mean_likelihoods(kept, [held_out[query]], repeats, 1000, epochs)[0])
            )
        print(f"query {query + 1} of {queries}", flush=True)
    result = {
        "fall_of_log_likelihood": {name: interval(np.array(values)) for name, values in falls.items()},
        "less_ekfac": {
            name: interval(np.array(values) - np.array(falls["ekfac"]))
            for name, values in falls.items()
            if name != "ekfac"
        },
        "share_left_out": share,
        "repeats": repeats,
        "epochs": epochs,
        "per_query": falls,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "per_query"}, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2))


def interval(values: np.ndarray, resamples: int = 2000) -> dict[str, float]:
    drawn = np.random.default_rng(0).choice(values, (resamples, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


if __name__ == "__main__":
    typer.run(main)
