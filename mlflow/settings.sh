# Sourced by the other scripts: which database and which artifact store the server has. README.md lists the variables.
set -eu
umask 077
here=$(dirname "$0")
PYTHON=${PYTHON:-python3}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

folder=${LANCET_MLFLOW_FOLDER:-${LANCET_HOME:-.lancet}/mlflow-server}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$folder/mlflow.db}
MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}
POSTGRES_URI=$(printf %s "$MLFLOW_BACKEND_STORE_URI" | sed 's/^postgresql+psycopg2:/postgresql:/')
case $POSTGRES_URI in
sqlite:////*) USERS_URI=sqlite:///$folder/users.db ;;
# Arguments of a process can be read by everyone on the machine, and an address is one in pg_dump and `mlflow db upgrade`.
postgresql://*:*@*) fail "MLFLOW_BACKEND_STORE_URI holds a password: put it into the file that PGPASSFILE names, mode 0600" ;;
postgresql://*) # SQLAlchemy wants the driver's name, PostgreSQL's own programs do not
    MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2:${POSTGRES_URI#postgresql:}
    USERS_URI=$MLFLOW_BACKEND_STORE_URI
    ;;
*) fail "MLFLOW_BACKEND_STORE_URI must be postgresql://USER@HOST:PORT/DATABASE or sqlite:////absolute/path.db" ;;
esac
export MLFLOW_BACKEND_STORE_URI MLFLOW_ARTIFACTS_DESTINATION USERS_URI
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
# Scheduled evaluations of traces, which nothing here uses, would cost seven more processes.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"
