"""What a plot shows, in words, for those who do not see it."""

from collections.abc import Callable

from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.wording import model_text, number_text, rate_text


def alternative_text(name: str, evidence: Evidence) -> str:
    """A sentence with the plot's main figures; a plain title for a plot that is not known here."""
    for ending, describe in _TEXTS.items():
        if name.endswith(ending):
            return describe(evidence)
    return f"Plot: {name.replace('_', ' ')}."


def _rates(figure: str, what: str) -> Callable[[Evidence], str]:
    def describe(evidence: Evidence) -> str:
        bars = "; ".join(f"{model_text(m)}: {rate_text(f[figure])}" for m, f in evidence.figures.items())
        return f"Bars, one a model, of the share of {what}. {bars}."

    return describe


def _rank_size(evidence: Evidence) -> str:
    def side(name: str) -> str:
        figures = evidence.selection[name]
        return (
            f"{figures['size']} samples chosen, carrying {figures['share']:.0%} of the influence of their sign, "
            f"Hill index {number_text(figures['tail_index'])}"
        )

    return (
        "Size of influence against rank on logarithmic axes, where a Pareto tail is a straight line. "
        f"Driving: {side('positive')}. Countering: {side('negative')}."
    )


def _precision_recall(evidence: Evidence) -> str:
    found, chance = (evidence.influence.get(name) for name in ("contamination_ap", "contamination_base_rate"))
    return (
        "Precision against recall of samples labelled unsafe when ranked by influence. "
        f"Average precision {number_text(found)}, chance {number_text(chance)}."
    )


def _budget(evidence: Evidence) -> str:
    ratios = [row["perplexity_ratio"] for row in evidence.correction_curve]
    limit = evidence.study.get("correction", {}).get("retain_budget")
    if not ratios:
        return "Perplexity ratio on indifferent samples kept apart, by step."
    return (
        "Perplexity on indifferent samples kept apart over the base model's, by step: "
        f"from {number_text(ratios[0])} to {number_text(ratios[-1])}, at most {number_text(max(ratios))}. "
        f"The limit is {number_text(limit)}."
    )


def _losses(evidence: Evidence) -> str:
    if not evidence.correction_curve:
        return "Ranking and retain loss of the correction, by step."
    first, last = evidence.correction_curve[0], evidence.correction_curve[-1]
    return (
        f"Losses of the correction, by step {first['step']} to {last['step']}: "
        f"correction loss from {number_text(first['correction'])} to {number_text(last['correction'])}, "
        f"retain from {number_text(first['retain'])} to {number_text(last['retain'])}."
    )


_TEXTS: dict[str, Callable[[Evidence], str]] = {
    "harmlessness_report_rates": _rates("harm_rate", "harmful answers to held-out prompts"),
    "ood_report_rates": _rates("ood_harm_rate", "harmful answers to prompts out of distribution"),
    "utility_report_rates": _rates("over_refusal_rate", "benign prompts that were refused"),
    "rank_size": _rank_size,
    "precision_recall": _precision_recall,
    "corrected_model_budget": _budget,
    "corrected_model_losses": _losses,
    "prepared_data_lengths": lambda _: "Histogram of the lengths of the training samples, in tokens.",
    "base_model_loss": lambda _: "Training loss per token of the base model, by step.",
    "spectrum": lambda _: "Falling eigenvalues of the Kronecker factors on logarithmic axes, one line a kind.",
}
