"""The servers of a deployment: check that they answer before a run starts, and explain the failure of a run that lost one."""

from urllib.parse import urlsplit

from lancet_pipeline.config.environment import DAGSTER_POSTGRES, Deployment
from lancet_pipeline.errors import InputError, LancetError, Unreachable, first_line
from lancet_pipeline.tracking.client import Tracking


def check_servers(where: Deployment) -> None:
    """Ask every server that the deployment names for something small, before any work is done.

    Raises:
        InputError: an address does not fit.
        LancetError: a server does not answer, or refuses.
    """
    if where.dagster_postgres_url:
        _check_postgres(where.dagster_postgres_url)
    if urlsplit(where.tracking_uri).scheme in ("http", "https"):
        with Tracking(home=str(where.home), uri=where.tracking_uri).connection() as client:
            client.search_experiments(max_results=1)


def lost_server(where: Deployment, error: BaseException | str) -> LancetError | None:
    """What to tell a person where an error, or the text of one, means that a server went away; None for other errors."""
    text = str(error)
    names = {part.__name__ for part in type(error).__mro__} | {text.partition(": ")[0].rpartition(".")[2]}
    if names & {"OperationalError", "DagsterPostgresException", "InterfaceError"} and where.dagster_postgres_url:
        return _lost(f"{DAGSTER_POSTGRES}: PostgreSQL at {_address(where.dagster_postgres_url)}", text)
    if "MlflowException" in names or "RestException" in names:
        return _lost(f"MLFLOW_TRACKING_URI: the tracking server at {_address(where.tracking_uri)}", text)
    return None


def _check_postgres(url: str) -> None:
    if not url.startswith("postgresql+psycopg2://"):
        raise InputError(f"{DAGSTER_POSTGRES}: must be postgresql+psycopg2://USER@HOST:PORT/DATABASE")
    try:
        import psycopg2
    except ImportError:
        raise InputError(f"{DAGSTER_POSTGRES} is set: install the extra `server` of lancet-pipeline") from None
    try:
        psycopg2.connect(url.replace("+psycopg2", "", 1), connect_timeout=5).close()
    except psycopg2.Error as error:
        raise Unreachable(
            f"{DAGSTER_POSTGRES}: PostgreSQL at {_address(url)} cannot be used: {first_line(error)}; nothing was run"
        ) from None


def _lost(server: str, text: str) -> LancetError:
    return LancetError(f"{server} failed: {first_line(text)}; what was finished is kept, run again when it works")


def _address(url: str) -> str:
    """Host and port, without the password that may stand before them."""
    return urlsplit(url).netloc.rpartition("@")[2]
