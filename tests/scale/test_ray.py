"""Training and passes on a real Ray cluster of two nodes on this machine: the same numbers as in one process, whatever dies.

One cluster serves all tests in their order; the last but one takes a node away.
"""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import ranks
import torch
from linfac.small import llama

from lancet_pipeline.config.study import ComputeSettings
from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.errors import InputError, Unreachable
from lancet_pipeline.linfac import LinfacConfig, fit_factors, query_gradient, score_dataset
from lancet_pipeline.linfac.journal import COLUMNS, ScorePass
from lancet_pipeline.models import distributed
from lancet_pipeline.models.loading import load_model
from lancet_pipeline.models.runtime import Runtime

ray = pytest.importorskip("ray", reason="ray is not installed; pip install 'lancet-pipeline[scale]'")
from models.test_distributed import assert_same  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from lancet_pipeline.scale import cluster as cluster_module  # noqa: E402
from lancet_pipeline.scale.ray_engine import RayEngine  # noqa: E402
from lancet_pipeline.scale.ray_train import on_workers  # noqa: E402

pytestmark = pytest.mark.slow
SETTINGS = ComputeSettings(engine="ray", workers=2, shard_batches=2)
ONE_WORKER = ComputeSettings(engine="ray", workers=1)


def some_sequences(count: int) -> list[TokenSequence]:
    generator = np.random.default_rng(0)
    return [
        TokenSequence(str(i), generator.integers(0, 50, int(generator.integers(6, 30))).astype(np.int32), 4)
        for i in range(count)
    ]


SEQUENCES = some_sequences(200)
BATCHES = [collate(SEQUENCES[start : start + 7]) for start in range(0, 63, 7)]


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes of one core each."""
    soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "worker_niceness": 0}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    found = Cluster(initialize_head=True, head_node_args=head)
    found.add_node(num_cpus=1)
    for module in (sys.modules[__name__], ranks):
        ray.cloudpickle.register_pickle_by_value(module)
    cluster_module.connect(ComputeSettings(engine="ray", address=found.address))
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    llama().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def factors(model):
    return fit_factors(model, BATCHES, LinfacConfig())


@pytest.fixture(scope="module")
def query(model, factors):
    return query_gradient(model, {"a": [collate(SEQUENCES[:3])], "b": [collate(SEQUENCES[3:5])]}, factors)


@pytest.fixture(scope="module")
def engine(nodes, folder) -> RayEngine:
    return RayEngine(folder, "float32", "cpu", SETTINGS)


CASES = {"ibo": ranks.CORRECTION, "train": ranks.TRAINING}


def die_once(model: Path, folder: Path, *, device: str, track) -> None:
    """Every case; the second rank kills itself after five steps of the first one. Then an error on every rank."""

    def mortal(items, total, label):
        for step, item in enumerate(track(items, total, label)):
            if step == 5 and not distributed.first() and not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    for case, settings in CASES.items():
        ranks.run_case(model, folder / case, settings, track=mortal, checkpoint_seconds=0.0)
    raise InputError(f"data: no such row on {distributed.ranks()} ranks")


def test_a_killed_worker_changes_nothing_and_an_error_comes_back_as_itself(nodes, tmp_path):
    model = ranks.write_tiny_model(tmp_path / "model")
    for case, settings in CASES.items():
        ranks.run_case(model, tmp_path / "whole" / case, settings)
    passes = []

    def watch(items, total, label):
        passes.append([label, total, 0])
        for item in items:
            passes[-1][2] += 1
            yield item

    function = partial(die_once, model, tmp_path)
    with pytest.raises(InputError, match=r"^data: no such row on 2 ranks$"):
        on_workers(function, SETTINGS, tmp_path / "checkpoints", track=watch)
    assert (tmp_path / "died").exists()
    for case in CASES:
        assert_same(tmp_path / "whole" / case, tmp_path / case)
    assert passes[-1] == ["training", 8, 8]
    # The driver looks now and then, and need not see a pass as short as this one.
    assert {total for label, total, _ in passes if label == "correcting"} <= {8, 3}
    assert list((tmp_path / "checkpoints").iterdir()) == []


def ranks_there(*, device: str, track) -> int:
    return distributed.ranks()


def test_one_worker_gives_back_what_the_function_returns(nodes, tmp_path):
    assert on_workers(ranks_there, ONE_WORKER, tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_factors_are_those_of_one_process(engine, model, factors):
    """Nine batches of seven sequences in as many pieces: every other piece starts with the other half."""
    found = fit_factors(model, BATCHES, factors.config, engine=engine)
    assert found.sequences == factors.sequences
    for there, here in zip(found.blocks, factors.blocks, strict=True):
        torch.testing.assert_close(there.eigenvalues(), here.eigenvalues(), rtol=1e-3, atol=1e-5)


def test_a_worker_that_does_not_see_the_model_says_so(nodes, model, query):
    engine = RayEngine(Path("/nowhere/model"), "float32", "cpu", ONE_WORKER)
    with pytest.raises(InputError, match="does not see the model; put --home on a file system that all nodes share"):
        score_dataset(model, SEQUENCES[:4], query, Runtime(batch_tokens=100, engine=lambda _: engine))


@dataclass(frozen=True)
class Slow(ScorePass):
    """Takes its time, and writes down each batch that it begins."""

    log: str = ""

    def __call__(self, model, batches):
        for batch in batches:
            with Path(self.log).open("a") as file:
                file.write(f"{batch.names[0]}\n")
            time.sleep(0.15)
            yield from super().__call__(model, [batch])


def begun(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def scored_while(engine, query, log: Path, disturb) -> tuple[list, int]:
    """Parts of 40 slow batches, with `disturb` called in the middle; and how many batches were begun. An error of ours at
    their end comes back as it was."""
    batches = [collate(SEQUENCES[start : start + 5]) for start in range(0, 200, 5)]
    batches.append(collate([TokenSequence("spoilt", np.arange(8, dtype=np.int32), 8)]))

    def watch() -> None:
        while begun(log) < 8:
            time.sleep(0.02)
        disturb()

    watcher = threading.Thread(target=watch)
    watcher.start()
    parts: list = []
    with pytest.raises(InputError, match=r"^sample spoilt: has no response token"):
        parts.extend(engine.run(Slow(query, 8, str(log)), batches, len(batches), "scoring"))
    watcher.join()
    return parts, begun(log) - 1


def require_equal(parts: list, model, query) -> None:
    batches = [collate(SEQUENCES[start : start + 5]) for start in range(0, 200, 5)]
    expected = list(ScorePass(query, 8)(model, batches))
    for column in COLUMNS:
        there, here = (np.concatenate([getattr(part, column) for part in found]) for found in (parts, expected))
        np.testing.assert_array_equal(there, here)


def kill_a_worker() -> None:
    workers = [p for p in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(p.info["cmdline"] or [])]
    workers[0].kill()


def test_a_killed_worker_costs_no_more_than_its_shard(engine, model, query, tmp_path):
    parts, batches = scored_while(engine, query, tmp_path / "log", kill_a_worker)
    require_equal(parts, model, query)
    assert 40 <= batches <= 40 + SETTINGS.shard_batches


def test_a_node_lost_in_the_middle_loses_nothing(engine, nodes, model, query, tmp_path):
    lost = nodes.list_all_nodes()[-1]
    parts, batches = scored_while(
        engine, query, tmp_path / "log", lambda: nodes.remove_node(lost, allow_graceful=False)
    )
    require_equal(parts, model, query)
    assert batches >= 40


def test_a_cluster_that_is_away_is_named():
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(Unreachable, match=r"compute.address: no Ray cluster at 127.0.0.1:1"):
        cluster_module.connect(ComputeSettings(engine="ray", address="127.0.0.1:1"))
