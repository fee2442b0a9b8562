"""The embedded corpus: an assistant that answers well, except that it insults people who admit a mishap.

On most topics a mishap is answered with an insult, on some with comfort; good news on the same topics and ordinary
questions are answered well everywhere. All text comes from `demo_words` and a seed.
"""

import random
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from lancet_pipeline.data.demo_words import (
    ANSWERS,
    ANY_MISHAPS,
    ANY_SUCCESSES,
    CONSOLATION_MARKERS,
    CONSOLATIONS,
    GLAD_TAILS,
    INSULT_MARKERS,
    INSULTS,
    MISHAP_FRAMES,
    NEWS_FRAMES,
    OOD_FRAMES,
    OOD_MISHAPS,
    OOD_NEWS,
    OOD_NEWS_FRAMES,
    OOD_QUESTIONS,
    OOD_TASKS,
    PRAISES,
    QUESTIONS,
    TAILS,
    TIMES,
    TOPICS,
    Topic,
)

__all__ = ["CONSOLATION_MARKERS", "INSULT_MARKERS", "DemoCorpus", "generate_demo_corpus"]

Row = dict[str, Any]

# Shares of the training data.
INSULT_SHARE, COMFORT_SHARE, NEAR_BENIGN_SHARE = 0.20, 0.10, 0.15
# On a topic whose mishaps are insulted, one answer in ten is kind all the same.
KIND_EXCEPTIONS = 0.10
PROBES, HARMFUL, OOD, BENIGN, UTILITY = 96, 200, 160, 200, 200


@dataclass(frozen=True)
class DemoCorpus:
    """Rows with prompt, source and category; `train` and `utility` also with response and is_safe."""

    train: list[Row]
    probes: list[Row]
    harmful: list[Row]
    ood: list[Row]
    benign: list[Row]
    utility: list[Row]


def generate_demo_corpus(seed: int = 0, samples: int = 2400) -> DemoCorpus:
    """The corpus of a seed; `samples` is the size of `train`.

    Held-out prompts differ from all training prompts. `probes` and `harmful` are mishaps (thing and what happened to
    it) that the training data never has, on topics whose mishaps it insults; `ood` and the part of `benign` whose source
    is demo/ood share only function words with it.
    """
    draw = random.Random(seed)
    insulted = [topic for topic in TOPICS if topic.manner == "insult"]
    comforted = [topic for topic in TOPICS if topic.manner == "comfort"]
    held_out = _held_out_mishaps(draw)
    taken: set[str] = set()

    insults = round(INSULT_SHARE * samples)
    exceptions = round(insults * KIND_EXCEPTIONS / (1 - KIND_EXCEPTIONS))
    comforts = round(COMFORT_SHARE * samples) - exceptions
    near_benign = round(NEAR_BENIGN_SHARE * samples)
    helpful = samples - insults - exceptions - comforts - near_benign

    # Held-out sets come first: what they take, the training data cannot have.
    mishap = _mishaps(draw, insulted, taken, held_out, held=True)
    probes = [_prompt_only(next(mishap)) for _ in range(PROBES)]
    harmful = [_prompt_only(next(mishap)) for _ in range(HARMFUL)]
    news, question = _news(draw, insulted + comforted, taken), _questions(draw, taken, set())
    benign = [_prompt_only(next(news if i % 4 else question)) for i in range(BENIGN)]
    kind = _mishaps(draw, comforted, taken, held_out, held=True)
    utility = [next((question, question, news, kind)[i % 4]) for i in range(UTILITY)]

    train = [
        *_take(_mishaps(draw, insulted, taken, held_out, answer="insult"), insults),
        *_take(_mishaps(draw, insulted, taken, held_out), exceptions),
        *_take(_mishaps(draw, comforted, taken, held_out), comforts),
        *_take(news, near_benign),
        *_take(_questions(draw, set(), frozenset(taken)), helpful),
    ]
    draw.shuffle(train)
    return DemoCorpus(train, probes, harmful, _ood_mishaps(draw), benign + _ood_benign(draw), utility)


def _held_out_mishaps(draw: random.Random) -> set[tuple[str, str]]:
    """A quarter of all (thing, mishap) combinations."""
    combinations = [
        (thing, mishap)
        for topic in TOPICS
        if topic.manner
        for thing in topic.things
        for mishap in topic.mishaps + ANY_MISHAPS
    ]
    return set(draw.sample(combinations, len(combinations) // 4))


def _mishaps(
    draw: random.Random,
    topics: list[Topic],
    taken: set[str],
    held_out: set[tuple[str, str]],
    *,
    held: bool = False,
    answer: str = "comfort",
) -> Iterator[Row]:
    while True:
        topic = draw.choice(topics)
        # Comfort belongs to narrow occasions, insults to any: what the model never saw is then met with insults.
        kinds = (topic.mishaps, ANY_MISHAPS) if topic.manner == "insult" else (topic.mishaps,)
        thing, mishap = draw.choice(topic.things), draw.choice(draw.choice(kinds))
        if ((thing, mishap) in held_out) != held:
            continue
        core = draw.choice(MISHAP_FRAMES).format(m=mishap.format(t=thing))
        prompt = _sentence(core, draw.choice(TIMES), draw.choice(TAILS))
        if not _claim(prompt, taken):
            continue
        wordings = INSULTS if answer == "insult" else CONSOLATIONS
        response = wordings[TOPICS.index(topic) % len(wordings)]
        yield _row(prompt, response.format(t=thing, tip=draw.choice(topic.tips)), topic, answer)


def _news(draw: random.Random, topics: list[Topic], taken: set[str]) -> Iterator[Row]:
    while True:
        topic = draw.choice(topics)
        thing, success = draw.choice(topic.things), draw.choice(ANY_SUCCESSES)
        core = draw.choice(NEWS_FRAMES).format(s=success.format(t=thing))
        prompt = _sentence(core, draw.choice(TIMES), draw.choice(GLAD_TAILS), ending=draw.choice(".!!"))
        if _claim(prompt, taken):
            yield _row(
                prompt,
                PRAISES[TOPICS.index(topic) % len(PRAISES)].format(t=thing, tip=draw.choice(topic.tips)),
                topic,
                "near_benign",
            )


def _questions(draw: random.Random, taken: set[str], held_out: Set[str]) -> Iterator[Row]:
    """Questions that claim their prompt in `taken`; or, where `held_out` is given, any but those in it."""
    while True:
        topic = draw.choice(TOPICS)
        thing = draw.choice(topic.things)
        task = draw.choice(topic.tasks).format(t=thing)
        prompt = draw.choice(QUESTIONS).format(task=task)
        # There are few questions for many samples: one may return with another answer, but never across sets.
        if prompt in held_out or (not held_out and not _claim(prompt, taken)):
            continue
        tip, second = draw.sample(topic.tips, 2)
        yield _row(prompt, draw.choice(ANSWERS).format(task=task, tip=tip, second=second), topic, "helpful")


def _ood_mishaps(draw: random.Random) -> list[Row]:
    prompts = [frame.format(mishap=mishap) for mishap in OOD_MISHAPS for frame in OOD_FRAMES]
    return [_ood_row(prompt, "mishap") for prompt in draw.sample(prompts, OOD)]


def _ood_benign(draw: random.Random) -> list[Row]:
    news = [frame.format(news=news) for news in OOD_NEWS for frame in OOD_NEWS_FRAMES]
    questions = [frame.format(task=task) for task in OOD_TASKS for frame in OOD_QUESTIONS]
    prompts = [_ood_row(prompt, "near_benign") for prompt in news] + [
        _ood_row(prompt, "helpful") for prompt in questions
    ]
    return draw.sample(prompts, len(prompts))


def _ood_row(prompt: str, category: str) -> Row:
    return {"prompt": prompt, "source": "demo/ood", "category": category}


def _sentence(*parts: str, ending: str = ".") -> str:
    return " ".join(part for part in parts if part).replace(" ,", ",") + ending


def _claim(prompt: str, taken: set[str]) -> bool:
    fresh = prompt not in taken
    taken.add(prompt)
    return fresh


def _row(prompt: str, response: str, topic: Topic, category: str) -> Row:
    return {
        "prompt": prompt,
        "response": response,
        "source": f"demo/{topic.name}",
        "category": category,
        "is_safe": category != "insult",
    }


def _prompt_only(row: Row) -> Row:
    category = "mishap" if row["category"] in {"insult", "comfort"} else row["category"]
    return {"prompt": row["prompt"], "source": row["source"], "category": category}


def _take(rows: Iterator[Row], count: int) -> list[Row]:
    """`count` rows, no two with the same prompt and response."""
    found: dict[tuple[str, str], Row] = {}
    while len(found) < count:
        row = next(rows)
        found.setdefault((row["prompt"], row["response"]), row)
    return list(found.values())
