"""The paper's studies end to end at a size for a laptop, without the hub.

    python -m benchmarks.paper_studies --study all --folder ../shared/data --home HOME --json OUT

Each packaged study is taken as it is, but for: checkpoints (`benchmarks.stand_ins`: random weights, `--depth` layers, `--width` wide),
data sets (files in the hub's columns), the guard (a rule), and sizes that random weights make pointless (`smaller`). bfloat16, LoRA,
chat template, presets, splits, query groups, dropped rows and the reference model stay on. Nothing is learnt from what is corrected:
what is shown is that the graph ends, and what each asset takes.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from benchmarks.stand_ins import texts_of, write_checkpoint, write_data_sets, write_guard
from benchmarks.studies import StudyRun, run_study
from lancet_pipeline.config.loading import PACKAGED_STUDIES, load_study
from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.governance.verification import verify_bundle
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.linfac import Factors

STUDIES = ("hh_opt27b", "beavertails_llama2_7b", "saferlhf_llama31_8b")
FULL_SAMPLES = 10_000
FEWEST = 16
REPLACED = {
    "queries": {"max_new_tokens": 12, "maximum": 8, "minimum": 2},
    "pareto": {"pairs": 64, "harmful_countering": "report"},  # a stand-in judges at random
    "correction": {"steps": 8, "retain_validation": 8, "check_every": 4, "learning_rate": 3e-3},
    "evaluation": {"max_new_tokens": 12},
    "governance": {"traced_outputs": 2},
}


def main(
    study: Annotated[str, typer.Option(help="hh_opt27b, beavertails_llama2_7b, saferlhf_llama31_8b or all.")] = "all",
    depth: Annotated[int, typer.Option(min=1)] = 2,
    width: Annotated[int, typer.Option(min=16, help="A multiple of 8.")] = 64,
    samples: Annotated[int, typer.Option(min=16, help="Rows of the training data; other counts shrink alike.")] = 160,
    folder: Annotated[Path, typer.Option(help="Where the parquet files are.")] = Path("../shared/data"),
    home: Path = Path(".lancet/benchmarks/paper"),
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    os.environ.setdefault("HF_DATASETS_CACHE", str(home.absolute() / "cache"))
    home, result = home.absolute(), {"depth": depth, "width": width, "samples": samples, "replaced": REPLACED}
    result |= {"threads": torch.get_num_threads(), "studies": {}}
    try:
        write_data_sets(folder, home / "hub")
    except InputError as error:
        raise SystemExit(f"skipped: {error}") from None
    for name in STUDIES if study == "all" else (study,):
        try:
            result["studies"][name] = outcome(run_reduced(name, home, depth, width, samples))
        except LancetError as error:
            result["studies"][name] = {"failed": str(error)}
        print(json.dumps({name: result["studies"][name]}), flush=True)
        if json_out is not None:
            json_out.write_text(json.dumps(result, indent=1) + "\n")


def run_reduced(name: str, home: Path, depth: int, width: int, samples: int) -> StudyRun:
    """Run the whole graph of packaged study `name` on stand-ins; data sets lie below `home`/hub already."""
    tree = smaller(load_study(PACKAGED_STUDIES / f"{name}.yaml").model_dump(mode="json"), home / "hub", samples)
    train, models = tree["data"]["train"], home / "models"
    texts = texts_of(Path("/"), train["hub"], train["preset"])[:4000]
    for checkpoint, write in (
        (tree["model"]["checkpoint"], lambda *made: write_checkpoint(tree["model"]["checkpoint"], *made, depth, width)),
        (tree["evaluation"]["judge"]["model"], write_guard),
    ):
        place = models / checkpoint.rpartition("/")[2]
        if not place.is_dir():
            write(place, texts)
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return run_study(str(path), home, "registered_model")


def smaller(tree: dict[str, Any], hub: Path, samples: int) -> dict[str, Any]:
    """A study's settings with data sets below `hub` and sizes for random weights."""
    sources = [source for source in tree["data"].values() if isinstance(source, dict)]
    for source in (*sources, tree["evaluation"]["judge"]["validation"]):
        source["hub"] = str(hub / source["hub"])
        source["part"] = fewer(source["part"], samples)
        if source["rows"]:
            start, stop = source["rows"]
            source["rows"] = [count(start, samples), count(start, samples) + count(stop - start, samples)]
    for section, settings in REPLACED.items():
        tree[section] |= settings
    return tree


def fewer(part: str, samples: int) -> str:
    """A split whose numbers of rows shrink as the training data do; percentages stay."""
    return re.sub(r"(?<=[\[:])\d+(?=[:\]])", lambda found: str(count(int(found[0]), samples)), part)


def count(rows: int, samples: int) -> int:
    return rows and max(FEWEST, rows * samples // FULL_SAMPLES)


def outcome(run: StudyRun) -> dict[str, Any]:
    """Seconds of every asset and what shows that it did its work. Raises IntegrityError where the bundle does not verify."""
    table, sequences = run.data
    verify_bundle(run.folder("audit_bundle") / "bundle")
    judged = json.loads((run.folder("harmlessness_report") / "figures.json").read_text())
    labels = table["is_safe"].to_pylist()
    return {
        "seconds": {asset: run.manifest(asset)["seconds"] for asset in STAGES},
        "parameters": sum(parameter.numel() for parameter in run.model("base_model")[0].parameters()),
        "samples": len(sequences),
        "unsafe": labels.count(False),
        "categories": len({category for category in table["category"].to_pylist() if category}),
        "units": len(Factors.load(run.folder("linfac_factors")).units),
        "queries": run.manifest("influence_scores")["metrics"]["queries"],
        "harm_rates": {model: figures["harm_rate"]["value"] for model, figures in judged.items()},
        "kept_step": run.manifest("corrected_model")["metrics"].get("best_step"),
    }


if __name__ == "__main__":
    typer.run(main)
