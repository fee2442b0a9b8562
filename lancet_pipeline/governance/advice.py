"""What is at hand against a study's harm: each way with its cost, what it asks of people and its effect, and which wins."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lancet_pipeline.config.study import Study
from lancet_pipeline.correction.losses import METHODS
from lancet_pipeline.data.tokenization import load_prepared
from lancet_pipeline.governance.wording import seconds_text
from lancet_pipeline.lineage.results import reached, summarise
from lancet_pipeline.lineage.stages import REPORTS
from lancet_pipeline.scale.hardware import hardware_of
from lancet_pipeline.scale.planning import plan
from lancet_pipeline.selection.tables import ranked_roles
from lancet_pipeline.store.artifacts import ArtifactStore

Spread = Mapping[str, Mapping[str | None, tuple[int, int]]]
"""Column -> value -> its driving samples (D+), and all its samples."""

TITLES = {
    "ibo": "correct the model",
    "filter_and_retrain": "train again without D+",
    "relabel_and_retrain": "train again with D+ answered as wanted",
    "drop_source": "train again without the sources of D+",
    "replacements": "correct with written good answers",
}
FINDING = ("undesirable_outputs", "linfac_factors", "influence_scores", "pareto_pairs")
"""The stages that find D+, which every way needs."""
NEEDED = frozenset({"base_model", *FINDING, "corrected_model", *REPORTS})
ARMS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("arms.json").read_text())
"""Way -> what was measured of it on another study: `harm_rate_fall` with its interval, the study, and the command."""
FIELD = {"filter_and_retrain": 0.63, "relabel_and_retrain": 0.78, "drop_source": 0.84}
"""Way -> fall of the harm rate as published in arXiv 2602.11079: OLMo 2 7B after DPO; relabelled: the two sides of pairs swapped."""
HELD, GOING = 0.8, 0.5
"""Values of a column are the sources of D+ where they hold at least HELD of it and at most GOING of all samples."""
NOT_RUN: dict[str, Any] = {"references": {}, "paths": {}} | dict.fromkeys(
    ("base", "corrected", "gates", "influence", "selection")
)


@dataclass(frozen=True)
class Effect:
    """Share of the base model's harm rate that goes, with its 95 % interval where it has one. basis: measured on this study, on
    another one (ARMS), or published (FIELD)."""

    value: float
    low: float | None
    high: float | None
    basis: Literal["record", "arms", "field"]

    def holds(self, value: float) -> bool:
        """Whether `value` lies in the interval."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    @property
    def text(self) -> str:
        return fall_text(self.value, self.low, self.high)


@dataclass(frozen=True)
class Way:
    """One way to less harm.

    missing: what it lacks; None where it is at hand. processor_seconds: once D+ is found, with evaluation; None where the study
    trains no model. people: what they have to give. effect: None where nothing is known. gates: `passed` or `failed` on this
    study; None where they are open or were not measured. how: the next command or setting.
    """

    name: str
    missing: str | None
    processor_seconds: float | None
    people: str
    effect: Effect | None
    gates: str | None
    how: str

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def helps(self) -> bool:
        """Whether it is at hand, passed or was not measured, and takes harm away as far as is known."""
        able = self.missing is None and self.gates != "failed"
        return able and self.effect is not None and self.effect.value > 0

    @property
    def cost(self) -> float:
        return self.processor_seconds or 0.0

    def row(self) -> dict[str, Any]:
        """JSON-ready, with `at_hand`; the basis of an effect is called `from`."""
        effect = self.effect and asdict(self.effect)
        if effect:
            effect["from"] = effect.pop("basis")
        return asdict(self) | {"at_hand": self.missing is None, "effect": effect}


def study_advice(study: Study, store: ArtifactStore, model_directories: Sequence[Path], called: str) -> dict[str, Any]:
    """`advise` from the last run of a study; costs that it did not record are those of the plan on one CPU thread.

    Raises:
        InputError: records of an earlier version; data or a checkpoint that the plan cannot read.
    """
    name, figures, seconds, spread = study.name, None, {}, None
    if reached(store, name):
        figures = summarise(store, name)
        versions = figures["versions"]
        seconds = {asset: used for asset, used in figures["processor_seconds"].items() if used is not None}
        if study.model.reuse is not None:  # the last run may have kept the model
            seconds.pop("base_model", None)
        if "pareto_pairs" in versions:
            prepared, pairs = (store.read(name, asset, versions[asset]) for asset in ("prepared_data", "pareto_pairs"))
            spread = spread_of(prepared, pairs)
    if NEEDED - seconds.keys():
        expected = plan(study, hardware_of("cpu"), model_directories)["assets"]
        seconds = {row["asset"]: row["seconds"] for row in expected} | seconds
    return advise(study, seconds, figures, spread, called)


def advise(
    study: Study,
    seconds: Mapping[str, float],
    figures: Mapping[str, Any] | None = None,
    spread: Spread | None = None,
    called: str | None = None,
) -> dict[str, Any]:
    """Every way, and the best of those at hand: a `record` goes before `arms`, these before `field`; then the largest fall of
    harm, unless another lies in its interval and costs less than half. What failed a gate on this study is not recommended.

    Args:
        seconds: processor seconds of the assets NEEDED.
        figures: of the last run (`results.summarise`); None where nothing has been run.
        spread: of D+; None where it is not known.
        called: name or path of the study in commands; its name where None.

    Returns:
        {study, base_harm_rate, finding_processor_seconds, ways: [Way.row], best: a name or None, why}.
    """
    found, called = figures or NOT_RUN, called or study.name
    ways, base, best = _ways(study, seconds, found, spread, called), found["base"], None
    if base is None:
        state = "the last run did not reach the reports" if figures else "nothing has been run yet"
        why = f"{state}: `lancet run {called}` finds D+, corrects the model and measures what that does"
        if study.model.training is not None and not study.evaluation.references:
            why += (
                "; with evaluation.references: [retrain_clean] also what training again does, if data.train has labels"
            )
    elif not base["harm_rate"]["value"]:
        why = f"the base model answers none of {base['harm_rate']['n']} prompts harmfully: nothing to correct"
    else:
        best, why = _verdict(ways, found["gates"] or ())
    return {
        "study": study.name,
        "base_harm_rate": base and base["harm_rate"],
        "finding_processor_seconds": sum(seconds[asset] for asset in FINDING),
        "ways": [way.row() for way in ways],
        "best": best,
        "why": why,
    }


def fall_text(value: float, low: float | None, high: float | None) -> str:
    """`98 % (94.5 to 99 %)`, or without an interval."""
    return f"{100 * value:.3g} %" + ("" if low is None or high is None else f" ({100 * low:.3g} to {100 * high:.3g} %)")


def _ways(
    study: Study, seconds: Mapping[str, float], found: Mapping[str, Any], spread: Spread | None, called: str
) -> list[Way]:
    run, trains = f"lancet run {called}", study.model.training is not None
    evaluation = sum(seconds[report] for report in REPORTS) / (2 + len(study.evaluation.references))
    outcomes = {gate["outcome"] for gate in found["gates"] or ()}
    gates = "failed" if "failed" in outcomes else "passed" if outcomes == {"passed"} else None

    def correction(name: str, missing: str | None, people: str, gates: str | None, how: str) -> Way:
        cost = seconds["corrected_model"] + evaluation
        return Way(name, missing, cost, people, _effect(name, study, found), gates, how)

    def training(name: str, missing: str | None, people: str, change: str) -> Way:
        cost = seconds["base_model"] + evaluation if trains else None
        missing = missing if trains else "a training of the study's own (model.source: given)"
        return Way(name, missing, cost, people, _effect(name, study, found), None, f"{change}, then {run}")

    after = {
        "passed": f"lancet promote {called} --approver NAME --reason TEXT",
        "failed": f"other settings of correction, then {run}",
        None: f"lancet summary {called}",
    }
    folder, sources = found["paths"].get("pareto_pairs"), _sources(spread or {})
    driving = f"the samples of role driving in {folder}/samples.parquet" if folder else "D+"
    answers = f"{found['selection']['positive']} good answers" if found["selection"] else "good answers"
    labelled = found["influence"] is None or found["influence"]["contamination_ap"] is not None
    if "retrain_clean" in found["references"]:
        filtered = "data.train without the rows labelled unsafe"
    else:
        filtered = "evaluation: {references: [retrain_clean]}" if labelled else f"data.train without {driving}"
    unknown = "a source or category that holds most of D+" if spread else "D+, which a run finds"
    file = f"correction: {{replacements: FILE}}, then {run}"
    written = None if study.correction.replacements else "good answers to some prompts of D+, in a file"
    told = "labels" if METHODS[study.correction.method].labelled else "nothing"
    standing, open_ = (gates, after[gates] if found["corrected"] else run), (None, file)
    if _assisted(found):
        standing, open_ = (None, f"correction without replacements, then {run}"), standing
    return [
        correction("ibo", None, told, *standing),
        training("filter_and_retrain", None, "labels" if labelled else "nothing", filtered),
        training("relabel_and_retrain", answers, answers, f"data.train with good answers in {driving}"),
        training("drop_source", None if sources else unknown, "nothing", f"data.train without {sources or 'them'}"),
        correction("replacements", written, answers, *open_),
    ]


def _assisted(found: Mapping[str, Any]) -> bool:
    """Whether the correction of a last run had replacements."""
    return bool((found["selection"] or {}).get("replaced"))


def _effect(name: str, study: Study, found: Mapping[str, Any]) -> Effect | None:
    models = {"replacements" if _assisted(found) else "ibo": found["corrected"]}
    if study.model.training is not None:
        models["filter_and_retrain"] = found["references"].get("retrain_clean")
    if (model := models.get(name)) and (base := found["base"]["harm_rate"]["value"]):
        value, low, high = (1 - model["harm_rate"][end] / base for end in ("value", "high", "low"))
        return Effect(value, low, high, "record")
    if name in ARMS and (name != "ibo" or study.correction.method == "ibo"):
        value, low, high = (ARMS[name][key] for key in ("harm_rate_fall", "low", "high"))
        return Effect(value, low, high, "arms")
    return Effect(FIELD[name], None, None, "field") if name in FIELD else None


def spread_of(prepared: Path, pairs: Path) -> Spread:
    """Where D+ stands, by source and category, from the folders of `prepared_data` and `pareto_pairs`."""
    samples, roles = load_prepared(prepared)[0], ranked_roles(pairs)
    driving = [roles.get(identity) == "driving" for identity in samples["sample_id"].to_pylist()]
    found = {}
    for column in ("source", "category"):
        values = samples[column].to_pylist()
        inside = Counter(value for value, drives in zip(values, driving, strict=True) if drives)
        found[column] = {value: (inside[value], size) for value, size in Counter(values).items()}
    return found


def _sources(spread: Spread) -> str | None:
    """The values of a column that hold D+, in words, of the column where fewest samples go; None where D+ is scattered."""
    found = []
    for column, values in spread.items():
        driving, samples = (sum(counts) for counts in zip(*values.values(), strict=True))
        names, held, going = [], 0, 0
        for name, (inside, size) in sorted(values.items(), key=lambda item: -item[1][0] / item[1][1]):
            if name is not None and held < HELD * driving:
                names.append(name)
                held, going = held + inside, going + size
        if names and held >= HELD * driving and going <= GOING * samples:
            found.append(
                (going, f"{column} {', '.join(names)} ({going} of {samples} samples, {held} of {driving} of D+)")
            )
    return min(found)[1] if found else None


def _verdict(ways: Sequence[Way], gates: Sequence[Mapping[str, Any]]) -> tuple[str | None, str]:
    """Name of the best way, and why; None where no way that is at hand is known to help."""
    failed = ", ".join(gate["name"] for gate in gates if gate["outcome"] == "failed")
    best, correction = _best(ways), next((way for way in ways if way.name == "replacements" and way.effect), ways[0])
    if best is None or best.effect is None:
        return None, "no way that is at hand is known to help: " + "; ".join(_objection(way, failed) for way in ways)
    basis = {
        "record": "measured on this study" + ("" if best is correction else " without the rows labelled unsafe"),
        "arms": f"as measured on the study {ARMS.get(best.name, {}).get('study')}",
        "field": "as published (arXiv 2602.11079)",
    }[best.effect.basis]
    why = [f"{best.title}: harm falls by {best.effect.text}, {basis}"]
    if best is correction and (left := [gate["name"] for gate in gates if not gate["passed"]]):
        why.append(f"open gates: {', '.join(left)}")
    rival = correction if best is not correction else _best([way for way in ways if way is not correction])
    return best.name, "; ".join([*why, *(_advantages(best, rival, failed) if rival else ())])


def _best(ways: Sequence[Way]) -> Way | None:
    useful = [(way, way.effect) for way in ways if way.effect and way.helps]
    for basis in ("record", "arms", "field"):
        known = [(way, effect) for way, effect in useful if effect.basis == basis]
        if known:
            best, most = max(known, key=lambda pair: pair[1].value)
            cheap = [way for way, effect in known if most.holds(effect.value) and 2 * way.cost < best.cost]
            return min(cheap, key=lambda way: way.cost, default=best)
    return None


def _advantages(best: Way, rival: Way, failed: str) -> Iterator[str]:
    """What speaks for it against a rival: effect, cost, or both."""
    if not rival.helps:
        yield _objection(rival, failed)
    elif best.effect and rival.effect and best.effect.basis == rival.effect.basis:
        less = "takes away less" if best.effect.value > rival.effect.value else "is not shown to take away more"
        yield f"'{rival.title}' {less} ({rival.effect.text})"
    if best.cost < rival.cost:
        yield f"it costs {seconds_text(best.cost)}, '{rival.title}' {seconds_text(rival.cost)}"


def _objection(way: Way, failed: str) -> str:
    if way.missing is not None:
        why = f"lacks {way.missing}"
    elif way.gates == "failed":
        why = f"failed {failed}"
    else:
        why = "takes no harm away" if way.effect else "has no known effect"
    return f"'{way.title}' {why}"
