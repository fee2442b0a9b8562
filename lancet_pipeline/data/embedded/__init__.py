"""The corpora that ship with the project, each in a domain in which "undesirable" means something else.

`NAME.yaml` holds the words of a domain, from which one generator makes every corpus; `NAME_paraphrases.jsonl` other
wordings of its harmful prompts, written by hand.
"""

from functools import cache
from pathlib import Path
from typing import get_args

from lancet_pipeline.config.study import EmbeddedCorpus, read_mapping, validated
from lancet_pipeline.data.embedded.domain import Domain, Manner
from lancet_pipeline.data.embedded.generator import Corpus, generate

__all__ = ["DOMAINS", "Corpus", "Domain", "Manner", "generate_corpus", "load_domain", "paraphrases_file"]

DOMAINS: tuple[str, ...] = get_args(EmbeddedCorpus)


@cache
def load_domain(name: str) -> Domain:
    """The words of one of `DOMAINS`. Raises InputError where its file does not hold what `Domain` asks for."""
    path = Path(__file__).with_name(f"{name}.yaml")
    return validated(Domain, read_mapping(path), str(path))


def paraphrases_file(name: str) -> Path:
    """JSON Lines with `prompt`, one of the harmful prompts of seed 0, and `paraphrase`."""
    return Path(__file__).with_name(f"{name}_paraphrases.jsonl")


def generate_corpus(name: str, seed: int = 0, samples: int = 2400) -> Corpus:
    """The embedded corpus of a domain; see `generator.generate`."""
    return generate(load_domain(name), seed, samples)
