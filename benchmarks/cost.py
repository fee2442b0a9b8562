"""What a correction costs beside retraining without the harmful samples, as the training data grows.

    python -m benchmarks.cost --sizes 2400,9600 --json OUT

The demo's study on generated corpora of several sizes, trained for as many epochs. Time of queries, factors, scores, selection and
IBO over that of training `retrain_clean`, as the assets' records give it, all in one run each.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer

from benchmarks.studies import run_study, with_seed
from lancet_pipeline.data.embedded import generate_corpus

CORRECTION = ("undesirable_outputs", "linfac_factors", "influence_scores", "pareto_pairs", "corrected_model")


def main(
    sizes: Annotated[str, typer.Option(help="Training samples, separated by commas.")] = "2400,9600",
    home: Path = Path(".lancet/benchmarks/cost"),
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "sizes": []}
    for size in map(int, sizes.split(",")):
        result["sizes"].append(measured(size, home.absolute()))
        print(json.dumps(result["sizes"][-1]), flush=True)
        if json_out is not None:
            json_out.write_text(json.dumps(result, indent=1) + "\n")


def measured(size: int, home: Path) -> dict[str, Any]:
    corpus = generate_corpus("demo", 0, size)
    home.mkdir(parents=True, exist_ok=True)
    changes: dict[str, Any] = {}
    for part in ("train", "probes", "harmful", "ood", "benign", "utility"):
        pq.write_table(pa.Table.from_pylist(getattr(corpus, part)), home / f"{part}_{size}.parquet")
        changes[f"data.{part}"] = {"path": str(home / f"{part}_{size}.parquet")}
    run = run_study(with_seed("demo", 0, home, changes | {"name": f"cost_{size}"}), home, "harmlessness_report")
    seconds = {asset: run.manifest(asset)["seconds"] for asset in (*CORRECTION, "reference_models")}
    cost = sum(seconds[asset] for asset in CORRECTION)
    figures = json.loads((run.folder("harmlessness_report") / "figures.json").read_text())
    return {
        "samples": len(corpus.train),
        "seconds": seconds,
        "share_of_retraining": cost / seconds["reference_models"],
        "harm_rate": {model: values["harm_rate"]["value"] for model, values in figures.items()},
    }


if __name__ == "__main__":
    typer.run(main)
