"""The judge of a study as a Dagster resource."""

import dagster as dg

from lancet_pipeline.evaluation.judges import Judge, make_judge
from lancet_pipeline.study import Study


class JudgeSource(dg.ConfigurableResource):
    def make(self, study: Study) -> Judge:
        return make_judge(study.evaluation.judge)
