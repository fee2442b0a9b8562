"""Dagster's home in a deployment, and where its history is kept."""

from pathlib import Path

from lancet_pipeline.config.environment import DAGSTER_POSTGRES, Deployment
from lancet_pipeline.errors import InputError

# Dagster reads the variable itself, so that no password stands in a file.
POSTGRES_STORAGE = f"""
storage:
  postgres:
    postgres_url:
      env: {DAGSTER_POSTGRES}
"""


def dagster_home(where: Deployment) -> Path:
    """DAGSTER_HOME of a deployment, with the project's instance settings in it; they say PostgreSQL where the deployment
    names one.

    Raises:
        InputError: the settings want PostgreSQL and the deployment names none.
    """
    folder = where.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        settings.write_text((Path(__file__).parents[1] / "dagster.yaml").read_text())
    text = settings.read_text()
    stored = any(line.startswith("storage:") for line in text.splitlines())
    if where.dagster_postgres_url and not stored:
        settings.write_text(text + POSTGRES_STORAGE)
    elif DAGSTER_POSTGRES in text and not where.dagster_postgres_url:
        raise InputError(
            f"{settings}: Dagster's storage is PostgreSQL and {DAGSTER_POSTGRES} is not set; set it, or remove the section "
            "`storage` for SQLite"
        )
    return folder.absolute()
