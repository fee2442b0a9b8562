"""kronfluence's EK-FAC on the same model and sequences: the rival that LinFAC is measured against.

`make benchmarks` installs it.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import nn

from lancet_pipeline.data.batches import TokenBatch, TokenSequence, collate
from lancet_pipeline.linfac import Factors, LinfacConfig, find_units
from lancet_pipeline.linfac.factors import KroneckerFactor
from lancet_pipeline.linfac.sums import sample_labels
from lancet_pipeline.models.loading import fingerprint


class _LanguageModelling(Task):
    """Summed cross-entropy of the response tokens, in the linear layers of the Transformer layers."""

    def __init__(self, modules: list[str], seed: int) -> None:
        self._modules, self._seed = modules, seed

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
        tokens = TokenBatch(batch["input_ids"], batch["attention_mask"], batch["loss_mask"])
        logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False).logits
        mask = tokens.loss_mask[:, 1:]
        logits = logits[:, :-1][mask].float()
        labels = sample_labels(logits.detach(), tokens, self._seed) if sample else tokens.input_ids[:, 1:][mask]
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self._modules

    def get_attention_mask(self, batch: Any) -> torch.Tensor:
        return batch["attention_mask"]


class Ekfac:
    """EK-FAC factors fitted on `sequences`, kept below `folder`; the model is wrapped in place."""

    def __init__(self, model: nn.Module, sequences: Sequence[TokenSequence], batch: int, folder: Path, seed: int = 0):
        logging.getLogger("kronfluence").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")
        task = _LanguageModelling([unit.output_module for unit in find_units(model, "linear")], seed)
        self._analyzer = Analyzer(
            "ekfac",
            prepare_model(model, task),
            task,
            cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            output_dir=str(folder),
        )
        self._analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=_collate))
        self._folder, self._batch, self._sequences = folder, batch, len(sequences)
        self._analyzer.fit_all_factors(
            "factors",
            list(sequences),
            per_device_batch_size=batch,
            factor_args=FactorArguments(strategy="ekfac"),
            overwrite_output_dir=True,
        )

    def scores(
        self, queries: Sequence[TokenSequence], train: Sequence[TokenSequence], damping: float | None, pooled: bool
    ) -> torch.Tensor:
        """[N] for the queries as one batch, or [N, queries]; `damping` None is kronfluence's heuristic."""
        self._analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            list(queries),
            list(train),
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=self._batch,
            score_args=ScoreArguments(damping_factor=damping, aggregate_query_gradients=pooled),
            overwrite_output_dir=True,
        )
        scores = self._analyzer.load_pairwise_scores("scores")["all_modules"]
        return scores[0] if pooled else scores.T

    def factors(self, model: nn.Module) -> Factors:
        """What kronfluence fitted, as factors that this project's scoring pass takes; `model` is the unwrapped one."""
        bases = self._analyzer.load_eigendecomposition("factors")
        loaded = self._analyzer.load_lambda_matrices("factors")
        units, blocks = tuple(find_units(model, "linear")), []
        for name in (unit.output_module for unit in units):
            corrected = loaded["lambda_matrix"][name] / loaded["num_lambda_processed"][name]
            sides = (
                bases[f"{side}_{part}"][name].float()
                for side in ("gradient", "activation")
                for part in ("eigenvalues", "eigenvectors")
            )
            blocks.append(KroneckerFactor(*sides, corrected.float()))
        elements = sum(block.eigenvalues().numel() for block in blocks)
        mean = sum(block.eigenvalues().double().sum().item() for block in blocks) / elements
        config = LinfacConfig(units="linear", factors="token", eigenvalue_correction=True)
        return Factors(config, units, tuple(blocks), mean, self._sequences, fingerprint(model), {})

    def disk_bytes(self) -> int:
        """What scoring reads: eigenvectors and corrected eigenvalues, without the covariances they came from."""
        files = [path for path in self._folder.rglob("*.safetensors") if "factors" in str(path)]
        return sum(path.stat().st_size for path in files if "covariance" not in path.name)


def _collate(sequences: list[TokenSequence]) -> dict[str, torch.Tensor]:
    batch = collate(sequences)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "loss_mask": batch.loss_mask}
