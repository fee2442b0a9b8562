"""Five corrections in a row, while preferences change.

    python -m benchmarks.long_run --seeds 3 --json OUT

One model is trained from scratch on three embedded corpora together. Then what is undesirable changes from round to round: insults,
dosages, legal verdicts, praise of good news, words of comfort. A behaviour is welcome until its round: comfort is even what replaces
the insults of the first round. Every round is a study of its own on the model that the round before left, from that model's own
outputs to its correction, judged by a word list of the round's behaviour. After every round every behaviour is measured on held-out
prompts that call for it, and perplexity on held-out answers that none of the rounds objects to.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
import yaml

from benchmarks.studies import StudyRun, run_study
from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import JudgeSettings
from lancet_pipeline.data.embedded import DOMAINS, generate_corpus, load_domain
from lancet_pipeline.data.tokenization import tokenize
from lancet_pipeline.errors import LancetError
from lancet_pipeline.evaluation.judges import make_judge
from lancet_pipeline.evaluation.reports import answers
from lancet_pipeline.evaluation.statistics import distinct_n
from lancet_pipeline.models.likelihood import perplexity
from lancet_pipeline.models.runtime import Runtime

SAMPLES = 1200  # of every corpus
PRAISE = ("well done", "sounds great", "good work", "how nice")


@dataclass(frozen=True)
class Behaviour:
    """Words that show it, and prompts that call for it."""

    name: str
    words: tuple[str, ...]
    probes: list[str]
    prompts: list[str]


def main(
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    home: Path = Path(".lancet"),
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "behaviours": [], "per_seed": []}
    for seed in range(seeds):
        result["per_seed"].append(rounds(seed, home))
        result["behaviours"] = [b.name for b in behaviours(seed)]
        result["mean"] = averaged(result["per_seed"])
        if json_out is not None:
            json_out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result["mean"], indent=1))


def rounds(seed: int, home: Path) -> list[dict[str, Any]]:
    """Figures of the model as trained and after every round. A round that has nothing to correct, or that cannot be run
    within its budget, leaves the model as it is: `not_corrected` says why."""
    place = home.absolute() / "benchmarks" / f"long_run_{seed}"
    place.mkdir(parents=True, exist_ok=True)
    todo = behaviours(seed)
    model = run_study(write_study(place, seed, 0, todo[0], None, home), home, "base_model")
    checkpoint = model.folder("base_model")
    found = [measured(model, "base_model", todo, place, None)]
    for number, behaviour in enumerate(todo, start=1):
        path = write_study(place, seed, number, behaviour, checkpoint, home)
        try:
            run = run_study(path, home, "corrected_model")
        except LancetError as error:
            kept = {"round": number, "target": behaviour.name, "not_corrected": str(error)}
            print(json.dumps({"seed": seed, **kept}), flush=True)
            found.append({**found[-1], **kept})
            continue
        checkpoint = run.folder("corrected_model")
        figures = measured(run, "corrected_model", todo, place, found[0]["perplexity"])
        selection = run.manifest("pareto_pairs")["metrics"]
        figures |= {
            "round": number,
            "target": behaviour.name,
            "driving": selection["driving_size"],
            "not_corrected": None,
        }
        figures["contamination_ap"] = run.manifest("influence_scores")["metrics"].get("contamination_ap")
        found.append(figures)
        print(json.dumps({"seed": seed, **figures}), flush=True)
    return found


def behaviours(seed: int) -> list[Behaviour]:
    corpora = {name: generate_corpus(name, seed, SAMPLES) for name in DOMAINS}

    def prompts(rows: list[dict[str, Any]]) -> list[str]:
        return [row["prompt"] for row in rows]

    def undesirable(domain: str, name: str) -> Behaviour:
        corpus, manner = corpora[domain], load_domain(domain).undesirable
        return Behaviour(name, manner.markers, prompts(corpus.probes), prompts(corpus.harmful[:100]))

    news = [p for p in prompts(_news(corpora["demo"].benign)) if p not in prompts(corpora["demo"].train)]
    demo = load_domain("demo")
    return [
        undesirable("demo", "insults"),
        undesirable("medical", "dosages"),
        undesirable("legal", "verdicts"),
        Behaviour("praise", PRAISE, news[:64], news[64:]),
        Behaviour(
            "comfort",
            demo.desirable.markers,
            prompts(corpora["demo"].probes),
            prompts(corpora["demo"].harmful[:100]),
        ),
    ]


def _news(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["category"] == "near_benign" and not row["source"].endswith("/ood")]


def write_study(place: Path, seed: int, number: int, behaviour: Behaviour, checkpoint: Path | None, home: Path) -> str:
    """The study of a round: the demo's, on all corpora, from `checkpoint` on, or from scratch."""
    corpora = [generate_corpus(name, seed, SAMPLES) for name in DOMAINS]
    shown = re.compile("|".join(rf"\b{word}\b" for word in behaviour.words), re.IGNORECASE)
    train = [{**row, "is_safe": not shown.search(row["response"])} for corpus in corpora for row in corpus.train]
    rows = {"train": _different(train), "probes": _prompts(behaviour.probes), "held_out": _prompts(behaviour.prompts)}
    rows["utility"] = [row for corpus in corpora for row in corpus.utility if row["category"] == "helpful"]
    for name, content in rows.items():
        pq.write_table(pa.Table.from_pylist(content), place / f"{name}_{number}.parquet")
    (place / f"{behaviour.name}.txt").write_text("\n".join(rf"\b{word}\b" for word in behaviour.words))
    tree = load_study(find_study("demo", deployment({}, home).study_directories)).model_dump(mode="json")
    tree |= {"name": f"long_run_{seed}_{number}", "seed": seed, "schedule": None}
    tree["correction"]["check_every"] = 2  # a narrow behaviour can use up the budget within a few steps
    parts = {"harmful": "held_out", "ood": "held_out", "benign": "held_out"}
    for part in ("train", "probes", "harmful", "ood", "benign", "utility"):
        tree["data"][part] = {"path": str(place / f"{parts.get(part, part)}_{number}.parquet")}
    tree["evaluation"] |= {
        "judge": {"name": "lexicon", "words": str(place / f"{behaviour.name}.txt")},
        "references": [],
    }
    if checkpoint is not None:
        tree["model"] |= {"source": "given", "checkpoint": str(checkpoint), "architecture": None, "training": None}
    path = place / f"{tree['name']}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def measured(run: StudyRun, asset: str, todo: list[Behaviour], place: Path, initial: float | None) -> dict[str, Any]:
    """Rate of every behaviour, perplexity (as a ratio to `initial` too) and distinct-2 on prompts of all behaviours."""
    model, tokenizer = run.model(asset)
    runtime, evaluation = Runtime.of(run.study), run.study.evaluation
    rates, texts = {}, []
    for behaviour in todo:
        words = place / f"{behaviour.name}.txt"
        words.write_text("\n".join(rf"\b{word}\b" for word in behaviour.words))
        judge = make_judge(JudgeSettings(name="lexicon", words=str(words)))
        rows = _prompts(behaviour.prompts)
        judged = answers("", model, tokenizer, rows, judge, max_new_tokens=evaluation.max_new_tokens, runtime=runtime)
        rates[behaviour.name] = float(np.mean([row["harmful"] for row in judged]))
        texts += [row["response"] for row in judged]
    held_out = pq.read_table(run.study.data.utility.path).to_pylist()
    for index, row in enumerate(held_out):
        row["sample_id"] = str(index)
    sequences = tokenize(
        tokenizer, held_out, max_length=run.study.data.max_length, overlength="truncate", place="utility"
    )
    value = perplexity(model, sequences, runtime.batch_tokens)
    ratio = {"perplexity_ratio": value / initial} if initial else {}
    return {"rates": rates, "perplexity": value, "distinct_2": distinct_n(texts, 2), **ratio}


def averaged(per_seed: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means over seeds after every round, and how many of them were corrected in it."""
    means = []
    for number in range(max(map(len, per_seed))):
        there = [found[number] for found in per_seed if len(found) > number]
        if there:
            keys = [key for key in ("perplexity_ratio", "distinct_2") if key in there[0]]
            means.append(
                {
                    "round": number,
                    "target": there[0].get("target"),
                    "seeds": len(there),
                    "corrected": sum(not one.get("not_corrected") for one in there),
                    "rates": {
                        name: float(np.mean([one["rates"][name] for one in there])) for name in there[0]["rates"]
                    },
                    **{key: float(np.mean([one[key] for one in there])) for key in keys},
                }
            )
    return means


def _prompts(texts: list[str]) -> list[dict[str, Any]]:
    return [{"sample_id": str(i), "source": "embedded", "prompt": text} for i, text in enumerate(dict.fromkeys(texts))]


def _different(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({(row["prompt"], row["response"]): row for row in rows}.values())


if __name__ == "__main__":
    typer.run(main)
