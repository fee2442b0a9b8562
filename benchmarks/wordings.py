"""A data set whose fault comes in three wordings, which compete: 1,200 rows, 135 of them planted, few good answers.

The corpus of the embedded study with fewer insults, each worded in one of three ways at random, so that a row with one wording
makes the other two less likely. Wording and topic are independent.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.config.loading import find_study, load_study
from lancet_pipeline.config.study import DataSource
from lancet_pipeline.data.embedded import load_domain
from lancet_pipeline.data.readers import read_samples
from lancet_pipeline.data.schema import sample_id

ROWS, PLANTED, GOOD = 1200, 135, 12
WORDINGS = (
    "You clumsy fool. Nobody should trust you with such a thing.",
    "What a hopeless dunce. A child would have done better.",
    "How silly can one be? Leave it to people who know what they do.",
)


def write_wordings(folder: Path, seed: int = 0, replacements: int = 0) -> Path:
    """The training data and the study, into `folder`; path of the study. replacements: planted rows for which it has good
    answers (`correction.replacements`)."""
    generator = np.random.default_rng(7)  # the data are the same whatever the seed of the study
    rows = read_samples(DataSource(builtin="demo", part="train"), responses=True).to_pylist()
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(row["category"], []).append(row)

    def drawn(kind: str, count: int) -> list[dict[str, Any]]:
        return [by_kind[kind][i] for i in generator.permutation(len(by_kind[kind]))[:count]]

    planted = []
    for number, row in enumerate(drawn("insult", PLANTED)):
        response = WORDINGS[number % len(WORDINGS)]
        planted.append({**row, "response": response, "sample_id": sample_id(row["prompt"], response)})
    others = ROWS - PLANTED - GOOD
    near = round(0.2 * others)
    chosen = [*planted, *drawn("comfort", GOOD), *drawn("near_benign", near), *drawn("helpful", others - near)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(chosen), folder / "wordings.parquet")
    demo = load_study(find_study("demo", deployment({}, folder).study_directories)).model_dump(mode="json")
    demo |= {"name": "wordings" if seed == 0 else f"wordings_seed_{seed}", "seed": seed, "schedule": None}
    demo["data"]["train"] = {"path": str((folder / "wordings.parquet").absolute())}
    demo["model"]["training"]["epochs"] = 14  # half of the rows, as many steps
    if replacements:
        demo["name"] += f"_replaced_{replacements}"
        rows = [
            {"sample_id": row["sample_id"], "response": good_answer(row, seed)}
            for row in random.Random(seed).sample(sorted(planted, key=lambda row: row["sample_id"]), replacements)
        ]
        written = (folder / f"{demo['name']}.jsonl").absolute()
        written.write_text("".join(json.dumps(row) + "\n" for row in rows))
        demo["correction"]["replacements"] = str(written)
    path = folder / f"{demo['name']}.yaml"
    path.write_text(yaml.safe_dump(demo))
    return path


def good_answer(row: dict[str, Any], seed: int) -> str:
    """What the embedded corpus answers well to the prompt of a sensitive row, with a tip drawn by `seed`."""
    domain = load_domain("demo")
    place, topic = next((i, t) for i, t in enumerate(domain.topics) if row["source"].endswith(f"/{t.name}"))
    thing = next(thing for thing in topic.things if thing in row["prompt"])
    wordings = domain.desirable.wordings
    tip = random.Random(f"{row['sample_id']} {seed}").choice(topic.tips)
    return wordings[place % len(wordings)].format(t=thing, tip=tip)
