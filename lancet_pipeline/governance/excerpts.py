"""Excerpts of a sample's text around the tokens that carry its influence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lancet_pipeline.governance.wording import SHOWN_CHARACTERS, left_out

STRONGEST = 8
AROUND = 90
"""Characters that an excerpt keeps before and after each shaded token."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text. `share` is None outside the attributed tokens; `level` (1 to 4) is how dark it is shaded."""

    text: str
    share: float | None = None
    level: int = 0


@dataclass(frozen=True)
class Attribution:
    """Prompt and response cut into pieces, and the strongest tokens in words, whether or not they were placed."""

    prompt: list[Piece]
    response: list[Piece]
    strongest: list[tuple[str, float]]


def attribute(prompt: str, response: str, tokens: Sequence[Mapping[str, Any]]) -> Attribution:
    """Place tokens in the text.

    Args:
        tokens: {"token", "share"} in the order of the text, or any of them with "position". Neighbours are placed
            together. What occurs more than once in the text, or not at all, is not placed: no shade is better than
            one on the wrong word.
    """
    ordered = sorted(
        (int(token.get("position", index)), str(token["token"]), float(token["share"]))
        for index, token in enumerate(tokens)
    )
    runs: list[list[tuple[int, str, float]]] = []
    for token in ordered:
        if runs and token[0] == runs[-1][-1][0] + 1:
            runs[-1].append(token)
        else:
            runs.append([token])
    # Some tokenizers write the first word with a space before it, which the text has lost: give it back.
    whole, begin = f" {prompt}\x1f {response}", len(prompt) + 3
    spans = sorted(span for run in runs for span in _place(whole, run))
    greatest = max((abs(share) for *_, share in ordered), default=0.0)
    strongest = sorted(ordered, key=lambda token: -abs(token[2]))[:STRONGEST]
    return Attribution(
        _pieces(prompt, [(a - 1, b - 1, share) for a, b, share in spans], greatest),
        _pieces(response, [(a - begin, b - begin, share) for a, b, share in spans], greatest),
        [(token.strip() or "space", share) for _, token, share in strongest],
    )


def clip(pieces: Sequence[Piece]) -> list[Piece]:
    """The first SHOWN_CHARACTERS of a text in pieces, and how many are left out."""
    kept: list[Piece] = []
    room = SHOWN_CHARACTERS
    for piece in pieces:
        kept.append(replace(piece, text=piece.text[:room]))
        room -= len(kept[-1].text)
        if room == 0:
            break
    beyond = sum(len(piece.text) for piece in pieces) - SHOWN_CHARACTERS
    return kept if beyond <= 0 else [*kept, Piece(left_out(beyond))]


def excerpt(pieces: Sequence[Piece]) -> list[Piece]:
    """A text in pieces with the middle of every long unshaded stretch left out."""
    return [
        replace(piece, text=f"{piece.text[:AROUND]} […] {piece.text[-AROUND:]}")
        if piece.share is None and len(piece.text) > 2 * AROUND + 40
        else piece
        for piece in pieces
    ]


def _place(whole: str, run: Sequence[tuple[int, str, float]]) -> list[tuple[int, int, float]]:
    """(start, end, share) of the tokens of a run that has exactly one place in `whole`, else of its halves."""
    text = "".join(token for _, token, _ in run)
    stripped = text.strip()
    if whole.count(text) == 1 and stripped:
        offset = whole.find(text)
    elif stripped and whole.count(stripped) == 1:
        offset = whole.find(stripped) - text.find(stripped)
    elif len(run) == 1:
        return []
    else:
        middle = len(run) // 2
        return _place(whole, run[:middle]) + _place(whole, run[middle:])
    spans = []
    for _, token, share in run:
        spans.append((offset, offset + len(token), share))
        offset += len(token)
    return spans


def _pieces(text: str, spans: Sequence[tuple[int, int, float]], greatest: float) -> list[Piece]:
    pieces: list[Piece] = []
    end = 0
    for first, last, share in spans:
        start, stop = max(first, 0), min(last, len(text))
        # Outside of this text, or claimed by the token before: a token may stand inside another one.
        if start >= stop or start < end:
            continue
        if start > end:
            pieces.append(Piece(text[end:start]))
        level = max(1, math.ceil(4 * abs(share) / greatest)) if greatest else 1
        pieces.append(Piece(text[start:stop], share, level))
        end = stop
    if end < len(text):
        pieces.append(Piece(text[end:]))
    return pieces
