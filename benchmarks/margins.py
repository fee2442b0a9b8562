"""Likelihood margins on the paper's data, where no packaged judge is good enough for rates of generated answers.

    python -m benchmarks.margins --data saferlhf --samples 320 --json OUT      # or --data hh

SmolLM2-135M is fine-tuned on a part of the safe and unsafe answers, corrected by IBO without labels, by DPO with them, and trained
again on the safe answers only. Margin: mean negative log-likelihood of a token (nats) of unsafe less safe held-out answers to the
same prompts; larger is safer. Intervals: 95 %, bootstrap over prompts; `change` is that of the margin, paired. Perplexity is of
held-out good answers to benign instructions. Queries are the model's own answers that do not refuse, to prompts of the training
set's kind: a weak stand-in for a judge of harm, which is why the outcome is a margin.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
import yaml

from benchmarks.margin import likelihood_margin, negative_log_likelihoods
from benchmarks.studies import StudyRun, run_study
from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.correction import correct
from lancet_pipeline.correction.corrected_model import labelled_pairs, selected
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.data.tokenization import tokenize_held_out
from lancet_pipeline.errors import LancetError
from lancet_pipeline.lineage.sources import read_source
from lancet_pipeline.models.likelihood import perplexity
from lancet_pipeline.models.runtime import Runtime

PROBES = 48


def main(
    data: Annotated[str, typer.Option(help="saferlhf or hh.")] = "saferlhf",
    samples: Annotated[int, typer.Option(help="Training samples, safe and unsafe.")] = 320,
    held_out: Annotated[int, typer.Option(help="Held-out answers at most.")] = 500,
    folder: Annotated[Path, typer.Option(help="Where the parquet files are.")] = Path("../shared/data"),
    home: Path = Path(".lancet"),
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    path = write_study(data, samples, held_out, folder.absolute(), home)
    run = run_study(path, home, "corrected_model", "reference_models")
    rows = read_samples(run.study.data.harmful, responses=True).to_pylist()
    benign = read_source(run.study, "utility_responses").to_pylist()
    values: dict[str, np.ndarray] = {}
    result: dict[str, Any] = {"data": data, "samples": samples, "threads": torch.get_num_threads(), "models": {}}
    for name in ("base", "corrected", "retrain_clean", "dpo"):
        try:
            model, tokenizer = of_name(run, name)
        except LancetError as error:  # a correction that broke its budget at the first look
            result["models"][name] = {"failed": str(error)}
            continue
        tokens = run.study.compute.batch_tokens
        answered = tokenize_held_out(tokenizer, rows, run.study.data)
        values[name] = negative_log_likelihoods(model, answered, tokens)
        of_answers = [row["is_safe"] for row in rows], [row["prompt"] for row in rows]
        result["models"][name] = {
            "margin": likelihood_margin(values[name], *of_answers),
            "change": likelihood_margin(values[name] - values["base"], *of_answers),
            "perplexity": perplexity(model, tokenize_held_out(tokenizer, benign, run.study.data), tokens),
        }
        print(json.dumps({name: result["models"][name]}), flush=True)
    result["influence"] = run.manifest("influence_scores")["metrics"]
    result["seconds"] = {asset: run.manifest(asset)["seconds"] for asset in ("base_model", "corrected_model")}
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=1))


def of_name(run: StudyRun, name: str) -> tuple[Any, Any]:
    if name in ("base", "corrected"):
        return run.model(f"{name}_model")
    if name == "retrain_clean":
        return run.model("reference_models", name)
    pareto = run.study.pareto.model_copy(update={"pairing": "nearest"})
    study = run.study.model_copy(update={"pareto": pareto})
    model, tokenizer = run.model("base_model")
    table, sequences = run.data
    _, neutral = selected(sequences, run.folder("pareto_pairs"))
    settings = study.correction.model_copy(update={"method": name, "check_every": 2})  # it breaks the budget early
    started = time.monotonic()
    kept = correct(
        model,
        labelled_pairs(table, sequences, study),
        neutral,
        settings,
        seed=study.seed,
        runtime=Runtime.of(study),
    ).kept
    print(json.dumps({name: kept, "seconds": time.monotonic() - started}), flush=True)
    return model, tokenizer


def write_study(data: str, samples: int, held_out: int, folder: Path, home: Path) -> str:
    """compliance_smollm2 on other data."""
    study = load_study(find_study("compliance_smollm2", deployment({}, home).study_directories))
    tree = study.model_dump(mode="json")

    place = home.absolute() / "benchmarks"
    place.mkdir(parents=True, exist_ok=True)
    parts = {"probes": PROBES, "train": samples}
    for part, table in whole_prompts(folder / f"{data}_train.parquet", parts).items():
        pq.write_table(table, place / f"{data}_{part}.parquet")

    def source(file: Path, **settings: Any) -> dict[str, Any]:
        return {"path": str(file), "overlength": "truncate", "blank": "drop", **settings}

    tree |= {"name": f"margins_{data}", "description": "Likelihood margins on the paper's data."}
    tree["data"] |= {
        "train": source(place / f"{data}_train.parquet"),
        "probes": source(place / f"{data}_probes.parquet"),
        "harmful": source(folder / f"{data}_eval.parquet", rows=[0, held_out]),
        "utility": source(folder / "utility.parquet", rows=[0, 80]),
        "max_length": 128,
    }
    tree["correction"] |= {"beta": 0.1, "mu": 4.0, "steps": 24, "retain_per_step": 6, "retain_tokens": 24}
    tree["queries"] |= {"maximum": 24, "minimum": 4}
    tree["evaluation"] |= {"references": ["retrain_clean"]}
    tree["evaluation"]["judge"] |= {"harmful_when": "not_refusal", "validation": None}
    path = place / f"margins_{data}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def whole_prompts(file: Path, sizes: dict[str, int]) -> dict[str, pa.Table]:
    """Disjoint parts of about those sizes, all answers to a prompt in the same one, in an order that the prompts fix."""
    table = pq.read_table(file)
    keys = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in table["prompt"].to_pylist()]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    parts, start = {}, 0
    for name, size in sizes.items():
        stop = start + size
        while stop < len(order) and keys[order[stop]] == keys[order[stop - 1]]:
            stop += 1
        parts[name], start = table.take(order[start:stop]), stop
    return parts


if __name__ == "__main__":
    typer.run(main)
