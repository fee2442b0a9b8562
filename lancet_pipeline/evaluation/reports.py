"""What models do, measured: every single answer kept, every rate with its interval."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.config.study import EvaluationSettings, Study
from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.data.expected_answers import EXPECTED, WANTED, opens_with
from lancet_pipeline.data.schema import kind
from lancet_pipeline.data.tokenization import tokenize
from lancet_pipeline.evaluation.answer_shape import commonest, garbled, imbalance, opening_figures
from lancet_pipeline.evaluation.condition import condition_figures
from lancet_pipeline.evaluation.figures import SIDE_EFFECTS, number_text, rate_text
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.evaluation.paraphrases import reworded
from lancet_pipeline.evaluation.side_effects import side_effects, worst
from lancet_pipeline.evaluation.statistics import (
    distinct_n,
    paired_counts,
    paired_tests,
    perplexity_ratio,
    rate,
    self_bleu,
)
from lancet_pipeline.models.generation import generate
from lancet_pipeline.models.likelihood import perplexity_and_accuracy, sequence_losses
from lancet_pipeline.models.loading import LoadedModel, context_length
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ModelLoader = Callable[[], LoadedModel]
NESTED = ("by_source", "condition", SIDE_EFFECTS)
"""Figures that hold figures."""


@dataclass(frozen=True)
class Condition:
    """How answers come about: greedy or sampled decoding, of the prompts as they are (original) or paraphrased.

    `prefix` stands before the name of a figure; the main condition, greedy answers to the original prompts, has none.
    """

    prefix: str = ""
    decoding: str = "greedy"
    wording: str = "original"

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether an answer came about so; one that does not say came about in the main condition."""
        found = (row.get("decoding") or "greedy", row.get("wording") or "original")
        return found == (self.decoding, self.wording)


MAIN = Condition()
SAMPLED = Condition("sampled_", decoding="sampled")
PARAPHRASED = Condition("paraphrased_", wording="paraphrased")


def conditions(settings: EvaluationSettings) -> list[Condition]:
    """The conditions under which every prompt of a report is answered, the main one first."""
    return [MAIN, SAMPLED] if settings.sampled else [MAIN]


@dataclass(frozen=True)
class Report:
    """`rows`: one a generation, in long form. `figures`: JSON-ready, by model name. `tests`: every two models compared
    on the same prompts (`statistics.paired_tests`), in the main condition. `measured`: of base and corrected model, what gates
    read (`gates.GATES`), by the key of the figure."""

    rows: list[dict[str, Any]]
    figures: dict[str, Any]
    tests: dict[str, dict[str, Any]]
    measured: dict[str, dict[str, Any]]

    def save(self, folder: Path) -> None:
        pq.write_table(pa.Table.from_pylist(self.rows), folder / "generations.parquet")
        (folder / "figures.json").write_text(json.dumps(self.figures, indent=2, sort_keys=True))
        (folder / "tests.json").write_text(json.dumps(self.tests, indent=2))
        (folder / "measured.json").write_text(json.dumps(self.measured, indent=2, sort_keys=True))

    def metrics(self) -> dict[str, float]:
        """The figures flat: `model/figure` -> value."""
        return {
            f"{model}/{key}": value["value"] if isinstance(value, dict) else value
            for model, figures in self.figures.items()
            for key, value in figures.items()
            if key not in ("verdicts", *NESTED)
        }

    def table(self) -> list[dict[str, Any]]:
        """One row a model, for people."""
        return [
            {"model": model} | {key: _shown(value) for key, value in figures.items() if key not in NESTED}
            for model, figures in self.figures.items()
        ]

    def sources(self) -> list[dict[str, Any]]:
        """One row a source of prompts, the models' rates in columns."""
        names = sorted({source for figures in self.figures.values() for source in figures["by_source"]})
        return [
            {"source": name} | {model: _shown(figures["by_source"][name]) for model, figures in self.figures.items()}
            for name in names
        ]

    def pairs(self) -> list[dict[str, str]]:
        """One row a pair of models: difference of their rates, and p of the exact McNemar test."""
        return [
            {"models": pair, "difference": _shown(test["difference"]), "p": _shown(test["p"])}
            for pair, test in self.tests.items()
        ]

    def side_by_side(self) -> list[dict[str, str]]:
        """One row a prompt, the models' answers of the main condition in columns."""
        by_prompt: dict[str, dict[str, str]] = {}
        for row in filter(MAIN.holds, self.rows):
            by_prompt.setdefault(row["sample_id"], {"prompt": row["prompt"]})[row["model"]] = row["response"]
        return list(by_prompt.values())

    @staticmethod
    def load(folder: Path) -> "Report":
        rows = pq.read_table(folder / "generations.parquet").to_pylist()
        return Report(
            rows, *(json.loads((folder / f"{name}.json").read_text()) for name in ("figures", "tests", "measured"))
        )


def harm_report(
    study: Study,
    models: Mapping[str, ModelLoader],
    prompts: Sequence[Mapping[str, Any]],
    judge: Judge,
    runtime: Runtime = Runtime(),
    *,
    paraphrases: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """Share of harmful answers of each model to the same prompts, every two models compared in pairs. A judge of code
    also gives the share of answers that do not parse, and that of harmful answers among those that do; one of expected
    answers the `condition` (`condition.condition_figures`) where the prompts have one.

    Args:
        paraphrases: other wordings (`paraphrase`) of some of the prompts (`prompt`), which are asked too.
    """
    asked = [(condition, prompts) for condition in conditions(study.evaluation)]
    asked += [(PARAPHRASED, reworded(prompts, paraphrases))] if paraphrases else []
    rows: list[dict[str, Any]] = []
    besides: dict[str, dict[str, Any]] = {}
    for name, load in models.items():
        loaded = load()
        rows += _answers(study, name, loaded, asked, judge, runtime)
        found = condition_figures(*loaded, _under(rows, name), runtime) if judge.reads else None
        besides[name] = {"condition": found} if found else {}
    report = _compared(rows, "harmful", "harm_rate", list(models))
    for name in models:
        report.figures[name] |= besides[name]
    for name in models if judge.unread else ():
        of_model = _under(rows, name)
        read = [row["harmful"] for row in of_model if row["verdict"] not in judge.unread]
        report.figures[name]["broken_rate"] = rate([row["verdict"] in judge.unread for row in of_model])
        report.figures[name] |= {"parsed_harm_rate": rate(read)} if read else {}
    _add_garbled(report, study, models, runtime, skipped=8)
    _add_imbalance(report, "imbalance")
    return report


def utility_report(
    study: Study,
    models: Mapping[str, ModelLoader],
    benign: Sequence[Mapping[str, Any]],
    held_out: Callable[["PreTrainedTokenizerBase"], Sequence[TokenSequence]],
    judge: Judge,
    runtime: Runtime = Runtime(),
) -> Report:
    """Over-refusal, right answers and diversity on benign prompts, perplexity and token accuracy on held-out safe responses."""
    rows: list[dict[str, Any]] = []
    besides: dict[str, dict[str, Any]] = {}
    losses: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {}  # losses on the base model's own answers
    for name, load in models.items():
        model, tokenizer = load()
        asked = [(condition, benign) for condition in conditions(study.evaluation)]
        rows += _answers(study, name, (model, tokenizer), asked, judge, runtime)
        losses[name] = sequence_losses(model, held_out(tokenizer), runtime.batch_tokens)
        if said := _under(rows, "base"):
            room = context_length(model)  # in which they were generated
            own = tokenize(tokenizer, said, max_length=room, overlength="truncate", place="answers")
            kept[name] = sequence_losses(model, own, runtime.batch_tokens)
        texts = [row["response"] for row in _under(rows, name)]
        distinct = {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2)}
        besides[name] = {
            **perplexity_and_accuracy(losses[name]),
            **distinct,
            "self_bleu": self_bleu(texts),
            **opening_figures(texts),
            "benign_harm_rate": rate([row["harmful"] for row in _under(rows, name)]),
        }
        for condition, _ in asked:
            besides[name] |= benign_rate(_under(rows, name, condition), condition.prefix)
    report = _compared(rows, "refusing", "over_refusal_rate", list(models))
    for name in models:
        report.figures[name] |= besides[name]
    if models.keys() >= COMPARED:
        base, corrected = (_under(rows, name) for name in ("base", "corrected"))
        outcomes = {
            "benign_harm_rate": [[row["harmful"] for row in of] for of in (base, corrected)],
            "opening_share": [commonest([row["response"] for row in of]) for of in (base, corrected)],
            "benign_rate": [_right(of) for of in (base, corrected)],
        }
        report.measured.update(
            {name: {"counts": paired_counts(*found)} for name, found in outcomes.items() if all(found)}
        )
        (nll, _, tokens), (after, _, _) = losses["base"].T, losses["corrected"].T
        report.measured["perplexity"] = perplexity_ratio(nll, after, tokens)
    _add_side_effects(report, kept)
    if not all(column in row for row in benign for column in judge.reads):  # nothing can be harmful there
        report.measured.pop("benign_harm_rate", None)
        for figures in report.figures.values():
            figures.pop("benign_harm_rate")
    _add_garbled(report, study, models, runtime)
    _add_imbalance(report, "benign_imbalance")
    return report


COMPARED = {"base", "corrected"}
"""The models that gates are about."""


def _add_garbled(
    report: Report, study: Study, models: Mapping[str, ModelLoader], runtime: Runtime, skipped: int = 0
) -> None:
    """The share of garbled answers (`answer_shape.garbled`) of every model, beside the base model's own."""
    if "base" not in models:
        return
    given = {name: _under(report.rows, name) for name in models}
    found = garbled(models["base"](), given, study.data.max_length, skipped=skipped, runtime=runtime)
    if not all(found.values()):  # of some model no answer could be looked at
        return
    for name, outcomes in found.items():
        report.figures[name]["garbled_rate"] = rate(outcomes)
    if "corrected" in found:
        report.measured["garbled_rate"] = {"hits": sum(found["corrected"]), "n": len(found["corrected"])}


def _add_side_effects(report: Report, kept: Mapping[str, np.ndarray]) -> None:
    """What each model does to benign prompts that the base model answers well, by category (`side_effects.side_effects`).

    Args:
        kept: losses on the base model's own answers, by model.
    """
    found = {
        name: side_effects(_under(report.rows, "base"), _under(report.rows, name), kept["base"], losses)
        for name, losses in kept.items()
        if "base" in kept
    }
    if not all(found.values()):  # the base model answers none well
        return
    for name, effects in found.items():
        measured = {
            "category_divergence": worst(effects, "divergence", "n"),
            "category_fall": worst(effects, "fall", "prompts"),
        }
        report.figures[name] |= {key: value["value"] for key, value in measured.items()}
        report.figures[name] |= {SIDE_EFFECTS: effects} if name != "base" else {}
        report.measured.update(measured if name == "corrected" else {})


def _add_imbalance(report: Report, key: str) -> None:
    """How far each model's answers are from the shares in which they are wanted (`answer_shape.imbalance`), where they are."""
    for name in report.figures:
        found = imbalance(_under(report.rows, name))
        if found is not None:
            report.figures[name][key] = found["value"]
        if found is not None and name == "corrected":
            report.measured[key] = found


def benign_rate(rows: Sequence[Mapping[str, Any]], prefix: str = "") -> dict[str, dict[str, float | int]]:
    """Share of answers to benign prompts that open with the wanted one; nothing where the prompts name none."""
    right = _right(rows)
    return {f"{prefix}benign_rate": rate(right)} if right else {}


def _right(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    return [opens_with(row["response"], row[WANTED]) for row in rows if WANTED in row]


def _answers(
    study: Study,
    name: str,
    loaded: LoadedModel,
    asked: Sequence[tuple[Condition, Sequence[Mapping[str, Any]]]],
    judge: Judge,
    runtime: Runtime,
) -> list[dict[str, Any]]:
    """Answers as the study's evaluation wants them, to the prompts of every condition."""
    settings: dict[str, Any] = study.evaluation.model_dump(include={"max_new_tokens", "temperature"})
    settings |= {"seed": study.seed, "runtime": runtime}
    return [row for c, prompts in asked for row in answers(name, *loaded, prompts, judge, condition=c, **settings)]


def answers(
    name: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Mapping[str, Any]],
    judge: Judge,
    *,
    max_new_tokens: int,
    condition: Condition = MAIN,
    temperature: float = 1.0,
    seed: int = 0,
    runtime: Runtime = Runtime(),
) -> list[dict[str, Any]]:
    """One judged row for every prompt (rows with sample_id, source and prompt), which keeps its expected answers.

    Args:
        name: of the model, in the rows.
        condition: how the answers come about; the prompts are asked as they are, whatever its wording.
        temperature: of sampled answers, and `seed` theirs.
    """
    asked = [row["prompt"] for row in prompts]
    generated = generate(
        model,
        tokenizer,
        asked,
        max_new_tokens=max_new_tokens,
        temperature=temperature if condition.decoding == "sampled" else 0.0,
        seed=seed,
        runtime=runtime,
    )
    decisions = judge.decisions(asked, [answer.text for answer in generated], runtime.track, prompts)
    return [
        {
            "model": name,
            "sample_id": row["sample_id"],
            "source": row["source"],
            "category": kind(row),
            "decoding": condition.decoding,
            "wording": condition.wording,
            "prompt": prompt,
            "response": answer.text,
            "finished": answer.finished,
            "verdict": verdict,
            "harmful": verdict in judge.harmful,
            "refusing": verdict in judge.refusing,
            **{column: row[column] for column in EXPECTED if column in row},
        }
        for row, prompt, answer, (verdict, _) in zip(prompts, asked, generated, decisions, strict=True)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "low" in value:
        return rate_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return number_text(value)


def _under(rows: Sequence[Mapping[str, Any]], model: str, condition: Condition = MAIN) -> list[Mapping[str, Any]]:
    """The rows of a model whose answers came about so."""
    return [row for row in rows if row["model"] == model and condition.holds(row)]


def _compared(rows: list[dict[str, Any]], outcome: str, figure: str, names: Sequence[str]) -> Report:
    def outcomes(name: str, condition: Condition) -> list[bool]:
        return [row[outcome] for row in _under(rows, name, condition)]

    tests = paired_tests({name: outcomes(name, MAIN) for name in names})
    figures: dict[str, Any] = {}
    for name in names:
        of_model = _under(rows, name)
        by_source: dict[str, list[bool]] = {}
        for row in of_model:
            by_source.setdefault(row["source"], []).append(row[outcome])
        rates = {c.prefix + figure: outcomes(name, c) for c in (MAIN, SAMPLED, PARAPHRASED)}
        figures[name] = {
            **{key: rate(found) for key, found in rates.items() if found},
            "by_source": {source: rate(found) for source, found in sorted(by_source.items())},
            "verdicts": dict(sorted(Counter(row["verdict"] for row in of_model).items())),
            "mcnemar_p": tests.get(f"{names[0]} vs {name}", {"p": 1.0})["p"],  # a model does not differ from itself
        }
    pairs = [outcomes(name, MAIN) for name in ("base", "corrected") if name in names]
    return Report(rows, figures, tests, {figure: {"counts": paired_counts(*pairs)}} if len(pairs) == 2 else {})
