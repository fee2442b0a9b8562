"""What a model does when the samples that a method blames are left out and it is trained again.

    python -m benchmarks.counterfactual --study persona --json OUT

Each arm leaves out the highest twentieth of the training samples by one method (`benchmarks.attribution`, whose scores it takes
over; of each rival the variant that the labels find best), at random, or none of them, and trains anew from the study's start.
Trainings are shortened: to `--rows` samples, which are all those that any arm leaves out and others drawn anew for each repeat,
the same ones for all arms; to `--epochs` passes over them; and to products in bfloat16 (weights, sums and optimiser stay
float32). Repeats differ in the draw and in the order of training.

harm_rate: judged greedy answers to held-out harmful prompts. query_loss_rise: by how much the loss of the base model's own harmful
answers to them rises over the arm that leaves none out, nats a sequence; control_loss_rise: the same of held-out safe responses.
harm_above_default, query_loss_below_default: by how much an arm does less than `linfac`. Intervals: 95 %, t over repeats, of
paired differences where it is one. Three arms ask whether a label is a driver: `--arms benign_driving,benign_random,harmful_driving`
leave out as many benign samples that the default takes as driving, benign ones at random, and harmful driving ones. Every training
is kept below HOME/benchmarks/counterfactual as it ends; a second call with the same arms goes on.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.stats import t as students
from sklearn.metrics import average_precision_score

from benchmarks.attribution import one_model, study_path
from benchmarks.studies import StudyRun, run_study
from lancet_pipeline.config.environment import deployment
from lancet_pipeline.data.batches import TokenSequence, bucketed, collate
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.data.tokenization import tokenize
from lancet_pipeline.evaluation.judges import study_judge
from lancet_pipeline.evaluation.reports import answers
from lancet_pipeline.linfac.influence import query_sequences
from lancet_pipeline.models.base import build_base_model
from lancet_pipeline.models.likelihood import response_logps
from lancet_pipeline.models.runtime import Runtime

ARMS = ("none", "linfac", "bm25", "repsim", "gradient_cosine", "linfac_undivided", "random")
SHARE = 0.05
KEYS = {"linfac": "default"}
BY_LABELS = ("bm25", "repsim", "gradient_cosine")
"""Arms that take the best variant of their method."""


def main(
    study: str = "persona",
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    home: Path = Path(".lancet"),
    arms: Annotated[str, typer.Option(help="Separated by commas; `none` is always there.")] = ",".join(ARMS),
    repeats: Annotated[int, typer.Option(min=2)] = 5,
    rows: Annotated[int, typer.Option(help="Samples of a training.")] = 800,
    epochs: float = 1.0,
    removed: Annotated[int | None, typer.Option(help="Samples left out; a twentieth where absent.")] = None,
) -> None:
    scores = one_model(study, 0, home)
    run = run_study(study_path(study, 0, home), home, "base_model")
    count = removed or round(SHARE * len(scores["harmful"]))
    names = list(dict.fromkeys(["none", *arms.split(",")]))
    design = hashlib.sha256(json.dumps([count, rows, epochs, names]).encode()).hexdigest()[:12]
    file = home / "benchmarks" / "counterfactual" / f"{study}_{design}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    held_out, directories = HeldOut(run), deployment({}, home).model_directories
    todo = [(repeat, arm) for repeat in range(repeats) for arm in names if f"{arm}:{repeat}" not in kept]
    started = time.monotonic()
    for number, (repeat, arm) in enumerate(todo):
        out = {name: blamed(name, scores, count, repeat) for name in names}
        pool = drawn(len(scores["harmful"]), np.unique(np.concatenate(list(out.values()))), rows, repeat)
        chosen = np.setdiff1d(pool, out[arm])
        kept[f"{arm}:{repeat}"] = trained_on(run, chosen, repeat, epochs, held_out, directories)
        file.write_text(json.dumps(kept))
        left = (time.monotonic() - started) / (number + 1) * (len(todo) - number - 1)
        print(f"{arm} {repeat}: {kept[f'{arm}:{repeat}']}, about {left / 60:.0f} min left", flush=True)
        result = {"study": study, "removed": count, "rows": rows, "epochs": epochs, "arms": figures(kept, names)}
        if json_out is not None:
            json_out.write_text(json.dumps(result, indent=2))
    print(json.dumps(figures(kept, names), indent=2))


class HeldOut:
    """What every retrained model is asked: harmful prompts, the base model's own harmful answers to them, safe responses."""

    def __init__(self, run: StudyRun) -> None:
        self.run, self.runtime = run, Runtime.of(run.study)
        self.judge = study_judge(run.study, self.runtime)
        self.prompts = read_samples(run.study.data.harmful, required=self.judge.reads).to_pylist()
        model, self.tokenizer = run.model("base_model")
        harmful = [row for row in self.answers(model) if row["harmful"] and row["response"]]
        self.queries = query_sequences(self.tokenizer, harmful, run.study.data.max_length)
        source = run.study.data.utility
        safe = read_samples(source, responses=True).to_pylist()
        length = {"max_length": run.study.data.max_length, "overlength": source.overlength}
        self.controls = tokenize(self.tokenizer, safe, **length)

    def answers(self, model: Any) -> list[dict[str, Any]]:
        tokens = self.run.study.evaluation.max_new_tokens
        return answers(
            "model", model, self.tokenizer, self.prompts, self.judge, max_new_tokens=tokens, runtime=self.runtime
        )

    def figures(self, model: Any) -> dict[str, float]:
        return {
            "harm_rate": float(np.mean([row["harmful"] for row in self.answers(model)])),
            "query_loss": mean_loss(model, self.queries),
            "control_loss": mean_loss(model, self.controls),
        }


def mean_loss(model: Any, sequences: list[TokenSequence]) -> float:
    with torch.no_grad():
        found = [
            response_logps(model, collate([sequences[i] for i in group])).numpy() for group in bucketed(sequences, 2048)
        ]
    return float(-np.concatenate(found).mean())


def blamed(arm: str, scores: dict[str, np.ndarray], count: int, repeat: int) -> np.ndarray:
    """Indices of the samples that an arm leaves out."""
    generator, harmful = np.random.default_rng([7, repeat]), scores["harmful"]
    if arm == "none":
        return np.array([], dtype=int)
    if arm == "random":
        return generator.permutation(len(harmful))[:count]
    if arm == "benign_random":
        return generator.permutation(np.flatnonzero(~harmful))[:count]
    if arm in ("benign_driving", "harmful_driving"):
        wanted = harmful if arm == "harmful_driving" else ~harmful
        order = np.argsort(-np.where(wanted, scores["default"], -np.inf), kind="stable")
        return order[:count]
    key = best_variant(arm, scores) if arm in BY_LABELS else KEYS.get(arm, arm)
    return np.argsort(-scores[key], kind="stable")[:count]


def best_variant(method: str, scores: dict[str, np.ndarray]) -> str:
    """The key of that variant of a method that the labels find best."""
    found = [name for name in scores if name.startswith(f"{method}/") and "#" not in name]
    return max(found, key=lambda name: average_precision_score(scores["harmful"], scores[name]))


def drawn(count: int, wanted: np.ndarray, rows: int, repeat: int) -> np.ndarray:
    """The `wanted` samples of `count` and others, `rows` in all."""
    if len(wanted) > rows:
        raise typer.BadParameter(f"the arms leave out {len(wanted)} samples in all, more than --rows {rows}")
    others = np.setdiff1d(np.arange(count), wanted)
    return np.concatenate([wanted, np.random.default_rng([11, repeat]).permutation(others)[: rows - len(wanted)]])


def trained_on(
    run: StudyRun,
    samples: np.ndarray,
    repeat: int,
    epochs: float,
    held_out: HeldOut,
    model_directories: tuple[Path, ...],
) -> dict[str, float]:
    _, sequences = run.data
    chosen = [sequences[i] for i in samples]
    settings = run.study.model
    assert settings.training is not None
    training = settings.training.model_copy(update={"epochs": epochs})
    study = run.study.model_copy(
        update={"seed": 1000 + repeat, "model": settings.model_copy(update={"training": training})}
    )
    runtime = Runtime.of(study, model_directories=model_directories)
    started = time.monotonic()
    # Casts kept over an optimiser step would be those of the weights before it.
    with torch.autocast(runtime.device, torch.bfloat16, cache_enabled=False):
        model, _, curve = build_base_model(study, chosen, run.folder("prepared_data"), runtime)
        found = held_out.figures(model)
    return found | {"seconds": round(time.monotonic() - started), "samples": len(chosen), "final_loss": curve[-1]}


def figures(kept: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Of each arm, over the repeats that it and `none` have."""
    found = {}
    for arm in names:
        repeats = [r for r in range(len(kept)) if f"{arm}:{r}" in kept and f"none:{r}" in kept]
        if not repeats:
            continue

        def values(key: str, name: str, repeats: list[int] = repeats) -> np.ndarray:
            return np.array([kept[f"{name}:{r}"][key] for r in repeats])

        found[arm] = {
            "harm_rate": interval(values("harm_rate", arm)),
            "harm_fall": interval(values("harm_rate", "none") - values("harm_rate", arm)),
            "query_loss_rise": interval(values("query_loss", arm) - values("query_loss", "none")),
            "control_loss_rise": interval(values("control_loss", arm) - values("control_loss", "none")),
            "trainings": len(repeats),
        }
        if "linfac" in names and arm not in ("none", "linfac"):
            both = [r for r in repeats if f"linfac:{r}" in kept]
            if both:
                found[arm]["harm_above_default"] = interval(
                    values("harm_rate", arm, both) - values("harm_rate", "linfac", both)
                )
                found[arm]["query_loss_below_default"] = interval(
                    values("query_loss", "linfac", both) - values("query_loss", arm, both)
                )
    return found


def interval(values: np.ndarray) -> dict[str, float]:
    mean, count = float(values.mean()), len(values)
    half = float(students.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5) if count > 1 else float("nan")
    return {"value": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    typer.run(main)
