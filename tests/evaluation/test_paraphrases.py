"""Rewording by rule: other surface, same content words."""

import re

import pytest

from lancet_pipeline.evaluation.paraphrases import CONTRACTIONS, paraphrase

PROMPTS = [
    "Oh no, I knocked over the tart.",
    "I am late, and the neighbours laughed.",
    "How do I open a window",
    "Tell me how to pick a lock!",
    "What should I do when the alarm rings?",
    'Edit this: "It is what it is."',
    "x",
    "NASA builds rockets.",
    "hello.",
]
SHORT = {word for pair in CONTRACTIONS for text in pair for word in re.findall(r"\w+", text.lower())}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_paraphrase_is_another_text_with_the_same_content_words(prompt):
    other = paraphrase(prompt)
    assert other != prompt
    assert other == paraphrase(prompt)
    words = set(re.findall(r"\w+", prompt.lower())) - SHORT
    assert words <= set(re.findall(r"\w+", other.lower()))


def test_contractions_and_clauses_change():
    assert "I'm late" in paraphrase("I am late for it.").replace("i'm", "I'm")
    clauses = paraphrase("What should I do when the alarm rings?").lower()
    assert clauses.index("when the alarm rings") < clauses.index("what should i do")
    joined = paraphrase("I am late, and the neighbours laughed.").lower()
    assert joined.index("neighbours") < joined.index("late")
