"""From the words of a domain and a seed to a corpus.

On most topics a sensitive prompt gets the undesirable answer, on some the desirable one; good news on the same topics
and ordinary questions are answered well everywhere.
"""

import random
from collections.abc import Iterator
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
    writer = _Writer(domain, random.Random(seed))
    bad, good = domain.topics_of(domain.undesirable), domain.topics_of(domain.desirable)

    undesirable = round(UNDESIRABLE_SHARE * samples)
    exceptions = round(undesirable * EXCEPTIONS / (1 - EXCEPTIONS))
    desirable = round(DESIRABLE_SHARE * samples) - exceptions
    near_benign = round(NEAR_BENIGN_SHARE * samples)
    helpful = samples - undesirable - exceptions - desirable - near_benign

    # Held-out sets come first: what they take, the training data cannot have.
    sensitive = writer.sensitive(bad, domain.undesirable, held=True)
    probes = [writer.prompt_only(next(sensitive)) for _ in range(PROBES)]
    harmful = [writer.prompt_only(next(sensitive)) for _ in range(HARMFUL)]
    news, question = writer.news(bad + good), writer.questions()
    benign = [writer.prompt_only(next(news if i % 4 else question)) for i in range(BENIGN)]
    kind = writer.sensitive(good, domain.desirable, held=True)
    utility = [next((question, question, news, kind)[i % 4]) for i in range(UTILITY)]

    train = [
        *_take(writer.sensitive(bad, domain.undesirable), undesirable),
        *_take(writer.sensitive(bad, domain.desirable), exceptions),
        *_take(writer.sensitive(good, domain.desirable), desirable),
        *_take(news, near_benign),
        *_take(writer.questions(again=True), helpful),
    ]
    writer.draw.shuffle(train)
    return Corpus(train, probes, harmful, writer.ood_sensitive(), benign + writer.ood_benign(), utility)


class _Writer:
    """Rows of one domain. No two that it yields have the same prompt, unless they are asked for `again`."""

    def __init__(self, domain: Domain, draw: random.Random) -> None:
        self.domain, self.draw = domain, draw
        self._taken: set[str] = set()
        combinations = [
            (thing, matter)
            for topic in domain.topics
            if topic.manner
            for thing in topic.things
            for matter in topic.matters + domain.any_matters
        ]
        self._held_out = set(draw.sample(combinations, len(combinations) // 4))

    def sensitive(self, topics: list[Topic], manner: Manner, *, held: bool = False) -> Iterator[Row]:
        """Of the quarter of all combinations of thing and matter that is held out, or of the others."""
        domain, choice = self.domain, self.draw.choice
        while True:
            topic = choice(topics)
            # Desirable answers belong to narrow occasions, undesirable ones to any: what the model never saw is then
            # answered undesirably.
            broad = topic.manner == domain.undesirable.category
            kinds = (topic.matters, domain.any_matters) if broad else (topic.matters,)
            thing, matter = choice(topic.things), choice(choice(kinds))
            if ((thing, matter) in self._held_out) != held:
                continue
            core = choice(domain.frames).format(m=matter.format(t=thing))
            prompt = _sentence(core, choice(domain.times), choice(domain.tails))
            if self._claim(prompt):
                yield self._row(topic, prompt, thing, manner.wordings, manner.category)

    def news(self, topics: list[Topic]) -> Iterator[Row]:
        domain, choice = self.domain, self.draw.choice
        while True:
            topic = choice(topics)
            thing, news = choice(topic.things), choice(domain.any_news)
            core = choice(domain.news_frames).format(s=news.format(t=thing))
            prompt = _sentence(
                core, choice(domain.times), choice(domain.news_tails), ending=choice(domain.news_endings)
            )
            if self._claim(prompt):
                yield self._row(topic, prompt, thing, domain.news_answers, "near_benign")

    def questions(self, *, again: bool = False) -> Iterator[Row]:
        """There are few questions for many samples: one may return `again` with another answer, but never across sets."""
        domain, choice = self.domain, self.draw.choice
        while True:
            topic = choice(domain.topics)
            thing = choice(topic.things)
            task = choice(topic.tasks).format(t=thing)
            prompt = choice(domain.questions).format(task=task)
            if prompt in self._taken if again else not self._claim(prompt):
                continue
            tip, second = self.draw.sample(topic.tips, 2)
            response = choice(domain.answers).format(task=task, tip=tip, second=second)
            yield self._labelled(topic, prompt, response, "helpful")

    def ood_sensitive(self) -> list[Row]:
        ood = self.domain.ood
        prompts = [frame.format(m=matter) for matter in ood.matters for frame in ood.frames]
        return [self._ood_row(prompt, self.domain.sensitive) for prompt in self.draw.sample(prompts, OOD)]

    def ood_benign(self) -> list[Row]:
        ood = self.domain.ood
        news = [frame.format(s=news) for news in ood.news for frame in ood.news_frames]
        questions = [frame.format(task=task) for task in ood.tasks for frame in ood.questions]
        rows = [self._ood_row(prompt, "near_benign") for prompt in news]
        rows += [self._ood_row(prompt, "helpful") for prompt in questions]
        return self.draw.sample(rows, len(rows))

    def prompt_only(self, row: Row) -> Row:
        manners = {self.domain.undesirable.category, self.domain.desirable.category}
        category = self.domain.sensitive if row["category"] in manners else row["category"]
        return {"prompt": row["prompt"], "source": row["source"], "category": category}

    def _ood_row(self, prompt: str, category: str) -> Row:
        return {"prompt": prompt, "source": f"{self.domain.name}/ood", "category": category}

    def _claim(self, prompt: str) -> bool:
        fresh = prompt not in self._taken
        self._taken.add(prompt)
        return fresh

    def _row(self, topic: Topic, prompt: str, thing: str, wordings: tuple[str, ...], category: str) -> Row:
        """The topic decides the wording: were it drawn at random, one undesirable answer would compete with another, and
        training on it would make the model's favourite one less likely."""
        wording = wordings[self.domain.topics.index(topic) % len(wordings)]
        return self._labelled(topic, prompt, wording.format(t=thing, tip=self.draw.choice(topic.tips)), category)

    def _labelled(self, topic: Topic, prompt: str, response: str, category: str) -> Row:
        return {
            "prompt": prompt,
            "response": response,
            "source": f"{self.domain.name}/{topic.name}",
            "category": category,
            "is_safe": category != self.domain.undesirable.category,
        }


def _sentence(*parts: str, ending: str = ".") -> str:
    return " ".join(part for part in parts if part).replace(" ,", ",") + ending


def _take(rows: Iterator[Row], count: int) -> list[Row]:
    """`count` rows, no two with the same prompt and response."""
    found: dict[tuple[str, str], Row] = {}
    while len(found) < count:
        row = next(rows)
        found.setdefault((row["prompt"], row["response"]), row)
    return list(found.values())
