"""What a governance review of one correction rests on, as plain values."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evidence:
    """Everything that the audit bundle, the report and the model card are made from.

    Rates are `{"value", "low", "high", "n"}`. Positive scores and shares drive the undesirable behaviour, negative
    ones counter it.

    Attributes:
        study: the whole study, JSON-ready.
        versions: version (64 hex digits) of every source and asset.
        lineage: artifact manifest of every asset that was computed: version, code_version, settings, inputs
            {name: version}, seconds, processor_seconds (not of artifacts of older code), created, metrics,
            checks [{name, passed, metadata}], environment, files [{path, bytes, sha256}].
        figures: by model, "base" and "corrected" first, then references: the rates harm_rate, ood_harm_rate and
            over_refusal_rate, the numbers perplexity and distinct_2, and any other of `wording.RATES` and `NUMBERS`.
        gates: {name, passed, value, limit, explanation}, each.
        selection: "positive" and "negative" {size, share, tail_index, tail_low, tail_high, heavy_tailed}, and
            "neutral" {size}.
        influence: contamination_ap and contamination_base_rate (None without labels), samples, seconds.
        samples: the selected ones: role (driving, countering, neutral), sample_id, score, source, category, is_safe,
            prompt, response, and tokens [{token, share}], with `position` where the list is not the whole sequence.
        queries: the model's own undesirable outputs: sample_id, prompt, response, verdict.
        pairs: preferred_id, dispreferred_id, preferred_score, dispreferred_score, weight.
        generations: every answer: report (harmlessness, ood, utility), model, decoding (greedy, sampled), wording
            (original, paraphrased), sample_id, prompt, response, verdict, harmful, refusing.
        correction_curve: step, loss, correction, retain, margin, perplexity_ratio.
        plots: name -> PNG; a name starts with the asset that drew it.
        judge: agreement with human labels {accuracy, kappa, confusion, left_out}, and auc where it scores; None where
            it was not validated.
        traces: harmful outputs of the base model, one by one: report (queries, harmlessness, ood), sample_id, prompt,
            response, verdict, corrected_response, corrected_verdict, and samples: the selected training samples with the
            most influence on this output alone, [{sample_id, role, score, tokens [{position, token, share}]}].
        decisions: what people and the pipeline decided on models of this study, oldest first: sequence, time, study,
            action, actor, reason, model, version, bundle, gates, expires, previous, hash (`governance.decisions`).
        data_checks: by asset, the validation of its table by a Great Expectations suite: name, success, rows, results
            [{type, arguments, success, found}] (`data.expectations.meets`); older artifacts have none.
    """

    study: dict[str, Any]
    versions: dict[str, str]
    lineage: dict[str, dict[str, Any]]
    figures: dict[str, dict[str, Any]]
    gates: list[dict[str, Any]]
    selection: dict[str, Any]
    influence: dict[str, Any]
    samples: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    generations: list[dict[str, Any]]
    correction_curve: list[dict[str, Any]]
    plots: dict[str, bytes]
    judge: dict[str, Any] | None
    traces: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    data_checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def gates_hold(self) -> bool:
        """Whether there are gates and all of them pass."""
        return bool(self.gates) and all(gate["passed"] for gate in self.gates)

    def environments(self) -> list[dict[str, Any]]:
        """Each distinct environment that assets were computed in: {"assets": [name], "packages": {name: version}}."""
        found: list[dict[str, Any]] = []
        for asset, manifest in self.lineage.items():
            packages = manifest.get("environment", {})
            same = next((entry for entry in found if entry["packages"] == packages), None)
            if same is None:
                found.append({"assets": [asset], "packages": packages})
            else:
                same["assets"].append(asset)
        return found
