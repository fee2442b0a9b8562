"""Stand-ins for what the paper's studies take from the hub: data sets in the hub's columns, checkpoints with random weights of
the same architecture, and a guard that answers by a rule."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.decoders import CONFIGS, reduced
from lancet_pipeline.data.presets import PRESETS
from lancet_pipeline.data.tokenization import PLAIN_TOKENS, train_tokenizer
from lancet_pipeline.errors import InputError
from lancet_pipeline.models.loading import save_model

if TYPE_CHECKING:
    pass

Rows = list[dict[str, Any]]

HARMS = ("hate_speech,offensive_language", "non_violent_unethical_behavior", "violence,aiding_and_abetting,incitement")
TOKENS = {"facebook/opt-2.7b": 1024, "meta-llama/Llama-2-7b-hf": 1024, "meta-llama/Llama-3.1-8B": 4096}
"""Vocabulary of each stand-in's tokenizer: one large beside the width where the model's own is large."""
UNUSED_ROWS = {"facebook/opt-2.7b": 7}
"""Rows of the embedding that no token has."""
VERDICTS = ("<safe>", "<unsafe>")


def write_data_set(folder: Path, splits: dict[str, Rows]) -> None:
    """A data set as `datasets.load_dataset` finds it in a folder: one Parquet file a split."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")


def write_data_sets(files: Path, hub: Path) -> None:
    """The data sets of the paper's studies below `hub`, from the Parquet files in the folder `files`.

    BeaverTails is made of Safe RLHF answers, its evaluation prompts of held-out harmful requests, Alpaca of benign answers;
    the category of an unsafe answer says nothing (its place among three).

    Raises:
        InputError: a file is missing.
    """

    def read(name: str) -> Rows:
        path = files / f"{name}.parquet"
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the folder of the data by --folder")
        return pq.read_table(path).to_pylist()

    hh, pku = ({"train": read(f"{name}_train"), "test": read(f"{name}_eval")} for name in ("hh", "saferlhf"))
    evaluation, alpaca = read("ood_harmful_prompts"), read("utility")
    write_data_set(hub / "Anthropic/hh-rlhf", {split: list(hh_rows(rows)) for split, rows in hh.items()})
    write_data_set(hub / "PKU-Alignment/PKU-SafeRLHF", {split: list(pku_rows(rows)) for split, rows in pku.items()})
    write_data_set(
        hub / "PKU-Alignment/BeaverTails",
        {f"30k_{split}": list(beavertails_rows(rows)) for split, rows in pku.items()},
    )
    write_data_set(
        hub / "PKU-Alignment/BeaverTails-Evaluation",
        {"test": [{"prompt": row["prompt"], "category": HARMS[0], "category_id": 0} for row in evaluation]},
    )
    write_data_set(
        hub / "tatsu-lab/alpaca",
        {"train": [{"instruction": row["prompt"], "input": "", "output": row["response"]} for row in alpaca]},
    )


def hh_rows(samples: Rows) -> Iterator[dict[str, str]]:
    """Pairs of a safe and an unsafe answer to the same prompt, as dialogues."""
    waiting: dict[tuple[str, bool], list[str]] = {}
    for row in samples:
        others = waiting.get((row["prompt"], not row["is_safe"]))
        if not others:
            waiting.setdefault((row["prompt"], row["is_safe"]), []).append(row["response"])
            continue
        pair = (row["response"], others.pop())
        sides = ("chosen", "rejected") if row["is_safe"] else ("rejected", "chosen")
        yield {
            side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {answer}" for side, answer in zip(sides, pair, strict=True)
        }


def pku_rows(samples: Rows) -> Iterator[dict[str, Any]]:
    """Two answers to the same prompt, each with its own label."""
    waiting: dict[str, dict[str, Any]] = {}
    for row in samples:
        other = waiting.pop(row["prompt"], None)
        if other is None:
            waiting[row["prompt"]] = row
            continue
        found: dict[str, Any] = {"prompt": row["prompt"]}
        for place, answer in enumerate((other, row)):
            found |= {f"response_{place}": answer["response"], f"is_response_{place}_safe": answer["is_safe"]}
        yield found


def beavertails_rows(samples: Rows) -> Iterator[dict[str, Any]]:
    for place, row in enumerate(samples):
        harm = None if row["is_safe"] else place % len(HARMS)
        category = {name: number == harm for number, name in enumerate(HARMS)}
        yield {
            "prompt": row["prompt"],
            "response": row["response"],
            "category": category,
            "is_safe": row["is_safe"],
        }


def texts_of(hub: Path, data_set: str, preset: str) -> list[str]:
    """All prompts and answers of a data set below `hub`, for fitting a tokenizer."""
    texts = []
    for file in sorted((hub / data_set / "data").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            for sample in PRESETS[preset](row):
                texts += [sample["prompt"], sample["response"]]
    return texts


def write_checkpoint(name: str, folder: Path, texts: Sequence[str], depth: int, width: int) -> None:
    """Random weights in the architecture of `name` and a BPE tokenizer fitted to `texts`. As in the originals the tokenizer
    has no chat template, and Llama's no padding token."""
    tokenizer = train_tokenizer(texts, TOKENS[name])
    tokenizer.chat_template = None
    if CONFIGS[name]["model_type"] == "llama":
        tokenizer.pad_token = None
    settings = reduced(name, depth, width, len(tokenizer) + UNUSED_ROWS.get(name, 0))
    config = AutoConfig.for_model(
        **settings,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    save_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), tokenizer, folder)


def write_guard(folder: Path, texts: list[str]) -> None:
    """A guard that answers <unsafe> where, of the tokens of an exchange, more have a positive sign than a negative one. Signs
    are drawn, those of many draws that part `texts` in halves best. So it judges by no more than chance, but it is loaded,
    asked and read as a real one is.

    One layer attends to all tokens alike and adds the mean of their signs to the stream; the head reads it.
    """
    tokenizer = train_tokenizer(texts, 512)
    tokenizer.add_tokens(list(VERDICTS))
    sign, other, verdict = torch.eye(4)[:3]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=8192,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()
    safe, unsafe = tokenizer.convert_tokens_to_ids(list(VERDICTS))
    embeddings, head, layer = model.model.embed_tokens.weight, model.lm_head.weight, model.model.layers[0]
    counts = torch.stack(
        [torch.bincount(torch.tensor(ids), minlength=len(tokenizer)) for ids in tokenizer(texts[:400])["input_ids"]]
    )
    draws = torch.randint(0, 2, (len(tokenizer), 256), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    unbalance = ((counts.float() @ draws).sign().mean(0)).abs()
    signs = draws[:, unbalance.argmin(), None]
    with torch.no_grad():
        embeddings.copy_(signs * sign)
        embeddings[tokenizer.convert_tokens_to_ids(list(PLAIN_TOKENS))] = other
        embeddings[[safe, unsafe]] = verdict
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
            projection.weight.zero_()
        layer.self_attn.v_proj.weight.copy_(torch.outer(sign, sign))
        layer.self_attn.o_proj.weight.copy_(torch.eye(4))
        head.zero_()
        head[unsafe], head[safe] = sign, -sign
        head[tokenizer.eos_token_id] = 10 * verdict
    save_model(model, tokenizer, folder)
