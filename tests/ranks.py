"""Trainings of a tiny model, in one process or on the ranks of a process group, from and to folders."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from lancet_pipeline.config.study import CorrectionSettings, Training
from lancet_pipeline.correction import RankedPair, correct
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.errors import LancetError
from lancet_pipeline.models.loading import load_model, save_model
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.models.training import train
from lancet_pipeline.progress import Track, no_progress

PACKAGE = "lancet_pipeline.correction"
TRAINING = Training(epochs=1.15, batch_size=7, learning_rate=1e-2)  # 45 sequences: the last batch of a pass has three
CORRECTION = CorrectionSettings(
    beta=0.1,
    mu=1.0,
    retain_per_step=8,
    steps=8,
    learning_rate=2e-3,
    check_every=4,
    retain_budget=3.0,
    retain_validation=8,
    pairs_per_step=3,
)


class Killed(Exception):
    pass


def write_tiny_model(folder: Path) -> Path:
    """41 tokens and a width of 18, so that shards on two or three ranks differ in size."""
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    sizes = {"vocab_size": 41, "hidden_size": 18, "intermediate_size": 30, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=3, num_key_value_heads=3, tie_word_embeddings=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<e>")
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


def sequences() -> list[TokenSequence]:
    draw = np.random.default_rng(0)
    return [TokenSequence(str(i), draw.integers(0, 41, draw.integers(8, 14)), 5) for i in range(45)]


def run_case(
    model_folder: Path,
    out: Path,
    settings: Training | CorrectionSettings,
    *,
    kill_at: int | None = None,
    dtype: str = "float32",
    track: Track = no_progress,
    checkpoint_seconds: float = 60.0,
    checkpointing: bool = False,
) -> None:
    """Train or correct the model in `model_folder` and write it, its curve or its error into `out`; the checkpoint lies beside
    `out`. kill_at: steps after which it is given up."""

    def mortal(items: Any, total: int, label: str):
        for step, item in enumerate(track(items, total, label)):
            if step == kill_at:
                raise Killed
            yield item

    model, data = load_model(model_folder, dtype=dtype), sequences()
    options: dict[str, Any] = {
        "seed": 3,
        "checkpoint_seconds": checkpoint_seconds if kill_at is None else 0.0,
        "runtime": Runtime(
            batch_tokens=40,
            checkpoint=out.parent / f"{out.name.split('-')[0]}.safetensors",
            activation_checkpointing=checkpointing,
            track=mortal,
        ),
    }
    try:
        if isinstance(settings, Training):
            result = train(model, data, settings, **options)
        else:
            pairs = [RankedPair(data[i], data[i + 5], 0.5 + i) for i in range(5)]
            done = correct(model, pairs, data[10:], settings, **options)
            result = {"curve": done.curve, "best_step": done.best_step, "ended": done.ended}
    except Killed:
        return
    except LancetError as error:
        result = {"error": str(error)}
    save_model(model, PreTrainedTokenizerFast.from_pretrained(model_folder), out)
    if not dist.is_initialized() or dist.get_rank() == 0:
        (out / "result.json").write_text(json.dumps(result))


def on_ranks(count: int, calls: list[Callable[[], None]]) -> None:
    """Make each of `calls` on every rank of a group over loopback."""
    # One process imports what takes seconds to import, and every rank is a fork of it.
    multiprocessing.set_forkserver_preload(["transformers.models.llama.modeling_llama", "peft", PACKAGE])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (count, f"{folder}/group", calls), nprocs=count, start_method="forkserver")


def _rank(rank: int, count: int, group: str, calls: list[Callable[[], None]]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    disable_progress_bar()
    dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=count)
    for call in calls:
        call()
    dist.destroy_process_group()
