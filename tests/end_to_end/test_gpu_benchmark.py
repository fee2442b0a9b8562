"""The benchmark for GPUs works, as far as a CPU can tell."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from lancet_pipeline.lineage.stages import STAGES


@pytest.mark.slow
@pytest.mark.parametrize("part", ["smollm2", "llama8b"])
def test_a_part_is_measured_in_small(tmp_path, part):
    figures = gpu.collected(gpu.stages(part, tmp_path / "home", True, tmp_path / "kernels.txt"))
    require_measured(figures, tmp_path / "kernels.txt")
    if part == "smollm2":
        assert figures["study"]["seconds"].keys() == STAGES.keys()
    else:
        assert figures["factors"]["units"] == 2


@pytest.mark.slow
def test_each_part_has_a_process_of_its_own_and_stands_in_the_result(tmp_path):
    out = tmp_path / "gpu.json"
    gpu.main(out, "opt27b", tmp_path / "home", True, None)
    result = json.loads(out.read_text())
    assert result["parts"].keys() == {"opt27b"}
    require_measured(result["parts"]["opt27b"], tmp_path / "gpu.json.opt27b.txt")


def require_measured(figures: dict, kernels: Path) -> None:
    assert "failed" not in figures, figures["failed"]
    assert all(figures[stage]["seconds"] > 0 for stage in ("factors", "query", "scores", "ibo"))
    assert figures["scores"]["sequences_a_second"] > 0
    assert figures["ibo"]["seconds_a_step"] > 0
    assert "Self CPU" in kernels.read_text()


def test_what_was_measured_before_a_failure_stays():
    def part():
        yield "factors", {"seconds": 1.0}
        raise RuntimeError("CUDA out of memory. Tried to allocate\nsecond line")

    assert gpu.collected(part()) == {
        "factors": {"seconds": 1.0},
        "failed": "RuntimeError: CUDA out of memory. Tried to allocate",
    }
