"""A study's influence by the method that it names in place of LinFAC, and how far any method is from word search."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lancet_pipeline.attribution import METHODS, variants
from lancet_pipeline.attribution.base import Case, Row, fitting
from lancet_pipeline.attribution.words import bm25
from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import Factors
from lancet_pipeline.linfac.influence import GROUP, TOKEN
from lancet_pipeline.linfac.traces import KEPT, strongest
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.selection import driving

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WITHOUT_SINGLE_SCORES = frozenset({"probe", "random"})
"""Methods that give one score for all outputs together, and so no traces of single ones."""


def study_case(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    samples: pa.Table,
    sequences: Sequence[TokenSequence],
    queries: Sequence[Row],
    controls: Sequence[Row],
    study: Study,
    runtime: Runtime,
    factors: Factors | None,
) -> Case:
    """The training samples of a study, and those of its queries and controls whose prompts are not too long.

    Raises:
        InputError: there is no such query.
    """
    outputs = [*queries, *controls]
    asked = fitting(tokenizer, outputs, study.data.max_length)
    count = sum(place < len(queries) for place in asked)
    if not count:
        raise InputError(f"queries: no prompt of one fits into data.max_length = {study.data.max_length}; raise it")
    kept = [outputs[place] for place in asked]
    return Case(model, tokenizer, samples, sequences, kept, count, study, runtime, factors)


def study_scores(case: Case) -> np.ndarray:
    """One score per training sample by the study's method, positive where it drives the behaviour: [N]."""
    settings = case.study.influence
    return one_score(METHODS[settings.method](case), case.queries, signed=settings.signed)


def one_score(found: np.ndarray, queries: int, *, signed: bool) -> np.ndarray:
    """Mean over queries less mean over controls; of a method without scores on single outputs, its own: [N].

    Without controls there is no contrast: the mean over queries as it is, or, of similarities, less its median over the
    samples, since nothing else gives them a sign.

    Args:
        found: what a method gives, [N, A] or [N]; the first `queries` columns are of queries, the others of controls.
    """
    by = variants(found, queries)
    for name in ("", "mean less controls"):
        if name in by:
            return by[name]
    return by["mean"] if signed else by["mean"] - np.median(by["mean"])


def score_table(case: Case, score: np.ndarray) -> pa.Table:
    """As `linfac.influence.influence_table`, with neither tokens nor groups."""
    empty: list[list] = [[] for _ in case.sequences]
    return pa.table(
        {
            "sample_id": [sequence.sample_id for sequence in case.sequences],
            "score": score,
            "tokens": pa.array(empty, pa.list_(TOKEN)),
            "groups": pa.array(empty, pa.list_(GROUP)),
            "source": case.samples["source"],
            "category": case.samples["category"],
        }
    )


def word_search(case: Case, score: np.ndarray) -> dict[str, float]:
    """How far `score` is from what BM25 finds: `word_search_overlap`, the share of the samples that drive by the 80/20 rule
    that are among as many strongest ones of word search, and `word_search_correlation`, Spearman's over all samples.

    Empty where the study's method is word search itself, or texts have no words; without a figure that is not defined.
    """
    from scipy.stats import spearmanr

    settings = case.study.influence
    if settings.method == "bm25":
        return {}
    try:
        words = one_score(bm25(case), case.queries, signed=False)
    except InputError:
        return {}
    chosen = driving(score, equal=not settings.signed)
    found = np.argsort(-words, kind="stable")[: len(chosen)]
    figures = {"word_search_overlap": float(np.isin(chosen, found).mean())} if len(chosen) else {}
    if np.ptp(score) > 0 and np.ptp(words) > 0:
        correlated: Any = spearmanr(score, words)
        figures["word_search_correlation"] = float(correlated.statistic)
    return figures


def scores_on(case: Case) -> np.ndarray:
    """Similarity of each training sample to the one output of `case`, or its influence on it, by the study's method: [N].

    Raises:
        InputError: the method has no scores on single outputs.
    """
    method = case.study.influence.method
    if method in WITHOUT_SINGLE_SCORES:
        raise InputError(f"influence.method: {method} scores all outputs together; a single one cannot be traced")
    return METHODS[method](case)[:, 0]


def trace_outputs(case: Case, roles: Mapping[str, str], outputs: Sequence[Row]) -> list[list[dict[str, Any]]]:
    """As `linfac.traces.trace_outputs`, by the study's method and without tokens. A similarity says how alike a sample and an
    output are, and no more: the most similar samples of either role are kept.

    Nothing for any output where the method has no scores on single ones.

    Args:
        case: all training samples; what it asks about does not matter.
        roles: sample_id -> role; only those in KEPT are scored.
    """
    settings = case.study.influence
    traces: list[list[dict[str, Any]]] = [[] for _ in outputs]
    rows = [row for row, sequence in enumerate(case.sequences) if roles.get(sequence.sample_id) in KEPT]
    asked = fitting(case.tokenizer, outputs, case.study.data.max_length) if outputs else []
    if settings.method in WITHOUT_SINGLE_SCORES or not asked or not rows:
        return traces
    chosen = case.of([outputs[i] for i in asked], rows)
    names = [sequence.sample_id for sequence in chosen.sequences]
    found, role = METHODS[settings.method](chosen), [roles[name] for name in names]
    for column, output in enumerate(asked):
        traces[output] = [
            {"sample_id": names[i], "role": role[i], "score": float(found[i, column]), "tokens": []}
            for i in strongest(found[:, column], role, signed=settings.signed)
        ]
    return traces
