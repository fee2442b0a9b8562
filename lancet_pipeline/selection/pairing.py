"""Pairs of a countering and a driving sample. They need not share a prompt."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lancet_pipeline.config.study import Pairing
from lancet_pipeline.data.batches import shuffled_passes
from lancet_pipeline.data.expected_answers import normalised


def pair(
    negative: np.ndarray,
    positive: np.ndarray,
    scores: np.ndarray,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    pairing: Pairing,
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices in D-, those in D+ and weights of `count` pairs, [count] each; the weights, influence of the pair over its mean,
    average 1.

    `negative` and `positive` are the indices of D- and D+ into `scores`, `prompts` and `responses`, most influential
    first.

    `balanced`: at random, but both sides hold each response that both have in the same share of pairs, the geometric mean of its
    shares, case, blanks and punctuation aside, so that pairs favour no answer as such; half of the pairs are of one response.
    Responses of one side alone count as one. At random where most samples of a side would come in no pair. `random`: every sample as often as any other of its side. `rank`: the k-th most countering with the k-th most
    driving. `nearest`: each driving sample with the countering one whose prompt is most similar (TF-IDF cosine).
    `matched`: each driving sample with those that hold the same response, case, blanks and punctuation aside; where there
    are none, with those of the most similar response (TF-IDF cosine), and where that shares no word, with any. Driving
    samples, and countering samples of one response, come equally often, at random.
    The shorter side is repeated as often as needed.
    """
    count = min(count, len(negative) * len(positive))
    if not count:
        return negative[:0], positive[:0], np.ones(0)
    generator = np.random.default_rng(seed)
    if pairing == "balanced":
        preferred, dispreferred = _of_equal_shares(negative, positive, responses, count, generator)
    elif pairing == "random":
        preferred = negative[shuffled_passes(len(negative), count, generator)]
        dispreferred = positive[shuffled_passes(len(positive), count, generator)]
    elif pairing == "rank":
        preferred, dispreferred = np.resize(negative, count), np.resize(positive, count)
    elif pairing == "matched":
        dispreferred = positive[shuffled_passes(len(positive), count, generator)]
        preferred = _of_same_answer(negative, dispreferred, responses, generator)
    else:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectors: Any = TfidfVectorizer().fit_transform(prompts)  # sparse rows of length 1
        similarity = vectors[positive] @ vectors[negative].T
        closest = negative[similarity.toarray().argmax(1)]
        preferred, dispreferred = np.resize(closest, count), np.resize(positive, count)
    influence = scores[dispreferred] - scores[preferred]
    weights = influence / influence.mean() if influence.any() else np.ones(len(influence))
    return preferred, dispreferred, weights


def same_answer(preferred: np.ndarray, dispreferred: np.ndarray, responses: Sequence[str]) -> float:
    """Share of pairs whose two responses are the same, case, blanks and punctuation aside; one without words is no answer. 0
    where there is no pair.

    Args:
        preferred: indices into `responses`, [count], as are `dispreferred`.
    """
    answers = [[normalised(responses[int(i)]) for i in side] for side in (preferred, dispreferred)]
    same = [first == second != "" for first, second in zip(*answers, strict=True)]
    return float(np.mean(same)) if same else 0.0


def _of_equal_shares(
    negative: np.ndarray,
    positive: np.ndarray,
    responses: Sequence[str],
    count: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices in D- and D+ of pairs, half of them of one answer, on both sides of which each answer has the same share: [count]
    each."""
    texts = [np.array([normalised(responses[int(i)]) for i in side], dtype=object) for side in (negative, positive)]
    shared = set(texts[0]) & set(texts[1])
    answers = [np.where(np.isin(side.astype(str), sorted(shared)), side, "") for side in texts]
    held = [Counter(side.tolist()) for side in answers]
    names = sorted(held[0].keys() & held[1].keys())
    if any(2 * sum(side[name] for name in names) < side.total() for side in held):  # most of a side would be left out
        answers, names = [np.full(len(side), "") for side in texts], [""]
        held = [Counter({"": len(side)}) for side in texts]
    shares = np.array([(held[0][name] * held[1][name]) ** 0.5 for name in names])
    times = np.diff(np.round(np.cumsum(shares) / shares.sum() * count).astype(int), prepend=0)

    def drawn(side: np.ndarray, of: np.ndarray) -> np.ndarray:
        members = [side[of == name] for name in names]
        parts = zip(members, times.tolist(), strict=True)
        return np.concatenate([m[shuffled_passes(len(m), n, generator)] for m, n in parts if n])

    preferred, dispreferred = drawn(negative, answers[0]), drawn(positive, answers[1])  # place by place of one answer
    order = generator.permutation(count)
    apart = order[: count // 2]
    preferred[apart] = preferred[generator.permutation(apart)]
    return preferred[order], dispreferred[order]


def _of_same_answer(
    negative: np.ndarray, dispreferred: np.ndarray, responses: Sequence[str], generator: np.random.Generator
) -> np.ndarray:
    """For each driving sample a countering one of its answer, or of the answer nearest to it: indices, [count]."""
    holders: dict[str, list[int]] = defaultdict(list)
    for index in map(int, negative):
        holders[normalised(responses[index])].append(index)
    holders.pop("", None)
    answers = [normalised(responses[int(index)]) for index in dispreferred]
    nearest = _nearest(dict.fromkeys(answer for answer in answers if answer and answer not in holders), holders)
    places: dict[str, list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        places[nearest.get(answer, answer)].append(place)
    preferred = np.empty_like(dispreferred)
    for answer, chosen in places.items():
        candidates = np.asarray(holders.get(answer, negative))
        preferred[chosen] = candidates[shuffled_passes(len(candidates), len(chosen), generator)]
    return preferred


def _nearest(answers: Collection[str], others: Collection[str]) -> dict[str, str]:
    """For each of `answers` the most similar of `others` (TF-IDF cosine); empty where none shares a word with it."""
    if not answers or not others:
        return dict.fromkeys(answers, "")
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors: Any = TfidfVectorizer(token_pattern=r"\S+").fit_transform([*answers, *others])  # sparse rows of length 1
    similarity = (vectors[: len(answers)] @ vectors[len(answers) :].T).toarray()
    names = list(others)
    return {answer: names[row.argmax()] if row.any() else "" for answer, row in zip(answers, similarity, strict=True)}
