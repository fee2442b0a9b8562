"""Samples to token sequences: chat templates, response boundaries, and the prepared form on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import DataSettings, Study
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.readers import describe
from lancet_pipeline.data.schema import sample_id
from lancet_pipeline.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FITTED = "fitted.parquet"
PLAIN_TOKENS = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")


def load_tokenizer(checkpoint: str | Path, revision: str | None = None) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{checkpoint}: its tokenizer could not be loaded ({first_line(error)})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> "PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer fitted to `texts`; it encodes any text, words it never saw included."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(PLAIN_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=PLAIN_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def prompt_text(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> str:
    """The prompt as the model sees it, up to where its answer begins."""
    message = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    samples: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    overlength: str = "error",
    place: str = "samples",
) -> list[TokenSequence]:
    """Token sequences of `samples` (rows with sample_id, prompt, response), the end-of-turn token included
    (but not where `finished` is false: a generation that was cut off).

    Prompt and response are encoded apart, so that the boundary between them is exact.

    Raises:
        InputError: the tokenizer has no chat template, or a sample is too long and `overlength` is `error`.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path}: its tokenizer has no chat template; set data.chat_template")
    sequences = []
    for number, sample in enumerate(samples, start=1):
        message = {"role": "user", "content": sample["prompt"]}
        opening = prompt_text(tokenizer, sample["prompt"])
        answer = {"role": "assistant", "content": sample["response"]}
        whole = str(tokenizer.apply_chat_template([message, answer], tokenize=False))
        if not whole.startswith(opening):
            raise InputError(
                f"{tokenizer.name_or_path}: its chat template changes the prompt once an answer follows; "
                "set data.chat_template to one that only appends"
            )
        prompt_ids = tokenizer(opening, add_special_tokens=False)["input_ids"]
        closed = whole[len(opening) :].rstrip()
        ending = closed if sample.get("finished", True) else sample["response"]
        response_ids = tokenizer(ending, add_special_tokens=False)["input_ids"]
        ids = np.asarray(prompt_ids + response_ids, dtype=np.int32)
        if len(ids) > max_length:
            if overlength == "error":
                raise InputError(
                    f"{place}: sample {sample['sample_id']} (number {number} in id order): {len(ids)} tokens, more "
                    f"than data.max_length = {max_length}; raise it, shorten the sample, or set overlength"
                )
            if overlength == "drop" or len(prompt_ids) >= max_length:
                continue
            ids = ids[:max_length]
        sequences.append(TokenSequence(sample["sample_id"], ids, len(prompt_ids)))
    if not sequences:
        raise InputError(f"{place}: no sample fits into data.max_length = {max_length}; raise it")
    return sequences


def save_prepared(sequences: Sequence[TokenSequence], samples: pa.Table, folder: Path, shard_size: int) -> None:
    """Write samples beside their tokens as `shard-00000.parquet`, ... in the order of `samples`."""
    by_id = {sequence.sample_id: sequence for sequence in sequences}
    kept = samples.filter(pa.array([name in by_id for name in samples["sample_id"].to_pylist()]))
    ordered = [by_id[name] for name in kept["sample_id"].to_pylist()]
    table = kept.append_column(
        "input_ids", pa.array([sequence.input_ids for sequence in ordered], pa.list_(pa.int32()))
    ).append_column("response_start", pa.array([sequence.response_start for sequence in ordered], pa.int32()))
    for shard, start in enumerate(range(0, table.num_rows, shard_size)):
        pq.write_table(table.slice(start, shard_size), folder / f"shard-{shard:05d}.parquet")


def load_prepared(folder: Path) -> tuple[pa.Table, list[TokenSequence]]:
    """Samples and their token sequences, in the same order, as `save_prepared` wrote them."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("shard-*.parquet")))
    tokens = pa.chunked_array(table["input_ids"]).combine_chunks()
    values, ends = tokens.values.to_numpy().copy(), tokens.offsets.to_numpy()  # torch wants writable arrays
    rows = zip(table["sample_id"].to_pylist(), ends[:-1], ends[1:], table["response_start"].to_pylist(), strict=True)
    sequences = [TokenSequence(name, values[start:end], response) for name, start, end, response in rows]
    return table.drop_columns(["input_ids", "response_start"]), sequences


def prepare(study: Study, samples: pa.Table, folder: Path, tokenizer: "PreTrainedTokenizerBase | None") -> None:
    """Tokenise a study's training samples into `folder`, beside the tokenizer that was used.

    Args:
        tokenizer: the checkpoint's; None fits a new one to the samples.
    """
    rows = samples.to_pylist()
    if tokenizer is None:
        assert study.model.architecture is not None
        texts = [row[column] for row in rows for column in ("prompt", "response")]
        tokenizer = train_tokenizer(texts, study.model.architecture.vocab_size)
    if study.data.chat_template is not None:
        tokenizer.chat_template = study.data.chat_template
    sequences = tokenize(
        tokenizer,
        rows,
        max_length=study.data.max_length,
        overlength=study.data.train.overlength,
        place=describe(study.data.train),
    )
    save_prepared(sequences, samples, folder, study.data.shard_size)
    tokenizer.save_pretrained(folder / "tokenizer")


def kept_tokenizer(previous: Path | None, samples: pa.Table, study: Study) -> "PreTrainedTokenizerBase | None":
    """The tokenizer that was fitted to earlier data, where so few samples changed that a model trained on them may be
    kept (`model.reuse`): with other tokens, no sequence would be the same. None where a new one is to be fitted. Counted from
    the texts that it was fitted to.

    Args:
        previous: folder of earlier prepared data.
    """
    if previous is None or study.model.reuse is None:
        return None
    before, now = set(pq.read_table(previous / FITTED)["content"].to_pylist()), set(_contents(samples))
    changed = max(len(now - before), len(before - now)) / len(now)
    return load_tokenizer(previous / "tokenizer") if changed <= study.model.reuse.max_changed else None


def record_fitted(samples: pa.Table, folder: Path) -> None:
    """Keep which texts the tokenizer in `folder` was fitted to."""
    pq.write_table(pa.table({"content": _contents(samples)}), folder / FITTED)


def _contents(samples: pa.Table) -> list[str]:
    return [sample_id(row["prompt"], row["response"]) for row in samples.select(["prompt", "response"]).to_pylist()]


def tokenize_held_out(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[dict], settings: DataSettings
) -> list[TokenSequence]:
    """Held-out responses as sequences, for perplexity."""
    source = settings.utility
    return tokenize(
        tokenizer, rows, max_length=settings.max_length, overlength=source.overlength, place=describe(source)
    )
