"""Harmful outputs traced one by one: the selected training samples behind each of them, and the tokens that count."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.linfac.factors import Factors
from lancet_pipeline.linfac.influence import fitting_groups, preconditioned_queries, query_sequences, score_scale
from lancet_pipeline.linfac.journal import largest_shares, score_dataset
from lancet_pipeline.linfac.scores import Query, score_row_tokens
from lancet_pipeline.linfac.units import gradient_elements
from lancet_pipeline.models.memory import Backoff
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUERY_ELEMENTS = 2**28
"""Preconditioned query matrices held at once, in float32 elements (1 GiB)."""

KEPT = {"driving": 5, "countering": 3}
"""Role -> how many samples of it an output's trace keeps."""

TOP_TOKENS = 8


def trace_outputs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sequences: Sequence[TokenSequence],
    roles: Mapping[str, str],
    factors: Factors,
    outputs: Sequence[Mapping[str, Any]],
    study: Study,
    runtime: Runtime = Runtime(),
    *,
    damping: float,
    typical_norm: float | None = None,
) -> list[list[dict[str, Any]]]:
    """The selected training samples that drive or counter each output most, that output alone being the query.

    One pass over the selected samples scores as many outputs as fit into QUERY_ELEMENTS and memory; tokens are shared out for
    the kept samples only. A score is what `study.influence` gives for the single query (`gradient_norm` and
    `self_influence` put a floor under vanishing divisors, here by the largest of the selected samples).

    Args:
        sequences: all training sequences.
        roles: sample_id -> role; only those in KEPT are scored.
        outputs: rows with sample_id, prompt, response, finished.
        damping: of the run.
        typical_norm: of the gradients of all training sequences; of the selected ones where absent.

    Returns:
        For each output, `{sample_id, role, score, tokens [{position, token, share}]}`: of the driving samples those with
        the largest positive scores, then of the countering ones those with the largest negative, strongest first.
        Nothing for an output whose prompt alone is longer than `data.max_length`.

    Raises:
        InputError: not even one output's query matrices fit into memory.
    """
    if not outputs:
        return []
    damped = factors.damped(damping)
    chosen = [sequence for sequence in sequences if roles.get(sequence.sample_id) in KEPT]
    role = [roles[sequence.sample_id] for sequence in chosen]
    numbered = [{**row, "sample_id": str(number)} for number, row in enumerate(outputs)]
    asked = query_sequences(tokenizer, numbered, study.data.max_length)
    size = max(1, QUERY_ELEMENTS // gradient_elements(model, damped.units))
    size = min(size, fitting_groups(model, damped, study, "governance.traced_outputs"))
    scale: np.ndarray | None = None
    traces: list[list[dict[str, Any]]] = [[] for _ in outputs]
    starts = range(0, len(asked), size)
    for start in runtime.track(starts, len(starts), "tracing outputs"):
        groups = {output.sample_id: [output] for output in asked[start : start + size]}
        query = preconditioned_queries(model, damped, groups, sequences, study, runtime.batch_tokens)
        raw = score_dataset(model, chosen, query, runtime, top_tokens=1)
        if scale is None:
            scale = score_scale(model, chosen, raw, damped, study, runtime, typical_norm)
        kept = [(column, i) for column in range(len(groups)) for i in strongest(raw.by_group[:, column] / scale, role)]
        shown, columns = [chosen[i] for _, i in kept], [column for column, _ in kept]
        tokens = _tokens(model, tokenizer, shown, query, columns, runtime.batch_tokens)
        for (column, i), found in zip(kept, tokens, strict=True):
            name = asked[start + column].sample_id
            traces[int(name)].append(
                {
                    "sample_id": chosen[i].sample_id,
                    "role": role[i],
                    "score": float(raw.by_group[i, column] / scale[i]),
                    "tokens": [{**token, "share": float(token["share"] / scale[i])} for token in found],
                }
            )
    return traces


def strongest(scores: np.ndarray, roles: Sequence[str], *, signed: bool = True) -> list[int]:
    """Places of the samples that a trace keeps, by KEPT. signed: countering samples are those of negative scores; otherwise
    of positive ones, as driving samples are."""
    kept: list[int] = []
    for role, sign in (("driving", 1.0), ("countering", -1.0 if signed else 1.0)):
        members = [i for i, name in enumerate(roles) if name == role and sign * scores[i] > 0]
        kept += sorted(members, key=lambda i, sign=sign: -sign * scores[i])[: KEPT[role]]
    return kept


def _tokens(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sequences: Sequence[TokenSequence],
    query: Query,
    columns: Sequence[int],
    batch_tokens: int,
) -> list[list[dict[str, Any]]]:
    """The tokens of each sequence with the largest shares of its influence on the query group `columns` gives for it."""
    found: list[list[dict[str, Any]]] = [[] for _ in sequences]
    backoff = Backoff()
    for group in bucketed(sequences, batch_tokens):
        batch = collate([sequences[i] for i in group])

        def shares_of(rows: slice, batch: TokenBatch = batch, group: list[int] = group) -> torch.Tensor:
            return score_row_tokens(model, batch.part(rows), query, [columns[i] for i in group[rows]])

        shares_bt = torch.cat(backoff.run(shares_of, len(group), batch.input_ids.shape[1], batch.name))
        lengths = [len(sequences[i]) for i in group]
        for i, where, row in zip(group, *largest_shares(shares_bt, lengths, TOP_TOKENS), strict=True):
            sequence = sequences[i]
            found[i] = [
                {"position": int(p), "token": tokenizer.decode([int(sequence.input_ids[p])]), "share": s}
                for p, s in zip(where, row, strict=True)
                if p >= 0
            ]
    return found
