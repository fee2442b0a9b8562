"""Attribution behind one interface: LinFAC and its rivals, which say how much each training sample has to do with each output."""

from collections.abc import Sequence

import numpy as np

from lancet_pipeline.attribution.base import Case, Method
from lancet_pipeline.attribution.gradients import gradient_cosine, gradient_dot, linfac
from lancet_pipeline.attribution.representations import embeddings, probe, repsim, repsim_prompt
from lancet_pipeline.attribution.words import bm25, tf_idf


def random(case: Case) -> np.ndarray:
    """No attribution at all: the floor. [N]"""
    return np.random.default_rng(case.study.seed).normal(size=len(case.sequences))


METHODS: dict[str, Method] = {
    "linfac": linfac,
    "gradient_dot": gradient_dot,
    "gradient_cosine": gradient_cosine,
    "bm25": bm25,
    "tf_idf": tf_idf,
    "embeddings": embeddings,
    "repsim": repsim,
    "repsim_prompt": repsim_prompt,
    "probe": probe,
    "random": random,
}

VARIANTS = ("mean", "max", "mean less controls", "max less controls")
"""How scores on single outputs become one: on average or at most over the queries, as it is or less the same over the controls."""


def variants(found: np.ndarray, queries: int, chosen: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """One score a sample, [N], by each of VARIANTS that there are; of a method without scores on single outputs, its own.

    Args:
        found: what a method gives, [N, A] or [N]; the first `queries` columns are of queries, the others of controls.
        chosen: the queries to look at; all where absent.
    """
    if found.ndim == 1:
        return {"": found}
    asked = found[:, :queries] if chosen is None else found[:, list(chosen)]
    by = {"mean": asked.mean(1), "max": asked.max(1)}
    if found.shape[1] == queries:
        return by
    controls = found[:, queries:]
    return by | {
        "mean less controls": by["mean"] - controls.mean(1),
        "max less controls": by["max"] - controls.max(1),
    }


__all__ = ["METHODS", "VARIANTS", "Case", "Method", "variants"]
