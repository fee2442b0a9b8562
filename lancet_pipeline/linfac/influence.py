"""LinFAC on the data of a study: which sequences it uses, in which batches, and the table it writes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.data.tokenization import load_prepared, tokenize
from lancet_pipeline.files import take_over
from lancet_pipeline.linfac.damping import DampingChoice, choose_damping
from lancet_pipeline.linfac.factors import Factors, LinfacConfig
from lancet_pipeline.linfac.fitting import fit_factors
from lancet_pipeline.linfac.journal import Scores, score_dataset
from lancet_pipeline.linfac.low_rank import EXACT_ELEMENTS, low_rank_elements, query_each
from lancet_pipeline.linfac.placement import groups_at_once
from lancet_pipeline.linfac.refinement import Refinement
from lancet_pipeline.linfac.reliability import HELD_OUT
from lancet_pipeline.linfac.scores import Query, SelfInfluencePass, floored, query_gradient
from lancet_pipeline.linfac.units import gradient_elements
from lancet_pipeline.models.base import load_study_model
from lancet_pipeline.models.loading import fingerprint
from lancet_pipeline.models.memory import Backoff
from lancet_pipeline.models.reuse import Drift, may_stay, record_seen
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMALLEST_BUDGET, LARGEST_UNLABELLED = 32, 256


def fit_study_factors(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    study: Study,
    runtime: Runtime = Runtime(),
) -> Factors:
    """Factors from a random part of the training sequences: `linfac.factor_samples`, or an eighth of them."""
    budget = study.linfac.factor_samples or default_budget(len(sequences))
    drawn = _sample(sequences, budget + HELD_OUT, study.seed)
    (batches, _), (held_out, _) = (_batches(part, runtime.batch_tokens) for part in (drawn[:budget], drawn[budget:]))
    config = LinfacConfig.of(study.linfac, study.seed)
    return fit_factors(model, batches, config, held_out=held_out, engine=runtime.engine(model), track=runtime.track)


def write_study_factors(
    study: Study, base: Path, prepared: Path, previous: Path | None, out: Path, runtime: Runtime
) -> tuple[Factors, Drift | None]:
    """Factors of the model in the folder `base`, written into `out`.

    Args:
        previous: folder of factors that are taken over where the study allows it for the present data.

    Returns:
        The factors, and the drift of the data where they were taken over.
    """
    model, _ = load_study_model(study, base, runtime)
    _, sequences = load_prepared(prepared)
    drift = None
    if previous is not None and Factors.load(previous).model == fingerprint(model):
        drift = may_stay(model, previous, sequences, study, runtime)
    if previous is not None and drift is not None:
        take_over(previous, out)
    else:
        fit_study_factors(model, sequences, study, runtime).save(out)
        if study.model.reuse is not None:
            record_seen(sequences, out)
    return Factors.load(out, runtime.device), drift


def default_budget(sequences: int) -> int:
    """Sequences that factors are fitted on where the study does not say: an eighth, at least 32."""
    return min(sequences, max(SMALLEST_BUDGET, sequences // 8))


def unlabelled_budget(sequences: int) -> int:
    """Training sequences that damping is chosen on: as many, and no more than 256."""
    return min(default_budget(sequences), LARGEST_UNLABELLED)


def query_sequences(
    tokenizer: "PreTrainedTokenizerBase", queries: Sequence[Mapping[str, Any]], max_length: int
) -> list[TokenSequence]:
    """The model's own outputs as sequences (rows with sample_id, prompt, response)."""
    return tokenize(tokenizer, queries, max_length=max_length, overlength="truncate", place="queries")


@dataclass(frozen=True)
class Influence:
    """Scores of a study's training sequences on its queries, as the study normalises them.

    score: [N] float64, on all queries as one batch. groups: name -> [N] float64, for each group of queries, empty where
    the study asks for none. raw: the scores and token shares before they are normalised; `scale` [N] is what they
    were divided by. query: all queries as one batch.
    """

    score: np.ndarray
    groups: dict[str, np.ndarray]
    raw: Scores
    scale: np.ndarray
    query: Query
    damping: float
    choice: DampingChoice | None


def influence(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sequences: Sequence[TokenSequence],
    factors: Factors,
    queries: Sequence[Mapping[str, Any]],
    study: Study,
    runtime: Runtime = Runtime(),
    *,
    damping: float | None = None,
    top_tokens: int = 8,
) -> Influence:
    """Influence of every training sequence on `queries` (rows with sample_id, prompt, response).

    Args:
        damping: in place of the study's.

    Groups whose matrices do not fit into memory at once take a pass each time as many as fit, and a last one for all
    queries as one batch.

    Raises:
        InputError: the matrices of a single group do not fit into memory, before anything is computed.
    """
    settings, batch_tokens = study.linfac, runtime.batch_tokens
    size = fitting_groups(model, factors, study, f"linfac.query_groups: {settings.query_groups}")
    asked = query_sequences(tokenizer, queries, study.data.max_length)
    choice = None
    if damping is None:
        damping = settings.damping if settings.damping != "auto" else None
    if damping is None:
        unlabelled = _sample(sequences, unlabelled_budget(len(sequences)), study.seed + 2)
        held_out, (batches, count) = list(_batches(asked, batch_tokens)[0]), _batches(unlabelled, batch_tokens)
        choice = choose_damping(model, held_out, runtime.track(batches, count, "choosing the damping"), factors)
        damping = choice.damping
    factors = factors.damped(damping)
    scored = partial(score_dataset, model, sequences, runtime=runtime, top_tokens=top_tokens)

    elements = gradient_elements(model, factors.units)
    thin = settings.query_groups == "query" and not settings.refinement and len(asked) * elements > EXACT_ELEMENTS
    if thin:
        size = max(1, size * elements // low_rank_elements(factors))

    def scored_part(part: dict[str, list[TokenSequence]]) -> tuple[Scores, Query]:
        if thin:
            query = query_each(model, [group[0] for group in part.values()], factors, batch_tokens)
        else:
            query = preconditioned_queries(model, factors, part, sequences, study, batch_tokens)
        return scored(query), query.pooled()  # and the part's matrices are let go

    grouped = _grouped(model, asked, queries, study, batch_tokens)
    names = list(grouped)
    parts = [{name: grouped[name] for name in names[start : start + size]} for start in range(0, len(names), size)]
    raw, query = scored_part(parts[0])
    if len(parts) > 1:
        columns, seen = [raw.by_group], sum(map(len, parts[0].values()))
        for part in parts[1:]:
            raw, mean = scored_part(part)
            count = sum(map(len, part.values()))
            seen += count
            query = query.mixed(mean, count / seen)
            columns.append(raw.by_group)
        raw = replace(scored(query), by_group=np.concatenate(columns, 1))
    scale = score_scale(model, sequences, raw, factors, study, runtime)
    groups = {
        name: raw.by_group[:, column].astype(np.float64) / scale
        for column, name in enumerate(names)
        if settings.query_groups != "none"
    }
    return Influence(raw.pooled / scale, groups, raw, scale, query, damping, choice)


def influence_table(
    found: Influence, samples: pa.Table, sequences: Sequence[TokenSequence], tokenizer: "PreTrainedTokenizerBase"
) -> pa.Table:
    """One row a sample, in the order of `sequences`: sample_id, score, tokens, groups, source, category.

    `tokens`: list of {position, token, share}, largest |share| first. `groups`: list of {group, score}.
    """
    group = pa.struct([("group", pa.string()), ("score", pa.float64())])
    groups = [
        [{"group": name, "score": float(scores[row])} for name, scores in found.groups.items()]
        for row in range(len(sequences))
    ]
    return pa.table(
        {
            "sample_id": [sequence.sample_id for sequence in sequences],
            "score": found.score,
            "tokens": _strongest_tokens(found, sequences, tokenizer),
            "groups": pa.array(groups, pa.list_(group)),
            "source": samples["source"],
            "category": samples["category"],
        }
    )


def _strongest_tokens(
    found: Influence, sequences: Sequence[TokenSequence], tokenizer: "PreTrainedTokenizerBase"
) -> pa.ListArray:
    """The kept tokens of each sequence in words, built by columns: there may be millions of sequences."""
    kept = found.raw.positions >= 0
    starts = np.cumsum([0, *(len(sequence) for sequence in sequences[:-1])])
    ids = np.concatenate([sequence.input_ids for sequence in sequences])[(starts[:, None] + found.raw.positions)[kept]]
    distinct, places = np.unique(ids, return_inverse=True)
    words = pa.array([tokenizer.decode([int(token)]) for token in distinct], pa.string())
    columns = {
        "position": pa.array(found.raw.positions[kept], pa.int32()),
        "token": words.take(pa.array(places)),
        "share": pa.array((found.raw.shares / found.scale[:, None])[kept], pa.float32()),
    }
    ends = np.cumsum([0, *kept.sum(1)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(list(columns.values()), list(columns)))


def write_scores(table: pa.Table, folder: Path) -> None:
    pq.write_table(table, folder / "scores.parquet")


def read_scores(folder: Path) -> pa.Table:
    return pq.read_table(folder / "scores.parquet")


def fitting_groups(model: "PreTrainedModel", factors: Factors, study: Study, setting: str) -> int:
    """As `placement.groups_at_once`, of queries as `study` makes them."""
    # As measured: gradients and preconditioned ones, or what conjugate gradients hold (12 a group, and the graphs).
    copies = 2 if study.linfac.refinement is None else 14
    remedy = "set linfac.units: sublayer_output" if study.linfac.units == "linear" else "take a smaller model"
    if study.linfac.refinement is not None:
        remedy = "leave out linfac.refinement"
    return groups_at_once(model, factors.units, copies, setting, remedy)


def preconditioned_queries(
    model: "PreTrainedModel",
    factors: Factors,
    groups: dict[str, list[TokenSequence]],
    sequences: Sequence[TokenSequence],
    study: Study,
    batch_tokens: int,
) -> Query:
    """Preconditioned queries, refined on a random part of the training `sequences` where the study says so."""
    settings, refinement = study.linfac.refinement, None
    if settings is not None:
        used, _ = _batches(_sample(sequences, settings.samples, study.seed + 1), batch_tokens)
        refinement = Refinement(used, settings.steps)
    batches = {name: _batches(group, batch_tokens)[0] for name, group in groups.items()}
    return query_gradient(model, batches, factors, refinement=refinement)


def _grouped(
    model: "PreTrainedModel",
    asked: list[TokenSequence],
    queries: Sequence[Mapping[str, Any]],
    study: Study,
    batch_tokens: int,
) -> dict[str, list[TokenSequence]]:
    """The queries by category (source, where they have none), by cluster or one by one, or all of them as one batch."""
    by = study.linfac.query_groups
    if by == "none":
        return {"": asked}
    if by == "query":
        names = [sequence.sample_id for sequence in asked]
    elif by == "category":
        kinds = {row["sample_id"]: row.get("category") or row.get("source") or "uncategorised" for row in queries}
        names = [kinds[sequence.sample_id] for sequence in asked]
    else:
        names = _clusters(model, asked, study, batch_tokens)
    groups: dict[str, list[TokenSequence]] = {}
    for name, sequence in zip(names, asked, strict=True):
        groups.setdefault(name, []).append(sequence)
    return dict(sorted(groups.items()))


def _clusters(model: "PreTrainedModel", asked: list[TokenSequence], study: Study, batch_tokens: int) -> list[str]:
    """k-means over the mean hidden state of each query's response in the last layer."""
    import torch
    from sklearn.cluster import KMeans

    states = np.empty((len(asked), model.config.hidden_size), dtype=np.float32)

    def mean_states(chosen: Sequence[TokenSequence]) -> np.ndarray:
        batch = collate(chosen).to(model.device)
        hidden = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states[-1]
        mask = batch.loss_mask[..., None]
        return ((hidden * mask).sum(1) / mask.sum(1)).float().cpu().numpy()

    backoff = Backoff()
    with torch.no_grad():
        for group in bucketed(asked, batch_tokens):
            states[group] = np.concatenate(backoff.over(mean_states, [asked[i] for i in group]))
    count = min(study.linfac.query_clusters, len(asked))
    starts: Any = 4  # declared as text, since "auto" is allowed
    labels = KMeans(count, random_state=study.seed, n_init=starts).fit_predict(states)
    return [f"cluster {label + 1}" for label in labels]


def score_scale(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    raw: Scores,
    factors: Factors,
    study: Study,
    runtime: Runtime,
) -> np.ndarray:
    """What each score is divided by, [N] float64."""
    if study.linfac.normalisation == "gradient_norm":
        return floored(raw.norms).astype(np.float64)
    if study.linfac.normalisation == "length":
        return np.array([len(s) - max(s.response_start, 1) for s in sequences], dtype=np.float64)
    if study.linfac.normalisation == "self_influence":
        groups = bucketed(sequences, runtime.batch_tokens)
        batches = (collate([sequences[i] for i in group]) for group in groups)
        found = runtime.engine(model).run(
            SelfInfluencePass(factors), batches, len(groups), "self-influence", runtime.track
        )
        own = np.empty(len(sequences))
        own[[i for group in groups for i in group]] = np.concatenate(list(found))
        return floored(np.sqrt(own))
    return np.ones(len(sequences))


def _sample(sequences: Sequence[TokenSequence], count: int, seed: int) -> list[TokenSequence]:
    chosen = np.random.default_rng(seed).permutation(len(sequences))[:count]
    return [sequences[i] for i in chosen]


def _batches(sequences: Sequence[TokenSequence], batch_tokens: int) -> tuple[Iterator[TokenBatch], int]:
    groups = bucketed(sequences, batch_tokens)
    return (collate([sequences[i] for i in group]) for group in groups), len(groups)
