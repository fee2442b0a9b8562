"""Training on a real Ray cluster on this machine: the same model as in one process, whatever dies."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import ranks

from lancet_pipeline.config.study import ComputeSettings
from lancet_pipeline.errors import InputError
from lancet_pipeline.models import distributed

ray = pytest.importorskip("ray", reason="ray is not installed; pip install 'lancet-pipeline[scale]'")
from models.test_distributed import assert_same  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from lancet_pipeline.scale.cluster import connect  # noqa: E402
from lancet_pipeline.scale.ray_train import on_workers  # noqa: E402

pytestmark = pytest.mark.slow
SETTINGS = ComputeSettings(engine="ray", workers=2)


@pytest.fixture(scope="module")
def nodes():
    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    found = Cluster(initialize_head=True, head_node_args=head)
    for module in (sys.modules[__name__], ranks):
        ray.cloudpickle.register_pickle_by_value(module)
    connect(ComputeSettings(engine="ray", address=found.address))
    yield found
    ray.shutdown()
    found.shutdown()


CASES = {"ibo": ranks.CORRECTION, "train": ranks.TRAINING}


def die_once(model: Path, folder: Path, *, device: str, track) -> int:
    """Every case; the second rank kills itself after five steps of the first one."""

    def mortal(items, total, label):
        for step, item in enumerate(track(items, total, label)):
            if step == 5 and not distributed.first() and not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    for case, settings in CASES.items():
        ranks.run_case(model, folder / case, settings, track=mortal, checkpoint_seconds=0.0)
    return distributed.ranks()


def test_a_killed_worker_changes_nothing(nodes, tmp_path):
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
    assert on_workers(function, SETTINGS, tmp_path / "checkpoints", track=watch) == 2
    assert (tmp_path / "died").exists()
    for case in CASES:
        assert_same(tmp_path / "whole" / case, tmp_path / case)
    assert passes[-1] == ["training", 8, 8]
    # The driver looks now and then, and need not see a pass as short as this one.
    assert {total for label, total, _ in passes if label == "correcting"} <= {8, 3}
    assert list((tmp_path / "checkpoints").iterdir()) == []


def refuse(message: str, *, device: str, track) -> None:
    raise InputError(message)


def test_errors_of_ours_come_back_as_themselves(nodes, tmp_path):
    with pytest.raises(InputError, match=r"^data: no such row$"):
        on_workers(partial(refuse, "data: no such row"), SETTINGS, tmp_path)
    assert list(tmp_path.iterdir()) == []
