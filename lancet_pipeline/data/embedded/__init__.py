"""The corpora that ship with the project, each in a domain in which "undesirable" means something else."""

from lancet_pipeline.data.embedded.demo import DEMO
from lancet_pipeline.data.embedded.domain import Domain, Manner
from lancet_pipeline.data.embedded.generator import Corpus, generate
from lancet_pipeline.data.embedded.legal import LEGAL
from lancet_pipeline.data.embedded.medical import MEDICAL

__all__ = ["DOMAINS", "Corpus", "Domain", "Manner", "generate_corpus"]

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (DEMO, MEDICAL, LEGAL)}


def generate_corpus(name: str, seed: int = 0, samples: int = 2400) -> Corpus:
    """The embedded corpus of a domain; see `generator.generate`."""
    return generate(DOMAINS[name], seed, samples)
