"""One function says which device a name means, for stages and commands alike."""

import pytest
import torch
from conftest import tiny_tree, write_tiny_study

from lancet_pipeline.config.loading import load_study
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.loading import resolve_device
from lancet_pipeline.resources import Compute

WRONG = ("meta", "gpu", "cuda:99")
REMEDY = r"nothing can be computed on it here .*give auto, cpu, cuda or cuda:N as --device, or as compute\.device"


def test_auto_is_the_gpu_where_there_is_one():
    assert torch.ones(1, device=resolve_device("auto")).is_cuda == torch.cuda.is_available()
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("name", WRONG)
def test_a_device_that_computes_nothing_is_refused_with_the_remedy(name):
    with pytest.raises(InputError, match=rf"^device {name}: {REMEDY}"):
        resolve_device(name)


def test_stages_take_the_studys_device_and_refuse_a_wrong_one(tmp_path):
    study = write_tiny_study(tmp_path, tiny_tree() | {"compute": {"device": "gpu"}})
    with pytest.raises(InputError, match=r"^device gpu: "):
        Compute().runtime(load_study(study))
