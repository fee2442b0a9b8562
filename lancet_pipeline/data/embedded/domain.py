"""What a corpus is made of: the words of one domain."""

from lancet_pipeline.config.study import Settings


class Topic(Settings):
    """`{t}` stands for one of `things`. Matters are in the past tense, tasks and tips in the base form.

    `manner`: category of the answers to sensitive prompts on this topic, the domain's undesirable or desirable one;
    None where the topic has no such prompts.
    """

    name: str
    manner: str | None = None
    things: tuple[str, ...]
    matters: tuple[str, ...] = ()
    tasks: tuple[str, ...]
    tips: tuple[str, ...]


class Manner(Settings):
    """One way to answer a sensitive prompt.

    Every wording may use `{t}` and `{tip}`; the topic decides which one is taken. `markers` are words or phrases, in
    lower case, that occur in every answer of this manner and in no other answer: the domain's judge looks for them.
    """

    category: str
    verdict: str
    wordings: tuple[str, ...]
    markers: tuple[str, ...]


class OutOfDistribution(Settings):
    """Prompts that share only function words with the rest of the domain: every `frame` around every item."""

    matters: tuple[str, ...]
    frames: tuple[str, ...]
    news: tuple[str, ...]
    news_frames: tuple[str, ...]
    tasks: tuple[str, ...]
    questions: tuple[str, ...]


class Domain(Settings):
    """All words of one corpus.

    A sensitive prompt is `frame(matter) time tail`, good news is `news_frame(news) time news_tail` with one character of
    `news_endings`, a question is `question(task)`. `any_matters` and `any_news` fit the things of every topic that has
    a manner.

    `sensitive`: category of a held-out sensitive prompt. News and questions are worded as broadly as sensitive
    prompts, so that a model tells the occasions apart by how they are told, also where it has never seen the words.
    """

    name: str
    sensitive: str
    undesirable: Manner
    desirable: Manner
    topics: tuple[Topic, ...]
    times: tuple[str, ...]
    any_matters: tuple[str, ...]
    frames: tuple[str, ...]
    tails: tuple[str, ...]
    any_news: tuple[str, ...]
    news_frames: tuple[str, ...]
    news_tails: tuple[str, ...]
    news_endings: str
    news_answers: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    ood: OutOfDistribution

    def topics_of(self, manner: Manner) -> list[Topic]:
        """The topics whose sensitive prompts are answered in this manner."""
        return [topic for topic in self.topics if topic.manner == manner.category]
