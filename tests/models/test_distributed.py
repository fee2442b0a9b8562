"""Training on the ranks of a process group is training in one process."""

import json
from functools import partial

import pytest
import ranks
import torch
from ranks import CORRECTION, TRAINING
from safetensors.torch import load_file

from lancet_pipeline.config.study import CorrectionSettings, LoraSettings


def changed(**values) -> CorrectionSettings:
    return CorrectionSettings.model_validate(CORRECTION.model_dump() | values)


LORA = LoraSettings(rank=2, alpha=4.0)
CASES = {
    "train": TRAINING,
    "train_bfloat16": TRAINING,
    "train_checkpointing": TRAINING,
    "ibo": changed(),
    "ibo_lora": changed(lora=LORA, learning_rate=1e-2),
    "ibo_bfloat16": changed(),
    "ibo_proximal": changed(gamma=0.5, pair_weight="influence", generator="euclidean"),
    "fewer_than_ranks": changed(pairs_per_step=1, retain_per_step=1),
    "budget": changed(learning_rate=0.03, retain_budget=1.055, check_every=1),
    "broken_budget": changed(learning_rate=0.03, retain_budget=1.02, check_every=1),
    **{name: changed(method=name) for name in ("npo", "graddiff", "task_vector", "sft_safe")},
}
RESUMED = ("train", "ibo", "ibo_lora")


def options_of(case: str) -> dict:
    return {"dtype": "bfloat16" if "bfloat16" in case else "float32", "checkpointing": "checkpointing" in case}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every case in one process and on two ranks; some killed on either and taken up on the other, or on three."""
    home = tmp_path_factory.mktemp("ranks")
    model = ranks.write_tiny_model(home / "model")

    def run(group: str, case: str, **options):
        return partial(ranks.run_case, model, home / group / case, CASES[case.removesuffix("-killed")], **options)

    for case in CASES:
        run("one", case, **options_of(case))()
    for case in RESUMED:
        run("one_two", f"{case}-killed", kill_at=5)()
        assert (home / "one_two" / f"{case}.safetensors").is_file()
    killed = [run(group, f"{case}-killed", kill_at=5) for group in ("two_one", "two_three") for case in RESUMED]
    resumed = [run("one_two", case) for case in RESUMED]
    ranks.on_ranks(2, [*(run("two", case, **options_of(case)) for case in CASES), *killed, *resumed])
    for case in RESUMED:
        run("two_one", case)()
    ranks.on_ranks(3, [run("two_three", case) for case in RESUMED])
    return home


def result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


def assert_same(first, second, tolerance: float = 2e-5) -> None:
    expected, found = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance)
    assert flat(result(second)) == pytest.approx(flat(result(first)), rel=100 * tolerance, abs=tolerance)
    assert (first / "config.json").read_text() == (second / "config.json").read_text()


def flat(value) -> list:
    """The numbers of a JSON tree; texts are left out."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [number for item in items for number in flat(item)]
    return [] if isinstance(value, str) else [value]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_do_what_one_process_does(folder, case):
    # Adam's steps are as long as the learning rate, however small the gradients whose rounding differs.
    rate = CASES[case].learning_rate
    assert_same(folder / "one" / case, folder / "two" / case, 2 * rate if "bfloat16" in case else 5e-3 * rate)


def test_all_ranks_end_together_at_the_budget(folder):
    ended = result(folder / "two" / "budget")
    assert "retain budget broken up to step" in ended["ended"]
    assert len(ended["curve"]) < CORRECTION.steps
    assert "was broken at every look" in result(folder / "two" / "broken_budget")["error"]


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("group", ["one_two", "two_one", "two_three"])
def test_what_was_killed_goes_on_on_another_number_of_ranks(folder, group, case):
    assert_same(folder / "one" / case, folder / group / case)
    assert not (folder / group / f"{case}.safetensors").exists()
