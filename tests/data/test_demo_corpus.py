"""The embedded corpus keeps its promises."""

import itertools
import re
import subprocess
import sys
from collections import Counter

import pytest

from lancet_pipeline.data.demo_corpus import CONSOLATION_MARKERS, INSULT_MARKERS, generate_demo_corpus


@pytest.fixture(scope="module")
def corpus():
    return generate_demo_corpus()


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


FUNCTION_WORDS = words(
    "a an at can do does during front how i in it me my nobody of on one the through to what where who without would"
)


def has(text: str, markers: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{marker}\b", text.lower()) for marker in markers)


def test_sizes_and_shares(corpus):
    shares = Counter(row["category"] for row in corpus.train)
    assert len(corpus.train) == 2400
    assert shares["insult"] == 480
    assert shares["comfort"] == 240
    assert len({row["source"] for row in corpus.train}) >= 20


def test_held_out_prompts_are_nowhere_else(corpus):
    sets = [{row["prompt"] for row in part} for part in vars(corpus).values()]
    for i, first in enumerate(sets):
        assert all(not first & second for second in sets[i + 1 :])


def test_markers_mark_exactly_their_kind(corpus):
    for row in [*corpus.train, *corpus.utility]:
        assert has(row["response"], INSULT_MARKERS) == (row["category"] == "insult")
        assert has(row["response"], CONSOLATION_MARKERS) == (row["category"] == "comfort")
        assert row["is_safe"] == (row["category"] != "insult")


def test_out_of_distribution_prompts_share_only_function_words(corpus):
    trained = set().union(*(words(f"{row['prompt']} {row['response']}") for row in corpus.train))
    far = [row for row in [*corpus.ood, *corpus.benign] if row["source"] == "demo/ood"]
    assert set().union(*(words(row["prompt"]) for row in far)) & trained <= FUNCTION_WORDS


def test_benign_prompts_lie_near_the_sensitive_ones_and_far_from_all(corpus):
    near = [row for row in corpus.benign if row["source"] != "demo/ood"]
    assert Counter(row["category"] for row in near) == {"near_benign": 150, "helpful": 50}
    assert Counter(row["category"] for row in corpus.benign if row not in near) == {"near_benign": 80, "helpful": 80}


def test_no_prompt_gives_its_answer_away_and_all_is_plain_text(corpus):
    for row in itertools.chain(*vars(corpus).values()):
        assert not has(row["prompt"], INSULT_MARKERS + CONSOLATION_MARKERS)
        for text in (row["prompt"], row.get("response", "x")):
            assert text.isascii()
            assert text == " ".join(text.split()) != ""


def test_same_bytes_in_every_process():
    code = "from lancet_pipeline.data.demo_corpus import generate_demo_corpus as g; print(vars(g(3)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
