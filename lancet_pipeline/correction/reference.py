"""What the uncorrected model thinks of the samples of a correction, computed once."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from lancet_pipeline.data.batches import TokenSequence, bucketed, collate
from lancet_pipeline.models import distributed
from lancet_pipeline.models.likelihood import read_logits, response_logps
from lancet_pipeline.models.memory import Backoff

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reference:
    """Log-probabilities of influential responses, and logits of indifferent ones, under the uncorrected model.

    Logits are kept in memory of the host: 4 bytes x vocabulary x response tokens of the samples given. On several ranks
    `influential` is the same everywhere and its work is shared, `retained` are those that this rank will ask for.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        influential: Iterable[TokenSequence],
        retained: Iterable[TokenSequence],
        batch_tokens: int,
    ) -> None:
        self._logps: dict[str, float] = {}
        self._logits: dict[str, torch.Tensor] = {}

        def keep_logps(sequences: Sequence[TokenSequence]) -> None:
            logps = response_logps(model, collate(sequences).to(model.device))
            self._logps.update(zip((s.sample_id for s in sequences), logps.tolist(), strict=True))

        def keep_logits(sequences: Sequence[TokenSequence]) -> None:
            batch = collate(sequences).to(model.device)
            logits = read_logits(model, batch, lambda logits, _rows: logits.cpu())
            rows = logits.split(batch.loss_tokens.tolist())
            self._logits.update(zip((s.sample_id for s in sequences), rows, strict=True))

        backoff = Backoff()
        with torch.no_grad():
            for sequences, _ in distributed.rounds(_batches(influential, batch_tokens)):
                backoff.over(keep_logps, sequences)
            self._logps = distributed.merged(self._logps)
            for sequences, _ in distributed.in_step(_batches(retained, batch_tokens)):
                backoff.over(keep_logits, sequences)

    def logps_of(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """[P] float32."""
        return torch.tensor([self._logps[sequence.sample_id] for sequence in sequences])

    def logits_of(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """[n, vocab] float32, row by row."""
        return torch.cat([self._logits[sequence.sample_id] for sequence in sequences])


def _batches(sequences: Iterable[TokenSequence], batch_tokens: int) -> list[list[TokenSequence]]:
    different = list({sequence.sample_id: sequence for sequence in sequences}.values())
    return [[different[i] for i in indices] for indices in bucketed(different, batch_tokens)]
