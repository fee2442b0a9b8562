#!/bin/sh
# Bring the database to the schema of the installed MLflow. Stop the server and run backup.sh before; there is no way back
# but restore.sh.
. "$(dirname "$0")/settings.sh"

"$PYTHON" -m mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
[ "${LANCET_MLFLOW_AUTH:-basic}" = none ] || "$PYTHON" -m mlflow.server.auth db upgrade --url "$USERS_URI"
