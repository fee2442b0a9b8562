"""Time, memory, disk and retrieval of LinFAC beside kronfluence's EK-FAC.

    python -m benchmarks.influence --shape a --json OUT   # random model of a fixed shape
    python -m benchmarks.influence --shape b --json OUT   # the embedded study, trained once for every seed
    python -m benchmarks.influence --shape c --json OUT   # compliance_smollm2, once `lancet run compliance_smollm2` is done

Everything runs in one process with the same threads, data and batches; times are medians of interleaved rounds. A plain
pass is one forward and one backward pass with gradients of all parameters over all sequences. Memory is the peak above
what the process holds with the model loaded.

EK-FAC gets the best damping of a sweep, chosen by the labels, LinFAC the one that it chooses without them. The sweep takes
kronfluence's factors through this project's scoring pass, which needs one pass for all dampings; `ekfac_scores_agree` is
the correlation with the scores that kronfluence itself computes from them.

Shape c has one model, since training it takes half an hour: its seeds are disjoint draws of 128 of the 1,776 training
sequences. Costs are measured on the first two draws together; EK-FAC is fitted on these 256 sequences, LinFAC on 32 of each
draw.
"""

import copy
import ctypes
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from sklearn.metrics import average_precision_score

from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.linfac import (
    Factors,
    LinfacConfig,
    Query,
    choose_damping,
    fit_factors,
    query_gradient,
    score_sequences,
)
from lancet_pipeline.linfac.damping import CANDIDATES
from lancet_pipeline.linfac.scores import mean_gradient
from lancet_pipeline.linfac.study import default_budget, unlabelled_budget

Shape = StrEnum("Shape", ["a", "b", "c"])
UNITS = ("sublayer_output", "linear")
FLAT = 1e6  # so much damping leaves the gradient
EKFAC_DAMPINGS = (0.01, 0.1, 1.0, 10.0)  # multiples of the mean eigenvalue, beside kronfluence's heuristic
DRAW = 128  # sequences of shape c


@dataclass(frozen=True)
class Setup:
    """`train` stands in the order of its batches; `harmful` says which sequences are known to be harmful.
    `documents` and `asked` are the texts of training samples and queries."""

    model: Any
    train: list[TokenSequence]
    queries: list[TokenSequence]
    batch_tokens: int
    harmful: np.ndarray | None = None
    length_normalised: bool = False
    documents: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    def batches(self, count: int | None = None, seed: int = 0) -> list[TokenBatch]:
        chosen = self.train
        if count is not None:
            picked = np.random.default_rng(seed).permutation(len(self.train))[:count]
            chosen = [self.train[i] for i in sorted(picked)]
        return [collate([chosen[i] for i in group]) for group in bucketed(chosen, self.batch_tokens)]

    @property
    def query_batches(self) -> list[TokenBatch]:
        return [collate([self.queries[i] for i in group]) for group in bucketed(self.queries, self.batch_tokens)]

    def precision(self, scores: np.ndarray) -> float:
        """Average precision of the harmful sequences, scores normalised as the study does."""
        lengths = [len(s) - max(s.response_start, 1) for s in self.train] if self.length_normalised else 1
        return float(average_precision_score(self.harmful, scores / np.asarray(lengths)))


def main(
    shape: Annotated[Shape, typer.Option()] = Shape.a,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    home: Annotated[Path, typer.Option(help="Where compliance_smollm2 was run, and shape b's models go.")] = Path(
        ".lancet"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Models of shape b, draws of shape c.")] = 5,
    rounds: int = 3,
    ekfac_rounds: Annotated[int | None, typer.Option(help="As `rounds`, or 1 for shape c.")] = None,
) -> None:
    if shape is Shape.a:
        setups = iter([shape_a()])
    elif shape is Shape.b:
        setups = (shape_b(home, seed) for seed in range(seeds))
    else:
        draws = [slice(0, 2 * DRAW), *(slice(draw * DRAW, (draw + 1) * DRAW) for draw in range(seeds))]
        setups = (of_study("compliance_smollm2", home, draw) for draw in draws)
    ekfac_rounds = ekfac_rounds or (1 if shape is Shape.c else rounds)
    first = next(setups)
    with tempfile.TemporaryDirectory() as folder:
        measured, rival, heuristic = costs(first, rounds, ekfac_rounds, Path(folder))
        fitted = rival.factors(first.model)
        if shape is not Shape.c:
            measured["ekfac_scores_agree"] = agreement(first, rival, fitted)
    report = {"shape": shape.value, **measured}
    found = [precisions(first, fitted, heuristic)] if shape is Shape.b else []
    for setup in setups:
        if shape is Shape.b:
            with tempfile.TemporaryDirectory() as folder:
                rival = ekfac(setup, Path(folder))
                heuristic = rival.scores(setup.queries, setup.train, None, pooled=True)
                fitted = rival.factors(setup.model)
        else:
            heuristic = None
        found.append(precisions(setup, fitted, heuristic))
        if json_out is not None:  # what there is, should the machine stop
            json_out.write_text(json.dumps(report | averages(found), indent=2))
    if found:
        report |= averages(found)
    print(json.dumps({k: v for k, v in report.items() if k != "seconds"}, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(report, indent=2))


def averages(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Average precisions over the seeds, and those of each."""
    single = [name for name, value in found[0].items() if isinstance(value, float)]
    return {
        "average_precision": {name: float(np.mean([one[name] for one in found])) for name in single},
        "average_precision_per_seed": found,
    }


def costs(setup: Setup, rounds: int, ekfac_rounds: int, folder: Path) -> tuple[dict[str, Any], Any, torch.Tensor]:
    """Times, peaks and bytes, LinFAC's and EK-FAC's; the fitted rival, whose files are below `folder`, and its scores."""
    meter = Meter()
    model, data, queries = setup.model, setup.batches(), setup.query_batches
    budget, unlabelled = default_budget(len(setup.train)), setup.batches(unlabelled_budget(len(setup.train)), 1)
    default, few = LinfacConfig(), setup.batches(budget)
    plain_pass(model, data[:1])  # warms kernels up
    linear = fit_factors(model, setup.batches(8), LinfacConfig(units="linear"))
    for _ in range(rounds):
        meter("plain", lambda: plain_pass(model, data))
        factors = meter("factors same budget", lambda: fit_factors(model, data, default))
        query = meter("query sublayer_output", lambda factors=factors: query_gradient(model, queries, factors))
        meter("scores sublayer_output", lambda query=query: score_sequences(model, data, query))
        query = query_gradient(model, queries, linear)
        meter("scores linear", lambda query=query: score_sequences(model, data, query))
        fitted = meter("factors default", lambda: fit_factors(model, few, default))
        meter("damping default", lambda fitted=fitted: choose_damping(model, queries, unlabelled, fitted))
    own_peak = max(peak for name, peak in meter.peaks.items() if name not in ("plain", "scores linear"))
    for index in range(ekfac_rounds):
        rival = meter("ekfac factors", lambda index=index: ekfac(setup, folder / str(index)))
        theirs = meter("ekfac scores", lambda rival=rival: rival.scores(setup.queries, setup.train, None, pooled=True))
    factors.save(folder)
    linfac_bytes = (folder / "factors.safetensors").stat().st_size
    seconds = {name: float(np.median(values)) for name, values in meter.seconds.items()}

    def total(*parts: str) -> float:
        return sum(seconds[part] for part in parts)

    rival_total = total("ekfac factors", "ekfac scores")
    scoring = total("query sublayer_output", "scores sublayer_output")
    ratios = {
        "sequences": len(setup.train),
        "queries": len(setup.queries),
        "default_budget": budget,
        "threads": torch.get_num_threads(),
        "plain_seconds": seconds["plain"],
        "score_ratio": {units: seconds[f"scores {units}"] / seconds["plain"] for units in UNITS},
        "total_over_ekfac": {
            "same_budget": (seconds["factors same budget"] + scoring) / rival_total,
            "default": (total("factors default", "damping default") + scoring) / rival_total,
        },
        "ekfac_passes": rival_total / seconds["plain"],
        "peak_memory_ratio": own_peak / meter.peaks["plain"],
        "ekfac_peak_memory_ratio": max(meter.peaks["ekfac factors"], meter.peaks["ekfac scores"])
        / meter.peaks["plain"],
        "disk_ratio": linfac_bytes / rival.disk_bytes(),
        "median_seconds": seconds,
        "peak_mebibytes": {name: peak / 2**20 for name, peak in meter.peaks.items()},
        "seconds": meter.seconds,
    }
    return ratios, rival, theirs


def agreement(setup: Setup, rival: Any, fitted: Factors) -> float:
    """Correlation of kronfluence's own scores with those of its factors in this project's scoring pass."""
    theirs = rival.scores(setup.queries, setup.train, 0.1 * fitted.mean_eigenvalue, pooled=True).numpy()
    return float(np.corrcoef(theirs, sweep(setup, fitted, {0.1})[0.1])[0, 1])


def plain_pass(model: Any, batches: Iterable[TokenBatch]) -> None:
    """As anyone would write it: all logits of the model, and the loss of the response tokens."""
    for batch in batches:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        labels = batch.input_ids.where(batch.loss_mask, -100)[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, reduction="sum").backward()
    model.zero_grad(set_to_none=True)


def precisions(setup: Setup, rival: Factors, heuristic: torch.Tensor | None) -> dict[str, Any]:
    """Average precision of the harmful sequences: LinFAC as it comes and at fixed dampings; EK-FAC at its best one.

    heuristic: EK-FAC's scores by kronfluence at the damping of its own choice.
    """
    model, queries = setup.model, setup.query_batches
    factors = fit_factors(model, setup.batches(default_budget(len(setup.train))), LinfacConfig())
    choice = choose_damping(model, queries, setup.batches(unlabelled_budget(len(setup.train)), 1), factors)
    fixed = {rho: setup.precision(s) for rho, s in sweep(setup, factors, {*CANDIDATES, FLAT}).items()}
    dot = fixed.pop(FLAT)
    theirs = {f"{rho:g}": setup.precision(s) for rho, s in sweep(setup, rival, set(EKFAC_DAMPINGS)).items()}
    if heuristic is not None:
        theirs["heuristic"] = setup.precision(heuristic.numpy())
    print(f"linfac {fixed} chose {choice.damping:g}; ekfac {theirs}", flush=True)
    return {
        "linfac": fixed[choice.damping],
        "linfac_best_damping": max(fixed.values()),
        "ekfac": max(theirs.values()),
        "gradient_dot": dot,
        "share": float(np.mean(setup.harmful)),
        "chosen_damping": choice.damping,
        "reliability": factors.reliability,
        "linfac_by_damping": {f"{rho:g}": value for rho, value in fixed.items()},
        "ekfac_by_damping": theirs,
    }


def sweep(setup: Setup, factors: Factors, dampings: set[float]) -> dict[float, np.ndarray]:
    """Scores [N] on all queries under each damping, in one pass."""
    ordered = sorted(dampings)
    gradients, _ = mean_gradient(setup.model, setup.query_batches, factors.units, "queries")
    damped = [factors.damped(rho) for rho in ordered]
    matrices = tuple(torch.cat([one.precondition(i, g[None]) for one in damped]) for i, g in enumerate(gradients))
    query = Query(tuple(map(str, ordered)), factors.units, matrices, (1 / len(ordered),) * len(ordered), factors.model)
    scores = score_sequences(setup.model, setup.batches(), query).numpy()
    return dict(zip(ordered, scores.T, strict=True))


def ekfac(setup: Setup, folder: Path) -> Any:
    from benchmarks.ekfac import Ekfac

    size = max(1, setup.batch_tokens // max(len(sequence) for sequence in setup.train))
    return Ekfac(copy.deepcopy(setup.model), setup.train, size, folder)


def shape_a() -> Setup:
    """Llama of hidden size 256, 4 layers, intermediate 688, vocabulary 2,048; 512 sequences of 128 tokens, 16 queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, max_position_embeddings=128, **sizes)).eval()
    tokens = np.random.default_rng(0).integers(0, 2048, (528, 128)).astype(np.int32)
    sequences = [TokenSequence(str(i), row, 1) for i, row in enumerate(tokens)]
    return Setup(model, sequences[:512], sequences[512:], 32 * 128)


def shape_b(home: Path, seed: int) -> Setup:
    """The embedded study with another seed of model and training, run as far as its queries."""
    from lancet_pipeline.deployment import deployment
    from lancet_pipeline.running import execute, plan_run
    from lancet_pipeline.study import find_study

    where = deployment({}, home)
    settings = yaml.safe_load(find_study("demo", where.study_directories).read_text())
    name = f"demo_seed_{seed}"
    path = home / "benchmarks" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings | {"name": name, "seed": seed}))
    execute(plan_run(str(path), where, "undesirable_outputs"))
    return of_study(str(path), home)


def of_study(name: str, home: Path, draw: slice = slice(None)) -> Setup:
    """Base model, queries and training data of a study's last run; `draw` is a part of the data in a random order."""
    from lancet_pipeline.artifacts import ArtifactStore
    from lancet_pipeline.data.tokenization import load_prepared
    from lancet_pipeline.deployment import deployment
    from lancet_pipeline.evaluation.queries import read_rows
    from lancet_pipeline.linfac.study import query_sequences
    from lancet_pipeline.models.loading import load_model, load_tokenizer
    from lancet_pipeline.study import find_study, load_study
    from lancet_pipeline.summary import last_run

    study, store = load_study(find_study(name, deployment({}, home).study_directories)), ArtifactStore(home)
    lineage = last_run(store, study.name)
    folders = {
        asset: store.read(study.name, asset, lineage[asset]["version"])
        for asset in ("base_model", "prepared_data", "undesirable_outputs")
    }
    samples, sequences = load_prepared(folders["prepared_data"])
    rows = read_rows(folders["undesirable_outputs"] / "queries.parquet")
    queries = query_sequences(load_tokenizer(folders["base_model"]), rows, study.data.max_length)
    kept = np.random.default_rng(0).permutation(len(sequences))[draw]
    groups = bucketed([sequences[i] for i in kept], study.compute.batch_tokens)
    order = kept[[i for group in groups for i in group]]
    texts = [f"{row['prompt']} {row['response']}" for row in samples.select(["prompt", "response"]).to_pylist()]
    harmful = ~np.array(samples["is_safe"].to_pylist(), dtype=bool)[order]
    return Setup(
        load_model(folders["base_model"]),
        [sequences[i] for i in order],
        queries,
        study.compute.batch_tokens,
        harmful,
        study.linfac.normalisation == "length",
        tuple(texts[i] for i in order),
        tuple(f"{row['prompt']} {row['response']}" for row in rows),
    )


class Meter:
    """Seconds of every call by name, and the highest resident memory above the start, sampled at 200 Hz."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, float] = {}
        self._start = _resident()

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        done, peak = threading.Event(), 0.0

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.005):
                peak = max(peak, _resident() - self._start)

        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed is not this one's
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        started = time.monotonic()
        result = work()
        self.seconds.setdefault(name, []).append(time.monotonic() - started)
        done.set()
        watcher.join()
        self.peaks[name] = max(self.peaks.get(name, 0.0), peak)
        print(f"{name}: {self.seconds[name][-1]:.2f} s, peak {peak / 2**20:.0f} MiB", flush=True)
        return result


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    typer.run(main)
