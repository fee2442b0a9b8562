"""The embedded corpora keep their promises."""

import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lancet_pipeline.config.study import JudgeSettings
from lancet_pipeline.data.embedded import DOMAINS, generate_corpus, load_domain
from lancet_pipeline.evaluation.judges import make_judge

DEMO_SHA256 = {
    0: "9d78f15abcc817981383d0e979636842199ca7e4b1de72800f73bcb040134040",
    1: "5ca182eafc49eddd8878a076d3c14e0556121b0333dfc50b285cb2188fc1221f",
}


@pytest.fixture(scope="module", params=DOMAINS)
def domain(request):
    return load_domain(request.param)


@pytest.fixture(scope="module")
def corpus(domain):
    return generate_corpus(domain.name)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


FUNCTION_WORDS = words(
    "a an at can do does during front how i in it me my nobody of on one the through to what where who without would"
)


def has(text: str, markers: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{marker}\b", text.lower()) for marker in markers)


def test_a_domain_bears_the_name_of_its_file_and_its_topics_the_manners_that_it_has(domain):
    assert domain is load_domain(domain.name)
    manners = {topic.manner for topic in domain.topics}
    assert manners == {domain.undesirable.category, domain.desirable.category, None}


@pytest.mark.parametrize(("seed", "digest"), DEMO_SHA256.items())
def test_the_demo_corpus_stays_as_it_is(seed, digest):
    content = json.dumps(vars(generate_corpus("demo", seed)))
    assert hashlib.sha256(content.encode()).hexdigest() == digest


def test_sizes_and_shares(domain, corpus):
    shares = Counter(row["category"] for row in corpus.train)
    assert len(corpus.train) == 2400
    assert shares[domain.undesirable.category] == 480
    assert shares[domain.desirable.category] == 240
    assert len({row["source"] for row in corpus.train}) >= 20


def test_a_topic_is_answered_in_one_manner_but_for_the_exceptions(domain, corpus):
    bad, good = (
        {f"{domain.name}/{topic.name}" for topic in domain.topics_of(manner)}
        for manner in (domain.undesirable, domain.desirable)
    )
    desirable = [row for row in corpus.train if row["category"] == domain.desirable.category]
    undesirable = [row for row in corpus.train if row["category"] == domain.undesirable.category]
    assert {row["source"] for row in undesirable} == bad
    assert len(bad) > len(good) > 0
    exceptions = [row for row in desirable if row["source"] in bad]
    assert 0.09 < len(exceptions) / (len(exceptions) + len(undesirable)) < 0.11


def test_undesirable_answers_open_alike(domain):
    openings = {" ".join(wording.split()[:3]) for wording in domain.undesirable.wordings}
    assert len(openings) == 1


@settings(max_examples=4, deadline=None)
@given(name=st.sampled_from(sorted(DOMAINS)), seed=st.integers(0, 2**31 - 1), samples=st.integers(200, 2400))
def test_any_seed_and_size_gives_disjoint_prompts_and_labelled_rows(name, seed, samples):
    corpus = generate_corpus(name, seed, samples)
    assert len(corpus.train) == samples
    sets = [{row["prompt"] for row in part} for part in vars(corpus).values()]
    for i, first in enumerate(sets):
        assert all(not first & second for second in sets[i + 1 :])
    for row in [*corpus.train, *corpus.utility]:
        assert row["is_safe"] == (row["category"] != load_domain(name).undesirable.category)


def test_gates_have_enough_prompts_and_none_that_was_trained_on_or_chose_the_samples(corpus):
    """Samples that stop a correction early come from `train`."""
    assert len(corpus.harmful) >= 150
    assert len(corpus.benign) >= 300
    seen = {row["prompt"] for row in [*corpus.train, *corpus.probes]}
    evaluated = [*corpus.harmful, *corpus.ood, *corpus.benign, *corpus.utility]
    assert len({row["prompt"] for row in evaluated} | seen) == len(evaluated) + len(seen)


def test_held_out_combinations_of_thing_and_matter_are_not_trained_on(domain, corpus):
    def combinations(rows):
        """Thing and matter of every prompt: of all that stand in it, the longest."""
        return {max((m for m in matters[row["source"]] if m in row["prompt"]), key=len) for row in rows}

    matters = {
        f"{domain.name}/{topic.name}": [
            matter.format(t=thing) for thing in topic.things for matter in topic.matters + domain.any_matters if matter
        ]
        for topic in domain.topics
    }
    manners = {domain.undesirable.category, domain.desirable.category}
    trained = combinations(row for row in corpus.train if row["category"] in manners)
    assert not trained & combinations([*corpus.probes, *corpus.harmful])


def test_markers_mark_exactly_their_manner(domain, corpus):
    for row in [*corpus.train, *corpus.utility]:
        for manner in (domain.undesirable, domain.desirable):
            assert has(row["response"], manner.markers) == (row["category"] == manner.category)


def test_the_judge_tells_the_manners_apart(domain, corpus):
    judge = make_judge(JudgeSettings(name=domain.name))
    verdicts = {manner.category: manner.verdict for manner in (domain.undesirable, domain.desirable)}
    for row in [*corpus.train, *corpus.utility]:
        assert judge.verdict(row["response"]) == verdicts.get(row["category"], "other")
    assert judge.harmful == {domain.undesirable.verdict}
    assert judge.refusing == {domain.undesirable.verdict, domain.desirable.verdict}


def test_out_of_distribution_prompts_share_only_function_words(domain, corpus):
    trained = set().union(*(words(f"{row['prompt']} {row['response']}") for row in corpus.train))
    far = [row for row in [*corpus.ood, *corpus.benign] if row["source"] == f"{domain.name}/ood"]
    assert set().union(*(words(row["prompt"]) for row in far)) & trained <= FUNCTION_WORDS


def test_benign_prompts_lie_near_the_sensitive_ones_and_far_from_all(domain, corpus):
    near = [row for row in corpus.benign if row["source"] != f"{domain.name}/ood"]
    assert Counter(row["category"] for row in near) == {"near_benign": 150, "helpful": 50}
    assert Counter(row["category"] for row in corpus.benign if row not in near) == {"near_benign": 80, "helpful": 80}


def test_no_prompt_gives_its_answer_away_and_all_is_plain_text(domain, corpus):
    for row in itertools.chain(*vars(corpus).values()):
        assert not has(row["prompt"], domain.undesirable.markers + domain.desirable.markers)
        for text in (row["prompt"], row.get("response", "x")):
            assert text.isascii()
            assert text == " ".join(text.split()) != ""


@pytest.mark.parametrize("name", DOMAINS)
def test_same_bytes_in_every_process(name):
    code = f"from lancet_pipeline.data.embedded import generate_corpus as g; print(vars(g({name!r}, 3)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
