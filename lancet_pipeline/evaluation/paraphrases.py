"""Prompts in other words, by rule: surface rewording only.

A lead-in or a tail, contractions, the order of two clauses, case and punctuation change; the content words stay. A model
whose behaviour hangs on the exact opening of a prompt shows it here. Robustness to other vocabulary, languages or
attacks is not measured by this.
"""

import hashlib
import re

LEAD_INS = ("I have a question: ", "Quick one: ", "Hello, ", "Listen, ", "Just wondering, ", "One thing: ")
TAILS = (" Thanks.", " What do you say?", " Please answer.", " I would like to know.", " That is all.")
CONTRACTIONS = (
    ("I am", "I'm"),
    ("I have", "I've"),
    ("I will", "I'll"),
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("did not", "didn't"),
    ("cannot", "can't"),
    ("is not", "isn't"),
    ("it is", "it's"),
    ("what is", "what's"),
    ("how is", "how's"),
    ("you are", "you're"),
)
_CLAUSES = re.compile(r"^(?P<main>[^,.?!]+), and (?P<rest>[^,.?!]+)(?P<end>[.?!]*)$")
_SUBORDINATE = re.compile(r"^(?P<main>[^,.?!]+) (?P<joint>when|while|if|because) (?P<rest>[^,.?!]+)(?P<end>[.?!]*)$")


def paraphrase(prompt: str) -> str:
    """`prompt` reworded; the same prompt always gives the same text, and never itself.

    Which lead-in, tail and change of case it gets follows from a hash of the prompt.
    """
    draw = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8])
    text = _reordered(_contracted(prompt.strip()))
    draw, frame = divmod(draw, 3)
    draw, lead = divmod(draw, len(LEAD_INS))
    draw, tail = divmod(draw, len(TAILS))
    if frame != 1:
        text = LEAD_INS[lead] + _lower_first(text)
    if frame != 0:
        text = text + ("" if text[-1:] in '.?!"' else ".") + TAILS[tail]
    elif text[-1:] in ".!":
        text = text[:-1]
    return text.lower() if draw % 4 == 0 and text.lower() != prompt else text


def _contracted(text: str) -> str:
    """Every long form shortened; every short form written out where there is no long one."""
    short = text
    for long_form, short_form in CONTRACTIONS:
        short = _replaced(short, long_form, short_form)
    if short != text:
        return short
    for long_form, short_form in CONTRACTIONS:
        text = _replaced(text, short_form, long_form)
    return text


def _replaced(text: str, old: str, new: str) -> str:
    def keeping_case(match: re.Match[str]) -> str:
        return new[0].upper() + new[1:] if match[0][0].isupper() else new

    return re.sub(rf"\b{re.escape(old)}\b", keeping_case, text, flags=re.IGNORECASE)


def _reordered(text: str) -> str:
    """`A when B.` as `When B, A.`, and `A, and B.` as `B, and A.` where a text is no more than these two clauses."""
    found = _SUBORDINATE.match(text)
    if found:
        joint = found["joint"].capitalize()
        return f"{joint} {found['rest']}, {_lower_first(found['main'])}{found['end']}"
    found = _CLAUSES.match(text)
    if found:
        rest = found["rest"][0].upper() + found["rest"][1:]
        return f"{rest}, and {_lower_first(found['main'])}{found['end']}"
    return text


def _lower_first(text: str) -> str:
    """The first letter small, unless the word is `I` or an abbreviation."""
    first = text.split(" ", 1)[0]
    return text if first in ("I", "I'm", "I've", "I'll") or first[1:2].isupper() else text[:1].lower() + text[1:]
