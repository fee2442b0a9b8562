"""Time, memory, disk and retrieval of LinFAC beside kronfluence's EK-FAC.

    python -m benchmarks.influence --shape a --json OUT   # random model of a fixed shape
    python -m benchmarks.influence --shape b --json OUT   # the embedded study, trained once for every seed
    python -m benchmarks.influence --shape c --json OUT   # compliance_smollm2, once `lancet run compliance_smollm2` is done

Everything runs in one process with the same threads and data; times are medians of rounds, EK-FAC's before the interleaved
ones of plain passes and LinFAC. kronfluence takes batches of one size, as many sequences as the longest one allows; the
others have as many tokens. A plain pass is one forward and one backward pass with gradients of all parameters over all
sequences. Memory is the peak above what the process holds with the model loaded.

EK-FAC gets the best damping of a sweep and the best normalisation of its scores, this project's among them, both chosen by the
labels; LinFAC has the damping that it chooses without them and scores over gradient norms. The sweep takes
kronfluence's factors through this project's scoring pass, which needs one pass for all dampings; `ekfac_scores_agree` is
the correlation with the scores that kronfluence itself computes from them.

Shape c has one model, since training it takes half an hour: its seeds are disjoint draws of 96 of the 1,776 training
sequences. Costs are measured on the first draw. For precision both methods are fitted once, on all of the first draw, since
EK-FAC takes some ten seconds a sequence there. `--part costs` and `--part precision` do one half of the work each and add to
the same file. `--part queries`, of shape c, needs no study that has been run: the checkpoint as it comes, 96 of its training sequences
scored on 256 others one by one, beside the same 256 as one batch.
"""

import copy
import ctypes
import gc
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

from lancet_pipeline.attribution.words import bm25_scores, tf_idf_scores
from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.linfac import (
    Factors,
    LinfacConfig,
    Query,
    choose_damping,
    fit_factors,
    query_each,
    query_gradient,
    score_dataset,
    score_sequences,
)
from lancet_pipeline.linfac.damping import CANDIDATES
from lancet_pipeline.linfac.influence import default_budget, unlabelled_budget
from lancet_pipeline.linfac.scores import floored, mean_gradient, score_batch
from lancet_pipeline.models.runtime import Runtime

Shape = StrEnum("Shape", ["a", "b", "c"])
Part = StrEnum("Part", ["all", "costs", "precision", "queries"])
UNITS = ("sublayer_output", "linear")
FLAT = 1e12  # so much damping leaves the gradient
DRAW = 96  # sequences of shape c
SMOLLM2 = "compliance_smollm2"


@dataclass(frozen=True)
class Setup:
    """`train` stands in the order of its batches; `harmful` says which sequences are known to be harmful.
    `documents` and `asked` are the texts of training samples and queries."""

    model: Any
    train: list[TokenSequence]
    queries: list[TokenSequence]
    batch_tokens: int
    harmful: np.ndarray | None = None
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

    @property
    def response_lengths(self) -> np.ndarray:
        return np.array([len(sequence) - max(sequence.response_start, 1) for sequence in self.train])


def main(
    shape: Annotated[Shape, typer.Option()] = Shape.a,
    part: Annotated[Part, typer.Option()] = Part.all,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    home: Annotated[Path, typer.Option(help="Where compliance_smollm2 was run, and shape b's models go.")] = Path(
        ".lancet"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Models of shape b, draws of shape c.")] = 5,
    rounds: int = 3,
    ekfac_rounds: Annotated[int | None, typer.Option(help="As `rounds`, or 1 for shape c.")] = None,
) -> None:
    report = json.loads(json_out.read_text()) if part is not Part.all and json_out and json_out.exists() else {}
    report["shape"] = shape.value

    def keep(found: dict[str, Any]) -> None:
        report.update(found)
        if json_out is not None:
            json_out.write_text(json.dumps(report, indent=2))

    if part is Part.queries:
        keep({"queries": single_queries(home, rounds)})
        print(json.dumps(report["queries"], indent=2))
        return
    factors_of_c = home / "benchmarks" / "ekfac"
    if part is not Part.precision:
        setup = {
            Shape.a: shape_a,
            Shape.b: lambda: shape_b(home, 0),
            Shape.c: lambda: of_study(SMOLLM2, home, slice(0, DRAW)),
        }[shape]()
        with tempfile.TemporaryDirectory() as folder:
            rival, measured = rival_costs(setup, ekfac_rounds or (1 if shape is Shape.c else rounds), Path(folder))
            if shape is Shape.c:
                factors_of_c.mkdir(parents=True, exist_ok=True)
                rival.factors(setup.model).save(factors_of_c)
            rival_bytes = rival.disk_bytes()
            del rival  # with its copy of the model
            keep(costs(setup, rounds, measured, rival_bytes, Path(folder)))
    if part is not Part.costs and shape is not Shape.a:
        found = []
        if shape is Shape.c:
            first = of_study(SMOLLM2, home, slice(0, DRAW))
            fitted, factors = Factors.load(factors_of_c), fit_factors(first.model, first.batches(), LinfacConfig())
            fitted.require(first.model)
            del first
        for seed in range(seeds):
            if shape is Shape.b:
                setup = shape_b(home, seed)
                with tempfile.TemporaryDirectory() as folder:
                    rival = ekfac(setup, Path(folder))
                    heuristic = rival.scores(setup.queries, setup.train, None, pooled=True)
                    fitted = rival.factors(setup.model)
                    agree = {"ekfac_scores_agree": agreement(setup, rival, fitted)}
                factors = fit_factors(setup.model, setup.batches(default_budget(len(setup.train))), LinfacConfig())
            else:
                setup, heuristic, agree = of_study(SMOLLM2, home, slice(seed * DRAW, (seed + 1) * DRAW)), None, {}
            found.append(precisions(setup, factors, fitted, heuristic) | agree)
            keep(averages(found))
    print(json.dumps({k: v for k, v in report.items() if k != "seconds"}, indent=2))


def single_queries(home: Path, rounds: int, count: int = 256) -> dict[str, Any]:
    """Time and memory of scores on single queries, over those of the same queries as one batch."""
    setup = untrained_c(home, count)
    data, queries = setup.batches(), setup.query_batches
    factors = fit_factors(setup.model, data[:2], LinfacConfig())
    meter, truncation = Meter(), 0.0

    def pooled() -> None:
        score_sequences(setup.model, data, query_gradient(setup.model, queries, factors))

    def single() -> None:
        nonlocal truncation
        query = query_each(setup.model, setup.queries, factors, setup.batch_tokens)
        truncation = query.truncation
        score_sequences(setup.model, data, query)

    for _ in range(rounds):
        meter("pooled", pooled)
        meter("single", single)
    seconds = {name: float(np.median(values)) for name, values in meter.seconds.items()}
    return {
        "queries": count,
        "sequences": len(setup.train),
        "time_ratio": seconds["single"] / seconds["pooled"],
        "more_gigabytes": (meter.peaks["single"] - meter.peaks["pooled"]) / 1e9,
        "truncation": truncation,
        "seconds": seconds,
    }


def untrained_c(home: Path, queries: int) -> Setup:
    """The checkpoint of shape c and its training data, before any training."""
    from lancet_pipeline.config.environment import deployment
    from lancet_pipeline.config.loading import find_study, load_study
    from lancet_pipeline.data.readers import read_samples
    from lancet_pipeline.data.tokenization import load_tokenizer, tokenize
    from lancet_pipeline.models.loading import find_checkpoint, load_model

    where = deployment({}, home)
    study = load_study(find_study(SMOLLM2, where.study_directories))
    folder = find_checkpoint(study.model.checkpoint or "", where.model_directories)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = study.data.chat_template
    rows = read_samples(study.data.train, responses=True).to_pylist()[: DRAW + queries]
    sequences = tokenize(tokenizer, rows, max_length=study.data.max_length, overlength="truncate")
    return Setup(load_model(folder), sequences[:DRAW], sequences[DRAW:], study.compute.batch_tokens)


def averages(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Average precisions over the seeds, and those of each."""
    single = [name for name, value in found[0].items() if isinstance(value, float)]
    return {
        "average_precision": {name: float(np.mean([one[name] for one in found])) for name in single},
        "average_precision_per_seed": found,
    }


def rival_costs(setup: Setup, rounds: int, folder: Path) -> "tuple[Any, Meter]":
    """EK-FAC's times and peaks; and EK-FAC as last fitted, whose files are below `folder`."""
    meter = Meter()
    plain_pass(setup.model, setup.batches()[:1])  # warms kernels up
    rival = None
    for index in range(rounds):
        rival = None  # with its copy of the model
        rival = meter("ekfac factors", lambda index=index: ekfac(setup, folder / str(index)))
        meter("ekfac scores", lambda rival=rival: rival.scores(setup.queries, setup.train, None, pooled=True))
    return rival, meter


def costs(setup: Setup, rounds: int, rival: "Meter", rival_bytes: int, folder: Path) -> dict[str, Any]:
    """Times, peaks and bytes of LinFAC and of plain passes, beside those of the rival."""
    meter = Meter()
    model, data, queries = setup.model, setup.batches(), setup.query_batches
    budget, unlabelled = default_budget(len(setup.train)), setup.batches(unlabelled_budget(len(setup.train)), 1)
    default, few, runtime = LinfacConfig(), setup.batches(budget), Runtime(batch_tokens=setup.batch_tokens)
    for _ in range(rounds):
        meter("plain", lambda: plain_pass(model, data))
        factors = meter("factors same budget", lambda: fit_factors(model, data, default))
        query = meter("query sublayer_output", lambda factors=factors: query_gradient(model, queries, factors))
        meter("scores sublayer_output", lambda query=query: score_sequences(model, data, query))
        meter("scores of a study", lambda query=query: score_dataset(model, setup.train, query, runtime))
        factors.save(folder)
        factors = meter("factors default", lambda: fit_factors(model, few, default))
        meter("damping default", lambda factors=factors: choose_damping(model, queries, unlabelled, factors))
        factors = fit_factors(model, setup.batches(8), LinfacConfig(units="linear"))
        query = query_gradient(model, queries, factors)
        meter("scores linear", lambda query=query: score_sequences(model, data, query))
        del factors, query  # nothing of LinFAC's is there when the next plain pass is measured
    linfac_bytes = (folder / "factors.safetensors").stat().st_size
    own_peak = max(peak for name, peak in meter.peaks.items() if name not in ("plain", "scores linear"))
    every, peaks = meter.seconds | rival.seconds, meter.peaks | rival.peaks
    seconds = {name: float(np.median(values)) for name, values in every.items()}

    def total(*parts: str) -> float:
        return sum(seconds[part] for part in parts)

    rival_total = total("ekfac factors", "ekfac scores")
    scoring = total("query sublayer_output", "scores of a study")
    return {
        "sequences": len(setup.train),
        "queries": len(setup.queries),
        "default_budget": budget,
        "threads": torch.get_num_threads(),
        "plain_seconds": seconds["plain"],
        "score_ratio": {units: seconds[f"scores {units}"] / seconds["plain"] for units in UNITS},
        "study_score_ratio": seconds["scores of a study"] / seconds["plain"],  # with norms and the largest token shares
        "total_over_ekfac": {
            "same_budget": (seconds["factors same budget"] + scoring) / rival_total,
            "default": (total("factors default", "damping default") + scoring) / rival_total,
        },
        "ekfac_passes": rival_total / seconds["plain"],
        "peak_memory_ratio": own_peak / peaks["plain"],
        "ekfac_peak_memory_ratio": max(rival.peaks.values()) / peaks["plain"],
        "disk_ratio": linfac_bytes / rival_bytes,
        "median_seconds": seconds,
        "peak_mebibytes": {name: peak / 2**20 for name, peak in peaks.items()},
        "seconds": every,
    }


def agreement(setup: Setup, rival: Any, fitted: Factors) -> float:
    """Correlation of kronfluence's own scores with those of its factors in this project's scoring pass."""
    theirs = rival.scores(setup.queries, setup.train, 0.1 * fitted.mean_eigenvalue, pooled=True).numpy()
    return float(np.corrcoef(theirs, sweep(setup, fitted, {0.1})[0][0.1])[0, 1])


def plain_pass(model: Any, batches: Iterable[TokenBatch]) -> None:
    """As anyone would write it: all logits of the model, and the loss of the response tokens."""
    for batch in batches:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        labels = batch.input_ids.where(batch.loss_mask, -100)[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, reduction="sum").backward()
    model.zero_grad(set_to_none=True)


def precisions(setup: Setup, factors: Factors, rival: Factors, heuristic: torch.Tensor | None) -> dict[str, Any]:
    """Average precision of the harmful sequences: LinFAC as a study has it, scores over gradient norms; rivals at the
    best of all dampings and normalisations; and what other normalisations make of LinFAC.

    heuristic: EK-FAC's scores by kronfluence at the damping of its own choice.
    """
    model, queries = setup.model, setup.query_batches
    choice = choose_damping(model, queries, setup.batches(unlabelled_budget(len(setup.train)), 1), factors)
    found, norms = sweep(setup, factors, {*CANDIDATES, FLAT})
    gradient = found.pop(FLAT)
    ours = {f"{rho:g}": normalised(setup, scores, norms) for rho, scores in found.items()}
    rival_scores, rival_norms = sweep(setup, rival, {*CANDIDATES, FLAT})
    rival_gradient = rival_scores.pop(FLAT)
    dots = normalised(setup, gradient, norms), normalised(setup, rival_gradient, rival_norms)
    theirs = {f"{rho:g}": normalised(setup, scores, rival_norms) for rho, scores in rival_scores.items()}
    if heuristic is not None:
        theirs["heuristic"] = normalised(setup, heuristic.numpy(), rival_norms)
    chosen = ours[f"{choice.damping:g}"]
    result = {
        "linfac": chosen["gradient_norm"],
        "linfac_best_damping": max(one["gradient_norm"] for one in ours.values()),
        "linfac_by_length": chosen["length"],
        "linfac_by_length_best_damping": max(one["length"] for one in ours.values()),
        "linfac_undivided": chosen["none"],
        "ekfac": max(max(one.values()) for one in theirs.values()),
        "ekfac_by_length": max(one["length"] for one in theirs.values()),
        "ekfac_undivided": max(one["none"] for one in theirs.values()),
        "gradient_dot": max(max(one["none"], one["length"]) for one in dots),
        "gradient_cosine": max(one["gradient_norm"] for one in dots),
        "bm25": precision(setup, bm25_scores(setup.documents, setup.asked).mean(1)),
        "tf_idf": precision(setup, tf_idf_scores(setup.documents, setup.asked).mean(1)),
        "share": float(np.mean(setup.harmful)),
        "chosen_damping": choice.damping,
        "reliability": factors.reliability if factors.reliabilities else None,
    }
    print(json.dumps(result), flush=True)
    return result | {"linfac_by_damping": ours, "ekfac_by_damping": theirs}


def normalised(setup: Setup, scores: np.ndarray, norms: np.ndarray) -> dict[str, float]:
    """Average precision of scores as they are, per response token, and over the norms of their gradients."""
    divisors = {"none": 1.0, "length": setup.response_lengths, "gradient_norm": floored(norms)}
    return {name: precision(setup, scores / divisor) for name, divisor in divisors.items()}


def precision(setup: Setup, scores: np.ndarray) -> float:
    return float(average_precision_score(setup.harmful, scores))


def sweep(setup: Setup, factors: Factors, dampings: set[float]) -> tuple[dict[float, np.ndarray], np.ndarray]:
    """Scores [N] on all queries under each damping, and norms of gradients [N], in one pass."""
    ordered = sorted(dampings)
    gradients, _ = mean_gradient(setup.model, setup.query_batches, factors.units, "queries")
    matrices = tuple(torch.cat(factors.precondition_each(i, g[None], ordered)) for i, g in enumerate(gradients))
    query = Query(tuple(map(str, ordered)), factors.units, matrices, (1 / len(ordered),) * len(ordered), factors.model)
    parts = [score_batch(setup.model, batch, query) for batch in setup.batches()]
    scores = torch.cat([part.by_group for part in parts]).numpy()
    norms = torch.cat([part.squared_norms for part in parts]).sqrt().numpy()
    return dict(zip(ordered, scores.T, strict=True)), norms


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
    from lancet_pipeline.config.environment import deployment
    from lancet_pipeline.config.loading import find_study
    from lancet_pipeline.lineage.staleness import pending_run
    from lancet_pipeline.orchestration.runs import execute

    where = deployment({}, home)
    settings = yaml.safe_load(find_study("demo", where.study_directories).read_text())
    name = f"demo_seed_{seed}"
    path = home / "benchmarks" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings | {"name": name, "seed": seed}))
    execute(pending_run(str(path), where, "undesirable_outputs"))
    return of_study(str(path), home)


def of_study(name: str, home: Path, draw: slice = slice(None)) -> Setup:
    """Base model, queries and training data of a study's last run; `draw` is a part of the data in a random order."""
    from lancet_pipeline.config.environment import deployment
    from lancet_pipeline.config.loading import find_study, load_study
    from lancet_pipeline.data.tokenization import load_prepared, load_tokenizer
    from lancet_pipeline.evaluation.queries import read_rows
    from lancet_pipeline.lineage.results import last_run
    from lancet_pipeline.linfac.influence import query_sequences
    from lancet_pipeline.models.loading import load_model
    from lancet_pipeline.store.artifacts import ArtifactStore

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
        tuple(texts[i] for i in order),
        tuple(f"{row['prompt']} {row['response']}" for row in rows),
    )


class Meter:
    """Seconds of every call by name, and the highest resident memory above its making, sampled at 200 Hz."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, float] = {}
        _release()
        self._start = _resident()

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        done, peak = threading.Event(), 0.0

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.005):
                peak = max(peak, _resident() - self._start)

        _release()
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


def _release() -> None:
    """Gives back what earlier calls freed, so that it is not taken for the next one's."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    typer.run(main)
