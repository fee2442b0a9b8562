"""Where Dagster keeps its history follows the deployment, and never changes behind a person's back."""

import pytest
import yaml

from lancet_pipeline.config.environment import deployment
from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.orchestration.instance import dagster_home
from lancet_pipeline.orchestration.servers import check_servers

POSTGRES = {"LANCET_DAGSTER_POSTGRES_URL": "postgresql+psycopg2://lancet:hush@127.0.0.1:1/dagster"}


def test_storage_is_sqlite_where_no_database_is_named(tmp_path):
    settings = yaml.safe_load((dagster_home(deployment({}, tmp_path)) / "dagster.yaml").read_text())
    assert "storage" not in settings
    assert settings["telemetry"] == {"enabled": False}


def test_postgresql_is_added_to_settings_that_are_there_and_no_password_is_written(tmp_path):
    settings = dagster_home(deployment({}, tmp_path)) / "dagster.yaml"
    settings.write_text(settings.read_text() + "\nretention: {}\n")
    dagster_home(deployment(POSTGRES, tmp_path))
    text = settings.read_text()
    tree = yaml.safe_load(text)
    assert tree["storage"]["postgres"]["postgres_url"] == {"env": "LANCET_DAGSTER_POSTGRES_URL"}
    assert tree["retention"] == {}
    assert "hush" not in text
    dagster_home(deployment(POSTGRES, tmp_path))
    assert settings.read_text() == text


def test_a_storage_of_ones_own_is_kept(tmp_path):
    settings = dagster_home(deployment({}, tmp_path)) / "dagster.yaml"
    settings.write_text(settings.read_text() + "\nstorage:\n  sqlite:\n    base_dir: /elsewhere\n")
    before = settings.read_text()
    dagster_home(deployment(POSTGRES, tmp_path))
    assert settings.read_text() == before


def test_a_missing_variable_is_named_rather_than_a_second_history_begun(tmp_path):
    dagster_home(deployment(POSTGRES, tmp_path))
    with pytest.raises(InputError, match="LANCET_DAGSTER_POSTGRES_URL is not set"):
        dagster_home(deployment({}, tmp_path))


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path):
    pytest.importorskip("psycopg2")
    with pytest.raises(LancetError, match=r"PostgreSQL at 127\.0\.0\.1:1 cannot be used") as caught:
        check_servers(deployment(POSTGRES, tmp_path))
    assert "hush" not in str(caught.value)


def test_an_address_without_the_driver_is_refused(tmp_path):
    address = {"LANCET_DAGSTER_POSTGRES_URL": "postgresql://lancet@127.0.0.1/dagster"}
    with pytest.raises(InputError, match="must be postgresql\\+psycopg2://"):
        check_servers(deployment(address, tmp_path))
