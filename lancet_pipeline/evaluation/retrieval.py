"""How well influence finds the samples that are known to be harmful. Labels are used for this figure, never for the selection."""

import pyarrow as pa

from lancet_pipeline import plots


def retrieval(samples: pa.Table, scored: pa.Table) -> tuple[dict[str, float], dict[str, bytes]]:
    """Average precision of known-harmful samples, their share, and the precision-recall curve; both empty where the
    training data carries no labels."""
    labels = dict(zip(samples["sample_id"].to_pylist(), samples["is_safe"].to_pylist(), strict=True))
    known = [row for row in scored.select(["sample_id", "score"]).to_pylist() if labels[row["sample_id"]] is not None]
    harmful = [not labels[row["sample_id"]] for row in known]
    if not any(harmful) or all(harmful):
        return {}, {}
    from sklearn.metrics import average_precision_score

    scores = [row["score"] for row in known]
    precision = float(average_precision_score(harmful, scores))
    figures = {"contamination_ap": precision, "contamination_base_rate": sum(harmful) / len(harmful)}
    return figures, {"precision_recall": plots.precision_recall(scores, harmful, precision)}
