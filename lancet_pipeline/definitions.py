"""The Dagster code location, of the deployment that the environment describes."""

import os

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.orchestration.code_location import build_definitions

defs = build_definitions(deployment(os.environ))
