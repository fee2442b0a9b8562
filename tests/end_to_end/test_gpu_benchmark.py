"""The benchmark for GPUs works, as far as a CPU can tell."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.gpu import collected
from lancet_pipeline.lineage.stages import STAGES


@pytest.mark.slow
def test_every_part_is_measured_in_small(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--json", str(out), "--home", str(tmp_path / "home")]
    hidden = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=os.environ | hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["parts"].keys() == {"smollm2", "opt27b", "llama8b"}
    for name, figures in result["parts"].items():
        assert "failed" not in figures, figures["failed"]
        assert all(figures[stage]["seconds"] > 0 for stage in ("factors", "query", "scores", "ibo"))
        assert figures["scores"]["sequences_a_second"] > 0
        assert figures["ibo"]["seconds_a_step"] > 0
        assert "Self CPU" in (tmp_path / f"gpu.json.{name}.txt").read_text()
    assert result["parts"]["smollm2"]["study"]["seconds"].keys() == STAGES.keys()
    assert result["parts"]["llama8b"]["factors"]["units"] == 2


def test_what_was_measured_before_a_failure_stays():
    def part():
        yield "factors", {"seconds": 1.0}
        raise RuntimeError("CUDA out of memory. Tried to allocate\nsecond line")

    assert collected(part()) == {
        "factors": {"seconds": 1.0},
        "failed": "RuntimeError: CUDA out of memory. Tried to allocate",
    }
