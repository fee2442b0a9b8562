"""What the evidence does not show, and what it shows to be wrong: said wherever the figures are."""

from collections.abc import Mapping
from typing import Any

from lancet_pipeline.governance.comparison import compare
from lancet_pipeline.governance.evidence import Evidence
from lancet_pipeline.governance.wording import RATES, measured, number_text, plural, rate_text

FEW_PROMPTS = 100


def verdict(evidence: Evidence) -> str:
    """The outcome in a sentence or two."""
    if not evidence.gates:
        return "No gates were evaluated, so nothing here says whether the corrected model may be used."
    failed = [gate for gate in evidence.gates if not gate["passed"]]
    if failed:
        names = ", ".join(f"{g['name']} ({number_text(g['value'])}, limit {number_text(g['limit'])})" for g in failed)
        verb = "does" if len(failed) == 1 else "do"
        return (
            f"{len(failed)} of {plural(len(evidence.gates), 'gate')} {verb} not hold: {names}. "
            "The corrected model must not replace the one in use."
        )
    count = len(evidence.gates)
    return "The one gate holds." if count == 1 else f"All {count} gates hold."


def outcome(evidence: Evidence) -> str:
    """What the correction did to each figure, in a sentence."""
    base, corrected = evidence.figures["base"], evidence.figures["corrected"]
    ratio = corrected["perplexity"] / base["perplexity"]

    def moved(figure: str) -> str:
        return f"from {rate_text(base[figure])} to {rate_text(corrected[figure])}"

    return (
        f"Harmful answers went {moved('harm_rate')} in distribution and {moved('ood_harm_rate')} out of distribution. "
        f"Refusals of benign prompts went {moved('over_refusal_rate')}. "
        f"Perplexity on held-out safe responses is {number_text(ratio)} times the base model's."
    )


def known_failures(evidence: Evidence) -> list[str]:
    """What this run itself shows to have gone wrong; empty where nothing did."""
    found = [
        f"Gate {gate['name']} does not hold: {gate['explanation']} is {number_text(gate['value'])}, "
        f"the limit {number_text(gate['limit'])}."
        for gate in evidence.gates
        if not gate["passed"]
    ]
    for comparison in compare(evidence.generations):
        still, broke = comparison.count("still fails"), comparison.count("broke")
        what = "answered harmfully" if comparison.failure == "harmful" else "refused"
        if still or broke:
            found.append(
                f"{comparison.title}: {plural(still + broke, 'prompt')} of {len(comparison.changes)} "
                f"{'is' if still + broke == 1 else 'are'} {what} after the correction, {broke} of them only since it."
            )
    broken = [
        f"{check['name']} of {asset}"
        for asset, manifest in evidence.lineage.items()
        for check in manifest.get("checks", [])
        if not check["passed"]
    ]
    if broken:
        found.append(f"{plural(len(broken), 'check')} did not pass: {', '.join(broken)}.")
    found += _tails(evidence.selection, "light")
    budget = evidence.study.get("correction", {}).get("retain_budget")
    last = evidence.correction_curve[-1] if evidence.correction_curve else None
    if budget is not None and last and last["perplexity_ratio"] > budget:
        found.append(
            f"The correction ended at step {last['step']} because it broke its retain budget "
            f"({number_text(last['perplexity_ratio'])}, limit {number_text(budget)}); the best earlier step was kept."
        )
    return found


def limits(evidence: Evidence) -> list[str]:
    """What the figures cannot say."""
    found = [_judge_limit(evidence.judge), _labels_limit(evidence.influence), *_tails(evidence.selection, "undecided")]
    rates = measured(RATES, evidence.figures)
    smallest = min(figures[rate]["n"] for figures in evidence.figures.values() for rate in rates)
    if smallest < FEW_PROMPTS:
        found.append(f"The smallest set has {smallest} prompts: its interval is wide, and rare failures can be missed.")
    references = [name for name in evidence.figures if name not in ("base", "corrected")]
    if not references:
        found.append("There is no reference model, so how far a correction could go at best is not known.")
    found += _kept_limit(evidence.lineage)
    environments = len(evidence.environments())
    if environments > 1:
        found.append(f"The assets were computed in {environments} different environments (see the manifest).")
    return [
        *found,
        "Each model was trained once, with one seed. The intervals cover the choice of prompts, not of seeds.",
        _decoding_limit(evidence),
        "Influence is an approximation to the effect of training without a sample; a high score is a reason to look "
        "at a sample, not proof against it.",
        "Out of distribution means the prompts of one set. Other languages, attacks and conversations of several "
        "turns were not tried.",
        "The signature shows that nothing in the bundle changed since it was signed, and with which key. It does not "
        "show that what was signed is true: compare the key's fingerprint with one that is known from elsewhere.",
    ]


_TAILS = {
    "light": "{} has a light tail ({}): the influence is spread over many samples, so the 80/20 rule does not hold. Samples "
    "nearly as strong were left out, and a correction by the {} selected ones, which carry {:.0%} of it, may reach only a part.",
    "undecided": "Whether {} has a heavy tail is undecided ({} includes 2): that few samples carry most of it is not shown, "
    "so the {} selected ones, which carry {:.0%} of it, are the strongest and need not be the main cause. More training "
    "samples make the interval narrower.",
}


def _tails(selection: Mapping[str, Any], tail: str) -> list[str]:
    """What a tail of that kind means for the selection, of each side that has one."""
    found = []
    for side, name in (("positive", "the driving influence"), ("negative", "the countering influence")):
        values = selection[side]
        if values["tail"] == tail:
            low, index, high = (number_text(values[f"tail_{key}"]) for key in ("low", "index", "high"))
            interval = f"Hill index {index}, 95 % interval {low} to {high}"
            text = _TAILS[tail].format(name, interval, values["size"], values["share"])
            found.append(text[0].upper() + text[1:])
    return found


def _decoding_limit(evidence: Evidence) -> str:
    if evidence.study.get("evaluation", {}).get("sampled"):
        return "Beside the greedy answers, one sampled answer was judged for each prompt. Others can be harmful."
    return "Answers were decoded greedily. Sampled answers to the same prompts can be harmful where these are not."


def _judge_limit(judge: Mapping[str, Any] | None) -> str:
    if judge is None:
        return "Verdicts come from an automatic judge that was not validated on human labels in this study."
    return (
        f"Verdicts come from an automatic judge. It agreed with human labels on {rate_text(judge['accuracy'])} of "
        f"completions (kappa {number_text(judge['kappa'])}; {judge['left_out']} without a clear label left out)."
    )


def _kept_limit(lineage: Mapping[str, Mapping[str, Any]]) -> list[str]:
    kept = {name: lineage[name]["metrics"] for name in ("base_model", "linfac_factors") if name in lineage}
    return [
        f"{name} was not made anew for the present training data, of which {number_text(metrics['drift_added'])} sequences "
        f"are new to it and {number_text(metrics['drift_removed'])} are gone; that adds "
        f"{number_text(metrics['drift_loss'])} nats per token to its mean loss, within the study's tolerance."
        for name, metrics in kept.items()
        if "drift_added" in metrics
    ]


def _labels_limit(influence: Mapping[str, Any]) -> str:
    if influence.get("contamination_ap") is None:
        return "The training data carries no labels, so how well influence finds harmful samples was not measured."
    return (
        f"Ranking by influence finds the samples labelled unsafe with average precision "
        f"{number_text(influence['contamination_ap'])} (chance: {number_text(influence['contamination_base_rate'])}): "
        "some influential samples are not harmful, and some harmful ones are not influential."
    )
