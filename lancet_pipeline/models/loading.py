"""Models in and out: safetensors only, no code from a checkpoint, every problem named before a byte is computed."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lancet_pipeline.errors import InputError, first_line
from lancet_pipeline.models import distributed
from lancet_pipeline.models.architectures import sublayers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lancet_pipeline.config.study import Architecture

LoadedModel = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]


def find_checkpoint(checkpoint: str, model_directories: Sequence[Path]) -> str:
    """A local directory for `checkpoint` where there is one (its path, or its last part below `model_directories`);
    the name itself, for the hub, otherwise."""
    if Path(checkpoint).is_absolute():
        return checkpoint
    for directory in model_directories:
        if (directory / checkpoint.rpartition("/")[2]).is_dir():
            return str((directory / checkpoint.rpartition("/")[2]).absolute())
    return checkpoint


def resolve_device(wanted: str) -> str:
    """The device that `wanted` names: itself, or for `auto` cuda where there is one and cpu elsewhere.

    Raises:
        InputError: nothing can be computed on it here.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=wanted).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # a build without CUDA asserts
        raise InputError(
            f"device {wanted}: nothing can be computed on it here ({first_line(error)}); give auto, cpu, cuda or cuda:N as "
            "--device, or as compute.device of the study"
        ) from None
    return wanted


def check_checkpoint(folder: Path) -> None:
    """Fail early on a model directory that cannot be used; the model is built without memory for its weights.

    Raises:
        InputError: no directory, no config, no weights, pickled weights only, or an unknown architecture.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_files(folder)
    try:
        with torch.device("meta"):
            sublayers_of(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)))
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except (ValueError, KeyError, OSError) as error:
        reason = first_line(error)
        raise InputError(f"{folder}: the sublayers are unknown, since this is no decoder known ({reason})") from None


def check_files(folder: Path, setting: str = "model.checkpoint") -> None:
    """Fail on a directory that holds no model of any kind; `setting` is what names it, for the message.

    Raises:
        InputError: no directory, no config, no weights, or pickled weights only.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model directory; correct {setting}")
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder}: holds no config.json; point to a directory written by save_pretrained")
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        if pickled:
            raise InputError(
                f"{folder}: holds pickled weights only ({pickled[0]}), which can run code when loaded; "
                "convert them with save_pretrained(..., safe_serialization=True)"
            )
        raise InputError(f"{folder}: holds no weights (*.safetensors); download the whole checkpoint")
    try:
        json.loads(config.read_text())
    except ValueError as error:
        raise InputError(f"{config}: not valid JSON ({error})") from None


def load_model(
    checkpoint: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
) -> "PreTrainedModel":
    """A causal language model from a directory or the hub, in evaluation mode. On ranks of a process group but the first it
    has no weights (meta device): `distributed.shard` brings them.

    Raises:
        InputError: the checkpoint is not there or cannot be used.
    """
    if Path(checkpoint).is_absolute():
        check_checkpoint(Path(checkpoint))
    if not distributed.first():
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    return load_model_for("causal", checkpoint, revision=revision, dtype=dtype, device=device)


def load_model_for(
    task: Literal["causal", "sequence_classification"],
    checkpoint: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    setting: str = "model.checkpoint",
) -> "PreTrainedModel":
    """A model of any architecture from a directory or the hub, in evaluation mode.

    Args:
        task: what its head does.
        dtype: of the weights; `auto` is the checkpoint's own.
        setting: what names the checkpoint, for messages.

    Raises:
        InputError: the checkpoint is not there, cannot be used, or has no weights for the head of the task.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if Path(checkpoint).is_absolute():
        check_files(Path(checkpoint), setting)
    auto = AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification
    try:
        loaded: Any = auto.from_pretrained(
            checkpoint,
            revision=revision,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{checkpoint}: could not be loaded ({first_line(error)}); check name, revision and connection"
        ) from error
    model, found = loaded
    if found["missing_keys"]:
        kind, absent = task.replace("_", " "), min(found["missing_keys"])
        raise InputError(
            f"{checkpoint}: holds no weights for {absent}, so it is no trained {kind} model; correct {setting}"
        )
    return model.to(device).eval()


def new_model(
    architecture: "Architecture", tokenizer: "PreTrainedTokenizerBase", max_length: int, seed: int
) -> "PreTrainedModel":
    """A decoder with random weights that fits `tokenizer`; the same seed gives the same weights. It has none on ranks of a
    process group but the first (see `load_model`)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture.model_type,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **architecture.model_dump(exclude={"model_type", "vocab_size"}),
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu" if distributed.first() else "meta"):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Weights as safetensors, configuration and tokenizer as JSON: what `load_model` reads. On several ranks all have to call
    it, and rank 0 writes."""
    weights = distributed.gathered(model.state_dict(keep_vars=True))
    if distributed.first():
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def import_gguf(file: Path, folder: Path) -> None:
    """Convert a quantised GGUF file into a float32 safetensors checkpoint (needs the package `gguf`)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The weights are plain float32 now; marks of the quantisation would make save_pretrained refuse them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    save_model(model, tokenizer, folder)


def context_length(model: "PreTrainedModel") -> int:
    """Positions that a model has; without end where it names none."""
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def finite_parameters(model: "PreTrainedModel") -> bool:
    """Whether no parameter is infinite or not a number; on several ranks, no shard at any of them."""
    wrong = sum(not torch.isfinite(distributed.local(parameter)).all() for parameter in model.parameters())
    return distributed.totals(wrong) == (0,)


def fingerprint(model: "PreTrainedModel") -> str:
    """Tells models apart: a hash over name, shape and up to 1,024 evenly spaced elements of every parameter.

    Milliseconds on any size. It shows that factors or scores belong to other weights; that files are what they
    were is for checksums to show.
    """
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype}".encode())
        digest.update(flat[:: max(1, len(flat) // 1024)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
