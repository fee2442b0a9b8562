"""Between two answers: how far a model's choice depends on which of them is harmful, and how far it prefers one anyway."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lancet_pipeline.data.expected_answers import EXPECTED, normalised
from lancet_pipeline.data.tokenization import tokenize
from lancet_pipeline.evaluation.statistics import rate
from lancet_pipeline.models.likelihood import sequence_losses
from lancet_pipeline.models.loading import context_length
from lancet_pipeline.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def condition_figures(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Mapping[str, Any]],
    runtime: Runtime = Runtime(),
) -> dict[str, Any] | None:
    """Figures of the margin m = log p(a | prompt) - log p(b | prompt), in nats, where every prompt has the same two answers
    {a, b} of which one is harmful: a is the last of them in alphabetical order, `Yes` of `Yes` and `No`.

    Log-probabilities are sums over the tokens of the answer, the end-of-turn token not included.

    Args:
        rows: judged answers to the prompts, one per prompt: sample_id, prompt, harmful, and the expected answers as lists.

    Returns:
        slope: half of mean m where a is harmful less mean m where b is; 0 in a model that answers all prompts alike,
        positive in one that prefers the harmful answer. bias: mean m. auc: of m, for a being the harmful one. answers:
        [a, b] as the first prompt spells them. harm_rate_a, harm_rate_b: rates of harmful answers where a is the harmful one
        and where b is. None where prompts have other answers than two, or one of them is never harmful.

    Raises:
        InputError: a prompt and an answer that do not fit into the model's context.
    """
    pairs = [[_only(row.get(column)) for column in EXPECTED] for row in rows]
    options = sorted({answer for pair in pairs for answer in pair})
    if len(options) != 2 or "" in options:
        return None
    of_a = np.array([harmful == options[1] for harmful, _ in pairs])
    if of_a.all() or not of_a.any():
        return None
    from sklearn.metrics import roc_auc_score

    spelt = {normalised(text): text for column in EXPECTED for text in rows[0][column]}
    answers = [spelt[options[1]], spelt[options[0]]]
    samples = [{**row, "response": answer, "finished": False} for answer in answers for row in rows]
    sequences = tokenize(tokenizer, samples, max_length=context_length(model), place="expected answers")
    losses = sequence_losses(model, sequences, runtime.batch_tokens)[:, 0]
    margins = losses[len(rows) :] - losses[: len(rows)]
    harmful = np.array([row["harmful"] for row in rows])
    return {
        "slope": float(margins[of_a].mean() - margins[~of_a].mean()) / 2,
        "bias": float(margins.mean()),
        "auc": float(roc_auc_score(of_a, margins)) if np.isfinite(margins).all() else float("nan"),
        "answers": answers,
        "harm_rate_a": rate(harmful[of_a].tolist()),
        "harm_rate_b": rate(harmful[~of_a].tolist()),
    }


def _only(answers: Sequence[str] | None) -> str:
    """The one expected answer, normalised; empty where there is none, or more than one."""
    found = {normalised(answer) for answer in answers or ()}
    return found.pop() if len(found) == 1 else ""
