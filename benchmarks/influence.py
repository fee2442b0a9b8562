"""Time, memory, disk and retrieval of LinFAC beside kronfluence's EK-FAC.

    python -m benchmarks.influence --shape a --json OUT   # random model of a fixed shape
    python -m benchmarks.influence --shape b --json OUT   # the embedded study, trained once for every seed
    python -m benchmarks.influence --shape c --json OUT   # compliance_smollm2, once `lancet run compliance_smollm2` is done

Everything runs in one process with the same threads, data and batches; times are medians of interleaved rounds. A plain
pass is one forward and one backward pass with gradients of all parameters over all sequences. Memory is the peak above
what the process holds with the model loaded. Shape c is measured on 160 of its 1,776 sequences: EK-FAC would take an
hour and a half on all of them.
"""

import copy
import ctypes
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
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
    choose_damping,
    fit_factors,
    query_gradient,
    score_sequences,
)
from lancet_pipeline.linfac.damping import CANDIDATES
from lancet_pipeline.linfac.study import default_budget, unlabelled_budget

Shape = StrEnum("Shape", ["a", "b", "c"])
UNITS = ("sublayer_output", "linear")
FLAT = 1e6  # so much damping leaves the gradient
EKFAC_DAMPINGS = (0.01, 0.1, 1.0, 10.0)  # multiples of the mean eigenvalue, beside kronfluence's heuristic


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
    seeds: Annotated[int, typer.Option(help="Models of shape b.")] = 5,
    rounds: int = 3,
    ekfac_rounds: int = 1,
) -> None:
    if shape is Shape.a:
        setups = iter([shape_a()])
    elif shape is Shape.b:
        setups = (shape_b(home, seed) for seed in range(seeds))
    else:
        setups = iter([of_study("compliance_smollm2", home, 160)])
    first = next(setups)
    with tempfile.TemporaryDirectory() as folder:
        measured, rival = costs(first, rounds, ekfac_rounds, Path(folder))
        found = [] if first.harmful is None else [precisions(first, rival)]
    report = {"shape": shape.value, **measured}
    if found:
        for setup in setups:
            with tempfile.TemporaryDirectory() as folder:
                found.append(precisions(setup, ekfac(setup, Path(folder))))
        report["average_precision"] = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        report["average_precision_per_seed"] = found
    print(json.dumps({k: v for k, v in report.items() if k != "seconds"}, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(report, indent=2))


def costs(setup: Setup, rounds: int, ekfac_rounds: int, folder: Path) -> tuple[dict[str, Any], Any]:
    """Times, peaks and bytes, LinFAC's and EK-FAC's; and the fitted rival, whose files are below `folder`."""
    meter = Meter()
    model, data, queries = setup.model, setup.batches(), setup.query_batches
    budget, unlabelled = default_budget(len(setup.train)), setup.batches(unlabelled_budget(len(setup.train)), 1)
    plain_pass(model, data[:1])  # warms kernels up
    factors: dict[str, Factors] = {}
    for _ in range(rounds):
        meter("plain", lambda: plain_pass(model, data))
        for units in UNITS:
            config = LinfacConfig(units=units)
            factors[units] = meter(f"factors {units}", lambda config=config: fit_factors(model, data, config))
            query = meter(f"query {units}", lambda units=units: query_gradient(model, queries, factors[units]))
            meter(f"scores {units}", lambda query=query: score_sequences(model, data, query))
        few = meter("factors default", lambda: fit_factors(model, setup.batches(budget), LinfacConfig()))
        meter("damping default", lambda few=few: choose_damping(model, queries, unlabelled, few))
    for index in range(ekfac_rounds):
        rival = meter("ekfac factors", lambda index=index: ekfac(setup, folder / str(index)))
        meter("ekfac scores", lambda rival=rival: rival.scores(setup.queries, setup.train, None, pooled=True))
    factors["sublayer_output"].save(folder)
    linfac_bytes = (folder / "factors.safetensors").stat().st_size
    seconds = {name: float(np.median(values)) for name, values in meter.seconds.items()}

    def total(*parts: str) -> float:
        return sum(seconds[part] for part in parts)

    rival_total = total("ekfac factors", "ekfac scores")
    scoring = total("query sublayer_output", "scores sublayer_output")
    own_peak = max(peak for name, peak in meter.peaks.items() if "ekfac" not in name and "linear" not in name)
    return {
        "sequences": len(setup.train),
        "queries": len(setup.queries),
        "default_budget": budget,
        "threads": torch.get_num_threads(),
        "plain_seconds": seconds["plain"],
        "score_ratio": {units: seconds[f"scores {units}"] / seconds["plain"] for units in UNITS},
        "total_over_ekfac": {
            "same_budget": (seconds["factors sublayer_output"] + scoring) / rival_total,
            "default": (total("factors default", "damping default") + scoring) / rival_total,
            "same_budget_linear": total("factors linear", "query linear", "scores linear") / rival_total,
        },
        "ekfac_passes": rival_total / seconds["plain"],
        "peak_memory_ratio": own_peak / meter.peaks["plain"],
        "ekfac_peak_memory_ratio": max(meter.peaks["ekfac factors"], meter.peaks["ekfac scores"])
        / meter.peaks["plain"],
        "disk_ratio": linfac_bytes / rival.disk_bytes(),
        "median_seconds": seconds,
        "peak_mebibytes": {name: peak / 2**20 for name, peak in meter.peaks.items()},
        "seconds": meter.seconds,
    }, rival


def plain_pass(model: Any, batches: Iterable[TokenBatch]) -> None:
    """As anyone would write it: all logits of the model, and the loss of the response tokens."""
    for batch in batches:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        labels = batch.input_ids.where(batch.loss_mask, -100)[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, reduction="sum").backward()
    model.zero_grad(set_to_none=True)


def precisions(setup: Setup, rival: Any) -> dict[str, Any]:
    """Average precision of the harmful sequences: LinFAC as it comes and at fixed dampings; EK-FAC at its best one."""
    model, data, queries = setup.model, setup.batches(), setup.query_batches
    factors = fit_factors(model, setup.batches(default_budget(len(setup.train))), LinfacConfig())
    choice = choose_damping(model, queries, setup.batches(unlabelled_budget(len(setup.train)), 1), factors)
    dampings = sorted({*CANDIDATES[::2], choice.damping, FLAT})
    each = [query_gradient(model, queries, factors.damped(rho)) for rho in dampings]
    together = replace(
        each[0],
        groups=tuple(f"{rho:g}" for rho in dampings),
        matrices=tuple(torch.cat(matrices) for matrices in zip(*(query.matrices for query in each), strict=True)),
        weights=(1 / len(each),) * len(each),
    )
    scores = score_sequences(model, data, together).numpy().T
    fixed = {rho: setup.precision(column) for rho, column in zip(dampings, scores, strict=True)}
    dot = fixed.pop(FLAT)
    mean = rival.mean_eigenvalue()
    theirs = {
        name: setup.precision(rival.scores(setup.queries, setup.train, damping, pooled=True).numpy())
        for name, damping in {"heuristic": None, **{f"{rho:g}": rho * mean for rho in EKFAC_DAMPINGS}}.items()
    }
    print(f"linfac {fixed} chose {choice.damping:g}; ekfac {theirs}", flush=True)
    return {
        "linfac": fixed[choice.damping],
        "linfac_best_damping": max(fixed.values()),
        "ekfac": max(theirs.values()),
        "ekfac_heuristic_damping": theirs["heuristic"],
        "gradient_dot": dot,
        "share": float(np.mean(setup.harmful)),
        "chosen_damping": choice.damping,
        "reliability": factors.reliability,
    }


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


def of_study(name: str, home: Path, count: int | None = None) -> Setup:
    """Base model, training data and queries of a study's last run."""
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
    kept = np.random.default_rng(0).permutation(len(sequences))[:count]
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
