"""LinFAC on the data of a study: which sequences it uses, in which batches, and the table it writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenBatch, TokenSequence, bucketed, collate
from lancet_pipeline.data.schema import kind
from lancet_pipeline.data.tokenization import load_prepared, tokenize
from lancet_pipeline.files import take_over
from lancet_pipeline.linfac.contrast import competing, equal_weights, less_controls, relations
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
from lancet_pipeline.models.reuse import Drift, may_stay, record_seen
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMALLEST_BUDGET, LARGEST_UNLABELLED = 32, 256

NORM_FLOOR = 1 / 8
"""Of the median norm: what is added to norms, in squares, before scores are divided by them. A sample that the model has long learnt
has a small gradient whose direction tells little."""


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


TOKEN = pa.struct([("position", pa.int32()), ("token", pa.string()), ("share", pa.float32())])
GROUP = pa.struct([("group", pa.string()), ("score", pa.float64())])


@dataclass(frozen=True)
class Influence:
    """Scores of a study's training sequences on its queries, as the study normalises them.

    score: [N] float64, on all queries, less what their controls share with them. groups: name -> [N] float64, for each group
    of queries, empty where the study asks for none. raw: the scores and token shares before they are normalised; `scale`
    [N] is what they were divided by. query: of the clusters, less controls. clusters: of each query, which stand apart where
    they compete (`contrast.competing`).
    """

    score: np.ndarray
    groups: dict[str, np.ndarray]
    raw: Scores
    scale: np.ndarray
    query: Query
    clusters: list[str]
    damping: float
    choice: DampingChoice | None
    truncation: float = 0.0

    def metrics(self) -> dict[str, float]:
        return {
            "reused": self.raw.reused,
            "clusters": len(set(self.clusters)),
            "damping": self.damping,
            "typical_norm": float(np.median(self.raw.norms)),
            **({"truncation": self.truncation} if self.truncation else {}),
        }

    def tables(self, queries: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Which of the queries compete, and what the damping was chosen by."""
        by_cluster = sorted(zip(self.clusters, queries, strict=True), key=lambda pair: pair[0])
        return {
            "clusters": [
                {"cluster": cluster, "prompt": row["prompt"], "response": row["response"]}
                for cluster, row in by_cluster
            ],
            **({"damping": self.choice.rows()} if self.choice else {}),
        }


def influence(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sequences: Sequence[TokenSequence],
    factors: Factors,
    queries: Sequence[Mapping[str, Any]],
    study: Study,
    runtime: Runtime = Runtime(),
    *,
    controls: Sequence[Mapping[str, Any]] = (),
    damping: float | None = None,
    top_tokens: int = 8,
) -> Influence:
    """Influence of every training sequence on `queries` (rows with sample_id, prompt, response).

    Args:
        controls: harmless outputs to compare the queries with, where there are any.
        damping: in place of the study's.

    Costs one pass over the sequences. Groups that the study asks for besides take another one, or several where their matrices
    do not fit into memory at once.

    Raises:
        InputError: the matrices of a single group do not fit into memory, before anything is computed; or those of all
            competing groups, before the pass over the sequences.
    """
    settings, batch_tokens = study.linfac, runtime.batch_tokens
    setting = f"linfac.query_groups: {settings.query_groups}"
    size = fitting_groups(model, factors, study, setting, least=2 if controls else 1)
    asked = _numbered(query_sequences(tokenizer, queries, study.data.max_length), "query")
    against = _numbered(query_sequences(tokenizer, controls, study.data.max_length), "control") if controls else []
    choice = None
    if damping is None:
        damping = settings.damping if settings.damping != "auto" else None
    if damping is None:
        unlabelled = _sample(sequences, unlabelled_budget(len(sequences)), study.seed + 2)
        held_out, (batches, count) = list(_batches(asked, batch_tokens)[0]), _batches(unlabelled, batch_tokens)
        choice = choose_damping(model, held_out, runtime.track(batches, count, "choosing the damping"), factors)
        damping = choice.damping
    factors = factors.damped(damping)
    related = relations(model, [*asked, *against], factors, batch_tokens)
    weights = dict(zip([s.sample_id for s in (*asked, *against)], equal_weights(related).tolist(), strict=True))
    labels = competing(related[: len(asked), : len(asked)])
    fitting_groups(model, factors, study, setting, least=int(labels.max()) + 1 + bool(against))
    clusters = [f"cluster {label + 1}" for label in labels]
    groups = {name: [s for s, of in zip(asked, clusters, strict=True) if of == name] for name in sorted(set(clusters))}
    parts = groups | ({"controls": against} if against else {})
    query = preconditioned_queries(model, factors, parts, sequences, study, batch_tokens, weights)
    scored = partial(score_dataset, model, sequences, runtime=runtime, top_tokens=top_tokens)
    query = less_controls(query, len(groups), len(against))
    raw = scored(query)
    scale = score_scale(model, sequences, raw, factors, study, runtime)
    found = Influence(raw.pooled / scale, {}, raw, scale, query, clusters, damping, choice)
    if settings.query_groups == "none":
        return found
    if settings.query_groups == "cluster":
        return replace(found, groups={name: raw.by_group[:, k] / scale for k, name in enumerate(groups)})
    names = [row["sample_id"] if settings.query_groups == "query" else kind(row) for row in queries]
    return _with_groups(found, names, model, asked, sequences, factors, study, size, scored, batch_tokens)


def _with_groups(
    found: Influence,
    names: list[str],
    model: "PreTrainedModel",
    asked: list[TokenSequence],
    sequences: Sequence[TokenSequence],
    factors: Factors,
    study: Study,
    size: int,
    scored: Callable[[Query], Scores],
    batch_tokens: int,
) -> Influence:
    """Scores on the queries of each name by themselves, uncontrasted: as many at once as fit."""
    grouped: dict[str, list[TokenSequence]] = {}
    for name, sequence in zip(names, asked, strict=True):
        grouped.setdefault(name, []).append(sequence)
    elements = gradient_elements(model, factors.units)
    thin = (
        study.linfac.query_groups == "query" and not study.linfac.refinement and len(asked) * elements > EXACT_ELEMENTS
    )
    size = max(1, size * elements // low_rank_elements(factors)) if thin else size
    ordered, truncation = sorted(grouped), 0.0
    columns: dict[str, np.ndarray] = {}
    for start in range(0, len(ordered), size):
        part = {name: grouped[name] for name in ordered[start : start + size]}
        if thin:
            query = query_each(model, [group[0] for group in part.values()], factors, batch_tokens)
            truncation = max(truncation, query.truncation)
        else:
            query = preconditioned_queries(model, factors, part, sequences, study, batch_tokens)
        by_group = scored(query).by_group.astype(np.float64)
        columns |= {name: by_group[:, k] / found.scale for k, name in enumerate(part)}
    return replace(found, groups=columns, truncation=truncation)


def _numbered(sequences: Sequence[TokenSequence], role: str) -> list[TokenSequence]:
    """Named by their place: a query and a control may have one prompt, and so one `sample_id`."""
    return [replace(sequence, sample_id=f"{role} {number}") for number, sequence in enumerate(sequences, start=1)]


def influence_table(
    found: Influence, samples: pa.Table, sequences: Sequence[TokenSequence], tokenizer: "PreTrainedTokenizerBase"
) -> pa.Table:
    """One row a sample, in the order of `sequences`: sample_id, score, tokens, groups, source, category.

    `tokens`: list of {position, token, share}, largest |share| first. `groups`: list of {group, score}.
    """
    groups = [
        [{"group": name, "score": float(scores[row])} for name, scores in found.groups.items()]
        for row in range(len(sequences))
    ]
    return pa.table(
        {
            "sample_id": [sequence.sample_id for sequence in sequences],
            "score": found.score,
            "tokens": _strongest_tokens(found, sequences, tokenizer),
            "groups": pa.array(groups, pa.list_(GROUP)),
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


def fitting_groups(model: "PreTrainedModel", factors: Factors, study: Study, setting: str, least: int = 1) -> int:
    """As `placement.groups_at_once`, of queries as `study` makes them."""
    # As measured: gradients and preconditioned ones, or what conjugate gradients hold (12 a group, and the graphs).
    copies = 2 if study.linfac.refinement is None else 14
    remedy = "set linfac.units: sublayer_output" if study.linfac.units == "linear" else "take a smaller model"
    if study.linfac.refinement is not None:
        remedy = "leave out linfac.refinement"
    return groups_at_once(model, factors.units, copies, setting, remedy, least)


def preconditioned_queries(
    model: "PreTrainedModel",
    factors: Factors,
    groups: dict[str, list[TokenSequence]],
    sequences: Sequence[TokenSequence],
    study: Study,
    batch_tokens: int,
    weights: Mapping[str, float] | None = None,
) -> Query:
    """Preconditioned queries, refined on a random part of the training `sequences` where the study says so."""
    settings, refinement = study.linfac.refinement, None
    if settings is not None:
        used, _ = _batches(_sample(sequences, settings.samples, study.seed + 1), batch_tokens)
        refinement = Refinement(used, settings.steps)
    batches = {name: _batches(group, batch_tokens)[0] for name, group in groups.items()}
    return query_gradient(model, batches, factors, refinement=refinement, weights=weights)


def score_scale(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    raw: Scores,
    factors: Factors,
    study: Study,
    runtime: Runtime,
    typical_norm: float | None = None,
) -> np.ndarray:
    """What each score is divided by, [N] float64. typical_norm: of gradients of all training sequences; where absent, the
    median of these."""
    if study.linfac.normalisation == "gradient_norm":
        typical = float(np.median(raw.norms)) if typical_norm is None else typical_norm
        return floored(np.hypot(raw.norms.astype(np.float64), NORM_FLOOR * typical))
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
