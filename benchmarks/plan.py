"""Constants of the cost model behind `lancet plan`, and its error on studies that they were not fitted on.

    OMP_NUM_THREADS=1 python -m benchmarks.plan --held-out demo --json OUT

Small studies of several widths, depths, lengths and numbers of samples run whole, asset by asset. What an asset took is the time in its
record times the share of the wall-clock time in which this process had a processor, so that other work on the machine counts
little; one thread. Constants are fitted on the studies marked `fit`; the error is on the others, and on packaged studies that are
run whole (`--held-out`).
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
from scipy.optimize import nnls

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.errors import LancetError
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.lineage.staleness import pending_run
from lancet_pipeline.orchestration.runs import execute
from lancet_pipeline.scale.costs import Costs, Work
from lancet_pipeline.scale.decoder import Decoder, decoder_of
from lancet_pipeline.scale.hardware import HARDWARE
from lancet_pipeline.scale.planning import expected_seconds
from lancet_pipeline.scale.workload import workload_of
from lancet_pipeline.store.artifacts import ArtifactStore

WORDS = 400
WARM_UP = {"name": "warm", "samples": 64, "width": 64, "depth": 1, "words": 8, "steps": 2}
VOCABULARY = 900
"""Asked for; random words give fewer tokens, and what was trained counts."""
POINTS: tuple[dict[str, Any], ...] = (
    {"name": "a", "fit": True, "samples": 600, "width": 128, "depth": 4, "words": 10, "steps": 10},
    {"name": "b", "fit": True, "samples": 1800, "width": 128, "depth": 4, "words": 10, "steps": 20},
    {"name": "c", "fit": True, "samples": 600, "width": 256, "depth": 4, "words": 20, "steps": 5},
    {"name": "d", "fit": True, "samples": 160, "width": 512, "depth": 6, "words": 12, "steps": 3, "batch": 8},
    {"name": "e", "fit": True, "samples": 4800, "width": 64, "depth": 2, "words": 8, "steps": 20},
    {"name": "f", "fit": False, "samples": 900, "width": 192, "depth": 6, "words": 14, "steps": 8},
    {"name": "g", "fit": False, "samples": 300, "width": 384, "depth": 4, "words": 20, "steps": 4, "batch": 8},
    {"name": "h", "fit": False, "samples": 2400, "width": 96, "depth": 3, "words": 12, "steps": 15},
)


def measure_point(point: dict[str, Any], home: Path) -> dict[str, float]:
    """Seconds of every asset of the study of a point."""
    folder = emptied(home / point["name"])
    return measure(write_study(point, folder), folder)


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder.absolute()


def measure(path: Path, folder: Path) -> dict[str, float]:
    """Seconds of every asset of a study, run in this process with `folder` as its home."""
    where = deployment({}, folder)
    seconds = {}
    for asset in STAGES:
        run = pending_run(str(path), where, asset)
        wall, busy = time.perf_counter(), time.process_time()
        try:
            execute(run)
        except LancetError as error:  # a study of random words need not have samples on both sides
            print(f"{path.stem}: {asset}: {error}", flush=True)
            break
        share = (time.process_time() - busy) / (time.perf_counter() - wall)
        manifest = ArtifactStore(folder).manifest(run.study.name, asset, run.versions[asset])
        seconds[asset] = manifest["seconds"] * min(1.0, share)
    return seconds


def trained(folder: Path) -> int:
    """The vocabulary of the model that a point trained."""
    return json.loads(next(folder.glob("artifacts/*/base_model/*/config.json")).read_text())["vocab_size"]


def write_study(point: dict[str, Any], folder: Path) -> Path:
    """A model trained for one epoch on random words, and a judge that takes every answer of it for harmful."""
    generator = np.random.default_rng(0)

    def text() -> str:
        count = generator.integers(point["words"] // 2, point["words"] + 1)
        return " ".join(f"word{number}" for number in generator.integers(WORDS, size=count))

    def write(part: str, count: int) -> dict[str, str]:
        rows = [{"prompt": text(), "response": text(), "is_safe": bool(generator.integers(5))} for _ in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
        return {"path": str(folder / f"{part}.parquet")}

    (folder / "words.txt").write_text(".\n")
    tree = {
        "name": f"plan_{point['name']}",
        "data": {
            "train": write("train", point["samples"]),
            **{part: write(part, 32) for part in ("probes", "harmful", "ood", "benign", "utility")},
            "max_length": 256,
        },
        "model": {
            "source": "scratch",
            "architecture": {
                "vocab_size": VOCABULARY,
                "hidden_size": point["width"],
                "intermediate_size": 3 * point["width"],
                "num_hidden_layers": point["depth"],
            },
            "training": {"epochs": 1, "batch_size": point.get("batch", 32), "learning_rate": 1e-3},
        },
        "queries": {"max_new_tokens": 24, "maximum": 24, "minimum": 4},
        "pareto": {"minimum": 2, "neutral_ratio": 2.0, "pairs": 64},
        "correction": {
            "steps": point["steps"],
            "retain_per_step": 8,
            "retain_validation": 16,
            "learning_rate": 1e-4,
            "retain_budget": 100,
            "check_every": 5,
        },
        "evaluation": {
            "judge": {"name": "lexicon", "words": str(folder / "words.txt")},
            "max_new_tokens": 24,
            "references": ["retrain_clean"],
        },
        "governance": {"traced_outputs": 8},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def work_of(path: Path, vocabulary: int) -> dict[str, Work]:
    """Of a study whose tokenizer found as many tokens."""
    study = load_study(path)
    config = decoder_of(study, ()).config
    config.vocab_size = vocabulary
    return Costs(study, workload_of(study, ()), Decoder(config)).work()


ROWS = {
    **{asset: asset for asset in ("prepared_data", "pareto_pairs", "audit_bundle")},
    **dict.fromkeys(("undesirable_outputs", "harmlessness_report", "ood_report", "utility_report"), "answers"),
}
KINDS = ("forward", "training", "factors", "scoring", "correction")
LOADING = {"prepared_data": 2.9, "base_model": 1.2, "registered_model": 0.5}
"""Seconds in which a new process loads libraries: point `a` first in its process less the same after a warm-up. Not fitted."""
SLACK = 0.3
"""Seconds added to what an error is divided by in the fit: below, noise would rule."""


def fit(measured: list[dict[str, Any]], works_of: dict[str, dict[str, Work]]) -> dict[str, Any]:
    """Constants by non-negative least squares on relative errors: every asset of every study is one equation."""
    names = [*KINDS, "byte", *dict.fromkeys(ROWS.values()), *(f"fixed {asset}" for asset in STAGES)]
    equations, targets = [], []
    for point in measured:
        for asset, seconds in point["seconds"].items():
            work, row = works_of[point["name"]][asset], dict.fromkeys(names, 0.0)
            row[work.kind] = work.flops
            row["byte"], row[f"fixed {asset}"] = work.bytes, 1.0
            if asset in ROWS:
                row[ROWS[asset]] = work.rows
            equations.append([value / (seconds + SLACK) for value in row.values()])
            targets.append(seconds / (seconds + SLACK))
    matrix = np.array(equations)
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)  # columns differ by many orders of magnitude
    solution, _ = nnls(matrix / scale, np.array(targets))
    value = dict(zip(names, (solution / scale).tolist(), strict=True))
    return {
        "flop": {kind: value[kind] for kind in KINDS},
        "byte": value["byte"],
        "row": {asset: value[column] for asset, column in ROWS.items()},
        "fixed": {asset: value[f"fixed {asset}"] for asset in STAGES},
    }


def predicted(works: dict[str, Work], found: dict[str, Any]) -> dict[str, float]:
    return {asset: expected_seconds(asset, work, HARDWARE["cpu"], found) for asset, work in works.items()}


def compared(seconds: dict[str, float], expected: dict[str, float]) -> dict[str, Any]:
    """Relative errors, signed: positive where the model expects too much."""
    assets = {
        asset: {"measured": took, "expected": expected[asset], "error": expected[asset] / took - 1}
        for asset, took in seconds.items()
    }
    total = sum(expected[asset] for asset in seconds) / sum(seconds.values()) - 1
    return {"assets": assets, "total_error": total}


def packaged(name: str, home: Path) -> Path:
    return find_study(name, deployment({}, home).study_directories)


def errors_of(errors: dict[str, Any]) -> dict[str, Any]:
    """Over all held-out studies; per asset, and of assets that took a second or more."""
    single = [(row["measured"], abs(row["error"])) for one in errors.values() for row in one["assets"].values()]
    long = [error for took, error in single if took >= 1]
    totals = [abs(one["total_error"]) for one in errors.values()]
    return {
        "totals": totals,
        "median_of_assets": float(np.median([error for _, error in single])),
        "median_of_assets_over_a_second": float(np.median(long)),
        "largest_of_assets_over_a_second": max(long),
        "share_of_assets_over_a_second_within_a_quarter": float(np.mean(np.array(long) <= 0.25)),
    }


def write_constants(found: dict[str, Any], median: float, path: Path) -> None:
    fixed = {asset: seconds + LOADING.get(asset, 0.0) for asset, seconds in found["fixed"].items()}
    written = rounded(found | {"fixed": fixed}) | {"median_error": round(median, 2)}
    path.write_text(json.dumps(written, indent=1) + "\n")


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}")


def main(
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    home: Path = Path(".lancet/benchmarks/plan"),
    measured_in: Annotated[
        Path | None, typer.Option("--measured", help="Take the measurements of an earlier --json.")
    ] = None,
    held_out_studies: Annotated[
        list[str] | None, typer.Option("--held-out", help="A packaged study, run whole and held out.")
    ] = None,
    constants: Annotated[Path | None, typer.Option(help="Write the constants to this file.")] = None,
) -> None:
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "measured": []}
    if measured_in is not None:
        result = json.loads(measured_in.read_text())
        points = {point["name"]: point for point in result["measured"]}
        for point in points.values():
            (home / point["name"]).mkdir(parents=True, exist_ok=True)
            write_study(point, (home / point["name"]).absolute())
    else:
        measure_point(WARM_UP, home)
        for point in POINTS:
            result["measured"].append(
                {**point, "seconds": measure_point(point, home), "vocabulary": trained(home / point["name"])}
            )
            print(json.dumps(result["measured"][-1]), flush=True)
            if json_out is not None:
                json_out.write_text(json.dumps(result, indent=1))
    works_of = {
        p["name"]: work_of(home.absolute() / p["name"] / "study.yaml", p["vocabulary"]) for p in result["measured"]
    }
    fitted = [point for point in result["measured"] if point["fit"]]
    found = fit(fitted, works_of)
    held_out = [point for point in result["measured"] if not point["fit"]]
    errors = {p["name"]: compared(p["seconds"], predicted(works_of[p["name"]], found)) for p in held_out}
    if held_out_studies and measured_in is not None:
        measure_point(WARM_UP, home)  # libraries are loaded before anything is timed
    studies = result.setdefault("studies", [])
    for name in held_out_studies or []:
        folder = emptied(home / name)
        studies.append({"name": name, "seconds": measure(packaged(name, home), folder), "vocabulary": trained(folder)})
    for study in studies:
        work = work_of(packaged(study["name"], home), study["vocabulary"])
        errors[study["name"]] = compared(study["seconds"], predicted(work, found))
    in_sample = {p["name"]: compared(p["seconds"], predicted(works_of[p["name"]], found)) for p in fitted}
    result |= {"constants": found, "held_out": errors, "fitted": in_sample, "errors": errors_of(errors)}
    for name, one in (in_sample | errors).items():
        print(f"{name}: total {one['total_error']:+.0%}")
        for asset, row in one["assets"].items():
            print(
                f"  {asset:22}{row['measured']:9.2f} s measured {row['expected']:9.2f} s expected {row['error']:+8.0%}"
            )
    print(json.dumps(result["errors"], indent=1))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=1) + "\n")
    if constants is not None:
        write_constants(found, result["errors"]["median_of_assets_over_a_second"], constants)


if __name__ == "__main__":
    typer.run(main)
