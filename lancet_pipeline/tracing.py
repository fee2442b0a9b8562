"""From one answer back to the training samples and tokens behind it."""

from typing import Any

import numpy as np

from lancet_pipeline.artifacts import ArtifactStore
from lancet_pipeline.data.batches import TokenSequence, bucketed, collate
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.generation import generate
from lancet_pipeline.evaluation.judges import make_judge
from lancet_pipeline.linfac import Factors, score_tokens
from lancet_pipeline.linfac.study import study_query
from lancet_pipeline.models.loading import load_model, load_tokenizer
from lancet_pipeline.progress import Track, no_progress
from lancet_pipeline.study import Study
from lancet_pipeline.summary import last_run


def trace_answer(
    store: ArtifactStore, study: Study, prompt: str, response: str | None, top: int, track: Track = no_progress
) -> dict[str, Any]:
    """Score all training samples on one answer, with the factors of the last run; nothing is fitted anew.

    Args:
        response: the answer to trace; the base model's own greedy one where None.
        top: samples returned on each side.

    Returns:
        {"study", "prompt", "response", "verdict", "driving": [sample], "countering": [sample]}; each sample has
        sample_id, score, source, category, is_safe, prompt, response and tokens {token, share, response}.

    Raises:
        InputError: a blank prompt, or a study that has not been run as far as its factors.
    """
    if not prompt.strip():
        raise InputError("--prompt: is blank; give the prompt whose answer is to be traced")
    lineage = last_run(store, study.name)
    if "linfac_factors" not in lineage:
        raise InputError(f"study '{study.name}': has no factors yet; run `lancet run {study.name}`")

    def folder(asset: str):
        return store.read(study.name, asset, lineage[asset]["version"])

    model = load_model(folder("base_model"), dtype=study.model.dtype)
    tokenizer = load_tokenizer(folder("base_model"))
    finished = True
    if response is None:
        answer = generate(model, tokenizer, [prompt], max_new_tokens=study.queries.max_new_tokens)[0]
        response, finished = answer.text, answer.finished
    samples, sequences = load_prepared(folder("prepared_data"))
    query_row = {"sample_id": "traced", "prompt": prompt, "response": response, "finished": finished}
    query = study_query(model, tokenizer, Factors.load(folder("linfac_factors")), [query_row], sequences, study)
    groups = bucketed(sequences, study.compute.batch_tokens)
    shares: list[np.ndarray] = [np.empty(0)] * len(sequences)
    for group in track(groups, len(groups), "tracing"):
        scored = score_tokens(model, collate([sequences[i] for i in group]), query).cpu().numpy()
        for index, row in zip(group, scored, strict=True):
            shares[index] = row[: len(sequences[index])]
    scores = np.array([row.sum(dtype=np.float64) for row in shares])
    order = np.argsort(-scores, kind="stable")
    rows = samples.to_pylist()

    def described(index: int) -> dict[str, Any]:
        return rows[index] | {
            "score": float(scores[index]),
            "tokens": _tokens(sequences[index], shares[index], tokenizer),
        }

    return {
        "study": study.name,
        "prompt": prompt,
        "response": response,
        "verdict": make_judge(study.evaluation.judge).verdict(response),
        "driving": [described(i) for i in order[:top] if scores[i] > 0],
        "countering": [described(i) for i in order[::-1][:top] if scores[i] < 0],
    }


def _tokens(sequence: TokenSequence, shares: np.ndarray, tokenizer: Any) -> list[dict[str, Any]]:
    special = set(tokenizer.all_special_ids)
    return [
        {"token": tokenizer.decode([int(i)]), "share": float(s), "response": p >= sequence.response_start}
        for p, (i, s) in enumerate(zip(sequence.input_ids, shares, strict=True))
        if int(i) not in special
    ]
