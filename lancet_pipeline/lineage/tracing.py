"""From one answer back to the training samples and tokens behind it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lancet_pipeline.attribution.scoring import scores_on, study_case
from lancet_pipeline.config.study import Study
from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges import study_judge
from lancet_pipeline.lineage.results import Lineage, last_run
from lancet_pipeline.lineage.stages import REPORTS
from lancet_pipeline.linfac import Factors, LinfacConfig, score_tokens
from lancet_pipeline.linfac.influence import influence
from lancet_pipeline.models.base import load_study_model
from lancet_pipeline.models.generation import generate
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.store.artifacts import ArtifactStore


def trace_answer(
    store: ArtifactStore,
    study: Study,
    prompt: str,
    response: str | None,
    top: int,
    runtime: Runtime = Runtime(),
) -> dict[str, Any]:
    """Score all training samples on one answer, with the factors and the damping of the last run; nothing is fitted
    anew, and what was scored for this answer before is not scored again.

    Args:
        response: the answer to trace; the base model's own greedy one where None.
        top: samples returned on each side.

    Returns:
        {"study", "method", "prompt", "response", "verdict", "driving": [sample], "countering": [sample]}; each sample has
        sample_id, score, source, category, is_safe, prompt, response and tokens {token, share, response}. Methods other
        than LinFAC have no tokens; those that tell how alike texts are give the most similar samples, and none that counter.

    Raises:
        InputError: a blank prompt or response, a study that has not been run as far as its factors, or one whose method has
            no scores on single outputs.
    """
    if not prompt.strip():
        raise InputError("--prompt: is blank; give the prompt whose answer is to be traced")
    if response is not None and not response.strip():
        raise InputError("--response: is blank; give the answer to trace, or leave it out for the model's own")
    lineage = last_run(store, study.name)
    if "linfac_factors" not in lineage:
        raise InputError(f"study '{study.name}': has no factors yet; run `lancet run {study.name}`")

    def folder(asset: str) -> Path:
        return store.read(study.name, asset, lineage[asset]["version"])

    model, tokenizer = load_study_model(study, folder("base_model"), runtime)
    finished = True
    if response is None:
        answer = generate(model, tokenizer, [prompt], max_new_tokens=study.queries.max_new_tokens)[0]
        response, finished = answer.text, answer.finished
    samples, sequences = load_prepared(folder("prepared_data"))
    query_row = {"sample_id": "traced", "prompt": prompt, "response": response, "finished": finished}
    factors = Factors.load(folder("linfac_factors"), runtime.device)
    journaled, method = replace(runtime, journal=store.journal), study.influence.method
    found = None
    if method == "linfac":
        damping = _damping(study, lineage)
        found = influence(model, tokenizer, sequences, factors, [query_row], study, journaled, damping=damping)
        score = found.score
    else:
        score = scores_on(study_case(model, tokenizer, samples, sequences, [query_row], (), study, journaled, factors))
    order = np.argsort(-score, kind="stable")
    chosen = {
        "driving": [int(i) for i in order[:top] if score[i] > 0],
        "countering": [int(i) for i in order[::-1][:top] if score[i] < 0 and study.influence.signed],
    }
    rows = samples.to_pylist()

    def described(index: int) -> dict[str, Any]:
        if found is None:
            return rows[index] | {"score": float(score[index]), "tokens": []}
        shares = (
            score_tokens(model, collate([sequences[index]]), found.query.pooled().to(runtime.device))[0].cpu().numpy()
        )
        tokens = _tokens(sequences[index], shares / found.scale[index], tokenizer)
        return rows[index] | {"score": float(score[index]), "tokens": tokens}

    return {
        "study": study.name,
        "method": method,
        "prompt": prompt,
        "response": response,
        "verdict": _verdict(store, study, lineage, prompt, response, runtime),
        **{side: [described(index) for index in indices] for side, indices in chosen.items()},
    }


def logged_answer(store: ArtifactStore, study: Study, answer_id: str) -> tuple[str, str]:
    """Prompt and response of an answer of the base model that the last run logged.

    Args:
        answer_id: the `sample_id` of a probe, or of a prompt of any report.

    Raises:
        InputError: there is no such answer.
    """
    known = ""
    for row in _logged(store, study, last_run(store, study.name)):
        if row["model"] == "base" and row["sample_id"] == answer_id:
            return row["prompt"], row["response"]
        known = known or row["sample_id"]
    example = f"; ids look like {known}" if known else ""
    raise InputError(f"--id {answer_id}: the last run of study '{study.name}' logged no such answer{example}")


def _logged(store: ArtifactStore, study: Study, lineage: Lineage) -> Iterator[dict[str, Any]]:
    """Every answer that the last run logged."""
    files = {"undesirable_outputs": "answers.parquet", **dict.fromkeys(REPORTS, "generations.parquet")}
    for asset, name in files.items():
        if asset in lineage:
            yield from pq.read_table(store.read(study.name, asset, lineage[asset]["version"]) / name).to_pylist()


def _verdict(store: ArtifactStore, study: Study, lineage: Lineage, prompt: str, response: str, runtime: Runtime) -> str:
    """Of the study's judge; `not judged` where it compares with expected answers, and the last run asked no such prompt."""
    judge = study_judge(study, runtime)
    if not judge.reads:
        return judge.verdict(response, prompt)
    asked = next((row for row in _logged(store, study, lineage) if row["prompt"] == prompt), None)
    return "not judged" if asked is None else judge.verdict(response, prompt, asked)


def _damping(study: Study, lineage: Lineage) -> float:
    """The study's, or the one that the last run chose."""
    if study.linfac.damping != "auto":
        return study.linfac.damping
    metrics: Mapping[str, Any] = lineage.get("influence_scores", {}).get("metrics", {})
    return metrics.get("damping", LinfacConfig().damping)


def _tokens(sequence: TokenSequence, shares: np.ndarray, tokenizer: Any) -> list[dict[str, Any]]:
    special = set(tokenizer.all_special_ids)
    return [
        {"token": tokenizer.decode([int(i)]), "share": float(s), "response": p >= sequence.response_start}
        for p, (i, s) in enumerate(zip(sequence.input_ids, shares, strict=True))
        if int(i) not in special
    ]
