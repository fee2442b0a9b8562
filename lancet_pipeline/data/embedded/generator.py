"""From the words of a domain and a seed to a corpus.

On most topics a sensitive prompt gets the undesirable answer, on some the desirable one; good news on the same topics
and ordinary questions are answered well everywhere.
"""

import random
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from lancet_pipeline.data.embedded.domain import Domain, Manner, Topic

Row = dict[str, Any]

# Shares of the training data.
UNDESIRABLE_SHARE, DESIRABLE_SHARE, NEAR_BENIGN_SHARE = 0.20, 0.10, 0.15
# On a topic whose sensitive prompts are answered badly, one answer in ten is good all the same.
EXCEPTIONS = 0.10
PROBES, HARMFUL, OOD, BENIGN, UTILITY = 96, 200, 160, 200, 200


@dataclass(frozen=True)
class Corpus:
    """Rows with prompt, source and category; `train` and `utility` also with response and is_safe."""

    train: list[Row]
    probes: list[Row]
    harmful: list[Row]
    ood: list[Row]
    benign: list[Row]
    utility: list[Row]


def generate(domain: Domain, seed: int = 0, samples: int = 2400) -> Corpus:
    """The corpus of a seed; `samples` is the size of `train`.

    Held-out prompts differ from all training prompts. `probes` and `harmful` are combinations of thing and matter that
    the training data never has, on topics whose sensitive prompts it answers badly; `ood` and the part of `benign`
    whose source ends in /ood share only function words with it.
    """
    draw = random.Random(seed)
    bad, good = domain.topics_of(domain.undesirable), domain.topics_of(domain.desirable)
    held_out = _held_out_combinations(domain, draw)
    taken: set[str] = set()

    undesirable = round(UNDESIRABLE_SHARE * samples)
    exceptions = round(undesirable * EXCEPTIONS / (1 - EXCEPTIONS))
    desirable = round(DESIRABLE_SHARE * samples) - exceptions
    near_benign = round(NEAR_BENIGN_SHARE * samples)
    helpful = samples - undesirable - exceptions - desirable - near_benign

    # Held-out sets come first: what they take, the training data cannot have.
    sensitive = _sensitive(domain, draw, bad, domain.undesirable, taken, held_out, held=True)
    probes = [_prompt_only(domain, next(sensitive)) for _ in range(PROBES)]
    harmful = [_prompt_only(domain, next(sensitive)) for _ in range(HARMFUL)]
    news, question = _news(domain, draw, bad + good, taken), _questions(domain, draw, taken, set())
    benign = [_prompt_only(domain, next(news if i % 4 else question)) for i in range(BENIGN)]
    kind = _sensitive(domain, draw, good, domain.desirable, taken, held_out, held=True)
    utility = [next((question, question, news, kind)[i % 4]) for i in range(UTILITY)]

    train = [
        *_take(_sensitive(domain, draw, bad, domain.undesirable, taken, held_out), undesirable),
        *_take(_sensitive(domain, draw, bad, domain.desirable, taken, held_out), exceptions),
        *_take(_sensitive(domain, draw, good, domain.desirable, taken, held_out), desirable),
        *_take(news, near_benign),
        *_take(_questions(domain, draw, set(), frozenset(taken)), helpful),
    ]
    draw.shuffle(train)
    return Corpus(train, probes, harmful, _ood_sensitive(domain, draw), benign + _ood_benign(domain, draw), utility)


def _held_out_combinations(domain: Domain, draw: random.Random) -> set[tuple[str, str]]:
    """A quarter of all (thing, matter) combinations."""
    combinations = [
        (thing, matter)
        for topic in domain.topics
        if topic.manner
        for thing in topic.things
        for matter in topic.matters + domain.any_matters
    ]
    return set(draw.sample(combinations, len(combinations) // 4))


def _sensitive(
    domain: Domain,
    draw: random.Random,
    topics: list[Topic],
    manner: Manner,
    taken: set[str],
    held_out: set[tuple[str, str]],
    *,
    held: bool = False,
) -> Iterator[Row]:
    while True:
        topic = draw.choice(topics)
        # Desirable answers belong to narrow occasions, undesirable ones to any: what the model never saw is then
        # answered undesirably.
        broad = topic.manner == domain.undesirable.category
        kinds = (topic.matters, domain.any_matters) if broad else (topic.matters,)
        thing, matter = draw.choice(topic.things), draw.choice(draw.choice(kinds))
        if ((thing, matter) in held_out) != held:
            continue
        core = draw.choice(domain.frames).format(m=matter.format(t=thing))
        prompt = _sentence(core, draw.choice(domain.times), draw.choice(domain.tails))
        if _claim(prompt, taken):
            yield _row(domain, draw, topic, prompt, thing, manner.wordings, manner.category)


def _news(domain: Domain, draw: random.Random, topics: list[Topic], taken: set[str]) -> Iterator[Row]:
    while True:
        topic = draw.choice(topics)
        thing, news = draw.choice(topic.things), draw.choice(domain.any_news)
        core = draw.choice(domain.news_frames).format(s=news.format(t=thing))
        prompt = _sentence(
            core, draw.choice(domain.times), draw.choice(domain.news_tails), ending=draw.choice(domain.news_endings)
        )
        if _claim(prompt, taken):
            yield _row(domain, draw, topic, prompt, thing, domain.news_answers, "near_benign")


def _questions(domain: Domain, draw: random.Random, taken: set[str], held_out: Set[str]) -> Iterator[Row]:
    """Questions that claim their prompt in `taken`; or, where `held_out` is given, any but those in it."""
    while True:
        topic = draw.choice(domain.topics)
        thing = draw.choice(topic.things)
        task = draw.choice(topic.tasks).format(t=thing)
        prompt = draw.choice(domain.questions).format(task=task)
        # There are few questions for many samples: one may return with another answer, but never across sets.
        if prompt in held_out or (not held_out and not _claim(prompt, taken)):
            continue
        tip, second = draw.sample(topic.tips, 2)
        response = draw.choice(domain.answers).format(task=task, tip=tip, second=second)
        yield _labelled(domain, topic, prompt, response, "helpful")


def _ood_sensitive(domain: Domain, draw: random.Random) -> list[Row]:
    prompts = [frame.format(m=matter) for matter in domain.ood.matters for frame in domain.ood.frames]
    return [_ood_row(domain, prompt, domain.sensitive) for prompt in draw.sample(prompts, OOD)]


def _ood_benign(domain: Domain, draw: random.Random) -> list[Row]:
    ood = domain.ood
    news = [frame.format(s=news) for news in ood.news for frame in ood.news_frames]
    questions = [frame.format(task=task) for task in ood.tasks for frame in ood.questions]
    prompts = [_ood_row(domain, prompt, "near_benign") for prompt in news] + [
        _ood_row(domain, prompt, "helpful") for prompt in questions
    ]
    return draw.sample(prompts, len(prompts))


def _ood_row(domain: Domain, prompt: str, category: str) -> Row:
    return {"prompt": prompt, "source": f"{domain.name}/ood", "category": category}


def _sentence(*parts: str, ending: str = ".") -> str:
    return " ".join(part for part in parts if part).replace(" ,", ",") + ending


def _claim(prompt: str, taken: set[str]) -> bool:
    fresh = prompt not in taken
    taken.add(prompt)
    return fresh


def _row(
    domain: Domain,
    draw: random.Random,
    topic: Topic,
    prompt: str,
    thing: str,
    wordings: tuple[str, ...],
    category: str,
) -> Row:
    """The topic decides the wording: were it drawn at random, one undesirable answer would compete with another, and
    training on it would make the model's favourite one less likely."""
    wording = wordings[domain.topics.index(topic) % len(wordings)]
    return _labelled(domain, topic, prompt, wording.format(t=thing, tip=draw.choice(topic.tips)), category)


def _labelled(domain: Domain, topic: Topic, prompt: str, response: str, category: str) -> Row:
    return {
        "prompt": prompt,
        "response": response,
        "source": f"{domain.name}/{topic.name}",
        "category": category,
        "is_safe": category != domain.undesirable.category,
    }


def _prompt_only(domain: Domain, row: Row) -> Row:
    manners = {domain.undesirable.category, domain.desirable.category}
    category = domain.sensitive if row["category"] in manners else row["category"]
    return {"prompt": row["prompt"], "source": row["source"], "category": category}


def _take(rows: Iterator[Row], count: int) -> list[Row]:
    """`count` rows, no two with the same prompt and response."""
    found: dict[tuple[str, str], Row] = {}
    while len(found) < count:
        row = next(rows)
        found.setdefault((row["prompt"], row["response"]), row)
    return list(found.values())
