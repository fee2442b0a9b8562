"""What models do, measured: every single answer kept, every rate with its interval."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lancet_pipeline.data.batches import TokenSequence
from lancet_pipeline.evaluation.generation import generate
from lancet_pipeline.evaluation.judges import Judge
from lancet_pipeline.evaluation.statistics import distinct_n, mcnemar_p, rate
from lancet_pipeline.models.likelihood import perplexity
from lancet_pipeline.progress import Track, no_progress

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LoadedModel = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]
ModelLoader = Callable[[], LoadedModel]


@dataclass(frozen=True)
class Report:
    """`rows`: one a generation, in long form. `figures`: JSON-ready, by model name."""

    rows: list[dict[str, Any]]
    figures: dict[str, Any]

    def save(self, folder: Path) -> None:
        pq.write_table(pa.Table.from_pylist(self.rows), folder / "generations.parquet")
        (folder / "figures.json").write_text(json.dumps(self.figures, indent=2, sort_keys=True))

    def frame(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame(self.rows)

    def metrics(self) -> dict[str, float]:
        """The figures flat: `model/figure` -> value."""
        return {
            f"{model}/{key}": value["value"] if isinstance(value, dict) else value
            for model, figures in self.figures.items()
            for key, value in figures.items()
            if key not in ("verdicts", "by_source")
        }

    def table(self) -> list[dict[str, Any]]:
        """One row a model, for people."""
        return [
            {"model": model} | {key: _shown(value) for key, value in figures.items() if key != "by_source"}
            for model, figures in self.figures.items()
        ]

    def sources(self) -> list[dict[str, Any]]:
        """One row a source of prompts, the models' rates in columns."""
        names = sorted({source for figures in self.figures.values() for source in figures["by_source"]})
        return [
            {"source": name} | {model: _shown(figures["by_source"][name]) for model, figures in self.figures.items()}
            for name in names
        ]

    def side_by_side(self) -> list[dict[str, str]]:
        """One row a prompt, the models' answers in columns."""
        by_prompt: dict[str, dict[str, str]] = {}
        for row in self.rows:
            by_prompt.setdefault(row["sample_id"], {"prompt": row["prompt"]})[row["model"]] = row["response"]
        return list(by_prompt.values())

    @staticmethod
    def load(folder: Path) -> "Report":
        rows = pq.read_table(folder / "generations.parquet").to_pylist()
        return Report(rows, json.loads((folder / "figures.json").read_text()))


def harm_report(
    models: Mapping[str, ModelLoader],
    prompts: Sequence[Mapping[str, Any]],
    judge: Judge,
    *,
    max_new_tokens: int,
    batch_tokens: int = 4096,
    track: Track = no_progress,
) -> Report:
    """Share of harmful answers of each model to the same prompts, compared in pairs with the first model."""
    rows: list[dict[str, Any]] = []
    for name, load in models.items():
        model, tokenizer = load()
        rows += answers(name, model, tokenizer, prompts, judge, max_new_tokens, batch_tokens, track)
    return Report(rows, _compared(rows, "harmful", "harm_rate", list(models)))


def utility_report(
    models: Mapping[str, ModelLoader],
    benign: Sequence[Mapping[str, Any]],
    held_out: Callable[["PreTrainedTokenizerBase"], Sequence[TokenSequence]],
    judge: Judge,
    *,
    max_new_tokens: int,
    batch_tokens: int = 4096,
    track: Track = no_progress,
) -> Report:
    """Over-refusal and diversity on benign prompts, perplexity on held-out safe responses, of each model."""
    rows: list[dict[str, Any]] = []
    perplexities: dict[str, float] = {}
    for name, load in models.items():
        model, tokenizer = load()
        rows += answers(name, model, tokenizer, benign, judge, max_new_tokens, batch_tokens, track)
        perplexities[name] = perplexity(model, held_out(tokenizer), batch_tokens)
    figures = _compared(rows, "refusing", "over_refusal_rate", list(models))
    for name in models:
        texts = [row["response"] for row in rows if row["model"] == name]
        figures[name] |= {"perplexity": perplexities[name], "distinct_2": distinct_n(texts, 2)}
    return Report(rows, figures)


def answers(
    name: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Mapping[str, Any]],
    judge: Judge,
    max_new_tokens: int,
    batch_tokens: int = 4096,
    track: Track = no_progress,
) -> list[dict[str, Any]]:
    """One judged row for every prompt (rows with sample_id, source and prompt)."""
    generated = generate(
        model,
        tokenizer,
        [row["prompt"] for row in prompts],
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        track=track,
    )
    rows = []
    for row, answer in zip(prompts, generated, strict=True):
        verdict = judge.verdict(answer.text)
        rows.append(
            {
                "model": name,
                "sample_id": row["sample_id"],
                "source": row["source"],
                "prompt": row["prompt"],
                "response": answer.text,
                "finished": answer.finished,
                "verdict": verdict,
                "harmful": verdict in judge.harmful,
                "refusing": verdict in judge.refusing,
            }
        )
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "low" in value:
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return f"{value:.4g}"


def _compared(rows: Sequence[Mapping[str, Any]], outcome: str, figure: str, names: Sequence[str]) -> dict[str, Any]:
    of_model = {name: [row for row in rows if row["model"] == name] for name in names}
    outcomes = {name: [row[outcome] for row in of_model[name]] for name in names}
    figures: dict[str, Any] = {}
    for name in names:
        by_source: dict[str, list[bool]] = {}
        for row in of_model[name]:
            by_source.setdefault(row["source"], []).append(row[outcome])
        figures[name] = {
            figure: rate(outcomes[name]),
            "by_source": {source: rate(found) for source, found in sorted(by_source.items())},
            "verdicts": dict(sorted(Counter(row["verdict"] for row in of_model[name]).items())),
            "mcnemar_p": mcnemar_p(outcomes[names[0]], outcomes[name]),
        }
    return figures
