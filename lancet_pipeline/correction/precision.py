"""In what form parameters are trained: all of them or low-rank adapters, in float32 whatever the weights are stored in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lancet_pipeline.config.study import LoraSettings
from lancet_pipeline.models import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def trainable(model: "PreTrainedModel", lora: LoraSettings | None, seed: int) -> Iterator[None]:
    """`model` with trainable parameters in float32, sharded where there are several ranks; parameters have the precision they
    came with when the block ends.

    With `lora` the weights are frozen, in the precision they came with, and low-rank adapters on all linear layers but the
    output embedding are trained; they are merged into the weights when the block ends, and left out where it fails (without
    `lora`, what was trained until then stays). A model in bfloat16 computes in bfloat16 (autocast) while steps too small for
    its 8 bits of precision add up in float32; they are rounded at the end.
    """
    stored = model.dtype
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    adapters = None
    try:
        if lora is None:
            model.float()
            model.requires_grad_(True)
        else:
            from peft import LoraConfig, get_peft_model

            alpha: Any = lora.alpha  # declared as an integer, and used as the number that it is
            config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                adapters = get_peft_model(model, config)  # adapters in float32
        distributed.shard(model)
        # Autocast would keep its copies of the weights until the block ends, and so never see a step.
        mixed = stored == torch.bfloat16
        with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False):
            yield
        if adapters is not None:
            adapters.merge_and_unload()
    except BaseException:
        if adapters is not None:
            adapters.unload()
        raise
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained.get(name, True))
        model.zero_grad()
        # Parameters alone, in place: buffers, such as rotary frequencies, keep their own precision.
        model._apply(lambda tensor: tensor.to(stored) if isinstance(tensor, torch.nn.Parameter) else tensor)
