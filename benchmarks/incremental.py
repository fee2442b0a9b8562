"""What one per cent of changed samples costs the influence stage, through the graph.

    python -m benchmarks.incremental --json OUT

A study on 50,000 sequences and a tiny model, with `model.reuse`. Its model is trained, its factors are fitted and all samples are
scored; then half a per cent of the samples is edited, half a per cent replaced by others, and the study runs again. Time of the
influence stage is that of `linfac_factors` and `influence_scores` as their records give it: factors, choice of damping, scores.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
import yaml

from benchmarks.studies import StudyRun, run_study

WORDS = 400
STAGES = ("base_model", "linfac_factors", "influence_scores")
INFLUENCE = STAGES[1:]


def main(
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    samples: int = 50_000,
    home: Path = Path(".lancet/benchmarks/incremental"),
) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = [sample(generator) for _ in range(samples)]
    path = write_study(home.absolute(), rows, generator)
    result: dict[str, Any] = {"samples": samples, "threads": torch.get_num_threads()}
    result["all"] = timed(run_study(str(path), home, "influence_scores"))
    for row in range(samples // 200):
        rows[row] |= {"response": rows[row]["response"] + " " + word(generator)}
    rows[-(samples // 200) :] = [sample(generator) for _ in range(samples // 200)]
    write_table(home.absolute() / "train.parquet", rows)
    started = time.monotonic()
    result["one_percent_changed"] = timed(run_study(str(path), home, "influence_scores"))
    result["run_seconds"] = time.monotonic() - started
    result["share_of_full_time"] = (
        result["one_percent_changed"]["influence_seconds"] / result["all"]["influence_seconds"]
    )
    print(json.dumps(result, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2) + "\n")


def timed(run: StudyRun) -> dict[str, Any]:
    manifests = {asset: run.manifest(asset) for asset in STAGES}
    return {
        "influence_seconds": sum(manifests[asset]["seconds"] for asset in INFLUENCE),
        **{asset: manifest["seconds"] for asset, manifest in manifests.items()},
        "samples_reused": manifests["influence_scores"]["metrics"]["reused"],
        "drift": {k: v for k, v in manifests["linfac_factors"]["metrics"].items() if k.startswith("drift_")},
    }


def word(generator: np.random.Generator) -> str:
    return f"word{generator.integers(WORDS)}"


def sample(generator: np.random.Generator) -> dict[str, Any]:
    prompt, response = (" ".join(word(generator) for _ in range(generator.integers(4, 10))) for _ in range(2))
    return {"prompt": prompt, "response": response, "is_safe": bool(generator.integers(5))}


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_study(home: Path, rows: list[dict[str, Any]], generator: np.random.Generator) -> Path:
    """A model trained for a fifth of an epoch, and a judge that takes every answer of it for harmful."""
    write_table(home / "train.parquet", rows)
    prompts = [sample(generator) for _ in range(160)]
    for part, start in (("probes", 0), ("harmful", 40), ("ood", 80), ("utility", 120)):
        write_table(home / f"{part}.parquet", prompts[start : start + 40])
    (home / "words.txt").write_text(".\n")
    tree = {
        "name": "incremental",
        "data": {
            **{
                part: {"path": str(home / f"{part}.parquet")}
                for part in ("train", "probes", "harmful", "ood", "utility")
            },
            "benign": {"path": str(home / "utility.parquet")},
            "max_length": 64,
        },
        "model": {
            "source": "scratch",
            "architecture": {"vocab_size": 900, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2},
            "training": {"epochs": 0.2, "batch_size": 32, "learning_rate": 3e-3},
            "reuse": {"max_changed": 0.02, "max_drift": 0.02},
        },
        "evaluation": {"judge": {"name": "lexicon", "words": str(home / "words.txt")}},
        "compute": {"batch_tokens": 8192},
    }
    path = home / "incremental.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


if __name__ == "__main__":
    typer.run(main)
