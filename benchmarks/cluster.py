"""Scoring on Ray against scoring in one process, and what dying workers cost.

    OMP_NUM_THREADS=1 python -m benchmarks.cluster --json OUT

A random Llama of the demo's shape and random sequences, 8 to 64 tokens long; nothing is kept in a journal. `in_process`, `one_worker` and
`two_workers` are interleaved over the rounds; medians. Seconds of Ray include the start of the workers (each loads torch and the
model), not that of the cluster, which stands alone as `cluster_start_seconds`. Starting takes the same time whatever there is to do,
so one and two workers are compared on `--many` samples too, once each. Then a worker is killed at a random moment of as many runs, on a
tenth of the samples: are the scores the same, and how many batches were begun again?
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import ComputeSettings
from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.linfac import LinfacConfig, Query, Scores, fit_factors, query_gradient, score_dataset
from lancet_pipeline.linfac.journal import COLUMNS, ScorePass
from lancet_pipeline.models.loading import load_model
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.scale.cluster import connect
from lancet_pipeline.scale.ray_engine import RayEngine

BATCH_TOKENS = 2048


def main(
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    samples: int = 20_000,
    many: int = 100_000,
    rounds: int = 3,
    kills: int = 10,
) -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with tempfile.TemporaryDirectory() as folder:
        model, drawn = setup(Path(folder), max(samples, many))
        sequences = drawn[:samples]
        factors = fit_factors(model, batches_of(sequences[:256]), LinfacConfig())
        query = query_gradient(model, batches_of(sequences[:32]), factors)
        started = time.monotonic()
        connect(ComputeSettings(engine="ray", workers=2))
        result: dict[str, Any] = {
            "samples": samples,
            "threads_of_a_worker": 1,
            "batches": len(bucketed(sequences, BATCH_TOKENS)),
            "cluster_start_seconds": time.monotonic() - started,
        }
        engines = {
            "in_process": Runtime(batch_tokens=BATCH_TOKENS),
            "one_worker": on_ray(Path(folder), 1),
            "two_workers": on_ray(Path(folder), 2),
        }
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, runtime in engines.items():
                started = time.monotonic()
                scores = score_dataset(model, sequences, query, runtime)
                seconds[name].append(time.monotonic() - started)
                print(json.dumps({name: seconds[name][-1]}), flush=True)
                if name == "in_process":
                    expected = scores
                elif not equal(scores, expected):
                    raise SystemExit(f"{name}: other scores than in one process")
        result["seconds"] = seconds
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        result["one_worker_over_in_process"] = median["one_worker"] / median["in_process"]
        result["throughput_two_over_one"] = median["one_worker"] / median["two_workers"]
        if many:
            result["many"] = on_many(model, drawn[:many], query, [engines["one_worker"], engines["two_workers"]])
        if kills:
            result["kills"] = killed(model, sequences[: samples // 10], query, ray_engine(Path(folder), 2), kills)
    print(json.dumps(result, indent=2))
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2) + "\n")


def on_many(model: Any, sequences: list[TokenSequence], query: Query, runtimes: list[Runtime]) -> dict[str, Any]:
    seconds = []
    for runtime in runtimes:
        started = time.monotonic()
        score_dataset(model, sequences, query, runtime)
        seconds.append(time.monotonic() - started)
    row = {"samples": len(sequences), "seconds": seconds, "throughput_two_over_one": seconds[0] / seconds[1]}
    print(json.dumps(row), flush=True)
    return row


def setup(folder: Path, samples: int) -> tuple[Any, list[TokenSequence]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = load_study(find_study("demo", deployment({}).study_directories)).model.architecture
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = shape.model_dump(exclude={"model_type", "vocab_size"})
    LlamaForCausalLM(LlamaConfig(vocab_size=1024, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 65, samples)
    sequences = [
        TokenSequence(str(i), generator.integers(0, 1024, length).astype(np.int32), int(length) // 2)
        for i, length in enumerate(lengths)
    ]
    return load_model(folder, dtype="float32", device="cpu"), sequences


def ray_engine(folder: Path, workers: int) -> RayEngine:
    return RayEngine(folder, "float32", "cpu", ComputeSettings(engine="ray", workers=workers))


def on_ray(folder: Path, workers: int) -> Runtime:
    return Runtime(batch_tokens=BATCH_TOKENS, engine=lambda _model: ray_engine(folder, workers))


def batches_of(sequences: list[TokenSequence]) -> list[TokenBatch]:
    return [collate([sequences[i] for i in group]) for group in bucketed(sequences, BATCH_TOKENS)]


def equal(one: Scores, other: Scores) -> bool:
    return all(np.array_equal(getattr(one, column), getattr(other, column)) for column in COLUMNS)


@dataclass(frozen=True)
class Logged(ScorePass):
    """Writes down each batch that it begins."""

    log: str = ""

    def __call__(self, model: Any, batches: Iterable[TokenBatch]) -> Iterator[Any]:
        for batch in batches:
            with Path(self.log).open("a") as file:
                file.write(f"{batch.names[0]}\n")
            yield from super().__call__(model, [batch])


def killed(
    model: Any, sequences: list[TokenSequence], query: Query, engine: RayEngine, count: int
) -> list[dict[str, Any]]:
    """What each run with a killed worker came to; the moment is drawn over the batches of the run."""
    batches, generator, found = batches_of(sequences), np.random.default_rng(0), []
    expected = joined(ScorePass(query, 8)(model, batches))
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder:
            log, moment = Path(folder) / "log", int(generator.integers(1, len(batches) - 1))
            watcher = threading.Thread(target=when, args=(log, moment, kill_a_worker))
            watcher.start()
            parts = joined(engine.run(Logged(query, 8, str(log)), batches, len(batches), "scoring"))
            watcher.join()
            same = all(np.array_equal(parts[column], expected[column]) for column in COLUMNS)
            repeated = len(log.read_text().splitlines()) - len(batches)
            row = {"killed_after_batch": moment, "batches": len(batches), "same": same, "repeated": repeated}
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def joined(parts: Iterable[Any]) -> dict[str, np.ndarray]:
    rows = list(parts)
    return {column: np.concatenate([getattr(part, column) for part in rows]) for column in COLUMNS}


def when(log: Path, batches: int, act: Callable[[], None]) -> None:
    while not log.exists() or len(log.read_text().splitlines()) < batches:
        time.sleep(0.005)
    act()


def kill_a_worker() -> None:
    """The worker that has used the processor most: one at work."""
    workers = [p for p in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(p.info["cmdline"] or [])]
    max(workers, key=lambda process: sum(process.cpu_times()[:2])).kill()


if __name__ == "__main__":
    typer.run(main)
