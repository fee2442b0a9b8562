"""What only a GPU can tell: utilisation, throughput and memory at the paper's sizes.

    python -m benchmarks.gpu --json OUT [--only smollm2|opt27b|llama8b]

`smollm2`: the study compliance_smollm2 (float32), seconds by asset; then its model and data in bfloat16. `opt27b`, `llama8b`: the
architectures at full size with random weights, made on the device, and sequences of 512 random tokens with the settings of the paper's
study. Each part runs in a process of its own; what fails is recorded with the first line of its error, and what was measured before
stays. The kernels of one scoring pass are written beside OUT, as OUT.PART.txt.

Utilisation = operations / seconds / peak of the data sheet in dense bfloat16. Operations are those of docs/scaling.md: of scoring a
pass forward and backward to the activations and, for each unit, 2 T d_s d_a for the query and as much for the norm; of IBO the passes of
its steps and looks. The bar for scoring is 0.35, in bfloat16.

`--small` takes tiny shapes on any device, to see that the script works; its figures mean nothing.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.decoders import CONFIGS, reduced
from benchmarks.studies import run_study, with_seed
from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import PACKAGED_STUDIES, load_study
from lancet_pipeline.config.study import Study
from lancet_pipeline.correction import correct
from lancet_pipeline.correction.trainer import RankedPair
from lancet_pipeline.data.batches import TokenSequence, bucketed, collate
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.lineage.stages import STAGES
from lancet_pipeline.linfac import query_gradient, score_dataset
from lancet_pipeline.linfac.influence import fit_study_factors
from lancet_pipeline.models.loading import load_model, resolve_device
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.scale.costs import Costs
from lancet_pipeline.scale.decoder import Decoder
from lancet_pipeline.scale.hardware import HARDWARE
from lancet_pipeline.scale.workload import Workload, workload_of

PEAKS = {"A100": "a100-80gb", "H100": "h100-80gb", "H200": "h100-80gb"}
"""Part of a device's name -> hardware whose peak it has."""
BAR, LIMIT_BYTES = 0.35, 80e9
LENGTH, SEQUENCES, QUERIES, IBO_STEPS = 512, 32, 4, 6
SMALL_LENGTH, SMALL_SEQUENCES, SMALL_STEPS = 24, 8, 2
MODELS = {
    "opt27b": ("facebook/opt-2.7b", "hh_opt27b"),
    "llama8b": ("meta-llama/Llama-3.1-8B", "saferlhf_llama31_8b"),
}
TINY_DEMO = {  # embedded data and a model of seconds in place of compliance_smollm2
    **{
        f"data.{part}.rows": [0, 64 if part == "train" else 8]
        for part in ("train", "probes", "harmful", "ood", "benign")
    },
    "data.utility.rows": [0, 8],
    "model.architecture": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
    },
    "model.training": {"epochs": 1},
    "queries": {"max_new_tokens": 4, "minimum": 2, "maximum": 4},
    "pareto.harmful_countering": "report",  # nothing is learnt in seconds
    "correction": {"steps": 2, "check_every": 2, "retain_validation": 4, "learning_rate": 1e-6},
    "evaluation": {"max_new_tokens": 4, "judge": {"name": "string_matching", "harmful_when": "not_refusal"}},
    "governance": {"traced_outputs": 1},
}
Figures = dict[str, Any]
T = TypeVar("T")


def main(
    json_out: Annotated[Path, typer.Option("--json")],
    only: Annotated[str | None, typer.Option(help="smollm2, opt27b or llama8b.")] = None,
    home: Path = Path(".lancet/benchmarks/gpu"),
    small: Annotated[bool, typer.Option("--small", help="Tiny shapes, on any device.")] = False,
    part: Annotated[str | None, typer.Option(hidden=True, help="Measure this part in this process.")] = None,
) -> None:
    if only not in (None, "smollm2", *MODELS):
        raise typer.BadParameter(f"--only {only}: take smollm2, {' or '.join(MODELS)}")
    if not small and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --small runs tiny shapes on the CPU")
    if part is not None:
        table = json_out.with_name(f"{json_out.name}.{part}.txt")
        write(json_out, collected(stages(part, home.absolute(), small, table)))
        return
    result: Figures = {"device": device_name(), "torch": torch.__version__, "small": small, "parts": {}}
    for name in [only] if only else ["smollm2", *MODELS]:
        result["parts"][name] = in_own_process(name, json_out, home, small)
        print(json.dumps({name: result["parts"][name]}), flush=True)
        write(json_out, result)


def in_own_process(part: str, json_out: Path, home: Path, small: bool) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / json_out.name
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--json", str(found), "--home", str(home)]
        code = subprocess.run([*command, *(["--small"] if small else [])], check=False).returncode
        for table in found.parent.glob("*.txt"):
            json_out.with_name(table.name).write_text(table.read_text())
        return json.loads(found.read_text()) if found.exists() else {"failed": f"the process ended with code {code}"}


def collected(found: Iterator[tuple[str, Figures]]) -> Figures:
    """All figures of a part; where a stage fails, those before it and the first line of its error."""
    figures: Figures = {}
    try:
        figures.update(found)
    except Exception as error:  # out of memory, above all
        lines = str(error).splitlines()
        figures["failed"] = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return figures


def write(path: Path, content: Figures) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def stages(part: str, home: Path, small: bool, table: Path) -> Iterator[tuple[str, Figures]]:
    return smollm2(home, small, table) if part == "smollm2" else of_model(part, small, table)


def smollm2(home: Path, small: bool, table: Path) -> Iterator[tuple[str, Figures]]:
    where = deployment({}, home)
    path = with_seed("demo", 0, home, TINY_DEMO) if small else str(PACKAGED_STUDIES / "compliance_smollm2.yaml")
    run = run_study(path, home, list(STAGES)[-1])
    seconds = {asset: run.manifest(asset)["seconds"] for asset in STAGES}
    config = AutoConfig.from_pretrained(run.folder("base_model"))
    data = workload_of(run.study, where.model_directories)
    operations = {asset: work.flops for asset, work in Costs(run.study, data, Decoder(config)).work().items()}
    scoring = run.manifest("influence_scores")["metrics"]["scoring_seconds"]
    yield (
        "study",
        {
            "dtype": run.study.model.dtype,
            "seconds": seconds,
            "utilisation": {
                "influence_scores": utilisation(operations["influence_scores"], scoring),
                "corrected_model": utilisation(operations["corrected_model"], seconds["corrected_model"]),
            },
        },
    )
    _, sequences = load_prepared(run.folder("prepared_data"))
    model = load_model(run.folder("base_model"), dtype="bfloat16", device=device())
    yield from measured(model, sequences, run.study, small, table)


def of_model(part: str, small: bool, table: Path) -> Iterator[tuple[str, Figures]]:
    name, study = MODELS[part]
    config = reduced(name, 1, 32, 256) if small else CONFIGS[name]
    length, number = (SMALL_LENGTH, SMALL_SEQUENCES) if small else (LENGTH, SEQUENCES)
    settings = AutoConfig.for_model(**config, bos_token_id=None, eos_token_id=None, pad_token_id=1)
    torch.manual_seed(0)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()
    yield "model", {"parameters": sum(p.numel() for p in model.parameters()), "length": length, "sequences": number}
    tokens = np.random.default_rng(0).integers(3, config["vocab_size"], (number, length), dtype=np.int32)
    sequences = [TokenSequence(str(place), ids, length // 2) for place, ids in enumerate(tokens)]
    yield from measured(model, sequences, load_study(PACKAGED_STUDIES / f"{study}.yaml"), small, table)


def measured(
    model: PreTrainedModel, sequences: list[TokenSequence], study: Study, small: bool, table: Path
) -> Iterator[tuple[str, Figures]]:
    """Factors, query, scores and IBO of `model` on `sequences`, each with its seconds and peak memory."""
    yield from influence(model, sequences, study, table)  # what it holds is freed before IBO begins
    yield "ibo", ibo(model, sequences[: 4 * SEQUENCES], study, SMALL_STEPS if small else IBO_STEPS)


def influence(
    model: PreTrainedModel, sequences: list[TokenSequence], study: Study, table: Path
) -> Iterator[tuple[str, Figures]]:
    runtime = Runtime.of(study, device())
    tokens = runtime.batch_tokens
    factors, figures = timed(lambda: fit_study_factors(model, sequences, study, runtime))
    yield "factors", figures | {"sequences": factors.sequences, "units": len(factors.units)}
    asked = [collate([sequences[i] for i in group]) for group in bucketed(sequences[:QUERIES], tokens)]
    query, figures = timed(lambda: query_gradient(model, asked, factors))
    yield "query", figures | {"sequences": QUERIES}
    score_dataset(model, sequences[:QUERIES], query, runtime)  # the first pass loads and tunes kernels
    _, figures = timed(lambda: score_dataset(model, sequences, query, runtime))
    share = utilisation(scoring_operations(model, sequences, study), figures["seconds"])
    rate = len(sequences) / figures["seconds"]
    met = None if share is None else share >= BAR
    yield "scores", figures | {"sequences_a_second": rate, "utilisation": share, "bar": BAR, "met": met}
    one = [sequences[i] for i in bucketed(sequences, tokens)[0]]
    table.write_text(kernels(lambda: score_dataset(model, one, query, runtime)))


def ibo(model: PreTrainedModel, sequences: list[TokenSequence], study: Study, steps: int) -> Figures:
    """Seconds of a step of the study's IBO, the first one (which loads kernels) and looks at the budget left out."""
    kept = {"steps": steps, "check_every": steps, "retain_validation": 4, "retain_budget": 1e6}
    settings = study.correction.model_copy(update=kept)
    quarter = len(sequences) // 4
    pairs = [RankedPair(a, b, 1.0) for a, b in zip(sequences[:quarter], sequences[quarter : 2 * quarter], strict=True)]
    began: list[float] = []

    def clocked(items: Iterable[T], total: int, label: str) -> Iterator[T]:
        for item in items:
            synchronise()
            began.append(time.monotonic())
            yield item

    _, figures = timed(
        lambda: correct(
            model,
            pairs,
            sequences[2 * quarter :],
            settings,
            seed=0,
            runtime=Runtime.of(study, device(), track=clocked),
        )
    )
    apart = np.diff(began)  # the last step, after which the budget is looked at, is not among them
    a_step = float(np.median(apart[1:] if len(apart) > 1 else apart))
    return figures | {
        "seconds_a_step": a_step,
        "steps": steps,
        "lora": settings.lora is not None,
        "pairs_per_step": settings.pairs_per_step,
        "retain_per_step": settings.retain_per_step,
    }


def scoring_operations(model: PreTrainedModel, sequences: list[TokenSequence], study: Study) -> float:
    """Of one pass that scores `sequences` against one query."""
    tokens = float(np.mean([len(sequence) for sequence in sequences]))
    response = float(np.mean([len(sequence) - sequence.response_start for sequence in sequences]))
    data = Workload(len(sequences), tokens, response, 0.5, 0, 0, 0, 0, 0)
    costs = Costs(study, data, Decoder(model.config, "bfloat16"))
    return costs.passes("scoring", len(sequences), "activations").flops + len(sequences) * costs.contraction(1)


def timed(work: Callable[[], T]) -> tuple[T, Figures]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    synchronise()
    started = time.monotonic()
    result = work()
    synchronise()
    figures: Figures = {"seconds": time.monotonic() - started}
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        figures |= {"peak_bytes": peak, "within_80_gb": peak <= LIMIT_BYTES}
    return result, figures


def kernels(work: Callable[[], Any]) -> str:
    """Where the time of `work` goes, the dearest 30 kernels first."""
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        work()
        synchronise()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=order, row_limit=30))


def utilisation(operations: float, seconds: float) -> float | None:
    """Share of the device's peak; None where its peak is not known."""
    peak = next((HARDWARE[name].peak for part, name in PEAKS.items() if part in device_name()), None)
    return None if peak is None else operations / seconds / peak


def device() -> str:
    return resolve_device("auto")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    typer.run(main)
