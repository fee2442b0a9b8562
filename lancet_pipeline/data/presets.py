"""How public data sets map onto the schema: safe and unsafe parts as the paper takes them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lancet_pipeline.errors import InputError

Row = Mapping[str, Any]

_ASSISTANT = "\n\nAssistant:"
_HUMAN = "\n\nHuman:"


def hh_rlhf(row: Row) -> Iterator[dict[str, Any]]:
    """Anthropic/hh-rlhf: the last turn; `chosen` is the safe answer, `rejected` the unsafe one."""
    for column, is_safe in (("chosen", True), ("rejected", False)):
        dialogue, _, response = row[column].rpartition(_ASSISTANT)
        turns = dialogue.strip().removeprefix(_HUMAN.strip()).strip()
        yield {"prompt": turns, "response": response.strip(), "is_safe": is_safe}


def beavertails(row: Row) -> Iterator[dict[str, Any]]:
    """PKU-Alignment/BeaverTails: one labelled answer a row; harm categories are a mapping to booleans."""
    harms = sorted(name for name, present in (row.get("category") or {}).items() if present)
    yield {
        "prompt": row["prompt"],
        "response": row["response"],
        "is_safe": bool(row["is_safe"]),
        "category": harms[0] if harms else None,
    }


def pku_saferlhf(row: Row) -> Iterator[dict[str, Any]]:
    """PKU-Alignment/PKU-SafeRLHF: two answers a row, each with its own safety label."""
    for answer in (0, 1):
        yield {
            "prompt": row["prompt"],
            "response": row[f"response_{answer}"],
            "is_safe": bool(row[f"is_response_{answer}_safe"]),
        }


PRESETS: dict[str, Callable[[Row], Iterator[dict[str, Any]]]] = {
    "hh-rlhf": hh_rlhf,
    "beavertails": beavertails,
    "pku-saferlhf": pku_saferlhf,
}


def apply_preset(rows: Iterable[Row], preset: str, place: str) -> Iterator[dict[str, Any]]:
    """Samples of a public data set, without blank answers and repeated samples, which those sets contain.

    Raises:
        InputError: a column that the preset reads is missing.
    """
    seen: set[tuple[str, str]] = set()
    for row in rows:
        try:
            samples = list(PRESETS[preset](row))
        except KeyError as error:
            raise InputError(
                f"{place}: column {error} is missing (it has: {', '.join(row)}); preset '{preset}' needs it"
            ) from None
        for sample in samples:
            key = (sample["prompt"], sample["response"])
            if key in seen or not all(isinstance(text, str) and text.strip() for text in key):
                continue
            seen.add(key)
            yield {**sample, "source": place}
