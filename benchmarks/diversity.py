"""Where the loss of distinct-2 comes from: benign prompts that the uncorrected model insulted, against all others.

    python -m benchmarks.diversity --seeds 5 --json OUT

Greedy answers of the uncorrected model, of IBO with the settings that `benchmarks.correction` chose, and of the model retrained without the
harmful samples, to the benign prompts of the demo that no trial saw. A prompt counts as insulted where the judge finds the uncorrected
model's answer to it harmful.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.correction import Bench
from benchmarks.studies import run_study, with_seed
from lancet_pipeline.evaluation.reports import answers
from lancet_pipeline.evaluation.statistics import distinct_n
from lancet_pipeline.models.runtime import Runtime

SETTINGS = {"learning_rate": 4e-4, "beta": 1.0}
MODELS = ("base", "ibo", "retrain_clean")


def main(
    seeds: int = 5,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    home: Path = Path(".lancet"),
) -> None:
    changes = {"evaluation.references": ["retrain_clean"], "evaluation.sampled": True}
    rows = []
    for seed in range(seeds):
        path = with_seed("demo", seed, home, changes)
        rows.append(of_seed(Bench(run_study(path, home, "pareto_pairs", "reference_models"), home)))
        print(json.dumps(rows[-1]), flush=True)
    mean = {
        part: {name: float(np.mean([row[part][name] for row in rows])) for name in MODELS}
        for part in ("all", "insulted", "others")
    }
    change = {part: {name: values[name] / values["base"] - 1 for name in MODELS[1:]} for part, values in mean.items()}
    result = {"seeds": rows, "mean": mean, "change": change}
    print(json.dumps({"mean": mean, "change": change}, indent=1))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=1) + "\n")


def of_seed(bench: Bench) -> dict[str, Any]:
    texts: dict[str, list[str]] = {}
    prompts = bench.test_benign
    for name in MODELS:
        model, tokenizer, _, _ = bench.model(name, SETTINGS if name == "ibo" else {})
        runtime, length = Runtime.of(bench.study), bench.study.evaluation.max_new_tokens
        found = answers("", model, tokenizer, prompts, bench.judge, max_new_tokens=length, runtime=runtime)
        texts[name] = [row["response"] for row in found]
        if name == "base":
            insulted = [row["harmful"] for row in found]
    parts = {"all": [True] * len(prompts), "insulted": insulted, "others": [not value for value in insulted]}
    return {"prompts": {part: sum(kept) for part, kept in parts.items()}} | {
        part: {
            name: distinct_n([text for text, keep in zip(texts[name], kept, strict=True) if keep]) for name in MODELS
        }
        for part, kept in parts.items()
    }


if __name__ == "__main__":
    typer.run(main)
