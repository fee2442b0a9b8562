"""The command that shows the pages: ui."""

from lancet_pipeline.cli.options import Home, deployed


def ui(home: Home = None, dagster_port: int = 3000, mlflow_port: int = 5000) -> None:
    """Start Dagster's and MLflow's pages, and Dagster's daemon, on the loopback interface; Ctrl-C stops them all."""
    from lancet_pipeline.orchestration.pages import serve

    serve(deployed(home), dagster_port, mlflow_port)
