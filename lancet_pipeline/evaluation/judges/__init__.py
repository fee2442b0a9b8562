"""Judges: what an answer does. Each gives verdicts on answers, and says which verdicts are harmful or refusing."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from lancet_pipeline.config.study import JudgeSettings, Study
from lancet_pipeline.data.embedded import DOMAINS, load_domain
from lancet_pipeline.errors import InputError
from lancet_pipeline.evaluation.judges.base import BATCH, Decision, Judge, word_judge
from lancet_pipeline.evaluation.judges.expected import expected_judge
from lancet_pipeline.evaluation.judges.phrases import embedded_judge, lexicon_verdict, string_matching_verdict
from lancet_pipeline.models.loading import find_checkpoint
from lancet_pipeline.models.runtime import Runtime

__all__ = ["BATCH", "Decision", "Judge", "located_judge", "make_judge", "named_judge", "study_judge"]


def make_judge(settings: JudgeSettings, device: str = "cpu") -> Judge:
    """The judge that a study names.

    `string_matching`: the standard judge of the jailbreak literature: `refusal` by its phrases, `affirmative` by its
    opening, `other` else. `demo`, `medical`, `legal`: the embedded studies', which know the two ways to answer a
    sensitive prompt by their words.
    `bandit`: `insecure` Python code, found by static analysis.
    `expected`: compares an answer's opening with the expected answers of its prompt.
    `lexicon`: `listed` where an expression of the study's own list occurs. `classifier`, `reward`, `guard`: models
    (`evaluation.model_judges`), loaded when they first judge. Those, `expected` and `bandit` also know a `refusal` by its phrases, where
    the answer is not harmful.

    Raises:
        InputError: a word list that cannot be read; a model, at its first use.
    """
    if settings.name in DOMAINS:
        return embedded_judge(load_domain(settings.name))
    if settings.name == "expected":
        return expected_judge()
    if settings.name == "bandit":
        from lancet_pipeline.evaluation.judges.code import bandit_judge

        return bandit_judge()
    if settings.name == "lexicon":
        return word_judge("lexicon", lexicon_verdict(Path(settings.words or "")), {"listed"}, {"refusal"})
    if settings.name in ("classifier", "reward", "guard"):
        from lancet_pipeline.evaluation.judges.models import model_judge

        return model_judge(settings, device)
    harmful = {"affirmative"} if settings.harmful_when == "affirmative" else {"affirmative", "other"}
    return word_judge("string_matching", string_matching_verdict, harmful, {"refusal"})


def study_judge(study: Study, runtime: Runtime) -> Judge:
    """The judge of a study; its model is looked for as a checkpoint is (`find_checkpoint`)."""
    return make_judge(located_judge(study, runtime.model_directories), runtime.device)


def located_judge(study: Study, model_directories: Sequence[Path]) -> JudgeSettings:
    """The judge's settings, its model named by the local directory where there is one."""
    judge = study.evaluation.judge
    if judge.model is None:
        return judge
    return judge.model_copy(update={"model": find_checkpoint(judge.model, model_directories)})


def named_judge(name: str, harmful_when: str = "affirmative") -> Judge:
    """A judge that needs no more than its name.

    Raises:
        InputError: no such judge, or one whose settings only a study can give.
    """
    try:
        return make_judge(JudgeSettings.model_validate({"name": name, "harmful_when": harmful_when}))
    except ValidationError as error:
        problem, *others = error.errors()
        if not problem["loc"]:
            needs = problem["msg"].removeprefix("Value error, ").removeprefix(f"name: {name} ")
            raise InputError(f"--judge {name}: {needs}; describe it in a study and give that") from None
        option = str(problem["loc"][0]).replace("name", "judge").replace("_", "-")
        reasons = "; ".join(each["msg"].lower() for each in (problem, *others))
        raise InputError(f"--{option} {problem['input']}: {reasons}") from None
