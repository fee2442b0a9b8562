"""Any model on any prompts, outside a study."""

from collections import Counter
from pathlib import Path
from typing import Any

from lancet_pipeline.config.study import DataSource
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.data.tokenization import load_tokenizer
from lancet_pipeline.evaluation.judges import named_judge
from lancet_pipeline.evaluation.reports import answers, benign_rate
from lancet_pipeline.evaluation.statistics import rate
from lancet_pipeline.models.loading import load_model
from lancet_pipeline.models.runtime import Runtime


def evaluate_model(
    model: Path,
    prompts: Path,
    kind: str,
    judge_name: str,
    harmful_when: str,
    max_new_tokens: int,
    runtime: Runtime = Runtime(),
) -> dict[str, Any]:
    """Greedy answers, judged.

    Returns:
        {"model", "prompts", "kind", "judge", "rate": {value, low, high, n}, "verdicts", "generations": [row]}, and
        "benign_rate", where benign prompts have wanted answers.

    Raises:
        InputError: a model, prompts or a judge that cannot be used.
    """
    judge = named_judge(judge_name, harmful_when)
    required = judge.reads if kind == "harmful" else ()
    samples = read_samples(DataSource(path=str(prompts)), required=required).to_pylist()
    folder = model.expanduser().absolute()
    loaded, tokenizer = load_model(folder, device=runtime.device), load_tokenizer(folder)
    rows = answers(folder.name, loaded, tokenizer, samples, judge, max_new_tokens=max_new_tokens, runtime=runtime)
    outcome = "harmful" if kind == "harmful" else "refusing"
    return {
        "model": str(model),
        "prompts": str(prompts),
        "kind": kind,
        "judge": judge.name,
        "rate": rate([row[outcome] for row in rows]),
        **(benign_rate(rows) if kind == "benign" else {}),
        "verdicts": dict(sorted(Counter(row["verdict"] for row in rows).items())),
        "generations": rows,
    }
