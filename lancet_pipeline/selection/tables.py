"""The Pareto rule on a study's scores: the selection as tables."""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import Study
from lancet_pipeline.data.schema import kind
from lancet_pipeline.selection.pairing import pair, same_answer
from lancet_pipeline.selection.pareto import select


@dataclass(frozen=True)
class Choice:
    """Selected samples (`role` driving, countering or neutral), pairs of them, and figures of both sides.

    same_answer: the share of pairs whose two responses are the same (`pairing.same_answer`)."""

    samples: pa.Table
    pairs: pa.Table
    figures: dict[str, Any]
    composition: list[dict[str, Any]]
    ranked: dict[str, tuple[list[float], int]]
    disjoint: bool
    same_answer: float


def choose(
    samples: pa.Table, scored: pa.Table, study: Study, barred: Collection[str] = (), *, sparse: bool = False
) -> Choice:
    """Select and pair. Labels appear in `composition` for the reader only.

    Args:
        barred: sample_ids that may neither counter nor be indifferent.
        sparse: whether sides may be smaller than pareto.minimum, and pairs be missing.

    Raises:
        InputError: see `selection.pareto.select`.
    """
    scores, names = scored["score"].to_numpy(), scored["sample_id"].to_numpy()
    kept_out = np.isin(names.astype(str), list(barred))
    groups = [kind(row) for row in samples.select(["category", "source"]).to_pylist()]
    settings = study.pareto.model_copy(update={"minimum": 0}) if sparse else study.pareto
    selection = select(scores, settings, equal=not study.influence.signed, barred=kept_out, groups=groups)
    responses = samples["response"].to_pylist()
    preferred, dispreferred, weights = pair(
        selection.negative.indices,
        selection.positive.indices,
        scores,
        samples["prompt"].to_pylist(),
        responses,
        pairing=study.pareto.pairing,
        count=study.pareto.pairs,
        seed=study.seed,
    )
    pairs = {
        "preferred_id": names[preferred],
        "dispreferred_id": names[dispreferred],
        "preferred_score": scores[preferred],
        "dispreferred_score": scores[dispreferred],
        "weight": weights,
    }
    roles = selection.roles
    indices = np.concatenate(list(roles.values()))
    labels = np.repeat(list(roles), [len(members) for members in roles.values()])
    figures = {
        "positive": selection.positive.figures(),
        "negative": selection.negative.figures(),
        "neutral": {"size": len(selection.neutral)},
    }
    return Choice(
        pa.table({"role": labels, "sample_id": names[indices], "score": scores[indices]}),
        pa.table(pairs),
        figures,
        _composition(samples, roles),
        {
            "driving": (np.sort(scores[scores > 0])[::-1].tolist(), len(selection.positive.indices)),
            "countering": (np.sort(-scores[scores < 0])[::-1].tolist(), len(selection.negative.indices)),
        },
        len(set(indices.tolist())) == len(indices),
        same_answer(preferred, dispreferred, responses),
    )


def write_choice(choice: Choice, folder: Path) -> None:
    pq.write_table(choice.samples, folder / "samples.parquet")
    pq.write_table(choice.pairs, folder / "pairs.parquet")
    (folder / "selection.json").write_text(json.dumps(choice.figures, indent=2, sort_keys=True))


def ranked_roles(folder: Path) -> dict[str, str]:
    """sample_id -> `driving` or `countering`, of a choice that was written to `folder`."""
    rows = pq.read_table(folder / "samples.parquet", columns=["sample_id", "role"]).to_pylist()
    return {row["sample_id"]: row["role"] for row in rows if row["role"] != "neutral"}


def _composition(samples: pa.Table, roles: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    categories = samples["category"].to_pylist()
    safety = samples["is_safe"].to_pylist()
    rows = []
    for role, members in roles.items():
        for (category, is_safe), count in Counter((categories[i], safety[i]) for i in members).most_common():
            rows.append({"role": role, "category": category or "", "is_safe": is_safe, "samples": count})
    return rows
