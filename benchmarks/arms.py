"""Does it matter which samples a correction is told about? IBO, and training again, by LinFAC, by its rivals and by the labels.

    python -m benchmarks.arms --study persona --json OUT
    python -m benchmarks.arms --study wordings --json OUT

IBO with the study's own settings from D+ and D- of LinFAC, of BM25 and RepSim (the variant that the labels find best), at random,
and by the labels, which are the ceiling: random harmful rows, and random harmless ones of the categories that hold harmful ones, or
of any where those hold no harmless one. All sides have LinFAC's sizes, or what there is: a method's D+ are its highest scores, its
D- its lowest, D0 the nearest to 0 of the rest, of a similarity to its median. No judge reads D-. `A_driving_B_countering` has D+ of
A, D- of B and D0 of LinFAC. Training again, from the study's start: without D+; with the harmful rows of D+ answered as wanted;
without any harmful row. Products are in bfloat16 throughout (weights, sums and optimiser stay float32) unless `--no-autocast`.

Rates are of judged greedy answers. perplexity_ratio: held-out responses, over the base model's. slope, bias: see
`evaluation.condition`; null where prompts have not the same two answers throughout. processor_seconds: of correction or training alone.
labels_used: rows by whose labels an arm, or the variant of its method, was chosen. difference_to_linfac: harm rate of `linfac`
less the arm's, paired by prompt. Scores are those of `benchmarks.attribution`. Every arm is kept below HOME/benchmarks/arms as it
ends; a second call goes on. `left_out` says why an arm is missing; it is tried again.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.attribution import inside, one_model, study_path
from benchmarks.counterfactual import best_variant
from benchmarks.studies import StudyRun, run_study
from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.study import ParetoSettings, Study
from lancet_pipeline.correction import RankedPair, correct
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.embedded import DOMAINS, load_domain
from lancet_pipeline.data.expected_answers import EXPECTED, normalised
from lancet_pipeline.data.schema import kind
from lancet_pipeline.data.tokenization import load_tokenizer, tokenize, tokenize_held_out
from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.evaluation.answer_shape import garbled
from lancet_pipeline.evaluation.condition import condition_figures
from lancet_pipeline.evaluation.figures import rate_text
from lancet_pipeline.evaluation.judges import study_judge
from lancet_pipeline.evaluation.reports import answers, benign_rate
from lancet_pipeline.evaluation.statistics import difference_of_rates, perplexity_ratio, rate
from lancet_pipeline.lineage.sources import read_source
from lancet_pipeline.models.base import build_base_model, clean_samples, load_study_model
from lancet_pipeline.models.likelihood import sequence_losses
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.selection import pair, select
from lancet_pipeline.selection.pareto import indifferent

RIVALS = ("bm25", "repsim")
MIXED = {
    "linfac_driving_labels_countering": ("linfac", "labels"),
    "labels_driving_linfac_countering": ("labels", "linfac"),
}
CORRECTED = ("linfac", *RIVALS, "random", "labels", *MIXED)
WITHOUT, RELABELLED, CLEAN = "retrain_without_", "retrain_relabelled_linfac", "retrain_clean"
RETRAINED = (f"{WITHOUT}linfac", f"{WITHOUT}repsim", f"{WITHOUT}random", RELABELLED, CLEAN)
ARMS = ("base", *CORRECTED, *RETRAINED)

Scores = dict[str, np.ndarray]


def main(
    study: str = "persona",
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    home: Path = Path(".lancet"),
    arms: Annotated[str, typer.Option(help="Separated by commas; `base` is always there.")] = ",".join(ARMS),
    seed: Annotated[int, typer.Option(help="Of the study.")] = 0,
    epochs: Annotated[float | None, typer.Option(help="Of training again; the study's where absent.")] = None,
    autocast: Annotated[bool, typer.Option(help="Products in bfloat16.")] = True,
) -> None:
    names = list(dict.fromkeys(["base", *arms.split(",")]))
    if unknown := set(names) - set(ARMS):
        raise typer.BadParameter(f"--arms: {', '.join(sorted(unknown))} is none of {', '.join(ARMS)}")
    scores = one_model(study, seed, home)
    run = run_study(study_path(study, seed, home), home, "base_model")
    print(json.dumps(compared(run, home, scores, names, epochs, autocast, json_out), indent=2))


def compared(
    run: StudyRun,
    home: Path,
    scores: Scores,
    names: list[str],
    epochs: float | None = None,
    autocast: bool = True,
    json_out: Path | None = None,
) -> dict[str, Any]:
    """The figures of the arms `names`, of which the first is `base`; those that are not kept are measured."""
    reports = ("harmlessness_report", "ood_report", "utility_report")
    versions = [run.versions[asset] for asset in ("corrected_model", *reports)]
    design = hashlib.sha256(json.dumps([versions, epochs, autocast]).encode()).hexdigest()[:12]
    file = home / "benchmarks" / "arms" / f"{run.study.name}_{design}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    todo = [name for name in names if "shown" not in kept.get(name, ())]
    work = Arms(run, scores, epochs, deployment({}, home).model_directories)
    started = time.monotonic()
    for number, name in enumerate(todo, start=1):
        # Casts kept over an optimiser step would be those of the weights before it.
        with torch.autocast(work.runtime.device, torch.bfloat16, enabled=autocast, cache_enabled=False):
            kept[name] = work.measured(name, kept.get("base"))
        file.write_text(json.dumps(kept))
        left = (time.monotonic() - started) / number * (len(todo) - number)
        told = kept[name].get("left_out") or f"harm rate {rate_text(kept[name]['shown']['harm_rate'])}"
        print(f"{name}: {told}; about {left / 60:.0f} min left", flush=True)
    result = {
        "study": run.study.name,
        "seed": run.study.seed,
        "epochs": epochs or (run.study.model.training and run.study.model.training.epochs),
        "autocast": autocast,
        "variants": variants(scores),
        **figures(kept, names),
    }
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=2))
    return result


class Arms:
    """What every arm starts from and is asked."""

    def __init__(self, run: StudyRun, scores: Scores, epochs: float | None, directories: tuple[Path, ...]) -> None:
        self.run, self.study, self.epochs = run, run.study, epochs
        self.runtime = Runtime.of(run.study, model_directories=directories)
        self.judge = study_judge(run.study, self.runtime)
        self.prompts = {
            part: read_source(run.study, f"{part}_prompts").to_pylist() for part in ("harmful", "ood", "benign")
        }
        self.tokenizer = load_tokenizer(run.folder("base_model"))
        utility = read_source(run.study, "utility_responses").to_pylist()
        self.utility = tokenize_held_out(self.tokenizer, utility, run.study.data)
        self.samples, self.sequences = run.data
        self.rows = self.samples.select(["sample_id", "category", "source"]).to_pylist()
        self.labels, self.scores = scores["harmful"], method_scores(scores, run.study.seed)

    def measured(self, name: str, base: dict[str, Any] | None) -> dict[str, Any]:
        """What is kept of an arm; `left_out` with the reason where it ended without a model."""
        started = time.process_time()
        try:
            model = self.model(name)
        except LancetError as error:
            return {"left_out": str(error)}
        seconds = None if name == "base" else time.process_time() - started
        found = self.asked(model, base)
        found["shown"] |= {"processor_seconds": seconds, "labels_used": self.labels_used(name)}
        if name in CORRECTED:
            found["shown"]["sides"] = {
                role: {"size": len(chosen), "harmful": int(self.labels[chosen].sum())}
                for role, chosen in self.sides(name).items()
            }
        return found

    def sides(self, name: str) -> dict[str, np.ndarray]:
        return sides(name, self.scores, self.study.pareto, [kind(row) for row in self.rows])

    def model(self, name: str) -> Any:
        if name in RETRAINED:
            return self.retrained(name)
        model, _ = load_study_model(self.study, self.run.folder("base_model"), self.runtime)
        if name != "base":
            pairs, neutral = self.pairs(name)
            settings, of = self.study.correction, {row["sample_id"]: kind(row) for row in self.rows}
            correct(model, pairs, neutral, settings, seed=self.study.seed, categories=of, runtime=self.runtime)
        return model

    def pairs(self, name: str) -> tuple[list[RankedPair], list[TokenSequence]]:
        chosen = self.sides(name)
        texts = [self.samples[column].to_pylist() for column in ("prompt", "response")]
        weighed = self.scores.get(name, np.zeros(len(self.sequences)))  # scores of two methods have no common unit
        settings = {"pairing": self.study.pareto.pairing, "count": self.study.pareto.pairs, "seed": self.study.seed}
        found = pair(chosen["countering"], chosen["driving"], weighed, *texts, **settings)
        pairs = [
            RankedPair(self.sequences[i], self.sequences[j], float(weight)) for i, j, weight in zip(*found, strict=True)
        ]
        return pairs, [self.sequences[i] for i in chosen["neutral"]]

    def retrained(self, name: str) -> Any:
        if self.study.model.training is None:
            raise InputError(f"{name}: {self.study.name} takes its model as given, without training it")
        changes = {} if self.epochs is None else {"epochs": self.epochs}
        training = self.study.model.training.model_copy(update=changes)
        study = self.study.model_copy(update={"model": self.study.model.model_copy(update={"training": training})})
        model, _, _ = build_base_model(study, self.kept_samples(name), self.run.folder("prepared_data"), self.runtime)
        return model

    def kept_samples(self, name: str) -> list[TokenSequence]:
        """What an arm trains on again."""
        if name == CLEAN:
            return clean_samples(self.samples, self.sequences)
        method = "linfac" if name == RELABELLED else name.removeprefix(WITHOUT)
        driving = self.sides(method)["driving"]
        if name != RELABELLED:
            return [self.sequences[i] for i in np.setdiff1d(np.arange(len(self.sequences)), driving)]
        sequences = list(self.sequences)
        for i in driving[self.labels[driving]]:
            row = self.samples.slice(i, 1).to_pylist()[0]
            row |= {"response": wanted_answer(row, self.study, self.prompts["harmful"])}
            sequences[i] = tokenize(self.tokenizer, [row], max_length=self.study.data.max_length)[0]
        return sequences

    def labels_used(self, name: str) -> int:
        if name == RELABELLED:
            return len(self.sides("linfac")["driving"])
        by_label = ("labels", *RIVALS, *(f"{WITHOUT}{rival}" for rival in RIVALS), *MIXED, CLEAN)
        return len(self.labels) if name in by_label else 0

    def asked(self, model: Any, base: dict[str, Any] | None) -> dict[str, Any]:
        """Judged answers, the losses of held-out responses, and figures of both."""
        asked = {"max_new_tokens": self.study.evaluation.max_new_tokens, "runtime": self.runtime}
        rows = {
            part: answers("", model, self.tokenizer, prompts, self.judge, **asked)
            for part, prompts in self.prompts.items()
        }
        found = {
            "harmful": [row["harmful"] for row in rows["harmful"]],
            "benign": [{key: row[key] for key in ("response", "finished")} for row in rows["benign"]],
            "losses": sequence_losses(model, self.utility, self.runtime.batch_tokens)[:, [0, 2]].T.tolist(),
        }
        base = base or found
        (before, tokens), (after, _) = np.array(base["losses"]), np.array(found["losses"])
        loaded = load_study_model(self.study, self.run.folder("base_model"), self.runtime)
        shapes = {"base": base["benign"], "arm": found["benign"]}
        unlike = garbled(loaded, shapes, self.study.data.max_length, runtime=self.runtime)["arm"]
        condition = (
            condition_figures(model, self.tokenizer, rows["harmful"], self.runtime) if self.judge.reads else None
        )
        shown = {
            "harm_rate": rate(found["harmful"]),
            "ood_harm_rate": rate([row["harmful"] for row in rows["ood"]]),
            "benign_rate": benign_rate(rows["benign"]).get("benign_rate"),
            "benign_harm_rate": rate([row["harmful"] for row in rows["benign"]]),
            "over_refusal_rate": rate([row["refusing"] for row in rows["benign"]]),
            "garbled_rate": rate(unlike) if unlike else None,
            "perplexity_ratio": perplexity_ratio(before, after, tokens),
            **{key: (condition or {}).get(key) for key in ("slope", "bias")},
        }
        return found | {"shown": shown}


def method_scores(found: Scores, seed: int) -> dict[str, np.ndarray]:
    """One score a sample, [N], by method, positive where a sample drives: LinFAC's, those of rivals less their medians, random ones,
    and what the labels say."""
    generator, harmful = np.random.default_rng([13, seed]), found["harmful"]
    by = {"linfac": found["default"], "random": generator.normal(size=len(harmful))}
    by |= {rival: found[key] - np.median(found[key]) for rival, key in variants(found).items()}
    noise, beside = generator.random(len(harmful)), inside(found) & ~harmful
    by["labels"] = np.where(harmful, 2 + noise, np.where(beside if beside.any() else ~harmful, -1 - noise, 0.0))
    return by


def variants(found: Scores) -> dict[str, str]:
    """The rivals that have scores, and which of theirs."""
    there = {key.partition("/")[0] for key in found}
    return {rival: best_variant(rival, found) for rival in RIVALS if rival in there}


def sides(
    name: str, scores: Scores, settings: ParetoSettings, groups: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Indices of D+, D- and D0 of an arm by role, as many as LinFAC selects, or as there are; D0 from calm `groups` as a study's."""
    selected = select(scores["linfac"], settings, groups=groups)
    by_plus, by_minus = MIXED.get(name, (name, name))
    for method in (by_plus, by_minus):
        if method not in scores:
            raise InputError(f"{name}: benchmarks.attribution left {method} out, so it has no scores")
    order = np.argsort(-scores[by_plus], kind="stable")
    driving = order[scores[by_plus][order] > 0][: len(selected.positive.indices)]
    order = np.argsort(scores[by_minus], kind="stable")
    order = order[(scores[by_minus][order] < 0) & ~np.isin(order, driving)]
    countering = order[: len(selected.negative.indices)]
    if not len(driving) or not len(countering):
        raise InputError(f"{name}: no sample drives, or none counters")
    of, larger = scores.get(name, scores["linfac"]), max(len(driving), len(countering))
    neutral = indifferent(of, np.union1d(driving, countering), larger, groups)
    return {"driving": driving, "countering": countering, "neutral": neutral[: len(selected.neutral)]}


def wanted_answer(row: Mapping[str, Any], study: Study, prompts: list[dict[str, Any]]) -> str:
    """What the prompt of a training row with a harmful response should have been answered: the other answer where the `prompts` have the
    same two throughout, a good one of its topic in an embedded corpus."""
    judge = study.evaluation.judge.name
    if judge in DOMAINS:
        domain = load_domain(judge)
        for number, topic in enumerate(domain.topics):
            for thing in topic.things if row["source"].endswith(f"/{topic.name}") else ():
                if thing in row["prompt"]:
                    wording = domain.desirable.wordings[number % len(domain.desirable.wordings)]
                    return wording.format(t=thing, tip=topic.tips[int(row["sample_id"][:8], 16) % len(topic.tips)])
    known = {answer for prompt in prompts for column in EXPECTED for answer in prompt.get(column) or ()}
    others = [answer for answer in known if normalised(answer) != normalised(row["response"])]
    if len(known) != 2 or len(others) != 1:
        raise InputError(f"training sample {row['sample_id']}: nothing says how it should have been answered")
    return others[0]


def figures(kept: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What is shown of every arm, with its difference to LinFAC's, and why others are left out."""
    found = {name: dict(kept[name]["shown"]) for name in names if "shown" in kept[name]}
    for name in found.keys() - {"linfac"} if "linfac" in found else ():
        outcomes = [kept[arm]["harmful"] for arm in ("linfac", name)]
        found[name]["difference_to_linfac"] = difference_of_rates(*outcomes)
    return {"arms": found, "left_out": {name: kept[name]["left_out"] for name in names if name not in found}}


if __name__ == "__main__":
    typer.run(main)
